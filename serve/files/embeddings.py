"""Writes embeddings to a NumPy file, one row for each image, and the images' paths to a text file, one a line.

Rows are written as they come, so memory does not grow with their number; the number is written into the header at the
end, also of a run that is stopped.
"""

from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TextIO

from serve.errors import OutputError
from serve.files.runner import EMBEDDING, Record
from serve.printable import printable

SUFFIX: Final = ".npy"
NAMES_SUFFIX: Final = ".txt"
# NPY format 1.0: a magic string, the version, the length of the header, and the header, 128 bytes together.
_MAGIC: Final = b"\x93NUMPY\1\0"
_HEADER_BYTES: Final = 128 - len(_MAGIC) - 2


class EmbeddingFile:
    """Writes the embeddings. Leaving its `with` block completes the file, also after an error.

    Args:
        file: where the embeddings go, open and empty.
        names: where the paths go.
        path: of `file`.
        length: of an embedding.

    Raises:
        OutputError: the file is a pipe, in which nothing can be changed.
    """

    def __init__(self, file: TextIO, names: TextIO, path: Path, length: int) -> None:
        if not file.seekable():
            raise OutputError(f"output {path}: not a regular file; choose another --embeddings")
        self._file = file.buffer
        self._names = names
        self._path = path
        self._length = length
        self._count = 0

    def __enter__(self) -> Self:
        self._file.seek(len(self._header()))  # a run that is refused leaves no file
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        errors: AbstractContextManager[None] = suppress(OSError) if error else nullcontext()
        if error and not self._count:
            return
        with errors:  # the first error is the one to report
            self._file.seek(0)
            self._file.write(self._header())

    def add(self, record: Record) -> None:
        """Writes the embedding of a record and the path of its file, unless it has a problem; raises `OutputError`."""
        if EMBEDDING not in record:
            return
        try:
            self._file.write(record[EMBEDDING].astype("<f4").tobytes())
            self._names.write(printable(record["file"]) + "\n")
        except OSError as error:
            raise OutputError(f"output {self._path}: {(error.strerror or 'cannot be written').lower()}") from error
        self._count += 1

    def report(self) -> list[str]:
        """Returns the lines to print at the end."""
        names = self._path.with_suffix(NAMES_SUFFIX)
        return [f"{self._count} embeddings of {self._length} numbers in {self._path}, their files in {names}"]

    def _header(self) -> bytes:
        text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({self._count}, {self._length}), }}"
        return _MAGIC + _HEADER_BYTES.to_bytes(2, "little") + text.ljust(_HEADER_BYTES - 1).encode() + b"\n"
