"""Full checkpoints: one file, shards or torch files; differences, and what rounding leaves of
them."""

from __future__ import annotations

import json
import os
import re
import weakref
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from rankscope.measurement.measure import TOGETHER, measure, tabulated
from rankscope.weights import Matrix, read
from rankscope.weights.matrix import Reading
from rankscope.weights.tensor_files import open_tensors
from rankscope.weights.tensors import PIECE, finite
from tiny import stable_rank

SHAPES = {
    "encoder.layer.0.query.weight": (40, 40),
    "encoder.layer.0.dense.weight": (64, 40),
    "embeddings": (50, 40),
}


def weights(seed: int, size: float = 1.0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(*shape, generator=generator) * size for name, shape in SHAPES.items()}


def low_rank(seed: int, size: float) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: size * torch.randn(m, 6, generator=generator) @ torch.randn(6, n, generator=generator)
        for name, (m, n) in SHAPES.items()
    }


def added(W: dict[str, Tensor], dW: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: W[name] + dW[name] for name in W}


def save(folder: Path, tensors: dict[str, Tensor], dtype: torch.dtype = torch.float32) -> Path:
    folder.mkdir()
    save_file(
        {name: tensor.to(dtype) for name, tensor in tensors.items()}, folder / "model.safetensors"
    )
    return folder


def test_a_checkpoint_alone_gives_its_weights(tmp_path: Path) -> None:
    W = weights(0)
    extra = {
        "norm.weight": torch.ones(5),
        "positions": torch.arange(6).reshape(2, 3),
        "conv.weight": torch.randn(4, 3, 2, 2),
    }
    save_file(W | extra, tmp_path / "model.safetensors")
    table = measure(tmp_path, rtol=1e-7)
    assert {row.matrix for row in table.rows} == {"W"}
    assert {row.read_from for row in table.rows} == {"weights"}
    for row in table.rows:
        dense = (W | extra).get(row.layer, (W | extra).get(f"{row.layer}.weight"))
        assert row.stable_rank == pytest.approx(stable_rank(dense.flatten(1)), rel=1e-6)
        assert (row.r, row.scale) == (None, None)
    assert {s.layer for s in table.skipped} == {"norm", "positions"}
    assert "int64" in {s.layer: s.why for s in table.skipped}["positions"]


def test_one_weight_is_in_memory_at_a_time(tmp_path: Path) -> None:
    """The memory of a checkpoint's largest tensor is enough:
    benchmarks/streaming.py has the megabytes."""
    seen: list[weakref.ref[object]] = []
    W = {f"layer.{i}.weight": torch.randn(1030, 1030) for i in range(3)}
    assert all(w.nbytes > TOGETHER for w in W.values())  # too large to wait for others

    def watched(reading: Reading) -> Reading:
        for one in reading:
            assert isinstance(one, Matrix)
            assert [ref() for ref in seen] == [None] * len(seen)
            seen.append(weakref.ref(one.operator))
            yield one
            del one

    reading = watched(read(save(tmp_path / "model", W)))
    table = tabulated(reading, "model", None, rtol=0.5, energy=False, together=True)
    assert len(table.rows) == len(seen) == 3


def test_a_tensor_is_read_and_asked_for_piece_by_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linux reads ahead only the start of a large request; docs/log.md has the rates."""
    W = torch.randn(300, 1500, generator=torch.Generator().manual_seed(0))
    save_file({"a": torch.ones(3), "w": W}, tmp_path / "model.safetensors")
    tensors = open_tensors(tmp_path / "model.safetensors")
    asked: list[tuple[int, int]] = []
    reads: list[int] = []
    pread = os.preadv

    def watched(file: int, buffers: list[memoryview], start: int) -> int:
        reads.append(len(buffers[0]))
        return pread(file, buffers, start)

    monkeypatch.setattr(os, "preadv", watched)
    monkeypatch.setattr(
        os, "posix_fadvise", lambda file, start, size, advice: asked.append((start, size))
    )
    assert torch.equal(tensors.read("w"), W)
    assert max(reads) == PIECE < W.nbytes
    tensors.prefetch("w")
    _, first, length = tensors.places["w"]
    ends = [first, *(start + size for start, size in asked)]
    assert [start for start, _ in asked] == ends[:-1]
    assert (ends[-1], max(size for _, size in asked)) == (first + length, PIECE)


@pytest.mark.parametrize(
    ("dtype", "large"), [(torch.float16, 6e4), (torch.bfloat16, 3e38), (torch.float32, 3e38)]
)
def test_a_sum_that_overflows_is_no_infinite_entry(dtype: torch.dtype, large: float) -> None:
    W = torch.full((40, 50), large, dtype=dtype)
    assert finite(W)
    for bad in (torch.inf, -torch.inf, torch.nan):
        W[3, 4] = bad
        assert not finite(W)
    W.fill_(1)
    W[3, 4] = torch.nan
    assert not finite(W)


def test_two_checkpoints_give_their_difference(tmp_path: Path) -> None:
    W, dW = weights(0), low_rank(1, 0.01)
    table = measure(
        save(tmp_path / "tuned", added(W, dW)), base=save(tmp_path / "base", W), rtol=1e-7
    )
    assert table.skipped == ()
    assert len(table.rows) == 9
    for row in table.rows:
        name = row.layer if row.layer in W else f"{row.layer}.weight"
        new = (W[name] + dW[name]).double()
        dense = {"W": W[name], "dW": new - W[name].double(), "W+dW": new}[row.matrix]
        assert row.stable_rank == pytest.approx(stable_rank(dense), rel=1e-6)


def test_shards_and_torch_files_read_alike(tmp_path: Path) -> None:
    W = weights(0)
    whole = measure(save(tmp_path / "whole", W)).rows
    for suffix, index, write in [
        ("safetensors", "model.safetensors.index.json", save_file),
        ("bin", "pytorch_model.bin.index.json", torch.save),
    ]:
        folder = tmp_path / suffix
        folder.mkdir()
        files = {name: f"shard-{i}.{suffix}" for i, name in enumerate(W)}
        for name, file in files.items():
            write({name: W[name]}, folder / file)
        (folder / index).write_text(json.dumps({"weight_map": files}))
        assert measure(folder).rows == whole
        assert measure(folder / index).rows == whole
    torch.save({"epoch": 3, "state_dict": W}, tmp_path / "trainer.pt")
    assert measure(tmp_path / "trainer.pt").rows == whole


def test_rounding_is_said_and_below_the_floor_nothing_is_claimed(tmp_path: Path) -> None:
    """bf16(W + dW) - W: the hazard on the same matrix, then the cure."""
    W = {name: tensor.bfloat16().float() for name, tensor in weights(0).items()}
    dW = low_rank(1, 1e-4)
    rounded = {name: tensor.bfloat16().double() for name, tensor in added(W, dW).items()}
    for name in W:  # what a reader would print that doesn't know of rounding
        assert stable_rank(rounded[name] - W[name].double()) > 1.2 * stable_rank(dW[name])
    tuned = save(tmp_path / "tuned", added(W, dW), torch.bfloat16)
    base = save(tmp_path / "base", W, torch.bfloat16)
    rows = [row for row in measure(tuned, base=base).rows if row.matrix == "dW"]
    assert len(rows) == 3
    for row in rows:
        assert (row.stable_rank, row.lower, row.upper, row.effective_rank) == (
            None,
            None,
            None,
            None,
        )
        assert "below the rounding floor: storage in bfloat16" in row.note
        assert row.frobenius_norm > 0


@pytest.mark.parametrize("size", [1e-3, 3e-3, 1e-2, 1e-1])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_is_reported_of_rounded_checkpoints_is_near_the_truth(
    tmp_path: Path, size: float, dtype: torch.dtype
) -> None:
    W = {name: tensor.to(dtype).float() for name, tensor in weights(0).items()}
    dW = low_rank(1, size)
    tuned, base = save(tmp_path / "tuned", added(W, dW), dtype), save(tmp_path / "base", W, dtype)
    for row in measure(tuned, base=base, rtol=1e-6).rows:
        if row.matrix == "dW" and row.stable_rank is not None:
            name = row.layer if row.layer in W else f"{row.layer}.weight"
            assert row.stable_rank == pytest.approx(stable_rank(dW[name]), rel=0.12)
            if row.note is None:
                assert row.stable_rank == pytest.approx(stable_rank(dW[name]), rel=1e-2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_share_that_rounding_has_is_as_estimated(tmp_path: Path, dtype: torch.dtype) -> None:
    """The error is drawn here, by storing, and its share of ||dW||_F^2 is what the note says, to
    its two digits."""
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(300, 200, generator=generator).to(dtype).double()
    tuned = W + 4 * torch.finfo(dtype).eps * torch.randn(
        300, 200, generator=generator, dtype=torch.float64
    )
    stored = tuned.to(dtype).double()
    share = float(((stored - tuned).norm() / (stored - W).norm()).square())
    after, before = save(tmp_path / "a", {"w": tuned}, dtype), save(tmp_path / "b", {"w": W}, dtype)
    (note,) = [row.note for row in measure(after, base=before).rows if row.matrix == "dW"]
    found = re.search(r"makes up ([0-9.e-]+) of \|\|dW\|\|_F\^2", note)
    assert found is not None, note
    assert float(found[1]) == pytest.approx(share, rel=0.06)


def test_a_coarser_base_counts_its_own_rounding(tmp_path: Path) -> None:
    W, dW = weights(0), low_rank(1, 1e-4)
    tuned, base = save(tmp_path / "tuned", added(W, dW)), save(tmp_path / "base", W, torch.bfloat16)
    rows = [row for row in measure(tuned, base=base).rows if row.matrix == "dW"]
    assert all(row.stable_rank is None and "bfloat16" in row.note for row in rows)


def test_changed_new_and_missing_tensors_are_listed(tmp_path: Path) -> None:
    W = weights(0)
    tuned = added(W, low_rank(1, 0.1)) | {
        "embeddings": torch.ones(50, 41),
        "head.weight": torch.ones(3, 40),
    }
    base = W | {"pooler.weight": torch.ones(40, 40)}
    table = measure(save(tmp_path / "tuned", tuned), base=save(tmp_path / "base", base))
    whys = {skipped.layer: skipped.why for skipped in table.skipped}
    assert "from (50, 40) to (50, 41)" in whys.pop("embeddings")
    assert "is new" in whys.pop("head")
    assert "only in the base" in whys.pop("pooler")
    assert whys == {}
    assert len(table.rows) == 6


@pytest.mark.parametrize("tokens", [53, 50, 47])
@pytest.mark.parametrize(
    "name", ["model.embed_tokens.weight", "lm_head.weight", "transformer.wte.weight"]
)
def test_another_vocabulary_is_compared_where_both_have_rows(
    tmp_path: Path, tokens: int, name: str
) -> None:
    generator = torch.Generator().manual_seed(0)
    W, new = torch.randn(50, 40, generator=generator), torch.randn(tokens, 40, generator=generator)
    table = measure(
        save(tmp_path / "tuned", {name: new}), base=save(tmp_path / "base", {name: W}), rtol=1e-7
    )
    both = min(50, tokens)
    dense = {"W": W[:both], "dW": new[:both].double() - W[:both].double(), "W+dW": new[:both]}
    for row in table.rows:
        assert row.shape == (both, 40)
        assert row.stable_rank == pytest.approx(stable_rank(dense[row.matrix]), rel=1e-6)
        said = row.note is not None and f"the vocabulary changed from 50 to {tokens}" in row.note
        assert said == (tokens != 50)
    assert len(table.rows) == 3
    assert table.skipped == ()


def test_each_expert_of_a_stack_is_a_matrix(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    name = "model.layers.0.mlp.experts.down_proj"
    W, new = (torch.randn(3, 20, 12, generator=generator) for _ in range(2))
    tuned = save(tmp_path / "tuned", {name: new})
    table = measure(tuned, base=save(tmp_path / "base", {name: W}), rtol=1e-7)
    assert len(table.rows) == 9
    for row in table.rows:
        e = int(row.layer.removeprefix(name)[1])
        dense = {"W": W[e], "dW": new[e].double() - W[e].double(), "W+dW": new[e]}[row.matrix]
        assert row.stable_rank == pytest.approx(stable_rank(dense), rel=1e-6)
    assert [row.layer for row in measure(tuned).rows] == [f"{name}[{e}]" for e in range(3)]


def test_a_head_of_other_classes_is_no_vocabulary(tmp_path: Path) -> None:
    tuned, base = (
        {"classifier.out_proj.weight": torch.ones(5, 40)},
        {"classifier.out_proj.weight": torch.ones(2, 40)},
    )
    table = measure(save(tmp_path / "tuned", tuned), base=save(tmp_path / "base", base))
    assert table.rows == ()
    assert "from (2, 40) to (5, 40)" in table.skipped[0].why


def test_different_dtypes_are_compared_exactly(tmp_path: Path) -> None:
    """A float32 fine-tune of a bfloat16 or float16 base, and a float64 one: no product in the
    coarser type."""
    W, dW = weights(0), low_rank(1, 1.0)
    for i, (fine, coarse) in enumerate(
        [(torch.float32, torch.bfloat16), (torch.float64, torch.float16)]
    ):
        tuned = save(tmp_path / f"tuned{i}", added(W, dW), fine)
        for row in measure(tuned, base=save(tmp_path / f"base{i}", W, coarse), rtol=1e-7).rows:
            name = row.layer if row.layer in W else f"{row.layer}.weight"
            before, after = W[name].to(coarse).double(), (W[name] + dW[name]).to(fine).double()
            dense = {"W": before, "dW": after - before, "W+dW": after}[row.matrix]
            assert row.stable_rank == pytest.approx(stable_rank(dense), rel=1e-6)


def test_equal_weights_are_a_zero_update(tmp_path: Path) -> None:
    W = weights(0)
    rows = measure(save(tmp_path / "tuned", W), base=save(tmp_path / "base", W)).rows
    assert [row.stable_rank is None for row in rows] == [False, True, False] * 3
    assert all(row.note and row.frobenius_norm == 0 for row in rows if row.matrix == "dW")


def test_packed_bases_are_named(tmp_path: Path) -> None:
    W = weights(0)
    tuned = save(tmp_path / "tuned", W)
    packed = {
        name.replace(".weight", ".qweight"): torch.ones(5, 40, dtype=torch.int32) for name in W
    }
    table = measure(tuned, base=save(tmp_path / "base", packed, torch.int32))
    assert table.rows == ()
    whys = {s.layer: s.why for s in table.skipped}
    assert "packed (GPTQ or AWQ)" in whys["encoder.layer.0.query"]
    assert "packed (GPTQ or AWQ)" in whys["encoder.layer.0.dense"]


def test_float8_checkpoints_are_compared_dequantised(tmp_path: Path) -> None:
    W, scale = weights(0)["encoder.layer.0.query.weight"], torch.tensor(3.0)
    base = {"a.weight": (W / 3).to(torch.float8_e4m3fn), "a.weight_scale": scale}
    (tmp_path / "base").mkdir()
    save_file(base, tmp_path / "base" / "model.safetensors")
    table = measure(save(tmp_path / "tuned", {"a.weight": W}), base=tmp_path / "base", rtol=1e-7)
    before = base["a.weight"].float() * 3
    dense = {"W": before, "dW": W.double() - before.double(), "W+dW": W}
    assert [row.matrix for row in table.rows] == ["W", "dW", "W+dW"]
    for row in table.rows:
        assert row.stable_rank == pytest.approx(stable_rank(dense[row.matrix]), rel=1e-6)
