"""Output folders of real trainers become ordinary stores: settings, values and weights at their own
steps; what cannot be told is left out and said."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from conftest import save_model, sizes
from own_store import as_another_trainers_runs, assert_alike, own_store
from rankscope.analysis.conclusions import conclude
from rankscope.cli import main
from rankscope.collect.collect import Asked, Collected, collect
from rankscope.collect.history import history
from rankscope.collect.trackers import entries_of
from rankscope.report.from_store import open_frames
from rankscope.store.store import Store
from tiny import MODELS, shake
from trainers import sft_run, trainer_run

pytestmark = pytest.mark.filterwarnings("ignore")  # of the trainers


@pytest.fixture(scope="module")
def runs(tiny_models: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two adapters and a full fine-tune; the second loads its best weights back at the end, saves
    them in the folder itself and evaluates them once more."""
    out = tmp_path_factory.mktemp("out")
    model = tiny_models["roberta"]
    trainer_run(model, out / "a", rank=2, rate=3e-2, lr_scheduler_type="cosine")
    best = trainer_run(
        model, out / "b", rank=4, rate=1e-1, seed=5, load_best_model_at_end=True,
        metric_for_best_model="eval_loss", lr_scheduler_type="cosine",
    )  # fmt: skip
    best.evaluate()
    best.save_model()
    best.save_state()
    trainer_run(model, out / "full", rank=None, rate=1e-3, lr_scheduler_type="cosine")
    return out


@pytest.fixture(scope="module")
def store(
    runs: Path, tiny_models: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Store:
    place = tmp_path_factory.mktemp("s") / "store"
    found = collect(
        [runs], place, asked=Asked(base=tiny_models["roberta"], task="CoLA", metric="accuracy")
    )
    assert found.left_out == {}
    return Store(place)


def trial_of(store: Store, rank: int | None) -> str:
    trials = store.trials()
    same = trials["rank"].isna() if rank is None else trials["rank"].eq(rank)
    return str(trials.loc[same, "trial"].item())


def test_settings_are_those_that_it_was_trained_with(store: Store) -> None:
    said = store.folder(trial_of(store, 4)).trial()
    wanted = {
        "method": "lora", "rank": 4, "scaling": "alpha/r", "lora_alpha": 8.0, "seed": 5,
        "learning_rate": 0.1, "weight_decay": 0.02, "batch_size": 8, "steps": 6, "task": "CoLA",
        "lr_scheduler_type": "cosine", "target_modules": ["query", "value"], "epochs": None,
        "adam_betas": [0.9, 0.999], "max_grad_norm": 1.0,
    }  # fmt: skip
    assert {name: said[name] for name in wanted} == wanted
    full = store.folder(trial_of(store, None)).trial()
    assert (full["method"], full["rank"], full["target_modules"]) == (
        "full",
        None,
        ["query", "value"],
    )


def test_every_value_stands_at_its_own_step(store: Store, runs: Path) -> None:
    """Losses were logged at 3 and 6, evaluations at 2, 4 and 6; after training one more was made of
    other weights."""
    metrics = store.metrics()
    for name, rank in (("a", 2), ("b", 4)):
        state = json.loads((runs / name / "checkpoint-6" / "trainer_state.json").read_text())
        logged = {e["step"]: e for e in state["log_history"] if "eval_loss" in e}
        losses = {e["step"]: e["loss"] for e in state["log_history"] if "loss" in e}
        own = metrics[metrics["trial"].eq(trial_of(store, rank))]
        assert list(own["step"]) == [2, 4, 6] == list(logged)
        assert list(own["eval_loss"]) == [logged[s]["eval_loss"] for s in (2, 4, 6)]
        assert list(own["accuracy"]) == [logged[s]["eval_accuracy"] for s in (2, 4, 6)]
        assert own["train_loss"].isna().tolist() == [True, True, False]
        assert own["train_loss"].iloc[2] == losses[6]
        assert set(losses) == {3, 6}
    after = json.loads((runs / "b" / "trainer_state.json").read_text())["log_history"][-1]
    assert "eval_loss" in after
    assert after["step"] == 6
    folder = store.folder(trial_of(store, 4)).path
    notes = json.loads((folder / "trial.json").read_text())["collected"]["notes"]
    assert any("1 evaluation after training left out" in note for note in notes)


def test_spectra_are_those_of_the_saved_weights(
    store: Store, runs: Path, tiny_models: dict[str, str]
) -> None:
    """By singular values in float64, at every saved step, of an adapter and of a full fine-tune."""
    spectra = store.spectra().set_index(["trial", "step", "layer", "matrix"])["stable_rank"]
    base = load_file(Path(tiny_models["roberta"]) / "model.safetensors")
    layer = "roberta.encoder.layer.1.attention.self.value"
    W = base[f"{layer}.weight"].double()

    def rank_of(M: torch.Tensor) -> float:
        sigma = torch.linalg.svdvals(M)
        return float((sigma**2).sum() / sigma[0] ** 2)

    for step in (2, 4, 6):
        saved = load_file(runs / "a" / f"checkpoint-{step}" / "adapter_model.safetensors")
        prefix = f"base_model.model.{layer}.lora_"
        dW = 8 / 2 * saved[f"{prefix}B.weight"].double() @ saved[f"{prefix}A.weight"].double()
        full = load_file(runs / "full" / f"checkpoint-{step}" / "model.safetensors")
        for trial, update in (
            (trial_of(store, 2), dW),
            (trial_of(store, None), full[f"{layer}.weight"].double() - W),
        ):
            assert spectra[trial, step, layer, "dW"] == pytest.approx(rank_of(update), rel=1e-6)
            assert spectra[trial, step, layer, "W+dW"] == pytest.approx(
                rank_of(W + update), rel=1e-6
            )
            assert spectra[trial, 0, layer, "W"] == pytest.approx(rank_of(W), rel=1e-6)
    layers = {name for _, _, name, _ in spectra.index}
    assert len(layers) == 4  # query and value of two blocks; no head, also of the full fine-tune


def test_everything_reads_the_store(
    store: Store, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    place = str(store.path)
    assert main(["status", place]) == 0
    assert "3 of 3 trials done" in capsys.readouterr().out
    assert main(["check", place]) == 0
    assert main(["analyze", place, "--json"]) == 0
    capsys.readouterr()
    assert main(["report", place, "-o", str(tmp_path / "page.html")]) == 0
    assert "# rank: 2, 4" in (tmp_path / "page.html").read_text()
    assert set(store.comparison()["trial"]) == {trial_of(store, 2), trial_of(store, 4)}


def test_judge_sets_a_run_beside_the_trials_of_a_store(
    store: Store, runs: Path, tiny_models: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """``--against STORE``: the share of its trials that ended nearer to W, by their spectra."""
    command = ["judge", str(runs / "a"), "--base", tiny_models["roberta"], "--json"]
    assert main([*command, "--against", str(store.path)]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["against"] == str(store.path)
    spectra = store.spectra().set_index(["trial", "layer"])
    based = spectra.loc[spectra["matrix"].eq("W"), "stable_rank"]
    last = spectra.loc[spectra["matrix"].eq("W+dW") & spectra["step"].eq(6), "stable_rank"]
    moved = np.log(last / based).groupby("trial").median().abs()
    assert len(moved) == 3
    assert len(printed["sources"]) == 3
    for one in printed["sources"]:
        (line,) = one["standing"]
        share = float((moved < abs(np.log1p(one["drift"]))).mean())
        assert (line["task"], line["place"], line["trials"]) == ("CoLA", "no threshold", 3)
        assert line["drift_share"] == share
    assert 0 < share < 1
    assert main([*command, "--against", str(runs)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_collected_again_nothing_changes(
    store: Store, runs: Path, tiny_models: dict[str, str]
) -> None:
    before = store.hash(), len(list((store.path / "log").iterdir()))
    asked = Asked(base=tiny_models["roberta"], task="CoLA", metric="accuracy")
    again = collect([runs / "a", runs], store.path, asked=asked)
    assert (len(again.added), again.left_out) == (3, {})
    assert before == (Store(store.path).hash(), len(list((store.path / "log").iterdir())))


def test_a_pickle_is_never_unpickled(
    runs: Path, tiny_models: dict[str, str], tmp_path: Path
) -> None:
    """One that would write a file when it is loaded is left alone; the rate is then unknown."""

    class Hostile:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "executed",)

    shutil.copytree(runs / "a", tmp_path / "run")
    for path in tmp_path.rglob("training_args.bin"):
        torch.save(Hostile(), path)
    found = collect([tmp_path / "run"], tmp_path / "s", asked=Asked(base=tiny_models["roberta"]))
    assert not (tmp_path / "executed").exists()
    (why,) = found.left_out.values()
    assert "learning_rate: expected in a file of the run" in why
    torch.load(path, weights_only=False)  # it would
    assert (tmp_path / "executed").exists()


def test_a_map_counts_before_all_else(
    runs: Path, tiny_models: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "map.csv").write_text(
        f"path,learning_rate,seed,task,metrics,metric\n{runs / 'a'},0.5,9,mine,own.csv,f1\n"
    )
    (tmp_path / "own.csv").write_text("step,loss,val_f1\n2,0.5,\n2,,0.25\n6,,0.75\n")
    found = collect(
        [runs / "a"], tmp_path / "s", mapped=tmp_path / "map.csv",
        asked=Asked(base=tiny_models["roberta"], task="other", metric="accuracy"),
    )  # fmt: skip
    assert found.left_out == {}
    store = Store(tmp_path / "s")
    (trial,) = store.trials().to_dict("records")
    assert (trial["learning_rate"], trial["seed"], trial["task"]) == (0.5, 9, "mine")
    assert (trial["metric"], trial["best"], trial["best_step"]) == ("f1", 0.75, 6)
    lines = store.metrics()[["step", "train_loss", "f1"]].to_numpy()
    np.testing.assert_array_equal(lines, [[2, 0.5, 0.25], [6, np.nan, 0.75]])


def test_an_evaluation_without_saved_weights_is_said(
    runs: Path, tiny_models: dict[str, str], tmp_path: Path
) -> None:
    shutil.copytree(runs / "a", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoint-4")
    found = collect([tmp_path / "run"], tmp_path / "s", asked=Asked(base=tiny_models["roberta"]))
    assert any(line.startswith("1 of 3 evaluations are at steps whose") for line in found.missing)
    store = Store(tmp_path / "s")
    assert set(store.spectra()["step"]) == {0, 2, 6}
    assert list(store.metrics()["step"]) == [2, 4, 6]


def adapters(folder: Path, steps: list[int], log: list[dict[str, Any]], **settings: Any) -> Path:
    """Checkpoints of a run with that log: adapters of a tiny Llama, whose base is beside them."""
    torch.manual_seed(0)
    model = MODELS["llama"]()
    model.save_pretrained(folder.parent / "base")
    config = LoraConfig(r=4, target_modules=["q_proj"], **settings)
    tuned = get_peft_model(model, config)
    shake(tuned)
    for step in steps:
        tuned.save_pretrained(folder / f"checkpoint-{step}")
        state = {"global_step": step, "log_history": log}
        (folder / f"checkpoint-{step}" / "trainer_state.json").write_text(json.dumps(state))
    return folder


def by_llama(folder: Path, place: Path) -> Collected:
    return collect([folder], place, asked=Asked(base=str(folder.parent / "base"), task="t"))


def test_a_resumed_run_counts_with_what_was_trained_last(tmp_path: Path) -> None:
    """Resumed after step 4: the weights of 6 were written anew, and the first 6 is no longer
    there. Training that goes on after its end goes on, too."""
    losses = {2: [0.8], 4: [0.6], 6: [0.59, 0.55]}
    log = [{"step": s, "eval_loss": losses[s][0]} for s in (2, 4, 6)]
    log += [{"step": 5, "loss": 0.7}, {"step": 6, "eval_loss": losses[6][1]}]
    run = adapters(tmp_path / "lr1e-4", [4, 6], log)
    found = by_llama(run, tmp_path / "s")
    table = Store(tmp_path / "s").metrics().set_index("step")["eval_loss"]
    assert table.to_dict() == {2: 0.8, 4: 0.6, 6: 0.55}
    (notes,) = found.notes.values()
    assert any(note.startswith("resumed before step 5: of what was logged") for note in notes)
    more = [*log, {"step": 6, "train_runtime": 1.0}, {"step": 7, "loss": 0.5},
            {"step": 8, "eval_loss": 0.5}]  # fmt: skip
    assert history(more, best_loaded=None).frame["step"].to_list() == [2, 4, 6, 8]


def test_a_checkpoint_that_was_being_written_is_left_out(tmp_path: Path) -> None:
    run = adapters(tmp_path / "lr1e-4", [2, 4], [{"step": 2, "eval_loss": 0.5}])
    file = run / "checkpoint-4" / "adapter_model.safetensors"
    for length in (4, 200, file.stat().st_size - 1):
        file.write_bytes(file.read_bytes()[:length] + b"")
        found = by_llama(run, tmp_path / f"s{length}")
        (notes,) = found.notes.values()
        why = "checkpoint-4: left out: adapter_model.safetensors is cut off or damaged"
        assert why in notes
        assert set(Store(tmp_path / f"s{length}").spectra()["step"]) == {0, 2}
        shutil.copy(run / "checkpoint-2" / file.name, file)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    model = MODELS["llama"]()
    run = tmp_path / "lr1e-5" / "checkpoint-4"
    model.save_pretrained(run, max_shard_size="20KB")
    (first, *_) = sorted(run.glob("model-*.safetensors"))
    first.unlink()
    found = collect([run.parent], tmp_path / "s", asked=Asked(task="t"))
    (why,) = found.left_out.values()
    assert f"checkpoint-4: left out: the shard {first.name} is missing" in why


def test_unlike_adapters_of_one_rank_are_trials_of_their_own(tmp_path: Path) -> None:
    """DoRA, a rank for each layer and another start: each has its setting, none is pooled."""
    kinds: dict[str, dict[str, Any]] = {
        "plain": {}, "dora": {"use_dora": True}, "gaussian": {"init_lora_weights": "gaussian"},
        "pattern": {"rank_pattern": {"0.self_attn.q_proj": 2}},
    }  # fmt: skip
    for name, settings in kinds.items():
        adapters(tmp_path / "runs" / f"{name}-lr1e-4", [2], [{"step": 2, "eval_loss": 0.5}],
                 **settings)  # fmt: skip
    base = str(tmp_path / "runs" / "base")
    found = collect(
        [tmp_path / "runs" / f"{name}-lr1e-4" for name in kinds],
        tmp_path / "s",
        asked=Asked(base=base, task="t"),
    )
    assert found.left_out == {}
    settings = Store(tmp_path / "s").trials()["setting"]
    assert len(settings) == len(set(settings)) == 4
    said = {setting.split("=")[0] for setting in settings}
    assert said == {"", "use_dora", "init_lora_weights", "rank_pattern"}


def test_optimisers_and_alphas_are_never_pooled(tmp_path: Path) -> None:
    """Equal in rank, rate and seed: an optimiser of the run, an alpha of the adapter."""
    kinds = {"a": ("adamw_torch", 8), "b": ("muon", 8), "c": ("adamw_torch", 16)}
    for name, (optim, alpha) in kinds.items():
        run = adapters(tmp_path / "runs" / f"{name}-lr1e-4", [2], [{"step": 2, "eval_loss": 0.5}],
                       lora_alpha=alpha)  # fmt: skip
        (run / "args.json").write_text(json.dumps({"optim": optim, "seed": 0}))
    folders = [tmp_path / "runs" / f"{name}-lr1e-4" for name in kinds]
    found = collect(folders, tmp_path / "s",
                    asked=Asked(base=str(tmp_path / "runs" / "base"), task="t"))  # fmt: skip
    assert found.left_out == {}
    settings = Store(tmp_path / "s").trials()["setting"]
    assert set(settings) == {"lora_alpha=2r", "lora_alpha=2r, optimizer=muon", "lora_alpha=4r"}


def test_an_adapter_with_a_name_of_its_own(tmp_path: Path) -> None:
    """PEFT saves it in a folder of that name, beside the trainer's own files; pickled ones are
    read as they are."""
    run = adapters(tmp_path / "lr1e-4", [2, 4], [{"step": 2, "eval_loss": 0.5}])
    for checkpoint in run.glob("checkpoint-*"):
        (checkpoint / "mine").mkdir()
        for file in checkpoint.glob("adapter_*"):
            file.rename(checkpoint / "mine" / file.name)
    weights = run / "checkpoint-4" / "mine" / "adapter_model.safetensors"
    torch.save(load_file(weights), weights.with_name("adapter_model.bin"))
    weights.unlink()
    found = by_llama(run, tmp_path / "s")
    assert found.left_out == {}
    assert set(Store(tmp_path / "s").spectra()["step"]) == {0, 2, 4}
    shutil.copytree(run / "checkpoint-2" / "mine", run / "checkpoint-2" / "other")
    (notes,) = by_llama(run, tmp_path / "t").notes.values()
    assert any(n.startswith("checkpoint-2: left out: 2 adapters in it, mine, other") for n in notes)


def test_weights_that_equal_a_checkpoints_are_of_its_step(tmp_path: Path) -> None:
    """Trainers save the last weights once more in the folder itself: nothing is left out."""
    run = adapters(tmp_path / "lr1e-4", [2, 4], [{"step": 2, "eval_loss": 0.5}])
    for file in (run / "checkpoint-2").glob("adapter_*"):
        shutil.copy(file, run / file.name)
    (notes,) = by_llama(run, tmp_path / "s").notes.values()
    assert not any("left out" in note for note in notes)


def test_evaluations_by_another_name_than_eval() -> None:
    log: list[dict[str, Any]] = [{"step": 2, "loss": 0.9}]
    log += [{"step": 2, "valid_loss": 0.5, "valid_runtime": 1.0}, {"step": 2, "train_runtime": 3.0}]
    found = history(log)
    assert found.frame["eval_loss"].to_list() == [0.5]
    assert found.notes == ["evaluations are named valid_*: taken as eval_*"]
    found = history([*log, {"step": 4, "test_loss": 0.4, "test_runtime": 1.0}])
    assert found.frame.empty
    assert found.notes[0].startswith(
        "evaluations are named test_*, valid_*, none eval_*: not taken"
    )
    found = history([*log, {"step": 4, "eval_loss": 0.4, "eval_runtime": 1.0}])
    assert found.frame["eval_loss"].to_list() == [0.4]


def test_rewards_are_there_to_choose_by(tmp_path: Path) -> None:
    """DPO's and GRPO's logs, and sentence-transformers': the loss is taken, which is said."""
    lines = {"eval_loss": 0.69, "eval_rewards/accuracies": 0.6, "eval_rewards/margins": 0.1}
    run = adapters(tmp_path / "lr1e-4", [4], [{"step": 4, **lines}])
    (notes,) = by_llama(run, tmp_path / "s").notes.values()
    assert (
        "metric: eval_loss taken; also logged: rewards_accuracies, rewards_margins; " in notes[-1]
    )
    asked = Asked(base=str(tmp_path / "base"), task="t", metric="rewards/accuracies")
    assert collect([run], tmp_path / "t", asked=asked).left_out == {}
    trials = Store(tmp_path / "t").trials()
    assert (trials["metric"].item(), trials["best"].item()) == ("rewards_accuracies", 0.6)
    found = history([{"step": 4, "eval_sts-dev_spearman_cosine": 0.8, "eval_loss": 0.1}]).frame
    assert found["sts-dev_spearman_cosine"].to_list() == [0.8]


def test_of_several_metrics_the_one_taken_is_said(tmp_path: Path) -> None:
    log = [{"step": 4, "eval_en_loss": 0.5}, {"step": 4, "eval_de_loss": 0.7}]
    run = adapters(tmp_path / "lr1e-4", [4], log)
    (notes,) = by_llama(run, tmp_path / "s").notes.values()
    assert any(note.startswith("metric: de_loss taken out of de_loss, en_loss") for note in notes)


def test_weights_of_an_unknown_step_are_left_out(
    runs: Path, tiny_models: dict[str, str], tmp_path: Path
) -> None:
    """Other weights in the folder itself, of which no file says the step, are at none."""
    run = shutil.copytree(runs / "b", tmp_path / "run")
    asked = Asked(base=tiny_models["roberta"])
    weights = load_file(run / "adapter_model.safetensors")
    save_file({name: x + 1 for name, x in weights.items()}, run / "adapter_model.safetensors")
    found = collect([run], tmp_path / "s", asked=asked)
    (notes,) = found.notes.values()
    assert any("has others" in note for note in notes)
    assert set(Store(tmp_path / "s").spectra()["step"]) == {0, 2, 4, 6}
    shutil.rmtree(run / "checkpoint-6")
    state = json.loads((run / "checkpoint-2" / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"]
    (run / "checkpoint-2" / "trainer_state.json").write_text(json.dumps(state | {"global_step": 3}))
    found = collect([run], tmp_path / "t", asked=asked)
    (notes,) = found.notes.values()
    assert any(note.startswith("checkpoint-2: left out: its trainer_state.json") for note in notes)
    loaded_back = int(state["best_model_checkpoint"].rpartition("-")[2])
    assert set(Store(tmp_path / "t").spectra()["step"]) == {0, 4, loaded_back}


def test_a_llama_trained_by_trl(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing but losses: the lowest is the best one. Collected, analysed, reported."""
    pytest.importorskip("trl")
    from transformers import LlamaConfig, LlamaForCausalLM

    def make() -> Any:
        config = LlamaConfig(
            **sizes(16), num_key_value_heads=1, max_position_embeddings=40, bos_token_id=0,
            eos_token_id=2,
        )  # fmt: skip
        return LlamaForCausalLM(config)

    base = save_model(tmp_path / "llama", make)
    for rate in (1e-2, 1e-1):
        sft_run(base, tmp_path / "out" / f"{rate}", rate=rate)
    place = str(tmp_path / "s")
    arguments = ["collect", str(tmp_path / "out"), "--store", place, "--base", base]
    assert main([*arguments, "--task", "sft"]) == 0
    printed = capsys.readouterr().out
    assert "2 runs in" in printed
    assert "missing for a conclusion: no full fine-tuning to compare with (H4)" in printed
    store = Store(place)
    trials, metrics = store.trials(), store.metrics()
    assert set(trials["metric"]) == {"eval_loss"}
    lowest = metrics.groupby("trial")["eval_loss"].min()
    assert dict(zip(trials["trial"], trials["best"], strict=True)) == lowest.to_dict()
    assert {name.rpartition(".")[2] for name in store.spectra()["layer"]} == {"q_proj", "v_proj"}
    assert main(["analyze", place]) == 0
    assert main(["report", place]) == 0
    assert (tmp_path / "s" / "report.html").stat().st_size > 100_000


def test_a_tracker_of_each_kind(tmp_path: Path) -> None:
    """The same two evaluations and a loss between them, whoever wrote them down."""
    (tmp_path / "a.csv").write_text(
        "step,train/loss,eval/accuracy,eval/loss\n1,0.5,,\n2,,0.25,0.75\n4,,0.5,0.5\n"
    )
    (tmp_path / "b.jsonl").write_text(
        '{"current_steps": 1, "total_steps": 4, "loss": 0.5, "lr": 0.1}\n'
        '{"current_steps": 2, "eval_loss": 0.75, "eval_accuracy": 0.25}\n'
        '{"current_steps": 4, "eval_loss": 0.5, "eval_accuracy": 0.5}\n'
    )
    (tmp_path / "c.tsv").write_text("step\taccuracy\teval_loss\n2\t0.25\t0.75\n4\t0.5\t0.5\n")
    for name in ("a.csv", "b.jsonl"):
        found = history(entries_of(tmp_path / name)).frame
        assert list(found["step"]) == [2, 4], name
        assert found["train_loss"].isna().all(), name
        assert (list(found["accuracy"]), list(found["eval_loss"])) == ([0.25, 0.5], [0.75, 0.5])
    assert list(history(entries_of(tmp_path / "c.tsv")).frame.columns) == [
        "step", "train_loss", "eval_loss",
    ]  # fmt: skip
    for name, text in (("d.jsonl", "[1]"), ("e.jsonl", "no"), ("f.txt", ""), ("g.csv", "")):
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=f"{name}: expected"):
            entries_of(tmp_path / name)


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path)) as writer:
        for step, value in ((2, 0.25), (4, 0.5)):
            writer.add_scalar("eval/accuracy", value, step)
            writer.add_scalar("train/loss", 2 * value, step - 1)
        writer.add_scalar("train/loss", 0.125, 4)
    found = history(entries_of(tmp_path)).frame
    assert list(found["step"]) == [2, 4]
    assert list(found["accuracy"]) == [0.25, 0.5]
    np.testing.assert_array_equal(found["train_loss"], [np.nan, 0.125])


def test_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    client = mlflow.tracking.MlflowClient(tracking_uri=(tmp_path / "mlruns").as_uri())
    run = client.create_run(client.create_experiment("e"))
    for step, value in ((2, 0.25), (4, 0.5)):
        client.log_metric(run.info.run_id, "eval_accuracy", value, step=step)
    place = tmp_path / "mlruns" / run.info.experiment_id / run.info.run_id
    found = history(entries_of(place)).frame
    assert (list(found["step"]), list(found["accuracy"])) == ([2, 4], [0.25, 0.5])


def test_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = wandb.init(dir=str(tmp_path), project="p")
    for step, value in ((2, 0.25), (4, 0.5)):
        run.log({"eval/accuracy": value, "train/global_step": step})
    run.finish()
    place = next(tmp_path.glob("wandb/offline-run-*"))
    found = history(entries_of(place)).frame
    assert (list(found["step"]), list(found["accuracy"])) == ([2, 4], [0.25, 0.5])


FEW: dict[str, Any] = {"rank": 4, "learning_rate": 3e-2}
UNLIKE = """
[[arm]]
optimizer = ["sgd", "muon"]
[[arm]]
method = "lora"
use_dora = true
[[arm]]
method = "lora"
rank_pattern = { query = 2 }
[[arm]]
method = "lora"
init_lora_weights = ["pissa", "gaussian"]
"""


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"scaling": "alpha", "lora_alpha": 2, **FEW, "own": UNLIKE},
        {"target_modules": [["query"], ["query", "value"]], "lora_alpha": ["2r", "8r"], **FEW},
    ],
    ids=["one setting", "lists", "layers and alphas"],
)
def test_our_own_trials_collected_give_the_same_conclusions(
    tiny_models: dict[str, str], tiny_data: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    """The command line's way from adapters, full checkpoints and logs to conclusions.json, also of
    trials of unlike settings, which are named alike."""
    store, saved, model = own_store(tiny_models["roberta"], tiny_data, tmp_path, **settings)
    mapped = as_another_trainers_runs(store, saved, tmp_path / "out")
    arguments = ["collect", str(tmp_path / "out"), "--store", str(tmp_path / "copy"), "--base"]
    more = ["--map", mapped, "--metric", "matthews_correlation"]
    assert main([*arguments, model, *more]) == 0
    copy = Store(tmp_path / "copy")
    assert copy.done_ids() == store.done_ids()
    named = [dict(s.trials()[["trial", "setting"]].to_numpy()) for s in (copy, store)]
    assert named[0] == named[1]
    ours, theirs = (open_frames(s) for s in (copy, store))
    early = theirs.drifts["step"].eq(1)  # measured, and no evaluation: its weights are not saved
    pairs = theirs.comparison.assign(barrier=np.nan, cka=np.nan)  # need the rows, too
    theirs = dataclasses.replace(theirs, drifts=theirs.drifts[~early], comparison=pairs)
    assert_alike(*(conclude(f, resamples=99).to_dict() for f in (ours, theirs)))


def test_a_harmed_trial_is_collected_again(
    store: Store,
    runs: Path,
    tiny_models: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """No message speaks of training, which nobody here can."""
    place = str(shutil.copytree(store.path, tmp_path / "s"))
    victim = trial_of(store, 4)
    (tmp_path / "s" / "trials" / victim / "metrics.jsonl").write_text("x")
    assert main(["status", place]) == 3
    assert f"rankscope collect RUNS --store {place}" in capsys.readouterr().out
    assert main(["analyze", place]) == 3
    assert f"check {place} --repair, then rankscope collect" in capsys.readouterr().err
    assert main(["check", place, "--repair"]) == 3
    said = capsys.readouterr().out
    assert f"1 trials are missing: rankscope collect RUNS --store {place}" in said
    again = ["collect", str(runs), "--store", place, "--base", tiny_models["roberta"]]
    assert main([*again, "--task", "CoLA", "--metric", "accuracy"]) == 0
    assert Store(place).done_ids() == store.done_ids()
    pd.testing.assert_frame_equal(Store(place).metrics(), store.metrics())


def test_an_evaluation_before_the_first_step(tmp_path: Path) -> None:
    """Of a language model it is what its training set out from; no evaluation of an update."""
    log = [{"step": 0, "eval_loss": 3.0, "epoch": 0}, {"step": 4, "eval_loss": 2.0}]
    run = adapters(tmp_path / "lr1e-4", [4], log, task_type="CAUSAL_LM")
    assert not any("before training" in line for line in by_llama(run, tmp_path / "s").missing)
    (trial,) = Store(tmp_path / "s").trials().to_dict("records")
    assert (trial["untrained"], trial["best"], trial["best_step"]) == (3.0, 2.0, 4)
    assert Store(tmp_path / "s").metrics()["step"].to_list() == [4]
    unsaid = adapters(tmp_path / "two" / "lr1e-4", [4], log[1:], task_type="CAUSAL_LM")
    found = by_llama(unsaid, tmp_path / "t")
    assert any(line.startswith("1 runs of language models do not say") for line in found.missing)
    said = conclude(open_frames(Store(tmp_path / "t")), resamples=9).caveats
    assert any(line.startswith("If a head was trained along") for line in said)
    headed = adapters(tmp_path / "three" / "lr1e-4", [4], log)
    (notes,) = by_llama(headed, tmp_path / "u").notes.values()
    assert notes[-1].startswith("the evaluation before the first step left out")
    assert np.isnan(Store(tmp_path / "u").trials()["untrained"].item())
