"""An export writes all of its files or none, whatever fails; a killed export leaves no mixture of old and new."""

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from export.errors import ExportError
from export.files import make_directory, sha256_of, write_all

EARLIER = {"a.onnx": b"earlier a", "a.int8.onnx": b"earlier int8", "a.json": b"earlier report"}
NEW = {"a.onnx": b"new a", "a.int8.onnx": b"new int8", "a.json": b"new report"}
FP32_ALONE = {name: content for name, content in NEW.items() if name != "a.int8.onnx"}


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def put(folder: Path, contents: dict[str, bytes]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return folder


def write(folder: Path, contents: dict[str, bytes], gone: tuple[str, ...] = ()) -> None:
    write_all({folder / name: content for name, content in contents.items()}, [folder / name for name in gone])


@pytest.mark.parametrize("earlier", [{}, EARLIER, {"a.json": b"earlier report"}])
def test_all_are_written_and_nothing_else_is_left(earlier: dict[str, bytes], tmp_path: Path) -> None:
    write(put(tmp_path, earlier), NEW)
    assert files(tmp_path) == NEW
    write(tmp_path, FP32_ALONE, gone=("a.int8.onnx", "never.there"))
    assert files(tmp_path) == FP32_ALONE


def test_folders_are_made(tmp_path: Path) -> None:
    write(tmp_path / "models" / "today", NEW)
    assert files(tmp_path / "models" / "today") == NEW


def failing_at(count: int, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, but its `count`th call fails as on a full disk."""
    calls = iter(range(1, 1000))

    def call(*arguments: Any) -> Any:
        if next(calls) == count:
            raise OSError(28, "No space left on device")
        return function(*arguments)

    return call


@pytest.mark.parametrize("earlier", [{}, EARLIER])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_disk_that_is_full_at_any_of_the_files_changes_nothing(
    count: int, earlier: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, earlier)
    monkeypatch.setattr(os, "fsync", failing_at(count, os.fsync))
    with pytest.raises(
        ExportError, match=rf"^cannot write .*/{re.escape(list(NEW)[count - 1])}: No space left on device$"
    ):
        write(tmp_path, NEW)
    assert files(tmp_path) == earlier


@pytest.mark.parametrize(("contents", "gone"), [(NEW, ()), (FP32_ALONE, ("a.int8.onnx",))])
@pytest.mark.parametrize("earlier", [{}, EARLIER, {"a.onnx": b"earlier a"}])
def test_a_rename_that_fails_changes_nothing_whichever_it_is(
    earlier: dict[str, bytes],
    contents: dict[str, bytes],
    gone: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    renames = len(contents) + len(earlier)
    replace = Path.replace
    for count in range(1, renames + 1):
        folder = put(tmp_path / str(count), earlier)
        monkeypatch.setattr(Path, "replace", failing_at(count, replace))
        with pytest.raises(ExportError, match=r"^cannot write .*/a\.[a-z0-9.]+: No space left on device$"):
            write(folder, contents, gone)
        assert files(folder) == earlier, count
    monkeypatch.setattr(Path, "replace", failing_at(renames + 1, replace))
    write(put(tmp_path / "last", earlier), contents, gone)
    assert files(tmp_path / "last") == contents


@pytest.mark.parametrize("name", list(NEW))
def test_a_folder_in_the_place_of_any_of_them_changes_nothing(name: str, tmp_path: Path) -> None:
    earlier = {other: content for other, content in EARLIER.items() if other != name}
    folder = put(tmp_path, earlier)
    (folder / name / "inside").mkdir(parents=True)
    with pytest.raises(ExportError, match=rf"^cannot write .*/{re.escape(name)}: Is a directory$"):
        write(folder, NEW)
    assert (folder / name / "inside").is_dir()
    (folder / name / "inside").rmdir()
    (folder / name).rmdir()
    assert files(folder) == earlier


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "models").write_bytes(b"no folder")
    with pytest.raises(ExportError, match=r"^cannot write .*/models/a\.onnx: "):
        write(tmp_path / "models", NEW)
    assert files(tmp_path) == {"models": b"no folder"}


@pytest.mark.parametrize("done", [True, False])
def test_ctrl_c_at_any_rename_changes_nothing(done: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace = Path.replace
    for count in range(1, len(EARLIER) + len(NEW) + 1):
        folder = put(tmp_path / str(count), EARLIER)
        renames = iter(range(1, 1000))

        def interrupted(source: Path, target: Path, count: int = count, renames: Any = renames) -> None:
            now = next(renames) == count
            if done or not now:
                replace(source, target)
            if now:
                raise KeyboardInterrupt

        monkeypatch.setattr(Path, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write(folder, NEW)
        assert files(folder) == EARLIER


def test_a_kill_between_any_two_renames_leaves_files_of_one_set(tmp_path: Path) -> None:
    replace = Path.replace
    for count in range(1, len(EARLIER) + len(NEW) + 1):
        folder = put(tmp_path / str(count), EARLIER)
        child = os.fork()
        if child == 0:
            renames = iter(range(1, 1000))

            def killed(source: Path, target: Path, count: int = count, renames: Any = renames) -> None:
                if next(renames) == count:
                    os.kill(os.getpid(), signal.SIGKILL)
                replace(source, target)

            Path.replace = killed  # type: ignore[assignment]
            write(folder, NEW)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        left = files(folder)
        visible = {name: content for name, content in left.items() if not name.startswith(".")}
        assert visible.items() <= EARLIER.items() or visible.items() <= NEW.items()
        assert "a.json" not in visible or visible == EARLIER  # a set with its report is complete
        assert set(EARLIER.values()) <= set(left.values())  # nothing of the earlier set is lost


def test_a_files_digest_is_of_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_of(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    make_directory(tmp_path / "models" / "mine")
    assert (tmp_path / "models" / "mine").is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(ExportError, match=r"^cannot make the directory .*/file: File exists$"):
        make_directory(tmp_path / "file")
