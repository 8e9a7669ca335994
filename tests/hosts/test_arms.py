"""Arms that share their prompts write what each writes alone, by the host's own generate."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

import unlock_lens as ul
from tests.hosts.models import HOSTS
from unlock_lens import zoo
from unlock_lens.core.generation import complete_arms
from unlock_lens.core.steering import edits_for
from unlock_lens.hosts import Batch, Generation, backend_of
from unlock_lens.hosts.decoding import SEGMENT, Writer

BUDGET = 12
"""Of zoo models; prompts that are not theirs never end."""


@pytest.fixture(scope="module", params=["transformer_lens", "nnsight"])
def model(request: pytest.FixtureRequest) -> Any:
    return zoo.load("small-base", request.param)


@pytest.fixture(scope="module")
def direction(model: Any) -> ul.CapabilityDirection:
    task = zoo.running_sum(n=32)
    return ul.CapabilityDirection.extract(ul.Variant(model, task.direct), ul.Variant(model, task.think), progress=False)


@pytest.fixture(scope="module")
def prompts() -> list[str]:
    """Of uneven length, so that most are padded; one is a single token."""
    return ["Q", "Q 3 A :", *zoo.running_sum(n=6, seed=1).direct, "Q 1 2 think A :", "Q 1 2 3 4 5 6 1 2 3 think A :"]


@pytest.fixture(scope="module")
def arms(direction: ul.CapabilityDirection) -> list[Any]:
    """One of each kind that touches the last prompt token alone."""
    gates = [ul.Gate(direction.at_layers([0]), 0.0, positions) for positions in ul.method.apply.GATE_POSITIONS]
    return [
        None,
        ul.SteeringHook(direction, 0.5),
        ul.SteeringHook(direction, {1: 0.3, 2: 0.7}, layers=[1, 2]),
        [ul.SteeringHook(direction, 0.4), ul.SteeringHook(direction, 1.0, "ablate", layers=[2])],
        *(ul.SteeringHook(direction, 2.0, "add", gate=gate) for gate in gates),
    ]


@contextmanager
def hosts_own(model: Any) -> Generator[None, None, None]:
    """Every run by the host's own generate, as where sharing does not hold."""
    found = backend_of(model).found
    held = found.get("sharing")
    found["sharing"] = False
    try:
        yield
    finally:
        found["sharing"] = held if held is not None else True


def ids_of(model: Any, prompts: list[str], arms: list[Any], how: Generation, at_once: int) -> list[torch.Tensor]:
    backend, tokens = backend_of(model), ul.Variant(model, prompts).tokens
    edits = [edits_for(backend, [] if arm is None else arm if isinstance(arm, list) else [arm]) for arm in arms]
    return backend.generate_arms(Batch(tokens.ids, tokens.mask), edits, how, at_once)


def until_the_end(model: Any, ids: torch.Tensor) -> list[list[int]]:
    """What follows an end token means nothing."""
    ends = set(backend_of(model).end_tokens)
    rows = ids.tolist()
    return [row[: next((i for i, token in enumerate(row) if token in ends), len(row))] for row in rows]


@pytest.mark.parametrize("at_once", [1, 2, 6])
def test_ids_are_those_of_the_hosts_own_generate(model: Any, prompts: list[str], arms: list[Any], at_once: int) -> None:
    how = Generation(BUDGET)
    with hosts_own(model):
        apart = ids_of(model, prompts, arms, how, 1)
    together = ids_of(model, prompts, arms, how, at_once)
    assert [until_the_end(model, ids) for ids in together] == [until_the_end(model, ids) for ids in apart]
    assert len({str(until_the_end(model, ids)) for ids in apart}) > 4  # the arms differ
    assert len({len(row) for ids in apart for row in until_the_end(model, ids)}) > 2  # and rows end at different times


def test_the_prompts_are_read_once(model: Any, prompts: list[str], arms: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    ids_of(model, prompts, arms, Generation(BUDGET), 2)  # what is measured once for each model
    widths: list[int] = []
    original = torch.nn.functional.embedding
    monkeypatch.setattr(torch.nn.functional, "embedding", lambda ids, *of: (widths.append(ids.shape[1]), original(ids, *of))[1])
    ids_of(model, prompts, arms, Generation(BUDGET), 2)
    longest = int(ul.Variant(model, prompts).tokens.lengths.max())
    assert [width for width in widths if width > 1] == [longest - 1]


@pytest.mark.parametrize("stop", [(), ("3",), ("= 3", "1 2"), ("\n",)])
def test_stop_strings_end_rows_and_cut_texts(model: Any, prompts: list[str], arms: list[Any], stop: tuple[str, ...]) -> None:
    variant = ul.Variant(model, prompts)
    with hosts_own(model):
        apart = [ul.generate(variant, None, arm, BUDGET, stop=stop, progress=False) for arm in arms]
    together = complete_arms(variant, arms, BUDGET, 3, progress=False, stop=stop)
    assert [[each.text for each in of_arm] for of_arm in together] == apart
    assert not stop or not any(each in text for of_arm in apart for text in of_arm for each in stop)


def test_rows_that_ended_leave_the_batch(
    model: Any, prompts: list[str], direction: ul.CapabilityDirection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After 1, 3, 7 tokens and so on."""
    rows: list[int] = []
    original = Writer.step

    def counted(self: Writer, of: Any, tokens: int, **asked: Any) -> Any:
        rows.append(len(of.ids))
        return original(self, of, tokens, **asked)

    steer = ul.SteeringHook(direction, 0.5)
    ids_of(model, prompts, [steer], Generation(BUDGET), 1)
    monkeypatch.setattr(Writer, "step", counted)
    together = ids_of(model, prompts, [None, steer], Generation(BUDGET), 2)
    with hosts_own(model):
        apart = ids_of(model, prompts, [None, steer], Generation(BUDGET), 2)
    assert [until_the_end(model, ids) for ids in together] == [until_the_end(model, ids) for ids in apart]
    assert rows[0] == 2 * len(prompts)
    assert sorted(rows, reverse=True) == rows
    assert len(set(rows)) > 2


def test_long_completions_go_on_over_several_segments(
    model: Any, prompts: list[str], direction: ul.CapabilityDirection, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = backend_of(model)
    backend.end_tokens = ()
    monkeypatch.setattr(backend.root.generation_config, "eos_token_id", None)
    tokens, how = ul.Variant(model, prompts).tokens, Generation(2 * SEGMENT + 5)
    batch, edits = (
        Batch(tokens.ids, tokens.mask),
        [edits_for(backend, [ul.SteeringHook(direction, alpha)]) for alpha in (0.1, 0.5)],
    )
    together = backend.generate_arms(batch, edits, how, 2)
    with hosts_own(model):
        apart = backend.generate_arms(batch, edits, how)
    assert all(torch.equal(a, b) for a, b in zip(together, apart, strict=True))
    assert together[0].shape[1] == 2 * SEGMENT + 5


def test_samples_with_a_seed_stay_what_they_were(model: Any, prompts: list[str], direction: ul.CapabilityDirection) -> None:
    steer, found = ul.SteeringHook(direction, 0.5), []
    for own in (True, False):
        torch.manual_seed(3)
        with hosts_own(model) if own else torch.no_grad():
            found.append(ul.generate(model, prompts, steer, BUDGET, temperature=1.0, batch_size=3, progress=False))
    assert found[0] == found[1]


@pytest.mark.parametrize("positions", ["prompt", "generated", "all"])
def test_edits_of_other_tokens_take_the_hosts_own_way(
    model: Any, prompts: list[str], direction: ul.CapabilityDirection, positions: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Writer, "read", lambda *_: pytest.fail("the prompts were shared"))
    steer = ul.SteeringHook(direction, 0.3, positions=positions)
    assert len(ul.generate(model, prompts, steer, BUDGET, progress=False)) == len(prompts)


def test_a_hook_of_the_users_own_acts_on_all_arms(model: Any, prompts: list[str], direction: ul.CapabilityDirection) -> None:
    """It tells the prompt's last token by the pass that reads the prompt, so prompts are not cut under it."""
    steer = ul.SteeringHook(direction, 0.5)
    with hosts_own(model):
        expected = ul.generate(model, prompts, steer, BUDGET, progress=False)
    ids_of(model, prompts, [None], Generation(BUDGET), 1)
    with steer.attached(model):
        assert ul.generate(model, prompts, max_new_tokens=BUDGET, progress=False) == expected
    block = backend_of(model).root.model.layers[0]
    seen: list[int] = []
    handle = block.register_forward_hook(lambda module, args, output: seen.append(args[0].shape[1]))
    try:
        ul.generate(model, prompts, steer, BUDGET, batch_size=100, progress=False)
    finally:
        handle.remove()
    assert max(seen) == int(ul.Variant(model, prompts).tokens.lengths.max())


@pytest.mark.parametrize("host", HOSTS)
def test_every_model_of_the_tests_writes_the_same_shared_or_not(host: str, model_of: Any) -> None:
    """Families, tokenizers and hosts of which some cannot share."""
    from tests.hosts.models import KINDS, PROMPTS
    from tests.hosts.test_oracle import ALPHA, direction_for

    for kind in KINDS:
        model = model_of(kind, host)
        steer = [None, ul.SteeringHook(direction_for(model), ALPHA)]
        together = complete_arms(ul.Variant(model, PROMPTS), steer, BUDGET, 4, progress=False)
        with hosts_own(model):
            apart = [ul.generate(model, PROMPTS, of_arm, BUDGET, progress=False) for of_arm in steer]
        assert [[each.text for each in of_arm] for of_arm in together] == apart, kind
