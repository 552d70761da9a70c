"""`python -m serve classify PATH...`: classifies the images in files and folders, without HTTP.

Decoding, model and limits are those of the server. All CPUs are used; memory does not grow with the number of files.
Exit status: 0 if every file was classified, 1 if some have problems, 2 if the run cannot start or go on, 128 plus the
signal's number after Ctrl-C or SIGTERM, 141 if the reader of its output goes away.
"""

import argparse
import itertools
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from types import FrameType
from typing import Final

from serve.commands.classify_options import checked_top_k, read_options
from serve.commands.classify_run import Run, open_run
from serve.config.settings import Config
from serve.errors import OutputError
from serve.files.embeddings import NAMES_SUFFIX
from serve.files.evaluation import TOP_K
from serve.files.output_file import EXPLAINED, SORTED, exclude_output
from serve.files.paths import STDIN_LIST, expand_paths, parse_file_list, standard_input
from serve.files.progress import FileProgress
from serve.files.records import read_existing
from serve.files.runner import EMBEDDING, PICTURE, THUMBNAIL, MakeThumbnail, Record, classify_files, is_problem
from serve.files.thumbnails import Thumbnails
from serve.model.classifier import Classifier, load_classifier
from serve.model.files import fallback_warning
from serve.printable import printable
from serve.server.signals import SIGNAL_STATUS_BASE

_SOME_FAILED: Final = 1


class _Stopped(BaseException):
    """A signal, whose number is the argument, asked the run to end."""


def main(arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """Runs the command.

    Returns:
        The exit status.

    Raises:
        StartError: a setting, the model, an output file or the list of files is unusable.
    """
    options, config = read_options(arguments, environment)
    classifier = load_classifier(config)
    options.top_k = checked_top_k(options.top_k, len(classifier.labels))
    with ExitStack() as stack:
        run = open_run(options, classifier, stack)
        paths = _remaining_paths(run)
        thumbnails = stack.enter_context(closing(Thumbnails(classifier, config))) if run.page else None
        print(*map(printable, _model_in_use(config, classifier)), sep="\n", file=sys.stderr)
        with _stop_on_signals():
            _classify(run, paths, config, thumbnails.make if thumbnails else None)
    if run.stopped_by != signal.SIGPIPE:
        run.progress.clear()
        print("\n".join(map(printable, run.summary())), file=sys.stderr)
    if run.stopped_by:
        return SIGNAL_STATUS_BASE + run.stopped_by
    return _SOME_FAILED if run.failed else 0


def _paths(options: argparse.Namespace, listed: Iterator[str], left_out: Counter[str]) -> Iterator[str]:
    files = [options.output, *(file for file in (options.html, options.embeddings) if file)]
    if options.embeddings:
        files.append(options.embeddings.with_suffix(NAMES_SUFFIX))
    folders = {SORTED: options.sort_into, EXPLAINED: options.explain}
    return exclude_output(expand_paths(options.paths, listed, left_out), files, folders, left_out)


def _remaining_paths(run: Run) -> Iterator[str]:
    """Finds the files that the output has no records of yet, and cuts off an incomplete last record.

    Raises:
        OutputError: the output or the page is not the beginning of this run's.
    """
    options, output = run.options, run.output
    paths = _paths(options, parse_file_list(standard_input()), run.left_out)
    if options.resume:
        existing = read_existing(output.buffer, options.output, run.form)
        skipped = next(itertools.islice(paths, existing.count - 1, None), None) if existing.count else None
        if skipped != existing.last_file:
            raise OutputError(
                f"output file {options.output} ends with {existing.last_file!r}, but file {existing.count} of these is "
                f"{skipped!r}; give the same paths, or choose another --output"
            )
        run.existing, run.progress = existing, FileProgress(existing.count)
    if run.page:  # before anything is changed, because it may be refused
        run.page.start(run.existing.count, run.existing.last_file)
    if options.resume:
        if run.sorter:
            output.seek(0)
            read_existing(output.buffer, options.output, run.form, run.sorter.add)
        output.seek(run.existing.end)
        output.truncate()
    return paths


def _model_in_use(config: Config, classifier: Classifier) -> list[str]:
    """Returns the line that names the model, after the embedded model's warning if there is one."""
    model = classifier.model
    warning = fallback_warning(config.model, model.name)
    return [*filter(None, [warning]), f"model: {model.name}, {model.card['variant']}"]


def _classify(run: Run, paths: Iterator[str], config: Config, thumbnail: MakeThumbnail | None) -> None:
    """Classifies the files and writes their records."""
    options = run.options
    if run.progress.visible and STDIN_LIST not in options.paths:
        threading.Thread(target=_count_files, args=(run.progress, options), daemon=True).start()
    records = classify_files(
        run.classifier,
        paths,
        max(options.top_k, TOP_K) if run.evaluation else options.top_k,
        config.thread_plan.streams,
        config.max_request_bytes,
        run.output.flush,
        thumbnail,
        run.look,
    )
    _write_records(run, records)


def _write_records(run: Run, records: Generator[Record, None, None]) -> None:
    """Writes and counts records until there are no more or a signal stops the run.

    Raises:
        OutputError: the output cannot be written.
    """
    options, output = run.options, run.output
    try:
        if not run.existing.end:
            output.write(run.form.header)
        terminal = output.isatty()
        for record in records:
            for part in run.readers:
                part.add(record)
            thumbnail, *_ = (record.pop(key, None) for key in (THUMBNAIL, EMBEDDING, PICTURE))
            record = _cut(record, options.top_k)
            if run.page:
                run.page.add(record, thumbnail or b"")
            line = run.form.line(record)
            if terminal:
                run.progress.clear()
                line = printable(line.removesuffix("\n")) + "\n"
            output.write(line)
            run.statuses[record.get("status", 200)] += 1
            run.progress.step(is_problem(record))
        output.flush()
    except _Stopped as stopped:
        run.stopped_by = int(stopped.args[0])
    except BrokenPipeError:  # as with `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        run.stopped_by = signal.SIGPIPE
    except OSError as error:
        name = options.output or "standard output"
        raise OutputError(f"output {name}: {(error.strerror or 'cannot be written').lower()}") from error
    finally:
        records.close()


def _count_files(progress: FileProgress, options: argparse.Namespace) -> None:
    progress.total = sum(1 for _ in _paths(options, iter(()), Counter()))


@contextmanager
def _stop_on_signals() -> Iterator[None]:
    """Raises `_Stopped` at SIGINT and SIGTERM; a second one is ignored."""

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)
        raise _Stopped(number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _cut(record: Record, top_k: int) -> Record:
    """Keeps `top_k` classes, where an evaluation asked for more."""
    return {**record, "top_k": record["top_k"][:top_k]} if "top_k" in record else record
