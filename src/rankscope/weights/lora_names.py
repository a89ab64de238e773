"""Assigns tensors to layers and parts of updates, by the names that LoRA's many writers use.

Letters: m rows (out), n columns (in), r rank, k a kernel's side. Of every style A is (r, n) and B
(m, r), except for MLX, which stores both transposed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from rankscope.weights.tensors import READABLE, Tensors, natural

LAYER = r"(?P<layer>.+?)"
# Style -> what follows the layer's name. diffusers had several ways over the years:
# to_q.lora_A.weight, to_q.lora.down.weight, to_q.lora_linear_layer.down.weight and
# processor.to_q_lora.down.weight.
STYLES = {
    "kohya": r"\.(?P<part>lora_up|lora_down|lora_mid)(?:\.default)?\.weight",
    "diffusers": r"[._]lora(?:_linear_layer)?(?P<stream>[12]?)\.(?P<part>up|down)\.weight",
    "peft": r"\.(?P<part>lora_A|lora_B)(?:\.(?!weight$)[^.]+)?\.weight",
    "loralib": r"(?:\.loras\.[^.]+)?\.(?P<part>lora_A|lora_B)",  # AdapterHub, LitGPT
    "torchtune": r"\.(?P<part>lora_a|lora_b)\.weight",
    "mlx": r"\.(?P<part>lora_a|lora_b)",
    "lycoris": r"\.(?P<part>(?:hada|lokr)_(?:w1|w2|t1|t2)(?:_a|_b)?)",
}
PATTERNS = {style: re.compile(LAYER + ending) for style, ending in STYLES.items()}
# Tensors beside the factors. A file may hold the full change of small layers as .diff, and of
# biases as .diff_b; A1111's ``scale`` is alpha / r, and LyCORIS's ``scalar`` multiplies it.
BESIDE = re.compile(
    LAYER + r"\.(?P<part>alpha|scale|scalar|dora_scale|lora_magnitude_vector|magnitude|m"
    r"|diff|diff_b|w_norm|b_norm)"
    r"(?:\.default)?(?:\.weight)?"
)
WHOLE = ("diff", "w_norm")
LETTER = {
    "lora_up": "B", "up": "B", "lora_B": "B", "lora_b": "B",
    "lora_down": "A", "down": "A", "lora_A": "A", "lora_a": "A",
    "lora_magnitude_vector": "magnitude", "m": "magnitude", "w_norm": "diff", "b_norm": "diff_b",
}  # fmt: skip
NO_FACTORS = re.compile(LAYER + r"\.(?P<part>oft_blocks|oft_diag|on_input|a1|a2|b1|b2|bm)\b.*")
ALONE = ("oft_blocks", "oft_diag", "on_input")  # models use the other names as well
# Names of the two factors of a pair; other names count only if r is small.
SAID = re.compile(r"lora|adapter|(^|[._])(a|b|down|up|left|right|low|rank)([._]|$)", re.IGNORECASE)
# Words of one name that differ between two factors: lora_down.0 and lora_up.0, unet:0:down and :up.
OPPOSITES = re.compile(r"(?:(?<=[._:/])|^)(?:a|b|down|up|left|right|u|v)(?=[._:/]|$)", re.I)
# XLabs' files of Flux name a block's two streams by numbers: double_blocks.0.processor.qkv_lora2.
XLABS = re.compile(r"\.processor\.(\w+)$")
STREAMS = {"1": "img", "2": "txt"}
PARAMETRIZED = re.compile(r"\.parametrizations\.weight\.\d+$")  # torch's, of minLoRA
# where diffusers' older names end, before an alpha
LORA_ENDING = re.compile(r"[._]lora(?:_linear_layer)?$")
# times r at most min(m, n), of a pair whose names say nothing: a transformer's MLP has 4 r = m = n
SMALL = 4


@dataclass(frozen=True)
class Site:
    """One layer's update; ``parts``: B, A, lora_mid, alpha, magnitude, dora_scale, diff,
    hada_..., lokr_... -> tensor."""

    layer: str
    style: str
    parts: dict[str, str]


@dataclass(frozen=True)
class LoraNames:
    """A file's updates, and the tensors that belong to none."""

    sites: list[Site]
    others: list[str]


def is_adapter(tensors: Tensors) -> bool:
    """Whether a file holds updates instead of weights: factors in a known style, or only
    differences."""
    if any(_style(name) for name in tensors):
        return True
    beside = [BESIDE.fullmatch(name) for name in tensors]
    return bool(beside) and all(
        found and LETTER.get(found["part"], found["part"]).startswith("diff") for found in beside
    )


def check_no_factors(tensors: Tensors) -> None:
    """``ValueError`` if more than two thirds of a file's matrices are pairs of factors under
    unknown names, or are LyCORIS factors of an unsupported kind."""
    for name in tensors:
        found = NO_FACTORS.fullmatch(name)
        if found and (found["part"] in ALONE or _is_glora(tensors, found["layer"])):
            raise ValueError(
                f"{tensors.where}: expected weights, or a low-rank update B A; found LyCORIS's "
                f"({found['part']} of {found['layer']}), whose update is neither."
            )
    shapes = {
        name: header.shape
        for name, header in tensors.headers.items()
        if header.dtype in READABLE and len(header.shape) == 2
    }
    modules: dict[tuple[str, str], list[str]] = {}
    for name in shapes:
        modules.setdefault(("module", _module(name)), []).append(name)
        modules.setdefault(("but for a word", OPPOSITES.sub("*", name)), []).append(name)
    twos = [names for names in modules.values() if len(names) == 2]
    pairs = list({tuple(names): names for names in twos if _are_factors(names, shapes)}.values())
    if 3 * len(pairs) > len(shapes):
        one, other = pairs[0]
        raise ValueError(
            f"{tensors.where}: expected weights, or factors under names of a LoRA format; "
            "found pairs that look "
            f"like factors (r, n) and (m, r), such as {one} {shapes[one]} and {other} "
            f"{shapes[other]}. "
            "Rename them to LAYER.lora_A and LAYER.lora_B, or give the base that they are "
            "weights beside: --base MODEL"
        )


def lora_styles(tensors: Tensors) -> set[str]:
    """The styles of the factors in a file."""
    return {found[0] for name in tensors if (found := _style(name)) is not None}


def lora_names(tensors: Tensors) -> LoraNames:
    """Sorts the tensors by layer. ``ValueError`` if a factor occurs twice or without the other."""
    sites: dict[str, Site] = {}
    beside: list[tuple[str, str, str]] = []
    others: list[str] = []
    for name in sorted(tensors, key=natural):
        found = _style(name)
        if found is not None:
            style, layer, part = found
            _add(tensors, sites.setdefault(layer, Site(layer, style, {})), part, name)
        elif (match := BESIDE.fullmatch(name)) is not None:
            part = LETTER.get(match["part"], match["part"])
            beside.append((_plain(match["layer"]), part, name))
        else:
            others.append(name)
    for layer, part, name in beside:
        layer = layer if layer in sites else LORA_ENDING.sub("", layer)
        if layer in sites or part in ("diff", "diff_b"):
            _add(tensors, sites.setdefault(layer, Site(layer, "kohya", {})), part, name)
        else:  # the alpha of a method without factors, or a model's parameter of that name
            others.append(name)
    for site in sites.values():
        _check_complete(tensors, site)
    return LoraNames(
        sorted(sites.values(), key=lambda site: natural(site.layer)), sorted(others, key=natural)
    )


def _style(name: str) -> tuple[str, str, str] | None:
    """Style, layer and part of a factor; None for any other tensor."""
    if "lora" not in name and "hada_" not in name and "lokr_" not in name:
        return None
    for style, pattern in PATTERNS.items():
        if (found := pattern.fullmatch(name)) is not None:
            layer = found["layer"]
            if stream := found.groupdict().get("stream"):
                layer = XLABS.sub(rf".{STREAMS[stream]}_attn.\1", layer)
            return style, _plain(layer), LETTER.get(found["part"], found["part"])
    return None


def _plain(layer: str) -> str:
    return PARAMETRIZED.sub("", layer.replace(".processor.", "."))


def _add(tensors: Tensors, site: Site, part: str, name: str) -> None:
    if part in site.parts:
        raise ValueError(
            f"{tensors.where}: expected one {part} for {site.layer}; found {site.parts[part]} "
            f"and {name}."
        )
    site.parts[part] = name


def _check_complete(tensors: Tensors, site: Site) -> None:
    for there, missing in _incomplete(site):
        raise ValueError(
            f"{tensors.where}: expected {missing} beside {there} for {site.layer}; found none."
        )


def _incomplete(site: Site) -> Iterator[tuple[str, str]]:
    """A part that is present, and a part that it needs and that is missing."""
    parts = site.parts
    names = {"kohya": ("lora_down", "lora_up"), "diffusers": ("down", "up")}.get(
        site.style, ("lora_A", "lora_B")
    )
    if site.style in ("torchtune", "mlx"):
        names = ("lora_a", "lora_b")
    if ("A" in parts) != ("B" in parts):
        yield names if "A" in parts else names[::-1]
    if any(part.startswith("hada_") for part in parts):
        wanted = ["hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"]
        wanted += ["hada_t1", "hada_t2"] if parts.keys() & {"hada_t1", "hada_t2"} else []
        yield from (("another part", part) for part in wanted if part not in parts)
    if any(part.startswith("lokr_") for part in parts):
        for half in ("lokr_w1", "lokr_w2"):
            if half not in parts:
                yield from (
                    ("another part", f"{half}{x}")
                    for x in ("_a", "_b")
                    if f"{half}{x}" not in parts
                )


def _is_glora(tensors: Tensors, layer: str) -> bool:
    return all(f"{layer}.{part}.weight" in tensors for part in ("a1", "a2", "b1", "b2"))


def _module(name: str) -> str:
    return name.removesuffix(".weight").rpartition(".")[0]


def _are_factors(names: list[str], shapes: Mapping[str, tuple[int, ...]]) -> bool:
    for one, other in (names, names[::-1]):
        (r, n), (m, r2) = shapes[one], shapes[other]
        if r == r2 and r <= min(m, n):
            ends = [name.removeprefix(_module(names[0])) for name in names]
            if all(SAID.search(end) for end in ends) or SMALL * r < min(m, n):
                return True
    return False
