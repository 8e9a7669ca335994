"""A stand-in for the Hugging Face hub on 127.0.0.1: models with commits and branches, private and gated ones, in memory."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlparse

USER, TOKEN = "me", "hf_that_is_mine"
Files = dict[str, bytes]


class Refused(Exception):
    """An answer that is an error; its code or message tells the client why."""

    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        super().__init__(status)
        self.status, self.headers = status, {"X-Error-Code": code, "X-Error-Message": message}


@dataclass
class Repository:
    private: bool = False
    gated: bool = False
    commits: dict[str, Files] = field(default_factory=dict[str, Files])
    branches: dict[str, str] = field(default_factory=dict[str, str])
    messages: list[str] = field(default_factory=list[str])

    def commit(self, branch: str, files: Files, message: str) -> str:
        oid = hashlib.sha1(f"{len(self.commits)}{message}".encode()).hexdigest()
        self.commits[oid] = {**self.commits.get(self.branches.get(branch, ""), {}), **files}
        self.branches[branch] = oid
        self.messages.append(message)
        return oid

    def at(self, revision: str) -> str:
        oid = self.branches.get(revision, revision)
        if oid not in self.commits:
            raise Refused(404, "RevisionNotFound")
        return oid


@dataclass
class Hub:
    """What the server holds: repositories by namespace/name, its answer to everything if it fails, and the requests so far.

    With `drips` it sends a byte now and then: of the "headers", or of the "body" of files.
    """

    repositories: dict[str, Repository] = field(default_factory=dict[str, Repository])
    fails: int | None = None
    drips: str | None = None
    asked: list[str] = field(default_factory=list[str])
    url: str = ""

    def create(self, repo_id: str, files: Files | None = None, private: bool = False, gated: bool = False) -> Repository:
        repository = self.repositories[repo_id] = Repository(private, gated)
        repository.commit("main", files or {}, "initial commit")
        return repository

    def files(self, repo_id: str) -> Files:
        repository = self.repositories[repo_id]
        return repository.commits[repository.at("main")]


class Handler(BaseHTTPRequestHandler):
    """Answers what huggingface_hub asks to create, describe, write and read models."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_GET(self) -> None:
        self.hub.asked.append(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            if self.hub.fails:
                raise Refused(self.hub.fails)
            match [unquote(part) for part in urlparse(self.path).path.strip("/").split("/")]:
                case ["api", "repos", "create"]:
                    self._create(json.loads(body))
                case ["api", "validate-yaml"]:
                    self._answer({"errors": [], "warnings": []})
                case ["api", "models", space, name, *action]:
                    self._model(space, name, action, [json.loads(line) for line in body.splitlines()])
                case [space, name, "resolve", revision, path]:
                    self._give(space, name, revision, path)
                case _:
                    raise Refused(404)
        except Refused as error:
            self._answer(b"", error.status, error.headers)

    do_HEAD = do_POST = do_GET  # noqa: N815  http.server's names

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing, so that tests print nothing."""

    def _user(self) -> str | None:
        given = self.headers.get("Authorization")
        if given not in (None, f"Bearer {TOKEN}"):
            raise Refused(401, message="Invalid credentials in Authorization header")
        return USER if given else None

    def _check_writer(self, space: str) -> None:
        if (user := self._user()) != space:
            raise Refused(403 if user else 401)

    def _readable(self, space: str, name: str) -> Repository:
        repository, user = self.hub.repositories.get(f"{space}/{name}"), self._user()
        if repository is None or (repository.private and user != space):
            raise Refused(404 if user else 401, "RepoNotFound")
        return repository

    def _create(self, asked: dict[str, Any]) -> None:
        space = asked.get("organization") or USER
        self._check_writer(space)
        repo_id = f"{space}/{asked['name']}"
        exists = repo_id in self.hub.repositories
        if not exists:
            self.hub.create(repo_id, private=asked.get("visibility") == "private" or bool(asked.get("private")))
        self._answer({"url": f"{self.hub.url}/{repo_id}"}, 409 if exists else 200)

    def _model(self, space: str, name: str, action: list[str], lines: list[Any]) -> None:
        repository = self._readable(space, name)
        if action and action[0] in ("branch", "commit"):
            self._check_writer(space)
        match action:
            case [] | ["revision", _]:
                oid = repository.at(action[1] if action else "main")
                files = [{"rfilename": path} for path in repository.commits[oid]]
                self._answer({"id": name, "sha": oid, "private": repository.private, "tags": [], "siblings": files})
            case ["branch", branch]:
                repository.branches[branch] = repository.branches["main"]
                self._answer({})
            case ["preupload", _]:
                sent = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in lines[0]["files"]]
                self._answer({"files": sent})
            case ["commit", branch]:
                header, *changes = (line["value"] for line in lines)
                if header["parentCommit"] != repository.at(branch):
                    raise Refused(412)
                files = {change["path"]: base64.b64decode(change["content"]) for change in changes}
                oid = repository.commit(branch, files, header["summary"])
                self._answer({"commitOid": oid, "commitUrl": f"{self.hub.url}/{space}/{name}/commit/{oid}"})
            case _:
                raise Refused(404)

    def _give(self, space: str, name: str, revision: str, path: str) -> None:
        repository = self._readable(space, name)
        if repository.gated and self._user() != space:
            raise Refused(403, "GatedRepo")
        oid = repository.at(revision)
        if path not in repository.commits[oid]:
            raise Refused(404, "EntryNotFound")
        content = repository.commits[oid][path]
        self._answer(content, headers={"X-Repo-Commit": oid, "ETag": f'"{hashlib.sha256(content).hexdigest()}"'})

    def _answer(self, content: bytes | dict[str, Any], status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        if self.hub.drips == "headers":
            self._drip(b"HTTP/1.1 200 OK\r\nX-Long: " + 10_000 * b"x")
            return
        self.send_response(status)
        for key, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self._drip(body) if self.hub.drips == "body" else self.wfile.write(body)

    def _drip(self, content: bytes) -> None:
        with suppress(ConnectionError):
            for byte in content:
                self.wfile.write(bytes([byte]))
                time.sleep(0.05)
        self.close_connection = True


@contextmanager
def serving() -> Generator[Hub, None, None]:
    """A hub that answers at its `url` while the block lasts."""
    hub = Hub()
    with ThreadingHTTPServer(("127.0.0.1", 0), type("OwnHandler", (Handler,), {"hub": hub})) as server:
        hub.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield hub
        server.shutdown()
