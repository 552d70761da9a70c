"""`classify --sort-into`: links or copies by label, never instead of what is there, the same when run again."""

import errno
import os
import shutil
from pathlib import Path

import pytest

from serve.errors import OutputError
from serve.files.runner import Record
from serve.files.sorting import Sorter, folder_names, safe_name
from serve.model.labels import Label
from tests.serve.conftest import PHOTOS
from tests.serve.test_classify import classify, records

CAT = Label("n1", "cat")
LABELS = [CAT, Label("n2", "dog")]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Images of the same name in two folders, and a file that is none."""
    made = tmp_path / "pictures"
    for name in ("a/1.jpg", "b/1.jpg", "b/2.jpg", "notes.txt"):
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).write_bytes(
            b"hello" if name.endswith("txt") else (PHOTOS / "cat.jpg").read_bytes() + name.encode()
        )
    return made


def content(folder: Path) -> dict[str, tuple[bytes, str]]:
    """What each file below a folder holds, and what it links to."""
    return {
        str(path.relative_to(folder)): (path.read_bytes(), str(path.readlink()) if path.is_symlink() else "")
        for path in sorted(folder.rglob("*"))
        if not path.is_dir()
    }


def record(path: Path, label: Label = CAT, probability: float = 0.9) -> Record:
    return {"file": str(path), "imagenet_id": label.imagenet_id, "label": label.name, "probability": probability}


def sorter(folder: Path, *, copy: bool = False, dry_run: bool = False, min_probability: float = 0.0) -> Sorter:
    return Sorter(folder, LABELS, min_probability, copy=copy, dry_run=dry_run)


def test_a_dry_run_writes_nothing_and_says_what_it_would_do(pictures: Path, tmp_path: Path) -> None:
    target = tmp_path / "sorted"
    status, printed, error = classify(pictures, "--sort-into", target)
    label = records(printed)[1]["label"]
    assert (status, target.exists()) == (1, False)  # 1, because of notes.txt
    assert f"dry run: would have linked 3 files into 1 folder of {target}\n  {label} " in error
    assert error.endswith("nothing was written; --yes does it (with --output and --resume without classifying again)\n")


@pytest.mark.parametrize("copy", [False, True])
def test_files_are_linked_or_copied_by_label_and_again_without_a_change(
    pictures: Path, tmp_path: Path, copy: bool
) -> None:
    target, before = tmp_path / "sorted", content(pictures)
    command = [pictures, "--sort-into", target, "--yes", *(["--copy"] if copy else [])]
    os.utime(pictures / "a" / "1.jpg", (10**9, 10**9))
    status, printed, error = classify(*command)
    label = records(printed)[1]["label"]
    found = content(target)
    done = "copied" if copy else "linked"
    assert (status, f"\n{done} 3 files into 1 folder of {target}\n" in error) == (1, True), error
    assert sorted(data for data, _ in found.values()) == sorted(before[name][0] for name in before if "jpg" in name)
    assert {f"{label}/1.jpg", f"{label}/2.jpg"} < set(found)
    assert found[f"{label}/1.jpg"] == (before["a/1.jpg"][0], "" if copy else "../../pictures/a/1.jpg")
    assert (target / label / "1.jpg").stat().st_mtime == 10**9
    status, _, error = classify(*command)
    assert (status, f"{done} 3 files into 1 folder of {target}, 3 already there\n" in error) == (1, True), error
    assert (content(target), content(pictures)) == (found, before)


def test_links_survive_moving_both_folders_together(pictures: Path, tmp_path: Path) -> None:
    library = tmp_path / "library"
    library.mkdir()
    pictures.rename(library / "pictures")
    (tmp_path / "alias").symlink_to(library)
    sorting = sorter(tmp_path / "alias" / "deep" / "sorted")
    sorting.add(record(tmp_path / "alias" / "pictures" / "a" / ".." / "b" / "2.jpg"))
    library.rename(tmp_path / "moved")
    assert (tmp_path / "moved" / "deep" / "sorted" / "cat" / "2.jpg").read_bytes().endswith(b"b/2.jpg")


@pytest.mark.parametrize("copy", [False, True])
def test_what_is_there_is_never_overwritten(pictures: Path, tmp_path: Path, copy: bool) -> None:
    folder = tmp_path / "sorted" / "cat"
    folder.mkdir(parents=True)
    (folder / "1.jpg").write_bytes(b"mine")
    (folder / "2.jpg").symlink_to("nothing")
    (folder / "notes.txt").mkdir()
    sorting = sorter(tmp_path / "sorted", copy=copy)
    for name in ("a/1.jpg", "b/1.jpg", "b/2.jpg", "notes.txt"):
        sorting.add(record(pictures / name))
    found = sorted(path.name for path in folder.iterdir())
    assert len(found) == 7
    assert ((folder / "1.jpg").read_bytes(), str((folder / "2.jpg").readlink())) == (b"mine", "nothing")
    assert sum(name.startswith("1 (") and name.endswith(").jpg") for name in found) == 2
    new = [path.read_bytes() for path in folder.iterdir() if " (" in path.name]
    assert sorted(new) == sorted(
        (pictures / name).read_bytes() for name in ("a/1.jpg", "b/1.jpg", "b/2.jpg", "notes.txt")
    )
    again = sorter(tmp_path / "sorted", copy=copy)
    for name in ("notes.txt", "b/2.jpg", "b/1.jpg", "a/1.jpg"):  # in another order
        again.add(record(pictures / name))
    assert sorted(path.name for path in folder.iterdir()) == found
    assert "4 already there" in again.report()[0]


def test_a_thousand_files_of_one_name_are_tried_twice_at_most(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for number in range(1000):
        (source / str(number)).mkdir(parents=True)
        (source / str(number) / "1.jpg").touch()
    opened: list[str] = []
    sorting = sorter(tmp_path / "sorted")
    original = Path.symlink_to

    def counting(self: Path, target: str) -> None:
        opened.append(target)
        original(self, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "symlink_to", counting)
        for number in range(1000):
            sorting.add(record(source / str(number) / "1.jpg"))
    assert len(os.listdir(tmp_path / "sorted" / "cat")) == 1000  # noqa: PTH208
    assert len(opened) < 2000


@pytest.mark.parametrize("copy", [False, True])
def test_the_longest_names_fit(tmp_path: Path, copy: bool) -> None:
    names = ["x" * 251 + ".jpg", "é" * 120 + ".jpg", "." + "x" * 254, os.fsdecode(b"\xff" * 251 + b".jpg")]
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        sorting = sorter(tmp_path / "sorted", copy=copy)
        for name in names:
            (tmp_path / folder / name).write_text(folder)
            sorting.add(record(tmp_path / folder / name))
    found = list((tmp_path / "sorted" / "cat").iterdir())
    assert sorted(path.read_text() for path in found) == ["a"] * 4 + ["b"] * 4


def test_less_certain_files_stay_and_are_counted(pictures: Path, tmp_path: Path) -> None:
    sorting = sorter(tmp_path / "sorted", min_probability=0.5)
    sorting.add(record(pictures / "a/1.jpg", probability=0.5))
    sorting.add(record(pictures / "b/1.jpg", probability=0.4999))
    sorting.add({"file": "x", "status": 404, "detail": ""})
    assert [path.name for path in (tmp_path / "sorted").iterdir()] == ["cat"]
    assert sorting.report()[0] == (
        f"linked 1 file into 1 folder of {tmp_path / 'sorted'}, 1 less certain than 0.5 and not sorted"
    )


def test_the_folder_is_not_classified_even_within_the_pictures(pictures: Path) -> None:
    command = [pictures, "--sort-into", pictures / "sorted", "--yes"]
    _, printed, _ = classify(*command)
    first = [record["file"] for record in records(printed)]
    assert len(first) == 4
    for arguments, listed in ((command, ""), (["-", *command[1:]], "\n".join(map(str, sorted(pictures.rglob("*.*")))))):
        _, printed, error = classify(*arguments, stdin=listed)
        assert sorted(record["file"] for record in records(printed)) == sorted(first)
        assert "left out: files in the folder of --sort-into (3)\n" in error


@pytest.mark.parametrize("how", ["--jsonl", "--csv"])
def test_a_resumed_run_sorts_what_the_earlier_run_classified(pictures: Path, tmp_path: Path, how: str) -> None:
    output, target = tmp_path / "output", tmp_path / "sorted"
    command = [pictures, "--output", output, how, "--sort-into", target]
    assert classify(*command)[0] == 1
    before = output.read_bytes()
    status, _, error = classify(*command, "--resume", "--yes")
    assert (status, "0 files in" in error, "linked 3 files" in error) == (1, True, True), error
    assert (output.read_bytes(), len(content(target))) == (before, 3)
    lines = before.splitlines(keepends=True)
    output.write_bytes(b"".join(lines[:-2]))
    status, _, error = classify(*command, "--resume", "--yes")
    assert (status, "linked 3 files" in error, "3 already there" in error) == (1, True, True), error
    assert output.read_bytes() == before
    shutil.rmtree(target)
    assert classify(pictures / "b", *command[1:], "--resume", "--yes")[0] == 2
    assert not target.exists()  # nothing is sorted unless the output is this run's


def test_a_file_that_vanishes_before_it_is_sorted_makes_the_status_1(pictures: Path, tmp_path: Path) -> None:
    output, target = tmp_path / "output", tmp_path / "sorted"
    (pictures / "notes.txt").unlink()
    assert classify(pictures, "--output", output)[0] == 0
    for how in ([], ["--copy"]):
        for path in target.glob("*/*"):
            path.unlink()
        listed = "\n".join(map(str, (pictures / name for name in ("a/1.jpg", "b/1.jpg", "b/2.jpg"))))
        (pictures / "b/2.jpg").unlink(missing_ok=True)
        command = ["-", "--output", output, "--resume", "--sort-into", target, "--yes", *how]
        status, _, error = classify(*command, stdin=listed)
        assert (status, "2 files into 1 folder" in error, "1 no longer readable" in error) == (1, True, True), error


@pytest.mark.parametrize("copy", [False, True])
def test_a_place_that_cannot_be_written_ends_the_run_with_one_line(pictures: Path, tmp_path: Path, copy: bool) -> None:
    target = tmp_path / "sorted"
    target.write_text("a file")
    status, _, error = classify(pictures / "a", "--sort-into", target, "--yes", *(["--copy"] if copy else []))
    last = error.splitlines()[-1]
    how = "copied" if copy else "linked"
    advice = "remove what is there, or choose another --sort-into"
    assert status == 2
    assert last.startswith(f"serve: {target}/")
    assert last.endswith(f"/a/1.jpg cannot be {how} (not a directory); {advice}")


@pytest.mark.parametrize("copy", [False, True])
@pytest.mark.parametrize("kind", ["file", "dangling link"])
def test_a_label_whose_place_is_taken_is_told_with_what_helps(
    pictures: Path, tmp_path: Path, copy: bool, kind: str
) -> None:
    target = tmp_path / "sorted"
    target.mkdir()
    if kind == "file":
        (target / "cat").touch()
    else:
        (target / "cat").symlink_to("nothing")
    with pytest.raises(OutputError) as raised:
        sorter(target, copy=copy).add(record(pictures / "a/1.jpg"))
    assert str(raised.value).endswith(
        f"cannot be {'copied' if copy else 'linked'} (file exists); remove what is there, or choose another --sort-into"
    )


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.EPERM, "; --copy copies it"),
        (errno.EOPNOTSUPP, "; --copy copies it"),
        (errno.EACCES, ""),
        (errno.ENOSPC, ""),
    ],
)
def test_copying_is_advised_where_links_are_refused(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, advice: str
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "symlink_to", refuse)
    with pytest.raises(OutputError) as raised:
        sorter(tmp_path / "sorted").add(record(pictures / "a/1.jpg"))
    assert str(raised.value).endswith(f"/a/1.jpg cannot be linked ({os.strerror(number).lower()}){advice}")


def test_a_copy_that_fails_leaves_nothing(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfileobj", full)
    with pytest.raises(OutputError, match=r"1\.jpg cannot be copied \(no space left on device\)"):
        sorter(tmp_path / "sorted", copy=True).add(record(pictures / "a/1.jpg"))
    assert content(tmp_path / "sorted") == {}


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Egyptian_cat", "Egyptian_cat"),
        ("jack-o'-lantern", "jack-o'-lantern"),
        ("../../etc", "_.._etc"),
        ("a/b\\c:d", "a_b_c_d"),
        ("..", "_"),
        ("", "_"),
        (".hidden ", "hidden"),
        ("CON", "_CON"),
        ("com1.x", "_com1.x"),
        ("COM¹", "_COM¹"),
        ("lpt³.x", "_lpt³.x"),
        ("cone", "cone"),
        ("gpj.\u202ecat\u2066\u200f", "gpj._cat__"),
        ("a\u0085b\x9b", "a_b_"),
        ("a\ud800b", "a_b"),
        ("Cafe\u0301", "Café"),
        ("é" * 200, "é" * 60),
        ("犬 と 猫", "犬 と 猫"),
    ],
)
def test_a_label_becomes_a_name_that_every_system_allows(text: str, name: str) -> None:
    assert safe_name(text) == name


def test_classes_of_the_same_name_have_folders_of_their_own() -> None:
    crane, machine, other = Label("n02012849", "crane"), Label("n03126707", "Crane"), Label("n1", "a/b")
    same = Label("n2", "a:b")
    assert folder_names([crane, machine, other, same, CAT]) == {
        crane: "crane_n02012849",
        machine: "Crane_n03126707",
        other: "a_b_n1",
        same: "a_b_n2",
        CAT: "cat",
    }


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ([("n1", "crane"), ("n2", "crane"), ("n3", "crane_n1")], ["crane_1", "crane_n2", "crane_n1"]),
        ([("n1", "a"), ("N1", "A")], ["a_n1", "A_1"]),
        ([("", "x"), ("", "X"), ("n1", "x")], ["x_1", "X_2", "x_n1"]),
        ([("", "x"), ("", "X"), ("n1", "x_1")], ["x_2", "X_3", "x_1"]),
        ([("n1", "\ud800"), ("n2", "\udfff")], ["__n1", "__n2"]),
    ],
)
def test_no_two_classes_share_a_folder(labels: list[tuple[str, str]], names: list[str]) -> None:
    made = folder_names([Label(*label) for label in labels])
    assert list(made.values()) == names


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--copy"], "--copy is for --sort-into, which is missing"),
        (["--yes"], "--yes is for --sort-into, which is missing"),
        (["--min-probability", "0.5"], "--min-probability is for --sort-into and --html; give one of them"),
        (["--sort-into", "x", "--min-probability", "50"], "--min-probability=50: not a number from 0 to 1"),
        (["--sort-into", "x", "--min-probability", "nan"], "--min-probability=nan: not a number from 0 to 1"),
        (["--sort-into", "{}"], "--sort-into={0} holds {0}, which is to be classified; choose a folder of its own"),
        (
            ["--sort-into", "{}/.."],
            "--sort-into={0}/.. holds {0}, which is to be classified; choose a folder of its own",
        ),
    ],
)
def test_flags_that_do_not_fit_are_told(pictures: Path, flags: list[str], words: str) -> None:
    status, printed, error = classify(pictures, *(each.format(pictures) for each in flags))
    assert (status, printed, len(error.splitlines())) == (2, "", 1)
    assert error.startswith(f"serve: {words.format(pictures)}")
