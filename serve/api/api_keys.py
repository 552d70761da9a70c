"""Checks API keys against a file of keys, which is read again when it changes."""

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
    """The keys in a file, one per line.

    Empty lines are ignored, and so are comments, which begin with a # at the start of a line or after white space.

    Raises:
        ConfigError: the file cannot be read or contains no key.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, ...] = ()
        self._last_warning = ""
        self._read_if_changed()

    def require(self, key: bytes | None) -> None:
        """Raises `Unauthorized` unless `key`, in UTF-8, is in the file. Every wrong key takes the same time."""
        if key is None:
            raise Unauthorized("An API key is needed: Authorization: Bearer KEY, or X-API-Key: KEY.")
        digest = _digest(key)
        # Compare all of every digest, so that the time taken tells nothing about any key.
        if not sum(hmac.compare_digest(digest, known) for known in self._digests):
            raise Unauthorized("The API key is not one of those accepted here.")

    def refresh(self) -> None:
        """Reads the file if it has changed; may be called on any thread.

        Keeps the previous keys if the file is missing, unreadable or without keys, and logs each reason once.
        """
        try:
            if self._read_if_changed():
                log.info("API keys: %d reloaded from %s", len(self._digests), self._path.name)
            else:
                self._last_warning = ""
        except ConfigError as error:
            if self._last_warning != str(error):
                log.warning("%s; the previous keys stay in use", error)
                self._last_warning = str(error)

    def _read_if_changed(self) -> bool:
        """Returns whether the file has changed, and reads it if so; raises `ConfigError`."""
        try:
            status = self._path.stat()
            stamp = (status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino)
            if stamp == self._seen:
                return False
            text = read_text(self._path, _MAX_BYTES)
        except OSError as error:
            raise ConfigError(f"API keys file {self._path}: {error.strerror}") from error
        self._seen = stamp  # a file without keys is not read again; one that could not be read is
        keys = [key for line in text.splitlines() if (key := _COMMENT.sub("", line).strip())]
        if not keys:
            raise ConfigError(f"API keys file {self._path}: it contains no key")
        self._digests = [_digest(key.encode()) for key in keys]
        return True


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
