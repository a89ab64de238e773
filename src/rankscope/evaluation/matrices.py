"""The matrices of a model that updates change, by name: of a linear layer, or ``name[e]``, one of a
stack of experts.

Letters: m out, n in, E experts. A stack is (E, m, n), or (E, n, m) where the model has it so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from rankscope.train.model import weight_of
from rankscope.weights.tensors import STACKED

_EXPERT = re.compile(r"(.+)\[(\d+)\]")


def is_expert(name: str) -> bool:
    return _EXPERT.fullmatch(name) is not None


def experts(parameters: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """Each stack of experts among a model's parameters, by its name: the names of its matrices."""
    return {
        key: [f"{key.removesuffix('.weight')}[{e}]" for e in range(len(stack))]
        for key, stack in parameters.items()
        if stack.ndim == 3 and STACKED.search(key)
    }


class Matrices:
    """The matrices of one model; ``matrices[name]`` is W (m, n), detached."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.parameters = model, dict(model.named_parameters())

    def __contains__(self, name: str) -> bool:
        if (found := _EXPERT.fullmatch(name)) is None:
            return f"{name}.weight" in self.parameters
        return self._stack(found[1]) in self.parameters

    def __getitem__(self, name: str) -> Tensor:
        if (found := _EXPERT.fullmatch(name)) is None:
            return weight_of(self.model.get_submodule(name))
        return self.parameters[self._stack(found[1])].detach()[int(found[2])]

    def as_parameters(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Other values of some matrices, as parameters by their names in the model; the other
        experts of a stack keep theirs."""
        parameters: dict[str, Tensor] = {}
        for name, W in weights.items():
            if (found := _EXPERT.fullmatch(name)) is None:
                conv = isinstance(self.model.get_submodule(name), Conv1D)
                parameters[f"{name}.weight"] = W.mT if conv else W
                continue
            stack = self._stack(found[1])
            if stack not in parameters:
                parameters[stack] = self.parameters[stack].detach().clone()
            parameters[stack][int(found[2])] = W
        return parameters

    def _stack(self, name: str) -> str:
        return name if name in self.parameters else f"{name}.weight"
