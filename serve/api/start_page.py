"""Renders the start page with this server's limits, and the security headers of every page."""

import base64
import hashlib
import html
import json
import re
from pathlib import Path
from typing import Final

from serve.api.accept import prefers
from serve.config.hosts import host_name
from serve.config.settings import Config
from serve.imaging.formats import ACCEPTED_FORMATS, HEIC
from serve.model.classifier import Classifier
from serve.model.postprocess import DEFAULT_TOP_K, SIGMOID

_FILE: Final = Path(__file__).with_name("page.html")
_NOTHING: Final = "'none'"
_ADDRESS: Final = "http://127.0.0.1:5000"  # the placeholder in page.html and docs_page.html
# Media types that are not named like their format. Files of more general brands than HEIC's are called HEIF.
_MEDIA_TYPES: Final = {HEIC: "heic,image/heif"}


def start_page(config: Config, classifier: Classifier) -> str:
    """Returns the HTML of `GET /`."""
    model, variant = classifier.model, str(classifier.model.card["variant"])
    top_k = min(DEFAULT_TOP_K, model.class_count)
    settings = {
        "maxBytes": config.max_request_bytes,
        "maxFiles": config.max_files,
        "topK": top_k,
        "variant": variant,
        "wantsKey": config.api_keys_file is not None,
    }
    values = {
        "settings": json.dumps(settings),
        "model": model.name,
        "variant": variant,
        "task": _task(model.class_count, top_k, classifier.activation.name),
        "accept": ",".join(f"image/{_MEDIA_TYPES.get(name, name.lower())}" for name in ACCEPTED_FORMATS),
        "formats": ", ".join(ACCEPTED_FORMATS),
        "megabytes": f"{config.max_request_bytes / 2**20:g}",
        "megapixels": f"{config.max_pixels / 1e6:g}",
    }
    text = _FILE.read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda found: html.escape(values[found[1]]), text)


def _task(classes: int, top_k: int, activation: str) -> str:
    """Says what the model does with each picture."""
    if classes == 1:
        return "says how likely its one class is"
    text = f"names the {f'{top_k} most likely' if top_k < classes else 'likeliest'} of {classes} classes"
    return f"{text}, each with a probability of its own," if activation == SIGMOID else text


def with_address(page: str, scheme: str, host: str) -> str:
    """Returns the page with the address that it was requested at, if `scheme` and `host` (with port) are valid."""
    if scheme not in ("http", "https") or host_name(host) is None:
        return page
    return page.replace(_ADDRESS, f"{scheme}://{host}")


def security_headers(page: str) -> dict[str, str]:
    """Returns headers that let a page load and run only what is written in it, and connect only to its own server."""
    styles, scripts = (_hashes(page, tag) for tag in ("style", "script"))
    policy = {
        "default-src": _NOTHING,
        "style-src": styles,
        "script-src": scripts,
        "img-src": "data: blob:",
        "connect-src": _NOTHING if scripts == _NOTHING else "'self'",
        "base-uri": _NOTHING,
        "form-action": _NOTHING,
        "frame-ancestors": _NOTHING,
    }
    return {
        "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
        "Cross-Origin-Opener-Policy": "same-origin",
    }


def prefers_html(accept: str) -> bool:
    """Returns whether an `Accept` header prefers HTML to plain text, as a browser's does and curl's does not."""
    return prefers(accept, "text/html", "text/plain")


def _hashes(page: str, tag: str) -> str:
    bodies = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
    digests = (base64.b64encode(hashlib.sha256(body.encode()).digest()).decode() for body in bodies)
    return " ".join(f"'sha256-{digest}'" for digest in digests) or _NOTHING
