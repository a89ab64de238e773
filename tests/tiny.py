"""Tiny models built from configuration, what PEFT makes of them, and the slow, obvious stable
rank."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn

SHARED = Path(__file__).parents[1].parent / "shared" / "data"


def roberta() -> nn.Module:
    config = transformers.RobertaConfig(
        vocab_size=50,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=40,
    )
    return transformers.RobertaForSequenceClassification(config)


def gpt2() -> nn.Module:
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=50, n_embd=24, n_layer=2, n_head=2, n_positions=16, tie_word_embeddings=False
        )
    )


def llama() -> nn.Module:
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=50,
            hidden_size=24,
            intermediate_size=40,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
        )
    )


def t5() -> nn.Module:
    return transformers.T5ForConditionalGeneration(
        transformers.T5Config(vocab_size=50, d_model=24, d_kv=8, d_ff=40, num_layers=1, num_heads=3)
    )


def resnet() -> nn.Module:
    return transformers.ResNetForImageClassification(
        transformers.ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"
        )
    )


def mixtral() -> nn.Module:
    """Its checkpoints hold the experts one by one; in memory they are stacked."""
    config = transformers.MixtralConfig(**EXPERTS, intermediate_size=40, num_local_experts=3)
    return transformers.MixtralForCausalLM(config)


def gpt_oss() -> nn.Module:
    """Its experts are stacked in checkpoints, too, stored (E, in, out), and ``down_proj`` is
    square."""
    config = transformers.GptOssConfig(
        **EXPERTS, intermediate_size=24, num_local_experts=3, head_dim=8
    )
    return transformers.GptOssForCausalLM(config)


def dbrx() -> nn.Module:
    """Three parameters of one shape in each stack of experts, declared as w1, v1, w2."""
    config = transformers.DbrxConfig(
        d_model=24, n_heads=4, n_layers=1, max_seq_len=16, vocab_size=50,
        ffn_config={"ffn_hidden_size": 16, "moe_num_experts": 3, "moe_top_k": 1},
        attn_config={"kv_n_heads": 2, "clip_qkv": 8},
    )  # fmt: skip
    config.attn_config.rope_theta = 1e4
    return transformers.DbrxForCausalLM(config)


def tied_gpt2() -> nn.Module:
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=50, n_embd=24, n_layer=1, n_head=2, n_positions=16)
    )


class Convolutions(nn.Module):
    """Of one, two and three dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv1d(6, 10, 3)
        self.two = nn.Conv2d(6, 10, (3, 2))
        self.three = nn.Conv3d(4, 8, 2)

    def save_pretrained(self, folder: Path) -> None:
        folder.mkdir()
        save_file(self.state_dict(), folder / "model.safetensors")


class Attention(nn.Module):
    """torch's own, whose three projections are one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(24, 4)

    def save_pretrained(self, folder: Path) -> None:
        folder.mkdir()
        save_file(self.state_dict(), folder / "model.safetensors")


EXPERTS: dict[str, Any] = {
    "vocab_size": 50, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip
MODELS = {
    "roberta": roberta, "gpt2": gpt2, "llama": llama, "t5": t5, "resnet": resnet,
    "mixtral": mixtral,
    "gpt-oss": gpt_oss, "dbrx": dbrx, "tied-gpt2": tied_gpt2, "convolutions": Convolutions,
    "attention": Attention,
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """An adapter and its base on disk, and the oracle: base and merged weights by name, in
    float64."""

    base: Path
    adapter: Path
    before: dict[str, Tensor]
    after: dict[str, Tensor]

    def changed(self) -> list[str]:
        """The layers whose weight matrix PEFT's merge changes, the experts of a stack one by
        one."""
        names: list[str] = []
        for name, W in self.before.items():
            if W.ndim > 1 and not torch.equal(W, self.after[name]):
                stack = W.ndim == 3 and "experts" in name
                names += (
                    [f"{name}[{e}]" for e in range(len(W))]
                    if stack
                    else [name.removesuffix(".weight")]
                )
        return names

    def dense(self, layer: str, matrix: str) -> Tensor:
        """W, dW or W + dW as PEFT makes it, float64: a convolution flattened to (out, in k
        k), of a stack one expert."""
        if expert := re.fullmatch(r"(.+)\[(\d+)\]", layer):
            stack, e = expert[1], int(expert[2])
            W, new = self.before[stack][e], self.after[stack][e]
            return {"W": W, "dW": new - W, "W+dW": new}[matrix]
        name = f"{layer}.weight" if f"{layer}.weight" in self.before else layer
        W, new = self.before[name].flatten(1), self.after[name].flatten(1)
        return {"W": W, "dW": new - W, "W+dW": new}[matrix]


def edited(case: Case, folder: Path, **settings: object) -> Path:
    """A copy of the case's adapter with other settings in its configuration."""
    shutil.copytree(case.adapter, folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | settings))
    return folder


def shake(adapted: nn.Module) -> None:
    """Noise on whatever is trained, so that no update is zero."""
    generator = torch.Generator().manual_seed(7)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=generator) * 0.05
            parameter.data += noise


def stable_rank(M: Tensor) -> float:
    """The slow, obvious one."""
    sigma = torch.linalg.svdvals(M.double())
    return float(sigma.square().sum() / sigma[0].square())
