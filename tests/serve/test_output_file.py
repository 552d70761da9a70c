"""The output of `classify`: locked for one run under any name; resuming files that were tampered with."""

import errno
import fcntl
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest

from serve.config.settings import ROOT
from serve.errors import OutputError
from serve.files.output_file import output_file
from serve.files.records import RecordFormat, read_existing
from tests.serve.conftest import PHOTOS
from tests.serve.test_classify import COMMAND, classify, records

CAT, COFFEE = PHOTOS / "cat.jpg", PHOTOS / "coffee.jpg"
PATIENCE = 60


@contextmanager
def run(*arguments: object) -> Iterator[tuple["subprocess.Popen[str]", IO[str]]]:
    """Starts a run that waits for more paths on standard input; yields it and its standard input."""
    command = [*COMMAND, "-", *map(str, arguments)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdin
            process.stdin.write(f"{CAT}\n")
            process.stdin.flush()
            yield process, process.stdin
        finally:
            process.kill()


def wait_for_a_record(output: Path) -> None:
    give_up = time.monotonic() + PATIENCE
    while not (output.exists() and output.read_bytes().endswith(b"\n")):
        assert time.monotonic() < give_up
        time.sleep(0.02)


def test_an_output_that_another_run_writes_to_is_refused_by_any_name_and_stays_whole(tmp_path: Path) -> None:
    output = tmp_path / "output"
    link, hard = tmp_path / "link", tmp_path / "hard"
    link.symlink_to("output")
    with run("--output", output) as (first, listed):
        wait_for_a_record(output)
        hard.hardlink_to(output)
        before = output.read_bytes()
        for name, arguments in ((output, []), (output, ["--resume"]), (link, ["--csv"]), (hard, ["--resume"])):
            status, printed, error = classify(COFFEE, "--output", name, *arguments)
            assert (status, printed) == (2, ""), error
            assert error == (
                f"serve: output file {name}: another run is writing to it, process {first.pid}; wait for its end, or "
                "choose another --output\n"
            )
        assert output.read_bytes() == before
        listed.write(f"{COFFEE}\n")
        listed.close()
        assert first.wait(PATIENCE) == 0
    assert [record["file"] for record in records(output.read_text())] == [str(CAT), str(COFFEE)]


@pytest.mark.parametrize("arguments", [[], ["--resume"], ["--csv", "--resume"]])
def test_one_of_two_simultaneous_runs_gets_the_output(tmp_path: Path, arguments: list[str]) -> None:
    output = tmp_path / "output"
    with run("--output", output, *arguments) as first, run("--output", output, *arguments) as second:
        give_up = time.monotonic() + PATIENCE
        while all(
            process.poll() is None for process, _ in (first, second)
        ):  # until one gives up; the lists have no end
            assert time.monotonic() < give_up, "both go on"
            time.sleep(0.02)
        (refused, _), (going, listed) = (first, second) if first[0].poll() is not None else (second, first)
        assert refused.returncode == 2
        assert refused.stderr
        assert f"another run is writing to it, process {going.pid};" in refused.stderr.read()
        listed.close()
        assert going.wait(PATIENCE) == 0
    assert len(output.read_text().splitlines()) == (2 if "--csv" in arguments else 1)


def test_a_killed_run_leaves_no_lock(tmp_path: Path) -> None:
    output = tmp_path / "output"
    with run("--output", output) as (process, _):
        wait_for_a_record(output)
        process.send_signal(signal.SIGKILL)
        process.wait(PATIENCE)
    status, _, summary = classify(CAT, COFFEE, "--output", output, "--resume")
    assert (status, "1 from the earlier run" in summary) == (0, True), summary


def test_the_error_omits_a_lock_holder_in_another_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock from another container holds, but is not listed in this one's /proc/locks."""
    path = tmp_path / "output"
    read_text = Path.read_text
    monkeypatch.setattr(
        Path, "read_text", lambda self, **how: "" if self == Path("/proc/locks") else read_text(self, **how)
    )
    with (
        output_file(path, resume=False),
        pytest.raises(OutputError, match="another run is writing to it; wait for its end"),
        output_file(path, resume=False),
    ):
        pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_written_to_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    def no_locks(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    path = tmp_path / "out\x1bput"
    with output_file(path, resume=False) as file:
        file.write("x")
    assert path.read_text() == "x"
    told = capsys.readouterr().err
    assert told.startswith(f"serve: output file {tmp_path}/out\\x1bput cannot be locked (")
    assert told.endswith("); make sure that no other run writes to it\n")


@pytest.mark.parametrize("device", ["/dev/null", "/dev/stdout"])
def test_devices_are_not_locked(device: str) -> None:
    with run("--output", device) as (first, listed):
        assert classify(CAT, "--output", device)[0] == 0
        listed.close()
        assert first.wait(PATIENCE) == 0


def test_a_pipe_can_be_written_but_not_resumed(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with subprocess.Popen([*COMMAND, str(CAT), "--output", str(pipe)], cwd=ROOT) as process:
        assert [record["file"] for record in records(pipe.read_text())] == [str(CAT)]
        assert process.wait(PATIENCE) == 0
    status, _, error = classify(CAT, "--output", pipe, "--resume")
    assert (status, error) == (2, f"serve: output file {pipe}: not a regular file, so it cannot be continued\n")


GOOD = (
    '{"file": "x", "imagenet_id": "n1", "label": "cat", "probability": 0.5, "model": "tiny", '
    '"top_k": [1, 2, 3, 4, 5]}\n'
)
LONG = 2**24 + 10
TAMPERED = {
    "depth": '{"file": "' + "x" + '", "top_k": ' + "[" * 100_000 + "\n",
    "depth within a record": '{"file": ' + "[" * 100_000 + "]" * 100_000 + "}\n",
    "digits": GOOD.replace("1,", "9" * 10_000 + ","),
    "no number": GOOD.replace('"tiny"', "NaN"),
    "a label that is no text": GOOD.replace('"cat"', "7"),
    "a probability that is no number": GOOD.replace("0.5", '"half"'),
    "no probability": GOOD.replace("probability", "share"),
    "kinds": '{"file": "x", "model": [], "top_k": 5}\n',
    "no object": '["file"]\n',
    "null": "null\n",
    "text": '"file"\n',
    "NULs": "\0" * 100 + "\n",
    "no UTF-8": "\udcff\udcfe\n",
    "length": '{"file": "' + "a" * LONG + '"}\n',
    "length without an end": '{"file": "' + "a" * (2 * LONG),
}


@pytest.mark.parametrize("what", TAMPERED)
def test_a_modified_jsonl_output_is_refused_unchanged(tmp_path: Path, what: str) -> None:
    refuse(tmp_path / "output", GOOD, TAMPERED[what], "jsonl")


def header() -> str:
    return RecordFormat("csv", 5, "tiny").header


@pytest.mark.parametrize(
    ("what", "row"),
    [
        ("a quote that is not closed", '"' + "a,b\n" * (LONG // 4)),
        ("quotes", '"' + '""' * (LONG // 2)),
        ("quotes and lines", '"' + '""\n' * (LONG // 3)),
        ("a field that is too long", "a" * 200_000 + "," * 16 + ",tiny\n"),
        ("NULs", "\0" * 100 + "\n"),
        ("too few columns", "a,b\n"),
        ("a probability that is no number", "a," + ",x,y,half" * 5 + ",tiny\n"),
        ("another model", "a,no" + "," * 15 + ",huge\n"),
        ("a quote in a field", 'a,"b"c' + "," * 15 + ",tiny\n"),
        ("length", "a" * LONG + "\n"),
    ],
)
def test_a_modified_csv_output_is_refused_unchanged(tmp_path: Path, what: str, row: str) -> None:
    refuse(tmp_path / "output", header() + "x,no," + "," * 14 + ",tiny\n", row, "csv")


def refuse(path: Path, good: str, bad: str, form: str) -> None:
    content = (good + bad).encode("utf-8", "surrogateescape")
    path.write_bytes(content)
    started = time.monotonic()
    with path.open("rb") as file, pytest.raises(OutputError, match="record 2 ") as found:
        read_existing(file, path, RecordFormat(form, 5, "tiny"))
    assert time.monotonic() - started < 10
    assert str(found.value).endswith("choose another --output")
    assert path.read_bytes() == content


def test_a_thousand_lines_within_quotes_are_one_record_read_in_a_moment(tmp_path: Path) -> None:
    path = tmp_path / "output"
    row = '"' + "line\n" * 20_000 + '",no' + "," * 16 + "tiny\n"
    path.write_text(header() + row * 10)
    started = time.monotonic()
    with path.open("rb") as file:
        found = read_existing(file, path, RecordFormat("csv", 5, "tiny"))
    assert (found.count, found.end) == (10, path.stat().st_size)
    assert time.monotonic() - started < 5


def test_a_modified_output_ends_the_command_with_status_2_and_one_line(tmp_path: Path) -> None:
    output = tmp_path / "output"
    output.write_text(TAMPERED["depth"])
    status, printed, error = classify(CAT, "--output", output, "--resume")
    assert (status, printed) == (2, "")
    assert error == f"serve: output file {output}: record 1 is not jsonl; choose another --output\n"


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_an_incomplete_record_is_cut_off_even_if_a_shorter_one_follows(tmp_path: Path, form: str) -> None:
    whole, output = tmp_path / f"whole.{form}", tmp_path / f"output.{form}"
    assert classify(CAT, COFFEE, "--output", whole, "--top-k", "1")[0] == 0
    lines = whole.read_bytes().splitlines(keepends=True)
    half = b'{"file": "' if form == "jsonl" else b"half"
    output.write_bytes(b"".join(lines[:-1]) + half + b"x" * 5000)
    assert classify(CAT, COFFEE, "--output", output, "--top-k", "1", "--resume")[0] == 0
    assert output.read_bytes() == whole.read_bytes()
