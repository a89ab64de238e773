"""Hostile and broken input: one clear line each, nothing executed, nothing written."""

from __future__ import annotations

import json
import pickle
import shutil
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rankscope.cli import main
from rankscope.measurement.measure import measure
from rankscope.measurement.resized import new_folder
from tiny import Case, roberta

CONFIG = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["query"]}
PREFIX = "base_model.model.encoder.layer.0.query"


def write_adapter(folder: Path, tensors: dict[str, torch.Tensor], **config: object) -> Path:
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({**CONFIG, **config}))
    return folder


def pair(m: int = 6, n: int = 5, r: int = 4) -> dict[str, torch.Tensor]:
    return {
        f"{PREFIX}.lora_A.weight": torch.randn(r, n, generator=torch.Generator().manual_seed(0)),
        f"{PREFIX}.lora_B.weight": torch.randn(m, r, generator=torch.Generator().manual_seed(1)),
    }


def refusal(source: object, **settings: object) -> str:
    """The one line that a refused source gives."""
    with pytest.raises(ValueError, match=r"\S") as caught:
        measure(source, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


class Bomb:
    """Would write a file if it were unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return (exec, (f"open({str(self.path)!r}, 'w').close()",))


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_payload_is_not_executed(tmp_path: Path, protocol: int, zipped: bool) -> None:
    mark = tmp_path / "mark"
    payload = {"layer.lora_A": torch.ones(2, 3), "layer.lora_B": Bomb(mark)}
    torch.save(
        payload, tmp_path / "x.bin", pickle_protocol=protocol, _use_new_zipfile_serialization=zipped
    )
    before = set(tmp_path.iterdir())
    line = refusal(tmp_path / "x.bin")
    assert "pickled code" in line
    assert "Nothing of it was executed" in line
    assert set(tmp_path.iterdir()) == before
    assert not mark.exists()


def test_the_payload_would_have_worked(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Bomb(tmp_path / "mark")))
    assert (tmp_path / "mark").exists()


def test_a_bare_pickle_is_not_executed(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    (tmp_path / "x.bin").write_bytes(pickle.dumps(Bomb(mark)))
    assert "x.bin: expected" in refusal(tmp_path / "x.bin")
    assert not mark.exists()


@pytest.mark.parametrize("name", ["model.safetensors", "model.bin", "model"])
def test_text_instead_of_tensors(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n"
    )
    assert f"{name}: expected" in refusal(tmp_path / name)


@pytest.mark.parametrize("keep", [4, 60, -10])
def test_truncated_safetensors(tmp_path: Path, keep: int) -> None:
    save_file({"a.weight": torch.ones(8, 8)}, tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").write_bytes(
        (tmp_path / "model.safetensors").read_bytes()[:keep]
    )
    assert "expected a complete safetensors file" in refusal(tmp_path)


def test_truncated_torch_file(tmp_path: Path) -> None:
    torch.save({"a.weight": torch.ones(64, 64)}, tmp_path / "pytorch_model.bin")
    (tmp_path / "pytorch_model.bin").write_bytes(
        (tmp_path / "pytorch_model.bin").read_bytes()[:-200]
    )
    assert "expected a complete file written by torch.save" in refusal(tmp_path)


@pytest.mark.parametrize("claimed", [2**40, 2**63 + 8])
def test_a_header_that_claims_a_terabyte(tmp_path: Path, claimed: int) -> None:
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", claimed) + b"{}" * 50)
    assert "expected a complete safetensors file" in refusal(tmp_path)


def test_a_tensor_that_claims_a_terabyte(tmp_path: Path) -> None:
    header = json.dumps(
        {"a.weight": {"dtype": "F32", "shape": [2**19, 2**19], "data_offsets": [0, 2**40]}}
    ).encode()
    (tmp_path / "model.safetensors").write_bytes(
        struct.pack("<Q", len(header)) + header + b"\0" * 64
    )
    assert "expected a complete safetensors file" in refusal(tmp_path)


def test_two_tensors_of_one_name(tmp_path: Path) -> None:
    one = '"a.weight": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}'
    header = f"{{{one}, {one}}}".encode()
    (tmp_path / "model.safetensors").write_bytes(
        struct.pack("<Q", len(header)) + header + b"\0" * 16
    )
    assert "found the name 'a.weight' twice" in refusal(tmp_path)


def test_missing_files(tmp_path: Path) -> None:
    assert "found nothing there" in refusal(tmp_path / "nothing")
    assert "found an empty folder" in refusal(tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps(CONFIG))
    assert "expected adapter_model.safetensors or adapter_model.bin" in refusal(tmp_path)


def test_an_empty_name_and_a_name_with_a_zero_byte(tmp_path: Path) -> None:
    for source in ("", "a\0b"):
        with pytest.raises(ValueError, match="expected a file, a folder or a hub id"):
            measure(source)
    for to in ("", "a\0b"):
        with pytest.raises(ValueError, match=r"^'.*': expected a folder's name to make"):
            new_folder(to, tmp_path)


def test_a_loop_of_symbolic_links(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "model.safetensors")
    assert "found nothing there" in refusal(tmp_path / "a")
    assert "expected an adapter" in refusal(tmp_path)


def test_a_missing_base(tmp_path: Path) -> None:
    source = write_adapter(tmp_path / "adapter", pair())
    assert f"{tmp_path / 'gone'}: expected" in refusal(source, base=tmp_path / "gone")
    (tmp_path / "empty").mkdir()
    assert "expected a checkpoint" in refusal(source, base=tmp_path / "empty")


@pytest.mark.parametrize("missing", ["lora_A", "lora_B"])
def test_a_missing_factor(tmp_path: Path, missing: str) -> None:
    tensors = {name: tensor for name, tensor in pair().items() if missing not in name}
    line = refusal(write_adapter(tmp_path / "adapter", tensors))
    assert f"expected {missing} beside" in line
    assert "encoder.layer.0.query" in line


def test_factors_that_do_not_fit(tmp_path: Path) -> None:
    tensors = pair() | {f"{PREFIX}.lora_B.weight": torch.ones(6, 3)}
    assert "found B (6, 3) and A (4, 5)" in refusal(write_adapter(tmp_path / "adapter", tensors))


@pytest.mark.parametrize(
    "config", [{"r": 8}, {"rank_pattern": {"query": 2}}, {"rank_pattern": {"l[a-z]yer.*": 8}}]
)
def test_a_rank_that_contradicts_the_shapes(tmp_path: Path, config: dict[str, object]) -> None:
    line = refusal(write_adapter(tmp_path / "adapter", pair(), **config))
    assert "expected r = 4" in line
    assert "by its factors; found r = " in line


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"r": "8"}, "expected r to be a whole number"),
        ({"r": 0}, "expected r to be a whole number"),
        ({"lora_alpha": None}, "expected lora_alpha to be a number"),
        ({"lora_alpha": float("nan")}, "expected lora_alpha to be a number"),
        ({"rank_pattern": ["query"]}, "expected rank_pattern to be an object"),
        ({"rank_pattern": {"(": 4}}, "expected regular expressions"),
        ({"alpha_pattern": {"query": "x"}}, "expected alpha_pattern query to be a number"),
    ],
)
def test_a_malformed_configuration(
    tmp_path: Path, config: dict[str, object], expected: str
) -> None:
    assert expected in refusal(write_adapter(tmp_path / "adapter", pair(), **config))


@pytest.mark.parametrize("text", ["", "[1]", "{" * 100_000, "\udcff"])
def test_a_configuration_that_is_no_json_object(tmp_path: Path, text: str) -> None:
    folder = write_adapter(tmp_path / "adapter", pair())
    (folder / "adapter_config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert "adapter_config.json: expected" in refusal(folder)


def test_the_same_factor_under_two_names(tmp_path: Path) -> None:
    tensors = pair() | {f"{PREFIX}.lora_A.default.weight": torch.ones(4, 5)}
    assert "expected one lora_A" in refusal(write_adapter(tmp_path / "adapter", tensors))


def test_factors_without_their_configuration(tmp_path: Path) -> None:
    save_file(pair(), tmp_path / "adapter_model.safetensors")
    assert "expected adapter_config.json beside" in refusal(tmp_path / "adapter_model.safetensors")


@pytest.mark.parametrize("peft_type", ["IA3", "LOHA", "PREFIX_TUNING", None, 7])
def test_what_is_not_lora(tmp_path: Path, peft_type: object) -> None:
    line = refusal(write_adapter(tmp_path / "adapter", pair(), peft_type=peft_type))
    assert f"not a low-rank update: expected peft_type LORA, found {peft_type}" in line


def test_the_real_ia3_adapter(real_adapters: Path) -> None:
    assert "not a low-rank update" in refusal(real_adapters / "NONLORA-mt0-large-ia3")


@pytest.mark.parametrize(
    "where",
    ["../outside.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", "..\\x", "C:\\x", 3],
)
def test_an_index_that_leads_elsewhere(tmp_path: Path, where: object) -> None:
    save_file({"a.weight": torch.ones(2, 2)}, tmp_path / "outside.safetensors")
    folder = tmp_path / "model"
    folder.mkdir()
    index = {"weight_map": {"a.weight": where}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "expected file names beside the index" in refusal(folder)


def test_a_shard_that_is_missing_or_lacks_a_tensor(tmp_path: Path) -> None:
    index = {"weight_map": {"a.weight": "model-1.safetensors", "b.weight": "model-1.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "names the shard model-1.safetensors, which is missing" in refusal(tmp_path)
    save_file({"a.weight": torch.ones(2, 2)}, tmp_path / "model-1.safetensors")
    assert "expected b.weight in model-1.safetensors" in refusal(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("factor", ["lora_A", "lora_B"])
def test_nan_and_inf_give_a_row_without_numbers(tmp_path: Path, value: float, factor: str) -> None:
    tensors = pair()
    tensors[f"{PREFIX}.{factor}.weight"][1, 1] = value
    (row,) = measure(write_adapter(tmp_path / "adapter", tensors)).rows
    assert (row.stable_rank, row.upper, row.spectral_norm, row.effective_rank) == (
        None,
        None,
        None,
        None,
    )
    assert row.note == f"{factor[-1]} holds NaN or Inf"


def test_nan_in_the_base_spoils_what_needs_it_and_nothing_else(
    make_case: Callable[..., Case], tmp_path: Path
) -> None:
    case = make_case("roberta", target_modules=["query"], r=2)
    shutil.copytree(case.base, tmp_path / "base")
    file = tmp_path / "base" / "model.safetensors"
    tensors = load_file(file)
    tensors["roberta.encoder.layer.0.attention.self.query.weight"][0, 0] = float("nan")
    save_file(tensors, file)
    rows = measure(case.adapter, base=tmp_path / "base").rows
    assert [row.stable_rank is None for row in rows] == [True, False, True, False, False, False]
    assert rows[0].note == rows[2].note == "W holds NaN or Inf"


def test_a_bad_layers_expression(tmp_path: Path) -> None:
    assert "layers: expected a regular expression" in refusal(
        write_adapter(tmp_path / "a", pair()), layers="("
    )


def test_an_adapter_of_another_model_is_said_so(tmp_path: Path) -> None:
    adapter = write_adapter(
        tmp_path / "adapter",
        {
            name.replace("encoder.layer.0.query", "roberta.encoder.layer.0.attention.self.query"): t
            for name, t in pair().items()
        }
        | pair(),
    )
    roberta().save_pretrained(tmp_path / "base")
    table = measure(adapter, base=tmp_path / "base")
    assert {row.matrix for row in table.rows} == {"dW"}
    whys = {skipped.layer: skipped.why for skipped in table.skipped}
    assert (
        "(24, 24), the update (6, 5): not the same model"
        in whys["roberta.encoder.layer.0.attention.self.query"]
    )
    assert "has no weight of that name" in whys["encoder.layer.0.query"]


@pytest.mark.parametrize(
    ("A", "B", "settings", "why"),
    [
        (
            (4, 5),
            (6, 4),
            {"arrow_config": {"top_k": 2}},
            "Arrow routes each token",
        ),
        ((4, 2, 3, 3), (6, 2, 1, 1), {}, "a convolution in 2 groups"),
        ((4, 5), (6, 4), {"use_qalora": True}, "QA-LoRA pools the input"),
    ],
)
def test_what_is_no_one_BA_is_skipped_by_name(
    tmp_path: Path, A: tuple[int, ...], B: tuple[int, ...], settings: dict[str, object], why: str
) -> None:
    tensors = {f"{PREFIX}.lora_A.weight": torch.ones(A), f"{PREFIX}.lora_B.weight": torch.ones(B)}
    table = measure(write_adapter(tmp_path / "adapter", tensors, **settings))
    assert table.rows == ()
    assert [why in skipped.why for skipped in table.skipped] == [True]


def test_names_are_data(tmp_path: Path) -> None:
    layer = "<script>alert(1)</script>"
    tensors = {
        f"base_model.model.{layer}.lora_A.weight": torch.ones(4, 5),
        f"base_model.model.{layer}.lora_B.weight": torch.ones(6, 4),
    }
    (row,) = measure(write_adapter(tmp_path / "adapter", tensors)).rows
    assert row.layer == layer
    assert row.stable_rank == pytest.approx(1)


@pytest.mark.parametrize("bomb", ["(([a-z.0-9])+)+[!?]", "(.*)*(.*)*(.*)*[!?]", "(e|ee)+[!?]"])
def test_a_regular_expression_that_would_run_for_years(tmp_path: Path, bomb: str) -> None:
    layer = "encoder.layer.0." + "e" * 80
    tensors = {
        name.replace(PREFIX, f"base_model.model.{layer}"): tensor for name, tensor in pair().items()
    }
    start = time.monotonic()
    folder = write_adapter(tmp_path / "adapter", tensors, alpha_pattern={bomb: 4})
    try:
        measure(folder)  # some engines see through some bombs: then it is an ordinary pattern
    except ValueError as error:
        assert "took longer than" in str(error)  # noqa: PT017 - either end is right, a hang is not
    assert time.monotonic() - start < 30


def test_at_least_one_bomb_is_one(tmp_path: Path) -> None:
    layer = "encoder.layer.0." + "e" * 80
    tensors = {
        name.replace(PREFIX, f"base_model.model.{layer}"): tensor for name, tensor in pair().items()
    }
    line = refusal(write_adapter(tmp_path / "a", tensors, rank_pattern={"(e|ee)+[!?]": 4}))
    assert "expected a regular expression that matches a layer's name at once" in line


def test_a_view_that_claims_a_terabyte(tmp_path: Path) -> None:
    torch.save({"a.weight": torch.ones(1).expand(2**20, 2**18)}, tmp_path / "x.bin")
    assert (tmp_path / "x.bin").stat().st_size < 10_000
    assert "found a.weight of shape (1048576, 262144) over 4 bytes" in refusal(tmp_path / "x.bin")


@pytest.mark.parametrize("kind", ["sparse", "meta"])
def test_tensors_that_are_no_numbers_in_a_file(tmp_path: Path, kind: str) -> None:
    tensor = torch.eye(4).to_sparse() if kind == "sparse" else torch.ones(4, 4, device="meta")
    torch.save({"a.weight": tensor}, tmp_path / "x.bin")
    assert "expected every tensor stored in full" in refusal(tmp_path / "x.bin")


def test_an_archive_that_unpacks_to_more_than_it_is(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.bin", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", b"\0" * 10_000_000)
    assert "found one that unpacks to 10000000 bytes" in refusal(tmp_path / "x.bin")


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.complex64, torch.float8_e4m3fn])
@pytest.mark.parametrize("factor", ["lora_A", "lora_B"])
def test_a_factor_of_a_wrong_dtype_is_not_read_as_numbers(
    tmp_path: Path, dtype: torch.dtype, factor: str
) -> None:
    tensors = pair()
    tensors[f"{PREFIX}.{factor}.weight"] = tensors[f"{PREFIX}.{factor}.weight"].to(dtype)
    table = measure(write_adapter(tmp_path / "adapter", tensors))
    assert table.rows == ()
    assert f"{factor} is stored as" in table.skipped[0].why


@pytest.mark.parametrize("shape", [(), (4,), (0, 5), (4, 0)])
@pytest.mark.parametrize("factor", ["lora_A", "lora_B"])
def test_a_factor_that_is_no_matrix(tmp_path: Path, factor: str, shape: tuple[int, ...]) -> None:
    folder = write_adapter(
        tmp_path / "a", pair() | {f"{PREFIX}.{factor}.weight": torch.ones(shape)}
    )
    assert "expected B (m, r) and A (r, n) for encoder.layer.0.query" in refusal(folder)
    loose = {f"x.{name.rsplit('.', 2)[1]}": tensor for name, tensor in pair().items()} | {
        f"x.{factor}": torch.ones(shape)
    }
    save_file(loose, tmp_path / "lora.safetensors")
    try:
        assert measure(tmp_path / "lora.safetensors").rows == ()
    except ValueError as error:
        assert "expected B (m, r) and A (r, n)" in str(error)  # noqa: PT017 - skipped by name or refused, never read


def test_magnitudes_that_do_not_fit(tmp_path: Path) -> None:
    folder = write_adapter(
        tmp_path / "a", pair() | {f"{PREFIX}.lora_magnitude_vector": torch.ones(7)}, use_dora=True
    )
    assert "expected one DoRA magnitude for each of the 6 rows of B; found 7" in refusal(folder)


def test_a_setting_twice(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "adapter", pair())
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4, "r": 8}')
    assert "found the name 'r' twice" in refusal(folder)
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "x", "a": "y"}}')
    assert "found the name 'a' twice" in refusal(tmp_path)


def test_a_pipeline_whose_models_lead_back_to_it(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text("{}")
    for name in (
        "unet",
        "transformer",
        "prior",
        "text_encoder",
        "text_encoder_2",
        "text_encoder_3",
    ):
        (tmp_path / name).symlink_to(tmp_path)
    assert "expected an adapter" in refusal(tmp_path)


@pytest.mark.parametrize("value", [[[0, 1, 2]], [[5, 1]], [["0", 2]], [[0, 10**12]], 3, [[-1, 2]]])
def test_a_malformed_replication(tmp_path: Path, value: object) -> None:
    assert "layer_replication" in refusal(
        write_adapter(tmp_path / "a", pair(), layer_replication=value)
    )


@pytest.mark.parametrize("value", ["q_proj", [1], {"a": 1}])
def test_malformed_target_parameters(tmp_path: Path, value: object) -> None:
    assert "expected target_parameters to be a list of names" in refusal(
        write_adapter(tmp_path / "a", pair(), target_parameters=value)
    )


def test_experts_whose_rank_does_not_divide(tmp_path: Path) -> None:
    tensors = {
        f"{PREFIX}.lora_A.weight": torch.ones(10, 5),
        f"{PREFIX}.lora_B.weight": torch.ones(6, 10),
    }
    folder = write_adapter(tmp_path / "a", tensors, target_parameters=["query.up"])
    assert "expected A (E r, n) and B (m, r E) with r = 4" in refusal(folder)


def test_what_is_printed_of_a_hostile_name_is_plain_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No markup, no script, no escape code, neither in the table nor in an error."""
    layer = "<script>[red]\x1b]0;owned\x07\x1b[2J"
    names = {x: f"base_model.model.{layer}.lora_{x}.weight" for x in "AB"}
    folder = write_adapter(
        tmp_path / "a", {names["A"]: torch.ones(4, 5), names["B"]: torch.ones(6, 4)}
    )
    assert main(["measure", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "<script>[red]\\x1b]0;owned\\x07" in out.replace("\n", "")
    for form in ("--json", "--csv"):
        assert main(["measure", str(folder), form]) == 0
        assert "<script>[red]" in capsys.readouterr().out
    save_file({names["A"]: torch.ones(4, 5)}, folder / "adapter_model.safetensors")
    assert main(["measure", str(folder)]) == 2
    err = capsys.readouterr().err
    assert "\x1b" not in err
    assert err.count("\n") == 1


def test_a_hint_is_quoted_for_the_shell_that_it_is_pasted_into(tmp_path: Path) -> None:
    hostile = "x; rm -rf ~ $(id)"
    line = refusal(
        write_adapter(tmp_path / "a", pair(), peft_type="LOHA", base_model_name_or_path=hostile)
    )
    assert f"--base '{hostile}'" in line
    folder = write_adapter(tmp_path / "b",
                           pair() | {f"{PREFIX}.lora_magnitude_vector": torch.ones(6)},
                           base_model_name_or_path=hostile, use_dora=True)  # fmt: skip
    assert f"--base '{hostile}'" in measure(folder).skipped[0].why


@pytest.mark.parametrize("revision", ["main", "../x"])
def test_places_inside_a_source(tmp_path: Path, revision: str) -> None:
    folder = write_adapter(tmp_path / "adapter", pair())
    assert f"expected a hub id with revision {revision}; found a folder" in refusal(
        folder, revision=revision
    )
    assert "expected a folder 'second' in it" in refusal(folder, subfolder="second")
    write_adapter(folder / "second", pair())
    assert len(measure(folder, subfolder="second").rows) == 1
    table = measure(folder)
    assert len(table.rows) == 1
    assert [(s.layer, s.why) for s in table.skipped] == [
        ("second", "another adapter in this folder: type --subfolder second")
    ]


def test_options_without_what_they_are_about(tmp_path: Path) -> None:
    """They were passed over: alpha of a checkpoint, and the revision of no base."""
    folder = write_adapter(tmp_path / "adapter", pair())
    assert "expected the base beside it; found 'v2' alone" in refusal(folder, base_revision="v2")
    save_file({"q.weight": torch.ones(3, 4)}, tmp_path / "x.safetensors")
    line = refusal(tmp_path / "x.safetensors", alpha=3.0)
    assert "which holds no LoRA factors; found 3." in line


@pytest.mark.parametrize("rtol", [0.0, -1.0, float("nan"), float("inf")])
def test_a_tolerance_that_is_none(tmp_path: Path, rtol: float) -> None:
    assert "rtol: expected a number in (0, 1)" in refusal(
        write_adapter(tmp_path / "a", pair()), rtol=rtol
    )
