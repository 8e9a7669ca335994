"""A stand-in for the Hugging Face hub: the model folders in FOLDER as local/NAME, on 127.0.0.1:PORT (hub.py FOLDER PORT)."""

from __future__ import annotations

import hashlib
import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlparse

COMMIT = "0" * 40


class Hub(BaseHTTPRequestHandler):
    """Answers what naming a model and loading it ask for."""

    protocol_version = "HTTP/1.1"
    models: Path

    def do_GET(self) -> None:
        parts = unquote(urlparse(self.path).path).strip("/").split("/")
        if parts[:2] == ["api", "models"] and len(parts) >= 4:
            self._describe(parts[3], "tree" in parts)
        elif len(parts) >= 5 and parts[2] == "resolve":
            self._give(self.models.joinpath(parts[1], *parts[4:]))
        else:
            self._answer(404, error="RepoNotFound")

    def do_HEAD(self) -> None:
        self.do_GET()

    def _describe(self, name: str, tree: bool) -> None:
        folder = self.models / name
        if not folder.is_dir():
            return self._answer(404, error="RepoNotFound")
        sizes = {file.name: file.stat().st_size for file in folder.iterdir()}
        if tree:
            told: object = [{"type": "file", "path": file, "size": size, "oid": "0"} for file, size in sizes.items()]
        else:
            parameters = sizes["model.safetensors"] // 4  # float32
            told = {
                "id": f"local/{name}",
                "sha": COMMIT,
                "private": False,
                "tags": [],
                "pipeline_tag": "text-generation",
                "safetensors": {"parameters": {"F32": parameters}, "total": parameters},
                "siblings": [{"rfilename": file} for file in sizes],
            }
        return self._answer(200, json.dumps(told).encode(), "application/json")

    def _give(self, file: Path) -> None:
        if not file.is_file():
            return self._answer(404, error="EntryNotFound")
        return self._answer(200, file.read_bytes())

    def _answer(self, code: int, body: bytes = b"", kind: str = "application/octet-stream", error: str = "") -> None:
        told = {"Content-Type": kind, "Content-Length": str(len(body)), "X-Repo-Commit": COMMIT}
        self.send_response(code)
        for name, value in {**told, **({"X-Error-Code": error} if error else {"ETag": f'"{_name(body)}"'})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _name(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


if __name__ == "__main__":
    Hub.models = Path(sys.argv[1])
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2])), Hub).serve_forever()
