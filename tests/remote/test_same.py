"""What a server gives is what this machine gives: directions, maps, steered tokens, evidence; and little comes back."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nnsight
import pytest
import torch
from nnsight.intervention.backends.remote import RemoteError
from torch import Tensor

import unlock_lens as ul
from tests.hosts.models import PARTNERS, PROMPTS
from tests.remote.asking import make_llama
from unlock_lens import controls, lens, recipes, sweep, zoo
from unlock_lens.core.contrast import Contrast
from unlock_lens.evidence.distributions import completion_log_probs, next_token_log_probs, price
from unlock_lens.evidence.evaluation import evaluate
from unlock_lens.evidence.probe import Probe
from unlock_lens.evidence.sweep.config import SweepConfig
from unlock_lens.method.align import METHODS
from unlock_lens.method.apply import OPERATIONS, POSITIONS

Open = Callable[[str], Any]
TASK = zoo.running_sum(n=12, seed=5)
TEXT = zoo.text(n=40)
UNEVEN = [prompt.replace(" think", " think" * (1 + i % 3)) for i, prompt in enumerate(TASK.think)]
LAYERS, WIDTH = 24, 512


@pytest.fixture(scope="module")
def wide(models: Path) -> str:
    """Many wide layers of little else: what comes back is as long as a real model's, what runs is not."""
    shape = {"intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 16}
    make_llama(models / "wide", hidden_size=WIDTH, num_hidden_layers=LAYERS, **shape)
    return "wide"


@pytest.fixture(scope="module")
def post(models: Path) -> str:
    shutil.copytree(zoo.path() / "small-post", models / "small-post", dirs_exist_ok=True)
    return "small-post"


def error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def pair(
    model: Any, remote: Any = False, locked: Sequence[str] = TASK.direct, unlocked: Sequence[str] = UNEVEN
) -> tuple[ul.Variant, ul.Variant]:
    return ul.Variant(model, locked, remote=remote), ul.Variant(model, unlocked, remote=remote)


@pytest.mark.parametrize("aggregate", ["mean", "pca"])
@pytest.mark.parametrize("name", ["small-base", "small-gpt2", "random-qwen2", "random-gpt2"])
def test_directions(remote_model: Open, local_model: Open, name: str, aggregate: Any) -> None:
    """Prompts of uneven length, in batches that do not come out even; one request."""
    prompts = (PROMPTS, PARTNERS) if name.startswith("random") else (TASK.direct, UNEVEN)
    remote = ul.Remote()
    found = ul.CapabilityDirection.extract(*pair(remote_model(name), remote, *prompts), aggregate, batch_size=2)
    expected = ul.CapabilityDirection.extract(*pair(local_model(name), False, *prompts), aggregate, batch_size=2)
    assert error(found.vectors, expected.vectors) < 1e-5
    assert (found.layers, found.basis) == (expected.layers, expected.basis)
    assert remote.traffic.requests == 1
    assert found.model is not None
    assert expected.model is not None
    assert found.model.is_same_model(expected.model)


@pytest.mark.parametrize("aggregate", ["mean", "pca"])
def test_directions_between_two_models(remote_model: Open, local_model: Open, post: str, aggregate: Any) -> None:
    """One of them here or there; each server's model is one request."""
    expected = ul.CapabilityDirection.extract(
        ul.Variant(local_model("small-base"), TASK.direct), ul.Variant(local_model(post), TASK.direct), aggregate
    )
    remote = ul.Remote()
    locked, unlocked = (ul.Variant(remote_model(name), TASK.direct, remote=remote) for name in ("small-base", post))
    assert error(ul.CapabilityDirection.extract(locked, unlocked, aggregate).vectors, expected.vectors) < 1e-5
    assert remote.traffic.requests == 2
    here = ul.Variant(local_model(post), TASK.direct)
    assert error(ul.CapabilityDirection.extract(locked, here, aggregate).vectors, expected.vectors) < 1e-5


@pytest.mark.parametrize("method", sorted(METHODS))
def test_maps_of_text(remote_model: Open, local_model: Open, method: Any) -> None:
    """Both models there, or the target here, on all tokens."""
    settings: dict[str, Any] = {"rank": 16, "centered": True, "positions": "all", "method": method}
    expected = ul.SubspaceAligner(**settings).fit(
        ul.Variant(local_model("large-base"), TEXT), ul.Variant(local_model("small-base"), TEXT)
    )
    source = ul.Variant(remote_model("large-base"), TEXT, remote=True)
    for target in (ul.Variant(remote_model("small-base"), TEXT, remote=True), ul.Variant(local_model("small-base"), TEXT)):
        found = ul.SubspaceAligner(**settings).fit(source, target)
        for b in expected.layer_map:
            # Whitening (cca) divides by the smallest singular values, and their rounding with them.
            assert error(found.map(b), expected.map(b)) < (1e-3 if method == "cca" else 1e-5)


@pytest.mark.parametrize("names", [("random-qwen2", "random-gpt2"), ("small-gpt2", "small-base")])
def test_the_papers_maps(remote_model: Open, local_model: Open, names: tuple[str, str]) -> None:
    prompts = PROMPTS + PARTNERS
    here = [ul.Variant(local_model(name), prompts) for name in names]
    there = [ul.Variant(remote_model(name), prompts, remote=True) for name in names]
    expected = ul.SubspaceAligner(8).fit(here[0], here[1])
    found = ul.SubspaceAligner(8).fit(there[0], there[1])
    for b in expected.layer_map:
        assert error(found.map(b), expected.map(b)) < 1e-5


def test_a_transfer_on_a_sample_of_the_tokens_arrives(remote_model: Open) -> None:
    """Axes of all 1,000 tokens, the scores of 300; float16 on the way."""
    remote = ul.Remote(positions=300, half=True)
    source, target = remote_model("large-base"), remote_model("small-base")
    text, task = zoo.text(n=100), zoo.running_sum(n=40, seed=9)
    direction = ul.CapabilityDirection.extract(
        ul.Variant(source, task.direct, remote=remote), ul.Variant(source, task.think, remote=remote)
    )
    aligner = ul.SubspaceAligner(rank=48, centered=True, positions="all").fit(
        ul.Variant(source, text, remote=remote), ul.Variant(target, text, remote=remote)
    )
    steer = ul.SteeringHook(aligner.transport(direction), alpha=0.5)
    assert sum(task.correct(ul.generate(target, task.direct, steer, max_new_tokens=12, remote=remote))) >= 38
    assert sum(task.correct(ul.generate(target, task.direct, max_new_tokens=12, remote=remote))) <= 15


@pytest.fixture(scope="module")
def direction(local_model: Open) -> ul.CapabilityDirection:
    return ul.CapabilityDirection.extract(*pair(local_model("small-base")))


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("operation", sorted(OPERATIONS))
def test_steered_tokens(
    remote_model: Open, local_model: Open, direction: ul.CapabilityDirection, operation: Any, positions: Any
) -> None:
    steer = ul.SteeringHook(direction, 0.5, operation, positions)
    remote = ul.Remote()
    written = ul.generate(remote_model("small-base"), UNEVEN, steer, 10, batch_size=5, remote=remote)
    assert written == ul.generate(local_model("small-base"), UNEVEN, steer, 10, batch_size=5)
    stopped = ul.generate(remote_model("small-base"), TASK.think, max_new_tokens=12, remote=remote, stop=["="])
    assert stopped == ul.generate(local_model("small-base"), TASK.think, max_new_tokens=12, stop=["="])
    assert remote.traffic.requests == 2


def test_sampling_is_decided_here(remote_model: Open) -> None:
    def sampled(seed: int) -> list[str]:
        torch.manual_seed(seed)
        return ul.generate(remote_model("small-base"), TASK.think, max_new_tokens=8, temperature=3.0, remote=True)

    assert sampled(1) == sampled(1) != sampled(2)


@pytest.mark.filterwarnings("ignore:.*was never reached:UserWarning")  # how nnsight ends a loop over all steps
@pytest.mark.parametrize("positions", ["last_prompt", "all"])
def test_hooks_in_the_users_own_bodies(
    remote_model: Open, local_model: Open, direction: ul.CapabilityDirection, positions: Any
) -> None:
    """`steer.apply` in a remote generate body: the prefill alone, or with the tracer every step."""
    steer = ul.SteeringHook(direction, 0.5, positions=positions)
    ids: dict[str, Tensor] = {}
    for name, lm, where in (
        ("there", remote_model("small-base"), {"remote": True}),
        ("here", local_model("small-base"), {}),
    ):
        with lm.generate(max_new_tokens=10, do_sample=False, **where) as tracer:
            with tracer.invoke(TASK.direct[:3]):
                steer.apply(lm, tracer if positions == "all" else None)
            with tracer.invoke():
                found = tracer.result.save()
        ids[name] = found
    assert torch.equal(ids["there"].cpu(), ids["here"])


def test_hooks_in_a_trace(remote_model: Open, local_model: Open, direction: ul.CapabilityDirection) -> None:
    steer = ul.SteeringHook(direction, 0.5)
    logits: list[Tensor] = []
    for lm, where in ((remote_model("small-base"), {"remote": True}), (local_model("small-base"), {})):
        with lm.trace(TASK.direct[:3], **where):
            steer.apply(lm)
            found = lm.output.logits[:, -1].save()
        logits.append(found.detach().cpu())
    assert error(logits[0], logits[1]) < 1e-5


def test_a_hook_of_another_model_is_refused_there(remote_model: Open, direction: ul.CapabilityDirection) -> None:
    """A body of the user's own fails as nnsight fails: with its RemoteError, and our message in it."""
    steer, lm = ul.SteeringHook(direction, 0.5), remote_model("large-base")
    with pytest.raises(RemoteError, match="IncompatibleModel.*small-base.*large-base"):
        with lm.trace(TASK.direct[:3], remote=True):
            steer.apply(lm)


def test_a_sweep_of_strengths_in_one_session(remote_model: Open, local_model: Open, direction: ul.CapabilityDirection) -> None:
    alphas = (0.0, 0.3, 0.5, 0.8)
    hooks = [ul.SteeringHook(direction, alpha) for alpha in alphas]
    lm, prompts = remote_model("small-base"), TASK.direct[:4]
    with lm.session(remote=True):
        runs = []
        for steer in hooks:
            with lm.generate(max_new_tokens=10, do_sample=False) as tracer:
                with tracer.invoke(prompts):
                    steer.apply(lm)
                with tracer.invoke():
                    ids = tracer.result.save()
            runs.append(ids)
        runs = nnsight.save(runs)
    for steer, ids in zip(hooks, runs, strict=True):
        texts = lm.tokenizer.batch_decode(ids[:, 9:], skip_special_tokens=True)
        assert texts == ul.generate(local_model("small-base"), prompts, steer, max_new_tokens=10)


def test_evidence(remote_model: Open, local_model: Open, direction: ul.CapabilityDirection) -> None:
    there, here, steer = remote_model("small-base"), local_model("small-base"), ul.SteeringHook(direction, 0.5)
    found, expected = (evaluate(lm, TASK, TASK.direct, steer, 10, remote=where) for lm, where in ((there, True), (here, False)))
    assert found.completions == expected.completions
    for measured in (
        lambda lm, where: next_token_log_probs(lm, TASK.direct, steer, remote=where),
        lambda lm, where: completion_log_probs(lm, TASK.direct, expected.completions, steer, remote=where),
        lambda lm, where: torch.tensor(price(lm, TEXT[:4], steer, remote=where).kl),
        lambda lm, where: controls.anti_mean(ul.Variant(lm, TASK.direct, remote=where), direction).vectors,
        lambda lm, where: Contrast.capture(*pair(lm, where)).differences,
        lambda lm, where: torch.tensor([share for _, share in Probe.run(direction, *pair(lm, where)).by_alpha]),
    ):
        assert error(measured(there, True), measured(here, False)) < 1e-4


@pytest.mark.parametrize("name", ["small-base", "random-gpt2"])
def test_tokens_that_a_direction_writes(remote_model: Open, local_model: Open, name: str) -> None:
    """The server's own norm and unembedding are called, on states of ours; no weights are here."""
    model = remote_model(name)
    direction = ul.CapabilityDirection.extract(*pair(model, True))
    found = lens.logits_written(direction, model, remote=True)
    assert error(found, lens.logits_written(direction, local_model(name))) < 1e-5


def test_a_forecast(remote_model: Open, local_model: Open) -> None:
    """Here the states themselves come back: the forecast looks at all of them."""
    found: list[float] = []
    for opened, where in ((remote_model, True), (local_model, False)):
        source, target = (ul.Variant(opened(name), TEXT, remote=where) for name in ("large-base", "small-base"))
        aligner = ul.SubspaceAligner(rank=16, centered=True, positions="all").fit(source, target)
        direction = ul.CapabilityDirection.extract(*pair(opened("large-base"), where))
        found.append(ul.diagnose(direction, aligner, source, target).score)
    assert found[0] == pytest.approx(found[1], abs=1e-4)


def test_a_mean_ships_sums_alone_whatever_n(remote_model: Open, wide: str) -> None:
    """Within 10% of layers x d_model x 8 bytes for both variants together."""
    came: list[int] = []
    for n in (8, 128):
        remote, task = ul.Remote(), zoo.running_sum(n=n)
        ul.CapabilityDirection.extract(*pair(remote_model(wide), remote, task.direct, task.think), batch_size=16)
        came.append(remote.traffic.down)
    assert came[0] == came[1] <= 1.1 * LAYERS * WIDTH * 8


def test_two_models_ship_a_mean_each(remote_model: Open, wide: str) -> None:
    """Opened twice, a model is two: their difference cannot be taken in one request."""
    remote = ul.Remote()
    again = nnsight.TransformersModel(f"local/{wide}", task="text-generation")
    locked = ul.Variant(remote_model(wide), TASK.direct, remote=remote)
    ul.CapabilityDirection.extract(locked, ul.Variant(again, TASK.think, remote=remote))
    assert 2 * LAYERS * WIDTH * 8 <= remote.traffic.down <= 2 * 1.1 * LAYERS * WIDTH * 8


def test_pca_and_maps_ship_factors(remote_model: Open, wide: str) -> None:
    """Not [positions, layer, d_model]: of n differences one axis with its scores, of m tokens as many axes as the rank has."""
    remote, task = ul.Remote(half=True), zoo.running_sum(n=64)
    ul.CapabilityDirection.extract(*pair(remote_model(wide), remote, task.direct, task.think), "pca", batch_size=16)
    states = LAYERS * WIDTH * 4 * len(task.direct)
    assert remote.traffic.down < states / 20
    text = zoo.text(n=100)
    variant = ul.Variant(remote_model(wide), text, remote=ul.Remote(half=True))
    aligner = ul.SubspaceAligner(rank=16, centered=True, positions="all").fit(variant, variant)
    assert isinstance(variant.remote, ul.Remote)
    assert variant.remote.traffic.down < 2 * LAYERS * WIDTH * 4 * (aligner.n_tokens or 0) / 20


def test_the_command_line(rig: Any, models: Path, tmp_path: Path) -> None:
    questions = tmp_path / "q.jsonl"
    questions.write_text(
        "".join(json.dumps({"question": q.removeprefix("Q ").removesuffix(" A :")}) + "\n" for q in TASK.direct)
    )
    command = [Path(sys.executable).parent / "unlock-lens", "extract", "--questions", questions,
               "--locked", "Q {question} A :", "--unlocked", "Q {question} think A :"]  # fmt: skip
    for where in (
        ["--model", "local/small-base", "--remote", "ndif", "--out", tmp_path / "there.safetensors"],
        ["--model", models / "small-base", "--backend", "nnsight", "--out", tmp_path / "here.safetensors"],
    ):
        done = subprocess.run([*command, *where], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    there, here = (ul.CapabilityDirection.load(tmp_path / f"{name}.safetensors") for name in ("there", "here"))
    assert error(there.vectors, here.vectors) < 1e-5


def test_a_sweep(rig: Any, tmp_path: Path) -> None:
    """A whole sweep on the server gives the completions of the same sweep here."""
    few: dict[str, Any] = {
        **recipes.smallest().model_dump(mode="json"),
        "backend": "nnsight",
        "sizes": {"extract": 20, "train": 8, "test": 8},
        "grid": {"aligner": ["text"], "n": [20], "rank": [48], "alpha": [0.5]},
        "controls": ["anti_mean"],
        "sampling": {"samples": 0},
        "naive": None,
    }
    told: list[list[Any]] = []
    for folder, where, remote in (("here", "zoo:", False), ("there", "local/", True)):
        named = {side: few[side].replace("zoo:", where) for side in ("source", "target")}
        config = SweepConfig.parse({**few, **named, "remote": remote})
        lines = sweep.run(config, tmp_path / folder, progress=False).lines
        told.append([line["completions"] for line in lines if "completions" in line])
    assert told[0] == told[1]
    assert len(told[0]) >= 4
