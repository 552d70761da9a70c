"""The command line of `python -m serve classify`."""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from serve.config.settings import Config, argument_parser, load_config
from serve.errors import ConfigError
from serve.files.embeddings import NAMES_SUFFIX, SUFFIX
from serve.files.output_file import lies_in
from serve.files.paths import STDIN_LIST
from serve.model.postprocess import DEFAULT_TOP_K
from serve.observability.log import set_up_logging


def read_options(arguments: Sequence[str], environment: Mapping[str, str]) -> tuple[argparse.Namespace, Config]:
    """Returns the command's own options and the settings.

    Raises:
        ConfigError: one of them is invalid, or they contradict each other.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    config = load_config(arguments, environment, parser)
    set_up_logging(config.log_format, "warning")
    if options.resume and (not options.output or options.format == "table"):
        raise ConfigError("--resume needs an --output file in JSON Lines or CSV, which it continues")
    if options.resume and options.evaluate:
        raise ConfigError("--evaluate counts only what this run classifies; leave out --resume")
    if options.html and options.output and os.path.realpath(options.html) == os.path.realpath(options.output):
        raise ConfigError(f"--html and --output are the same file, {options.html}; choose another for one of them")
    _check_looking(options)
    _check_sorting(options)
    options.format = options.format or _default_format(options.output)
    return options, config


def checked_top_k(given: int | None, classes: int) -> int:
    """Returns how many classes to write.

    Args:
        given: the value of --top-k, if any.
        classes: the number of the model's classes.

    Raises:
        ConfigError: the model does not have so many.
    """
    top_k = min(DEFAULT_TOP_K, classes) if given is None else given
    if not 1 <= top_k <= classes:
        raise ConfigError(f"--top-k={top_k}: not a whole number from 1 to {classes}, the number of the model's classes")
    return top_k


def _check_looking(options: argparse.Namespace) -> None:
    if options.resume and (options.embeddings or options.explain):
        raise ConfigError("--embeddings and --explain have only what this run classifies; leave out --resume")
    if options.embeddings and options.embeddings.suffix != SUFFIX:
        raise ConfigError(f"--embeddings={options.embeddings}: its name must end in {SUFFIX}")
    if options.embeddings and options.embeddings.is_fifo():  # opening it would wait for a reader
        raise ConfigError(f"--embeddings={options.embeddings}: not a regular file; choose another")
    for flag, path in (("--output", options.output), ("--html", options.html)):
        written = (options.embeddings, options.embeddings.with_suffix(NAMES_SUFFIX)) if options.embeddings else ()
        if path and os.path.realpath(path) in map(os.path.realpath, written):
            raise ConfigError(f"--embeddings={options.embeddings} writes {path}, too, which is {flag}; choose another")


def _check_sorting(options: argparse.Namespace) -> None:
    if not options.sort_into and (options.copy or options.yes):
        raise ConfigError(f"{'--copy' if options.copy else '--yes'} is for --sort-into, which is missing")
    if options.min_probability and not (options.sort_into or options.html):
        raise ConfigError("--min-probability is for --sort-into and --html; give one of them")
    if not 0 <= options.min_probability <= 1:
        raise ConfigError(f"--min-probability={options.min_probability:g}: not a number from 0 to 1")
    for path in options.paths if options.sort_into else ():
        if path != STDIN_LIST and lies_in(os.path.join(path, "x"), options.sort_into):  # noqa: PTH118  a pattern, too
            raise ConfigError(
                f"--sort-into={options.sort_into} holds {path}, which is to be classified; choose a folder of its own, "
                f"such as {options.sort_into / 'sorted'}"
            )


def _parser() -> argparse.ArgumentParser:
    parser = argument_parser(
        "classify",
        "Classify the images in files and folders, without a server.",
        "PATH... [--jsonl | --csv | --table] [--top-k K] [--output FILE] [--resume] [--html FILE] [--sort-into DIR]",
    )
    parser.add_argument(
        "paths",
        nargs="+",
        metavar="PATH",
        help="file, folder (hidden files are left out), pattern such as '**/*.jpg', or - for a list on standard input",
    )
    formats = parser.add_mutually_exclusive_group()
    for name, text in (
        ("jsonl", "write JSON Lines (default, except as below)"),
        ("csv", "write CSV with a header line (default if FILE ends in .csv)"),
        ("table", "write a table (default on a terminal)"),
    ):
        formats.add_argument(f"--{name}", dest="format", action="store_const", const=name, help=text)
    parser.add_argument(
        "--top-k",
        type=int,
        metavar="K",
        help=f"classes per image (default: {DEFAULT_TOP_K}, or all if there are fewer)",
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="file to write (default: standard output)")
    parser.add_argument("--resume", action="store_true", help="continue an interrupted run's --output file")
    parser.add_argument(
        "--evaluate",
        action="store_true",
        help="report accuracy; the right class is the WordNet id (n02124075) or label in a file's or folder's name",
    )
    parser.add_argument(
        "--html", type=Path, metavar="FILE", help="also write a page with thumbnails, to look at in a browser"
    )
    parser.add_argument(
        "--embeddings",
        type=Path,
        metavar="FILE",
        help="also write an embedding of each image to FILE.npy, and the images' paths to FILE.txt",
    )
    parser.add_argument(
        "--explain", type=Path, metavar="DIR", help="also draw where the network looked, in a PNG for each image"
    )
    parser.add_argument(
        "--sort-into",
        type=Path,
        metavar="DIR",
        help="link the images into folders DIR/LABEL; a dry run, which only counts, without --yes",
    )
    parser.add_argument("--copy", action="store_true", help="with --sort-into: copy instead of linking")
    parser.add_argument("--yes", action="store_true", help="with --sort-into: do it")
    parser.add_argument(
        "--min-probability",
        type=float,
        default=0.0,
        metavar="P",
        help="with --sort-into: leave out what is less certain, 0 to 1; with --html: where its filter stands at first",
    )
    return parser


def _default_format(output: Path | None) -> str:
    """Chooses the format by the output's suffix, or by whether it goes to a terminal."""
    if output:
        return "csv" if output.suffix.lower() == ".csv" else "jsonl"
    return "table" if sys.stdout.isatty() else "jsonl"
