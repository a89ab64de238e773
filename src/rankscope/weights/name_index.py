"""Finds a base's tensors by names that differ by a prefix: each table is made once, in one pass
over all names, so that thousands of layers of an update cost no more passes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

# Parts that transformers adds to or takes out of names between a multimodal file and its model:
# "language_model.model.layers.0" of Gemma 3's files is "model.language_model.layers.0" there.
WRAPPING = {"model", "language_model"}
INPUT_EMBEDDINGS = re.compile(r"(.*\.)?(embed_tokens|wte|shared|word_embeddings|embed_in)\.weight")
AROUND = 4
EXPERT = re.compile(r"((?:.*\.)?)experts\.(\d+)\.(\w+)\.weight")


@dataclass(frozen=True)
class NameIndex:
    """Tables of ``names``, those of a base's tensors."""

    names: Iterable[str]

    @cached_property
    def endings(self) -> dict[str, str]:
        """Name without its first one or two parts -> full name, where it is unique."""
        return _only((short, name) for name in self.names for short in _shortened(name))

    @cached_property
    def unwrapped(self) -> dict[str, str]:
        """Name without ``WRAPPING`` -> full name, where it is unique."""
        return _only((without_wrapping(name), name) for name in self.names)

    @cached_property
    def tails(self) -> dict[str, str]:
        """Possible ending of a layer's name -> the first tensor that has it."""
        tails: dict[str, str] = {}
        for name in self.names:
            parts = name.removesuffix(".weight").split(".")
            for cut in range(max(0, len(parts) - 4), len(parts)):
                tails.setdefault(".".join(parts[cut:]), name)
        return tails

    @cached_property
    def input_embeddings(self) -> str | None:
        """The first that is one by its name."""
        return next((name for name in self.names if INPUT_EMBEDDINGS.fullmatch(name)), None)

    @cached_property
    def experts(self) -> dict[str, dict[tuple[int, str], str]]:
        """What stands before "experts.3.up_proj.weight" -> {(3, "up_proj"): the tensor}"""
        found: dict[str, dict[tuple[int, str], str]] = {}
        for name in self.names:
            if (m := EXPERT.fullmatch(name)) is not None:
                found.setdefault(m[1], {})[int(m[2]), m[3]] = name
        return found

    def holds_any(self, layers: Sequence[str]) -> bool:
        """Whether one of ``layers`` stands in a name, between dots, with at most ``AROUND`` parts
        before it and behind it: names of quantised weights go on after the layer's."""
        wanted = set(layers)
        lasts = {layer.rpartition(".")[2] for layer in wanted}
        for name in self.names:
            parts = name.split(".")
            for stop in range(max(1, len(parts) - AROUND), len(parts) + 1):
                starts = range(min(stop, AROUND + 1)) if parts[stop - 1] in lasts else ()
                if any(".".join(parts[start:stop]) in wanted for start in starts):
                    return True
        return False


def without_wrapping(name: str) -> str:
    """A name without ``WRAPPING``."""
    return ".".join(part for part in name.split(".") if part not in WRAPPING)


def _shortened(name: str) -> Iterable[str]:
    """A name without its first part, and without its first two."""
    _, _, once = name.partition(".")
    yield once
    yield once.partition(".")[2]


def _only(named: Iterable[tuple[str, str]]) -> dict[str, str]:
    """The short names that stand for one name alone."""
    found: dict[str, str] = {}
    several = set()
    for short, name in named:
        if found.setdefault(short, name) != name:
            several.add(short)
    return {short: name for short, name in found.items() if short and short not in several}
