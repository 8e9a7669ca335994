"""Files go both ways between this library and the real peers, and steer a model there as the hook does here.

Each test asks the peers' Python once: it takes seconds to start.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import unlock_lens as ul
from unlock_lens import interchange, zoo

Ask = Callable[..., list[Any]]
MODELS = ("small-base", "small-gpt2")
"""A Llama and a GPT-2: blocks are in other places, and other norms read them."""
TASK = zoo.running_sum(n=16)
PAIRS = [list(pair) for pair in zip(TASK.direct, TASK.think, strict=True)]


@pytest.fixture(scope="module", params=MODELS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(name: str) -> Any:
    return zoo.load(name)


@pytest.fixture(scope="module")
def hook(model: Any) -> ul.SteeringHook:
    """Strong enough to move every logit, and without layer 0, which GGUF has no place for."""
    direction = ul.CapabilityDirection.extract(ul.Variant(model, TASK.direct), ul.Variant(model, TASK.think))
    return ul.SteeringHook(direction, 0.8, operation="add", positions="all", layers=(1, 2))


@pytest.fixture(scope="module")
def ids(model: Any) -> torch.Tensor:
    return ul.Variant(model, TASK.direct[:4]).tokens.ids


def test_every_peer_steers_as_the_hook_does(
    ask: Ask, name: str, model: Any, hook: ul.SteeringHook, ids: Any, tmp_path: Path
) -> None:
    interchange.to_gguf(hook, tmp_path / "v.gguf")
    interchange.to_steering_vectors(hook, tmp_path / "vectors.pt")
    interchange.to_lm_eval(hook, tmp_path / "harness.pt")
    peers = {"repeng": "v.gguf", "steering_vectors": "vectors.pt", "lm_eval": "harness.pt"}
    shared = {"model": str(zoo.path() / name), "ids": ids.tolist()}
    ask(
        {"do": "unsteered", **shared, "out": str(tmp_path / "unsteered")},
        *(
            {"do": f"{peer}_steers", **shared, "file": str(tmp_path / file), "out": str(tmp_path / peer)}
            for peer, file in peers.items()
        ),
    )
    with torch.no_grad():
        wanted = model.run_with_hooks(ids, fwd_hooks=hook.fwd_hooks(model))
        plain = model(ids)
    assert float((wanted - plain).abs().amax(dim=-1).min()) > 0.01, "the hook moves every token's logits"
    torch.testing.assert_close(logits(tmp_path / "unsteered"), plain, atol=1e-5, rtol=1e-5)
    for peer in peers:
        torch.testing.assert_close(
            logits(tmp_path / peer), wanted, atol=1e-5, rtol=1e-5, msg=lambda m, peer=peer: f"{peer}: {m}"
        )


def logits(file: Path) -> torch.Tensor:
    return torch.load(file, weights_only=True)["logits"]


def test_repeng_reads_the_very_numbers(ask: Ask, hook: ul.SteeringHook, name: str, tmp_path: Path) -> None:
    interchange.to_gguf(hook.direction.at_layers([1, 2]), tmp_path / "v.gguf")
    [read] = ask({"do": "repeng_reads", "file": str(tmp_path / "v.gguf")})
    assert read["hint"] == {"small-base": "llama", "small-gpt2": "gpt2"}[name]
    assert list(read["vectors"]) == ["1", "2"]
    assert torch.equal(torch.tensor([*read["vectors"].values()]), hook.direction.vectors[1:])


def test_a_file_that_repeng_writes_is_read(ask: Ask, tmp_path: Path) -> None:
    """Any layers, in any order; 0 too, which it can use and llama.cpp cannot."""
    vectors = {"2": [1.0, 2.0], "0": [3.0, 1e-30]}
    ask({"do": "repeng_writes", "file": str(tmp_path / "v.gguf"), "vectors": vectors, "hint": "llama"})
    read = interchange.from_gguf(tmp_path / "v.gguf")
    assert (read.layers, read.model) == ((0, 2), None)
    assert torch.equal(read.vectors, torch.tensor([vectors["0"], vectors["2"]]))
    assert "llama" in read.provenance.steps[0]


def test_what_the_peers_train_comes_here(ask: Ask, name: str, model: Any, tmp_path: Path) -> None:
    """Repeng's principal axis as it is; the mean of steering-vectors is the direction that this library extracts."""
    files = {"file": str(tmp_path / "vectors.pt"), "whole": str(tmp_path / "whole.pt")}
    shared = {"model": str(zoo.path() / name), "pairs": PAIRS}
    by_repeng, trained = ask(
        {"do": "repeng_trains", **shared, "file": str(tmp_path / "v.gguf")},
        {"do": "steering_vectors_trains", **shared, **files},
    )
    control = interchange.from_gguf(tmp_path / "v.gguf", model)
    assert [str(layer) for layer in control.layers] == list(by_repeng) == ["1", "2"]
    assert torch.equal(control.vectors, torch.tensor([*by_repeng.values()]))
    vector = interchange.from_steering_vectors(tmp_path / "vectors.pt", model)
    assert torch.equal(vector.vectors, torch.tensor([trained[str(layer)] for layer in vector.layers]))
    wanted = ul.CapabilityDirection.extract(ul.Variant(model, TASK.direct), ul.Variant(model, TASK.think))
    torch.testing.assert_close(vector.vectors, wanted.vectors, atol=1e-4, rtol=1e-4)
    assert vector.model == control.model == wanted.model
    with pytest.raises(ul.ArtifactError, match="pickled"):
        interchange.from_steering_vectors(tmp_path / "whole.pt")
