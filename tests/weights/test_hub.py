"""Hub ids: only the files that are needed, from the cache where there is no network."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub.errors import HTTPError, RepositoryNotFoundError, Response

from rankscope.measure import measure
from weights.tiny import Case


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
        ValueError, match=r"someone/nothing: expected an adapter .* none of them in the cache, and the hub"
    ):
        measure("someone/nothing")


@pytest.mark.parametrize("source", ["./nothing", "/nothing", "a/b/c", "a/../b", "--x", "a b", "<script>"])
def test_what_can_be_no_hub_id_is_not_asked_for(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "model_info", lambda *_, **__: pytest.fail("asked the hub"))
    with pytest.raises(ValueError, match="expected a file, a folder or a hub id"):
        measure(source)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, list[str]]:
    """A hub that serves the folders below a path, and the names of the files that were downloaded from it."""
    asked: list[str] = []

    def download(repository: str, name: str, *, revision: str | None, local_files_only: bool) -> str:
        assert not local_files_only
        asked.append(name)
        return str(tmp_path / repository / name)

    def listing(repository: str, *, revision: str | None, timeout: float) -> SimpleNamespace:
        names = [path.name for path in (tmp_path / repository).iterdir()]
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in names])

    monkeypatch.setattr(huggingface_hub, "model_info", listing)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return tmp_path, asked


def test_only_the_needed_files_are_downloaded(
    hub: tuple[Path, list[str]], make_case: Callable[..., Case]
) -> None:
    root, asked = hub
    case = make_case("gpt2", target_modules=["attn.c_proj"], r=4)
    shutil.copytree(case.adapter, root / "someone" / "adapter")
    shutil.copytree(case.base, root / "someone" / "base")
    (root / "someone" / "base" / "pytorch_model.bin").write_text("not asked for")
    assert measure("someone/adapter", base="someone/base").rows == measure(case.adapter, base=case.base).rows
    assert asked == ["adapter_config.json", "adapter_model.safetensors", "model.safetensors", "config.json"]


def test_what_the_hub_says_of_a_missing_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(repository: str, **_: object) -> None:
        response = Response(404)
        response._request = SimpleNamespace()
        raise RepositoryNotFoundError("Repository Not Found.\nPlease log in.", response=response)

    monkeypatch.setattr(huggingface_hub, "model_info", missing)
    with pytest.raises(ValueError, match=r"someone/gone: .* the hub says: Repository Not Found") as caught:
        measure("someone/gone")
    assert "\n" not in str(caught.value)


def test_without_a_network_one_request_is_enough(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    asked: list[str] = []

    def unreachable(repository: str, **_: object) -> None:
        asked.append(repository)
        raise HTTPError("no name service")

    monkeypatch.setattr(huggingface_hub, "model_info", unreachable)
    with pytest.raises(ValueError, match="the hub is out of reach"):
        measure("someone/nothing")
    assert asked == ["someone/nothing"]
