"""Where pages and folders of figures may be written."""

from __future__ import annotations

import pytest

from rankscope.report.from_store import folder_at, page_at


def test_a_page_in_a_folder_that_is_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert page_at("page.html").name == "page.html"
    assert page_at(tmp_path / "page.html") == tmp_path / "page.html"
    assert folder_at(tmp_path / "figures") == tmp_path / "figures"
    assert not (tmp_path / "figures").exists()  # made by who writes


@pytest.mark.parametrize("place", [page_at, folder_at])
def test_a_typo_makes_no_tree(tmp_path, place):
    with pytest.raises(ValueError, match="expected a folder that exists; found no a in") as error:
        place(tmp_path / "a" / "b.html")
    assert str(error.value).endswith(f"Type: mkdir -p {tmp_path / 'a'}")
    assert not list(tmp_path.iterdir())


def test_a_folder_is_no_page_and_a_file_no_folder(tmp_path):
    with pytest.raises(ValueError, match=r"Type: -o .*report\.html"):
        page_at(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="expected a folder; found a file"):
        folder_at(tmp_path / "file")
