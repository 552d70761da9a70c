"""Classifies files on several threads into records, in the order of the files.

A record is a file's path with its prediction, or with the problem object that says why there is none.
"""

import logging
import os
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from threading import Semaphore, Thread
from typing import Any, BinaryIO, Final

from serve.config.regular_file import NotRegular, open_regular
from serve.errors import EmptyFile, InternalError, RequestError, UploadTooLarge
from serve.model.classifier import Classifier
from serve.model.look import Look
from serve.model.prediction import prediction
from serve.problems import problem, problem_from

Record = dict[str, Any]
# From the model's crop, 8-bit RGB `[S, S, 3]`, to a JPEG file.
MakeThumbnail = Callable[[bytes], bytes]
# Further entries of a record, which are taken out before it is written: a JPEG file, a PNG file, FP32 `[C]`.
THUMBNAIL: Final = "thumbnail"
PICTURE: Final = "picture"
EMBEDDING: Final = "embedding"
# Start of the detail for a file that exists but could not be read; trying again may help.
UNREADABLE_DETAIL: Final = "The file cannot be read"

log = logging.getLogger("serve.error")

# Files queued per thread, so that one slow file does not leave the other CPUs idle.
_QUEUED_PER_STREAM: Final = 8


def classify_files(
    classifier: Classifier,
    paths: Iterable[str],
    top_k: int,
    streams: int,
    max_bytes: int,
    before_waiting: Callable[[], object] = lambda: None,
    thumbnail: MakeThumbnail | None = None,
    look: Look | None = None,
) -> Generator[Record, None, None]:
    """Yields a record for each path, in order, as soon as it and those before it are ready.

    Args:
        streams: the number of files processed at once.
        max_bytes: the largest file.
        before_waiting: called when the next record is not ready yet.
        thumbnail, look: as for `classify_file`.

    Raises:
        Exception: whatever `paths` raises.
    """
    pool = ThreadPoolExecutor(max_workers=streams, thread_name_prefix="stream")
    room = Semaphore(streams * _QUEUED_PER_STREAM)
    # Each file's queue gets its future when that is done. A handler of a signal may raise while a SimpleQueue is waited
    # for; in a wait for a Condition, as of a Queue or a Future, that can leave its lock released, which is an error.
    pending: SimpleQueue[SimpleQueue[Future[Record]] | None] = SimpleQueue()

    def add(future: Future[Record]) -> None:
        done: SimpleQueue[Future[Record]] = SimpleQueue()
        future.add_done_callback(done.put)
        pending.put(done)

    def submit_all() -> None:
        """Runs on a thread of its own, because the next path may take long to arrive."""
        try:
            for path in paths:
                room.acquire()
                add(pool.submit(classify_file, classifier, path, top_k, max_bytes, read_file, thumbnail, look))
            pending.put(None)
        except Exception as error:  # raised again where the records are consumed
            failed: Future[Record] = Future()
            failed.set_exception(error)
            add(failed)

    Thread(target=submit_all, name="paths", daemon=True).start()
    try:
        while True:
            if pending.empty():
                before_waiting()
            done = pending.get()
            if done is None:
                return
            if done.empty():
                before_waiting()
            record = done.get().result()
            room.release()
            yield record
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        room.release()  # for the thread, which then finds the pool closed


def read_file(path: str, max_bytes: int) -> bytes:
    """Reads a file.

    Raises:
        EmptyFile: it has no bytes.
        UploadTooLarge: it has more than `max_bytes`.
        OSError: it cannot be read.
    """
    with open_regular(path) as file:
        return read_limited(file, os.fstat(file.fileno()).st_size, max_bytes)


def read_limited(file: BinaryIO, size: int, max_bytes: int) -> bytes:
    """Reads an open file of `size` bytes.

    Raises:
        EmptyFile, UploadTooLarge, OSError: as `read_file`.
    """
    if size > max_bytes:
        raise UploadTooLarge(f"The file has {size} bytes; the limit is {max_bytes} bytes.")
    if data := file.read(max_bytes):
        return data
    raise EmptyFile("The file is empty.")


def classify_file(
    classifier: Classifier,
    path: str,
    top_k: int,
    max_bytes: int,
    read: Callable[[str, int], bytes] = read_file,
    thumbnail: MakeThumbnail | None = None,
    look: Look | None = None,
) -> Record:
    """Returns one file's record.

    Args:
        classifier: the model.
        path: the file.
        top_k: how many classes the record has.
        max_bytes: the largest file.
        read: replaces `read_file` and raises as it does.
        thumbnail: makes a JPEG file of the model's crop, which the record then has as `THUMBNAIL`.
        look: what the record then has as `EMBEDDING` and `PICTURE`.
    """
    try:
        prepared = classifier.prepare(classifier.open(read(path, max_bytes), top_k, look))
        classified = classifier.compute(prepared)
        record = {"file": path, **prediction(classified, classifier.model.name)}
        if thumbnail is not None:
            record[THUMBNAIL] = thumbnail(prepared.pixels)
        if classified.embedding is not None:
            record[EMBEDDING] = classified.embedding
        if classified.explanation is not None:
            record[PICTURE] = classified.explanation.png
        return record
    except RequestError as error:
        return {"file": path, **problem_from(error)}
    except OSError as error:
        return {"file": path, **_unreadable(path, error)}
    except Exception:
        log.exception("unexpected error with %s", path)
        detail = "The classifier failed on this file, which is a defect; the log on standard error has the traceback."
        return {"file": path, **problem_from(InternalError(detail))}


def is_problem(record: Record) -> bool:
    """Returns whether a record has a problem instead of a prediction."""
    return "status" in record


def _unreadable(path: str, error: OSError) -> dict[str, Any]:
    match error:
        case FileNotFoundError() | NotADirectoryError() if os.path.islink(path):  # noqa: PTH114  Path may raise
            return problem(404, "Not Found", "This is a link to a file that does not exist.", "no_such_file")
        case FileNotFoundError() | NotADirectoryError():
            return problem(404, "Not Found", "There is no such file.", "no_such_file")
        case PermissionError():
            kind = "directory" if os.path.isdir(path) else "file"  # noqa: PTH112  Path may raise
            return problem(403, "Forbidden", f"The {kind} may not be read.", "unreadable")
        case IsADirectoryError():
            return problem(415, "Unsupported Media Type", "This is a directory, not a file.", "not_a_file")
        case NotRegular():
            detail = "This is not a file but a device, a pipe or a socket."
            return problem(415, "Unsupported Media Type", detail, "not_a_file")
        case _:
            detail = f"{UNREADABLE_DETAIL}: {(error.strerror or 'unknown').lower()}."
            return problem(404, "Not Found", detail, "unreadable")
