"""Parses query parameters and headers into numbers within their limits."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from typing import Final
from urllib.parse import parse_qs

from serve.errors import BadParameter
from serve.model.look import Look
from serve.model.postprocess import DEFAULT_TOP_K

TIMEOUT_HEADER: Final = b"x-request-timeout-ms"
TIMING_HEADER: Final = b"x-server-timing"
UPLOAD_PARAMETERS: Final = ("top_k", "threshold", "list", "embedding")
MODEL_PARAMETERS: Final = ("labels",)
MOST_LISTED: Final = 100  # labels in a model card that was not asked for them
_MAX_SCORED: Final = 100_000  # classes in one answer, which take 10 MB
_NUMBERS_A_CLASS: Final = 8  # of an embedding take as many bytes as one class
SHOWN_CHARACTERS: Final = 40
_DECIMAL: Final = re.compile(r"(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
MAX_DIGITS: Final = 15
_MAX_QUERY_BYTES: Final = 1024
_MAX_QUERY_FIELDS: Final = 32


@dataclass(frozen=True)
class UploadQuery:
    """What the query of `/upload` or `/explain` asks for.

    Attributes:
        top_k: how many classes to name.
        threshold: the least probability of an entry of `top_k`.
        as_list: whether the answer is a list even if there is one image.
        look: what is wanted besides classes.
    """

    top_k: int
    threshold: float = 0.0
    as_list: bool = False
    look: Look | None = None


def parse_upload_query(query: bytes, classes: int) -> UploadQuery:
    """Reads the query of `/upload`.

    Args:
        query: percent-encoded, as in the request's target.
        classes: how many classes the model has.

    Raises:
        BadParameter: a parameter is not known or has a value that is not allowed, or there are too many.
    """
    if not query:
        return _default_query(classes)
    given = parse_query(query, UPLOAD_PARAMETERS)
    return UploadQuery(
        parse_top_k(given.get("top_k", []), classes),
        parse_fraction("threshold", given.get("threshold", []), 0.0),
        parse_switch("list", given.get("list", [])),
        Look(embedding=True) if parse_switch("embedding", given.get("embedding", [])) else None,
    )


@cache
def _default_query(classes: int) -> UploadQuery:
    return UploadQuery(parse_top_k((), classes))


def require_modest_answer(top_k: int, images: int, embedding: int = 0) -> None:
    """Checks that the answer to several images is not too long; one image may ask for all classes.

    Args:
        top_k: classes for each image.
        images: how many there are.
        embedding: numbers in the embedding of each image, if they are wanted.

    Raises:
        BadParameter: it is.
    """
    if images > 1 and (top_k + embedding / _NUMBERS_A_CLASS) * images > _MAX_SCORED:
        raise BadParameter(
            f"top_k={top_k} for {images} images asks for {top_k * images} classes"
            + (
                f" and {embedding * images} numbers of embeddings, which count as an eighth of a class,"
                * bool(embedding)
            )
            + f" in one answer; the limit is {_MAX_SCORED}. Send fewer images at once, or a smaller top_k."
        )


def parse_model_query(query: bytes, classes: int) -> bool:
    """Reads the query of `/model`: returns whether the card has the labels, by default if there are at most 100.

    Args:
        query: percent-encoded, as in the request's target.
        classes: how many classes the model has.

    Raises:
        BadParameter: a parameter is not known or has a value that is not allowed.
    """
    given = parse_query(query, MODEL_PARAMETERS).get("labels", [])
    return parse_switch("labels", given) if given else classes <= MOST_LISTED


def parse_query(query: bytes, known: Collection[str]) -> dict[str, list[str]]:
    """Returns the values of each parameter, in the order sent.

    Args:
        query: percent-encoded, as in the request's target.
        known: the parameters that the route has.

    Raises:
        BadParameter: the query is too long, has too many parameters, or one that is not known.
    """
    if len(query) > _MAX_QUERY_BYTES:
        raise BadParameter(f"The query has {len(query)} bytes; the limit is {_MAX_QUERY_BYTES} bytes.")
    try:
        given = parse_qs(query.decode("latin-1"), keep_blank_values=True, max_num_fields=_MAX_QUERY_FIELDS)
    except ValueError:
        raise BadParameter(f"The query has more parameters than the limit of {_MAX_QUERY_FIELDS}.") from None
    for name in given:
        if name not in known:
            shown = name[:SHOWN_CHARACTERS]
            (nearest,) = get_close_matches(shown.lower(), known, n=1, cutoff=0.0)
            raise BadParameter(
                f"There is no query parameter {shown!r}; the nearest is {nearest!r}. Known are {', '.join(known)}."
            )
    return given


def parse_top_k(given: Sequence[str], classes: int) -> int:
    """Returns how many classes to name.

    Args:
        given: every `top_k` of the query.
        classes: how many classes the model has.

    Raises:
        BadParameter: `top_k` is not one whole number from 1 to `classes`.
    """
    text = ",".join(given) if given else str(min(DEFAULT_TOP_K, classes))
    value = parse_positive(text)
    if value is None or value > classes:
        raise BadParameter(f"top_k={text[:SHOWN_CHARACTERS]!r} is not one whole number from 1 to {classes}.")
    return value


def parse_fraction(name: str, given: Sequence[str], default: float) -> float:
    """Returns the value of a parameter that is a number from 0 to 1.

    Args:
        name: the parameter's.
        given: every one of this name in the query.
        default: for none.

    Raises:
        BadParameter: it is not one number from 0 to 1.
    """
    text = ",".join(given) if given else str(default)
    if not _DECIMAL.fullmatch(text) or not float(text) <= 1:
        raise BadParameter(f"{name}={text[:SHOWN_CHARACTERS]!r} is not one number from 0 to 1, such as 0.2.")
    return float(text)


def parse_switch(name: str, given: Sequence[str]) -> bool:
    """Returns the value of a parameter that is true or false, by default false.

    Args:
        name: the parameter's.
        given: every one of this name in the query.

    Raises:
        BadParameter: it is neither true nor false.
    """
    text = ",".join(given) if given else "false"
    if text.lower() not in ("true", "false"):  # Python's clients write True
        raise BadParameter(f"{name}={text[:SHOWN_CHARACTERS]!r} is neither true nor false.")
    return text.lower() == "true"


def parse_timeout(given: Sequence[str], longest_ms: int) -> float:
    """Returns the request's timeout in seconds: the server's or the client's, whichever is shorter.

    Args:
        given: every `X-Request-Timeout-Ms` header.
        longest_ms: the server's timeout.

    Raises:
        BadParameter: the header is not one whole number of milliseconds.
    """
    text = ",".join(given)
    value = parse_positive(text)
    if value is None:
        raise BadParameter(
            f"X-Request-Timeout-Ms: {text[:SHOWN_CHARACTERS]!r} is not one whole number of milliseconds, "
            f"1 to {10**MAX_DIGITS - 1}."
        )
    return min(value, longest_ms) / 1000


def parse_positive(text: str) -> int | None:
    """Returns a whole number of at most 15 digits; None if the text is none."""
    digits = text.lstrip("0")
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) <= MAX_DIGITS else None
