"""The pairs of factors in an adapter's file, and the same file with new factors.

Three formats keep a rank and a scale for each layer: PEFT's (``rank_pattern``, ``alpha_pattern``),
kohya's (an alpha beside each pair) and diffusers' (PEFT's settings in the file's header).

Letters: m rows (out), n columns (in), r rank, s scale. B (m, r), A (r, n), dW = s B A.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from rankscope.linalg import LowRank
from rankscope.weights.lora_config import not_low_rank
from rankscope.weights.lora_names import Site, is_adapter, lora_names, lora_styles
from rankscope.weights.lora_scale import METADATA, LoraFile, header_configs, site_scale
from rankscope.weights.lora_settings import Given
from rankscope.weights.peft_adapter import (
    Adapter,
    beyond_lora,
    check_fit,
    factor_names,
    open_adapter,
    unlike_matrix,
)
from rankscope.weights.peft_experts import targeted_parameter
from rankscope.weights.peft_settings import peft_settings
from rankscope.weights.source import ADAPTERS, CONFIG, GUESSES, Found, find, is_peft
from rankscope.weights.tensors import READABLE, Tensors, finite, without_wrappers

# kohya's rank, alpha and digests in the header, which a change invalidates
NETWORK = ("ss_network_dim", "ss_network_alpha")
DIGESTS = ("sshs_model_hash", "sshs_legacy_hash")
# safetensors' dtypes in its order: a file has the last ones first, equal ones sorted by name
CODES = {
    torch.bool: "BOOL", torch.uint8: "U8", torch.int8: "I8", torch.float8_e5m2: "F8_E5M2",
    torch.float8_e4m3fn: "F8_E4M3", torch.int16: "I16", torch.float16: "F16",
    torch.bfloat16: "BF16", torch.int32: "I32", torch.float32: "F32", torch.float64: "F64",
    torch.int64: "I64",
}  # fmt: skip


@dataclass(frozen=True)
class Pair:
    """One layer's factors: the names of B and A, and of the tensor that holds alpha, if there is
    one; s; ``part``: the model of a diffusers pipeline that the layer belongs to."""

    layer: str
    B: str
    A: str
    scale: float
    alpha: str | None = None
    part: str = ""


@dataclass(frozen=True)
class LoraPairs:
    """An adapter's pairs, not read yet. ``format``: "peft", "kohya" or "diffusers"; ``file``: the
    name that its tensors are written under; ``content``: adapter_config.json, of PEFT."""

    source: str
    format: str
    file: str
    tensors: Tensors
    pairs: list[Pair]
    content: Mapping[str, Any] = field(default_factory=dict)
    neighbours: tuple[str, ...] = ()

    def read(self, alike: Sequence[Pair]) -> LowRank:
        """s B A (N, m, n) of N layers of one shape and dtype. ``ValueError``, one line, if a factor
        is not finite."""
        factors = {}
        for name in "BA":
            read = [self.tensors.read(getattr(pair, name)).flatten(1) for pair in alike]
            factors[name] = torch.stack(read)
            if not finite(factors[name]):  # asked once for all
                layer = alike[[finite(own) for own in read].index(False)].layer
                raise ValueError(
                    f"{self.source}: expected finite factors; {name} of {layer} holds NaN "
                    "or Inf. Nothing was written."
                )
        scale = torch.tensor([pair.scale for pair in alike], dtype=torch.float64)
        return LowRank(B=factors["B"], A=factors["A"], scale=scale)

    def rank(self, pair: Pair) -> int:
        """r."""
        return self.tensors.headers[pair.A].shape[0]

    @property
    def others(self) -> list[str]:
        """The tensors that are neither factors nor alphas: heads, biases, norms."""
        taken = {name for pair in self.pairs for name in (pair.B, pair.A, pair.alpha)}
        return [name for name in self.tensors if name not in taken]

    def scale_at(self, pair: Pair, k: int) -> float:
        """The scale that a reader of the new file gets at rank k: s, up to rounding of alpha."""
        if self.format == "kohya":
            return float(_alpha(pair, k)) / k
        return pair.scale * k / k

    def size(self, ranks: Mapping[str, int]) -> int:
        """Bytes of the weights file at these ranks, header included."""
        order = {dtype: i for i, dtype in enumerate(CODES)}
        body, entries = 0, dict[str, object]()
        for name, dtype, shape in sorted(
            self._headers(ranks), key=lambda one: (-order[one[1]], one[0])
        ):
            end = body + prod(shape) * dtype.itemsize
            entries[name] = {"dtype": CODES[dtype], "shape": shape, "data_offsets": [body, end]}
            body = end
        metadata = self._metadata(ranks)
        content = {"__metadata__": metadata, **entries} if metadata else entries
        header = len(json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode())
        return 8 + -(-header // 8) * 8 + body

    def write(self, folder: Path, factors: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """The adapter with ``factors``: layer -> B (m, k) and A (k, n); the rest unchanged."""
        ranks = {layer: A.shape[0] for layer, (_, A) in factors.items()}
        state = {}
        for pair in self.pairs:
            for name, factor in zip((pair.B, pair.A), factors[pair.layer], strict=True):
                shape, rows = self.tensors.headers[name].shape, factor.shape[0]
                rest = (factor.shape[1], *shape[2:]) if name == pair.B else shape[1:]
                state[name] = factor.reshape(rows, *rest).contiguous()
            if self.format == "kohya":
                state[_alpha_name(pair)] = _alpha(pair, ranks[pair.layer])
        state |= {name: self.tensors.read(name).contiguous() for name in self.others}
        save_file(state, folder / self.file, metadata=self._metadata(ranks) or None)
        if self.format == "peft":
            content = {**self.content, **_settings(self.pairs, ranks)}
            (folder / CONFIG).write_text(json.dumps(content, indent=2), encoding="utf-8")

    def _headers(
        self, ranks: Mapping[str, int]
    ) -> Iterator[tuple[str, torch.dtype, tuple[int, ...]]]:
        """Name, dtype and shape of each tensor of the file at these ranks."""
        for pair in self.pairs:
            k, headers = ranks[pair.layer], self.tensors.headers
            B, A = headers[pair.B], headers[pair.A]
            assert B.dtype is not None
            assert A.dtype is not None
            yield pair.B, B.dtype, (B.shape[0], k, *B.shape[2:])
            yield pair.A, A.dtype, (k, *A.shape[1:])
            if self.format == "kohya":
                yield _alpha_name(pair), _alpha(pair, k).dtype, ()
        for name in self.others:
            other = self.tensors.headers[name]
            assert other.dtype is not None
            yield name, other.dtype, other.shape

    def _metadata(self, ranks: Mapping[str, int]) -> dict[str, str]:
        found = {k: v for k, v in self.tensors.metadata.items() if k not in DIGESTS}
        if not self.tensors.where.endswith(".safetensors"):
            found["format"] = "pt"
        if self.format == "diffusers":
            content = json.loads(found[METADATA])
            for part in dict.fromkeys(pair.part for pair in self.pairs):
                pairs = [pair for pair in self.pairs if pair.part == part]
                settings = _settings(pairs, ranks, f"{part}.")
                content |= {f"{part}.{name}": value for name, value in settings.items()}
            found[METADATA] = json.dumps(content, indent=2, sort_keys=True)
        if self.format == "kohya":
            alphas = [f"{float(_alpha(pair, ranks[pair.layer])):g}" for pair in self.pairs]
            numbers = ([str(ranks[pair.layer]) for pair in self.pairs], alphas)
            for name, values in zip(NETWORK, numbers, strict=True):
                if name in found:
                    found[name] = values[0] if len(set(values)) == 1 else "Dynamic"
        return found


def open_pairs(
    source: str | Path, *, subfolder: str | None = None, revision: str | None = None
) -> LoraPairs:
    """The pairs of an adapter. ``ValueError``, one line with the layer and the method, if an update
    is not s B A or the format cannot store a rank per layer."""
    found = find(source, subfolder=subfolder, revision=revision)
    tensors = without_wrappers(found.tensors)
    styles = lora_styles(tensors)
    if found.config is not None and is_peft(found.content, styles):
        if (method := str(found.content.get("peft_type"))[:40]) != "LORA":
            raise not_low_rank(found.source, method, ". Only an update s B A can be cut.")
        return _peft(found, open_adapter(found.config, found.content, tensors))
    if not is_adapter(tensors):
        raise ValueError(
            f"{found.source}: expected an adapter with LoRA factors; found none among its "
            f"{len(tensors.headers)} tensors."
        )
    if found.config is not None or not (styles == {"kohya"} or METADATA in tensors.metadata):
        kind = ", ".join(sorted(styles)) or "differences stored whole"
        raise ValueError(
            f"{found.source}: expected PEFT's format (with {CONFIG}), kohya's, or diffusers' with "
            f"{METADATA} in its header, which keep a rank for each layer; found {kind}."
        )
    return _file(found, tensors)


def _peft(found: Found, adapter: Adapter) -> LoraPairs:
    config = adapter.config
    if config.unlike_lora is not None:
        raise ValueError(f"{found.source}: expected plain LoRA; {config.unlike_lora}.")
    if adapter.own is not None:
        raise ValueError(
            f"{found.source}: expected an adapter alone; found a whole model's state with the "
            "adapter in it. Save it with save_pretrained of the PeftModel."
        )
    pairs = []
    for layer, site in adapter.sites.items():
        names = factor_names(adapter, layer)
        why = beyond_lora(site, names) or unlike_matrix(adapter, layer, *names)
        if "lora_magnitude_vector" in site:
            why = "DoRA: its update is not s B A"
        if targeted_parameter(config.target_parameters, adapter.sites, layer) is not None:
            why = "factors of a stack of experts (target_parameters)"
        if why is not None:
            raise ValueError(f"{found.source}: expected plain LoRA; {layer}: {why}.")
        B, A = (adapter.tensors.headers[site[name]].shape for name in names)
        check_fit(adapter, layer, torch.empty(B, device="meta"), torch.empty(A, device="meta"))
        scale = config.scale_of(layer, config.rank_of(layer))
        pairs.append(Pair(layer, site[names[0]], site[names[1]], scale))
    return _checked(
        LoraPairs(
            found.source, "peft", ADAPTERS[0], adapter.tensors, pairs, found.content,
            found.neighbours,
        )
    )  # fmt: skip


def _file(found: Found, tensors: Tensors) -> LoraPairs:
    configs = header_configs(tensors)
    names = lora_names(tensors)
    file = LoraFile(tensors, names, Given(None, GUESSES["kohya"]), None, configs)
    sites = [site for site in names.sites if not site.parts.keys() <= {"diff", "diff_b"}]
    pairs = [_pair(found, file, site) for site in sites]
    form = "diffusers" if configs else "kohya"
    name = f"{Path(tensors.where).stem}.safetensors"
    return _checked(LoraPairs(found.source, form, name, tensors, pairs, {}, found.neighbours))


def _pair(found: Found, file: LoraFile, site: Site) -> Pair:
    parts = site.parts
    strange = sorted(parts.keys() - {"A", "B", "alpha", "diff_b"})
    part = site.layer.partition(".")[0]
    headers = file.tensors.headers
    why = f"{', '.join(strange)} beside B and A" if strange or "A" not in parts else None
    if why is None:
        B, A = headers[parts["B"]], headers[parts["A"]]
        if B.dtype not in READABLE or A.dtype not in READABLE:
            why = "its factors are not stored as floating-point matrices"
        elif len(B.shape) < 2 or len(A.shape) < 2 or B.shape[1] != A.shape[0] or 0 in B.shape:
            why = f"factors B {B.shape} and A {A.shape} of no one rank"
        elif prod(B.shape[2:]) != 1:
            why = f"a factor B {B.shape} with a kernel of its own"
        elif file.configs and (part not in file.configs or "alpha" in parts):
            why = "its scale is not in the header"
    if why is not None:
        raise ValueError(f"{found.source}: expected plain LoRA; {site.layer}: {why}.")
    scale, _ = site_scale(file, site, A.shape[0])
    return Pair(
        site.layer, parts["B"], parts["A"], scale, parts.get("alpha"), part if file.configs else ""
    )


def _checked(found: LoraPairs) -> LoraPairs:
    unknown = [name for name in found.others if found.tensors.headers[name].dtype not in CODES]
    if unknown:
        raise ValueError(
            f"{found.source}: expected tensors of dtypes that safetensors and torch share; "
            f"{unknown[0]} has {found.tensors.headers[unknown[0]].dtype}."
        )
    if not found.pairs:
        raise ValueError(f"{found.source}: expected pairs of LoRA factors; found none.")
    return found


def _alpha_name(pair: Pair) -> str:
    stem = pair.A.partition(".lora_down")[0]
    return pair.alpha or f"{stem}.alpha"


def _alpha(pair: Pair, k: int) -> Tensor:
    """alpha = s k, in float32: 16 bits cannot represent every such number."""
    return torch.tensor(pair.scale * k, dtype=torch.float32)


def _settings(pairs: list[Pair], ranks: Mapping[str, int], prefix: str = "") -> dict[str, Any]:
    """PEFT's settings that give each layer its rank and its scale."""
    layers = {pair.layer.removeprefix(prefix): pair for pair in pairs}
    return peft_settings(
        {name: ranks[pair.layer] for name, pair in layers.items()},
        {name: pair.scale for name, pair in layers.items()},
    )
