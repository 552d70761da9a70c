"""Checks that everything named in `parts.py` and `equivalents.toml` exists."""

import ast
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.mutants.mutate import Mutant, mutants_of
from tests.mutants.parts import Part
from tests.mutants.run import Equivalent


def faults_of(parts: Sequence[Part], equivalents: Sequence[Equivalent], root: Path) -> list[str]:
    """Returns one line for each file, function, test or mutant that is named and does not exist below `root`."""
    return [*_faults_of_parts(parts, root), *_faults_of_equivalents(parts, equivalents, root)]


def _faults_of_parts(parts: Sequence[Part], root: Path) -> Iterator[str]:
    for part in parts:
        where = f"parts.py, {part.name}:"
        for test in part.tests:
            file, *names = test.split("::")
            if not (root / file).is_file():
                yield f"{where} there is no {file}"
            elif missing := set(names) - _names_in(root / file):
                yield f"{where} {file} has no {', '.join(sorted(missing))}"
        for file, functions in part.sources.items():
            if not (root / file).is_file():
                yield f"{where} there is no {file}"
                continue
            names_there = _names_in(root / file)
            source = (root / file).read_text(encoding="utf-8")
            for name in functions:
                if name not in names_there:
                    yield f"{where} {file} has no {name}"
                elif not _mutants_in(source, file, name):
                    yield f"{where} {name} in {file} has no mutants"


def _faults_of_equivalents(parts: Sequence[Part], equivalents: Sequence[Equivalent], root: Path) -> Iterator[str]:
    for entry in equivalents:
        where = f"equivalents.toml, {entry.file} {entry.function}, {entry.line!r}:"
        mutated = [part.sources[entry.file] for part in parts if entry.file in part.sources]
        path = root / entry.file
        if not path.is_file():
            yield f"{where} there is no {entry.file}"
        elif not mutated:
            yield f"{where} no part in parts.py has {entry.file}"
        elif not any(not names or any(_is_in(entry.function, name) for name in names) for names in mutated):
            yield f"{where} no part in parts.py has {entry.function}"
        elif entry.function and entry.function not in _names_in(path):
            yield f"{where} {entry.file} has no {entry.function}"
        elif not _is_mutant(entry, path.read_text(encoding="utf-8")):
            yield f"{where} no mutant makes this line {entry.becomes!r}"


def _is_mutant(entry: Equivalent, source: str) -> bool:
    lines = [line.strip() for line in source.splitlines()]
    first = entry.line.split("\n")[0]
    return any(
        mutant.changed_lines(source) == (entry.line, entry.becomes)
        for mutant in _mutants_in(source, entry.file, entry.function)
        # A keyword that is left out takes the comma before it along, from the line above.
        if mutant.function == entry.function and first in lines[mutant.line - 1 : mutant.line + 1]
    )


@functools.cache
def _mutants_in(source: str, file: str, function: str) -> list[Mutant]:
    return mutants_of(source, file, [function] if function else [])


def _is_in(function: str, name: str) -> bool:
    return function == name or function.startswith(f"{name}.")


def _names_in(path: Path) -> set[str]:
    """Returns the qualified names of a file's functions and classes."""

    def names(node: ast.AST, prefix: str) -> Iterator[str]:
        for child in ast.iter_child_nodes(node):
            inner = prefix
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                yield f"{prefix}{child.name}"
                inner = f"{prefix}{child.name}."
            yield from names(child, inner)

    return set(names(ast.parse(path.read_text(encoding="utf-8")), ""))
