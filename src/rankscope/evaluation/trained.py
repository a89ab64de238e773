"""What training changed in a base model: updates of linear layers, the head, and other weights.

Letters: m out, n in. Updates are (m, n), as ``weight_of`` has a layer's weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from rankscope.evaluation.matrices import experts
from rankscope.linalg import Dense, LowRank
from rankscope.study.tasks import Task
from rankscope.train.loading import load_model
from rankscope.train.model import trained_in_full, weight_of
from rankscope.weights.checkpoints import open_checkpoint, open_file
from rankscope.weights.hub import place
from rankscope.weights.matrix import Matrix
from rankscope.weights.source import ADAPTERS, read
from rankscope.weights.tensors import Tensors

_PREFIX = "base_model.model."  # of PEFT's names
_CONFIG = "adapter_config.json"
STACK = "factors of a stack of experts; those of a full fine-tune can be"


@dataclass(frozen=True)
class Trained:
    """A trained update.

    Attributes:
        updates: dW of each changed linear layer of the base model, by the layer's name, and of each
            expert of a stack (``name[e]``): LowRank where it has factors, else Dense (a full
            fine-tune; DoRA's W' - W).
        head: parameters of the modules that are trained in full, by their names.
        rest: trained values of the other parameters of the base model: embeddings, norms, biases of
            a full fine-tune. No edit changes them.
    """

    name: str
    updates: Mapping[str, LowRank | Dense]
    head: Mapping[str, Tensor]
    rest: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def unedited(self) -> list[str]:
        """The weights in ``rest`` of three dimensions: convolutions, XLNet's attention."""
        return [key for key, value in self.rest.items() if value.ndim > 2]


def read_trained(
    source: str | Path, base: PreTrainedModel, task: Task, *, base_path: str, name: str = ""
) -> Trained:
    """The adapter or full checkpoint in a folder or repository, trained from ``base``.

    ``ValueError``, one line, if it belongs to another model or lacks the head that was trained with
    it.
    """
    name = name or str(source)
    where = place(source)
    if where.find(_CONFIG) is None:
        return _checkpoint(str(source), open_checkpoint(where), base, task, name)
    file = next((path for path in map(where.find, ADAPTERS) if path is not None), None)
    if file is None:
        raise ValueError(f"{source}: expected {ADAPTERS[0]} beside {_CONFIG}; found none")
    return _adapter(source, open_file(file), base, base_path, name)


def _adapter(
    source: str | Path, tensors: Tensors, base: PreTrainedModel, base_path: str, name: str
) -> Trained:
    parameters, modules = dict(base.named_parameters()), dict(base.named_modules())
    saved = {}
    for key in tensors:
        plain = key.removeprefix(_PREFIX)
        plain = plain.replace(".modules_to_save.default.", ".").replace(".modules_to_save.", ".")
        if plain in parameters:
            saved[plain] = tensors.read(key)
    updates: dict[str, LowRank | Dense] = {}
    rest = {}
    for one in read(source, base=base_path):
        known = {one.layer, f"{one.layer}.weight"} & saved.keys()
        if known or (isinstance(one, Matrix) and one.matrix != "dW"):
            continue
        if not isinstance(one, Matrix):
            raise ValueError(f"{name}: {one.layer} can't be edited: {one.why}")
        if one.operator is None:
            raise ValueError(f"{name}: {one.layer} can't be edited: {one.note}")
        layer, operator = modules.get(one.layer), one.operator
        if isinstance(layer, nn.Linear | Conv1D):
            dW = operator.mT if isinstance(layer, Conv1D) else operator
            _check(name, one.layer, tuple(dW.shape), tuple(weight_of(layer).shape))
            updates[one.layer] = dW if isinstance(dW, LowRank) else Dense(dW.to_dense().double())
        elif (weight := parameters.get(f"{one.layer}.weight")) is not None:  # an embedding
            _check(name, one.layer, tuple(operator.shape), tuple(weight.shape))
            rest[f"{one.layer}.weight"] = weight.detach() + operator.to_dense().to(weight.dtype)
        elif one.layer.rpartition("[")[0] in parameters:
            raise ValueError(f"{name}: {one.layer} can't be edited: {STACK}")
        else:
            raise ValueError(
                f"{name}: expected layers of {type(base).__name__}; found {one.layer}: another "
                "model's adapter"
            )
    head = _head_names(base)
    if lacking := sorted(head - saved.keys()):
        raise ValueError(
            f"{name}: expected the head that was trained with it; its file lacks {lacking[0]}"
        )
    for key, value in saved.items():
        _check(name, key, tuple(value.shape), tuple(parameters[key].shape))
    others = {key: value for key, value in saved.items() if key not in head}
    return Trained(name, updates, {key: saved[key] for key in sorted(head)}, rest | others)


def _checkpoint(
    source: str, tensors: Tensors, base: PreTrainedModel, task: Task, name: str
) -> Trained:
    """A full fine-tune: all linear layers and experts of the base model have updates."""
    head = _head_names(base)
    if lacking := sorted(head - set(tensors)):
        raise ValueError(
            f"{name}: expected the head that was trained with it; its file lacks {lacking[0]}"
        )
    tuned = dict(load_model(source, task).named_parameters())
    parameters = {key: p.detach() for key, p in base.named_parameters()}
    if odd := sorted(tuned.keys() ^ parameters.keys()):
        raise ValueError(f"{name}: expected a fine-tuned {type(base).__name__}; {odd[0]} differs")
    for key, value in tuned.items():
        _check(name, key, tuple(value.shape), tuple(parameters[key].shape))
    updates: dict[str, LowRank | Dense] = {}
    left = tuned.keys() - head
    for layer, module in base.named_modules():
        key = f"{layer}.weight"
        if isinstance(module, nn.Linear | Conv1D) and key in left:
            dW = tuned[key].detach().double() - parameters[key].double()
            updates[layer] = Dense(dW.mT if isinstance(module, Conv1D) else dW)
            left.discard(key)
    for key, names in experts(parameters).items():
        stack = tuned[key].detach().double() - parameters[key].double()
        updates |= {expert: Dense(dW) for expert, dW in zip(names, stack, strict=True)}
        left.discard(key)
    if not any(bool(update.to_dense().any()) for update in updates.values()):
        raise ValueError(f"{name}: expected a fine-tuned model; its weights are the base's")
    rest = {k: tuned[k].detach() for k in sorted(left) if not tuned[k].equal(parameters[k])}
    return Trained(name, updates, {key: tuned[key].detach() for key in sorted(head)}, rest)


def _head_names(base: PreTrainedModel) -> set[str]:
    return {
        f"{name}.{key}"
        for name, module in trained_in_full(base).items()
        for key, _ in module.named_parameters(recurse=False)
    }


def _check(name: str, layer: str, found: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    if found != wanted:
        raise ValueError(
            f"{name}: expected {layer} of shape {wanted}, as in the base; found {found}: another "
            "model's"
        )
