"""Runs the commands in the documents. A mark above a block says which other test runs it, or why none does."""

import functools
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import documents
from tests.documents import DOCUMENTS, Command, agrees, blocks_without_language, commands_in, inline_commands, run
from tests.make_process import fresh_tree
from tests.server_process import ROOT, running_server

COMMANDS = [command for document in DOCUMENTS for command in commands_in(document)]
RUN_HERE = sorted({command.text for command in COMMANDS if not command.mark})
NOT_RUN_HERE = sorted(
    {command.text for command in COMMANDS if command.mark}
    | {text for document in DOCUMENTS for text in inline_commands(document)}
)
MODEL = "efficientnet_lite0"  # part of the repository


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project, which the commands may write to."""
    return fresh_tree(tmp_path_factory.mktemp("documents") / "clone")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running_server(sys.executable, "--model", MODEL, "--log-format", "json") as server:
        yield server.url


@pytest.mark.parametrize("text", RUN_HERE)
def test_a_command_works_and_prints_what_its_documents_show(text: str, tree: Path, url: str) -> None:
    done = run(text, tree, Path(sys.executable), url, MODEL)
    for command in COMMANDS:
        if command.text == text and not command.mark:
            assert done.returncode == 0, f"{command.place}: {done.stderr}"
            assert not command.shown or agrees(command.shown, done), f"{command.place}: {done.stdout}"


def test_a_test_that_a_document_names_exists() -> None:
    for command in COMMANDS:
        if command.mark == "run by":
            file, _, name = command.note.partition("::")
            assert (ROOT / file).exists(), f"{command.place}: there is no {file}"
            assert not name or f"\ndef {name}(" in (ROOT / file).read_text(), f"{command.place}: no {name} in {file}"


@pytest.mark.parametrize("text", NOT_RUN_HERE)
def test_a_command_that_is_not_run_here_names_existing_targets_and_flags(text: str) -> None:
    """Checks targets and variables of make, and files, modules and flags of Python."""
    words = re.sub(r"\s#.*", "", text).replace("'", "").replace('"', "").split()
    while re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        del words[0]
    if words[0] == "make":
        makefile = (ROOT / "Makefile").read_text()
        for word in words[1:]:
            name = word.partition("=")[0]
            pattern = rf"^{name} *\??=" if "=" in word else rf"^{name}:"
            assert word.startswith("-") or re.search(pattern, makefile, re.MULTILINE), f"make knows no {word}"
    elif words[0].rpartition("/")[2] == "python":
        program = words[2].replace(".", "/") if words[1] == "-m" else words[1]
        if program == "pytest":
            program = words[-1]
        assert (ROOT / program).is_dir() or (ROOT / program).with_suffix(".py").is_file(), f"there is no {program}"
        for flag in [word.partition("=")[0] for word in words if word.startswith("--")]:
            assert f'"{flag}"' in source_of(program.partition("/")[0]) or f" {flag} " in help_of_serve(), flag


@functools.cache
def source_of(folder: str) -> str:
    return "".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / folder).rglob("*.py")))


@functools.cache
def help_of_serve() -> str:
    command = [sys.executable, "-m", "serve", "--help"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_code_block_names_its_language(document: Path) -> None:
    assert blocks_without_language(document) == []


def test_there_are_commands() -> None:
    assert len(RUN_HERE) >= 3
    assert any(command.shown for command in COMMANDS if not command.mark)


EXAMPLE = """\
# Title

```sh
make serve
curl \\
  localhost:5000   # the server
```

```json
{"label": "cat", "top_k": [1]}
```

- In a list:

  <!-- not run: takes an hour -->
  ```sh
  make hostile
  ```

<!-- run by: tests/serve/test_x.py -->
```console
$ echo a
a
b
$ true
```

```
make nothing
```

<!-- figures: latency -->
```
ours 1
```
<!-- end -->
"""


def test_commands_are_found_with_their_marks_and_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "ROOT", tmp_path)
    path = tmp_path / "a.md"
    path.write_text(EXAMPLE)
    assert list(commands_in(path)) == [
        Command("a.md:4", "make serve"),
        Command("a.md:4", "curl \\\n  localhost:5000   # the server", '{"label": "cat", "top_k": [1]}\n'),
        Command("a.md:17", "make hostile", "", "not run", "takes an hour"),
        Command("a.md:22", "echo a", "a\nb\n", "run by", "tests/serve/test_x.py"),
        Command("a.md:22", "true", "", "run by", "tests/serve/test_x.py"),
    ]
    assert blocks_without_language(path) == ["a.md:28"]


@pytest.mark.parametrize(
    ("shown", "printed", "agreement"),
    [
        ('{"label": "cat", "probability": 0.9}', '{"label": "cat", "probability": 0.90001}', "exact"),
        ('{"label": "cat", "status": 415}', '{"label": "dog", "status": 413}', "with another model"),
        ('{"label": "cat", "status": 415}', '{"label": "dog"}', "none"),
        ('{"top_k": [{"label": "cat"}]}', '{"top_k": []}', "none"),
        ('{"detail": "no file"}', '{"detail": "a file"}', "none"),
        ("a.jpg   69.6% cat\n3 files in 0.0 s\n", "a.jpg 69.6% cat\n3 files in 0.2 s\n", "exact"),
        ("a.jpg   69.6% cat\n3 files in 0.0 s\n", "a.jpg 1.2% dog\n3 files in 0.2 s\n", "with another model"),
        ("a.jpg   69.6% cat\n", "b.jpg 69.6% cat\n", "none"),
    ],
)
def test_output_is_compared_with_the_document(shown: str, printed: str, agreement: str) -> None:
    done = subprocess.CompletedProcess("", 0, printed, "")
    assert agrees(shown, done) is (agreement != "none")
    assert agrees(shown, done, same_model=True) is (agreement == "exact")


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 135
