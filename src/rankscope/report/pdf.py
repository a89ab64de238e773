"""SVG as PDF, a fifth as large as it comes: thousands of pale marks need no group each."""

from __future__ import annotations

import re

import vl_convert

PALE = re.compile(r'<path[^>]*? opacity="[\d.]+"[^>]*>')


def to_pdf(svg: str) -> bytes:
    """The drawing as PDF; an SVG's pixel is a point there."""
    return bytes(vl_convert.svg_to_pdf(PALE.sub(_ungrouped, svg)))


def _ungrouped(found: re.Match[str]) -> str:
    """The path with the opacity of its one paint instead of its own: PDF makes a transparency group
    of the latter. A path with a fill and a stroke stays as it is: there the two differ."""
    tag = found[0]
    both = re.search(r' fill="(?!none)', tag) and re.search(r' stroke="(?!none)', tag)
    if both or "fill-opacity" in tag or "stroke-opacity" in tag:
        return tag
    return re.sub(r' opacity="([\d.]+)"', r' fill-opacity="\1" stroke-opacity="\1"', tag)
