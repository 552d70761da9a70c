"""Reads `Accept`, by which a client chooses between two media types of one answer (RFC 9110, section 12.5.1)."""

import re
from collections.abc import Iterable
from typing import Final

# How much of the header is read, in characters; browsers send about 150.
_MAX_ACCEPT: Final = 1024
_QUALITY: Final = re.compile(r"[01](\.[0-9]*)?")


def prefers(accept: str, media_type: str, default: str) -> bool:
    """Returns whether an `Accept` header prefers a media type to the default one, of the two that there are.

    Of two that it accepts alike, it prefers the one that it names. A client that accepts neither gets the default, as
    RFC 9110 allows.
    """
    weights: dict[str, float] = {}
    for entry in accept[:_MAX_ACCEPT].lower().split(","):
        media, *parameters = (part.strip() for part in entry.split(";"))
        weights[media] = _quality(parameters)

    def weight(media: str) -> tuple[float, bool]:
        every = f"{media.partition('/')[0]}/*"
        return weights.get(media, weights.get(every, weights.get("*/*", 0.0))), media in weights

    return weight(media_type) > weight(default)


def _quality(parameters: Iterable[str]) -> float:
    """Returns the value of `q`, from 0 to 1; 1 if it is missing or malformed."""
    text = next((each[2:] for each in parameters if each.startswith("q=")), "1")
    return min(1.0, float(text)) if _QUALITY.fullmatch(text) else 1.0
