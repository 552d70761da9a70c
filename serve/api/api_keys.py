"""API keys, where the operator wants them: a file of keys, reread when it changes, and whether one sent is among them.

Errors that leave here: `ConfigError` at the start, for a file that cannot be read or holds no key; `Unauthorized`.
"""

import hashlib
import hmac
import logging
import re
from pathlib import Path
from typing import Final

from serve.config.regular_file import read_text
from serve.errors import ConfigError, Unauthorized

_COMMENT: Final = re.compile(r"(^|\s)#.*")
_MAX_BYTES: Final = 2**20

log = logging.getLogger("serve")


class KeyFile:
    """The keys in a file: one a line; empty lines, and comments from a # at the start or after white space, do not
    count."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen = self._stamp()
        self._digests = self._in(self._text())
        self._told = ""

    def require(self, key: bytes | None) -> None:
        """Raise `Unauthorized` unless `key` is one of them, in UTF-8; takes as long for any key that is not."""
        self._reread_if_changed()
        if key is None:
            raise Unauthorized("An API key is needed: Authorization: Bearer KEY, or X-API-Key: KEY.")
        digest = _digest(key)
        # Each is compared whole, and all of them are, so that time tells nothing about any.
        if not sum(hmac.compare_digest(digest, known) for known in self._digests):
            raise Unauthorized("The API key is not one of those accepted here.")

    def _reread_if_changed(self) -> None:
        """A file that is gone, cannot be read or holds no key while the server runs leaves the keys as they were, and
        says so in the log, once for each reason."""
        try:
            stamp = self._stamp()
            if stamp == self._seen:
                self._told = ""
                return
            text = self._text()
            self._seen = stamp  # what is in it need not be looked at again; what could not be read is tried again
            self._digests = self._in(text)
            log.info("API keys: %d read anew from %s", len(self._digests), self._path.name)
        except ConfigError as error:
            if self._told != str(error):
                log.warning("%s; the keys stay as they were", error)
                self._told = str(error)

    def _stamp(self) -> tuple[int, ...]:
        try:
            status = self._path.stat()
        except OSError as error:
            raise self._unreadable(error) from error
        return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino

    def _text(self) -> str:
        try:
            return read_text(self._path, _MAX_BYTES)
        except OSError as error:
            raise self._unreadable(error) from error

    def _in(self, text: str) -> list[bytes]:
        keys = [key for line in text.splitlines() if (key := _COMMENT.sub("", line).strip())]
        if not keys:
            raise ConfigError(f"API keys file {self._path}: no key in it")
        return [_digest(key.encode()) for key in keys]

    def _unreadable(self, error: OSError) -> ConfigError:
        return ConfigError(f"API keys file {self._path}: {error.strerror}")


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
