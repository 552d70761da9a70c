"""`python -m serve classify PATH…`: pictures in files and folders → a record each, without HTTP.

The same decoding, model and limits as the server's, on all CPUs; memory does not grow with the number of files.
Leaves with 0 where all were classified, 1 where some have problems, 2 where it cannot start or go on, 130 after Ctrl-C.
Errors that leave here: `StartError`.
"""

import argparse
import itertools
import os
import signal
import stat
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Final, TextIO

from serve.config.settings import argument_parser, load_config
from serve.errors import ConfigError, OutputError
from serve.files.evaluation import TOP, Evaluation
from serve.files.output_file import output_file
from serve.files.paths import LIST, files_of, names_in
from serve.files.progress import FileProgress
from serve.files.records import FORMATS, Finished, finished, writer
from serve.files.runner import Record, classify_files, is_problem
from serve.model.classifier import load_classifier
from serve.observability.log import set_up_logging
from serve.printable import printable
from serve.server.signals import SIGNAL_STATUS_BASE

_SOME_FAILED: Final = 1
_INPUT: Final = 0  # its descriptor; a thread waiting in sys.stdin would hold up the end of the process
_CHUNK_BYTES: Final = 65536


class _Stop(BaseException):
    """A signal asked for the end."""


def main(arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run the command; the process's exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    config = load_config(arguments, environment, parser)
    set_up_logging(config.log_format, "warning")
    if options.resume and (not options.output or options.format == "table"):
        raise ConfigError("--resume goes on with the file that --output names, in JSON lines or CSV")
    if options.resume and options.evaluate:
        raise ConfigError("--evaluate counts what it sees itself; evaluate without --resume")
    form = options.format or _form(options.output)
    classifier = load_classifier(config)
    top_k = options.top_k
    if not 1 <= top_k <= len(classifier.labels):
        raise ConfigError(f"--top-k={top_k}: not a whole number from 1 to {len(classifier.labels)}")
    evaluation = Evaluation({each.imagenet_id: each.name for each in classifier.labels}) if options.evaluate else None
    header, line_of = writer(form, top_k)
    wanted = max(top_k, TOP) if evaluation else top_k
    streams, max_bytes = config.thread_plan.streams, config.max_request_bytes
    statuses: Counter[int] = Counter()
    end = 0
    with _output(options.output, options.resume) as output, ExitStack() as stoppable:
        earlier = Finished()
        if options.resume:
            earlier = finished(output.buffer, options.output, form, header, top_k, classifier.model.name)
        files = files_of(options.paths, names_in(_standard_input()))
        paths = _after(_without_output(files, options.output), earlier, options.output)
        if options.resume:
            output.seek(earlier.end)
            output.truncate()
        progress = FileProgress(earlier.count)
        stoppable.enter_context(_stoppable())
        if progress.shows and LIST not in options.paths:
            threading.Thread(target=_count, args=(progress, options.paths, options.output), daemon=True).start()
        records = classify_files(classifier, paths, wanted, streams, max_bytes, before_waiting=output.flush)
        try:
            if not earlier.end:
                output.write(header)
            terminal = output.isatty()
            for record in records:
                if evaluation:
                    evaluation.add(record)
                line = line_of(_cut(record, top_k))
                if terminal:
                    progress.clear()
                    line = printable(line.removesuffix("\n")) + "\n"
                output.write(line)
                statuses[record.get("status", 200)] += 1
                progress.step(is_problem(record))
            output.flush()
        except _Stop as stop:
            end = SIGNAL_STATUS_BASE + int(stop.args[0])
        except BrokenPipeError:  # as of `| head`; nobody is left to tell
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return SIGNAL_STATUS_BASE + signal.SIGPIPE
        except OSError as error:
            name = options.output or "standard output"
            raise OutputError(f"output {name}: {(error.strerror or 'cannot be written').lower()}") from error
        finally:
            records.close()
    progress.clear()
    lines = _summary(statuses, earlier, progress.seconds, end, options.output)
    if evaluation:
        lines += evaluation.report()
    print("\n".join(map(printable, lines)), file=sys.stderr)
    return end or (_SOME_FAILED if earlier.problems or set(statuses) - {200} else 0)


def _parser() -> argparse.ArgumentParser:
    parser = argument_parser(
        "python -m serve classify",
        "Classify pictures in files and folders; the server need not run.",
        "PATH... [--jsonl | --csv | --table] [--top-k K] [--output FILE] [--resume] [--evaluate]",
    )
    parser.add_argument(
        "paths",
        nargs="+",
        metavar="PATH",
        help="file, folder (all in it that is not hidden), pattern, or - for a list on standard input",
    )
    forms = parser.add_mutually_exclusive_group()
    for name, what in zip(FORMATS, ("a JSON object a line", "CSV with a header", "for people"), strict=True):
        forms.add_argument(f"--{name}", dest="format", action="store_const", const=name, help=what)
    parser.add_argument("--top-k", type=int, default=5, metavar="K", help="classes to name (default: 5)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="where to write (default: standard output)")
    parser.add_argument("--resume", action="store_true", help="go on where the output file ends")
    parser.add_argument(
        "--evaluate", action="store_true", help="tell how right it was, where names begin with WordNet ids (n02124075)"
    )
    return parser


def _form(output: Path | None) -> str:
    """The form that suits the output's name, or a terminal."""
    if output:
        return "csv" if output.suffix.lower() == ".csv" else "jsonl"
    return "table" if sys.stdout.isatty() else "jsonl"


def _after(paths: Iterator[str], earlier: Finished, output: Path | None) -> Iterator[str]:
    """The paths behind the earlier ones, the last of which has to be the one that the output file ends with."""
    skipped = None
    for skipped in itertools.islice(paths, earlier.count):  # noqa: B007  the last one is what is wanted
        pass
    if skipped != earlier.last:
        raise OutputError(
            f"output file {output} ends with {earlier.last!r}, but file {earlier.count} of these is {skipped!r}; give "
            "the same paths, or another --output"
        )
    return paths


def _standard_input() -> Iterator[bytes]:
    """What is there by and by, in pieces; raises `ConfigError`."""
    try:
        while chunk := os.read(_INPUT, _CHUNK_BYTES):
            yield chunk
    except OSError as error:
        raise ConfigError(f"standard input: {(error.strerror or 'unreadable').lower()}") from error


def _output(path: Path | None, resume: bool) -> AbstractContextManager[TextIO]:
    """Where records go."""
    if path:
        return output_file(path, resume)
    sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")  # type: ignore[union-attr]
    return nullcontext(sys.stdout)


def _count(progress: FileProgress, paths: Sequence[str], output: Path | None) -> None:
    progress.total = sum(1 for _ in _without_output(files_of(paths, ()), output))


def _without_output(paths: Iterator[str], output: Path | None) -> Iterator[str]:
    """The paths but for that of the file which records go to, by whatever name; asked for when it is open."""
    own: tuple[int, int] | None = None
    for number, path in enumerate(paths):
        if not number:
            own = _regular(sys.stdout.fileno() if output is None else output)
        if own is None or _regular(path) != own:
            yield path


def _regular(path: str | Path | int) -> tuple[int, int] | None:
    """What a regular file is known by."""
    try:
        status = os.stat(path)  # noqa: PTH116  also of a descriptor
    except OSError:
        return None
    return (status.st_dev, status.st_ino) if stat.S_ISREG(status.st_mode) else None


@contextmanager
def _stoppable() -> Iterator[None]:
    """Have Ctrl-C and SIGTERM end the work between two records."""

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)
        raise _Stop(number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _cut(record: Record, top_k: int) -> Record:
    return {**record, "top_k": record["top_k"][:top_k]} if "top_k" in record else record


def _summary(statuses: Counter[int], earlier: Finished, seconds: float, end: int, output: Path | None) -> list[str]:
    total = statuses.total()
    if not total and not earlier.count and not end:
        return ["no files found"]
    problems = total - statuses[200]
    parts = ", ".join(f"{count} with {status}" for status, count in sorted(statuses.items()) if status != 200)
    lines = [
        f"{total} file{'s' * (total != 1)} in {seconds:.1f} s, {total / max(seconds, 1e-9):.1f} a second: "
        f"{statuses[200]} classified, {problems} with problems{f' ({parts})' if parts else ''}"
        + (f"; {earlier.count} were there already" if earlier.count else "")
        + (f", {earlier.problems} of them with problems" if earlier.problems else "")
    ]
    if end:
        lines.append(f"stopped; --resume goes on{f' with {output}' if output else ' where there is an --output'}")
    return lines
