"""CSV from `classify` in spreadsheets: no cell is a formula, and the text can be had back."""

import csv
import io
from pathlib import Path
from typing import Any

import pytest

from serve.errors import OutputError
from serve.files.records import RecordFormat, read_existing
from tests.serve.conftest import PHOTOS
from tests.serve.test_classify import classify

CAT = PHOTOS / "cat.jpg"
FORMULAS = [
    "=1+1.jpg",
    "+1.jpg",
    "-1.jpg",
    "@SUM(A1).jpg",
    "\t=1.jpg",
    "\r=1.jpg",
    "\n=1.jpg",
    " =1.jpg",
    "\u00a0=1.jpg",
    "＝1.jpg",
    "＋1.jpg",
    "－1.jpg",
    "＠1.jpg",
    "﹢1.jpg",
    "−1.jpg",
    "=cmd|' /C calc'!A0",
]
CSV = RecordFormat("csv", 1, "tiny")
HARMLESS = ["a=b.jpg", "photos/-1.jpg", "./=1.jpg", "é.jpg", "\udcff.jpg", "１.jpg"]
QUOTES = ["'quoted'.jpg", "'=1.jpg", "''.jpg", "'"]


def prediction(path: str, label: str = "cat") -> dict[str, Any]:
    entry = {"imagenet_id": "n1", "label": label, "probability": 0.5}
    return {"file": path, **entry, "top_k": [entry], "model": "tiny"}


def written(*found: dict[str, Any]) -> str:
    return CSV.header + "".join(map(CSV.line, found))


def rows(text: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text, newline="")))[1:]


@pytest.mark.parametrize("name", FORMULAS)
def test_a_formula_gets_an_apostrophe_wherever_it_stands(name: str) -> None:
    text = written(prediction(name), prediction("x", name), {"file": "x", "status": 404, "detail": name})
    first, second, third = rows(text)
    assert (first[0], second[3], third[1]) == (f"'{name}",) * 3


@pytest.mark.parametrize("name", HARMLESS)
def test_other_text_is_written_as_it_is(name: str) -> None:
    assert rows(written(prediction(name)))[0][0] == name


@pytest.mark.parametrize("name", FORMULAS + HARMLESS + QUOTES)
def test_reading_back_gives_the_same_record(tmp_path: Path, name: str) -> None:
    path = tmp_path / "output.csv"
    seen: list[dict[str, Any]] = []
    records = [prediction(name, "=label"), {"file": name, "status": 404, "detail": "no"}]
    path.write_bytes(written(*records).encode("utf-8", "surrogateescape"))
    with path.open("rb") as file:
        found = read_existing(file, path, CSV, seen.append)
    assert seen == [records[0], {"file": name, "status": None, "detail": "no", "model": "tiny"}]
    assert (found.count, found.problems, found.last_file, found.end) == (2, 1, name, path.stat().st_size)


@pytest.mark.parametrize("separator", [";", "\t"])
def test_a_name_cannot_begin_a_cell_where_another_separator_is_usual(separator: str) -> None:
    for name in (f"a{separator}=1+1.jpg", f'a"{separator}=1+1.jpg'):
        found = list(csv.reader(io.StringIO(written(prediction(name))), delimiter=separator))
        assert not any(cell.startswith("=") for row in found for cell in row)


@pytest.mark.parametrize("there", [True, False])
def test_a_run_with_such_names_is_resumed(tmp_path: Path, there: bool) -> None:
    output, names = tmp_path / "output.csv", [name.replace("/", "_") for name in [*FORMULAS, *QUOTES]]
    if there:
        names = [str(tmp_path / name) for name in names]
        for name in names:
            Path(name).symlink_to(CAT)
    listed = "\0".join(names)
    assert classify("-", "--output", output, stdin=listed)[0] == (0 if there else 1)
    content = output.read_bytes()
    assert [row[0].removeprefix("'") if not there else row[0] for row in rows(content.decode())] == names
    output.write_bytes(content[: len(content) // 2])
    status, _, error = classify("-", "--output", output, "--resume", stdin=listed)
    assert (status, output.read_bytes()) == (0 if there else 1, content), error


def test_csv_of_another_model_is_not_continued(tmp_path: Path) -> None:
    output = tmp_path / "output.csv"
    assert classify(CAT, "none.jpg", "--output", output)[0] == 1
    for changed, words in (
        (output.read_text().replace(",tiny\n", ",huge\n"), "record 1 is from the model huge, not tiny"),
        (output.read_text().replace(",,tiny\n", ",,huge\n"), "record 2 is from the model huge, not tiny"),
    ):
        output.write_text(changed)
        status, _, error = classify(CAT, "none.jpg", "--output", output, "--resume")
        assert (status, error) == (2, f"serve: output file {output}: {words}; choose another --output\n")
        assert output.read_text() == changed
        output.write_text(changed.replace("huge", "tiny"))


def test_csv_of_an_earlier_version_is_not_continued(tmp_path: Path) -> None:
    output = tmp_path / "output.csv"
    assert classify(CAT, "--output", output, "--top-k", 2)[0] == 0
    before = "".join(line.rpartition(",")[0] + "\n" for line in output.read_text().splitlines())
    output.write_text(before)
    status, _, error = classify(CAT, "--output", output, "--top-k", 2, "--resume")
    assert (status, output.read_text()) == (2, before)
    assert error == (
        f"serve: output file {output} is from an earlier version, which did not write the model; choose another "
        "--output\n"
    )


def test_a_header_that_is_cut_is_completed(tmp_path: Path) -> None:
    path = tmp_path / "output.csv"
    header = CSV.header
    path.write_text(header[:-3])
    with path.open("rb") as file:
        assert read_existing(file, path, CSV).count == 0
    path.write_text(header.replace("_1", "_2"))
    with (
        path.open("rb") as file,
        pytest.raises(OutputError, match="has the columns of other labels or of another --top-k; choose"),
    ):
        read_existing(file, path, CSV)


@pytest.mark.parametrize("form", ["csv", "jsonl"])
@pytest.mark.parametrize("value", ["NaN", "Infinity", "-0.1", "1.1"])
def test_a_probability_that_is_none_is_not_read_back(tmp_path: Path, form: str, value: str) -> None:
    path = tmp_path / "output"
    written_as = RecordFormat(form, 1, "tiny")
    path.write_text(written_as.header + written_as.line(prediction("x")).replace("0.5", value))
    with path.open("rb") as file, pytest.raises(OutputError, match=f"record 1 is not {form}; choose another --output"):
        read_existing(file, path, written_as)
