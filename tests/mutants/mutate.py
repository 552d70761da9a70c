"""Finds the mutants of a Python source. Each is one small change, of the kind that a careless maintainer makes."""

import ast
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Final

_COMPARISONS: Final = {
    ast.Lt: ("<", ("<=", ">")),
    ast.LtE: ("<=", ("<", ">=")),
    ast.Gt: (">", (">=", "<")),
    ast.GtE: (">=", (">", "<=")),
    ast.Eq: ("==", ("!=",)),
    ast.NotEq: ("!=", ("==",)),
    ast.Is: ("is", ("is not",)),
    ast.IsNot: (r"is\s+not", ("is",)),
    ast.In: ("in", ("not in",)),
    ast.NotIn: (r"not\s+in", ("in",)),
}
_ARITHMETIC: Final = {
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "/"),
    ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "*"),
    ast.Mod: ("%", "*"),
    ast.Pow: ("**", "*"),
    ast.LShift: ("<<", ">>"),
    ast.RShift: (">>", "<<"),
    ast.BitAnd: ("&", "|"),
    ast.BitOr: ("|", "&"),
    ast.BitXor: ("^", "|"),
}
_NAMES: Final = {
    "all": "any",
    "any": "all",
    "append": "appendleft",
    "appendleft": "append",
    "argmax": "argmin",
    "argmin": "argmax",
    "ceil": "floor",
    "endswith": "startswith",
    "floor": "ceil",
    "max": "min",
    "maximum": "minimum",
    "median": "min",
    "min": "max",
    "minimum": "maximum",
    "pop": "popleft",
    "popleft": "pop",
    "rint": "floor",
    "sorted": "list",
    "startswith": "endswith",
}
_OF_DEQUES: Final = {"append", "appendleft", "pop", "popleft"}
_BUILTINS: Final = {"median"}  # whose module has no `min`
# Keywords whose removal no test can detect: the locale's encoding is UTF-8, and `strict` guards against the impossible.
_UNSEEN: Final = {"encoding", "strict"}
_PLAIN: Final = (ast.Name, ast.Attribute, ast.Call, ast.Subscript, ast.NamedExpr)


@dataclass(frozen=True)
class Mutant:
    """One change to a source.

    Attributes:
        file: The source's path, relative to the project.
        function: Qualified name of the function or class that contains the change, "" at module level.
        line: Number of the changed line.
        start: Offset in bytes of the text to replace.
        end: Offset in bytes of its end.
        text: The replacement.
    """

    file: str
    function: str
    line: int
    start: int
    end: int
    text: str

    def apply(self, source: str) -> str:
        """Returns the source with this change."""
        raw = source.encode()
        return (raw[: self.start] + self.text.encode() + raw[self.end :]).decode()

    def changed_lines(self, source: str) -> tuple[str, str]:
        """Returns the changed lines before and after, without indentation.

        They identify a mutant in equivalents.toml, where line numbers would go out of date.
        """
        before, after = source.splitlines(), self.apply(source).splitlines()
        blocks = [code[1:] for code in SequenceMatcher(None, before, after, False).get_opcodes() if code[0] != "equal"]
        was = [line.strip() for low, high, _, _ in blocks for line in before[low:high]]
        becomes = [line.strip() for _, _, low, high in blocks for line in after[low:high]]
        return "\n".join(was), "\n".join(becomes)


def mutants_of(source: str, file: str, functions: Sequence[str] = ()) -> list[Mutant]:
    """Returns all mutants that compile, in order.

    Args:
        source: The source's text.
        file: Its path, relative to the project.
        functions: Qualified names of functions and classes: only their mutants are returned. Empty for all.
    """
    found: dict[tuple[int, int, str], Mutant] = {}
    for mutant in _Finder(source, file).run():
        inside = any(mutant.function == name or mutant.function.startswith(f"{name}.") for name in functions)
        if (inside or not functions) and _compiles(mutant.apply(source)):
            found.setdefault((mutant.start, mutant.end, mutant.text), mutant)
    return sorted(found.values(), key=lambda mutant: (mutant.start, mutant.end))


def _compiles(source: str) -> bool:
    try:
        compile(source, "mutant", "exec")
    except SyntaxError:
        return False
    return True


class _Finder:
    def __init__(self, source: str, file: str) -> None:
        self._raw = source.encode()
        self._tree = ast.parse(source)
        self._file = file
        self._lines = [0]
        for line in self._raw.splitlines(keepends=True):
            self._lines.append(self._lines[-1] + len(line))

    def run(self) -> Iterator[Mutant]:
        yield from self._visit(self._tree, "")

    def _visit(self, node: ast.AST, function: str) -> Iterator[Mutant]:
        if isinstance(node, ast.JoinedStr) or _is_main_guard(
            node
        ):  # before Python 3.12 nodes in f-strings have no position
            return
        if isinstance(node, ast.keyword) and node.arg in _UNSEEN:
            return
        for start, end, text in self._changes(node):
            line = self._raw.count(b"\n", 0, start) + 1
            yield Mutant(self._file, function, line, start, end, text)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            function = f"{function}.{node.name}" if function else node.name
        for field, value in ast.iter_fields(node):
            if field in {"annotation", "returns", "decorator_list", "type_params"}:
                continue
            if field in {"bases", "keywords"} and isinstance(node, ast.ClassDef):
                continue
            for child in value if isinstance(value, list) else [value]:
                # Negative numbers and indexes are mutated as a whole: -1 → -2 and [0] → [-1] often change nothing.
                single = isinstance(node, ast.UnaryOp | ast.Subscript) and isinstance(child, ast.Constant)
                if isinstance(child, ast.AST) and not single:
                    yield from self._visit(child, function)

    def _changes(self, node: ast.AST) -> Iterator[tuple[int, int, str]]:
        """Yields start, end and replacement of each change at this node itself."""
        match node:
            case ast.Compare():
                operands = [node.left, *node.comparators]
                for left, right, operator in zip(operands, operands[1:], node.ops, strict=False):
                    token, others = _COMPARISONS[type(operator)]
                    for other in others:
                        yield from self._between(left, right, token, other)
            case ast.BinOp() if type(node.op) in _ARITHMETIC:
                token, other = _ARITHMETIC[type(node.op)]
                yield from self._between(node.left, node.right, re.escape(token), other)
            case ast.AugAssign() if type(node.op) in _ARITHMETIC:
                token, other = _ARITHMETIC[type(node.op)]
                yield from self._between(node.target, node.value, re.escape(token) + "=", f"{other}=")
                yield from self._between(node.target, node.value, re.escape(token) + "=", "=")
            case ast.BoolOp():
                token, other = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
                for left, right in zip(node.values, node.values[1:], strict=False):
                    yield from self._between(left, right, rf"\b{token}\b", other)
            case ast.UnaryOp(op=ast.Not()):
                yield self._start(node), self._start(node) + len("not"), ""
            case ast.UnaryOp(op=ast.USub()):
                yield self._start(node), self._start(node) + len("-"), ""
                if isinstance(node.operand, ast.Constant) and isinstance(value := node.operand.value, int | float):
                    yield *self._span(node), repr(1 - value)
            case ast.Subscript(slice=ast.Constant(value=int(value))):
                yield *self._span(node.slice), repr(value + 1)
            case ast.Constant(value=bool()):
                yield *self._span(node), repr(not node.value)
            case ast.Constant(value=int() | float() as value):
                yield *self._span(node), repr(value + 1)
                yield *self._span(node), repr(value - 1)
            case ast.Return(value=ast.expr() as value) if not isinstance(value, ast.Constant):
                yield *self._span(value), "None"
            case ast.Expr(value=ast.Call() | ast.Await()) | ast.Raise():
                yield *self._span(node), "pass"
            case ast.Break():
                yield *self._span(node), "continue"
            case ast.Continue():
                yield *self._span(node), "break"
            case ast.Call() if node.keywords:
                yield from self._without_keywords(node)
            case ast.If(test=test) | ast.While(test=test) | ast.IfExp(test=test) if isinstance(test, _PLAIN):
                yield *self._span(test), f"not ({self._text(test)})"
            case ast.comprehension():
                for test in node.ifs:
                    if isinstance(test, _PLAIN):
                        yield *self._span(test), f"not ({self._text(test)})"
            case ast.Name(id=name) if name in _NAMES and name not in _OF_DEQUES:
                yield *self._span(node), _NAMES[name]
            case ast.Attribute(attr=name) if name in _BUILTINS:
                yield *self._span(node), _NAMES[name]
            case ast.Attribute(attr=name) if name in _NAMES and name != "sorted":
                end = self._span(node)[1]
                yield end - len(name), end, _NAMES[name]

    def _without_keywords(self, call: ast.Call) -> Iterator[tuple[int, int, str]]:
        arguments = sorted((self._span(each) for each in [*call.args, *call.keywords]), key=lambda span: span[0])
        for keyword in (each for each in call.keywords if each.arg not in _UNSEEN):
            start, end = self._span(keyword)
            position = arguments.index((start, end))
            if position:
                yield arguments[position - 1][1], end, ""
            else:
                comma = re.match(rb"\s*,\s*", self._raw[end:])
                yield start, end + (len(comma[0]) if comma else 0), ""

    def _between(self, left: ast.AST, right: ast.AST, token: str, other: str) -> Iterator[tuple[int, int, str]]:
        low, high = self._span(left)[1], self._start(right)
        found = re.search(token.encode(), self._raw[low:high])
        if found:
            yield low + found.start(), low + found.end(), other

    def _start(self, node: ast.AST) -> int:
        return self._lines[node.lineno - 1] + node.col_offset  # type: ignore[attr-defined]

    def _span(self, node: ast.AST) -> tuple[int, int]:
        return self._start(node), self._lines[node.end_lineno - 1] + node.end_col_offset  # type: ignore[attr-defined]

    def _text(self, node: ast.AST) -> str:
        start, end = self._span(node)
        return self._raw[start:end].decode()


def _is_main_guard(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "__name__" in ast.dump(node.test)
