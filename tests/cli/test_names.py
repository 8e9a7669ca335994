"""Names of models, files and artifacts that lead nowhere: told at once, with the nearest name that exists."""

from __future__ import annotations

import shutil
import socket
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from huggingface_hub import constants

import unlock_lens as ul
from tests.cli.test_cli import LARGE, SMALL, run, write
from unlock_lens.hosts import open_model, shape_of
from unlock_lens.hosts.checkpoint import check_name, nearest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a model in it."""
    shutil.copytree(SMALL, tmp_path / "models" / "smallish")
    return tmp_path / "models"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, int]]:
    """A hub that answers each name with a status, or 404; a status of 0 is silence."""
    answers: dict[str, int] = {}

    class Answering(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            status = answers.get(self.path.partition("/resolve/")[0].strip("/"), 404)
            if not status:
                time.sleep(3)
                return
            self.send_response(status)
            for name, value in (("ETag", '"0"'), ("X-Repo-Commit", "0" * 40), ("Content-Length", "0")):
                self.send_header(name, value)
            if status == 404:
                self.send_header("X-Error-Code", "RepoNotFound")
            if status == 403:
                self.send_header("X-Error-Code", "GatedRepo")
            self.end_headers()

        def log_message(self, *_: object, **__: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
    Thread(target=server.serve_forever, daemon=True).start()
    point_to(monkeypatch, f"http://127.0.0.1:{server.server_port}")
    yield answers
    server.shutdown()
    server.server_close()


def point_to(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def test_a_misspelt_folder_is_told_with_the_nearest(folder: Path) -> None:
    for name, near in [
        (folder / "smalish", folder / "smallish"),
        (folder.parent / "modles" / "smallish", folder / "smallish"),
        (folder.parent / "modles" / "other", folder),
    ]:
        with pytest.raises(ul.InvalidInput, match="did you mean") as told:
            check_name(str(name))
        assert repr(str(near)) in str(told.value)
    assert nearest(folder / "nothing-like-it") is None
    for name, keyword in [(folder, "config.json"), (folder / "smallish" / "config.json", "is a file")]:
        with pytest.raises(ul.InvalidInput, match=keyword):
            check_name(str(name))


def test_a_hub_id_is_asked_for_once(hub: dict[str, int]) -> None:
    hub |= {"org/known": 200, "org/gated": 403, "org/busy": 503}
    for name in ("org/known", "org/busy"):
        check_name(name)
    for name, keyword in [("org/unknown", "nor a model on the hub"), ("org/gated", "gated"), ("not/a/hub-id", "no folder")]:
        with pytest.raises(ul.InvalidInput, match=keyword):
            check_name(name)


def test_a_hub_that_stays_silent_is_not_waited_for(hub: dict[str, int], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub["smalish"] = 0
    monkeypatch.chdir(folder)
    start = time.perf_counter()
    with pytest.raises(ul.InvalidInput, match="did you mean 'smallish'"):
        open_model("smalish")
    assert time.perf_counter() - start < 10  # transformers alone: half a minute


def test_without_a_network_the_answer_comes_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        point_to(monkeypatch, f"http://127.0.0.1:{unused.getsockname()[1]}")
        start = time.perf_counter()
        with pytest.raises(ul.InvalidInput, match="cannot be asked"):
            ul.plan("org/model", prompts=2, prompt_tokens=3)
        done = run("extract", "--model", "org/model", "--questions", __file__, "--unlocked", "{question}!", "--out", "d")
    assert (done.returncode, "cannot be asked" in done.stderr) == (1, True)
    assert time.perf_counter() - start < 10  # transformers alone: half a minute


def test_files_and_artifacts_are_told_with_the_nearest(tmp_path: Path) -> None:
    write(tmp_path, "questions.txt", "1")
    write(tmp_path, "cot.safetensors", "")
    for args, near in [
        (("extract", "--model", LARGE, "--questions", tmp_path / "question.txt", "--out", tmp_path / "d"), "questions.txt"),
        (("steer", "--model", LARGE, "--prompts", tmp_path / "questions.txt", "--direction", tmp_path / "cott.safetensors"),
         "cot.safetensors"),
        (("inspect", tmp_path / "cott.safetensors"), "cot.safetensors"),
        (("sweep", tmp_path / "question.txt", "--out", tmp_path / "o"), "questions.txt"),
        (("report", f"{tmp_path}s"), tmp_path.name),
    ]:  # fmt: skip
        done = run(*args)
        assert done.returncode == 1, args
        assert "did you mean" in done.stderr, done.stderr
        assert near in done.stderr


def test_models_of_the_package_have_short_names(tmp_path: Path) -> None:
    questions = write(tmp_path, "q.txt", "Q 1 2 3 4 5 6 A :")
    done = run("extract", "--model", "zoo:small-base", "--questions", questions, "--unlocked", "think {question}", "--out",
               tmp_path / "d")  # fmt: skip
    assert "d_model 64" in done.stdout, done.stderr
    wrong = run("extract", "--model", "zoo:smal-base", "--questions", questions, "--out", tmp_path / "d")
    assert "small-base" in wrong.stderr
    assert shape_of(SMALL).n_layers == ul.CapabilityDirection.load(tmp_path / "d").vectors.shape[0]
