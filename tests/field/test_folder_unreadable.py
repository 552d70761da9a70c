"""`classify` on what cannot be read: each is a record with its reason and makes the exit status 1."""

import os
import socket
import stat
import subprocess
import threading
from collections import Counter
from pathlib import Path

import pytest

from serve.config.regular_file import NotRegular, open_regular
from serve.config.settings import ROOT
from serve.files.paths import HIDDEN, LINKED_DIRECTORY, expand_paths
from serve.files.runner import classify_files
from serve.model.classifier import Classifier
from tests.permissions import drop_root
from tests.serve.conftest import PHOTOS
from tests.serve.test_classify import COMMAND, classify, records

CAT = PHOTOS / "cat.jpg"
NO_FILE = "This is not a file but a device, a pipe or a socket."
NO_TARGET = "This is a link to a file that does not exist."


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with one image."""
    made = tmp_path / "folder"
    made.mkdir()
    (made / "cat.jpg").symlink_to(CAT)
    return made


def test_everything_that_cannot_be_read_is_a_record_with_its_reason(folder: Path) -> None:
    (folder / "dangling.jpg").symlink_to("nothing.jpg")
    (folder / "into-a-file.jpg").symlink_to("cat.jpg/x.jpg")
    (folder / "itself.jpg").symlink_to("itself.jpg")
    (folder / "one.jpg").symlink_to("other.jpg")
    (folder / "other.jpg").symlink_to("one.jpg")
    os.mkfifo(folder / "pipe.jpg")
    (folder / "linked-pipe.jpg").symlink_to("pipe.jpg")
    (folder / "device.jpg").symlink_to("/dev/null")
    (folder / "empty.jpg").touch()
    (folder / "notes.txt").write_text("hello")
    (folder / "half.jpg").write_bytes(CAT.read_bytes()[:5000])
    back = os.open(".", os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as bound:
        os.chdir(folder)  # the path of a socket is limited to a hundred bytes
        bound.bind("socket.jpg")
        os.fchdir(back)
        os.close(back)
        status, printed, summary = classify(folder)
    found = {Path(record["file"]).name: (record.get("status"), record.get("detail")) for record in records(printed)}
    loop = "The file cannot be read: too many levels of symbolic links."
    assert found.pop("half.jpg")[0] == 422
    assert found.pop("notes.txt")[0] == 415
    assert found == {
        "cat.jpg": (None, None),
        "dangling.jpg": (404, NO_TARGET),
        "into-a-file.jpg": (404, NO_TARGET),
        "itself.jpg": (404, loop),
        "one.jpg": (404, loop),
        "other.jpg": (404, loop),
        "pipe.jpg": (415, NO_FILE),
        "linked-pipe.jpg": (415, NO_FILE),
        "device.jpg": (415, NO_FILE),
        "socket.jpg": (415, NO_FILE),
        "empty.jpg": (400, "The file is empty."),
    }
    assert status == 1
    assert "13 files in" in summary
    assert "1 classified, 12 with problems" in summary


def test_files_and_folders_without_permission_are_records(folder: Path) -> None:
    (folder / "file.jpg").write_bytes(CAT.read_bytes())
    for name in ("closed", "listed only"):
        (folder / name).mkdir()
        (folder / name / "x.jpg").write_bytes(CAT.read_bytes())
    for name, mode in (("file.jpg", 0), ("closed", 0), ("listed only", stat.S_IRUSR)):
        (folder / name).chmod(mode)
    command = [*COMMAND, str(folder), str(folder / "listed only" / "none.jpg")]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False, preexec_fn=drop_root
    )
    for name in ("closed", "listed only"):
        (folder / name).chmod(stat.S_IRWXU)
    found = {os.path.relpath(record["file"], folder): record.get("detail") for record in records(done.stdout)}
    assert found == {
        "cat.jpg": None,
        "file.jpg": "The file may not be read.",
        "closed": "The directory may not be read.",
        "listed only/x.jpg": "The file may not be read.",
        "listed only/none.jpg": "The file may not be read.",
    }, done.stderr
    assert done.returncode == 1


def test_a_file_that_vanishes_is_a_record(folder: Path, classifier: Classifier) -> None:
    (folder / "gone.jpg").write_bytes(CAT.read_bytes())
    (folder / "gone").mkdir()
    paths = expand_paths([str(folder)], ())
    assert next(paths) == str(folder / "cat.jpg")
    (folder / "gone.jpg").unlink()
    (folder / "gone").rmdir()
    found = list(classify_files(classifier, paths, 1, 1, 10**8))
    assert [(Path(record["file"]).name, record["detail"]) for record in found] == [
        ("gone.jpg", "There is no such file."),
        ("gone", "There is no such file."),
    ]


def test_a_folder_in_a_list_is_a_record(folder: Path) -> None:
    status, printed, _ = classify("-", stdin=f"{folder}\n{folder}/cat.jpg\nnone.jpg\nnone/none.jpg\n")
    found = [(record.get("status"), record.get("detail")) for record in records(printed)]
    missing = (404, "There is no such file.")
    assert (status, found) == (1, [(415, "This is a directory, not a file."), (None, None), missing, missing])


def test_the_reasons_that_http_does_not_have_are_documented(folder: Path) -> None:
    (folder / "loop.jpg").symlink_to("loop.jpg")
    _, printed, _ = classify("-", stdin=f"{folder}\n{folder}/loop.jpg\nnone.jpg\n")
    reasons = [record["reason"] for record in records(printed)]
    assert reasons == ["not_a_file", "unreadable", "no_such_file"]
    for document in ("api.md", "folders.md"):
        text = (ROOT / "docs" / document).read_text()
        assert all(f"`{reason}`" in text for reason in reasons)


def test_what_is_left_out_is_counted_on_standard_error(folder: Path) -> None:
    (folder / ".hidden.jpg").touch()
    (folder / ".git").mkdir()
    (folder / "again").symlink_to(folder)
    (folder / "elsewhere").symlink_to(PHOTOS)
    status, printed, error = classify(folder)
    assert (status, len(records(printed))) == (0, 1)
    assert "left out: hidden files or directories (2), links to directories (2)\n" in error
    left_out: Counter[str] = Counter()
    assert list(expand_paths([f"{folder}/*.jpg", f"{folder}/.h*", f"{folder}/again/*.jpg"], (), left_out)) == [
        f"{folder}/cat.jpg",
        f"{folder}/.hidden.jpg",
        f"{folder}/again/cat.jpg",
    ]
    assert left_out == {HIDDEN: 2, LINKED_DIRECTORY: 0}


def test_a_pipe_is_not_opened(folder: Path) -> None:
    """Opening it would let its writer go on, who would then be killed by SIGPIPE."""
    pipe = folder / "pipe"
    os.mkfifo(pipe)
    went_on = threading.Event()

    def write() -> None:
        with pipe.open("wb"):
            went_on.set()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        with pytest.raises(NotRegular):
            open_regular(pipe)
        assert not went_on.wait(0.3)
    finally:
        with pipe.open("rb"):
            writer.join(10)
    assert went_on.is_set()


@pytest.mark.parametrize("name", [b"\xff\xfe.jpg", b"caf\xe9.jpg", b"a\nb\r\t\x1b[2J.jpg", b"'=1.jpg"])
def test_a_name_that_is_not_text_is_classified_and_written_as_it_is(tmp_path: Path, name: bytes) -> None:
    path = os.fsencode(tmp_path) + b"/" + name
    Path(os.fsdecode(path)).symlink_to(CAT)
    status, printed, _ = classify(tmp_path)
    assert (status, [os.fsencode(record["file"]) for record in records(printed)]) == (0, [path])
