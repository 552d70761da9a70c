"""Writes pictures of where the network looked into a folder, one PNG for each image."""

import os
from pathlib import Path
from typing import Final

from serve.errors import OutputError
from serve.files.runner import PICTURE, Record
from serve.files.sorting import file_names

_SUFFIX: Final = ".png"


class ExplanationFolder:
    """Writes the pictures.

    Args:
        folder: where to; it is made if there is none.

    Raises:
        OutputError: the folder cannot be used, or has files.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with os.scandir(folder) as entries:
                is_empty = next(entries, None) is None
        except OSError as error:
            raise self._error(folder, error) from error
        if not is_empty:
            raise OutputError(f"output folder {folder} is not empty; choose another --explain")

    def add(self, record: Record) -> None:
        """Writes the picture of a record, unless that has a problem.

        It is called like the file; of two files with one name, the second's has a hash of its path.

        Raises:
            OutputError: it cannot be written.
        """
        if PICTURE not in record:
            return
        for name in file_names(record["file"], _SUFFIX):
            try:
                with (self._folder / name).open("xb") as file:
                    file.write(record[PICTURE])
            except FileExistsError:
                continue
            except OSError as error:
                raise self._error(self._folder / name, error) from error
            self._count += 1
            return
        # The same path was given so many times that its picture has all of the names.

    def report(self) -> list[str]:
        """Returns the lines to print at the end."""
        return [f"{self._count} picture{'s' * (self._count != 1)} of where the network looked in {self._folder}"]

    def _error(self, path: Path, error: OSError) -> OutputError:
        return OutputError(
            f"output {path}: {(error.strerror or 'cannot be written').lower()}; choose another --explain"
        )
