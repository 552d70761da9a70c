"""Very many pictures on a Ray cluster: files in folders or a bucket → rows of Parquet, gone on with where they end.

    .venv/ray/bin/python -m deploy.ray.classify photos/ --output labels/

The rows are the records of `python -m serve classify`: preprocessing, model and limits are the same code. The output is
a folder of Parquet files, on a disk or in a bucket; a run that was interrupted is started again with the same command,
leaves out what is there and removes the file that it was in the middle of writing. What is on a disk has to be on one
that every machine of the cluster has in the same place, this project too.
"""

import argparse
import os
import sys
from collections.abc import Iterable, Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import Final

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before onnxruntime is imported, whoever imports it
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import pyarrow
import pyarrow.parquet
import ray
from pyarrow import fs

from serve.config.settings import ROOT, Config, load_config
from serve.errors import ConfigError
from serve.files.paths import expand_paths
from serve.files.runner import UNREADABLE_DETAIL, classify_file, read_file, read_limited
from serve.model.classifier import load_classifier
from serve.model.postprocess import DEFAULT_TOP_K
from serve.scheduling.malloc import tune_malloc

# Of a part of the output, and so of what an interruption costs.
_PART_ROWS: Final = 2000
_BATCH_ROWS: Final = 32
# Of a CPU, what is left to writing: workers that held them all would wait for ever for somebody to take their rows.
_WRITING_CPUS: Final = 0.1
_CLASS: Final = pyarrow.struct(
    [("imagenet_id", pyarrow.string()), ("label", pyarrow.string()), ("probability", pyarrow.float64())]
)
SCHEMA: Final = pyarrow.schema(
    [
        ("file", pyarrow.string()),
        *((field.name, field.type) for field in _CLASS),
        ("top_k", pyarrow.list_(_CLASS)),
        ("model", pyarrow.string()),
        ("type", pyarrow.string()),
        ("title", pyarrow.string()),
        ("status", pyarrow.int32()),
        ("detail", pyarrow.string()),
    ]
)


class Classify:
    """One worker, on one CPU. flags: of `python -m serve`. folder: where relative paths begin, on every machine."""

    def __init__(self, flags: list[str], top_k: int, folder: str) -> None:
        os.chdir(folder)
        tune_malloc()
        self._config: Config = load_config(flags, {})
        self._classifier = load_classifier(self._config)
        self._top_k = top_k

    def __call__(self, batch: pyarrow.Table) -> pyarrow.Table:
        """Rows of `SCHEMA` for a table of `root` and `file`."""
        limit = self._config.max_request_bytes
        records = []
        for root, name in zip(batch["root"].to_pylist(), batch["file"].to_pylist(), strict=True):
            record = classify_file(
                self._classifier, name, self._top_k, limit, partial(read_object, root) if root else read_file
            )
            if root and str(record.get("detail", "")).startswith(UNREADABLE_DETAIL):
                raise RuntimeError(f"{name}: {record['detail']}")  # a moment's trouble must not become a row that stays
            records.append(record)
        return pyarrow.Table.from_pylist(records, schema=SCHEMA)


def read_object(root: str, path: str, max_bytes: int) -> bytes:
    """An object of a bucket; raises as `read_file`. root: the address that it was found under, with its options."""
    with system_of(root).open_input_file(path.partition("://")[2]) as file:
        return read_limited(file, file.size(), max_bytes)


@lru_cache
def system_of(root: str) -> fs.FileSystem:
    """Made once, because that takes a connection."""
    return fs.FileSystem.from_uri(root)[0]


def located(place: str) -> tuple[fs.FileSystem, str]:
    """Where a folder or an address is, and its name there."""
    found: tuple[fs.FileSystem, str] = fs.FileSystem.from_uri(absolute(place))
    return found


def absolute(place: str) -> str:
    """An address as it is, a path from the root on."""
    return place if "://" in place else str(Path(place).resolve())


def listed(paths: Iterable[str]) -> Iterator[tuple[str, str]]:
    """The files of folders, patterns and buckets, each with the address it was found under, empty for those of a disk.

    Of a bucket those below a path, by name.
    """
    for path in paths:
        if "://" not in path:
            yield from (("", name) for name in expand_paths([path], ()))
            continue
        system, name = located(path)
        found = [name]
        if system.get_file_info(name).type == fs.FileType.Directory:
            inside = system.get_file_info(fs.FileSelector(name, recursive=True))
            found = sorted(each.path for each in inside if each.type == fs.FileType.File)
        scheme = path.partition("://")[0]
        yield from ((path, f"{scheme}://{each}") for each in found)


def finished(output: str) -> set[str]:
    """The files that earlier runs have written rows of; parts that were never completed are removed."""
    system, folder = located(output)
    found: set[str] = set()
    if system.get_file_info(folder).type != fs.FileType.Directory:
        return found
    for part in system.get_file_info(fs.FileSelector(folder)):
        if not part.path.endswith(".parquet"):
            continue
        try:
            table = pyarrow.parquet.read_table(part.path, columns=["file"], filesystem=system, partitioning=None)
        except pyarrow.ArrowInvalid:  # its end, which says what is in it, is written last
            print(f"{part.path} was never completed; its files are classified anew", file=sys.stderr)
            system.delete_file(part.path)
            continue
        found.update(table["file"].to_pylist())
    return found


def write_rows(files: list[tuple[str, str]], flags: list[str], options: argparse.Namespace) -> None:
    """Rows of these files into the output, on a cluster that is there or made for it."""
    if not ray.is_initialized():
        environment = {"PYTHONPATH": str(ROOT), "ORT_DISABLE_TELEMETRY": "1"}
        ray.init(address=options.address, runtime_env={"env_vars": environment}, log_to_driver=False)
    workers = options.workers or int(ray.cluster_resources()["CPU"])
    # A part is the work of one worker, so there are as many as workers where there are few files.
    size = max(_BATCH_ROWS, min(_PART_ROWS, -(-len(files) // workers)))
    parts = [files[start : start + size] for start in range(0, len(files), size)]
    tables = [pyarrow.table(dict(zip(("root", "file"), zip(*part, strict=True), strict=True))) for part in parts]
    ray.data.from_arrow(tables).map_batches(
        Classify,
        fn_constructor_args=(flags, options.top_k, str(Path.cwd())),
        batch_size=_BATCH_ROWS,
        batch_format="pyarrow",
        num_cpus=1 - _WRITING_CPUS,
        compute=ray.data.ActorPoolStrategy(size=workers),
    ).write_parquet(
        absolute(options.output), mode=ray.data.SaveMode.APPEND, ray_remote_args={"num_cpus": _WRITING_CPUS}
    )


def main(arguments: list[str] | None = None) -> int:
    """Run the command; 0 if every file was classified, 1 if some have problems."""
    parser = argparse.ArgumentParser(prog="python -m deploy.ray.classify", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("paths", nargs="+", metavar="PATH", help="file, folder, pattern, or s3://bucket/folder")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder of Parquet files, or s3://bucket/folder")
    parser.add_argument("--top-k", type=int, default=DEFAULT_TOP_K, metavar="K")
    parser.add_argument("--workers", type=int, help="CPUs to use (default: all of the cluster)")
    parser.add_argument("--address", help="of a running cluster (default: the one that is here, else a new one)")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the server")
    options = parser.parse_args(arguments)
    flags = ["--threads=1", *(f"--{name.replace('_', '-')}" for name in options.set)]
    try:
        load_config(flags, {})
        done = finished(options.output)
    except ConfigError as error:
        print(f"classify: {error}", file=sys.stderr)
        return 2
    # Names that are no text would not survive Arrow; they come out as what could be made of them.
    files = [(root, name.encode("utf-8", "replace").decode()) for root, name in listed(options.paths)]
    missing = [each for each in files if each[1] not in done]
    print(f"{len(files)} files, {len(files) - len(missing)} of them done before", file=sys.stderr)
    if missing:
        write_rows(missing, flags, options)
    if not files and not done:
        return 0
    system, folder = located(options.output)
    table = pyarrow.parquet.read_table(folder, columns=["status"], filesystem=system)
    problems = len(table) - table["status"].null_count
    print(f"{len(table)} rows in {options.output}, {problems} with problems", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
