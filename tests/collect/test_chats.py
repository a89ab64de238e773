"""Chats collected: the same trials trained by us, in another trainer's folders, and by TRL's
SFTTrainer, say the same."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rankscope as rs
from language import TEMPLATE, peft_of, save_language_model, study_of, trl_run
from own_store import as_another_trainers_runs, assert_alike, stored
from rankscope.analysis.conclusions import conclude
from rankscope.cli import main
from rankscope.report.from_store import open_frames
from rankscope.store.store import Store
from rankscope.sweep.inputs import StudyInputs
from rankscope.train.adapters import AdapterPack
from rankscope.train.run import Run
from training import CPU

pytestmark = pytest.mark.filterwarnings("ignore")  # of the trainers
ANSWERS = TEMPLATE.replace(  # TRL learns the answers that the template marks
    "{{ m['content'] }} </s> ",
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }} </s>{% endgeneration %} "
    "{% else %}{{ m['content'] }} </s> {% endif %}",
)
SHAPE = {
    "rank = [1, 3, 8]": "rank = [2, 4]", "steps = 20": "steps = 16", "eval_every = 10":
    "eval_every = 4", "[1e-3, 1e-2]": "[2e-2, 2e-1]", "seed = 5": "seed = [0, 1]",
}  # fmt: skip


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> rs.Study:
    """Twelve trials of a tiny Llama on a column of messages."""
    place = tmp_path_factory.mktemp("chats")
    model = save_language_model(place / "llama", "llama", template=ANSWERS)
    text = study_of(place / "data", model, "messages", 40, methods='["lora", "full"]').source
    for old, new in SHAPE.items():
        text = text.replace(old, new)
    return rs.Study.parse(text, folder=place / "data")


@pytest.fixture(scope="module")
def own(study: rs.Study) -> tuple[Store, Path]:
    return stored(study, study.folder.parent)


def collected(out: Path, place: Path, model: str, mapped: str | None = None) -> Store:
    more = ["--map", mapped] if mapped else []
    said = ["collect", str(out), "--store", str(place), "--base", model, "--task", "rows"]
    assert main([*said, *more]) == 0
    return Store(place)


def conclusions(store: Store) -> Any:
    """Of what checkpoints have: no spectra between evaluations, no barrier and features, which need
    rows."""
    frames = open_frames(store)
    pairs = frames.comparison.assign(barrier=np.nan, cka=np.nan)
    drifts = frames.drifts[frames.drifts["step"].isin(frames.metrics["step"])]
    frames = dataclasses.replace(frames, drifts=drifts, comparison=pairs)
    return conclude(frames, resamples=99).to_dict()


def test_our_own_chats_collected_give_the_same_conclusions(
    study: rs.Study, own: tuple[Store, Path], tmp_path: Path
) -> None:
    store, saved = own
    mapped = as_another_trainers_runs(store, saved, tmp_path / "out")
    (model,) = study.scientific.model
    copy = collected(tmp_path / "out", tmp_path / "copy", model, mapped)
    assert copy.done_ids() == store.done_ids()
    assert_alike(conclusions(copy), conclusions(store))


def test_chats_trained_by_trl_say_what_ours_say(
    study: rs.Study, own: tuple[Store, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """SFTTrainer on the same starts and batches, collected without a map: settings are those of our
    own trials, and losses and spectra but for rounding, which a rate of 0.2 blows up; every
    command reads them."""
    store, inputs = own[0], StudyInputs(study, workers=1)
    (model,) = study.scientific.model
    trials = [t for t in inputs.trials if t.method == "lora" and t.seed == 0]
    task = inputs.tasks["rows"]
    run = Run(AdapterPack(trials, model=model, task=task, device=CPU), task,
              *inputs.encoded(trials[0]))  # fmt: skip
    for k, trial in enumerate(trials):
        run.pack.save(k, [group.values for group in run.pack.params], tmp_path / "start" / trial.id)
        tuned = peft_of(model, tmp_path / "start" / trial.id)
        trl_run(
            inputs, trial, tuned, tmp_path / "out" / trial.id,
            assistant_only_loss=True, seed=trial.seed, eval_strategy="steps", eval_steps=4,
            eval_on_start=True, save_strategy="steps", save_steps=4, logging_strategy="steps",
            logging_steps=4, per_device_eval_batch_size=64,
        )  # fmt: skip
    found = collected(tmp_path / "out", tmp_path / "copy", model)
    ours, theirs = (s.trials().set_index(["rank", "learning_rate"]) for s in (store, found))
    ours = ours[ours["seed"].eq(0)].loc[theirs.index]
    assert len(theirs) == 4
    assert theirs["metric"].eq("eval_loss").all()
    assert not theirs["greater_is_better"].any()
    exact = theirs.index.get_level_values("learning_rate") < 0.1
    for name in ("untrained", "best", "last"):
        np.testing.assert_allclose(theirs[name], ours[name], rtol=1e-2, err_msg=name)
        np.testing.assert_allclose(theirs[name][exact], ours[name][exact], rtol=1e-5, err_msg=name)
    assert theirs["best_step"][exact].tolist() == ours["best_step"][exact].tolist()
    said = ["seed", "scaling", "batch_size", "steps", "target_modules", "lora_alpha"]
    said += ["weight_decay", "lr_scheduler_type", "max_length", "max_grad_norm"]
    for (rank, rate), id in theirs["trial"].items():
        mine = ours.loc[(rank, rate), "trial"]
        settings = [s.folder(one).trial() for s, one in ((found, id), (store, mine))]
        assert [settings[0][name] for name in said] == [settings[1][name] for name in said]
        assert settings[0]["warmup_ratio"] == 1 / 16  # its step of ours, 6 % of 16 rounded up
        tables = [s.spectra() for s in (found, store)]
        tables = [t[t["trial"].eq(one)] for t, one in zip(tables, (id, mine), strict=True)]
        keys = ["step", "layer", "matrix"]
        pairs = tables[0].merge(tables[1], on=keys)
        assert len(pairs) == len(tables[0]) == 4 * (1 + 2 * 4)
        np.testing.assert_allclose(
            pairs["stable_rank_x"], pairs["stable_rank_y"], rtol=1e-3 if rate < 0.1 else 0.1
        )
    capsys.readouterr()
    copy = str(tmp_path / "copy")
    assert main(["status", copy]) == 0
    assert "4 of 4 trials done" in capsys.readouterr().out
    assert main(["suggest", copy]) == 0
    assert "one seed each" in capsys.readouterr().out
    judged = ["judge", str(tmp_path / "out" / trials[0].id), "--base", model, "--against"]
    assert main([*judged, copy]) == 0
    assert main(["report", copy]) == 0
    assert main(["suggest", copy, "--validate"]) == 2
    assert "found collected trials" in capsys.readouterr().err
