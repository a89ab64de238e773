"""Tables in LaTeX: booktabs through pandas' Styler, in a column, across the page, or over several
pages.

A two-column page gives a table `COLUMN_WIDTH` points and a ``table*`` `TEXT_WIDTH`; widths are
estimated from the number of letters, at half an em each, which is a little more than Computer
Modern and Times take.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

COLUMN_WIDTH, TEXT_WIDTH = 234.0, 486.0  # 3.25 in and 6.75 in, in points
LONG_WIDTH = 469.0  # of pages of one column: letter paper with margins of an inch
LETTER = 0.5 * 8.5  # points of one letter in \footnotesize
GAP, NARROW_GAP = 6.0, 2.5  # \tabcolsep, on either side of a column
MOST_LETTERS = 22  # of a column of words, before its lines are broken
ONE_PAGE = 45  # rows that fit on one
LETTERS = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "Δ": r"$\Delta$",
    "–": "--",
    "−": "$-$",
    "α": r"$\alpha$",
    "√": r"$\surd$",
    "×": r"$\times$",
    "σ": r"$\sigma$",
    "ρ": r"$\rho$",
    "‖": r"$\|$",
    "₁": r"$_1$",
    "·": r"$\cdot$",
    "[": "{[}",  # after \\ it would be an optional argument
}


def latex(text: str) -> str:
    """`text` with everything that LaTeX would read as a command escaped."""
    return "".join(LETTERS.get(letter, letter) for letter in text)


def to_latex(
    name: str,
    caption: str,
    headings: Sequence[str],
    numbers: Sequence[bool],
    rows: Sequence[Sequence[str]],
) -> str:
    r"""A booktabs ``tabular`` in a ``table``, or in a ``table*`` where it is wider than a column,
    or a ``longtable`` where it is longer than a page; caption and label with it, every text
    escaped.

    `numbers` says which columns are right-aligned. A table wider than a page, even with little
    space between columns, is scaled (``\resizebox``), and the first line says so.
    """
    letters = [
        max([_longest_word(heading), *(len(row[at]) for row in rows)])
        for at, heading in enumerate(headings)
    ]
    widths = [
        min(count, MOST_LETTERS) if not number else count
        for count, number in zip(letters, numbers, strict=True)
    ]
    formats = [
        "r" if number else f"p{{{width * LETTER:.0f}pt}}" if count > width else "l"
        for number, width, count in zip(numbers, widths, letters, strict=True)
    ]
    gap = GAP if _width(widths, GAP) <= COLUMN_WIDTH else NARROW_GAP
    width = _width(widths, gap)
    wide = width > COLUMN_WIDTH
    scaled = width > TEXT_WIDTH
    frame = pd.DataFrame([[latex(cell) for cell in row] for row in rows])
    named = [_stacked(heading).replace("{", "{{").replace("}", "}}") for heading in headings]
    styled = frame.style.hide(axis="index").relabel_index(named, axis="columns")  # str.format
    long = len(rows) > ONE_PAGE
    text = styled.to_latex(
        hrules=True,
        column_format="@{}" + "".join(formats) + "@{}",
        caption=latex(caption) if long else None,
        label=f"tab:{name}" if long else None,
        environment="longtable" if long else None,
    )
    packages = "booktabs, longtable (one-column pages)" if long else "booktabs"
    packages += ", graphicx: wider than a page, so it is scaled" if scaled and not long else ""
    small = r"\scriptsize" if long and width > LONG_WIDTH else r"\footnotesize"
    size = rf"{small}\setlength{{\tabcolsep}}{{{gap:g}pt}}"
    if long:
        return f"% needs {packages}\n{{{size}\n{text}}}\n"
    environment = "table*" if wide else "table"
    body = f"\\resizebox{{\\textwidth}}{{!}}{{%\n{text.rstrip()}}}\n" if scaled else text
    return (
        f"% needs {packages}\n\\begin{{{environment}}}[tb]\n\\centering\n{size}\n"
        f"\\caption{{{latex(caption)}}}\n\\label{{tab:{name}}}\n{body}\\end{{{environment}}}\n"
    )


def _width(letters: Sequence[int], gap: float) -> float:
    """In points."""
    return sum(letters) * LETTER + 2 * gap * max(0, len(letters) - 1)


def _longest_word(heading: str) -> int:
    return max(map(len, heading.split()), default=0)


def _stacked(heading: str) -> str:
    """Stacks the words of a heading, since headings are longer than their numbers."""
    words = [latex(word) for word in heading.split()]
    if len(words) < 2:
        return "".join(words)
    return r"\begin{tabular}[b]{@{}c@{}}" + r"\\".join(words) + r"\end{tabular}"
