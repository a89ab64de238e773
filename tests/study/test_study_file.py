"""Study files: what they become, and the one line that says what is wrong with them."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest

from rankscope.study.packing import packs
from rankscope.study.study_file import Study, builtin
from rankscope.study.tasks import Recipe
from rankscope.study.trial import Trial

TEXT = """
name = "t"
[scientific]
model = "m"
task = ["CoLA", "RTE"]
rank = [1, 4, "d"]
scaling = ["alpha/r", "alpha/sqrt(r)"]
[nuisance]
learning_rate = [1e-4, 1e-3]
seed = [0, 1]
[fixed]
data = "folder"
lora_alpha = 16
"""


def parsed(old: str = "", new: str = "") -> Study:
    assert old in TEXT
    return Study.parse(TEXT.replace(old, new, 1), label="t.toml")


def test_trials_are_the_product() -> None:
    trials = parsed().trials({"m": 64})
    assert len(trials) == 2 * (3 * 2 + 1) * 2 * 2
    assert {t.rank for t in trials} == {1, 4, 64, None}
    assert len({t.id for t in trials}) == len(trials)


def test_ids_are_pinned() -> None:
    """Ids name folders in stores that people keep: a change here orphans them."""
    assert parsed().trials({"m": 64})[0].id == "b887d97c5589232d"


@pytest.mark.parametrize(
    "setting",
    [
        'lr_scheduler_type = "cosine"',
        'init_lora_weights = "gaussian"',
        "use_dora = true",
        'optimizer = "muon"',
        "lora_plus_ratio = 4",
    ],
)
def test_younger_settings_are_part_of_an_id_only_where_they_are_said(setting: str) -> None:
    plain, other = (
        parsed("lora_alpha", f"{extra}lora_alpha").trials({"m": 64})
        for extra in ("", f"{setting}\n")
    )
    assert setting.split()[0] not in plain[0].canonical()
    changed = {t.method for t, u in zip(plain, other, strict=True) if t.id != u.id}
    # a full fine-tune has no factors
    of_lora = "lora" in setting or "dora" in setting
    assert changed == ({"lora"} if of_lora else {"lora", "full"})
    default = {
        "lr_scheduler_type": 'lr_scheduler_type = "linear"',
        "init_lora_weights": "init_lora_weights = true",
        "use_dora": "use_dora = false",
        "optimizer": 'optimizer = "adamw"',
        "lora_plus_ratio": "lora_dropout = 0.0",
    }[setting.split()[0]]
    assert [t.id for t in parsed("lora_alpha", f"{default}\nlora_alpha").trials({"m": 64})] == [
        t.id for t in plain
    ]


@pytest.mark.parametrize(("alpha", "times"), [("r", 1), ("2r", 2), ("0.5r", 0.5)])
def test_alpha_may_be_a_multiple_of_the_rank(alpha: str, times: float) -> None:
    for trial in parsed("lora_alpha = 16", f'lora_alpha = "{alpha}"').trials({"m": 64}):
        if trial.rank is None:
            assert trial.lora_alpha is None
        else:
            assert trial.lora_alpha == times * trial.rank
            root = trial.scaling == "alpha/sqrt(r)"
            assert trial.scale == pytest.approx(times * (math.sqrt(trial.rank) if root else 1))


def test_orthogonal_factors_need_even_ranks() -> None:
    with pytest.raises(ValueError, match='"orthogonal" needs even ranks; found 1'):
        parsed("lora_alpha", 'init_lora_weights = "orthogonal"\nlora_alpha').trials({"m": 64})


def test_precision_is_part_of_an_id_only_where_it_is_said() -> None:
    trial = parsed().trials({"m": 64})[0]
    assert "precision" not in trial.canonical()
    ids = {
        parsed("lora_alpha", f'precision = "{p}"\nlora_alpha').trials({"m": 64})[0].id
        for p in ("float32", "bfloat16")
    }
    assert len(ids | {trial.id}) == 3


def test_scale_follows_the_rule() -> None:
    for trial in parsed().trials({"m": 64}):
        if trial.rank:
            root = trial.scaling == "alpha/sqrt(r)"
            assert trial.scale == pytest.approx(
                16 / (math.sqrt(trial.rank) if root else trial.rank)
            )
    for trial in parsed('"alpha/sqrt(r)"', '"alpha"').trials({"m": 64}):
        assert trial.scaling != "alpha" or trial.scale == 16


def test_d_and_its_number_are_one_trial() -> None:
    assert len(parsed('"d"', '64, "d"').trials({"m": 64})) == len(parsed().trials({"m": 64}))


def test_a_task_may_have_a_budget_of_its_own() -> None:
    text = (
        parsed("lora_alpha", "epochs = 3\nlora_alpha").source
        + "[fixed.task.RTE]\nsteps = 9\nbatch_size = 4"
    )
    found = {t.task: (t.epochs, t.steps, t.batch_size) for t in Study.parse(text).trials({"m": 64})}
    assert found == {"CoLA": (3, None, 32), "RTE": (None, 9, 4)}


ARM = """
[[arm]]
task = "RTE"
rank = "d"
seed = [2, 3]
[[arm]]
budget = 3
method = "lora"
scaling = "alpha/r"
rank = 4
learning_rate = 1e-3
"""


@pytest.mark.parametrize(
    ("given", "key", "value"), [("steps = 7", "steps", 21), ("epochs = 2", "epochs", 6)]
)
def test_arms_are_further_products_with_a_budget_of_their_own(
    given: str, key: str, value: int
) -> None:
    plain = parsed("lora_alpha", f"{given}\nlora_alpha")
    study = Study.parse(plain.source + ARM, label="t.toml")
    own, trials = plain.trials({"m": 64}), study.trials({"m": 64})
    assert [t.id for t in trials[: len(own)]] == [t.id for t in own]
    more, budgets = trials[len(own) :], study.budgets({"m": 64})
    wider, longer = [[t for t in more if (t.id in budgets) is there] for there in (False, True)]
    assert {(t.task, t.rank) for t in wider} == {("RTE", 64), ("RTE", None)}
    assert len(wider) == (2 + 1) * 2 * 2  # (rules + full) x rates x new seeds
    assert [(t.task, t.rank, t.seed, getattr(t, key)) for t in longer] == [
        (task, 4, seed, value) for task in ("CoLA", "RTE") for seed in (0, 1)
    ]
    assert set(budgets.values()) == {3}
    for pack in packs(trials, size=100):
        assert len({getattr(trial, key) for trial in pack}) == 1
    again = Study(**study.model_dump(mode="json"))
    assert [t.id for t in again.trials({"m": 64})] == [t.id for t in trials]


def test_recipes_of_hu_et_al() -> None:
    study = Study.load("paper")
    d = dict.fromkeys(study.models, 768)
    longer = study.budgets(d)
    assert set(longer.values()) == {2}
    rows = {
        (t.model, t.task): t for t in study.trials(d) if t.method == "lora" and t.id not in longer
    }
    base, large = rows["FacebookAI/roberta-base", "CoLA"], rows["FacebookAI/roberta-large", "RTE"]
    assert (base.batch_size, base.epochs, base.lora_alpha, base.max_length) == (32, 80, 8, 512)
    assert (large.batch_size, large.epochs, large.lora_alpha, large.max_length) == (8, 20, 16, 512)
    full = {t.learning_rate for t in study.trials(d) if t.method == "full"}
    assert min(full) < 1e-5 < 2e-5 < max(full)  # published rates lie inside


@pytest.mark.parametrize(
    ("model", "task", "recipe"),
    [
        ("roberta-base", "MRPC", Recipe(128, 30, 16, 512)),
        ("roberta-base", "CoLA", Recipe(64, 80, 16, 512)),
        ("roberta-large", "SST-2", Recipe(64, 10, 16, 512)),
        ("roberta-large", "STS-B", Recipe(32, 10, 16, 128)),
        ("roberta-base", "acceptability", Recipe(16, 30, 8, 512)),
    ],
)
def test_the_released_scripts_by_name(model: str, task: str, recipe: Recipe) -> None:
    study = parsed()
    fixed = study.fixed.model_copy(
        update={"recipe": "scripts", "lora_alpha": None, "batch_size": None, "epochs": None}
    )
    study = study.model_copy(
        update={
            "fixed": fixed,
            "scientific": study.scientific.model_copy(update={"model": [model], "task": [task]}),
        }
    )
    trial = next(t for t in study.trials({model: 64}) if t.method == "lora")
    assert Recipe(trial.batch_size, trial.epochs, trial.lora_alpha, trial.max_length) == recipe


@pytest.mark.parametrize("name", builtin())
def test_builtin_studies_load(name: str) -> None:
    assert Study.load(name).name == name


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("lora_alpha", "lora_alfa", "[fixed] lora_alfa: unknown key; did you mean 'lora_alpha'?"),
        ("task =", "tasks =", "[scientific] tasks: unknown key; did you mean 'task'?"),
        (
            'name = "t"',
            'name = "t"\nextra = 1',
            "extra: unknown key; expected one of name, report_to, scientific, nuisance, fixed",
        ),
        ('name = "t"', "", "name: expected a value, found none"),
        (
            "lora_alpha = 16",
            "[[arm]]\nseed = 1\n[[arm]]\nrate = 1",
            "[[arm]] 2 rate: unknown key; expected one of",
        ),
        (
            "lora_alpha = 16",
            "[[arm]]\nbudget = 0",
            "[[arm]] 1 budget: expected greater than 0; found 0",
        ),
        (
            "lora_alpha = 16",
            "[fixed.task.RTE]\nsteps = 1\nepochs = 2",
            "[fixed.task.RTE]: epochs and steps: expected one",
        ),
        (
            "lora_alpha = 16",
            "[fixed.task.RTE]\nstep = 1",
            "[fixed.task.RTE] step: unknown key; did you mean 'steps'?",
        ),
        ("lora_alpha = 16", "[fixed.task.QTE]\nsteps = 1", "found 'QTE'"),
        ("lora_alpha = 16", "[arm]\nbudget = 2", "[arm]: expected tables headed [[arm]]"),
        ("[1, 4", "[0, 4", "[scientific] rank: expected greater than or equal to 1; found 0"),
        (
            "[1, 4",
            "[1.5, 4",
            "[scientific] rank: expected a whole number from 1, or 'd'; found 1.5",
        ),
        ("[1, 4", "[1, 1", "[scientific] rank: expected every value once; found 1 twice"),
        (
            '[1, 4, "d"]',
            "[]",
            '[scientific]: rank: method "lora" needs at least one rank; found an empty list',
        ),
        ('"CoLA"', '"cola"', "found 'cola'; did you mean 'CoLA'?"),
        ("1e-4", "-1e-4", "[nuisance] learning_rate: expected greater than 0; found -0.0001"),
        ("1e-4", "nan", "[nuisance] learning_rate: expected a finite number; found nan"),
        ("lora_alpha", "epochs = 1\nsteps = 1\nlora_alpha", "expected one of them, found both"),
        ("[nuisance]", "[nuisance", "t.toml: not TOML"),
        ("= 16", '= "3x"', 'expected a number above 0, or a multiple of the rank such as "r"'),
        ("= 16", '= "0r"', 'expected a number above 0, or a multiple of the rank such as "r"'),
        (
            "= 16",
            '= "r"\ninit_lora_weights = "eva"',
            '"pissa" or "olora"; found \'eva\', which needs a pass over the training data',
        ),
        ("= 16", '= 1\noptimizer = "adam"', "optimizer: expected 'adamw', 'sgd' or 'muon'"),
        ("= 16", "= 1\nlora_plus_ratio = 0.5", "expected greater than or equal to 1; found 0.5"),
        (
            "= 16",
            '= 1\nlora_plus_ratio = 2\noptimizer = "sgd"',
            "lora_plus_ratio: expected optimizer = \"adamw\"; found 'sgd'",
        ),
        ("= 16", '= 1\nlr_scheduler_type = "cosin"', "lr_scheduler_type: expected 'linear', "),
    ],
)
def test_what_is_wrong_is_said_in_one_line(old: str, new: str, says: str) -> None:
    with pytest.raises(ValueError, match=r"t\.toml") as error:
        parsed(old, new)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_rank_above_d_is_refused() -> None:
    with pytest.raises(ValueError, match=r"rank: expected 1 to 3 for model 'm'.*found 4"):
        parsed().trials({"m": 3})


def test_unknown_study_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="lab, paper"):
        Study.load("papr")
    with pytest.raises(FileNotFoundError, match="no such study file"):
        Study.load(tmp_path / "x.toml")


def test_packs_hold_what_may_train_together() -> None:
    trials = parsed().trials({"m": 64})
    found = packs(trials, size=5)
    assert sorted(t.id for pack in found for t in pack) == sorted(t.id for t in trials)
    for pack in found:
        assert len({(t.model, t.task, t.seed, t.method) for t in pack}) == 1
        assert len(pack) <= (5 if pack[0].method == "lora" else 1)
    lora = [len(pack) for pack in found if pack[0].method == "lora"]
    assert max(lora) - min(lora) <= 1  # 12 trials as 4 + 4 + 4, not 5 + 5 + 2


def test_packs_hold_what_the_memory_holds() -> None:
    """A trial of rank r takes r % of it."""
    study = parsed('"d"]', "16, 64]")
    trials = [
        t for t in study.trials({"m": 64}) if t.method == "lora" and t.task == "RTE" and t.seed == 0
    ]
    share = lambda trial: (trial.rank or 0) / 100  # noqa: E731
    found = packs(trials, size=99, share=share)
    assert [t for pack in found for t in pack] == packs(trials, size=99)[0]
    totals = [sum(map(share, pack)) for pack in found]
    assert all(len(pack) == 1 or total <= 1 for pack, total in zip(found, totals, strict=True))
    assert [len(pack) for pack in found] == [12, 1, 1, 1, 1]  # 0.84, then four of rank 64
    assert packs(trials, size=5, share=lambda trial: 0.1) == packs(trials, size=5)
    assert all(len(pack) == 1 for pack in packs(trials, size=99, share=lambda trial: 2.0))


def test_ids_do_not_depend_on_the_process() -> None:
    code = (
        "from rankscope.study.study_file import *; "
        f"print(Study.parse({TEXT!r}).trials({{'m': 64}})[5].id)"
    )
    other = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()
    trial = parsed().trials({"m": 64})[5]
    assert trial.id == other == Trial(**trial.model_dump(mode="json")).id


def test_a_multiple_of_the_rank_is_no_scale() -> None:
    """With scaling "alpha" s is alpha itself."""
    with pytest.raises(ValueError, match=r'lora_alpha: expected a number with scaling = "alpha"'):
        Study.parse(TEXT.replace('"alpha/sqrt(r)"', '"alpha"').replace("= 16", '= "2r"'))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"a = " + b"[\n" * 5000, "nested too deeply"),
        (b"a = " + b"9" * 5000, "not TOML: Exceeds the limit"),
        (b"[" + b".".join([b"a"] * 50_000) + b"]", "lines of at most 20000 characters"),
        (b"# x\n" * 300_000, "at most 1048576 bytes of TOML"),
        ("name = 'x'".encode("utf-16"), "expected UTF-8"),
    ],
)
def test_files_that_would_take_forever(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "s.toml").write_bytes(content)
    with pytest.raises(ValueError, match=r"s\.toml: ") as error:
        Study.load(tmp_path / "s.toml")
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_more_trials_than_any_study_has() -> None:
    many = parsed("[1, 4", str([*range(1, 1200)])[:-1])
    study = many.model_copy(
        update={"nuisance": many.nuisance.model_copy(update={"seed": [*range(2000)]})}
    )
    with pytest.raises(ValueError, match="at most 1,000,000 trials; found "):
        study.trials({"m": 2000})
