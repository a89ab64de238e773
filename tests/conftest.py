"""Tiny models and tasks for tests, made from configuration: no download, no pretrained weight."""

from __future__ import annotations

import copy
import itertools
import random
import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import peft
import pytest
import torch
from hypothesis import settings
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from tiny import MODELS, SHARED, Case, shake

# The suite takes the same examples every time; `make fuzz` takes fresh ones,
# from a seed that it prints.
settings.register_profile("suite", derandomize=True, deadline=None, database=None)
settings.register_profile("fuzz", deadline=None, database=None, print_blob=True)
settings.load_profile("suite")


@pytest.fixture(autouse=True)
def starts_drawn_alike(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test draws its Lanczos starts from a seed of its own name: a probable bound may be
    missed once in a thousand draws, and the suite must not be."""
    monkeypatch.setattr("secrets.randbits", random.Random(request.node.nodeid).getrandbits)


WORDS = [
    "the", "a", "cat", "dog", "bird", "fish", "sees", "hears", "likes", "not", "red",
    "blue", "old", "small", "runs", "sleeps",
]  # fmt: skip
SIZES: dict[str, Any] = {"vocab_size": 4 + len(WORDS), "pad_token_id": 1}


def sizes(width: int) -> dict[str, Any]:
    return {
        **SIZES, "hidden_size": width, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 2 * width,
    }  # fmt: skip


ARCHITECTURES: dict[str, Any] = {
    "roberta": lambda width: RobertaForSequenceClassification(
        RobertaConfig(**sizes(width), max_position_embeddings=40, bos_token_id=0, eos_token_id=2)
    ),
    "bert": lambda width: BertForSequenceClassification(
        BertConfig(**sizes(width), max_position_embeddings=40)
    ),
    "gpt2": lambda width: GPT2ForSequenceClassification(
        GPT2Config(
            **SIZES,
            n_embd=width,
            n_layer=2,
            n_head=2,
            n_positions=40,
            bos_token_id=0,
            eos_token_id=2,
        )
    ),
    "llama": lambda width: LlamaForSequenceClassification(
        LlamaConfig(
            **sizes(width),
            num_key_value_heads=1,
            max_position_embeddings=40,
            bos_token_id=0,
            eos_token_id=2,
        )
    ),
}
WIDTH = 32  # of the wide models
TARGETS = {
    "roberta": ["query", "value"],
    "bert": ["query", "value"],
    "gpt2": ["c_attn"],
    "llama": ["q_proj", "v_proj"],
}


def save_tiny_model(folder: Path, architecture: str, *, width: int = 16) -> str:
    """One of ``ARCHITECTURES`` in a folder."""
    return save_model(folder, lambda: ARCHITECTURES[architecture](width))


def save_model(folder: Path, make: Callable[[], Any], *, names: Sequence[str] = ()) -> str:
    """A model folder as the hub has them: weights, configuration, tokenizer.

    ``names``: what the tokenizer returns; by default what a generic one does.
    """
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = make()
        with (
            torch.no_grad()
        ):  # wider than the default of 0.02, so that attention has something to decide
            for parameter in model.parameters():
                if parameter.ndim == 2:
                    parameter.normal_(0, 0.2)
    model.save_pretrained(folder)
    vocabulary = {token: i for i, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    settings = {"model_input_names": list(names)} if names else {}
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>",
        unk_token="<unk>", **settings
    )  # fmt: skip
    fast.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("models")
    return {name: save_tiny_model(root / name, name) for name in ARCHITECTURES}


@pytest.fixture(scope="session")
def wide(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Wide enough for ranks 1, 4, 16 and d."""
    root = tmp_path_factory.mktemp("wide")
    return {name: save_tiny_model(root / name, name, width=WIDTH) for name in TARGETS}


@pytest.fixture
def seed(pytestconfig: pytest.Config) -> int:
    """For a test that draws its own cases: 0 in the suite, fresh in each round of `make fuzz` (mark
    it `fuzz`)."""
    return int(pytestconfig.getoption("--hypothesis-seed") or 0)


def write_tsv(folder: Path, task: str, split: str, frame: pd.DataFrame) -> None:
    (folder / task).mkdir(parents=True, exist_ok=True)
    frame.to_csv(folder / task / f"{split}.tsv", sep="\t", index=False)


def sentences(count: int, *, start: int = 0) -> pd.DataFrame:
    """Rows of CoLA's form, of different lengths; the label says whether a "not" stands in it."""
    rows = []
    for i in itertools.islice(itertools.count(start), count):
        words = [WORDS[(i * 7 + j * j * 3) % len(WORDS)] for j in range(3 + i % 5)]
        words = [word for word in words if word != "not"] + ["not"] * (i % 2)
        rows.append({"sentence": " ".join(words), "label": i % 2})
    return pd.DataFrame(rows)


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with a CoLA of 40 + 24 rows."""
    folder = tmp_path_factory.mktemp("data")
    write_tsv(folder, "CoLA", "train", sentences(40))
    write_tsv(folder, "CoLA", "validation", sentences(24, start=40))
    return folder


@pytest.fixture(scope="session")
def make_case(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Case]:
    """make_case("gpt2", r=4, ...): trains nothing, but fills every adapter tensor with noise.

    ``method`` is one of PEFT's configurations; LoRA's if not given.
    """

    def make(
        model: str, method: type[peft.PeftConfig] = peft.LoraConfig, **settings: object
    ) -> Case:
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
            # As anyone would load it: PEFT sorts the keys of its patterns when it
            # saves, so order is the file's.
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


@pytest.fixture(scope="module")
def s3_server() -> Iterator[str]:
    """The address of an S3 server."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(
    s3_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> str:
    """The URL of an empty bucket."""
    import s3fs

    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("RANKSCOPE_CACHE", str(tmp_path / "cache"))
    s3fs.S3FileSystem.clear_instance_cache()
    name = f"b{abs(hash(request.node.name))}"
    s3fs.S3FileSystem().mkdir(name)
    return f"s3://{name}/runs/study"


@pytest.fixture
def with_a_terminal() -> Iterator[None]:
    """SIGHUP as a terminal's processes have it, here and in those begun here: under nohup it is
    ignored, which a run keeps so."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)
