"""The public interface, as programs that are written against it use it: names, shapes, and what may be passed where."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import unlock_lens as ul
from unlock_lens import zoo

TASK = zoo.running_sum(n=12, seed=0)
TEXTS = zoo.text(n=60, seed=0)


@pytest.fixture(scope="module")
def direction(large: Any) -> ul.CapabilityDirection:
    return ul.CapabilityDirection.extract(
        locked=ul.Variant(large, TASK.direct),
        unlocked=ul.Variant(large, TASK.think),
        aggregate="mean",
        layers=None,
        position=-1,
        batch_size=8,
    )


@pytest.fixture(scope="module")
def aligner(large: Any, small: Any) -> ul.SubspaceAligner:
    aligner = ul.SubspaceAligner(rank=48, centered=True, positions="all")
    return aligner.fit(source=ul.Variant(large, TEXTS), target=ul.Variant(small, TEXTS))


def test_a_direction(direction: ul.CapabilityDirection, large: Any, tmp_path: Path) -> None:
    assert direction.vectors.shape == (4, 96)
    assert (direction.vectors.dtype, direction.vectors.device.type) == (torch.float32, "cpu")
    assert (direction.layers, direction.basis) == ((0, 1, 2, 3), "raw")
    direction.save(tmp_path / "direction.safetensors")
    assert torch.equal(ul.CapabilityDirection.load(tmp_path / "direction.safetensors").vectors, direction.vectors)
    pair = ul.Variant(large, TASK.direct), ul.Variant(large, TASK.think)
    assert ul.CapabilityDirection.extract(*pair, aggregate="pca").vectors.shape == (4, 96)
    own: Any = lambda differences: differences.median(dim=0).values  # noqa: E731
    assert ul.CapabilityDirection.extract(*pair, aggregate=own).provenance.aggregate == "<lambda>"


def test_an_aligner(aligner: ul.SubspaceAligner, direction: ul.CapabilityDirection, tmp_path: Path) -> None:
    aligned = aligner.transport(direction)
    assert (aligned.layers, aligned.vectors.shape) == ((0, 1, 2), (3, 64))
    assert aligner.layer_map == {0: 0, 1: 1, 2: 3}
    assert aligner.map(2).shape == (96, 64)
    assert aligner.at_rank(4).maps.rank == 4
    aligner.save(tmp_path / "aligner.safetensors")
    again = ul.SubspaceAligner.load(tmp_path / "aligner.safetensors")
    assert torch.equal(again.transport(direction).vectors, aligned.vectors)
    acts = torch.randn(2, 40, 8), torch.randn(3, 40, 6)
    assert ul.SubspaceAligner(rank=4).fit_activations(*acts).map(2).shape == (8, 6)


def test_steering_in_transformer_lens(aligner: ul.SubspaceAligner, direction: ul.CapabilityDirection, small: Any) -> None:
    steer = ul.SteeringHook(aligner.transport(direction), alpha=0.5)
    assert (steer.operation, steer.positions, steer.layers) == ("norm_preserving", "last_prompt", None)
    tokens = ul.Variant(small, TASK.direct).tokens.ids
    plain = small(tokens)
    steered = small.run_with_hooks(tokens, fwd_hooks=steer.fwd_hooks(small))
    with small.hooks(fwd_hooks=steer.fwd_hooks(small)):
        torch.testing.assert_close(small(tokens), steered)
    with steer.attached(small), ul.attached(small, [steer.at_layers([0])]):
        assert not torch.allclose(small(tokens), steered)
    torch.testing.assert_close(small(tokens), plain)
    assert not torch.allclose(steered, plain)


def test_steering_in_nnsight(aligner: ul.SubspaceAligner, direction: ul.CapabilityDirection, small_nnsight: Any) -> None:
    steer = ul.SteeringHook(aligner.transport(direction), alpha=0.5)
    with small_nnsight.generate(max_new_tokens=12) as tracer:
        with tracer.invoke(TASK.direct):
            steer.apply(small_nnsight)
        with tracer.invoke():
            ids = tracer.result.save()
    assert ids.shape[0] == len(TASK.direct)
    assert "S" in small_nnsight.tokenizer.decode(ids[0])


@pytest.mark.parametrize("host", ["small", "small_nnsight"])
def test_generation_is_the_same_everywhere(
    aligner: ul.SubspaceAligner, direction: ul.CapabilityDirection, host: str, request: pytest.FixtureRequest
) -> None:
    model, steer = request.getfixturevalue(host), ul.SteeringHook(aligner.transport(direction), alpha=0.5)
    completions = ul.generate(model, TASK.direct, steer=steer, max_new_tokens=12)
    assert all(isinstance(completion, str) for completion in completions)
    assert sum(TASK.correct(completions)) >= 10
    assert TASK.behaviours(completions).count("think") >= 10


def test_a_whole_transfer(large: Any, small: Any) -> None:
    pair = ul.Variant(large, TASK.direct), ul.Variant(large, TASK.think)
    texts = ul.calibration_texts(*pair, max_new_tokens=12, batch_size=4, stop=(), progress=True, resume=None)
    assert all(isinstance(text, str) for text in texts)
    assert ul.SubspaceAligner(rank=4).fit(large, small, texts).rank_ == 4
    steer = ul.transfer(large, small, locked=TASK.direct, unlocked=TASK.think, texts=None, alpha=0.5, max_new_tokens=12)
    assert isinstance(steer, ul.SteeringHook)
    assert ul.generate(small, TASK.direct, steer=steer, stop=["="], max_new_tokens=12)


def test_the_zoo() -> None:
    assert (zoo.path() / "small-base").is_dir()
    assert len(zoo.text(n=5, seed=0)) == 5
    assert {len(getattr(TASK, name)) for name in ("direct", "think", "reverse", "double", "answers")} == {12}


def test_every_public_name_is_listed_and_there() -> None:
    listed = dir(ul)
    evidence = {"controls", "lens", "evaluation", "sweep", "report", "tasks", "plots", "recipes"}
    assert evidence | set(ul.__all__) <= set(listed)
    assert all(getattr(ul, name) is not None for name in ul.__all__)
    with pytest.raises(AttributeError):
        _ = ul.nothing  # pyright: ignore[reportAttributeAccessIssue]
