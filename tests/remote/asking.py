"""What the tests of this folder ask of the server, and how they look at what became of it."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import torch
from torch import Tensor

import unlock_lens as ul
from unlock_lens import zoo
from unlock_lens.core import files

Open = Callable[[str], Any]
"""Opens a model by name."""
HOST = "http://127.0.0.1:8001"


def extract(model: Any, remote: ul.Remote, **how: Any) -> Tensor:
    """A direction of 16 prompts; with Remote(batches=1) four requests."""
    task = zoo.running_sum(n=16)
    locked, unlocked = (ul.Variant(model, prompts, remote=remote) for prompts in (task.direct, task.think))
    return ul.CapabilityDirection.extract(locked, unlocked, batch_size=4, progress=False, **how).vectors


def extract_slowly(model: Any, remote: ul.Remote, **how: Any) -> Tensor:
    """With Remote(batches=1) three requests, each half a second or more."""
    long = [" ".join(["1"] * 250 + [str(i % 7)]) for i in range(6)]
    locked, unlocked = (ul.Variant(model, [f"{begin} {prompt}" for prompt in long], remote=remote) for begin in ("A", "="))
    return ul.CapabilityDirection.extract(locked, unlocked, batch_size=2, progress=False, **how).vectors


def status(job_id: str) -> str | None:
    """What the server says of a request; None where it knows nothing."""
    try:
        with urlopen(f"{HOST}/response/{job_id}", timeout=5) as answer:
            return json.loads(answer.read())["status"]
    except HTTPError as error:
        if error.code == 404:
            return None
        raise


def wait_until(happens: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait for what another process does."""
    end = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < end, f"it did not happen in {seconds:g} s"
        time.sleep(0.05)


def tickets(folder: Path) -> list[str]:
    """The server's names of the requests that a resume folder knows to be on their way."""
    return [json.loads(file.read_text())["id"] for file in sorted(folder.glob("*.job.json"))]


def finished(folder: Path) -> list[str]:
    """The files of finished requests in a resume folder: all can be read, and nothing else lies beside them but tickets."""
    results = sorted(file for file in folder.iterdir() if not file.name.endswith(".job.json"))
    for file in results:
        assert files.load(file, "finished request")[0]
    tickets(folder)
    return [file.name for file in results]


def make_llama(folder: Path, **shape: Any) -> None:
    """A random Llama of this shape, with the zoo's tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shutil.copytree(zoo.path() / "small-base", folder, dirs_exist_ok=True)
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(vocab_size=22, max_position_embeddings=256, **shape)).save_pretrained(folder)
