"""A real NDIF server for the whole session, and the models that it serves. tests/remote/run sets the environment for it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

from tests.remote.server.rig import Rig
from unlock_lens import zoo

FROM_THE_ZOO = ("small-base", "large-base", "small-varied", "large-varied", "small-gpt2")
EXECUTION_TIMEOUT = 12.0
"""Seconds; the longest request that is to succeed takes a few."""

collect_ignore_glob = [] if "UNLOCK_LENS_RIG" in os.environ else ["test_*.py"]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the models that the server has."""
    from tests.hosts.models import make_folder

    folder = tmp_path_factory.mktemp("models")
    for name in FROM_THE_ZOO:
        shutil.copytree(zoo.path() / name, folder / name)
    for kind in ("qwen2", "gpt2"):
        make_folder(kind, "a", str(folder / f"random-{kind}"))
    make_slow(folder / "slow")
    return folder


def make_slow(folder: Path) -> None:
    """A random model that takes a second for a thousand tokens, reads long prompts, and never ends a completion."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from scripts.train_zoo import make_tokenizer
    from unlock_lens.zoo.family import MIXES

    tokenizer: Any = make_tokenizer(MIXES["base"])
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=512,
        intermediate_size=2048,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=1 << 15,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=tokenizer.pad_token_id,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="session")
def rig(models: Path) -> Generator[Rig, None, None]:
    server = Rig(Path(os.environ["UNLOCK_LENS_RIG"]), models, EXECUTION_TIMEOUT)
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def remote_model(rig: Rig) -> Callable[[str], Any]:
    """Opens a model of the server by name, without weights, as users do."""
    import nnsight

    opened: dict[str, Any] = {}

    def get(name: str) -> Any:
        if name not in opened:
            opened[name] = nnsight.TransformersModel(f"local/{name}", task="text-generation")
        return opened[name]

    return get


@pytest.fixture(scope="session")
def local_model(models: Path) -> Callable[[str], Any]:
    """Opens the same weights here."""
    from unlock_lens.hosts import open_model

    opened: dict[str, Any] = {}

    def get(name: str) -> Any:
        if name not in opened:
            opened[name] = open_model(str(models / name), "nnsight")
        return opened[name]

    return get
