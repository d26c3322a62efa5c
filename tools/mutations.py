"""One-line semantic faults of a Python file: where they can be planted, and what the file then says."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

COMPARE = {
    ast.Lt: ("<", ("<=", ">")), ast.LtE: ("<=", ("<", ">")), ast.Gt: (">", (">=", "<")), ast.GtE: (">=", (">", "<")),
    ast.Eq: ("==", ("!=",)), ast.NotEq: ("!=", ("==",)), ast.Is: ("is", ("is not",)), ast.IsNot: ("is not", ("is",)),
    ast.In: ("in", ("not in",)), ast.NotIn: ("not in", ("in",)),
}  # fmt: skip
BINARY = {ast.Add: ("+", "-"), ast.Sub: ("-", "+"), ast.Mult: ("*", "/"), ast.Div: ("/", "*"),
          ast.FloorDiv: ("//", "/"), ast.Mod: ("%", "//"), ast.Pow: ("**", "*"), ast.BitAnd: ("&", "|")}  # fmt: skip
CALLS = {
    "min": "max", "max": "min", "any": "all", "all": "any", "sum": "mean", "mean": "sum",
    "floor": "ceil", "ceil": "floor", "sin": "cos", "cos": "sin",
    "exp": "expm1", "expm1": "exp", "log1p": "log", "cumsum": "cumprod", "softplus": "relu",
    "minimum": "maximum", "maximum": "minimum", "amax": "amin", "amin": "amax", "argmax": "argmin", "argmin": "argmax",
    "std": "var", "var": "std", "ones": "zeros", "zeros": "ones", "update": "difference_update", "sigmoid": "tanh",
    "sqrt": "square", "square": "sqrt", "lower": "upper", "sorted": "list", "append": "index",
}  # fmt: skip
DROPPED = {"detach", "clone", "abs", "clamp", "clip", "copy", "item_", "strip", "float", "double", "flip", "mul", "div"}
SILENT = {"print", "warn", "log", "info", "debug", "cast"}


@dataclass(frozen=True, slots=True)
class Mutant:
    """A file with one line changed."""

    path: Path
    line: int
    kind: str
    before: str
    after: str
    text: str
    scopes: tuple[tuple[int, int], ...]

    @property
    def key(self) -> tuple[str, str, str]:
        """What tells it from others, whatever its line number."""
        return self.path.as_posix(), self.before, self.after

    def described(self) -> dict[str, object]:
        """For a record."""
        return {
            "path": self.path.as_posix(),
            "line": self.line,
            "kind": self.kind,
            "before": self.before,
            "after": self.after,
        }

    def summary(self) -> str:
        """One line."""
        return f"{self.path}:{self.line} ({self.kind})  {self.before}  →  {self.after}"


def mutants_of(source: Path, path: Path) -> list[Mutant]:
    """Every mutant of a file, in order of lines."""
    text = (source / path).read_text("utf-8")
    lines = text.splitlines(keepends=True)
    tree = ast.parse(text)
    found = []
    for kind, line, start, end, new, scopes in _edits(tree, lines):
        old = lines[line - 1]
        raw = old.encode()
        changed = (raw[:start] + new.encode() + raw[end:]).decode()
        whole = "".join([*lines[: line - 1], changed, *lines[line:]])
        try:
            same = ast.dump(ast.parse(whole)) == ast.dump(tree)
        except SyntaxError:
            continue
        if not same:
            found.append(Mutant(path, line, kind, old.strip(), changed.strip(), whole, scopes))
    return found


def _edits(tree: ast.Module, lines: list[str]) -> Iterator[tuple[str, int, int, int, str, tuple[tuple[int, int], ...]]]:
    skipped = _skipped(tree)

    def walk(node: ast.AST, scopes: tuple[tuple[int, int], ...]) -> Iterator[tuple]:
        if id(node) in skipped:
            return
        if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef)):
            scopes = ((node.lineno, node.end_lineno or node.lineno), *scopes)
        for kind, line, start, end, new in _of(node, lines):
            yield kind, line, start, end, new, scopes
        for child in ast.iter_child_nodes(node):
            yield from walk(child, scopes)

    yield from walk(tree, ())


def _skipped(tree: ast.Module) -> set[int]:
    """Nodes under which nothing is changed: annotations, decorators, messages, docstrings, imports, assertions."""
    out: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            out.update(id(a.annotation) for a in ast.walk(node.args) if isinstance(a, ast.arg) and a.annotation)
            out.update(map(id, filter(None, [node.returns])))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            out.update(map(id, node.decorator_list))
            if node.name in ("__repr__", "__str__", "describe"):
                out.add(id(node))
        if isinstance(node, ast.AnnAssign):
            out.add(id(node.annotation))
        if isinstance(node, (ast.Raise, ast.Assert, ast.JoinedStr, ast.Import, ast.ImportFrom)):
            out.add(id(node))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            out.add(id(node))
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            out.add(id(node))
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            out.add(id(node))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("TypeVar", "cast"):
            out.add(id(node))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "zip":
            # strict=True guards against a fault elsewhere: where lengths are equal nothing changes without it.
            out.update(id(k.value) for k in node.keywords if k.arg == "strict")
    return out


def _between(lines: list[str], left: ast.expr, right: ast.expr, old: str, new: str) -> tuple[int, int, int, str] | None:
    """The operator between two operands on one line."""
    if left.end_lineno != right.lineno or left.end_col_offset is None:
        return None
    gap = lines[right.lineno - 1].encode()[left.end_col_offset : right.col_offset].decode()
    at = gap.find(old)
    if at < 0:
        return None
    start = left.end_col_offset + at
    return right.lineno, start, start + len(old), new


def _whole(node: ast.expr | ast.stmt, new: str) -> tuple[int, int, int, str] | None:
    if node.lineno != node.end_lineno or node.end_col_offset is None:
        return None
    return node.lineno, node.col_offset, node.end_col_offset, new


def _of(node: ast.AST, lines: list[str]) -> Iterator[tuple[str, int, int, int, str]]:
    for kind, edit in _changes(node, lines):
        if edit is not None:
            yield kind, *edit


def _segment(lines: list[str], node: ast.expr) -> str:
    return lines[node.lineno - 1].encode()[node.col_offset : node.end_col_offset].decode()


def _changes(node: ast.AST, lines: list[str]) -> Iterator[tuple[str, tuple[int, int, int, str] | None]]:
    match node:
        case ast.Compare(left=left, ops=[op], comparators=[right]):
            old, news = COMPARE[type(op)]
            for new in news:
                yield "comparison", _between(lines, left, right, old, new)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in BINARY:
            yield "arithmetic", _between(lines, left, right, *BINARY[type(op)])
        case ast.BoolOp(op=op, values=values):
            pair = ("and", "or") if isinstance(op, ast.And) else ("or", "and")
            yield "and/or", _between(lines, values[0], values[1], *pair)
        case ast.UnaryOp(op=ast.USub() | ast.Not(), operand=operand) if (
            operand.lineno == operand.end_lineno == node.lineno
        ):
            yield "sign or not", _whole(node, f"({_segment(lines, operand)})")
        case ast.Constant(value=bool(value)):
            yield "constant", _whole(node, str(not value))
        case ast.Constant(value=int(value)):
            yield "constant", _whole(node, str(value + 1))
            if value > 1:
                yield "constant", _whole(node, str(value - 1))
        case ast.Constant(value=float(value)):
            yield "constant", _whole(node, repr(value * 1.5 if value else 0.25))
        case ast.IfExp(test=test) if test.lineno == test.end_lineno:
            yield "condition", _whole(test, f"(not ({_segment(lines, test)}))")
        case ast.If(test=test) | ast.While(test=test) if test.lineno == test.end_lineno and isinstance(node, ast.If):
            yield "condition", _whole(test, f"(not ({_segment(lines, test)}))")
        case ast.comprehension(ifs=[test, *_]) if test.lineno == test.end_lineno:
            yield "condition", _whole(test, f"(not ({_segment(lines, test)}))")
        case ast.Expr(value=ast.Call(func=func)) if _name(func) not in SILENT:
            yield "statement dropped", _whole(node, "pass")
        case ast.AugAssign(op=op, target=target, value=value) if type(op) in BINARY:
            old, new = BINARY[type(op)]
            yield "arithmetic", _between(lines, target, value, f"{old}=", f"{new}=")
            yield "assignment", _between(lines, target, value, f"{old}=", "=")
        case ast.Break():
            yield "loop", _whole(node, "continue")
        case ast.Continue():
            yield "loop", _whole(node, "break")
        case ast.Call():
            yield from _calls(node, lines)


def _name(func: ast.expr) -> str:
    return func.attr if isinstance(func, ast.Attribute) else func.id if isinstance(func, ast.Name) else ""


def _calls(node: ast.Call, lines: list[str]) -> Iterator[tuple[str, tuple[int, int, int, str] | None]]:
    name = _name(node.func)
    if name in CALLS and node.func.end_lineno == node.func.lineno and node.func.end_col_offset:
        end = node.func.end_col_offset
        if not (isinstance(node.func, ast.Name) and CALLS[name] in ("mean", "expm1", "relu")):
            yield "other function", (node.func.lineno, end - len(name), end, CALLS[name])
    if name in DROPPED and isinstance(node.func, ast.Attribute) and node.lineno == node.end_lineno:
        yield "call dropped", _whole(node, _segment(lines, node.func.value))
    plain = [a for a in node.args if isinstance(a, (ast.Name, ast.Attribute))]
    if len(plain) >= 2 and plain[:2] == node.args[:2] and len({a.lineno for a in plain[:2]}) == 1:
        a, b = plain[:2]
        if a.end_lineno == b.end_lineno == a.lineno and b.end_col_offset is not None and name != "isinstance":
            between = lines[a.lineno - 1].encode()[a.end_col_offset : b.col_offset].decode()
            yield (
                "arguments swapped",
                (a.lineno, a.col_offset, b.end_col_offset, _segment(lines, b) + between + _segment(lines, a)),
            )
    for keyword in node.keywords:
        value = keyword.value
        if keyword.arg in (
            "dim",
            "keepdim",
            "unbiased",
            "correction",
            "dtype",
            "bias",
            "reverse",
            "key",
            "padding",
            "offset",
        ):
            line = lines[keyword.lineno - 1].encode()
            head = line[: keyword.col_offset].decode().rstrip()
            if keyword.lineno == value.end_lineno and value.end_col_offset and head.endswith(","):
                yield "keyword dropped", (keyword.lineno, len(head.encode()) - 1, value.end_col_offset, "")
