"""Results in a notebook: small HTML tables, every text escaped."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

MOST = 30  # most rows shown
_STYLE = "text-align:{};vertical-align:top;padding:.15em .7em;white-space:{}"


def table(
    headings: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    numbers: Sequence[bool],
    title: str = "",
    note: str = "",
) -> str:
    """An HTML table. `numbers` says which columns are right-aligned and not wrapped."""
    styles = [
        _STYLE.format("right" if number else "left", "nowrap" if number else "normal")
        for number in numbers
    ]
    head = "".join(
        f'<th scope="col" style="{style}">{escape(heading)}</th>'
        for style, heading in zip(styles, headings, strict=True)
    )
    body = "".join(
        "<tr>"
        + "".join(
            f'<td style="{style}">{escape(cell)}</td>'
            for style, cell in zip(styles, row, strict=True)
        )
        + "</tr>"
        for row in rows
    )
    caption = (
        f'<caption style="text-align:left;font-weight:bold;padding:.3em .7em">{escape(title)}'
        "</caption>"
        if title
        else ""
    )
    below = f'<p style="margin:.2em .7em;opacity:.75">{escape(note)}</p>' if note else ""
    return (
        f"<div><table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        f"{below}</div>"
    )


def escape(value: object) -> str:
    """Escaped text; a dash for None."""
    return "–" if value is None else html.escape(str(value))


def number(value: float | None, form: str = ".4g") -> str:
    """A number as printed; a dash for None."""
    return "–" if value is None or value != value else format(value, form).replace("-", "−")
