"""GPUs by name: what a plan for hardware that isn't here rests on."""

from __future__ import annotations

import difflib
from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    name: str
    memory: float  # bytes
    peak: float  # dense bfloat16 (float16 where there is none) operations a second, by the maker's data sheet


DEVICES = {
    name.lower(): Device(name, memory * 1e9, peak * 1e12)
    for name, memory, peak in (
        ("T4", 16, 65),
        ("V100", 32, 125),
        ("L4", 24, 121),
        ("A10", 24, 125),
        ("RTX4090", 24, 165),
        ("L40S", 48, 362),
        ("A100", 80, 312),
        ("H100", 80, 989),
        ("H200", 141, 989),
        ("B200", 180, 2250),
    )
}


def device_named(name: str) -> Device:
    """The device of that name; ``ValueError`` with the nearest name otherwise."""
    plain = name.lower().replace(" ", "").replace("-", "").removeprefix("nvidia")
    if plain in DEVICES:
        return DEVICES[plain]
    near = difflib.get_close_matches(plain, DEVICES, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ValueError(f"device: expected one of {', '.join(DEVICES)}; found {name!r}{hint}")
