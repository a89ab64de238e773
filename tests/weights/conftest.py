"""Adapters on tiny models as PEFT saves them, and what PEFT's own merge makes of them."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch

from weights.tiny import MODELS, SHARED, Case, shake


@pytest.fixture(scope="session")
def make_case(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Case]:
    """make_case("gpt2", r=4, ...): trains nothing, but fills every adapter tensor with noise.

    ``method`` is one of PEFT's configurations; LoRA's if not given.
    """

    def make(model: str, method: type[peft.PeftConfig] = peft.LoraConfig, **settings: object) -> Case:
        torch.manual_seed(len(model))
        folder = tmp_path_factory.mktemp(model)
        pretrained = MODELS[model]()
        pretrained.save_pretrained(folder / "base")
        before = {name: p.detach().double().clone() for name, p in pretrained.named_parameters()}
        with warnings.catch_warnings():  # PEFT's advice on Conv1D, embeddings and unsaved models
            warnings.simplefilter("ignore")
            adapted = peft.get_peft_model(copy.deepcopy(pretrained), method(**settings))
            shake(adapted)
            adapted.save_pretrained(folder / "adapter")
            # As anyone would load it: PEFT sorts the keys of its patterns when it saves, so order is the
            # file's.
            loaded = peft.PeftModel.from_pretrained(pretrained, folder / "adapter")
            merged = loaded.double().merge_and_unload()
        after = {name: p.detach().clone() for name, p in merged.named_parameters()}
        return Case(folder / "base", folder / "adapter", before, after)

    return make


@pytest.fixture(scope="session")
def real_adapters() -> Path:
    """Adapters trained by others, kept beside the checkout."""
    folder = SHARED / "adapters"
    if not folder.is_dir():
        pytest.skip(f"no real adapters here: {folder.name} is kept beside the checkout, not in it")
    return folder
