"""LoRA on the experts of a layer (PEFT's ``target_parameters``): one B A per expert of a stacked
weight.

Letters: E experts, m rows (out), n columns (in), r rank of each expert. ``lora_A.weight`` (E r, n)
stacks the experts by rows, ``lora_B.weight`` (m, r E) holds them interleaved: column k
E + e is column k of expert e. The base stores (E, m, n), or (E, n, m) where the model transposes.
"""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor

from rankscope.weights.base_model import NESTED, BaseModel
from rankscope.weights.layer_update import LayerUpdate, update_matrices
from rankscope.weights.lora_config import LoraConfig
from rankscope.weights.matrix import Reading, Skipped

# Parameters of one module in the order in which Transformers declares
# them; w1, v1 and w2 are DBRX's.
DECLARED = (
    "gate_up_proj", "gate_up_proj_bias", "gate_proj", "up_proj", "w1", "v1", "w2", "down_proj",
    "down_proj_bias",
)  # fmt: skip


def targeted_parameter(
    targets: Collection[str], sites: Collection[str], layer: str
) -> tuple[str, str | None] | None:
    """The full name of the parameter that the factors of ``layer`` belong to, and why it may be
    another one.

    None: they belong to the layer's weight. Several parameters of one module are nested: the first
    that the module declares is the innermost, with its factors under ``module.base_layer``. No file
    has their order: it is known for Transformers' experts (``DECLARED``), and guessed elsewhere.
    """
    module = layer
    while module.endswith(NESTED):
        module = module.removesuffix(NESTED)
    names = {
        target.rpartition(".")[2]
        for target in targets
        if f".{module}".endswith(f".{target.rpartition('.')[0]}")
    }
    if not names:
        return None
    guessed = len(names) > 1 and not names <= set(DECLARED)
    place_of = {name: place for place, name in enumerate(DECLARED)}
    inner_first = sorted(names, key=lambda name: (place_of.get(name, len(DECLARED)), name))
    depths = [depth for depth in range(len(names)) if module + NESTED * depth in sites]
    place = len(depths) - 1 - depths.index((len(layer) - len(module)) // len(NESTED))
    found = f"{module}.{inner_first[min(place, len(inner_first) - 1)]}"
    listed = ", ".join(inner_first)
    return (
        found,
        f"a guess which of {listed} this is: no file tells their order" if guessed else None,
    )


def expert_matrices(
    config: LoraConfig,
    parameter: str,
    B: Tensor,
    A: Tensor,
    base: BaseModel | None,
    *,
    doubt: str | None,
) -> Reading:
    """W, dW and W + dW of each expert of ``parameter``, from B (m, r E) and A (E r, n);
    ``doubt`` joins the notes."""
    r = config.rank_of(parameter)
    if B.shape[1] != A.shape[0] or A.shape[0] % r:
        raise ValueError(
            f"{config.path}: expected A (E r, n) and B (m, r E) with r = {r} for {parameter}; "
            f"found A {tuple(A.shape)} and B {tuple(B.shape)}. Set r or rank_pattern to what "
            "was trained."
        )
    E, m, n = A.shape[0] // r, B.shape[0], A.shape[1]
    stack = None if base is None else base.experts(parameter, E)
    for e in range(E):
        name = f"{parameter}[{e}]" if E > 1 else parameter.removesuffix(".weight")
        weight = Skipped(name, stack.why) if isinstance(stack, Skipped) else stack and stack(e)
        own_B, own_A, scale = expert_factors(B, A, config.scale_of(parameter, r), E, e)
        factors = LayerUpdate(
            name,
            B=own_B,
            A=own_A,
            scale=scale,
            stored_in_out=_stored_in_out(weight, base, (m, n)),
            note="; ".join(filter(None, (config.doubt_of(parameter), doubt))) or None,
        )
        yield from update_matrices(factors, weight, hint="")


def expert_factors(
    B: Tensor, A: Tensor, scale: float, E: int, e: int
) -> tuple[Tensor, Tensor, float]:
    """B (m, r), A (r, n) and s of one expert."""
    r = A.shape[0] // E
    return B.reshape(B.shape[0], r, E)[:, :, e], A.reshape(E, r, A.shape[1])[e], scale


def _stored_in_out(
    weight: Tensor | Skipped | None, base: BaseModel | None, shape: tuple[int, int]
) -> bool:
    """Whether the base stores experts as (in, out): by its shape, or by its type if they are
    square."""
    if isinstance(weight, Tensor) and shape[0] != shape[1]:
        return tuple(weight.shape) == (shape[1], shape[0])
    return base is not None and base.transposes_experts
