"""Lists beside rank and scaling rule: how they are crossed, what trials are called, what stays."""

from __future__ import annotations

import pytest

from rankscope.study.packing import packs
from rankscope.study.settings import compared
from rankscope.study.study_file import Study
from rankscope.study.trial import Trial, setting_of

TEXT = """
name = "t"
[scientific]
model = "m"
task = "CoLA"
rank = [4, 8]
scientific
[nuisance]
learning_rate = 1e-3
[fixed]
fixed
"""


def trials(scientific: str = "", fixed: str = "", arms: str = "") -> list[Trial]:
    text = TEXT.replace("\nscientific\n", f"\n{scientific}\n", 1).replace(
        "\nfixed\n", f"\n{fixed}\n"
    )
    return Study.parse(text + arms, label="t.toml").trials({"m": 64})


def test_lists_are_crossed_and_full_fine_tunes_have_no_factors() -> None:
    found = trials(
        'optimizer = ["adamw", "muon"]\nlora_alpha = [16, 32]\n'
        'init_lora_weights = [true, "gaussian"]\nlr_scheduler_type = ["linear", "cosine"]'
    )
    lora = [t for t in found if t.method == "lora"]
    assert len(lora) == 2 * 2 * 2 * 2 * 2
    assert len(found) - len(lora) == 2 * 2
    assert len({t.id for t in found}) == len(found)
    assert len({t.setting for t in lora}) == 16
    full = {t.setting for t in found if t.method == "full"}
    assert full == {"", "optimizer=muon", "lr_scheduler_type=cosine",
                    "optimizer=muon, lr_scheduler_type=cosine"}  # fmt: skip
    assert "init_lora_weights=gaussian, lora_alpha=32, optimizer=muon" in {t.setting for t in lora}


@pytest.mark.parametrize(
    ("listed", "fixed"),
    [
        ('optimizer = ["muon"]', 'optimizer = "muon"'),
        ('lora_alpha = ["2r"]', 'lora_alpha = "2r"'),
        ('init_lora_weights = "orthogonal"', 'init_lora_weights = "orthogonal"'),
        ('target_modules = [["key"]]', 'target_modules = "key"'),
        ('target_modules = "all-linear"', 'target_modules = ["all-linear"]'),
        ("lora_plus_ratio = [4]", "lora_plus_ratio = 4"),
        ("use_dora = [true]", "use_dora = true"),
        ('init_lora_weights = ["pissa"]', 'init_lora_weights = "pissa"'),
        ("lora_plus_ratio = [1]", ""),
        ('optimizer = ["adamw"]\ninit_lora_weights = [true]', ""),
    ],
)
def test_a_list_of_one_is_the_fixed_value_under_the_same_id(listed: str, fixed: str) -> None:
    assert [t.id for t in trials(listed)] == [t.id for t in trials(fixed=fixed)]


def test_ids_are_as_they_were() -> None:
    """Of a trial of a study without lists, as stores have it."""
    assert trials()[0].id == "dcd143dab887867a"
    assert {t.setting for t in trials()} == {""}
    assert "setting" not in trials('lora_alpha = ["r"]')[0].canonical()


def test_alpha_and_layers_are_told_in_the_studys_words() -> None:
    found = trials('lora_alpha = [16, "2r"]\ntarget_modules = [["query", "value"], "all-linear"]')
    lora = {t.setting for t in found if t.method == "lora"}
    assert lora == {
        f"lora_alpha={alpha}, target_modules={names}"
        for alpha in ("16", "2r")
        for names in ("query+value", "all-linear")
    }
    assert {t.lora_alpha for t in found if "2r" in t.setting and t.rank == 4} == {8}
    # 16 is 2r at rank 8: that trial is one, and belongs to what was listed first
    assert len([t for t in found if t.rank == 8]) == 2
    assert {t.setting.split(",")[0] for t in found if t.rank == 8} == {"lora_alpha=16"}


def test_an_arm_may_have_a_setting_of_its_own() -> None:
    found = trials(fixed='optimizer = "muon"', arms='\n[[arm]]\noptimizer = "adamw"\nrank = 4\n')
    assert {(t.rank, t.setting) for t in found if t.method == "lora"} == {
        (4, "optimizer=muon"), (8, "optimizer=muon"), (4, "")
    }  # fmt: skip


def test_what_a_study_compares_is_said_in_one_line() -> None:
    found = trials('use_dora = [false, true]\ninit_lora_weights = [true, "pissa"]')
    assert compared(found) == [
        "settings compared (trials): default (2); use_dora=true (2); init_lora_weights=pissa (2); "
        "init_lora_weights=pissa, use_dora=true (2)"
    ]
    dora = [t.id for t in found if t.setting == "use_dora=true"]
    (line,) = compared(found, dora[:1])
    assert "(trials done): default (0 of 2); use_dora=true (1 of 2); init" in line
    assert compared(trials()) == []
    many = trials("lora_plus_ratio = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]")
    assert compared(many)[0].endswith("lora_plus_ratio=8.0 (2); 2 more")


def test_packs_hold_one_setting_but_any_alpha() -> None:
    found = trials('optimizer = ["adamw", "muon"]\nlora_alpha = [16, "r"]')
    lora = [t for t in found if t.method == "lora"]
    for pack in packs(lora, size=99):
        assert len({t.optimizer for t in pack}) == 1
        assert len({t.setting for t in pack}) == 2


def test_older_trials_say_their_setting_by_their_configuration() -> None:
    old = trials(fixed='optimizer = "sgd"')[0].model_dump(mode="json")
    del old["setting"]
    assert setting_of(old) == "optimizer=sgd"


@pytest.mark.parametrize(
    ("scientific", "fixed", "says"),
    [
        ('optimizer = ["adam"]', "", "[scientific] optimizer: expected 'adamw', 'sgd' or 'muon'"),
        ('optimizer = ["muon"]', 'optimizer = "muon"', "optimizer: expected in [scientific] or in"),
        ('optimizer = ["muon", "muon"]', "", "expected every value once"),
        ('target_modules = ["query", "value"]', "", 'expected a list of lists, such as [["query"'),
        ('init_lora_weights = ["eva"]', "", "found 'eva', which needs a pass over the training"),
        ('init_lora_weights = ["loftq"]', "", "found 'loftq', which quantises the base"),
        ('init_lora_weights = ["pisa"]', "", '"orthogonal", "pissa" or "olora"; found'),
        ("optimizer = []", "", "[scientific] optimizer: expected 1 value at least; found []"),
        ("", 'optimizer = ["muon"]', "found ['muon']: a list stands in [scientific]"),
        ("", 'init_lora_weights = ["pissa"]', "found ['pissa']: a list stands in [scientific]"),
        ("use_dora = [1]", "", "[scientific] use_dora: expected true or false; found 1"),
        ('lora_alpha = ["2r"]\nscaling = "alpha"', "", "expected a number with scaling = "),
    ],
)
def test_what_is_wrong_is_said_in_one_line(scientific: str, fixed: str, says: str) -> None:
    with pytest.raises(ValueError, match=r"t\.toml") as error:
        trials(scientific, fixed)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_lora_plus_is_of_adamw_only() -> None:
    with pytest.raises(ValueError, match=r"found 'muon'\. Take an \[\[arm\]\]"):
        trials('optimizer = ["adamw", "muon"]\nlora_plus_ratio = [1, 4]')
