"""What other writers than PEFT save: each with the right value of a float64 SVD of dW and W + dW
formed in full."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from rankscope.measurement.measure import measure
from rankscope.measurement.table import Table
from tiny import stable_rank

G = torch.Generator().manual_seed(11)


def randn(*shape: int) -> Tensor:
    """Of float64, so that what a test multiplies out is right to its last digits."""
    return torch.randn(*shape, generator=G, dtype=torch.float64)


def check(table: Table, layer: str, dW: Tensor, W: Tensor | None = None) -> None:
    """The rows of ``layer`` against dense matrices."""
    rows = {row.matrix: row for row in table.rows if row.layer == layer}
    wanted = {"dW": dW} if W is None else {"W": W, "dW": dW, "W+dW": W.double() + dW.double()}
    assert set(rows) == set(wanted), [(row.layer, row.matrix) for row in table.rows]
    for matrix, dense in wanted.items():
        dense = dense.double().flatten(1)
        row = rows[matrix]
        assert row.shape == tuple(dense.shape)
        assert row.stable_rank == pytest.approx(stable_rank(dense), rel=1e-6), matrix
        assert row.frobenius_norm == pytest.approx(float(dense.norm()), rel=1e-6), matrix
        assert row.lower <= stable_rank(dense) * (1 + 1e-9)
        assert row.upper >= stable_rank(dense) * (1 - 1e-9)


def folder(path: Path, config: dict[str, Any], file: str, tensors: dict[str, Tensor]) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "adapter_config.json").write_text(json.dumps(config))
    if file.endswith(".safetensors"):
        save_file(tensors, path / file)
    elif file.endswith(".npz"):
        np.savez(path / file, **{name: tensor.numpy() for name, tensor in tensors.items()})
    else:
        torch.save(tensors, path / file)
    return path


def notes(table: Table) -> set[str | None]:
    return {row.note for row in table.rows if row.matrix != "W"}


class TestTorchtune:
    A, B, W = randn(3, 20), randn(24, 3), randn(24, 20)
    LAYER = "layers.0.attn.q_proj"
    TENSORS: ClassVar = {f"{LAYER}.lora_a.weight": A, f"{LAYER}.lora_b.weight": B}

    def test_bare(self, tmp_path: Path) -> None:
        torch.save(self.TENSORS, tmp_path / "adapter_0.pt")
        table = measure(tmp_path / "adapter_0.pt")
        check(table, self.LAYER, self.B @ self.A)
        assert "scale 1 (alpha = r) assumed" in str(notes(table))
        given = measure(tmp_path / "adapter_0.pt", alpha=12)
        check(given, self.LAYER, 4 * self.B @ self.A)
        assert notes(given) == {None}

    def test_with_configuration_and_base(self, tmp_path: Path) -> None:
        config = {"peft_type": "LORA", "r": 3, "lora_alpha": 6}
        source = folder(tmp_path / "a", config, "adapter_3.pt", self.TENSORS)
        torch.save({f"{self.LAYER}.weight": self.W}, tmp_path / "base.pt")
        for one in (source, source / "adapter_3.pt"):
            table = measure(one, base=tmp_path / "base.pt")
            check(table, self.LAYER, 2 * self.B @ self.A, self.W)
            assert notes(table) == {None}
        with pytest.raises(ValueError, match="gives the scale; found 4"):
            measure(source, alpha=4)

    def test_a_rank_that_is_not_the_configurations(self, tmp_path: Path) -> None:
        source = folder(tmp_path / "a", {"peft_type": "LORA", "r": 4}, "adapter_0.pt", self.TENSORS)
        with pytest.raises(ValueError, match=r"expected r = 3 for layers\.0\.attn\.q_proj"):
            measure(source)

    def test_dora(self, tmp_path: Path) -> None:
        m = randn(24).abs()
        torch.save(self.TENSORS | {f"{self.LAYER}.magnitude": m}, tmp_path / "adapter_0.pt")
        torch.save({f"{self.LAYER}.weight": self.W}, tmp_path / "base.pt")
        V = (self.W + self.B @ self.A).double()
        new = m[:, None].double() * V / V.norm(dim=1, keepdim=True)
        check(
            measure(tmp_path / "adapter_0.pt", base=tmp_path / "base.pt"),
            self.LAYER,
            new - self.W,
            self.W,
        )


class TestAdapterHub:
    LAYER = "roberta.encoder.layer.0.attention.self.query"

    def config(self, **changes: Any) -> dict[str, Any]:
        lora = {
            "architecture": "lora",
            "alpha": 12,
            "r": 3,
            "attn_matrices": ["q", "v"],
            "composition_mode": "add",
        }
        return {
            "config": {**lora, **changes},
            "model_type": "roberta",
            "name": "mytask",
            "version": "adapters.1.0.0",
        }

    @pytest.mark.parametrize("file", ["pytorch_adapter.bin", "adapter.safetensors"])
    def test_folder_and_file(self, tmp_path: Path, file: str) -> None:
        A, B, W = randn(3, 20), randn(24, 3), randn(24, 20)
        tensors = {f"{self.LAYER}.loras.mytask.lora_A": A, f"{self.LAYER}.loras.mytask.lora_B": B}
        source = folder(tmp_path / "a", self.config(), file, tensors)
        save_file({f"{self.LAYER}.weight": W}, tmp_path / "base.safetensors")
        for one in (source, source / file):
            check(measure(one), self.LAYER, 4 * B @ A)
            check(measure(one, base=tmp_path / "base.safetensors"), self.LAYER, 4 * B @ A, W)

    @pytest.mark.parametrize(
        ("matrices", "places"), [(["q", "v"], (0, 2)), (["k", "v"], (1, 2)), (["k"], (1,))]
    )
    def test_fused_projections_stand_where_attn_matrices_says(
        self, tmp_path: Path, matrices: list[str], places: tuple[int, ...]
    ) -> None:
        g, n, o, r = len(places), 20, 8, 3
        A, B, W = randn(g * r, n), randn(g * o, r), randn(3 * o, n)
        dW = torch.zeros(3 * o, n, dtype=torch.float64)
        for i, place in enumerate(places):
            dW[place * o : (place + 1) * o] = 4 * B[i * o : (i + 1) * o] @ A[i * r : (i + 1) * r]
        layer = "bert.attention.qkv"
        tensors = {f"{layer}.loras.x.lora_A": A, f"{layer}.loras.x.lora_B": B}
        source = folder(
            tmp_path / "a", self.config(attn_matrices=matrices), "adapter.safetensors", tensors
        )
        save_file({f"{layer}.weight": W}, tmp_path / "base.safetensors")
        table = measure(source, base=tmp_path / "base.safetensors")
        if g > 1:
            check(table, layer, dW, W)
        else:  # one projection's factors don't tell that the layer has three
            assert [row.matrix for row in table.rows] == ["dW"]

    @pytest.mark.parametrize(
        "change",
        [
            {"composition_mode": "scale"},
            {"use_gating": True},
            {"architecture": "prefix_tuning"},
            {"vera_d": 0.1},
        ],
    )
    def test_what_is_no_low_rank_update(self, tmp_path: Path, change: dict[str, Any]) -> None:
        tensors = {
            f"{self.LAYER}.loras.x.lora_A": randn(3, 20),
            f"{self.LAYER}.loras.x.lora_B": randn(24, 3),
        }
        source = folder(tmp_path / "a", self.config(**change), "adapter.safetensors", tensors)
        with pytest.raises(ValueError, match="not a low-rank update"):
            measure(source)

    def test_a_bottleneck_adapter_is_no_table_of_weights(self, tmp_path: Path) -> None:
        config = {
            "config": {"mh_adapter": True, "reduction_factor": 16},
            "version": "adapters.1.0.0",
        }
        tensors = {
            "a.adapters.x.adapter_down.0.weight": randn(3, 20),
            "a.adapters.x.adapter_up.weight": randn(20, 3),
        }
        source = folder(tmp_path / "a", config, "pytorch_adapter.bin", tensors)
        with pytest.raises(ValueError, match="not a low-rank update"):
            measure(source / "pytorch_adapter.bin")


class TestMlx:
    LAYER = "model.layers.0.self_attn.q_proj"
    A, B, W = randn(20, 3), randn(3, 24), randn(24, 20)  # lora_a (n, r), lora_b (r, m)
    TENSORS: ClassVar = {f"{LAYER}.lora_a": A, f"{LAYER}.lora_b": B}
    CONFIG: ClassVar = {
        "fine_tune_type": "lora",
        "lora_parameters": {"rank": 3, "scale": 20.0, "dropout": 0.0},
    }

    @pytest.mark.parametrize("file", ["adapters.npz", "adapters.safetensors"])
    def test_scale_of_the_configuration(self, tmp_path: Path, file: str) -> None:
        source = folder(tmp_path / "a", self.CONFIG, file, self.TENSORS)
        save_file({f"{self.LAYER}.weight": self.W}, tmp_path / "base.safetensors")
        for one in (source, source / file):
            table = measure(one, base=tmp_path / "base.safetensors")
            check(table, self.LAYER, 20 * (self.A @ self.B).T, self.W)
            assert notes(table) == {None}

    def test_alpha_and_scale(self, tmp_path: Path) -> None:
        config = {
            "lora_parameters": {"rank": 3, "scale": 10.0, "alpha": 6, "dropout": 0.0},
            "lora_layers": 1,
        }
        table = measure(folder(tmp_path / "a", config, "adapters.safetensors", self.TENSORS))
        check(table, self.LAYER, 20 * (self.A @ self.B).T)
        assert "scale alpha / r = 20 taken" in str(notes(table))

    def test_without_configuration_the_guess_is_said(self, tmp_path: Path) -> None:
        np.savez(
            tmp_path / "adapters.npz",
            **{name: tensor.numpy() for name, tensor in self.TENSORS.items()},
        )
        table = measure(tmp_path / "adapters.npz")
        check(table, self.LAYER, (self.A @ self.B).T)
        assert "scale 1 (alpha = r) assumed" in str(notes(table))

    def test_an_embedding_stands_as_it_is(self, tmp_path: Path) -> None:
        A, B, W = randn(50, 3), randn(3, 20), randn(50, 20)
        tensors = {"model.embed_tokens.lora_a": A, "model.embed_tokens.lora_b": B}
        source = folder(tmp_path / "a", self.CONFIG, "adapters.safetensors", tensors)
        save_file({"model.embed_tokens.weight": W}, tmp_path / "base.safetensors")
        check(measure(source), "model.embed_tokens", 20 * A @ B)
        check(
            measure(source, base=tmp_path / "base.safetensors"), "model.embed_tokens", 20 * A @ B, W
        )

    def test_experts(self, tmp_path: Path) -> None:
        A, B, W = randn(2, 3, 20), randn(2, 24, 3), randn(2, 24, 20)
        layer = "model.layers.0.mlp.switch_mlp.gate_proj"
        tensors = {f"{layer}.lora_a": A, f"{layer}.lora_b": B}
        source = folder(tmp_path / "a", self.CONFIG, "adapters.safetensors", tensors)
        save_file({f"{layer}.weight": W}, tmp_path / "base.safetensors")
        table = measure(source, base=tmp_path / "base.safetensors")
        for e in (0, 1):
            check(table, f"{layer}[{e}]", 20 * B[e] @ A[e], W[e])

    def test_bfloat16_in_an_archive(self, tmp_path: Path) -> None:
        parts = {name: tensor.bfloat16() for name, tensor in self.TENSORS.items()}
        raw = {
            name: part.view(torch.int16).numpy().view(np.dtype("V2"))
            for name, part in parts.items()
        }
        source = folder(tmp_path / "a", self.CONFIG, "adapters.safetensors", {"x": randn(1)})
        (source / "adapters.safetensors").unlink()
        np.savez(source / "adapters.npz", **raw)
        dW = (
            20 * (parts[f"{self.LAYER}.lora_a"].double() @ parts[f"{self.LAYER}.lora_b"].double()).T
        )
        check(measure(source), self.LAYER, dW)

    def test_dora(self, tmp_path: Path) -> None:
        m = randn(24).abs()
        config = {**self.CONFIG, "fine_tune_type": "dora"}
        source = folder(
            tmp_path / "a", config, "adapters.safetensors", self.TENSORS | {f"{self.LAYER}.m": m}
        )
        save_file({f"{self.LAYER}.weight": self.W}, tmp_path / "base.safetensors")
        V = self.W.double() + 20 * (self.A @ self.B).T.double()
        new = m[:, None].double() * V / V.norm(dim=1, keepdim=True)
        check(measure(source, base=tmp_path / "base.safetensors"), self.LAYER, new - self.W, self.W)


class TestLitGpt:
    HEADS, GROUPS, SIZE, R, N = 4, 2, 5, 3, 20

    def layout(self, name: str, enabled: tuple[bool, bool, bool]) -> list[int]:
        """The rows of the layer that B's rows belong to, one projection after the other: written
        out, slowly."""
        rows: dict[str, list[int]] = {"q": [], "k": [], "v": []}
        total = (self.HEADS + 2 * self.GROUPS) * self.SIZE
        for row in range(total):
            head = row // self.SIZE
            if name == "qkv" or all(enabled):
                kind = "q" if head < self.HEADS else "k" if head < self.HEADS + self.GROUPS else "v"
            else:
                place = head % (self.HEADS // self.GROUPS + 2)
                kind = (
                    "q"
                    if place < self.HEADS // self.GROUPS
                    else "k"
                    if place == self.HEADS // self.GROUPS
                    else "v"
                )
            rows[kind].append(row)
        return [
            row for kind, used in zip("qkv", enabled, strict=True) if used for row in rows[kind]
        ]

    def make(
        self, path: Path, name: str, enabled: tuple[bool, bool, bool], **model: Any
    ) -> tuple[str, Tensor, Tensor]:
        layer = f"transformer.h.0.attn.{name}"
        sizes = [self.HEADS * self.SIZE, self.GROUPS * self.SIZE, self.GROUPS * self.SIZE]
        used = [size for size, one in zip(sizes, enabled, strict=True) if one]
        A, B = randn(self.R * len(used), self.N), randn(sum(used), self.R)
        W, dW = randn(sum(sizes), self.N), torch.zeros(sum(sizes), self.N, dtype=torch.float64)
        blocks = [b @ a for b, a in zip(B.split(used), A.split(self.R), strict=True)]
        dW[self.layout(name, enabled)] = 2 * torch.cat(blocks)
        torch.save(
            {"model": {f"{layer}.lora_A": A, f"{layer}.lora_B": B}}, path / "lit_model.pth.lora"
        )
        torch.save({f"{layer}.weight": W}, path / "base.pth")
        chosen = dict(zip(("lora_query", "lora_key", "lora_value"), enabled, strict=True))
        hyper = {
            "lora_r": self.R,
            "lora_alpha": 2 * self.R,
            **chosen,
            "data": {"class_path": "litgpt.data.Alpaca"},
        }
        shape = {
            "n_head": self.HEADS,
            "n_query_groups": self.GROUPS,
            "n_embd": self.N,
            "head_size": self.SIZE,
            **model,
        }
        (path / "hyperparameters.yaml").write_text(
            "\n".join(f"{k}: {json.dumps(v)}" for k, v in hyper.items())
        )
        (path / "model_config.yaml").write_text(
            "\n".join(f"{k}: {json.dumps(v)}" for k, v in shape.items())
        )
        return layer, dW, W

    @pytest.mark.parametrize("name", ["attn", "qkv"])
    @pytest.mark.parametrize(
        "enabled",
        [(True, False, True), (True, True, True), (False, True, True), (True, False, False)],
    )
    def test_unequal_blocks(
        self, tmp_path: Path, name: str, enabled: tuple[bool, bool, bool]
    ) -> None:
        layer, dW, W = self.make(tmp_path, name, enabled)
        for source in (tmp_path / "lit_model.pth.lora", tmp_path):
            table = measure(source, base=tmp_path / "base.pth")
            check(table, layer, dW, W)
            assert {row.scale for row in table.rows if row.matrix == "dW"} == {2.0}

    def test_without_configuration_it_is_refused(self, tmp_path: Path) -> None:
        self.make(tmp_path, "qkv", (True, False, True))
        (tmp_path / "model_config.yaml").unlink()
        with pytest.raises(ValueError, match=r"configuration"):
            measure(tmp_path / "lit_model.pth.lora")

    def test_a_configuration_of_another_model(self, tmp_path: Path) -> None:
        self.make(tmp_path, "qkv", (True, False, True), n_query_groups=4)
        with pytest.raises(
            ValueError, match=r"expected the configuration of transformer\.h\.0\.attn\.qkv"
        ):
            measure(tmp_path / "lit_model.pth.lora")

    def test_other_layers(self, tmp_path: Path) -> None:
        self.make(tmp_path, "qkv", (True, False, True))
        A, B = randn(self.R, self.N), randn(24, self.R)
        layer = "transformer.h.0.attn.proj"
        torch.save({f"{layer}.lora_A": A, f"{layer}.lora_B": B}, tmp_path / "lit_model.pth.lora")
        check(measure(tmp_path / "lit_model.pth.lora"), layer, 2 * B @ A)


class TestWholeStates:
    """state_dict() of a PEFT model, or of what wraps one, with adapter_config.json beside it."""

    CONFIG: ClassVar = {"peft_type": "LORA", "r": 3, "lora_alpha": 6, "target_modules": ["q"]}
    A, B, W, HEAD = randn(3, 20), randn(24, 3), randn(24, 20), randn(7, 20)

    def state(self, prefix: str, inside: str = "") -> dict[str, Tensor]:
        layer = f"{prefix}layers.0.{inside}q"
        return {
            f"{layer}.base_layer.weight": self.W,
            f"{layer}.lora_A.default.weight": self.A,
            f"{layer}.lora_B.default.weight": self.B,
            f"{prefix}head.weight": self.HEAD,
            f"{prefix}norm.weight": randn(20),
        }

    @pytest.mark.parametrize(
        ("prefix", "inside"),
        [
            ("", ""), ("module.", ""), ("_orig_mod.", ""), ("base_model.", ""),
            ("base_model.model.", ""),
            ("module._orig_mod.base_model.model.", ""), ("_fsdp_wrapped_module._orig_mod.", ""),
            ("", "_orig_mod."), ("base_model.model.", "_checkpoint_wrapped_module."),
            ("module.module.", ""),
        ],
    )  # fmt: skip
    @pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
    def test_any_prefix(self, tmp_path: Path, prefix: str, inside: str, file: str) -> None:
        source = folder(tmp_path / "a", self.CONFIG, file, self.state(prefix, inside))
        for one in (source, source / file):
            table = measure(one)
            check(table, "layers.0.q", 2 * self.B @ self.A, self.W)
            assert notes(table) == {None}
            assert {one.layer for one in table.skipped} == {"head", "norm"}

    def test_against_a_base_what_is_unchanged_is_no_row(self, tmp_path: Path) -> None:
        new = self.HEAD + randn(7, 20) / 10
        source = folder(
            tmp_path / "a", self.CONFIG, "model.safetensors", self.state("") | {"other.weight": new}
        )
        save_file(
            {
                "layers.0.q.weight": self.W,
                "head.weight": self.HEAD,
                "other.weight": self.HEAD.clone(),
            },
            tmp_path / "base.safetensors",
        )
        table = measure(source, base=tmp_path / "base.safetensors")
        check(table, "layers.0.q", 2 * self.B @ self.A, self.W)
        check(table, "other", new - self.HEAD, self.HEAD)
        assert "head" not in {row.layer for row in table.rows}

    def test_modules_to_save_are_compared_with_the_original(self, tmp_path: Path) -> None:
        new = self.HEAD + randn(7, 20) / 10
        state = self.state("base_model.model.")
        del state["base_model.model.head.weight"]
        state |= {
            "base_model.model.head.original_module.weight": self.HEAD,
            "base_model.model.head.modules_to_save.default.weight": new,
        }
        table = measure(folder(tmp_path / "a", self.CONFIG, "model.safetensors", state))
        check(table, "layers.0.q", 2 * self.B @ self.A, self.W)
        check(table, "head", new - self.HEAD, self.HEAD)

    def test_without_configuration_it_is_refused(self, tmp_path: Path) -> None:
        save_file(self.state("module."), tmp_path / "model.safetensors")
        with pytest.raises(
            ValueError, match=r"expected adapter_config\.json beside these LoRA factors"
        ):
            measure(tmp_path / "model.safetensors")
        check(measure(tmp_path / "model.safetensors", alpha=6), "layers.0.q", 2 * self.B @ self.A)

    def test_two_wrappings_of_one_name(self, tmp_path: Path) -> None:
        save_file(
            {"a._orig_mod.weight": randn(4, 4), "a.weight": randn(4, 4)},
            tmp_path / "model.safetensors",
        )
        with pytest.raises(ValueError, match=r"expected one tensor a\.weight; found"):
            measure(tmp_path)


@pytest.mark.parametrize("enabled", [[True, False, True], [False, True, True], [True, True, True]])
def test_merged_linear_of_peft_0_2(tmp_path: Path, enabled: list[bool]) -> None:
    """BLOOM's query_key_value: lora_B is a grouped convolution (rows, r, 1)."""
    g, n, o, r = sum(enabled), 20, 8, 3
    A, B, W, dW = (
        randn(g * r, n),
        randn(g * o, r, 1),
        randn(3 * o, n),
        torch.zeros(3 * o, n, dtype=torch.float64),
    )
    places = [i for i, one in enumerate(enabled) if one]
    for i, place in enumerate(places):
        dW[place * o : (place + 1) * o] = 2 * B[i * o : (i + 1) * o, :, 0] @ A[i * r : (i + 1) * r]
    layer = "transformer.h.0.self_attention.query_key_value"
    names = {
        f"base_model.model.{layer}.lora_A.weight": A,
        f"base_model.model.{layer}.lora_B.weight": B,
    }
    config = {"peft_type": "LORA", "r": r, "lora_alpha": 6, "enable_lora": enabled}
    source = folder(tmp_path / "a", config, "adapter_model.bin", names)
    save_file({f"{layer}.weight": W}, tmp_path / "base.safetensors")
    check(
        measure(source), layer, dW[torch.cat([torch.arange(p * o, (p + 1) * o) for p in range(3)])]
    )
    check(measure(source, base=tmp_path / "base.safetensors"), layer, dW, W)
    with pytest.raises(ValueError, match="expected enable_lora with"):
        measure(
            folder(
                tmp_path / "b",
                {**config, "enable_lora": [True] + [False] * 3},
                "adapter_model.bin",
                names,
            )
        )


class TestLycoris:
    LAYER = "lora_unet_blocks_0_attn"

    def measured(self, tmp_path: Path, parts: dict[str, Tensor], W: Tensor | None = None) -> Table:
        save_file(
            {f"{self.LAYER}.{part}": tensor.contiguous() for part, tensor in parts.items()},
            tmp_path / "x.safetensors",
        )
        if W is None:
            return measure(tmp_path / "x.safetensors")
        save_file({"blocks.0.attn.weight": W}, tmp_path / "base.safetensors")
        return measure(tmp_path / "x.safetensors", base=tmp_path / "base.safetensors")

    @pytest.mark.parametrize("r", [2, 6])
    def test_loha(self, tmp_path: Path, r: int) -> None:
        a1, b1, a2, b2, W = randn(24, r), randn(r, 20), randn(24, r), randn(r, 20), randn(24, 20)
        parts = {
            "hada_w1_a": a1,
            "hada_w1_b": b1,
            "hada_w2_a": a2,
            "hada_w2_b": b2,
            "alpha": torch.tensor(1.0),
        }
        dW = (a1 @ b1).double() * (a2 @ b2).double() / r
        check(self.measured(tmp_path, parts), self.LAYER, dW)
        check(self.measured(tmp_path, parts, W), "blocks.0.attn", dW, W)

    def test_loha_of_a_convolution_by_tucker(self, tmp_path: Path) -> None:
        t1, t2, a1, a2, b1, b2 = (
            *(randn(2, 2, 3, 3) for _ in "ab"),
            *(randn(2, 8) for _ in "ab"),
            *(randn(2, 6) for _ in "ab"),
        )
        parts = {
            "hada_t1": t1,
            "hada_t2": t2,
            "hada_w1_a": a1,
            "hada_w2_a": a2,
            "hada_w1_b": b1,
            "hada_w2_b": b2,
        }
        whole = [torch.zeros(8, 6, 3, 3, dtype=torch.float64) for _ in "ab"]
        for one, (t, a, b) in zip(whole, ((t1, a1, b1), (t2, a2, b2)), strict=True):
            for i in range(2):
                for j in range(2):
                    one += torch.einsum("kl,p,q->pqkl", t[i, j], a[i], b[j])
        dW = whole[0] * whole[1] * 2 / 2
        check(self.measured(tmp_path, parts | {"alpha": torch.tensor(2.0)}), self.LAYER, dW)

    @pytest.mark.parametrize("first", ["whole", "factors"])
    @pytest.mark.parametrize("second", ["whole", "factors"])
    def test_lokr(self, tmp_path: Path, first: str, second: str) -> None:
        one = (
            {"lokr_w1": randn(4, 5)}
            if first == "whole"
            else {"lokr_w1_a": randn(4, 2), "lokr_w1_b": randn(2, 5)}
        )
        two = (
            {"lokr_w2": randn(6, 4)}
            if second == "whole"
            else {"lokr_w2_a": randn(6, 2), "lokr_w2_b": randn(2, 4)}
        )
        left = one["lokr_w1"] if first == "whole" else one["lokr_w1_a"] @ one["lokr_w1_b"]
        right = two["lokr_w2"] if second == "whole" else two["lokr_w2_a"] @ two["lokr_w2_b"]
        s = 1.0 if first == second == "whole" else 5 / 2
        dW, W = s * torch.kron(left.double(), right.double()), randn(24, 20)
        parts = one | two | {"alpha": torch.tensor(5.0)}
        check(self.measured(tmp_path, parts), self.LAYER, dW)
        check(self.measured(tmp_path, parts, W), "blocks.0.attn", dW, W)

    def test_lokr_of_convolutions(self, tmp_path: Path) -> None:
        w1, w2, W = randn(2, 3), randn(4, 2, 3, 3), randn(8, 6, 3, 3)
        dW = torch.stack(
            [torch.kron(w1.double(), w2[:, :, i, j].double()) for i in range(3) for j in range(3)],
            dim=-1,
        ).reshape(8, 6, 3, 3)
        check(self.measured(tmp_path, {"lokr_w1": w1, "lokr_w2": w2}, W), "blocks.0.attn", dW, W)
        a, b = randn(4, 2), randn(2, 2 * 9)
        low = (a @ b).reshape(4, 2, 3, 3)
        dW = torch.stack(
            [torch.kron(w1.double(), low[:, :, i, j].double()) for i in range(3) for j in range(3)],
            dim=-1,
        ).reshape(8, 6, 3, 3)
        parts = {"lokr_w1": w1, "lokr_w2_a": a, "lokr_w2_b": b, "alpha": torch.tensor(2.0)}
        check(self.measured(tmp_path, parts), self.LAYER, dW)
        core, a, b = randn(2, 2, 3, 3), randn(2, 4), randn(2, 2)
        low = torch.einsum("ijkl,ip,jq->pqkl", core, a, b)
        dW = torch.stack(
            [torch.kron(w1.double(), low[:, :, i, j].double()) for i in range(3) for j in range(3)],
            dim=-1,
        ).reshape(8, 6, 3, 3)
        parts = {
            "lokr_w1": w1,
            "lokr_t2": core,
            "lokr_w2_a": a,
            "lokr_w2_b": b,
            "alpha": torch.tensor(2.0),
        }
        check(self.measured(tmp_path, parts), self.LAYER, dW)

    @pytest.mark.parametrize("shape", [(24, 20), (24, 5, 2, 2)])
    @pytest.mark.parametrize("axis", [0, 1])
    def test_dora_scale_by_row_and_by_column(
        self, tmp_path: Path, shape: tuple[int, ...], axis: int
    ) -> None:
        A, B, W = randn(3, *shape[1:]), randn(24, 3, *(1 for _ in shape[2:])), randn(*shape)
        dims = [dim for dim in range(len(shape)) if dim != axis]
        m = randn(*(size if dim == axis else 1 for dim, size in enumerate(shape))).abs()
        V = W.double() + 2 * (B.flatten(1) @ A.flatten(1)).reshape(shape).double()
        new = m.double() * V / V.square().sum(dims, keepdim=True).sqrt()
        parts = {
            "lora_up.weight": B,
            "lora_down.weight": A,
            "alpha": torch.tensor(6.0),
            "dora_scale": m,
        }
        check(
            self.measured(tmp_path, parts, W), "blocks.0.attn", (new - W).flatten(1), W.flatten(1)
        )

    def test_a_factor_that_is_missing(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="expected hada_w2_b beside"):
            self.measured(
                tmp_path,
                {"hada_w1_a": randn(4, 2), "hada_w1_b": randn(2, 4), "hada_w2_a": randn(4, 2)},
            )
        with pytest.raises(ValueError, match="expected lokr_w2_a beside"):
            self.measured(tmp_path, {"lokr_w1": randn(4, 2)})


def test_differences_stored_whole(tmp_path: Path) -> None:
    d, up, down, W = randn(8, 4, 1, 2, 2), randn(24, 3), randn(3, 20), randn(8, 4, 1, 2, 2)
    tensors = {
        "diffusion_model.a.lora_up.weight": up,
        "diffusion_model.a.lora_down.weight": down,
        "diffusion_model.a.diff_b": randn(24),
        "diffusion_model.patch.diff": d,
        "diffusion_model.norm.diff": randn(8),
    }
    save_file(tensors, tmp_path / "lora.safetensors")
    save_file({"a.weight": randn(24, 20), "patch.weight": W}, tmp_path / "base.safetensors")
    alone = measure(tmp_path / "lora.safetensors")
    check(alone, "diffusion_model.patch", d)
    check(alone, "diffusion_model.a", up @ down)
    assert {one.layer for one in alone.skipped} == {
        "diffusion_model.a.bias",
        "diffusion_model.norm",
    }
    based = measure(tmp_path / "lora.safetensors", base=tmp_path / "base.safetensors")
    check(based, "diffusion_model.patch", d.flatten(1), W.flatten(1))
    save_file({"x.diff": d, "y.diff_b": randn(3)}, tmp_path / "only.safetensors")
    check(measure(tmp_path / "only.safetensors"), "x", d)


@pytest.mark.parametrize(("part", "name"), [("text_encoder_2", "flux"), ("text_encoder_3", "sd3")])
def test_third_text_encoders(tmp_path: Path, part: str, name: str) -> None:
    """kohya calls T5 lora_te3_ also where it is a pipeline's second."""
    A, B, W = randn(3, 20), randn(24, 3), randn(24, 20)
    for where, tensors in (
        ("text_encoder", {"text_model.encoder.layers.0.q.weight": randn(8, 8)}),
        (part, {"encoder.block.0.layer.0.SelfAttention.q.weight": W}),
        ("transformer", {"transformer_blocks.0.attn.to_q.weight": randn(8, 8)}),
    ):
        (tmp_path / name / where).mkdir(parents=True)
        save_file(tensors, tmp_path / name / where / "model.safetensors")
    (tmp_path / name / "model_index.json").write_text("{}")
    flat = "lora_te3_encoder_block_0_layer_0_SelfAttention_q"
    tensors = {
        f"{flat}.lora_up.weight": B,
        f"{flat}.lora_down.weight": A,
        f"{flat}.alpha": torch.tensor(6.0),
    }
    save_file(tensors, tmp_path / "lora.safetensors")
    layer = f"{part}.encoder.block.0.layer.0.SelfAttention.q"
    check(measure(tmp_path / "lora.safetensors", base=tmp_path / name), layer, 2 * B @ A, W)


def test_a_text_encoder_is_not_taken_for_another(tmp_path: Path) -> None:
    tensors = {"text_model.encoder.layers.0.q.weight": randn(24, 20)}
    for where in ("text_encoder", "unet"):
        (tmp_path / "base" / where).mkdir(parents=True)
        save_file(
            tensors if where == "text_encoder" else {"x.weight": randn(24, 20)},
            tmp_path / "base" / where / "model.safetensors",
        )
    (tmp_path / "base" / "model_index.json").write_text("{}")
    parts: dict[str, Tensor] = {}
    for flat in ("lora_te2_text_model_encoder_layers_0_q", "lora_unet_x"):
        parts |= {f"{flat}.lora_up.weight": randn(24, 3), f"{flat}.lora_down.weight": randn(3, 20)}
    save_file(parts, tmp_path / "lora.safetensors")
    table = measure(tmp_path / "lora.safetensors", base=tmp_path / "base")
    assert {(row.layer, row.matrix) for row in table.rows if row.matrix != "dW"} == {
        ("unet.x", "W"),
        ("unet.x", "W+dW"),
    }


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("down.weight", "up.weight"),
        ("lora_left", "lora_right"),
        ("A", "B"),
        ("u.weight", "v.weight"),
    ],
)
def test_factors_under_unknown_names_are_no_table_of_weights(
    tmp_path: Path, one: str, other: str
) -> None:
    tensors: dict[str, Tensor] = {"head.weight": randn(5, 40)}
    for i in range(3):
        tensors |= {f"layers.{i}.q.{one}": randn(4, 40), f"layers.{i}.q.{other}": randn(32, 4)}
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(
        ValueError, match=r"found pairs that look like factors \(r, n\) and \(m, r\)"
    ):
        measure(tmp_path / "x.safetensors")


def test_a_transformers_own_pairs_are_weights(tmp_path: Path) -> None:
    tensors = {f"h.{i}.mlp.{name}.weight": randn(*shape) for i in range(3) for name, shape in
               (("c_fc", (64, 16)), ("c_proj", (16, 64)))}  # fmt: skip
    save_file(tensors, tmp_path / "x.safetensors")
    assert {row.matrix for row in measure(tmp_path / "x.safetensors").rows} == {"W"}
