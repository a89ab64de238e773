"""Hub ids: only the files that are needed, from the cache where there is no network."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub.errors import (
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    Response,
)

from rankscope.measurement.measure import measure
from tiny import Case, edited


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path


def put(cache: Path, repository: str, folder: Path) -> None:
    """``folder`` as the hub's client would have cached it."""
    place = cache / f"models--{repository.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("0" * 40)
    shutil.copytree(folder, place / "snapshots" / ("0" * 40))


def test_adapter_and_base_from_the_cache(cache: Path, make_case: Callable[..., Case]) -> None:
    case = make_case("gpt2", target_modules=["attn.c_proj"], r=4)
    put(cache, "someone/adapter", case.adapter)
    put(cache, "someone/base", case.base)
    table = measure("someone/adapter", base="someone/base")
    assert (table.source, table.base) == ("someone/adapter", "someone/base")
    assert table.rows == measure(case.adapter, base=case.base).rows


def test_what_is_neither_here_nor_in_the_cache(cache: Path) -> None:
    with pytest.raises(
        ValueError,
        match=r"someone/nothing: expected an adapter .* none of them in the cache, and the hub",
    ):
        measure("someone/nothing")


@dataclass
class Hub:
    """Serves the folders below ``root``; ``asked``: each repository that was listed, each file
    downloaded."""

    root: Path
    asked: list[str] = field(default_factory=list)
    reachable: bool = True

    def download(
        self, repository: str, name: str, *, revision: str | None, local_files_only: bool
    ) -> str:
        assert local_files_only == (not self.reachable)
        if local_files_only:
            raise LocalEntryNotFoundError("not in the cache")
        self.asked.append(name if revision is None else f"{name}@{revision}")
        return str(self.root / repository / name)

    def listing(self, repository: str, *, revision: str | None, timeout: float) -> SimpleNamespace:
        self.asked.append(f"{repository}@{revision}")
        if not self.reachable:
            raise HTTPError("no name service")
        if not (self.root / repository).is_dir():
            response = Response(404)
            response._request = SimpleNamespace()
            raise RepositoryNotFoundError(
                "Repository Not Found.\nPlease log in.", response=response
            )
        files = [path for path in (self.root / repository).rglob("*") if path.is_file()]
        names = [str(path.relative_to(self.root / repository)) for path in files]
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in names])


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub = Hub(tmp_path)
    monkeypatch.setattr(huggingface_hub, "model_info", hub.listing)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hub.download)
    return hub


@pytest.mark.parametrize(
    "source", ["./nothing", "/nothing", "a/b/c", "a/../b", "--x", "a b", "<script>"]
)
def test_what_can_be_no_hub_id_is_not_asked_for(source: str, hub: Hub) -> None:
    with pytest.raises(ValueError, match="expected a file, a folder or a hub id"):
        measure(source)
    assert hub.asked == []


def test_only_the_needed_files_are_downloaded(hub: Hub, make_case: Callable[..., Case]) -> None:
    root, asked = hub.root, hub.asked
    case = make_case("gpt2", target_modules=["attn.c_proj"], r=4)
    shutil.copytree(case.adapter, root / "someone" / "adapter")
    shutil.copytree(case.base, root / "someone" / "base")
    (root / "someone" / "base" / "pytorch_model.bin").write_text("not asked for")
    assert (
        measure("someone/adapter", base="someone/base").rows
        == measure(case.adapter, base=case.base).rows
    )
    assert asked == ["someone/adapter@None", "adapter_config.json", "adapter_model.safetensors",
                     "someone/base@None", "model.safetensors", "config.json"]  # fmt: skip


def test_revisions_and_subfolders(hub: Hub, make_case: Callable[..., Case]) -> None:
    root, asked = hub.root, hub.asked
    case = make_case("gpt2", target_modules=["attn.c_proj"], r=4)
    shutil.copytree(case.adapter, root / "someone" / "adapter" / "runs" / "second")
    shutil.copytree(case.base, root / "someone" / "base")
    with pytest.raises(ValueError, match="found runs/second/"):
        measure("someone/adapter")
    with pytest.raises(ValueError, match=r"Name one of its adapters: --subfolder second"):
        measure("someone/adapter", subfolder="runs")
    with pytest.raises(ValueError, match="expected a folder 'third' in it"):
        measure("someone/adapter", subfolder="third")
    asked.clear()
    table = measure(
        "someone/adapter",
        subfolder="runs/second",
        revision="v1",
        base="someone/base",
        base_revision="v2",
    )
    assert table.rows == measure(case.adapter, base=case.base).rows
    assert asked == ["someone/adapter@v1", "runs/second/adapter_config.json@v1",
                     "runs/second/adapter_model.safetensors@v1",
                     "someone/base@v2", "model.safetensors@v2", "config.json@v2"]  # fmt: skip


def test_only_folders_one_level_down_are_proposed(hub: Hub, make_case: Callable[..., Case]) -> None:
    """A name that --subfolder takes, for a repository as for a folder on disk:
    no adapter deeper inside."""
    root = hub.root
    case = make_case("gpt2", target_modules=["attn.c_proj"], r=4)
    shutil.copytree(case.adapter, root / "someone" / "deep" / "a" / "deeper")
    for source in ("someone/deep", root / "someone" / "deep"):
        with pytest.raises(ValueError, match="expected an adapter") as caught:
            measure(source)
        assert "--subfolder" not in str(caught.value)
    shutil.copytree(case.adapter, root / "someone" / "deep" / "b")
    for source in ("someone/deep", root / "someone" / "deep"):
        with pytest.raises(ValueError, match=r"Name one of its adapters: --subfolder b$"):
            measure(source)


def test_the_base_is_taken_at_the_revision_that_the_adapter_names(
    hub: Hub, make_case: Callable[..., Case], tmp_path: Path
) -> None:
    root, asked = hub.root, hub.asked
    case = make_case("gpt2", target_modules=["attn.c_proj"], r=4)
    shutil.copytree(case.base, root / "someone" / "base")
    folder = edited(
        case, tmp_path / "edited", base_model_name_or_path="someone/base", revision="v7"
    )
    measure(folder, base="someone/base")
    assert "someone/base@v7" in asked
    asked.clear()
    measure(folder, base="someone/base", base_revision="v8")
    assert "someone/base@v8" in asked
    shutil.copytree(case.base, root / "someone" / "other")
    measure(folder, base="someone/other")
    assert "someone/other@None" in asked


def test_what_the_hub_says_of_a_missing_repository(hub: Hub) -> None:
    with pytest.raises(
        ValueError, match=r"someone/gone: .* the hub says: Repository Not Found"
    ) as caught:
        measure("someone/gone")
    assert "\n" not in str(caught.value)


def test_without_a_network_one_request_is_enough(hub: Hub) -> None:
    hub.reachable = False
    with pytest.raises(ValueError, match="the hub cannot be reached"):
        measure("someone/nothing")
    assert hub.asked == ["someone/nothing@None"]
