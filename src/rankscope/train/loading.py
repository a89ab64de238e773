"""Loads a Hugging Face classifier or language model from a folder or a hub id: checks its
configuration before transformers acts on it, then loads the model, with or without weights, and
its tokenizer."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.utils import logging as hub_logging
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from rankscope.study.tasks import Task
from rankscope.weights.hub import of_folder

CONFIG, ADAPTER = "config.json", "adapter_config.json"
LARGEST_FILE = 2**24  # bytes of a config.json: real ones have thousands
MOST_PARTS = 10_000  # layers, heads ...: transformers builds them one by one
MOST_EXPERTS = 2**15  # are stacked; Doge says 16,384, also where it has none
LARGEST_NUMBER = 2**31


def load_model(model: str, task: Task) -> PreTrainedModel:
    """The model in float32, with eager attention, the only one that supports all arguments.

    Weights that its file lacks are drawn from a fixed seed.

    Parameters require a gradient in the layers of ``trained_in_full``, in no other. ``ValueError``,
    one line, for a folder or hub id that can't be trained on.
    """
    with one_line(model), quiet(), torch.random.fork_rng():
        torch.manual_seed(0)
        loaded = _from_pretrained(model, task, attn_implementation="eager")
        config = loaded.config.get_text_config()
        if config.pad_token_id is None:  # decoders classify the last token that is not padding
            config.pad_token_id = load_tokenizer(model).pad_token_id
        return loaded


def _from_pretrained(model: str, task: Task, **settings: Any) -> PreTrainedModel:
    """The model, with gradients where ``load_model`` says."""
    check_folder(model)
    labels = {} if task.is_language else {"num_labels": task.num_labels}
    loaded, report = auto_class(task).from_pretrained(
        model, dtype=torch.float32, ignore_mismatched_sizes=True, output_loading_info=True,
        trust_remote_code=False, **labels, **settings,
    )  # fmt: skip
    _name_base(loaded)
    if getattr(loaded, "_hf_peft_config_loaded", False):
        raise ValueError("found an adapter in it: name the model that the adapter was trained on")
    # a classifier's head is drawn anew; a language model's belongs to what was pretrained
    prefix = "" if task.is_language else loaded.base_model_prefix + "."
    wrong = sorted(name for name, *_ in report["mismatched_keys"] if name.startswith(prefix))
    if wrong:  # a head for another number of labels doesn't matter
        raise ValueError(f"its file and its config.json disagree about the shape of {wrong[0]}")
    absent = sorted(name for name in report["missing_keys"] if name.startswith(prefix))
    above = () if task.is_language else _above_blocks(loaded)
    if lost := [name for name in absent if not name.startswith(above)]:
        raise ValueError(
            f"its file lacks {len(lost)} of the model's weights, the first is {lost[0]}"
        )
    if task.is_language:
        loaded.requires_grad_(False)
        return loaded
    _require_gradients(loaded, {name.rpartition(".")[0] for name in absent})
    if task.labels:
        loaded.config.id2label = dict(enumerate(task.labels))
        loaded.config.label2id = {name: number for number, name in enumerate(task.labels)}
    return loaded


def _name_base(model: PreTrainedModel) -> None:
    """Llama 4's text model keeps its base under another name than it says."""
    if not hasattr(model, model.base_model_prefix) and hasattr(model, "model"):
        model.base_model_prefix = "model"


def auto_class(task: Task) -> Any:
    """transformers' class for the models of a task."""
    return AutoModelForCausalLM if task.is_language else AutoModelForSequenceClassification


def _above_blocks(model: PreTrainedModel) -> tuple[str, ...]:
    """The parts of the base model that follow its blocks, such as BERT's pooler: if a
    file lacks one, it can be trained with the head; embeddings and blocks cannot."""
    children = list(model.base_model.named_children())
    blocks = [
        i
        for i, (_, part) in enumerate(children)
        if any(isinstance(m, nn.ModuleList) for m in part.modules())
    ]
    above = children[blocks[-1] + 1 :] if blocks else []
    return tuple(f"{model.base_model_prefix}.{name}." for name, _ in above)


def _require_gradients(model: PreTrainedModel, absent: Collection[str] = ()) -> None:
    """Lets the modules outside the base model, and those that the file lacks, be trained.
    ``ValueError`` if there is none (Perceiver)."""
    model.requires_grad_(False)
    prefix = model.base_model_prefix
    for name, module in model.named_modules():
        if name in absent or not f"{name}.".startswith(f"{prefix}."):
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(True)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(
            f"expected a head outside the base model; {type(model).__name__} has it inside"
        )


def sharing_weights(model: PreTrainedModel) -> PreTrainedModel:
    """A copy whose parameters are those of ``model``; changes of modules leave it as it is."""
    return copy.deepcopy(model, {id(p): p for p in model.parameters()})


def load_tokenizer(model: str) -> Any:
    with one_line(model), quiet():
        tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer


def skeleton(model: str, task: Task) -> PreTrainedModel:
    """The model without its weights (on the meta device): shapes and names only, gradients as
    ``load_model`` has them.

    A local folder's file is compared with its configuration; of a hub model only the configuration
    is read.
    """
    with one_line(model), quiet():
        if Path(model).is_dir():
            return _from_pretrained(model, task, device_map="meta")
        check_folder(model)
        with torch.device("meta"):
            labels = {} if task.is_language else {"num_labels": task.num_labels}
            config = AutoConfig.from_pretrained(model, trust_remote_code=False, **labels)
            found = auto_class(task).from_config(config, trust_remote_code=False)
        _name_base(found)
        if task.is_language:
            found.requires_grad_(False)
        else:
            _require_gradients(found)
        return found


def fingerprint(model: str) -> str:
    """SHA-256 of a local folder's configuration and weights; the commit of a hub model."""
    if Path(model).is_dir():
        return of_folder(Path(model))
    with one_line(model), quiet():  # the cache keeps a file under snapshots/<commit>/
        return Path(hf_hub_download(model, "config.json")).parent.name


@contextlib.contextmanager
def one_line(model: str) -> Iterator[None]:
    """Turns any error of transformers about a model into a ``ValueError`` of one line.
    Out-of-memory errors pass unchanged."""
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        expected = (
            "expected a folder with config.json, weights and tokenizer, or a hub id "
            "that can be reached"
        )
        raise ValueError(f"model {model!r}: {expected}; {reason}") from None


def is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences transformers' progress bars and its report on newly drawn heads, which we expect."""
    verbosity, bar = (
        transformers_logging.get_verbosity(),
        transformers_logging.is_progress_bar_enabled(),
    )
    hub_verbosity = hub_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    hub_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        hub_logging.set_verbosity(hub_verbosity)
        if bar:
            transformers_logging.enable_progress_bar()


def check_folder(model: str) -> None:
    """``ValueError`` or ``OSError`` for a folder or hub id whose configuration can't be a base
    model's."""
    folder = Path(model)
    if not folder.is_dir():
        check_config(Path(hf_hub_download(model, CONFIG)))
        return
    if (folder / ADAPTER).is_file():
        raise ValueError(
            f"found an adapter in it ({ADAPTER}): name the model that it was trained on, or "
            "merge it first"
        )
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(f"found no {CONFIG} in it")
    check_config(folder / CONFIG)


def check_config(path: Path) -> None:
    """A JSON object with a model_type, and with no size that could not be built."""
    if path.stat().st_size > LARGEST_FILE:
        raise ValueError(f"{path}: expected a configuration; found {path.stat().st_size} bytes")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise ValueError(f"{path}: expected JSON; {error}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path}: expected a JSON object; found {type(config).__name__}")
    if not isinstance(config.get("model_type"), str):
        raise ValueError(f"{path}: expected a model_type; found {config.get('model_type')!r}")
    for key, number in _whole_numbers(config):
        most = MOST_EXPERTS if "expert" in key else MOST_PARTS
        if abs(number) > LARGEST_NUMBER or (abs(number) > most and _counts_parts(key)):
            raise ValueError(
                f"{path}: expected sizes of a model; found {key[:40]} = {str(number)[:40]}"
            )


def _counts_parts(key: str) -> bool:
    return (
        any(word in key for word in ("layer", "block", "head", "expert", "group"))
        and "dim" not in key
    )


def _whole_numbers(value: Any, key: str = "") -> Iterator[tuple[str, int]]:
    """Every whole number in it, with its name. Without recursion: the depth comes from others,
    too."""
    left = [(key, value)]
    while left:
        key, value = left.pop()
        if isinstance(value, dict):
            left += [(str(name), inner) for name, inner in value.items()]
        elif isinstance(value, list):
            left += [(key, inner) for inner in value]
        elif isinstance(value, int) and not isinstance(value, bool):
            yield key, value
