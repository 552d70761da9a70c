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
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Final, TextIO

from serve.config.settings import Config, argument_parser, load_config
from serve.errors import ConfigError, OutputError
from serve.files.evaluation import TOP_K, Evaluation
from serve.files.output_file import exclude_output, output_file
from serve.files.paths import STDIN_LIST, expand_paths, parse_file_list, standard_input
from serve.files.progress import FileProgress
from serve.files.records import ExistingRecords, read_existing, record_format
from serve.files.runner import Record, classify_files, is_problem
from serve.model.classifier import load_classifier
from serve.model.postprocess import DEFAULT_TOP_K
from serve.observability.log import set_up_logging
from serve.printable import printable
from serve.server.signals import SIGNAL_STATUS_BASE

_SOME_FAILED: Final = 1


class _Stopped(BaseException):
    """A signal, whose number is the argument, asked the run to end."""


@dataclass
class _Run:
    """One run and what it has counted.

    Attributes:
        stopped_by: the number of the signal that ended it, else 0.
    """

    output: Path | None
    top_k: int
    existing: ExistingRecords
    evaluation: Evaluation | None
    progress: FileProgress
    statuses: Counter[int] = field(default_factory=Counter)
    stopped_by: int = 0


def main(arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """Runs the command.

    Returns:
        The exit status.

    Raises:
        StartError: a setting, the model, the output file or the list of files is unusable.
    """
    options, config = _read_options(arguments, environment)
    classifier = load_classifier(config)
    labels = classifier.labels
    if not 1 <= options.top_k <= len(labels):
        raise ConfigError(f"--top-k={options.top_k}: not a whole number from 1 to {len(labels)}")
    evaluation = Evaluation({label.imagenet_id: label.name for label in labels}) if options.evaluate else None
    classes = max(options.top_k, TOP_K) if evaluation else options.top_k
    with output_file(options.output, options.resume) as output:
        existing, paths = _remaining_paths(options, output, classifier.model.name)
        run = _Run(options.output, options.top_k, existing, evaluation, FileProgress(existing.count))
        with _stop_on_signals():
            if run.progress.visible and STDIN_LIST not in options.paths:
                threading.Thread(target=_count_files, args=(run.progress, options), daemon=True).start()
            records = classify_files(
                classifier, paths, classes, config.thread_plan.streams, config.max_request_bytes, output.flush
            )
            _write_records(run, records, output, options.format)
    if run.stopped_by != signal.SIGPIPE:
        run.progress.clear()
        lines = _summary(run) + (evaluation.report() if evaluation else [])
        print("\n".join(map(printable, lines)), file=sys.stderr)
    if run.stopped_by:
        return SIGNAL_STATUS_BASE + run.stopped_by
    return _SOME_FAILED if existing.problems or set(run.statuses) - {200} else 0


def _read_options(arguments: Sequence[str], environment: Mapping[str, str]) -> tuple[argparse.Namespace, Config]:
    parser = _parser()
    options = parser.parse_args(arguments)
    config = load_config(arguments, environment, parser)
    set_up_logging(config.log_format, "warning")
    if options.resume and (not options.output or options.format == "table"):
        raise ConfigError("--resume needs an --output file in JSON Lines or CSV, which it continues")
    if options.resume and options.evaluate:
        raise ConfigError("--evaluate counts only what this run classifies; leave out --resume")
    options.format = options.format or _default_format(options.output)
    return options, config


def _remaining_paths(options: argparse.Namespace, output: TextIO, model: str) -> tuple[ExistingRecords, Iterator[str]]:
    """Finds the files that the output has no records of yet, and cuts off an incomplete last record.

    Raises:
        OutputError: the output is not the beginning of this run's records.
    """
    paths = exclude_output(expand_paths(options.paths, parse_file_list(standard_input())), options.output)
    if not options.resume:
        return ExistingRecords(), paths
    existing = read_existing(output.buffer, options.output, options.format, options.top_k, model)
    skipped = None
    for skipped in itertools.islice(paths, existing.count):  # noqa: B007  the last one is compared
        pass
    if skipped != existing.last_file:
        raise OutputError(
            f"output file {options.output} ends with {existing.last_file!r}, but file {existing.count} of these is "
            f"{skipped!r}; give the same paths, or choose another --output"
        )
    output.seek(existing.end)
    output.truncate()
    return existing, paths


def _write_records(run: _Run, records: Generator[Record, None, None], output: TextIO, format_name: str) -> None:
    """Writes and counts records until there are no more or a signal stops the run.

    Raises:
        OutputError: the output cannot be written.
    """
    header, format_record = record_format(format_name, run.top_k)
    try:
        if not run.existing.end:
            output.write(header)
        terminal = output.isatty()
        for record in records:
            if run.evaluation:
                run.evaluation.add(record)
            line = format_record(_cut(record, run.top_k))
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
        name = run.output or "standard output"
        raise OutputError(f"output {name}: {(error.strerror or 'cannot be written').lower()}") from error
    finally:
        records.close()


def _parser() -> argparse.ArgumentParser:
    parser = argument_parser(
        "classify",
        "Classify the images in files and folders, without a server.",
        "PATH... [--jsonl | --csv | --table] [--top-k K] [--output FILE] [--resume] [--evaluate]",
    )
    parser.add_argument(
        "paths",
        nargs="+",
        metavar="PATH",
        help="file, folder (hidden files are skipped), pattern such as '**/*.jpg', or - for a list on standard input",
    )
    formats = parser.add_mutually_exclusive_group()
    for name, text in (
        ("jsonl", "write JSON Lines (default, except as below)"),
        ("csv", "write CSV with a header line (default if FILE ends in .csv)"),
        ("table", "write a table (default on a terminal)"),
    ):
        formats.add_argument(f"--{name}", dest="format", action="store_const", const=name, help=text)
    parser.add_argument(
        "--top-k", type=int, default=DEFAULT_TOP_K, metavar="K", help="classes per image (default: %(default)s)"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="file to write (default: standard output)")
    parser.add_argument("--resume", action="store_true", help="continue an interrupted run's --output file")
    parser.add_argument(
        "--evaluate",
        action="store_true",
        help="report accuracy; the right class is the WordNet id (n02124075) in a file's or folder's name",
    )
    return parser


def _default_format(output: Path | None) -> str:
    """Chooses the format by the output's suffix, or by whether it goes to a terminal."""
    if output:
        return "csv" if output.suffix.lower() == ".csv" else "jsonl"
    return "table" if sys.stdout.isatty() else "jsonl"


def _count_files(progress: FileProgress, options: argparse.Namespace) -> None:
    progress.total = sum(1 for _ in exclude_output(expand_paths(options.paths, ()), options.output))


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


def _summary(run: _Run) -> list[str]:
    statuses, existing, seconds = run.statuses, run.existing, run.progress.seconds
    total = statuses.total()
    if not total and not existing.count and not run.stopped_by:
        return ["no files found"]
    problems = total - statuses[200]
    parts = ", ".join(f"{count} with {status}" for status, count in sorted(statuses.items()) if status != 200)
    lines = [
        f"{total} file{'s' * (total != 1)} in {seconds:.1f} s, {total / max(seconds, 1e-9):.1f} a second: "
        f"{statuses[200]} classified, {problems} with problems{f' ({parts})' if parts else ''}"
        + (f"; {existing.count} from the earlier run" if existing.count else "")
        + (f", {existing.problems} of them with problems" if existing.problems else "")
    ]
    if run.stopped_by:
        how = f"continue {run.output} with --resume" if run.output else "with --output, --resume can continue a run"
        lines.append(f"stopped; {how}")
    return lines
