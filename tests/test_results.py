"""Pages of docs/results beside their numbers: conclusions follow from the data that is kept, and
every number of the text is one of conclusions.json."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

from rankscope.analysis import Frames, conclude
from rankscope.analysis.inference import end
from rankscope.report.from_store import analyze
from simulate import Truth, study

DOCS = Path(__file__).parents[1] / "docs"
PAGES = sorted(page.parent for page in DOCS.glob("results/*/data") if page.is_dir())
NUMBER = re.compile(r"(?<![\w.])[-−]?\d+(?:,\d{3})*(?:\.\d+)?(?![\w])")
FREE = set("0123456789") | {"95"}  # counts of tasks and the like; 95 % intervals


def keys(value: Any) -> Iterator[str]:
    """The names of all entries, however deep."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield name
            yield from keys(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from keys(inner)


def leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from leaves(inner)
    else:
        yield value


def said(conclusions: dict[str, Any]) -> set[str]:
    """All numbers of the sentences, as they are written there, and those of all entries, at the
    precisions in which a text gives them."""
    found: set[str] = set()
    for value in leaves(conclusions):
        if isinstance(value, str):
            found |= {number.replace("−", "-") for number in NUMBER.findall(value)}
        elif isinstance(value, int | float) and not isinstance(value, bool):
            for scaled in (value, 100 * value, -value):
                found |= {f"{scaled:.{digits}f}" for digits in range(4)}
                found.add(end(scaled, ".3f"))  # an end beside 0 has more digits
    return found


def unsupported(text: str, conclusions: dict[str, Any]) -> list[str]:
    known = said(conclusions) | FREE
    plain = re.sub(r"\]\([^)]*\)|`[^`]*`|arXiv \d+\.\d+|\d{4}-\d{2}-\d{2}", " ", text)
    numbers = [number.replace("−", "-") for number in NUMBER.findall(plain)]
    return [number for number in numbers if number not in known and number.lstrip("-") not in known]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_conclusions_follow_from_the_data_beside_them(page: Path) -> None:
    kept = json.loads((page / "conclusions.json").read_text())
    again = json.loads(json.dumps(analyze(page / "data").to_dict()))
    assert list(keys(kept)) == list(keys(again))
    for one, other in zip(leaves(kept), leaves(again), strict=True):
        assert one == (pytest.approx(other, rel=1e-6) if isinstance(other, float) else other)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_number_of_what_it_says_is_in_its_conclusions(page: Path) -> None:
    text = (page / "README.md").read_text(encoding="utf-8")
    found = re.search(r"^## What (?:it says|the edits do)\n(.*?)(?=^## |\Z)", text, re.M | re.S)
    assert found, "expected a section 'What it says'"
    conclusions = json.loads((page / "conclusions.json").read_text())
    assert unsupported(found[1], conclusions) == []


def test_a_number_that_nothing_supports_is_found() -> None:
    conclusions = {"numbers": {"b": -0.0256, "share": 0.153}, "sentences": ["r = 8, 0.91"]}
    assert unsupported("b = −0.03, 15 % of it, from r = 8 by 0.91", conclusions) == []
    assert unsupported("b = −0.04, 36 %, of 0.92", conclusions) == ["-0.04", "36", "0.92"]


def test_every_entry_of_conclusions_is_documented() -> None:
    text = (DOCS / "formats.md").read_text(encoding="utf-8")
    section = text.split("## Written: conclusions.json")[1].split("\n## ")[0]
    documented = set(re.findall(r"`([\w*]+)`", section))
    written = [json.loads((page / "conclusions.json").read_text()) for page in PAGES]
    simulated = Frames(**study(Truth(), seeds=3))
    written.append(conclude(simulated, resamples=19).to_dict())
    names = {name for one in written for name in keys(one)}
    stems = {re.sub(r"_(low|high|clusters|p|p_holm)$", "", name) for name in names}
    assert sorted(stems - documented) == []


def test_the_page_of_claims_is_read_from_the_conclusions() -> None:
    spec = spec_from_file_location("claims", DOCS.parent / "tools" / "claims.py")
    assert spec is not None
    assert spec.loader is not None
    claims = module_from_spec(spec)
    spec.loader.exec_module(claims)
    assert (DOCS / "results" / "claims.md").read_text(encoding="utf-8") == claims.page()
