"""Draws docs/architecture.svg, the floors of the house, from the imports in the source.

``python tools/architecture.py`` writes the picture. A room stands one floor above the highest room
that it imports; an arrow is an import between rooms, drawn unless a longer way down says the same.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from xml.sax.saxutils import escape

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "rankscope"
PICTURE = ROOT / "docs" / "architecture.svg"
WIDTH, HEIGHT, GAP, FLOOR, MARGIN = 190, 64, 26, 118, 20


def rooms() -> dict[str, list[Path]]:
    """Room -> its Python files. A file at the top is a room of its own."""
    found: dict[str, list[Path]] = {}
    for path in sorted(SOURCE.rglob("*.py")):
        name = path.relative_to(SOURCE).parts[0].removesuffix(".py")
        if name not in ("__init__", "__main__"):
            found.setdefault(name, []).append(path)
    return found


def imports(paths: list[Path]) -> set[str]:
    """The rooms that these files import, also inside functions."""
    names = set()
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module == "rankscope":
                names |= {f"rankscope.{alias.name}" for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add(node.module or "")
    return {
        parts[1] for name in names if (parts := name.split("."))[0] == "rankscope" and parts[1:]
    }


def caption(paths: list[Path]) -> str:
    """The first sentence of the room's docstring."""
    top = next((path for path in paths if path.name == "__init__.py"), paths[0])
    text = ast.get_docstring(ast.parse(top.read_text(encoding="utf-8"))) or ""
    return re.split(r"(?<=[.]) |\n\n", " ".join(text.split()))[0].rstrip(".:;")


def floors(down: dict[str, set[str]]) -> dict[str, int]:
    """Room -> its floor; the ground floor imports nothing of ours."""
    known: dict[str, int] = {}

    def floor(room: str) -> int:
        if room not in known:
            known[room] = 1 + max((floor(other) for other in down[room]), default=-1)
        return known[room]

    for room in down:
        floor(room)
    return known


def direct(down: dict[str, set[str]]) -> list[tuple[str, str]]:
    """The imports that no longer way implies."""

    def below(room: str) -> set[str]:
        return down[room].union(*(below(other) for other in down[room]))

    return [
        (room, other)
        for room in sorted(down)
        for other in sorted(down[room])
        if not any(other in below(third) for third in down[room] - {other})
    ]


def wrapped(text: str, most: int = 30) -> list[str]:
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) > most:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines if len(lines) <= 3 else [*lines[:2], f"{lines[2]} ..."]


def picture() -> str:
    """The SVG, as text."""
    files = rooms()
    down = {room: imports(paths) & set(files) - {room} for room, paths in files.items()}
    floor = floors(down)
    levels = [
        [room for room in sorted(floor) if floor[room] == n] for n in range(max(floor.values()) + 1)
    ]
    widest = max(map(len, levels))
    total = 2 * MARGIN + widest * WIDTH + (widest - 1) * GAP
    edges = direct(down)
    place: dict[str, tuple[float, float]] = {}
    for n, level in reversed(
        list(enumerate(levels))
    ):  # each below the middle of those that import it
        above = {
            room: [place[a][0] for a, b in edges if b == room and a in place] for room in level
        }
        level.sort(
            key=lambda room: (
                sum(above[room]) / len(above[room]) if above[room] else total / 2,
                room,
            )
        )
        left = (total - len(level) * WIDTH - (len(level) - 1) * GAP) / 2
        left += (WIDTH + GAP) / 4 * (-1) ** n * (len(level) < widest)  # arrows pass beside rooms
        for i, room in enumerate(level):
            place[room] = left + i * (WIDTH + GAP), MARGIN + (len(levels) - 1 - n) * FLOOR
    height = 2 * MARGIN + (len(levels) - 1) * FLOOR + HEIGHT
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total} {height}" '
        'font-family="system-ui, sans-serif" role="img" aria-label="Rooms and their imports">',
        '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        'markerHeight="7" '
        'orient="auto"><path d="M0 0 8 4 0 8z" fill="#667"/></marker></defs>',
        f'<rect width="{total}" height="{height}" fill="#fff"/>',
    ]
    for room, other in edges:
        (x1, y1), (x2, y2) = place[room], place[other]
        lines.append(
            f'<path d="M{x1 + WIDTH / 2:g} {y1 + HEIGHT:g} C{x1 + WIDTH / 2:g} '
            f"{y1 + HEIGHT + 34:g} "
            f'{x2 + WIDTH / 2:g} {y2 - 38:g} {x2 + WIDTH / 2:g} {y2 - 2:g}" '
            'fill="none" stroke="#99a" marker-end="url(#arrow)"/>'
        )
    for room, (x, y) in place.items():
        count = len([path for path in files[room] if path.name != "__init__.py"])
        said = f"{room}/  {count} files" if (SOURCE / room).is_dir() else f"{room}.py"
        lines.append(
            f'<rect x="{x:g}" y="{y:g}" width="{WIDTH}" height="{HEIGHT}" rx="6" '
            'fill="#eef3fb" stroke="#56c"/>'
            f'<text x="{x + 10:g}" y="{y + 19:g}" font-size="14" '
            f'font-weight="600">{escape(said)}</text>'
        )
        lines += [
            f'<text x="{x + 10:g}" y="{y + 34 + 12 * i:g}" font-size="10.5" '
            f'fill="#334">{escape(line)}</text>'
            for i, line in enumerate(wrapped(caption(files[room])))
        ]
    return "\n".join([*lines, "</svg>", ""])


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
