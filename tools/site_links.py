"""A hook of mkdocs (`mkdocs.yml`): what a page links to outside of docs/, such as a source file,
becomes its path as text, since the site holds only docs/."""

from __future__ import annotations

import posixpath
import re

LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)#\s]+)(#[^)\s]*)?\)")


def on_page_markdown(markdown: str, *, page: object, **_: object) -> str:
    """The page with links to files outside of docs/, and to folders, as text."""
    here = posixpath.dirname(page.file.src_uri)  # type: ignore[attr-defined]

    def plain(found: re.Match[str]) -> str:
        text, target = found[1], found[2]
        if "://" in target or target.startswith("mailto:"):
            return found[0]
        path = posixpath.normpath(posixpath.join(here, target))
        if path.startswith("../"):
            return f"{text} (`{path.removeprefix('../')}`)" if text.strip("`") != path[3:] else text
        if "." not in posixpath.basename(path):  # a folder
            return f"[{text}]({target.rstrip('/')}/README.md)"
        return found[0]

    return LINK.sub(plain, markdown)
