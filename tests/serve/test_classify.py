"""`python -m serve classify`: files, folders, patterns and lists; formats; bad files; stopping and resuming."""

import csv
import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from serve.commands.classify_run import Run
from serve.config.settings import ROOT
from serve.errors import ConfigError
from serve.files.evaluation import Evaluation, wordnet_id
from serve.files.paths import expand_paths, parse_file_list
from serve.files.records import RecordFormat
from serve.files.runner import classify_files
from serve.model.classifier import Classifier
from serve.model.labels import Label
from tests.references import PICTURES
from tests.serve.conftest import PHOTOS
from tests.server_process import running_server
from tests.tiny_model import PATH as TINY_MODEL

MODEL = "model: tiny, fp32\n"
COMMAND = [sys.executable, "-m", "serve", "classify", "--model", str(TINY_MODEL)]


def classify(*arguments: object, stdin: str = "", environment: dict[str, str] | None = None) -> tuple[int, str, str]:
    done = subprocess.run(
        [*COMMAND, *map(str, arguments)],
        cwd=ROOT,
        input=stdin,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        encoding="utf-8",
        errors="surrogateescape",
        timeout=120,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def records(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Folders with images and other files."""
    folder = tmp_path / "tree"
    for path in ("b.jpg", "a/2.jpg", "a/10.png", ".hidden.jpg", "c/.git/x.jpg", "c/notes.txt"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        source = PICTURES / "rgb.png" if path.endswith("png") else PHOTOS / "cat.jpg"
        (folder / path).write_bytes(b"hello" if path.endswith("txt") else source.read_bytes())
    (folder / "a" / "link.jpg").symlink_to(folder / "b.jpg")
    (folder / "a" / "loop").symlink_to(folder)
    (folder / "broken.jpg").symlink_to(folder / "nothing")
    os.mkfifo(folder / "pipe")
    return folder


def test_folders_are_walked_in_the_order_of_names(tree: Path) -> None:
    walked = [os.path.relpath(path, tree) for path in expand_paths([str(tree)], ())]
    assert walked == ["b.jpg", "broken.jpg", "pipe", "a/10.png", "a/2.jpg", "a/link.jpg", "c/notes.txt"]


def test_patterns_lists_and_missing_paths_are_expanded(tree: Path) -> None:
    (tree / "a[1].jpg").write_bytes(b"x")
    paths = [f"{tree}/a/*.jpg", "-", "none.jpg", f"{tree}/none*", f"{tree}/a[1].jpg"]
    found = list(expand_paths(paths, parse_file_list([b"x y.j", b"pg\n\nz.jpg\r\n"])))
    assert found == [
        f"{tree}/a/2.jpg",
        f"{tree}/a/link.jpg",
        "x y.jpg",
        "z.jpg",
        "none.jpg",
        f"{tree}/none*",
        f"{tree}/a[1].jpg",
    ]


def test_an_unreadable_entry_gets_a_record(tree: Path) -> None:
    (tree / "itself.jpg").symlink_to("itself.jpg")
    walked = [os.path.relpath(path, tree) for path in expand_paths([str(tree)], ())]
    assert walked[:4] == ["b.jpg", "broken.jpg", "itself.jpg", "pipe"]
    status, printed, _ = classify(tree / "itself.jpg", tree / "b.jpg")
    assert status == 1
    assert [record.get("status", 200) for record in records(printed)] == [404, 200]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("**", ["b.jpg", "broken.jpg", "pipe", "a/10.png", "a/2.jpg", "a/link.jpg", "c/notes.txt"]),
        ("**/**/*.jpg", ["b.jpg", "broken.jpg", "a/2.jpg", "a/link.jpg"]),
        ("*", ["b.jpg", "broken.jpg", "pipe", "a/10.png", "a/2.jpg", "a/link.jpg", "c/notes.txt"]),
        ("[ac]", ["a/10.png", "a/2.jpg", "a/link.jpg", "c/notes.txt"]),
        ("?/*.jpg", ["a/2.jpg", "a/link.jpg"]),
        ("**/a/**", ["a/10.png", "a/2.jpg", "a/link.jpg"]),
        (".h*", [".hidden.jpg"]),
        ("*/.git/*", ["c/.git/x.jpg"]),
        ("*/loop/*", ["*/loop/*"]),
        ("none/*.jpg", ["none/*.jpg"]),
    ],
)
def test_a_pattern_names_each_file_once_and_follows_no_link_to_a_folder(
    tree: Path, monkeypatch: pytest.MonkeyPatch, pattern: str, expected: list[str]
) -> None:
    assert list(expand_paths([f"{tree}/{pattern}"], ())) == [f"{tree}/{path}" for path in expected]
    monkeypatch.chdir(tree)
    assert list(expand_paths([pattern], ())) == expected


def test_a_pattern_is_matched_while_it_is_walked(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scanned = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: scanned.append(path) or scandir(path))
    assert next(expand_paths([f"{tree}/**/*.jpg"], ())) == f"{tree}/b.jpg"
    assert scanned == [f"{tree}/"]


def test_folders_may_be_nested_deeper_than_the_recursion_limit(tmp_path: Path) -> None:
    folder = tmp_path
    back = os.open(".", os.O_RDONLY)
    try:
        os.chdir(tmp_path)
        for _ in range(1200):
            Path("d").mkdir()
            os.chdir("d")
            folder /= "d"
        Path("x.jpg").touch()
    finally:
        os.fchdir(back)
        os.close(back)
    (tmp_path / "a.jpg").touch()
    assert list(expand_paths([str(tmp_path)], ())) == [str(tmp_path / "a.jpg"), str(folder / "x.jpg")]
    (folder / "x.jpg").unlink()
    os.removedirs(folder)  # pytest's own removal would recurse too deeply


def test_answers_are_those_of_the_server() -> None:
    paths = sorted(map(str, PHOTOS.glob("*.jpg")))
    status, printed, summary = classify(*paths, "--top-k", 3)
    assert status == 0
    assert "3 classified, 0 with problems" in summary
    with running_server(sys.executable, "--model", str(TINY_MODEL), "--log-format", "json") as server:
        for record in records(printed):
            done = subprocess.run(
                [sys.executable, "-c", ASK, f"{server.url}/upload?top_k=3", record.pop("file")],
                capture_output=True,
                text=True,
                check=True,
            )
            assert json.loads(done.stdout) == record


ASK = """
import sys, urllib.request
data = open(sys.argv[2], "rb").read()
print(urllib.request.urlopen(urllib.request.Request(sys.argv[1], data, {"Content-Type": "image/jpeg"})).read().decode())
"""


def test_a_bad_file_is_a_record_with_its_problem(tree: Path, tmp_path: Path) -> None:
    half = tmp_path / "half.jpg"
    half.write_bytes((PHOTOS / "cat.jpg").read_bytes()[:5000])
    large = tmp_path / "large.png"
    Image.new("L", (3000, 3000)).save(large)
    huge = tmp_path / "huge.jpg"
    huge.write_bytes(bytes(30_000_000))
    cat, notes = tree / "b.jpg", tree / "c" / "notes.txt"
    paths = [cat, half, notes, large, huge, "none.jpg", tree / "pipe", tree / "broken.jpg"]
    status, printed, summary = classify(*paths, tree / "b.jpg", "--max-pixels", 1_000_000)
    assert status == 1
    found = records(printed)
    assert [record["file"] for record in found] == [*map(str, paths), str(tree / "b.jpg")]
    assert [record.get("status", 200) for record in found] == [200, 422, 415, 413, 413, 404, 415, 404, 200]
    assert found[3]["detail"] == "The image has 3000 × 3000 pixels; the limit is 1000000 pixels."
    assert found[4]["detail"] == "The file has 30000000 bytes; the limit is 20971520 bytes."
    assert found[6]["detail"] == "This is not a file but a device, a pipe or a socket."
    assert {**found[0], "file": ""} == {**found[8], "file": ""}
    assert "9 files in" in summary
    assert "2 classified, 7 with problems (2 with 404, 2 with 413, 2 with 415, 1 with 422)" in summary


def test_csv_has_a_column_for_each_class(tree: Path, tmp_path: Path) -> None:
    odd = tmp_path / 'a "quoted"\nname, with comma.jpg'
    odd.write_bytes((PHOTOS / "cat.jpg").read_bytes())
    status, printed, _ = classify(odd, tree / "c" / "notes.txt", "--csv", "--top-k", 2)
    header, first, second = csv.reader(io.StringIO(printed))
    columns = ["imagenet_id", "label", "probability"]
    assert header == ["file", "error", *[f"{name}_{rank}" for rank in (1, 2) for name in columns], "model"]
    assert (status, first[0], first[1]) == (1, str(odd), "")
    assert float(first[4]) >= float(first[7]) > 0
    assert (second[1].startswith("The file is not an image"), second[2:]) == (True, [*[""] * 6, "tiny"])


def test_names_that_are_not_text_are_written_unchanged(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/\xff\xfe.jpg"
    Path(os.fsdecode(path)).write_bytes((PHOTOS / "cat.jpg").read_bytes())
    for form in ("--jsonl", "--csv", "--table"):
        status, printed, error = classify(tmp_path, form, environment={"LC_ALL": "C"})
        assert status == 0, error
        if form == "--jsonl":
            assert os.fsencode(records(printed)[0]["file"]) == path
        elif form == "--csv":
            assert os.fsencode(list(csv.reader(io.StringIO(printed)))[1][0]) == path


def test_a_table_has_one_line_for_a_name_with_control_characters(tmp_path: Path) -> None:
    path = tmp_path / "a\x1b[2Jb\n.jpg"
    path.write_bytes((PHOTOS / "cat.jpg").read_bytes())
    _, printed, _ = classify(path, "--table")
    assert len(printed.splitlines()) == 1
    assert "a\\x1b[2Jb\\n.jpg" in printed
    assert printed.count("%") == 3


@pytest.mark.parametrize("form", ["--jsonl", "--csv"])
def test_an_interrupted_run_goes_on_where_its_output_ends(tmp_path: Path, form: str) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(40):
        (folder / f'{number:02} "of"\nmany.jpg').symlink_to(PHOTOS / "cat.jpg")
    whole, output = tmp_path / "whole", tmp_path / "output"
    assert classify(folder, form, "--output", whole)[0] == 0
    content = whole.read_bytes()
    for cut in (0, 1, len(content) // 3, len(content) // 2, len(content) - 1, len(content)):
        output.write_bytes(content[:cut])
        status, printed, summary = classify(folder, form, "--output", output, "--resume")
        assert (status, printed) == (0, ""), summary
        assert output.read_bytes() == content, cut
    assert "0 files in" in summary
    assert "40 from the earlier run" in summary


def test_resuming_with_other_paths_or_another_format_is_refused(tmp_path: Path) -> None:
    output = tmp_path / "output"
    cat, coffee = PHOTOS / "cat.jpg", PHOTOS / "coffee.jpg"
    classify(cat, "--output", output)
    before = output.read_bytes()
    for arguments, words in (
        ([coffee, cat, "--output", output, "--resume"], "but file 1 of these is"),
        (["--output", output, "--resume", "none*"], "but file 1 of these is"),
        ([cat, "--output", output], "is not empty; continue it with --resume"),
        ([cat, "--output", output, "--resume", "--table"], "--resume needs an --output file"),
        ([cat, "--resume"], "--resume needs an --output file"),
        ([cat, "--output", tmp_path / "none" / "x"], "no such file or directory"),
        ([cat, "--top-k", "0"], "--top-k=0: not a whole number from 1 to 1000"),
    ):
        status, printed, error = classify(*arguments)
        assert (status, printed) == (2, ""), error
        assert words in error
        assert len(error.splitlines()) == 1
    assert output.read_bytes() == before


@pytest.mark.parametrize(
    ("form", "content", "words"),
    [
        ("--jsonl", b"my thesis in one line", "is not a jsonl file of records"),
        ("--jsonl", b"no json\n", "is not a jsonl file of records"),
        ("--jsonl", b'{"file": "x"}\n', "record 1 is not jsonl"),
        ("--jsonl", b'{"file": "x", "status": 404}\nmy thesis\n', "record 2 is not jsonl"),
        ("--csv", b"my thesis\n", "is not a csv file of records"),
        ("--csv", b'a "thesis\nin lines', "is not a csv file of records"),
        ("--csv", b'{"file": "x"', "is not a csv file of records"),
    ],
)
def test_an_output_of_another_program_is_left_unchanged(tmp_path: Path, form: str, content: bytes, words: str) -> None:
    other = tmp_path / "other"
    other.write_bytes(content)
    status, _, error = classify(PHOTOS / "cat.jpg", form, "--output", other, "--resume")
    assert (status, len(error.splitlines())) == (2, 1), error
    assert words in error
    assert other.read_bytes() == content


@pytest.mark.parametrize("form", ["--jsonl", "--csv"])
def test_resuming_with_another_number_of_classes_is_refused(tmp_path: Path, form: str) -> None:
    output = tmp_path / "output"
    cat = PHOTOS / "cat.jpg"
    assert classify(cat, form, "--output", output, "--top-k", 3)[0] == 0
    before = output.read_bytes()
    for top_k in (2, 4, 30):
        status, _, error = classify(cat, cat, form, "--output", output, "--resume", "--top-k", top_k)
        assert (status, "--top-k; choose another --output" in error) == (2, True), error
    assert output.read_bytes() == before


def test_resuming_with_another_model_is_refused(tmp_path: Path) -> None:
    output = tmp_path / "output"
    assert classify(PHOTOS / "cat.jpg", "--output", output)[0] == 0
    before = output.read_text().replace('"model": "tiny"', '"model": "huge"')
    output.write_text(before)
    status, _, error = classify(PHOTOS / "cat.jpg", "--output", output, "--resume")
    assert (status, "record 1 is from the model huge, not tiny" in error) == (2, True), error
    assert output.read_text() == before


@pytest.mark.parametrize("form", ["--jsonl", "--csv"])
def test_problems_of_the_earlier_run_count_for_the_exit_status(tmp_path: Path, form: str) -> None:
    output = tmp_path / "output"
    paths = ["none.jpg", PHOTOS / "cat.jpg"]
    assert classify(*paths, form, "--output", output)[0] == 1
    status, _, summary = classify(*paths, PHOTOS / "coffee.jpg", form, "--output", output, "--resume")
    assert status == 1
    assert "1 classified, 0 with problems; 2 from the earlier run, 1 of them with problems" in summary


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_the_first_record_is_not_a_success(tmp_path: Path, number: int) -> None:
    (tmp_path / "onnxruntime.py").write_text(SLOW_IMPORT)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    with subprocess.Popen(
        [*COMMAND, str(PHOTOS)], cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert process.stderr
        assert process.stdout.readline() == "importing\n"
        process.send_signal(number)
        assert process.wait(60) == 128 + number
        assert process.stderr.read() == ""


# Stands for an extension module that turns any exception during its import into ImportError.
SLOW_IMPORT = """
import time
print("importing", flush=True)
try:
    time.sleep(60)
except BaseException:
    raise ImportError("the extension cannot be loaded")
"""


def test_ctrl_c_ends_the_run_between_two_records_and_is_reported(tmp_path: Path) -> None:
    folder, output = tmp_path / "many", tmp_path / "output.jsonl"
    folder.mkdir()
    for number in range(3000):
        (folder / f"{number:04}.jpg").symlink_to(PHOTOS / "rocket.jpg")
    command = [*COMMAND, str(folder), "--output", str(output)]
    for number in (signal.SIGINT, signal.SIGTERM):
        process = subprocess.Popen([*command, "--resume"], cwd=ROOT, stderr=subprocess.PIPE, text=True)
        size = output.stat().st_size if output.exists() else 0
        give_up = time.monotonic() + 60
        while not output.exists() or output.stat().st_size <= size:
            assert time.monotonic() < give_up
            time.sleep(0.01)
        process.send_signal(number)
        _, error = process.communicate(timeout=60)
        assert process.returncode == 128 + number, error
        assert "stopped; continue" in error
        assert "Traceback" not in error
        text = output.read_text()
        assert text.endswith("\n")
        assert [record["file"] for record in records(text)] == [
            str(folder / f"{each:04}.jpg") for each in range(len(text.splitlines()))
        ]
    assert 0 < len(text.splitlines()) < 3000


@pytest.mark.parametrize("kind", ["file", "device", "none"])
def test_only_a_file_is_said_to_be_continued(classifier: Classifier, tmp_path: Path, kind: str) -> None:
    (tmp_path / "output.jsonl").touch()
    output = {"file": tmp_path / "output.jsonl", "device": Path(os.devnull), "none": None}[kind]
    form = RecordFormat("jsonl", 1, "tiny")
    run = Run(Namespace(output=output), classifier, form, sys.stdout, None, None, None, stopped_by=signal.SIGINT)
    how = f"continue {output} with --resume" if kind == "file" else "with --output, --resume can continue a run"
    assert run.summary()[-1] == f"stopped; {how}"


def test_a_closed_output_pipe_ends_the_run_without_an_error(tmp_path: Path) -> None:
    for number in range(300):
        (tmp_path / f"{number}.jpg").symlink_to(PHOTOS / "cat.jpg")
    command = [*COMMAND, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(60) == 128 + signal.SIGPIPE
        assert process.stderr.read() == MODEL


def test_a_full_disk_is_named() -> None:
    status, _, error = classify(*[PHOTOS / "cat.jpg"] * 50, "--output", "/dev/full")
    assert status == 2
    assert error == f"{MODEL}serve: output /dev/full: no space left on device\n"


def test_a_terminal_gets_a_table_and_a_bar_and_a_pipe_does_not(tmp_path: Path) -> None:
    (tmp_path / "0000.jpg").write_bytes(b"no picture")
    for number in range(1, 800):
        (tmp_path / f"{number:04}.jpg").symlink_to(PHOTOS / "rocket.jpg")
    _, printed, error = classify(tmp_path)
    assert (len(records(printed)), error.count("\n"), "\x1b" in error) == (800, 2, False)
    ours, theirs = pty.openpty()
    environment = {**os.environ, "COLUMNS": "200"}
    process = subprocess.Popen([*COMMAND, str(tmp_path)], cwd=ROOT, env=environment, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = b""
    try:
        while more := os.read(ours, 65536):
            shown += more
    except OSError:  # the other end is closed
        os.close(ours)
    assert process.wait(60) == 1
    text = shown.decode()
    digits = r"[0-9]+"
    assert re.search(
        rf"\r\x1b\[K\[#*\.*\] +{digits}% {digits} of 800, [0-9.]+ a second, {digits} s left, 1 with problems", text
    )
    assert re.search(rf"\x1b\[K{tmp_path}/0799\.jpg +[0-9.]+% \w+ +[0-9.]+% ", text)
    assert '"file"' not in text


def test_a_list_on_standard_input_is_read_as_it_arrives() -> None:
    process = subprocess.Popen([*COMMAND, "-"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    printed, _ = process.communicate("\n".join([str(PHOTOS / "cat.jpg"), "none.jpg"]), timeout=60)
    assert process.returncode == 1
    assert [record.get("status", 200) for record in records(printed)] == [200, 404]


def test_a_record_is_printed_as_soon_as_it_is_ready() -> None:
    command = [*COMMAND, "-"]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        for path in (PHOTOS / "cat.jpg", PHOTOS / "coffee.jpg"):
            process.stdin.write(f"{path}\n".encode())
            process.stdin.flush()
            assert select.select([process.stdout], [], [], 60)[0]
            assert json.loads(process.stdout.readline())["file"] == str(path)
        process.send_signal(signal.SIGTERM)  # while it waits for more of the list
        assert process.wait(60) == 128 + signal.SIGTERM


def test_a_list_may_have_names_that_are_not_text_and_nul_separators(tmp_path: Path) -> None:
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/\xff\n.jpg")
    Path(odd).symlink_to(PHOTOS / "cat.jpg")
    for paths, end in (([odd, "none.jpg"], "\0"), ([odd.replace("\n", ""), "none.jpg"], "\n")):
        _, printed, error = classify(
            "-", stdin="".join(path + end for path in paths), environment={"LC_ALL": "C.UTF-8"}
        )
        assert [record["file"] for record in records(printed)] == paths, error
    assert list(parse_file_list([b"a\nb\n", b"c\0d"])) == ["a", "b", "c", "d"]


def test_input_without_separators_is_refused_early() -> None:
    chunks = iter([b"a" * 1000] * 1000)
    with pytest.raises(ConfigError, match="standard input: a name of more than 65536 bytes"):
        list(parse_file_list(chunks))
    assert sum(1 for _ in chunks) > 900
    status, _, error = classify("-", stdin="none.jpg\n" + "\udcff" * 200_000)
    assert (status, len(error.splitlines())) == (2, 2), error
    assert error.startswith(f"{MODEL}serve: standard input: a name of more than 65536 bytes; - reads a list of files")


def test_a_long_list_takes_linear_time() -> None:
    """The worst cases: one name per chunk, names of the greatest length, single bytes."""
    started = time.monotonic()
    assert sum(1 for _ in parse_file_list([b"a" * 60_000 + b"\n"] * 300)) == 300
    assert sum(1 for _ in parse_file_list([b"a\n" * 30_000] * 30)) == 900_000
    assert sum(1 for _ in parse_file_list([b"a"] * 60_000)) == 1
    assert sum(1 for _ in parse_file_list([b"\n", *[b"a"] * 30_000, b"\0" * 30_000])) == 1
    assert time.monotonic() - started < 20


def test_a_name_that_is_too_long_for_the_system_is_its_own_record() -> None:
    status, printed, _ = classify("-", stdin="a" * 60_000 + f"\n{PHOTOS / 'cat.jpg'}\n")
    assert (status, [record.get("status", 200) for record in records(printed)]) == (1, [404, 200])
    assert records(printed)[0]["detail"] == "The file cannot be read: file name too long."


def test_a_byte_order_mark_before_a_list_is_not_part_of_its_first_name() -> None:
    for chunks in ([b"\xef\xbb\xbfa\nb\n"], [b"\xef", b"\xbb\xbf", b"a\nb"], [b"\xef\xbb\xbfa\0b\0"]):
        assert list(parse_file_list(chunks)) == ["a", "b"]
    assert list(parse_file_list([b"\xef\xbb\xbf"])) == []
    assert list(parse_file_list([])) == []


def test_an_output_inside_the_folder_is_not_classified(tree: Path) -> None:
    output = tree / "a" / "0.jsonl"
    for arguments in ([], ["--resume"]):
        status, _, summary = classify(tree / "a", "--output", output, *arguments)
        assert status == 0, summary
        assert len(records(output.read_text())) == 3, summary
    with (tree / "a" / "00").open("w") as file:
        subprocess.run([*COMMAND, str(tree / "a" / "*0*")], cwd=ROOT, stdout=file, check=False)
    found = [Path(record["file"]).name for record in records((tree / "a" / "00").read_text())]
    assert found == ["0.jsonl", "10.png"]


def test_an_empty_file_is_reported_without_advice_for_http(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    status, printed, _ = classify(tmp_path)
    assert (status, records(printed)[0]["detail"]) == (1, "The file is empty.")


def test_a_folder_without_files_is_reported(tmp_path: Path) -> None:
    assert classify(tmp_path) == (0, "", f"{MODEL}no files found\n")


def test_the_format_follows_the_output_suffix(tmp_path: Path) -> None:
    odd = tmp_path / "a\rb.jpg"
    odd.symlink_to(PHOTOS / "cat.jpg")
    for suffix, begins in ((".csv", "file,error,"), (".jsonl", '{"file": '), (".txt", '{"file": ')):
        output = (tmp_path / "output").with_suffix(suffix)
        assert classify(odd, "--output", output)[0] == 0
        assert output.read_text().startswith(begins)
        status, _, summary = classify(odd, "--output", output, "--resume")
        assert (status, "1 from the earlier run" in summary) == (0, True), summary


def test_only_a_few_files_are_read_ahead(classifier: Classifier) -> None:
    asked = 0

    def endless() -> Any:
        nonlocal asked
        while True:
            asked += 1
            yield str(PHOTOS / "cat.jpg")

    source = classify_files(classifier, endless(), 1, 2, 10**8)
    for _ in range(20):
        next(source)
    source.close()
    assert asked <= 20 + 2 * 8


def test_a_defect_is_its_own_files_problem(classifier: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Classifier.open

    def broken(self: Classifier, data: bytes, *arguments: Any) -> Any:
        if data.startswith(b"\x89PNG"):
            raise ZeroDivisionError
        return original(self, data, *arguments)

    monkeypatch.setattr(Classifier, "open", broken)
    paths = [str(PHOTOS / "cat.jpg"), str(PICTURES / "rgb.png"), str(PHOTOS / "cat.jpg")]
    found = list(classify_files(classifier, paths, 1, 2, 10**8))
    assert [record.get("status", 200) for record in found] == [200, 500, 200]


def test_evaluation_takes_the_classes_from_file_and_folder_names(tmp_path: Path) -> None:
    def record(path: str, *ids: str) -> dict[str, Any]:
        top = [{"imagenet_id": each, "label": each.upper(), "probability": 0.1} for each in ids]
        return {"file": path, "top_k": top}

    first, second = "n00000001", "n00000002"
    rest = [Label(f"n0000001{number}", str(number)) for number in range(4)]
    evaluation = Evaluation([Label(first, "cat"), Label(second, "never predicted"), *rest])
    evaluation.add(record(f"x/{first}_a.jpg", first, second))
    evaluation.add(record(f"x/{first}/b.jpg", second, first))
    evaluation.add(record(f"{second}/c.jpg", first))
    evaluation.add({"file": f"{second}/d.jpg", "status": 422, "detail": ""})
    evaluation.add(record("x/e.jpg", first))
    report = evaluation.report()
    assert report[0] == "top-1 25.00%, top-5 50.00% of 4 files in 2 classes"
    assert report[1:3] == ["1 of them with problems, counted as wrong", "1 more without a WordNet id, left out"]
    assert [line.split()[0] for line in report[4:]] == [second, first]
    assert "never predicted" in report[4]
    assert "0 of 2 right" in report[4]
    assert wordnet_id("n0000000123/x.jpg") is None
    assert wordnet_id(f"{second}/{first}/any/x.jpg") == first


def test_evaluation_is_printed_at_the_end_and_leaves_records_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "n02124075"
    folder.mkdir()
    (folder / "cat.jpg").symlink_to(PHOTOS / "cat.jpg")
    status, printed, error = classify(folder, "--evaluate", "--top-k", 2)
    assert status == 0
    assert len(records(printed)[0]["top_k"]) == 2
    assert "top-1 0.00%, top-5 0.00% of 1 files in 1 classes" in error
    assert "n02124075 Egyptian_cat " in error
    monkeypatch.chdir(folder)
    assert wordnet_id("cat.jpg") == "n02124075"
    status, _, error = classify(folder, "--evaluate", "--output", tmp_path / "output", "--resume")
    assert (status, error) == (2, "serve: --evaluate counts only what this run classifies; leave out --resume\n")


def test_an_unknown_command_lists_the_commands() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "serve", "clasify", "x"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr == (
        "serve: unknown command 'clasify'; the commands are serve, classify, autotune, config, health; without one the "
        "server starts\n"
    )
