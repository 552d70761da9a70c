"""Finds SERVE_* environment variables that are not settings."""

import difflib
import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Final

from serve.config.settings import Config, setting_names
from serve.printable import shortened

# Variables that Kubernetes sets in every pod for a Service named "serve" or "serve-...".
_SERVICE_LINK: Final = re.compile(r"SERVE_(\w+_)?(SERVICE_HOST|SERVICE_PORT\w*|PORT_\d+_(TCP|UDP|SCTP)\w*)")
_SERVICE_ADDRESS: Final = re.compile(r"(tcp|udp|sctp)://")
# A Service name has at most 63 characters and a port name 15; matching longer names would take quadratic time.
_MAX_NAME: Final = 200


def unknown_variables(environment: Mapping[str, str]) -> list[str]:
    """Returns a sentence for each SERVE_* variable that is not a setting, with the setting that is probably meant."""
    known = ["SERVE_CONFIG", *(setting_names(setting.name)[1] for setting in fields(Config))]
    found = []
    for name, value in sorted(environment.items()):
        short = len(name) <= _MAX_NAME
        of_service = (short and _SERVICE_LINK.fullmatch(name)) or _SERVICE_ADDRESS.match(value)
        if name.startswith("SERVE_") and name not in known and not of_service:
            near = difflib.get_close_matches(name, known, 1, cutoff=0.8) if short else []
            hint = f"; did you mean {near[0]}?" if near else ""
            found.append(f"unknown setting {shortened(name, _MAX_NAME)} in the environment{hint}")
    return found
