"""Variables of the environment that are named like settings and are none. No error leaves this module."""

import difflib
import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Final

from serve.config.settings import Config
from serve.printable import shortened

# What Kubernetes tells every pod of a Service called "serve", or "serve-" and more.
_SERVICE_LINK: Final = re.compile(r"SERVE_(\w+_)?(SERVICE_HOST|SERVICE_PORT\w*|PORT_\d+_(TCP|UDP|SCTP)\w*)")
_SERVICE_ADDRESS: Final = re.compile(r"(tcp|udp|sctp)://")
_LONGEST: Final = 200  # a Service and its port have 63 letters and 15; what takes quadratic time is kept from more


def strays(environment: Mapping[str, str]) -> list[str]:
    """A sentence for each, which names the setting that may be meant."""
    known = ["SERVE_CONFIG", *(f"SERVE_{setting.name.upper()}" for setting in fields(Config))]
    found = [
        name
        for name, value in sorted(environment.items())
        if name.startswith("SERVE_")
        and name not in known
        and not (len(name) <= _LONGEST and _SERVICE_LINK.fullmatch(name))
        and not _SERVICE_ADDRESS.match(value)
    ]
    return [
        f"there is no setting {shortened(name, _LONGEST)}, which the environment has{_meant(name, known)}"
        for name in found
    ]


def _meant(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, 1, cutoff=0.8) if len(name) <= _LONGEST else ()
    return f"; is it {near[0]}?" if near else ""
