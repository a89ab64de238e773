"""A hub on this machine: the routes that models and data sets are downloaded by, over a folder.

``<root>/models/<org>/<name>/...`` and ``<root>/datasets/<org>/<name>/...`` are repositories of one
commit.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "c0ffee" + "0" * 34
API = re.compile(
    r"/api/(?P<kind>models|datasets)/(?P<id>[^/]+/[^/]+)(/(?P<verb>revision|tree|paths-info)/(?P<revision>[^/]+))?/?(?P<under>.*)"
)
FILE = re.compile(
    r"/(?P<kind>datasets/)?(?P<id>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)"
)


def entry(folder: Path, path: Path) -> dict[str, Any]:
    """One file or folder of a repository, as the hub describes it."""
    name = str(path.relative_to(folder))
    if path.is_dir():
        return {"type": "directory", "path": name, "oid": "0" * 40}
    return {"type": "file", "path": name, "size": path.stat().st_size, "oid": "0" * 40}


@contextmanager
def serve(root: Path) -> Iterator[tuple[str, list[str]]]:
    """The address to put into ``HF_ENDPOINT``, and the files that were downloaded, in order."""
    fetched: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def do_POST(self) -> None:
            """What stands under these paths (``paths-info``)."""
            length = int(self.headers["Content-Length"])
            self.asked = parse_qs(self.rfile.read(length).decode())["paths"]
            self.answer(body=True)

        def answer(self, *, body: bool) -> None:
            path = unquote(urlsplit(self.path).path)
            if match := API.fullmatch(path):
                self.describe(match)
            elif match := FILE.fullmatch(path):
                self.send_file(match, body=body)
            else:
                self.missing("EntryNotFound")

        def describe(self, match: re.Match[str]) -> None:
            folder = root / match["kind"] / match["id"]
            if not folder.is_dir():
                return self.missing("RepoNotFound")
            names = [str(p.relative_to(folder)) for p in sorted(folder.rglob("*")) if p.is_file()]
            answer: Any = {
                "id": match["id"],
                "sha": COMMIT,
                "siblings": [{"rfilename": name} for name in names],
            }
            if match["verb"] == "paths-info":
                there = [folder / name for name in self.asked if (folder / name).exists()]
                answer = [entry(folder, path) for path in there]
            elif match["verb"] == "tree":
                under, query = folder / match["under"], parse_qs(urlsplit(self.path).query)
                if not under.is_dir():
                    return self.missing("EntryNotFound")
                is_deep = query.get("recursive") == ["true"] or not match["under"]
                found = sorted(under.rglob("*") if is_deep else under.iterdir())
                answer = [entry(folder, path) for path in found]
            return self.send(json.dumps(answer).encode(), {"Content-Type": "application/json"})

        def send_file(self, match: re.Match[str], *, body: bool) -> None:
            folder = root / (match["kind"] or "models/") / match["id"]
            file = folder / match["path"]
            if not folder.is_dir():
                return self.missing("RepoNotFound")
            if not file.is_file():
                return self.missing("EntryNotFound")
            content = file.read_bytes()
            if body:
                fetched.append(f"{match['id']}/{match['path']}")
            etag = hashlib.sha256(content).hexdigest()
            return self.send(content, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}, body=body)

        def missing(self, code: str) -> None:
            self.send_response(404)
            for name, value in {
                "X-Error-Code": code,
                "X-Repo-Commit": COMMIT,
                "Content-Length": "0",
            }.items():
                self.send_header(name, value)
            self.end_headers()

        def send(self, content: bytes, headers: dict[str, str], *, body: bool = True) -> None:
            self.send_response(200)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", fetched
    finally:
        server.shutdown()
        server.server_close()
