"""Any adapter or checkpoint -> matrices to measure: determines what a path or hub id is, and reads
it."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankscope.weights.base_model import BaseModel, open_base_model
from rankscope.weights.checkpoints import FILES, INDEXES, open_file, open_place, read_json
from rankscope.weights.difference import checkpoint_layers, saved_layers
from rankscope.weights.hub import Place, place
from rankscope.weights.lora_config import lora_config, not_low_rank
from rankscope.weights.lora_file import lora_layers
from rankscope.weights.lora_names import check_no_factors, is_adapter, lora_names, lora_styles
from rankscope.weights.lora_settings import Given, PeftSettings, Settings, adapterhub, litgpt, mlx
from rankscope.weights.matrix import Layer, Reading, selected, skipped
from rankscope.weights.peft_adapter import adapter_layers, open_adapter
from rankscope.weights.peft_merge import METHODS, NO_DIFFERENCE, adapted_layers, merged_layers
from rankscope.weights.tensors import Tensors, without_wrappers

CONFIG = "adapter_config.json"
# PEFT's, torchtune's, AdapterHub's and MLX's; then a whole model's state with the factors in it.
ADAPTERS = (
    "adapter_model.safetensors", "adapter_model.bin", "adapter_model.pt", "adapter.safetensors",
    "pytorch_adapter.bin", "adapters.safetensors", "adapters.npz",
)  # fmt: skip
WHOLE = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
NUMBERED = r"adapter_\d+\.pt"
SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".npz")
GUESSES = {
    "kohya": "no alpha in the file: alpha = r taken, as kohya, ComfyUI and diffusers do",
    "loralib": "no alpha in a loralib file: scale 1 (alpha = r) assumed; give alpha=",
}
GUESS = "no configuration beside the file: scale 1 (alpha = r) assumed; give alpha="


@dataclass(frozen=True)
class Found:
    """What a path or hub id refers to: its tensors, the adapter_config.json beside them and their
    folder."""

    source: str
    tensors: Tensors
    config: Path | None
    content: Mapping[str, Any]
    folder: Path | None
    neighbours: tuple[str, ...] = ()  # subfolders with adapters of their own

    @property
    def base_model(self) -> str:
        """The base's name in the configuration, quoted for a shell."""
        name = self.content.get("base_model_name_or_path")
        return shlex.quote(name) if isinstance(name, str) and name else "MODEL"

    def revision_of(self, base: str | Path) -> str | None:
        """The revision of ``base`` that the configuration says the adapter was trained on."""
        revision = self.content.get("revision")
        named = str(base) == self.content.get("base_model_name_or_path")
        known = isinstance(revision, str) and revision and not Path(base).is_dir()
        return revision if named and known else None


def read(
    source: str | Path,
    *,
    base: str | Path | None = None,
    layers: re.Pattern[str] | None = None,
    alpha: float | None = None,
    subfolder: str | None = None,
    revision: str | None = None,
    base_revision: str | None = None,
) -> Reading:
    """The matrices of an adapter or a full checkpoint, one layer at a time.

    Every tensor of ``source`` belongs to a Matrix or to a Skipped. ``alpha`` is for files that
    store none; ``subfolder`` and ``revision`` select within ``source``. Without ``base_revision``
    the adapter's configuration decides. Raises ``ValueError``, one line, if ``source`` or ``base``
    is missing, malformed or not a low-rank update, if they belong to different models, or if
    ``layers`` matches nothing.
    """
    if alpha is not None and not (math.isfinite(alpha) and alpha > 0):
        raise ValueError(f"alpha: expected a number above 0, as in training; found {alpha:g}.")
    if base is None and base_revision is not None:
        raise ValueError(
            f"base_revision: expected the base beside it; found {base_revision!r} alone. "
            "Type --base"
        )
    found = find(source, subfolder=subfolder, revision=revision)
    pretrained = None
    if base is not None:
        pretrained = open_base_model(base, revision=base_revision or found.revision_of(base))
    return selected(_layers(found, pretrained, alpha), layers)


def find(source: str | Path, *, subfolder: str | None = None, revision: str | None = None) -> Found:
    """What a path or hub id refers to. ``ValueError``, one line, if there are no tensors."""
    path = Path(source).expanduser()
    if path.is_file():
        return _file(path, str(source))
    return _place(place(source, revision=revision, subfolder=subfolder))


def _file(path: Path, source: str) -> Found:
    tensors, config = open_file(path), path.parent / CONFIG
    beside = config.is_file() and (
        is_adapter(tensors) or path.name in ADAPTERS or path.name.startswith("adapter_")
    )
    return Found(
        source,
        tensors,
        config if beside else None,
        read_json(config) if beside else {},
        path.parent,
    )


def _place(where: Place) -> Found:
    config = where.find(CONFIG)
    neighbours = tuple(where.folders_with(CONFIG))
    if config is None:
        tensors = open_place(where)
        if tensors is None:
            raise ValueError(
                f"{where.source}: expected an adapter ({CONFIG}) or a checkpoint "
                f"({', '.join((*FILES, *INDEXES[:1]))}); found "
                f"{where.names()}.{_inside(where, neighbours)}"
            )
        for name in (
            name for name in ("hyperparameters.yaml", "model_config.yaml") if where.folder is None
        ):
            where.find(name)  # downloads it
        return Found(where.source, tensors, None, {}, where.folder)
    files = (where.find(name) for name in (*ADAPTERS, *(f"{a}.index.json" for a in ADAPTERS[:2])))
    file = next((path for path in files if path is not None), None) or where.last(NUMBERED)
    content = read_json(config)
    if file is not None:
        return Found(where.source, open_file(file), config, content, config.parent, neighbours)
    whole = open_place(where)
    if whole is None or not is_adapter(whole):
        raise ValueError(
            f"{where.source}: expected {ADAPTERS[0]} or {ADAPTERS[1]} beside {CONFIG}; found "
            f"{where.names()}."
        )
    return Found(where.source, whole, config, content, config.parent, neighbours)


def _layers(found: Found, base: BaseModel | None, alpha: float | None) -> Iterator[Layer]:
    tensors = without_wrappers(found.tensors)
    styles = lora_styles(tensors)
    if found.config is not None and is_peft(found.content, styles):
        _refuse_alpha(alpha, found)
        yield from _peft(found, found.config, tensors, base)
    elif not is_adapter(tensors):
        if alpha is not None:
            raise ValueError(
                f"alpha: expected none for {found.source}, which holds no LoRA factors; found "
                f"{alpha:g}."
            )
        yield from _checkpoint(found, tensors, base)
    else:
        names = lora_names(tensors)
        unscaled = any("alpha" not in site.parts for site in names.sites)
        unscaled = unscaled and found.config is None and alpha is None
        if unscaled and "peft" in styles and _of_peft(tensors):
            raise ValueError(
                f"{tensors.where}: expected {CONFIG} beside these LoRA factors, with their "
                "scale; found none. "
                "Put it there, or give --alpha"
            )
        settings = _settings(found, styles, alpha)
        if not isinstance(settings, Given) or any("alpha" in site.parts for site in names.sites):
            _refuse_alpha(alpha, found)
        yield from lora_layers(tensors, names, settings, base)
    for name in found.neighbours:
        yield skipped(name, f"another adapter in this folder: type --subfolder {shlex.quote(name)}")


def _peft(found: Found, config: Path, tensors: Tensors, base: BaseModel | None) -> Iterator[Layer]:
    """An adapter of any PEFT method. ``ValueError``, one line, if it cannot be measured."""
    method = str(found.content.get("peft_type"))[:40]
    if method == "LORA":
        yield from adapter_layers(open_adapter(config, found.content, tensors), base)
        return
    if method in NO_DIFFERENCE or method not in METHODS:
        why = NO_DIFFERENCE.get(method, "not a method of PEFT")
        raise not_low_rank(found.source, method, f": {why}.")
    if base is None:
        command = f"rankscope measure {shlex.quote(found.source)} --base {found.base_model}"
        why = f". With its base the true W' - W can be measured, so type: {command}"
        raise not_low_rank(found.source, method, why)
    layers, others = adapted_layers(tensors, base)
    if layers.keys() == {""}:
        base.check_same_model([*tensors], found.source, matched=False)
    yield from merged_layers(found.content, tensors, layers, base)
    for name in layers[""]:
        yield skipped(name, "shared by all layers, and part of each W' - W")
    yield from saved_layers(tensors, others, base)


def _checkpoint(found: Found, tensors: Tensors, base: BaseModel | None) -> Iterator[Layer]:
    if found.config is not None and _kind(found.content) == "adapterhub":
        adapterhub(found.config, found.content)  # raises, with what it is instead
    if base is None:
        check_no_factors(tensors)
    yield from checkpoint_layers(tensors, base)


def is_peft(content: Mapping[str, Any], styles: Collection[str]) -> bool:
    """Whether PEFT's rules apply: torchtune writes the same configuration with its own tensor
    names."""
    if _kind(content) != "peft":
        return False
    # Some other PEFT methods use LyCORIS's names.
    return content.get("peft_type", "LORA") != "LORA" or not {
        "torchtune",
        "kohya",
        "lycoris",
    } & set(styles)


def _kind(content: Mapping[str, Any]) -> str:
    """Which library wrote adapter_config.json."""
    if "peft_type" in content:
        return "peft"
    if content.keys() & {"fine_tune_type", "lora_parameters", "lora_layers"}:
        return "mlx"
    return "adapterhub" if "config" in content or "architecture" in content else "peft"


def _settings(found: Found, styles: set[str], alpha: float | None) -> Settings:
    """Reads the settings that give each layer its scale."""
    if found.config is not None:
        kind = _kind(found.content)
        if kind == "mlx":
            return mlx(found.config, found.content)
        if kind == "adapterhub":
            return adapterhub(found.config, found.content)
        return PeftSettings(lora_config(found.config, found.content), found.content)
    lit = litgpt(found.folder) if found.folder is not None and "loralib" in styles else None
    if lit is not None:
        return lit
    style = next(iter(styles & {"loralib", "torchtune", "mlx"}), "kohya")
    return Given(alpha, GUESSES.get(style, GUESS))


def _refuse_alpha(alpha: float | None, found: Found) -> None:
    if alpha is not None:
        where = "the file" if found.config is None else found.config
        raise ValueError(
            f"alpha: expected none for {found.source}, since {where} gives the scale; found "
            f"{alpha:g}."
        )


def _of_peft(tensors: Tensors) -> bool:
    """Whether the names have PEFT's module prefix, which diffusers' files omit."""
    return any(name.startswith("base_model.") or ".base_layer." in name for name in tensors)


def _inside(where: Place, folders: tuple[str, ...]) -> str:
    """What to type instead: the name of one of several adapters or checkpoints in the folder, its
    only tensor file, or the command that turns a trainer's shards into a checkpoint."""
    whole = [name for file in WHOLE for name in where.folders_with(file)]
    if folders or whole:
        kind, name = ("adapters", folders[0]) if folders else ("checkpoints", whole[0])
        return f" Name one of its {kind}: --subfolder {shlex.quote(name)}"
    if where.folder is None:
        return ""
    names = {path.name for path in where.folder.iterdir()}
    names |= {path.name for path in where.folder.glob("*/*.distcp")}
    if "zero_to_fp32.py" in names or any(name.endswith("_optim_states.pt") for name in names):
        script = "its own script, python zero_to_fp32.py . OUT,"
        return f" DeepSpeed's shards: {script} makes a checkpoint of them; measure OUT"
    if any(name.endswith(".distcp") for name in names):
        return " FSDP's shards: accelerate merge-weights FOLDER OUT makes a checkpoint of them"
    files = sorted(path for path in where.folder.iterdir() if path.suffix in SUFFIXES)
    return f" Name its file: {shlex.quote(str(files[0]))}" if len(files) == 1 else ""
