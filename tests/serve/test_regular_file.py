"""Files named by an operator are read within limits and without blocking."""

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from serve.api.api_keys import KeyFile
from serve.config.regular_file import NotRegular, open_regular, read_text
from serve.config.settings import MODELS, load_config
from serve.errors import StartError
from serve.model.class_index import load_class_index
from serve.model.engines import EngineOptions
from serve.model.files import find_model
from serve.model.session import load_model

READERS: dict[str, Callable[[Path], object]] = {
    "settings": lambda path: load_config(["--config", str(path)], {}),
    "API keys": lambda path: KeyFile(load_config(["--api-keys-file", str(path)], {}).api_keys_file or Path()),
    "class index": lambda path: load_class_index(path, 2),
    "model": lambda path: load_model(path, EngineOptions()),
}


def fifo(folder: Path) -> Path:
    os.mkfifo(folder / "pipe")
    return folder / "pipe"


def sparse(folder: Path) -> Path:
    with (folder / "sparse").open("wb") as file:
        file.truncate(2**40)
    return folder / "sparse"


def loop(folder: Path) -> Path:
    (folder / "loop").symlink_to("loop")
    return folder / "loop"


ODD: dict[str, Callable[[Path], Path]] = {
    "a pipe that nobody writes to": fifo,
    "bytes without end": lambda folder: Path("/dev/zero"),
    "a file without end": sparse,
    "a folder": lambda folder: folder,
    "a link to itself": loop,
    "a name that is too long": lambda folder: Path("a" * 70_000),
    "a name with a NUL": lambda folder: Path("a\0b"),
    "a name that is too long by far": lambda folder: Path("a/" * 70_000),
}


@pytest.mark.parametrize("place", ODD)
@pytest.mark.parametrize("reader", READERS)
def test_anything_but_a_small_regular_file_is_refused_without_blocking(tmp_path: Path, reader: str, place: str) -> None:
    path = ODD[place](tmp_path)
    found: list[BaseException] = []

    def read() -> None:
        try:
            READERS[reader](path)
        except BaseException as error:  # checked below
            found.append(error)

    reading = threading.Thread(target=read, daemon=True)
    reading.start()
    reading.join(30)
    assert not reading.is_alive(), "it hangs"
    assert isinstance(found[0], StartError), repr(found[0])


def test_a_pipe_with_a_writer_is_not_a_regular_file_either() -> None:
    """As in a shell's `<(…)`: data not written yet would be missed, and the pipe cannot be read again."""
    reading, writing = os.pipe()
    try:
        os.write(writing, b"key\n")
        with pytest.raises(NotRegular, match="not a regular file"):
            open_regular(f"/dev/fd/{reading}")
    finally:
        os.close(reading)
        os.close(writing)


def test_a_link_to_a_file_is_read_as_kubernetes_makes_them_of_secrets(tmp_path: Path) -> None:
    (tmp_path / "..data").mkdir()
    (tmp_path / "..data" / "keys").write_text("key\n")
    (tmp_path / "keys").symlink_to("..data/keys")
    assert read_text(tmp_path / "keys", 4) == "key\n"


def test_a_byte_order_mark_is_not_part_of_a_text(tmp_path: Path) -> None:
    (tmp_path / "settings.toml").write_bytes(b"\xef\xbb\xbfport = 6000\n")
    assert load_config(["--config", str(tmp_path / "settings.toml")], {}).port == 6000
    index = {"0": ["n0", "a"], "1": ["n1", "b"]}
    (tmp_path / "index.json").write_text(json.dumps(index), encoding="utf-8-sig")
    assert [label.name for label in load_class_index(tmp_path / "index.json", 2)] == ["a", "b"]


def test_no_file_is_left_open(tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for place in (tmp_path, fifo(tmp_path), Path("/dev/zero")):
        with pytest.raises(OSError):
            open_regular(place)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize("name", ["a" * 70_000, "a/" * 70_000, "x/../" + "b" * 300])
def test_a_model_with_an_impossible_file_name_is_not_found(name: str) -> None:
    with pytest.raises(StartError):
        find_model(name, "auto", MODELS)


def test_the_null_device_is_a_settings_file_without_settings() -> None:
    assert load_config(["--config", os.devnull], {}).port == 5000
