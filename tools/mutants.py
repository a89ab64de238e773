"""Mutation testing: breaks one place of a room at a time and asks the room's tests whether they see
it.

    python tools/mutants.py linalg --count 80 --log mutants.jsonl    # goes on where it was stopped
    python tools/mutants.py linalg --count 80 --list                 # the same mutants, as text
    python tools/mutants.py --summary mutants.jsonl

Works on a copy of src/ and tests/, so the checkout stays as it is. Each mutant is one splice of
source text, found on the syntax tree; a fixed seed draws the sample. Tests run in a fork of this
process, which has torch and transformers imported already. A mutant is killed if a test fails, a
module fails to import, or the tests use three times the processor time that they use on the whole
code. docs/log.md has the results and names the equivalent mutants.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import dataclasses
import importlib
import json
import os
import random
import re
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DURATIONS = "durations.json"  # seconds of each test file in the last run
TESTS = {
    "linalg": ("tests/linalg",),
    "analysis": ("tests/analysis", "tests/report"),
    "train": ("tests/train",),
}
COMPARED: dict[type[ast.cmpop], tuple[str, ...]] = {
    ast.Lt: ("<=", ">="),
    ast.LtE: ("<", ">"),
    ast.Gt: (">=", "<="),
    ast.GtE: (">", "<"),
    ast.Eq: ("!=",),
    ast.NotEq: ("==",),
    ast.In: ("not in",),
    ast.NotIn: ("in",),
    ast.Is: ("is not",),
    ast.IsNot: ("is",),
}
CALCULATED: dict[type[ast.operator], str] = {
    ast.Add: "-",
    ast.Sub: "+",
    ast.Mult: "/",
    ast.Div: "*",
    ast.FloorDiv: "*",
    ast.Mod: "*",
    ast.Pow: "*",
    ast.BitAnd: "|",
    ast.BitOr: "&",
}
SWAPPED = {
    "min": "max",
    "max": "min",
    "any": "all",
    "all": "any",
    "minimum": "maximum",
    "maximum": "minimum",
}


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
        self.starts = [0]
        for line in source.splitlines(keepends=True):
            self.starts.append(self.starts[-1] + len(line))

    def span(self, node: ast.AST) -> tuple[int, int]:
        start = self.starts[node.lineno - 1] + node.col_offset  # type: ignore[attr-defined]
        return start, self.starts[node.end_lineno - 1] + node.end_col_offset  # type: ignore[attr-defined]

    def text(self, node: ast.AST) -> str:
        start, end = self.span(node)
        return self.source[start:end].decode()

    def note(self, node: ast.AST, kind: str, after: str) -> None:
        start, end = self.span(node)
        before = self.text(node)
        self.found.append(Mutant(self.file, node.lineno, kind, start, end, before, after))  # type: ignore[attr-defined]

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        for child in [*node.args.defaults, *filter(None, node.args.kw_defaults), *node.body]:
            self.visit(child)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        for child in node.body:
            self.visit(child)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        """Text for people."""

    def visit_Expr(self, node: ast.Expr) -> None:
        if not isinstance(node.value, ast.Constant):
            if isinstance(node.value, ast.Call):
                self.note(node, "dropped call", "pass")
            self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self.note(node, "dropped update", "pass")
        self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> None:
        self.note(node, "dropped raise", "pass")

    def visit_Return(self, node: ast.Return) -> None:
        if node.value is not None and not isinstance(node.value, ast.Constant):
            self.note(node, "returns nothing", "return None")
        self.generic_visit(node)

    def visit_Break(self, node: ast.Break) -> None:
        self.note(node, "break", "continue")

    def visit_Continue(self, node: ast.Continue) -> None:
        self.note(node, "continue", "break")

    def condition(self, node: ast.If | ast.IfExp | ast.While) -> None:
        self.note(node.test, "negated condition", f"(not ({self.text(node.test)}))")
        self.generic_visit(node)

    visit_If = visit_IfExp = visit_While = condition  # type: ignore[assignment]

    def visit_Compare(self, node: ast.Compare) -> None:
        operands = [node.left, *node.comparators]
        start, end = self.span(node)
        for left, right, op in zip(operands, operands[1:], node.ops, strict=False):
            (_, first), (last, _) = self.span(left), self.span(right)
            for other in COMPARED[type(op)]:
                parts = self.source[start:first], f" {other} ".encode(), self.source[last:end]
                self.note(node, "comparison", f"({b''.join(parts).decode()})")
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        if (other := CALCULATED.get(type(node.op))) is not None:
            self.note(
                node, "arithmetic", f"(({self.text(node.left)}) {other} ({self.text(node.right)}))"
            )
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        other = " or " if isinstance(node.op, ast.And) else " and "
        self.note(
            node, "and, or", f"({other.join(f'({self.text(value)})' for value in node.values)})"
        )
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, ast.Not | ast.USub):
            self.note(node, "sign", f"({self.text(node.operand)})")
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        value = node.value
        if isinstance(value, bool):
            self.note(node, "constant", str(not value))
        elif isinstance(value, int):
            self.note(node, "constant", f"({value + 1})")
        elif isinstance(value, float):
            self.note(node, "constant", f"({value * 2})")

    def visit_Call(self, node: ast.Call) -> None:
        name = node.func if isinstance(node.func, ast.Name) else None
        if name is not None and name.id in SWAPPED:
            self.note(name, "swapped call", SWAPPED[name.id])
        if isinstance(node.func, ast.Attribute) and node.func.attr in SWAPPED:
            whole = self.text(node.func)
            self.note(
                node.func, "swapped call", whole[: -len(node.func.attr)] + SWAPPED[node.func.attr]
            )
        self.generic_visit(node)


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


def preload(copy: Path) -> None:
    """Imports what the tests import from elsewhere, so that each fork has it."""
    own = {"rankscope", *(path.stem for path in (copy / "tests").iterdir())}
    for path in sorted((copy / "tests").rglob("*.py")) + sorted((copy / "src").rglob("*.py")):
        for node in ast.parse(path.read_bytes()).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module]
                for alias in node.names:
                    with contextlib.suppress(Exception):  # lazy ones, such as Transformers' models
                        if node.module.partition(".")[0] not in own:
                            getattr(importlib.import_module(node.module), alias.name)
            for name in names:
                with contextlib.suppress(ImportError):
                    if name.partition(".")[0] not in own:
                        importlib.import_module(name)


def run_tests(copy: Path, tests: list[str], seconds: float) -> tuple[str, float]:
    """How the tests end in a fork: "passed", the failing test, or "timeout"; and the processor
    seconds used."""
    report = copy / "failed.txt"
    report.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        try:
            os._exit(_run_here(copy, tests, seconds, report))
        finally:
            traceback.print_exc()
            os._exit(70)
    before = time.monotonic()
    while True:
        done, status, usage = os.wait4(child, os.WNOHANG)
        if done:
            break
        if (
            time.monotonic() - before > 600 + 5 * seconds
        ):  # asleep for ever; stopped processes get their time
            os.killpg(child, 9)
        time.sleep(0.05)
    used = usage.ru_utime + usage.ru_stime
    if os.WIFSIGNALED(status):
        return (
            "timeout" if os.WTERMSIG(status) in (9, 24) else f"signal {os.WTERMSIG(status)}"
        ), used
    if os.WEXITSTATUS(status) in (0, 4):  # 4: a test that was asked for by name is no longer there
        return "passed", used
    return (report.read_text() if report.exists() else "error before the tests"), used


def _run_here(copy: Path, tests: list[str], seconds: float, report: Path) -> int:
    import hypothesis
    import pytest

    class Reporter:
        def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
            seconds_of[report.nodeid.partition("::")[0]] += report.duration
            if report.failed:
                failed.write_text(report.nodeid)

        def pytest_sessionfinish(self) -> None:
            (copy / DURATIONS).write_text(json.dumps(seconds_of))

    failed, seconds_of = report, Counter[str]()
    os.setsid()
    resource.setrlimit(resource.RLIMIT_CPU, (int(seconds) + 1, int(seconds) + 2))
    out = os.open(copy / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.chdir(copy)
    sys.path.insert(0, str(copy / "src"))
    os.environ["PYTHONPATH"] = str(copy / "src")
    # the first counterexample is enough
    quick = [
        phase
        for phase in hypothesis.Phase
        if phase not in (hypothesis.Phase.shrink, hypothesis.Phase.explain)
    ]
    hypothesis.settings.register_profile(
        "mutants", derandomize=True, database=None, deadline=None, phases=quick
    )
    options = [
        "-x",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        "--hypothesis-profile=mutants",
    ]
    options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # hypothesis is imported already
    status = pytest.main([*options, *tests], plugins=[Reporter()])
    sys.stdout.flush()
    return int(status)


def test_files(copy: Path, rooms: tuple[str, ...]) -> list[str]:
    return [
        str(p.relative_to(copy)) for room in rooms for p in sorted((copy / room).rglob("test_*.py"))
    ]


def ordered(copy: Path, tests: list[str], durations: dict[str, float], mutant: Mutant) -> list[str]:
    """The files that name the mutant's module first, and of these and the rest the quickest: the
    test that fails is found soon."""
    module = Path(mutant.file).stem

    def cost(test: str) -> tuple[bool, float]:
        names = re.search(rf"\b{module}\b", test + (copy / test).read_text()) is not None
        return not names, durations.get(test, 0.0)

    return sorted(tests, key=cost)


def killers(records: list[dict[str, str]]) -> list[str]:
    """The tests that have killed most, one of each kind: asked first, they end most mutants at
    once."""
    kills = Counter(record["by"] for record in records if "::" in record["by"])
    kinds = {test.partition("[")[0]: test for test, _ in reversed(kills.most_common())}
    return [test for test, _ in kills.most_common() if test in kinds.values()][:12]


def read(log: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def key(mutant: Mutant | dict[str, str]) -> tuple[str, ...]:
    entry = mutant if isinstance(mutant, dict) else dataclasses.asdict(mutant)
    return tuple(str(entry[name]) for name in ("file", "line", "start", "kind", "before", "after"))


def examine(room: str, chosen: list[Mutant], log: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copy = Path(folder)
        for name in ("src", "tests", "docs", "benchmarks", "tools"):
            if (ROOT / name).exists():
                shutil.copytree(
                    ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__")
                )
        for name in ("pyproject.toml", "README.md", "CONTRIBUTING.md"):
            shutil.copy(ROOT / name, copy / name)
        preload(copy)
        whole_suite = test_files(copy, TESTS[room])
        how, used = run_tests(copy, whole_suite, 3600)
        if how != "passed":
            raise SystemExit(
                f"expected tests that pass before anything is broken; found {how}.\n{_tail(copy)}"
            )
        print(f"{room}: the tests pass, in {used:.0f} s of processor time", flush=True)
        limit = 3 * used + 10
        durations = json.loads((copy / DURATIONS).read_text())
        done = {key(record) for record in read(log)}
        for mutant in (m for m in chosen if key(m) not in done):
            path = copy / mutant.file
            whole = path.read_bytes()
            path.write_bytes(mutant.applied(whole))
            first = killers([record for record in read(log) if record["room"] == room])
            by, seconds = run_tests(copy, first, limit) if first else ("passed", 0.0)
            if by == "passed":
                by, more = run_tests(copy, ordered(copy, whole_suite, durations, mutant), limit)
                seconds += more
            path.write_bytes(whole)
            entry = dataclasses.asdict(mutant) | {"room": room, "killed": by != "passed", "by": by}
            with log.open("a") as file:
                file.write(json.dumps(entry | {"seconds": round(seconds, 1)}) + "\n")
            print(
                f"{seconds:6.1f} s  {'SURVIVED' if by == 'passed' else 'killed'}  "
                f"{line(mutant)}  {by}",
                flush=True,
            )


def _tail(copy: Path) -> str:
    return (copy / "output.txt").read_text()[-2000:]


def line(mutant: Mutant | dict[str, str]) -> str:
    entry = mutant if isinstance(mutant, dict) else dataclasses.asdict(mutant)
    before, after = (" ".join(str(entry[name]).split())[:70] for name in ("before", "after"))
    return (
        f"{entry['file'].removeprefix('src/rankscope/')}:{entry['line']} {entry['kind']}: "
        f"{before} -> {after}"
    )


def summary(log: Path) -> Iterator[str]:
    records = read(log)
    for room in sorted({record["room"] for record in records}):
        own = [record for record in records if record["room"] == room]
        yield f"{room}: {sum(bool(r['killed']) for r in own)} of {len(own)} killed"
    yield f"all: {sum(bool(r['killed']) for r in records)} of {len(records)} killed"
    yield from (f"survived: {line(record)}" for record in records if not record["killed"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Breaks one place of a room at a time; do its tests see it?"
    )
    parser.add_argument("room", choices=[*TESTS], nargs="?")
    parser.add_argument("--count", type=int, default=70)
    parser.add_argument("--seed", type=int, default=14)
    parser.add_argument("--log", type=Path, default=Path("mutants.jsonl"))
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--summary", type=Path)
    args = parser.parse_args()
    if args.summary is not None:
        print(*summary(args.summary), sep="\n")
        return
    if args.room is None:
        parser.error("expected a room or --summary LOG")
    every = mutants(args.room)
    chosen = random.Random(args.seed).sample(every, min(args.count, len(every)))
    print(f"{args.room}: {len(chosen)} of {len(every)} mutants", flush=True)
    if args.list:
        print(*map(line, chosen), sep="\n")
    else:
        examine(args.room, chosen, args.log)


if __name__ == "__main__":
    main()
