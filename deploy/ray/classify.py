"""Very many pictures on a Ray cluster: files in folders or a bucket → rows of Parquet, gone on with where they end.

    .venv/ray/bin/python -m deploy.ray.classify photos/ --output labels/

The rows are the records of `python -m serve classify`: preprocessing, model and limits are the same code. The output is
a folder of Parquet files, on a disk or in a bucket; a run that was interrupted is started again with the same command,
leaves out what is there and removes the file that it was in the middle of writing.
"""

import argparse
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before onnxruntime is imported, whoever imports it
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import pyarrow
import pyarrow.parquet
import ray
from pyarrow import fs

from serve.classifier import load_classifier
from serve.config import Config, load_config
from serve.errors import EmptyFile, UploadTooLarge
from serve.folder import read_file, record_of
from serve.inputs import files_of
from serve.memory import settle_allocator

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
    """One worker, on one CPU. settings: as flags of `python -m serve`, without the dashes."""

    def __init__(self, settings: dict[str, str], top_k: int) -> None:
        settle_allocator()
        self._config: Config = load_config([f"--{name}={value}" for name, value in settings.items()], {})
        self._classifier = load_classifier(self._config)
        self._top_k = top_k

    def __call__(self, batch: pyarrow.Table) -> pyarrow.Table:
        """Rows of `SCHEMA` for a table of `file`."""
        limit = self._config.max_request_bytes
        names = batch["file"].to_pylist()
        records = [record_of(self._classifier, name, self._top_k, limit, read_anywhere) for name in names]
        return pyarrow.Table.from_pylist(records, schema=SCHEMA)


def read_anywhere(path: str, max_bytes: int) -> bytes:
    """A file of a disk or of a bucket; raises as `read_file`."""
    if "://" not in path:
        return read_file(path, max_bytes)
    system, name = fs.FileSystem.from_uri(path)
    with system.open_input_file(name) as file:
        if file.size() > max_bytes:
            raise UploadTooLarge(f"The file has {file.size()} bytes; the limit is {max_bytes} bytes.")
        if data := file.read():
            return bytes(data)
        raise EmptyFile("The file is empty.")


def located(place: str) -> tuple[fs.FileSystem, str]:
    """Where a folder or an address is, and its name there."""
    found: tuple[fs.FileSystem, str] = fs.FileSystem.from_uri(place if "://" in place else str(Path(place).resolve()))
    return found


def listed(paths: Iterable[str]) -> Iterator[str]:
    """The files of folders, patterns and buckets; of a bucket those below a path, by name."""
    for path in paths:
        if "://" not in path:
            yield from files_of([path], ())
            continue
        system, name = fs.FileSystem.from_uri(path)
        scheme = path.partition("://")[0]
        if system.get_file_info(name).type == fs.FileType.Directory:
            inside = system.get_file_info(fs.FileSelector(name, recursive=True))
            yield from sorted(f"{scheme}://{each.path}" for each in inside if each.type == fs.FileType.File)
        else:
            yield path


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


def main(arguments: list[str] | None = None) -> int:
    """Run the command; 0 if every file was classified, 1 if some have problems."""
    parser = argparse.ArgumentParser(prog="python -m deploy.ray.classify", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("paths", nargs="+", metavar="PATH", help="file, folder, pattern, or s3://bucket/folder")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder of Parquet files, or s3://bucket/folder")
    parser.add_argument("--top-k", type=int, default=5, metavar="K")
    parser.add_argument("--workers", type=int, help="CPUs to use (default: all of the cluster)")
    parser.add_argument("--address", help="of a running cluster (default: the one that is here, else a new one)")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the server")
    options = parser.parse_args(arguments)
    settings: dict[str, Any] = {"threads": "1", **dict(each.split("=", 1) for each in options.set)}
    done = finished(options.output)
    # Names that are no text would not survive Arrow; they come out as what could be made of them.
    files = [name.encode("utf-8", "replace").decode() for name in listed(options.paths)]
    missing = [name for name in files if name not in done]
    print(f"{len(files)} files, {len(files) - len(missing)} of them done before", file=sys.stderr)
    if missing:
        environment = {"PYTHONPATH": str(Path.cwd()), "ORT_DISABLE_TELEMETRY": "1"}
        if not ray.is_initialized():
            ray.init(address=options.address, runtime_env={"env_vars": environment}, log_to_driver=False)
        workers = options.workers or int(ray.cluster_resources()["CPU"])
        parts = [missing[start : start + _PART_ROWS] for start in range(0, len(missing), _PART_ROWS)]
        rows = ray.data.from_arrow([pyarrow.table({"file": part}) for part in parts])
        rows.map_batches(
            Classify,
            fn_constructor_args=(settings, options.top_k),
            batch_size=_BATCH_ROWS,
            batch_format="pyarrow",
            num_cpus=1 - _WRITING_CPUS,
            compute=ray.data.ActorPoolStrategy(size=workers),
        ).write_parquet(options.output, mode=ray.data.SaveMode.APPEND, ray_remote_args={"num_cpus": _WRITING_CPUS})
    system, folder = located(options.output)
    table = pyarrow.parquet.read_table(folder, columns=["status"], filesystem=system)
    problems = len(table) - table["status"].null_count
    print(f"{len(table)} rows in {options.output}, {problems} with problems", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
