"""What would take gigabytes or years: one line at once, whatever the file asks for."""

from __future__ import annotations

import json
import re
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from rankscope.measurement.measure import measure
from rankscope.weights import limits
from rankscope.weights.base_model import BaseModel
from rankscope.weights.matrix import Skipped
from rankscope.weights.name_index import NameIndex
from rankscope.weights.tensors import Header, Tensors


def refusal(source: object, **settings: object) -> str:
    with pytest.raises(ValueError, match=r"\S") as caught:
        measure(source, **settings)
    line = str(caught.value)
    assert "\n" not in line
    assert len(line) < 1500
    return line


def pickled(path: Path, code: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02" + code + b".")
        archive.writestr("a/version", "3\n")
        archive.writestr("a/byteorder", "little")
    return path


def call(module: str, name: str, number: int) -> bytes:
    return f"c{module}\n{name}\n".encode() + b"\x8a\x05" + number.to_bytes(5, "little") + b"\x85R"


@pytest.mark.parametrize(
    ("module", "name"),
    [("builtins", "bytearray"), ("torch", "Tensor"), ("torch", "FloatStorage"),
                                                      ("torch", "FloatTensor"),
     ("torch.storage", "UntypedStorage"), ("torch._utils", "_rebuild_device_tensor_from_numpy")],
)  # fmt: skip
def test_what_weights_only_would_call(tmp_path: Path, module: str, name: str) -> None:
    """All of these are allowed by torch, and each makes as much as it is told to."""
    line = refusal(pickled(tmp_path / "x.bin", call(module, name, 8 * 10**9)))
    assert f"pickled code ({module}.{name})" in line
    assert "pickled code" in refusal(
        pickled(tmp_path / "y.bin", b"}X\x01\x00\x00\x00a" + call(module, name, 9) + b"s")
    )


def test_tuples_of_tuples_are_not_hashed(tmp_path: Path) -> None:
    """2^40 steps as a dictionary's key."""
    code = (
        b"})"
        + b"".join(b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(40))
        + b"K\x01s"
    )
    assert "a tuple of more than" in refusal(pickled(tmp_path / "x.bin", code))
    wide = (
        b"})"
        + b"".join(b"q" + bytes([i]) + b"(" + (b"h" + bytes([i])) * 99 + b"t" for i in range(9))
        + b"K\x01s"
    )
    assert "a tuple of more than" in refusal(pickled(tmp_path / "y.bin", wide))
    (tmp_path / "bare.bin").write_bytes(b"\x80\x02" + code + b".")
    assert "a tuple of more than" in refusal(tmp_path / "bare.bin")


def test_two_pickles_in_one_archive(tmp_path: Path) -> None:
    path = pickled(tmp_path / "x.bin", b"}")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("b/data.pkl", b"\x80\x02}.")
    assert "one with 2 data.pkl" in refusal(path)


@pytest.mark.parametrize("old", [True, False])
def test_what_torch_saves_is_still_read(tmp_path: Path, old: bool) -> None:
    state = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)).state_dict()
    extra = {
        "step": torch.tensor(3),
        "p": torch.nn.Parameter(torch.ones(2, 3)),
        "half": torch.ones(2, 2).bfloat16(),
    }
    saved = {"state_dict": {**state, **extra}, "epoch": 3, "betas": (0.9, (0.1, 0.2)), "name": "x"}
    torch.save(saved, tmp_path / "x.pt", _use_new_zipfile_serialization=not old)
    table = measure(tmp_path / "x.pt")
    assert {row.layer for row in table.rows} == {"0", "p", "half"}


def test_headers_and_names(tmp_path: Path) -> None:
    size = limits.HEADER_BYTES + 1
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", size) + b" " * size)
    assert f"a header of {size} bytes" in refusal(tmp_path)
    save_file({"x" * 120_000: torch.ones(2, 2)}, tmp_path / "model.safetensors")
    assert "expected names of at most 1000 characters; found one of 120000" in refusal(tmp_path)


def test_configurations(tmp_path: Path) -> None:
    def adapter(**config: object) -> Path:
        tensors = {
            "base_model.model.q.lora_A.weight": torch.ones(2, 5),
            "base_model.model.q.lora_B.weight": torch.ones(6, 2),
        }
        save_file(tensors, tmp_path / "adapter_model.safetensors")
        (tmp_path / "adapter_config.json").write_text(
            json.dumps({"peft_type": "LORA", "r": 2, **config})
        )
        return tmp_path

    assert "expected lora_alpha to be a number" in refusal(adapter(lora_alpha=10**400))
    assert "expected r to be a whole number" in refusal(adapter(r=10**400))
    assert "expected alpha_pattern q to be a number" in refusal(
        adapter(alpha_pattern={"q": 10**400})
    )
    many = [[0, 10_000]] * 20_000
    assert "expected layer_replication to make 10000 layers at most" in refusal(
        adapter(layer_replication=many)
    )
    for name in (
        "r",
        "lora_alpha",
        "rank_pattern",
        "alpha_pattern",
        "layer_replication",
        "use_rslora",
    ):
        refusal(adapter(**{name: ["x"] * 1000}))
    for name in (
        "base_model_name_or_path",
        "revision",
        "init_lora_weights",
        "target_modules",
    ):
        adapter(**{name: [["x"]]})
        measure(tmp_path)  # of no consequence, or read as it says
    refusal(adapter(peft_type=["LORA"]))
    (tmp_path / "adapter_config.json").write_bytes(b" " * (limits.JSON_BYTES + 1))
    assert "bytes of JSON" in refusal(tmp_path)


def test_all_patterns_have_one_budget(tmp_path: Path) -> None:
    """Each alone stays below its limit."""
    tensors = {}
    for i in range(40):
        name = f"base_model.model.l{i}.{'x' * 22}.q"
        tensors |= {
            f"{name}.lora_A.weight": torch.ones(2, 5),
            f"{name}.lora_B.weight": torch.ones(6, 2),
        }
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    patterns = {f"(x|xx)+[yz]{i}": 2 for i in range(100)}
    config = {"peft_type": "LORA", "r": 2, "rank_pattern": patterns}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    assert "rank_pattern or alpha_pattern: expected a regular expression" in refusal(tmp_path)


@pytest.mark.parametrize("value", [["x"], 3, None, {"a": 1}])
def test_an_index_with_something_else_than_names(tmp_path: Path, value: object) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a.weight": value}}))
    assert "expected file names beside the index" in refusal(tmp_path)


def test_archives_of_arrays(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "zeros.npz", **{"a.weight": np.zeros((6000, 6000))})
    assert "one that unpacks to 288000" in refusal(tmp_path / "zeros.npz")
    np.savez(tmp_path / "code.npz", **{"a.weight": np.array([print], dtype=object)})
    assert "expected an archive of arrays" in refusal(tmp_path / "code.npz")
    (tmp_path / "text.npz").write_text("x")
    assert "expected an archive of arrays" in refusal(tmp_path / "text.npz")


def test_a_base_of_another_model_names_both(tmp_path: Path) -> None:
    names = [f"model.layers.{i}.self_attn.{p}_proj" for i in range(75) for p in "qkvo"]
    tensors: dict[str, torch.Tensor] = {}
    for name in names:
        tensors |= {f"base_model.model.{name}.lora_A.weight": torch.ones(2, 5)}
        tensors |= {f"base_model.model.{name}.lora_B.weight": torch.ones(6, 2)}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2}))
    save_file(
        {f"encoder.block.{i}.weight": torch.ones(6, 5) for i in range(3000)},
        tmp_path / "base.safetensors",
    )
    line = refusal(tmp_path, base=tmp_path / "base.safetensors")
    assert "model.layers.0.self_attn.k_proj" in line
    assert "encoder.block.0.weight" in line
    checkpoint = tmp_path / "x.safetensors"
    save_file({"a.weight": torch.ones(3, 4)}, checkpoint)
    assert "found none of its 1" in refusal(checkpoint, base=tmp_path / "base.safetensors")


def test_what_is_asked_for_in_vain(tmp_path: Path) -> None:
    save_file(
        {"a.weight": torch.ones(3, 4), "b.weight": torch.ones(3, 4)}, tmp_path / "x.safetensors"
    )
    assert "found none in 2, such as a, b" in refusal(tmp_path / "x.safetensors", layers="query")
    for alpha in (-3, 0, float("nan"), float("inf")):
        assert "alpha: expected a number above 0" in refusal(
            tmp_path / "x.safetensors", alpha=alpha
        )


@pytest.mark.parametrize("code", [b"(" * 300_000, b"](" * 150_000 + b"e" * 150_000])
def test_a_pickle_of_many_steps(tmp_path: Path, code: bytes) -> None:
    line = refusal(pickled(tmp_path / "steps.bin", code))
    found = re.search(r"a pickle of more than (\d+) steps", line)
    assert found is not None
    assert limits.PICKLE_STEPS <= int(found[1]) < len(code)


def test_many_tensors_in_a_torch_file_are_within_its_steps(tmp_path: Path) -> None:
    tensors = {f"layer.{i}.weight": torch.full((2, 2), 1.0 + i) for i in range(300)}
    torch.save(tensors, tmp_path / "many.bin")
    assert len(measure(tmp_path / "many.bin").rows) == 300


@pytest.mark.parametrize("name", ["notes.txt", "data.parquet", "weights.bin"])
def test_other_files_are_called_so(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"PAR1" if name.endswith("parquet") else b"a text\n")
    assert "another kind of file, neither a zip archive nor a pickle" in refusal(tmp_path / name)


@pytest.mark.parametrize(
    ("patterns", "said"),
    [
        ({"(q{1000}){1000}": 2}, "counted repeats"),
        ({"((((q{9}){9}){9}){9})": 2}, "counted repeats"),
        ({"a|" * 2_000 + "q": 2}, "characters, above"),
        ({f"l{i}": 2 for i in range(limits.PATTERNS + 1)}, "at most"),
    ],
)
def test_patterns_that_take_gigabytes_to_compile(
    tmp_path: Path, patterns: dict[str, int], said: str
) -> None:
    factors = {"q.lora_A.weight": torch.randn(2, 5), "q.lora_B.weight": torch.randn(6, 2)}
    save_file(factors, tmp_path / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 2, "rank_pattern": patterns}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    assert said in refusal(tmp_path)


def test_a_counted_repeat_of_ordinary_size_is_a_pattern(tmp_path: Path) -> None:
    factors = {"qq.lora_A.weight": torch.randn(3, 5), "qq.lora_B.weight": torch.randn(6, 3)}
    save_file(factors, tmp_path / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "rank_pattern": {"q{2}": 3}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    (row,) = measure(tmp_path).rows
    assert (row.r, row.scale) == (3, 2.0)


def test_a_fused_layer_larger_than_any(tmp_path: Path) -> None:
    factors = {
        "transformer.h.0.attn.attn.lora_A": torch.randn(6, 8),
        "transformer.h.0.attn.attn.lora_B": torch.randn(24, 2),
    }
    torch.save(factors, tmp_path / "lit_model.pth.lora")
    (tmp_path / "hyperparameters.yaml").write_text(
        "lora_r: 2\nlora_query: true\nlora_key: true\nlora_value: true\n"
    )
    sizes = "n_head: 1000000000\nn_query_groups: 1\nhead_size: 2000000000\n"
    (tmp_path / "model_config.yaml").write_text(sizes)
    assert "3 projections with 24 rows; found 3 with" in refusal(tmp_path)


def test_an_enable_lora_that_makes_a_layer_larger_than_any(tmp_path: Path) -> None:
    factors = {
        "base_model.model.h.0.qkv.lora_A.weight": torch.randn(4, 8),
        "base_model.model.h.0.qkv.lora_B.weight": torch.randn(16, 2, 1),
    }
    torch.save(factors, tmp_path / "adapter_model.bin")
    enabled = [True, True] + [False] * 40_000
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "enable_lora": enabled}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    assert f"at most {limits.FUSED_ROWS} rows" in refusal(tmp_path)


def test_views_of_one_storage(tmp_path: Path) -> None:
    """A file of 4 MB that holds 2,000 matrices of 4 MB."""
    one = torch.zeros(1000, 1000)
    torch.save({f"l{i}.weight": one for i in range(200)}, tmp_path / "x.bin")
    assert "found 200 views that hold 800000000 bytes" in refusal(tmp_path / "x.bin")
    torch.save({f"l{i}.weight": one[:50, :50] for i in range(3)}, tmp_path / "y.bin")
    assert len(measure(tmp_path / "y.bin").rows) == 3


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors(tmp_path: Path) -> None:
    nested = torch.nested.nested_tensor([torch.ones(2, 2), torch.ones(3, 2)])
    torch.save({"a.weight": nested}, tmp_path / "x.bin")
    assert "several of unlike shapes" in refusal(tmp_path / "x.bin")


@pytest.mark.parametrize("pattern", ["(x+x+)+y", "(.*.*.*.*.*.*)*!"])
def test_the_users_own_pattern_ends_as_well(tmp_path: Path, pattern: str) -> None:
    save_file({f"{'x' * 60}{i}": torch.ones(2, 2) for i in range(4)}, tmp_path / "x.safetensors")
    assert "layers" in refusal(tmp_path / "x.safetensors", layers=pattern)


def test_an_alpha_of_a_dtype_that_torch_lacks(tmp_path: Path) -> None:
    entries = {
        "l.alpha": {"dtype": "F8_E8M0", "shape": [], "data_offsets": [0, 1]},
        "l.lora_down.weight": {"dtype": "F32", "shape": [1, 2], "data_offsets": [1, 9]},
        "l.lora_up.weight": {"dtype": "F32", "shape": [2, 1], "data_offsets": [9, 17]},
    }
    header = json.dumps(entries).encode()
    (tmp_path / "x.safetensors").write_bytes(
        struct.pack("<Q", len(header)) + header + b"\1" + b"\0\0\x80?" * 4
    )
    assert "expected one number as l.alpha" in refusal(tmp_path / "x.safetensors")


def test_long_names_are_cut_in_messages(tmp_path: Path) -> None:
    save_file({"a" * 900: torch.ones(3, 3)}, tmp_path / "base.safetensors")
    save_file(
        {"q.lora_down.weight": torch.ones(2, 3), "q.lora_up.weight": torch.ones(3, 2)},
        tmp_path / "x.safetensors",
    )
    assert "a" * 101 not in refusal(tmp_path / "x.safetensors", base=tmp_path / "base.safetensors")


class Counted(list[str]):
    """Names that count how often all of them are looked through."""

    passes = 0

    def __iter__(self) -> Iterator[str]:
        self.passes += 1
        return super().__iter__()


def test_names_of_a_base_are_looked_through_a_few_times_whatever_is_asked() -> None:
    """Of another model: by each of 300 layers, some called like outputs, some like experts."""
    names = Counted(
        f"h.{i}.mlp.experts.{e}.{half}.weight"
        for i in range(3)
        for e in range(2)
        for half in ("gate_proj", "up_proj")
    )
    headers = dict.fromkeys(names, Header((2, 2), torch.float32))
    base = BaseModel(Tensors("base", headers, {}))
    vars(base)["names"] = NameIndex(names)  # in place of the cached one
    names.passes = 0
    layers = [f"x.{i}.{name}" for i in range(100) for name in ("q_proj", "lm_head", "experts.z")]
    with pytest.raises(ValueError, match="found none of its 300"):
        base.check_same_model(layers, "adapter")
    for i in range(100):
        assert isinstance(base.experts(f"x.{i}.mlp.experts.gate_up_proj", 2), Skipped)
        assert "nearest: h.0" in str(base.weight(f"x.{i}.up_proj"))
    assert names.passes <= 6
    assert callable(base.experts("model.h.2.mlp.experts.gate_up_proj", 2)) is False
    assert callable(base.experts("h.2.mlp.experts.gate_up_proj", 2))
    assert NameIndex(["a.b.q.weight_packed"]).holds_any(["b.q"])
    assert not NameIndex(["a.b.q.weight_packed"]).holds_any(["b.p", "c.q", "q.weight"])
