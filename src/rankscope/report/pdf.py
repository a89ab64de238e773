"""SVG as PDF at a fifth of the size: thousands of pale marks do not need a group each."""

from __future__ import annotations

import re

import vl_convert

PALE = re.compile(r'<path[^>]*? opacity="[\d.]+"[^>]*>')


def to_pdf(svg: str) -> bytes:
    """The drawing as PDF; one SVG pixel becomes one point."""
    return bytes(vl_convert.svg_to_pdf(PALE.sub(_ungrouped, svg)))


def _ungrouped(found: re.Match[str]) -> str:
    """The path with its opacity moved to its only paint, since PDF would make a transparency group
    of it. A path with both fill and stroke is unchanged: there the two differ."""
    tag = found[0]
    both = re.search(r' fill="(?!none)', tag) and re.search(r' stroke="(?!none)', tag)
    if both or "fill-opacity" in tag or "stroke-opacity" in tag:
        return tag
    return re.sub(r' opacity="([\d.]+)"', r' fill-opacity="\1" stroke-opacity="\1"', tag)
