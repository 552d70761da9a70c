"""Files → records, as many at a time as there are CPUs, in the order in which the files come.

A record is a file's path with its prediction, or with the problem object that says why there is none.
Errors that leave here: none but a defect's; what is wrong with a file is its record.
"""

import logging
import os
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from queue import Empty, Queue
from threading import Thread
from typing import Any, BinaryIO, Final

from serve.config.regular_file import NotRegular, open_regular
from serve.errors import EmptyFile, RequestError, UploadTooLarge
from serve.model.classifier import Classifier, prediction
from serve.problems import problem, problem_of

Record = dict[str, Any]
# How the detail begins of a file that is there, and that a moment's trouble may have kept from being read.
UNREADABLE: Final = "The file cannot be read"

log = logging.getLogger("serve.error")

# Files begun beyond those that are being worked on, so that a large one does not leave the other CPUs idle.
_AHEAD: Final = 8


def classify_files(
    classifier: Classifier,
    paths: Iterable[str],
    top_k: int,
    streams: int,
    max_bytes: int,
    before_waiting: Callable[[], object] = lambda: None,
) -> Generator[Record, None, None]:
    """A record for each path, in their order, as soon as it and those before it are ready.

    streams: files worked on side by side. max_bytes: of a file. before_waiting: called when the next is not ready yet.
    """
    pool = ThreadPoolExecutor(max_workers=streams, thread_name_prefix="stream")
    pending: Queue[Future[Record] | None] = Queue(streams * _AHEAD - 1)

    def begin() -> None:
        """Apart from who takes the records, because the next path may be long in coming."""
        try:
            for path in paths:
                pending.put(pool.submit(record_of, classifier, path, top_k, max_bytes))
            pending.put(None)
        except Exception as error:  # whatever it is, whoever takes the records is told
            failed: Future[Record] = Future()
            failed.set_exception(error)
            pending.put(failed)

    Thread(target=begin, name="paths", daemon=True).start()
    try:
        while True:
            if pending.empty():
                before_waiting()
            future = pending.get()
            if future is None:
                return
            if not future.done():
                before_waiting()
            yield future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        with suppress(Empty):  # so that the thread finds room, and the pool closed
            while True:
                pending.get_nowait()


def read_file(path: str, max_bytes: int) -> bytes:
    """A file's bytes, of which there are some; raises `EmptyFile`, `UploadTooLarge` and `OSError`."""
    with open_regular(path) as file:
        return read_within(file, os.fstat(file.fileno()).st_size, max_bytes)


def read_within(file: BinaryIO, size: int, max_bytes: int) -> bytes:
    """The bytes of an open file that says to have so many; raises `EmptyFile` and `UploadTooLarge`."""
    if size > max_bytes:
        raise UploadTooLarge(f"The file has {size} bytes; the limit is {max_bytes} bytes.")
    if data := file.read(max_bytes):
        return data
    raise EmptyFile("The file is empty.")


def record_of(
    classifier: Classifier, path: str, top_k: int, max_bytes: int, read: Callable[[str, int], bytes] = read_file
) -> Record:
    """One file's record. read: for files that are elsewhere; raises as `read_file`."""
    try:
        return {
            "file": path,
            **prediction(classifier.classify(read(path, max_bytes), top_k), classifier.model.name),
        }
    except RequestError as error:
        return {"file": path, **problem_of(error)}
    except OSError as error:
        return {"file": path, **_unreadable(error)}
    except Exception:
        log.exception("unforeseen error with %s", path)
        detail = "The classifier failed on this file, which is a defect; standard error has more."
        return {"file": path, **problem(500, "Internal Server Error", detail)}


def is_problem(record: Record) -> bool:
    """Whether a record says why there is no prediction."""
    return "status" in record


def _unreadable(error: OSError) -> dict[str, Any]:
    match error:
        case FileNotFoundError() | NotADirectoryError():
            return problem(404, "Not Found", "There is no such file.")
        case PermissionError():
            return problem(403, "Forbidden", "The file may not be read.")
        case IsADirectoryError():
            return problem(403, "Forbidden", "The directory may not be read.")
        case NotRegular():
            return problem(415, "Unsupported Media Type", "This is no file but a device, a pipe or a socket.")
        case _:
            return problem(404, "Not Found", f"{UNREADABLE}: {(error.strerror or 'unknown').lower()}.")
