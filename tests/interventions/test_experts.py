"""Full fine-tunes of mixtures of experts: edits of every expert against numpy's SVD of the dense
matrix, put into transformers' own model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from transformers import AutoModelForSequenceClassification, GptOssConfig, JetMoeConfig

from families import DECODER, FAMILIES
from rankscope.evaluation.evaluate import Evaluation
from rankscope.evaluation.matrices import Matrices
from rankscope.evaluation.pack import Edited
from rankscope.evaluation.trained import Trained, read_trained
from rankscope.interventions.settings import Variant
from rankscope.interventions.variants import Edits
from rankscope.train.data import Encoded
from rankscope.train.loading import load_model
from training import TASK

SMALL: dict[str, Any] = {**DECODER, "num_local_experts": 3, "num_experts_per_tok": 2}
MODELS: dict[str, Callable[[], Any]] = {
    "mixtral": FAMILIES["mixtral"].config,
    "jetmoe": lambda: JetMoeConfig(**SMALL),  # stacks that are called weight
    "gpt-oss": lambda: GptOssConfig(**SMALL, head_dim=8, sliding_window=4),  # stored (E, in, out)
}


@pytest.fixture(scope="module", params=MODELS)
def tuned(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """-> the model's name, its folder, and that of a full fine-tune"""
    folder = tmp_path_factory.mktemp(request.param)
    config = MODELS[request.param]()
    config.num_labels = 2
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_config(config)
        for name in ("base", "full"):
            with torch.no_grad():
                for p in model.parameters():
                    p.add_(0.2 * torch.randn_like(p))
            model.save_pretrained(folder / name)
    return request.param, str(folder / "base"), folder / "full"


def rows() -> Encoded:
    ids = torch.randint(3, 20, (4, 6), generator=torch.Generator().manual_seed(0))
    return Encoded(
        {"input_ids": ids, "attention_mask": torch.ones_like(ids)},
        torch.tensor([0, 1, 1, 0]),
        torch.full((4,), 6),
    )


def opened(tuned: Any) -> Trained:
    _, path, full = tuned
    return read_trained(full, load_model(path, TASK), TASK, base_path=path)


def cut(dW: Tensor, one: Variant) -> Tensor:
    """The edit of a dense matrix, by its definition."""
    U, s, Vh = np.linalg.svd(dW.numpy(), full_matrices=False)
    k, place = int(one.level), np.arange(len(s))
    kept = {"scale": s * one.level, "top": s * (place < k), "without_top": s * (place >= k)}
    return torch.from_numpy((U * kept[one.family]) @ Vh)


def test_each_edit_equals_the_dense_one_in_the_stock_model(tuned: Any) -> None:
    name, path, full = tuned
    trained, base, data = opened(tuned), Matrices(load_model(path, TASK)), rows()
    stacks = {n.rpartition("[")[0] for n in trained.updates if n.endswith("]")}
    assert len(stacks) == (8 if name == "jetmoe" else 4)
    edits = Edits(
        trained.updates, {n: base[n] for n in trained.updates}, chosen=trained.updates, name="a"
    )
    wanted = [
        Variant("scale", 1.0),
        Variant("scale", 0.3),
        Variant("top", 1),
        Variant("without_top", 1),
    ]
    said: list[str] = []
    layers = list(trained.updates)
    evaluation = Evaluation(
        lambda: load_model(path, TASK), layers, TASK, data, K=3, say=said.append
    )
    found = evaluation([Edited(trained, edits.make(one)) for one in wanted])
    assert said == [
        "variants are evaluated one at a time, by the model's own layers: it has experts"
    ]
    losses = []
    for one, result in zip(wanted, found, strict=True):
        after = AutoModelForSequenceClassification.from_pretrained(
            full, attn_implementation="eager"
        )
        before = AutoModelForSequenceClassification.from_pretrained(path)
        old = dict(before.named_parameters())
        linear = {f"{n}.weight" for n, m in after.named_modules() if isinstance(m, torch.nn.Linear)}
        with torch.no_grad():
            for key, p in after.named_parameters():
                dW = p.detach().double() - old[key].double()
                if p.ndim == 3:
                    p.copy_(old[key] + torch.stack([cut(x, one) for x in dW]))
                elif key in linear and "score" not in key:
                    p.copy_(old[key] + cut(dW, one))
            inputs, labels = data.batch(torch.arange(4))
            losses.append(float(after(**inputs, labels=labels).loss))
        assert result.loss == pytest.approx(losses[-1], abs=2e-6)
    assert len({round(loss, 4) for loss in losses}) == len(losses)


def test_one_expert_alone(tuned: Any) -> None:
    """An edit of one leaves the others as trained."""
    _, path, full = tuned
    trained, base = opened(tuned), Matrices(load_model(path, TASK))
    chosen = next(n for n in trained.updates if n.endswith("[1]"))
    edits = Edits(trained.updates, {n: base[n] for n in trained.updates}, chosen=[chosen], name="a")
    updates = edits.make(Variant("scale", 0.0))
    merged = base.as_parameters({n: base[n] + u.to_dense() for n, u in updates.items()})
    after = dict(load_model(str(full), TASK).named_parameters())
    stack = next(key for key in merged if key.removesuffix(".weight") == chosen[:-3])
    for e, W in enumerate(merged[stack]):
        wanted = base[f"{chosen[:-3]}[{e}]"] if e == 1 else after[stack][e]
        assert_close(W, wanted.float(), rtol=0, atol=1e-6)
    assert not torch.allclose(base[chosen], after[stack][1], atol=1e-2)
