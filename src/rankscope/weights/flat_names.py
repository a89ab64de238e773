"""Maps kohya's layer names, with underscores for dots, to layers of the base.

``lora_unet_down_blocks_0_...``: a model's name, then the layer's. Stable Diffusion's U-Net has two
naming schemes for its blocks, the original one (``input_blocks_4_1_...``, of single files and of
kohya's SDXL) and that of diffusers (``down_blocks_1_attentions_0_...``): both are handled here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

T5_OF_FLUX = ("text_encoder_3_", "text_encoder_2")
# The text encoders of a pipeline's folders, and of a single file of SDXL or of SD3.
TEXT_ENCODER = re.compile(
    r"(text_encoder(?:_\d)?)\.|conditioner\.embedders\.(\d)\.|text_encoders\.(clip_l|clip_g|t5xxl)\."
)
SINGLE_FILE = {
    "0": "text_encoder", "1": "text_encoder_2",
    "clip_l": "text_encoder", "clip_g": "text_encoder_2", "t5xxl": "text_encoder_3",
}  # fmt: skip
BLOCK = re.compile(r"(?:input_blocks_(\d+)|middle_block|output_blocks_(\d+))_(\d)_(.+)")
RESNET = {
    "in_layers_0": "norm1", "in_layers_2": "conv1", "emb_layers_1": "time_emb_proj",
    "out_layers_0": "norm2", "out_layers_3": "conv2", "skip_connection": "conv_shortcut",
}  # fmt: skip
OUTSIDE = {
    "input_blocks_0_0": "conv_in", "out_2": "conv_out",
    "time_embed_0": "time_embedding_linear_1", "time_embed_2": "time_embedding_linear_2",
    "label_emb_0_0": "add_embedding_linear_1", "label_emb_0_2": "add_embedding_linear_2",
}  # fmt: skip
# names in which there is something to translate begin so
ORIGINAL = ("input_blocks_", "middle_block_", "output_blocks_", *OUTSIDE)
# Stable Diffusion's blocks have two layers each on the way down, three on the way up.
STEPS = 3
MIDDLE = ("resnets_0", "attentions_0", "resnets_1")


def flat_names(layers: Iterable[str]) -> dict[str, str]:
    """Layer name with underscores for dots, with or without its first one to four parts -> layer,
    where that is unique."""
    names: dict[str, str] = {}
    several = set()
    for layer in layers:
        parts = layer.split(".")
        flats = ["_".join(parts[cut:]) for cut in range(min(5, len(parts)))]
        if (found := TEXT_ENCODER.match(layer)) is not None:
            inner = layer[found.end() :].removeprefix("transformer.").replace(".", "_")
            flats.append(f"{_text_encoder(layer)}_{inner}")
        for flat in flats:
            for name in (flat, as_diffusers(flat)) if flat.startswith(ORIGINAL) else (flat,):
                if names.setdefault(name, layer) != layer:
                    several.add(name)
    return {flat: layer for flat, layer in names.items() if flat not in several}


def layer_of_flat(names: dict[str, str], flat: str) -> str | None:
    """The layer that kohya calls ``flat``, by the ``flat_names`` of a base.

    None if no layer, or more than one, has such a name.
    """
    own = re.sub(r"^lora_te1?_", "lora_text_encoder_", flat)
    own = re.sub(r"^lora_te(\d)_", r"lora_text_encoder_\1_", own)
    whole = re.sub(r"^(lora|lycoris)_", "", own)
    if (found := names.get(whole)) is not None:
        return found
    part = re.match(r"text_encoder(_\d)?_|(unet|transformer|prior_unet)_", whole)
    short = whole[part.end() :] if part else whole
    inner = names.get(short) or names.get(as_diffusers(short))
    # A text encoder other than the one named is another model, except for
    # kohya's third: T5, Flux's second.
    encoder = _text_encoder(inner or "")
    if encoder and part and f"{encoder}_" != part[0] and (part[0], encoder) != T5_OF_FLUX:
        return None
    return inner


def as_diffusers(flat: str) -> str:
    """Translates a flat name from Stable Diffusion's original scheme to diffusers'; leaves others
    unchanged."""
    found = BLOCK.fullmatch(flat)
    if flat in OUTSIDE or found is None:
        return OUTSIDE.get(flat, flat)
    down, up, inner, rest = found.groups()
    kind = "resnets" if inner == "0" else "attentions"
    rest = RESNET.get(rest, rest)
    if down is not None:
        block, layer = divmod(int(down) - 1, STEPS)
        place = "downsamplers_0" if rest == "op" else f"{kind}_{layer}"
        return f"down_blocks_{block}_{place}_{'conv' if rest == 'op' else rest}"
    if up is not None:
        block, layer = divmod(int(up), STEPS)
        place = "upsamplers_0" if rest == "conv" else f"{kind}_{layer}"
        return f"up_blocks_{block}_{place}_{rest}"
    return f"mid_block_{MIDDLE[min(int(inner), 2)]}_{rest}"


def _text_encoder(layer: str) -> str | None:
    """Which of a pipeline's text encoders a layer belongs to; None if its name does not say."""
    if (found := TEXT_ENCODER.match(layer)) is None:
        return None
    return found[1] or SINGLE_FILE.get(found[2] or found[3], f"text_encoder_{found[2]}")
