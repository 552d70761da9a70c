"""Classify very many images on a Ray cluster: files in folders or buckets → rows of Parquet.

    .venv/ray/bin/python -m deploy.ray.classify photos/ --output labels/

The rows are the records of `python -m serve classify`, with a null for the id of a class that has none; preprocessing,
model and limits are the same code. The output is a folder of Parquet files, on a disk or in a bucket. The same command
resumes an interrupted run: it skips files that have a row and removes a Parquet file that is incomplete. Folders on a
disk, and this project, must be at the same path on every machine of the cluster.
"""

import argparse
import os
import sys
from collections.abc import Iterable, Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import Final

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before anything imports onnxruntime
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import pyarrow
import pyarrow.parquet
import ray
from pyarrow import fs

from serve.config.settings import ROOT, Config, load_config
from serve.errors import ConfigError
from serve.files.paths import expand_paths
from serve.files.runner import UNREADABLE_DETAIL, classify_file, read_file, read_limited
from serve.imaging.malloc import tune_malloc
from serve.model.classifier import load_classifier
from serve.model.postprocess import DEFAULT_TOP_K

# Rows in one Parquet file: at most so many are lost by an interruption.
_PART_ROWS: Final = 2000
_BATCH_ROWS: Final = 32
# Share of a CPU that is reserved for writing. If workers held all CPUs, they would wait forever for the writer.
_WRITING_CPUS: Final = 0.1
_CLASS: Final = pyarrow.struct(
    [("imagenet_id", pyarrow.string()), ("label", pyarrow.string()), ("probability", pyarrow.float64())]
)
_SCORED: Final = pyarrow.struct([("index", pyarrow.int32()), *_CLASS])
SCHEMA: Final = pyarrow.schema(
    [
        ("file", pyarrow.string()),
        *((field.name, field.type) for field in _CLASS),
        ("top_k", pyarrow.list_(_SCORED)),
        ("model", pyarrow.string()),
        ("type", pyarrow.string()),
        ("title", pyarrow.string()),
        ("status", pyarrow.int32()),
        ("detail", pyarrow.string()),
        ("reason", pyarrow.string()),
    ]
)


class Classify:
    """A worker on one CPU.

    Args:
        flags: As for `python -m serve`.
        folder: What paths are relative to, on every machine.
    """

    def __init__(self, flags: list[str], top_k: int, folder: str) -> None:
        os.chdir(folder)
        tune_malloc(arenas=1)
        self._config: Config = load_config(flags, {})
        self._classifier = load_classifier(self._config)
        self._top_k = min(top_k, len(self._classifier.labels))

    def __call__(self, batch: pyarrow.Table) -> pyarrow.Table:
        """Classify a table of `root` and `file`; return rows of `SCHEMA`.

        Raises:
            RuntimeError: An object of a bucket could not be read.
        """
        limit = self._config.max_request_bytes
        records = []
        for root, name in zip(batch["root"].to_pylist(), batch["file"].to_pylist(), strict=True):
            record = classify_file(
                self._classifier, name, self._top_k, limit, partial(read_object, root) if root else read_file
            )
            if root and str(record.get("detail", "")).startswith(UNREADABLE_DETAIL):
                raise RuntimeError(f"{name}: {record['detail']}")  # maybe only for now: it must not get a row
            records.append(record)
        return pyarrow.Table.from_pylist(records, schema=SCHEMA)


def read_object(root: str, path: str, max_bytes: int) -> bytes:
    """Read an object of a bucket; raises as `read_file`. root: the address it was found under, with its options."""
    with filesystem_at(root).open_input_file(path.partition("://")[2]) as file:
        return read_limited(file, file.size(), max_bytes)


@lru_cache
def filesystem_at(root: str) -> fs.FileSystem:
    """The filesystem of an address; cached, because making one opens a connection."""
    return fs.FileSystem.from_uri(root)[0]


def filesystem_of(place: str) -> tuple[fs.FileSystem, str]:
    """The filesystem of a path or address, and the path on it."""
    found: tuple[fs.FileSystem, str] = fs.FileSystem.from_uri(absolute_address(place))
    return found


def absolute_address(place: str) -> str:
    """The address unchanged, or the absolute path."""
    return place if "://" in place else str(Path(place).resolve())


def list_files(paths: Iterable[str]) -> Iterator[tuple[str, str]]:
    """List the files of folders, patterns and buckets.

    Yields:
        The address a file was found under (empty for files on a disk), and its name. Files of a bucket are sorted.
    """
    for path in paths:
        if "://" not in path:
            yield from (("", name) for name in expand_paths([path], ()))
            continue
        system, name = filesystem_of(path)
        found = [name]
        if system.get_file_info(name).type == fs.FileType.Directory:
            inside = system.get_file_info(fs.FileSelector(name, recursive=True))
            found = sorted(each.path for each in inside if each.type == fs.FileType.File)
        scheme = path.partition("://")[0]
        yield from ((path, f"{scheme}://{each}") for each in found)


def finished_files(output: str) -> set[str]:
    """The files that earlier runs have written rows for; removes incomplete Parquet files."""
    system, folder = filesystem_of(output)
    found: set[str] = set()
    if system.get_file_info(folder).type != fs.FileType.Directory:
        return found
    for part in system.get_file_info(fs.FileSelector(folder)):
        if not part.path.endswith(".parquet"):
            continue
        try:
            table = pyarrow.parquet.read_table(part.path, columns=["file"], filesystem=system, partitioning=None)
        except pyarrow.ArrowInvalid:  # the footer with the schema is written last
            print(f"{part.path} is incomplete; its files are classified again", file=sys.stderr)
            system.delete_file(part.path)
            continue
        found.update(table["file"].to_pylist())
    return found


def write_rows(files: list[tuple[str, str]], flags: list[str], options: argparse.Namespace) -> None:
    """Classify these files and write their rows, on a running cluster or a new one."""
    if not ray.is_initialized():
        environment = {"PYTHONPATH": str(ROOT), "ORT_DISABLE_TELEMETRY": "1"}
        ray.init(address=options.address, runtime_env={"env_vars": environment}, log_to_driver=False)
    workers = options.workers or int(ray.cluster_resources()["CPU"])
    # One worker writes a whole part, so few files make small parts, one for each worker.
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
        absolute_address(options.output), mode=ray.data.SaveMode.APPEND, ray_remote_args={"num_cpus": _WRITING_CPUS}
    )


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return 0 if all files were classified, 1 if some have problems, 2 if a setting is wrong."""
    parser = argparse.ArgumentParser(prog="python -m deploy.ray.classify", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("paths", nargs="+", metavar="PATH", help="file, folder, pattern, or s3://bucket/folder")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder of Parquet files, or s3://bucket/folder")
    parser.add_argument(
        "--top-k", type=int, default=DEFAULT_TOP_K, metavar="K", help="classes per image, at most all (default: 5)"
    )
    parser.add_argument("--workers", type=int, help="workers, one on each CPU (default: all CPUs of the cluster)")
    parser.add_argument("--address", help="of a running cluster (default: the one on this machine, else a new one)")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the server")
    options = parser.parse_args(arguments)
    flags = [
        "--threads=1",
        *(f"--{name.replace('_', '-')}={value}" for name, _, value in (each.partition("=") for each in options.set)),
    ]
    try:
        load_config(flags, {})
        done = finished_files(options.output)
    except ConfigError as error:
        print(f"classify: {error}", file=sys.stderr)
        return 2
    # Arrow accepts valid Unicode only; other characters in names are replaced.
    files = [(root, name.encode("utf-8", "replace").decode()) for root, name in list_files(options.paths)]
    missing = [each for each in files if each[1] not in done]
    print(f"{len(files)} files, {len(files) - len(missing)} of them already done", file=sys.stderr)
    if missing:
        write_rows(missing, flags, options)
    if not files and not done:
        return 0
    system, folder = filesystem_of(options.output)
    table = pyarrow.parquet.read_table(folder, columns=["status"], filesystem=system)
    problems = len(table) - table["status"].null_count
    print(f"{len(table)} rows in {options.output}, {problems} with problems", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
