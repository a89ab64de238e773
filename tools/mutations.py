"""Places of a source file that can be broken, for ``mutants.py``: each is one splice of source
text, found on the syntax tree."""

from __future__ import annotations

import ast
import dataclasses
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
COMPARED = {
    "Lt": ("<=", ">="), "LtE": ("<", ">"), "Gt": (">=", "<="), "GtE": (">", "<"),
    "Eq": ("!=",), "NotEq": ("==",), "Is": ("is not",), "IsNot": ("is",),
    "In": ("not in",), "NotIn": ("in",),
}  # fmt: skip
CALCULATED = {
    "Add": "-", "Sub": "+", "Mult": "/", "Div": "*", "FloorDiv": "*", "Mod": "*", "Pow": "*",
    "BitAnd": "|", "BitOr": "&",
}  # fmt: skip
PAIRS = [("min", "max"), ("any", "all"), ("minimum", "maximum")]
SWAPPED = dict(PAIRS) | {b: a for a, b in PAIRS}


@dataclasses.dataclass(frozen=True)
class Mutant:
    """Bytes ``start`` to ``end`` of ``file`` become ``after``."""

    file: str
    line: int
    kind: str
    start: int
    end: int
    before: str
    after: str

    def applied(self, source: bytes) -> bytes:
        return source[: self.start] + self.after.encode() + source[self.end :]


class Finder(ast.NodeVisitor):
    """Collects the mutants of one file. Annotations, decorators, docstrings and messages stay as
    they are."""

    def __init__(self, file: str, source: bytes) -> None:
        self.file, self.source, self.found = file, source, list[Mutant]()
        lines = source.splitlines(keepends=True)
        self.starts = [0, *itertools.accumulate(map(len, lines))]

    def span(self, node: Any) -> tuple[int, int]:
        start = self.starts[node.lineno - 1] + node.col_offset
        return start, self.starts[node.end_lineno - 1] + node.end_col_offset

    def text(self, node: ast.AST) -> str:
        return self.source[slice(*self.span(node))].decode()

    def visit(self, node: ast.AST) -> None:
        for place, kind, after in self.changes(node):
            start, end = self.span(place)
            line, before = self.source.count(b"\n", 0, start) + 1, self.text(place)
            self.found.append(Mutant(self.file, line, kind, start, end, before, after))
        for child in self.inside(node):
            self.visit(child)

    def inside(self, node: ast.AST) -> Iterable[ast.AST]:
        match node:
            case ast.FunctionDef(args=args):
                return [*args.defaults, *filter(None, args.kw_defaults), *node.body]
            case ast.ClassDef():
                return node.body
            case ast.AnnAssign():
                return [] if node.value is None else [node.value]
            case ast.JoinedStr() | ast.Raise() | ast.Expr(value=ast.Constant()):
                return []
        return ast.iter_child_nodes(node)

    def changes(self, node: ast.AST) -> Iterator[tuple[ast.AST, str, str]]:
        """Which node becomes what, and the kind of change."""
        text = self.text
        match node:
            case ast.Expr(value=ast.Call()):
                yield node, "dropped call", "pass"
            case ast.AugAssign():
                yield node, "dropped update", "pass"
            case ast.Raise():
                yield node, "dropped raise", "pass"
            case ast.Return(value=value) if value and not isinstance(value, ast.Constant):
                yield node, "returns nothing", "return None"
            case ast.Break():
                yield node, "break", "continue"
            case ast.Continue():
                yield node, "continue", "break"
            case ast.If(test=test) | ast.IfExp(test=test) | ast.While(test=test):
                yield test, "negated condition", f"(not ({text(test)}))"
            case ast.Compare(left=left, ops=ops, comparators=others):
                start, end = self.span(node)
                for a, b, op in zip([left, *others], others, ops, strict=False):
                    for other in COMPARED[type(op).__name__]:
                        before = self.source[start : self.span(a)[1]].decode()
                        after = self.source[self.span(b)[0] : end].decode()
                        yield node, "comparison", f"({before} {other} {after})"
            case ast.BinOp(left=a, op=op, right=b) if type(op).__name__ in CALCULATED:
                yield (
                    node,
                    "arithmetic",
                    f"(({text(a)}) {CALCULATED[type(op).__name__]} ({text(b)}))",
                )
            case ast.BoolOp(op=op, values=values):
                other = " or " if isinstance(op, ast.And) else " and "
                yield node, "and, or", f"({other.join(f'({text(value)})' for value in values)})"
            case ast.UnaryOp(op=ast.Not() | ast.USub()):
                yield node, "sign", f"({text(node.operand)})"
            case ast.Constant(value=bool(value)):
                yield node, "constant", str(not value)
            case ast.Constant(value=int(value)):
                yield node, "constant", f"({value + 1})"
            case ast.Constant(value=float(value)):
                yield node, "constant", f"({value * 2})"
            case ast.Call(func=ast.Name(id=name) as func) if name in SWAPPED:
                yield func, "swapped call", SWAPPED[name]
            case ast.Call(func=ast.Attribute(attr=name) as func) if name in SWAPPED:
                yield func, "swapped call", text(func)[: -len(name)] + SWAPPED[name]


def mutants(room: str) -> list[Mutant]:
    """All of a room that still compile and that change the syntax tree."""
    found: list[Mutant] = []
    for path in sorted((ROOT / "src/rankscope" / room).rglob("*.py")):
        source = path.read_bytes()
        finder = Finder(str(path.relative_to(ROOT)), source)
        finder.visit(ast.parse(source))
        whole = ast.dump(ast.parse(source))
        found += [mutant for mutant in finder.found if _changed(mutant.applied(source), whole)]
    return found


def _changed(source: bytes, whole: str) -> bool:
    try:
        return ast.dump(ast.parse(source)) != whole
    except SyntaxError:
        return False
