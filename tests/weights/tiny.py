"""Tiny models built from configuration, what PEFT makes of them, and the slow, obvious stable rank."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from torch import Tensor, nn

SHARED = Path(__file__).parents[2].parent / "shared" / "data"


def roberta() -> nn.Module:
    config = transformers.RobertaConfig(
        vocab_size=50, hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=40
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
        transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    )


MODELS = {"roberta": roberta, "gpt2": gpt2, "llama": llama, "t5": t5, "resnet": resnet}


@dataclass(frozen=True)
class Case:
    """An adapter and its base on disk, and the oracle: base and merged weights by name, in float64."""

    base: Path
    adapter: Path
    before: dict[str, Tensor]
    after: dict[str, Tensor]

    def changed(self) -> list[str]:
        """The layers whose weight matrix PEFT's merge changes."""
        return [
            name.removesuffix(".weight")
            for name, W in self.before.items()
            if W.ndim > 1 and not torch.equal(W, self.after[name])
        ]

    def dense(self, layer: str, matrix: str) -> Tensor:
        """W, dW or W + dW as PEFT makes it, float64; a convolution flattened to (out, in k k)."""
        name = f"{layer}.weight" if f"{layer}.weight" in self.before else layer
        W, new = self.before[name].flatten(1), self.after[name].flatten(1)
        return {"W": W, "dW": new - W, "W+dW": new}[matrix]


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
