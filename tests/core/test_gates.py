"""Gates: what is fitted, what is refused, and that reading commutes with transport. What they do to runs, tests/hosts shows."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import unlock_lens as ul
from tests.checks import unchecked
from unlock_lens import zoo
from unlock_lens.core.gates import TOLERANCE
from unlock_lens.hosts.identity import ModelIdentity
from unlock_lens.method import gate as method
from unlock_lens.method.apply import Chunk, Edit, Watch

TASK, OTHERS = zoo.running_sum(n=40, seed=3), zoo.running_sum(n=40, seed=8)
SEEDS = st.integers(0, 2**16)


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(scope="module")
def gate(small: Any) -> ul.Gate:
    return ul.Gate.fit(ul.Variant(small, TASK.direct), ul.Variant(small, TASK.reverse + TASK.double), progress=False)


@given(SEEDS)
def test_auroc_counts_pairs_and_ties_half(seed: int) -> None:
    act, rest = (draw(seed + i, 7 + i).mul(2).round() for i in range(2))
    pairs = [1.0 if a > r else 0.5 if a == r else 0.0 for a in act.tolist() for r in rest.tolist()]
    assert method.auroc(act, rest) == pytest.approx(sum(pairs) / len(pairs))
    assert method.auroc(act, rest) == pytest.approx(1 - method.auroc(rest, act))


@given(SEEDS)
def test_the_cut_is_the_best_of_all(seed: int) -> None:
    act, rest = draw(seed, 12) + 1, draw(seed + 1, 15)
    cut = method.best_cut(act, rest)
    assert cut.hits == float((act > cut.threshold).double().mean())
    assert cut.false_alarms == float((rest > cut.threshold).double().mean())
    everywhere = torch.cat([act, rest]) + 1e-9
    best = max(float((act > c).double().mean() - (rest > c).double().mean()) for c in everywhere)
    assert cut.hits - cut.false_alarms == pytest.approx(best)


@given(SEEDS, st.sampled_from([(30, 20, 6), (5, 6, 40)]))
def test_the_reader_is_fishers_discriminant(seed: int, shape: tuple[int, int, int]) -> None:
    """By the covariance itself, of more states than dimensions and of fewer."""
    n, m, d = shape
    act, rest = draw(seed, n, d) + 1, draw(seed + 1, m, d)
    within = torch.cat([act - act.mean(0), rest - rest.mean(0)])
    covariance = within.T @ within / (n + m)
    ridge = method.SHRINKAGE * covariance.trace() / d * torch.eye(d, dtype=torch.float64)
    true = torch.linalg.solve(covariance + ridge, act.mean(0) - rest.mean(0))
    found = method.discriminant(act, rest)
    torch.testing.assert_close(found / found.norm(), true / true.norm())
    assert float(found @ (act.mean(0) - rest.mean(0))) == pytest.approx(1)


def test_no_state_is_read_by_a_reader_that_has_seen_it() -> None:
    """On noise of more dimensions than prompts, which a reader tells apart perfectly where it has seen it, nothing is found."""
    act, rest = draw(0, 40, 200), draw(1, 40, 200)
    reader = method.discriminant(act, rest)
    assert method.auroc(act @ reader, rest @ reader) == 1.0
    assert method.auroc(*method.held_out_readings(act, rest)) < 0.7


@given(SEEDS, st.booleans(), st.sampled_from(["unlock", "ridge"]))
def test_reading_commutes_with_transport(seed: int, centered: bool, kind: Any) -> None:
    """<w_t, h_t> - threshold_t = <w_s, h_s> - threshold_s wherever h_t is what the map makes of an h_s that it carries whole.

    The map of rank 4 between streams of widths 9 and 7 carries 4 dimensions at most; the states lie in those.
    """
    mean_s, mean_t = draw(seed, 9), draw(seed + 1, 7)
    source = (draw(seed + 2, 1, 60, 4) @ draw(seed + 3, 4, 9) + mean_s) / (1 if centered else 3)
    target = (source - mean_s) @ draw(seed + 4, 9, 7) + mean_t
    aligner = ul.SubspaceAligner(4, centered=centered, method=kind, sinks="keep").fit_activations(source, target)
    given = ul.Gate(ul.CapabilityDirection(draw(seed + 5, 1, 9), (0,)), 0.3)
    forth, w = aligner.maps, given.direction.vectors[0].double()
    origin = (forth.source_mean[0], forth.target_mean[0]) if centered else (torch.zeros(9), torch.zeros(7))
    left, values, _ = torch.linalg.svd(aligner.map(0).double())
    kept = left[:, : int((values > TOLERANCE * values[0]).sum())]
    within = (source[0] - origin[0]) @ kept @ kept.T
    arrived = within @ aligner.map(0).double() + origin[1]
    moved = aligner.transport(given)
    read_there = arrived @ moved.direction.vectors[0].double() - moved.threshold
    read_here = (within + origin[0]) @ w - given.threshold
    torch.testing.assert_close(read_there, read_here, rtol=1e-3, atol=1e-3)


@given(SEEDS, st.booleans())
def test_pulling_back_reads_what_the_map_makes_of_any_state(seed: int, centered: bool) -> None:
    source, target = draw(seed, 1, 60, 9) + 1, draw(seed + 1, 1, 60, 7) - 1
    aligner = ul.SubspaceAligner(3, centered=centered, sinks="keep").fit_activations(source, target)
    given = ul.Gate(ul.CapabilityDirection(draw(seed + 2, 1, 7), (0,)), -0.2)
    back = aligner.pull_back(given)
    origin = (aligner.maps.source_mean[0], aligner.maps.target_mean[0]) if centered else (torch.zeros(9), torch.zeros(7))
    h = draw(seed + 3, 20, 9)
    there = (h - origin[0]) @ aligner.map(0).double() + origin[1]
    torch.testing.assert_close(
        h @ back.direction.vectors[0].double() - back.threshold,
        there @ given.direction.vectors[0].double() - given.threshold,
        rtol=1e-4,
        atol=1e-5,
    )


def test_a_reader_goes_to_another_architecture(small: Any, gate: ul.Gate) -> None:
    """The threshold too: on new prompts of a GPT-2 that the gate was not fitted in, it acts where it should."""
    target = zoo.load("small-gpt2")
    texts = zoo.text(n=200) + TASK.direct + TASK.reverse + TASK.double
    back = ul.SubspaceAligner(method="ridge").fit(target, small, texts, progress=False)
    moved = back.pull_back(gate)
    assert moved.auroc is None
    assert (moved.direction.provenance.source_model, moved.layer) == (gate.direction.model, 0)
    assert bool((moved.readings(ul.Variant(target, OTHERS.direct)) > moved.threshold).all())
    assert not bool((moved.readings(ul.Variant(target, OTHERS.reverse + OTHERS.double)) > moved.threshold).any())
    forth = ul.SubspaceAligner().fit(small, target, texts, progress=False).transport(gate)
    again = ul.Gate.fit(ul.Variant(target, OTHERS.direct), ul.Variant(target, OTHERS.reverse), direction=forth.direction)
    assert again.auroc is not None
    assert again.auroc > 0.95
    assert torch.equal(again.direction.vectors, forth.direction.vectors)


def test_what_a_fit_finds_acts_on_new_prompts(small: Any, gate: ul.Gate) -> None:
    assert (gate.auroc, gate.hits, gate.false_alarms) == (1.0, 1.0, 0.0)
    assert gate.layer == 0  # the earliest of equals, after which every layer can be steered
    read = gate.readings(ul.Variant(small, OTHERS.direct)), gate.readings(ul.Variant(small, OTHERS.reverse))
    assert float(read[0].min()) > gate.threshold > float(read[1].max())
    assert repr(gate) == "Gate(layer 0 of small-base, last_prompt; AUROC 1.000, hits 100%, false alarms 0%)"
    assert ul.Gate.fit(ul.Variant(small, TASK.direct), ul.Variant(small, TASK.reverse), layers=[2]).layer == 2


def test_classes_that_overlap_are_refused_with_their_auroc(small: Any) -> None:
    """Problems of one kind: nothing tells them apart."""
    alike = ul.Variant(small, TASK.direct), ul.Variant(small, OTHERS.direct)
    with pytest.raises(ul.InvalidInput, match=r"overlap: the best layer, \d, has an AUROC of 0\.[45]\d .*force=True"):
        ul.Gate.fit(*alike)
    forced = ul.Gate.fit(*alike, force=True)
    assert forced.auroc is not None
    assert forced.auroc < 0.6


def test_a_gate_reads_before_what_is_steered(small: Any, gate: ul.Gate) -> None:
    direction = ul.CapabilityDirection.extract(ul.Variant(small, TASK.direct), ul.Variant(small, TASK.think))
    late = ul.Gate.fit(ul.Variant(small, TASK.direct), ul.Variant(small, TASK.reverse), layers=[1])
    with pytest.raises(
        ul.InvalidInput, match=r"gate reads layer 1, but layers \[0\] are steered before .*steer layers=\[1, 2\]"
    ):
        ul.SteeringHook(direction, 0.5, gate=late)
    assert ul.SteeringHook(direction, 0.5, gate=gate).at_layers([2]).gate is gate
    with unchecked(), pytest.raises(ul.InvalidInput, match="gate is a CapabilityDirection; give ul.Gate"):
        ul.SteeringHook(direction, 0.5, gate=direction)  # pyright: ignore[reportArgumentType]


def test_bad_gates() -> None:
    two = ul.CapabilityDirection(torch.ones(2, 4), (0, 2))
    with pytest.raises(ul.InvalidInput, match=r"layers \[0, 2\], but a gate reads one"):
        ul.Gate(two, 0.0)
    one = two.at_layers([2])
    with pytest.raises(ul.InvalidInput, match="threshold nan was given"):
        ul.Gate(one, float("nan"))
    with unchecked(), pytest.raises(ul.InvalidInput, match="gate positions 'each' were given; use one of last_prompt, all"):
        ul.Gate(one, 0.0, "each")  # pyright: ignore[reportArgumentType]


def test_bad_classes(small: Any, large: Any) -> None:
    several, one = ul.Variant(small, TASK.direct), ul.Variant(small, TASK.direct[:1])
    with pytest.raises(ul.InvalidInput, match="not_act has 1 prompt; at least 2"):
        ul.Gate.fit(several, one)
    with pytest.raises(ul.InvalidInput, match="different models"):
        ul.Gate.fit(several, ul.Variant(large, TASK.reverse))
    with unchecked(), pytest.raises(ul.InvalidInput, match=r"act is a list; give Variant\(model, prompts\)"):
        ul.Gate.fit(TASK.direct, several)  # pyright: ignore[reportArgumentType]


def test_a_gate_of_another_model_is_refused(large: Any, gate: ul.Gate) -> None:
    direction = ul.CapabilityDirection.extract(ul.Variant(large, TASK.direct), ul.Variant(large, TASK.think))
    steer = ul.SteeringHook(direction, 0.5, gate=gate)
    with pytest.raises(ul.IncompatibleModel, match="gate's direction .* does not fit large-base .*transport the gate"):
        ul.generate(large, TASK.direct, steer)
    with pytest.raises(ul.IncompatibleModel, match="gate was made for small-base .*, but this model is small-post"):
        gate.readings(ul.Variant(zoo.load("small-post"), TASK.direct))


def test_a_raw_reader_is_refused_where_the_mean_is_taken_out() -> None:
    """A reader of the other basis reads raw states alike, because it is read without its own mean."""
    raw = ModelIdentity("model", 2, 4)
    processed = ModelIdentity("model", 2, 4, basis="zero_mean")
    w = ul.CapabilityDirection(torch.tensor([[1.0, 2.0, 3.0, 4.0]]), (0,))
    with pytest.raises(ul.IncompatibleModel, match="also reads the mean over d_model"):
        ul.Gate(w, 0.0).gating(processed)
    without = ul.Gate(w.zero_mean(), 0.0)
    h = draw(0, 4).float()
    read = [h @ without.gating(raw).reader, (h - h.mean()) @ without.gating(processed).reader]
    torch.testing.assert_close(*read)


def test_layers_that_a_map_does_not_read(small: Any, large: Any) -> None:
    aligner = ul.SubspaceAligner().fit(large, small, zoo.text(n=100), progress=False)
    unread = ul.Gate.fit(ul.Variant(large, TASK.direct), ul.Variant(large, TASK.reverse), layers=[2])
    with pytest.raises(ul.InvalidInput, match=r"reads layer 2, but the map has layers \[0, 1, 3\] .*Gate.fit\(layers="):
        aligner.transport(unread)
    with pytest.raises(ul.IncompatibleModel, match="made for large-base|does not fit small-base"):
        aligner.pull_back(ul.Gate.fit(ul.Variant(large, TASK.direct), ul.Variant(large, TASK.reverse), layers=[1]))


def test_a_copied_gated_hook_is_whole(gate: ul.Gate) -> None:
    import nnsight  # noqa: F401  # pyright: ignore[reportUnusedImport]

    steer = ul.SteeringHook(ul.CapabilityDirection(torch.eye(2, 64), (0, 2)), 0.5, gate=gate)
    copied = copy.deepcopy(steer).gate
    assert copied is not None
    assert copied.description == gate.description
    assert torch.equal(copied.direction.vectors, gate.direction.vectors)


def test_a_prompt_in_parts_is_decided_by_its_end() -> None:
    """Until then nothing may be edited; edits of what follows wait for it."""
    watch = Watch(torch.ones(8, dtype=torch.float64), 0.0, "last_prompt", True)
    h = torch.ones(2, 6, 8, dtype=torch.float64) * torch.tensor([1.0, -1.0])[:, None, None].double()
    every, last = (Edit(draw(1, 8), 0.5, "add", positions, watch) for positions in ("prompt", "last_prompt"))
    first, second, step = (h[:, :4], Chunk(6)), (h[:, 4:], Chunk(6, seen=4)), (h[:, :1], Chunk(6, seen=6))
    assert watch(*first) is first[0]
    assert last(*first) is first[0]
    with pytest.raises(ul.InvalidInput, match="before it has read that token in every row; run the prompts in one pass"):
        every(*first)
    assert watch(*second) is second[0]
    changed = (last(*second) != second[0]).any(dim=-1)
    assert changed.tolist() == [[False, True], [False, False]]
    generated = Edit(draw(1, 8), 0.5, "add", "generated", watch)
    assert watch(*step) is step[0]
    assert (generated(*step) != step[0]).any(dim=-1).tolist() == [[True], [False]]
    with pytest.raises(ul.InvalidInput, match="before it has read that token in every row"):
        generated(h[:1, :1], Chunk(6, seen=6))  # other rows


def test_rows_padded_on_the_right_decide_at_their_own_ends() -> None:
    h = -torch.ones(3, 5, 8, dtype=torch.float64)
    h[0, 4], h[1, 0], h[2, 4] = 1.0, 1.0, 1.0
    watch = Watch(torch.ones(8, dtype=torch.float64), 0.0, "last_prompt", False)
    chunk = Chunk(5, last=torch.tensor([4, 0, 2]))
    watch(h, chunk)
    changed = Edit(draw(1, 8), 0.5, "add", "last_prompt", watch)(h, chunk) != h
    assert changed.any(dim=-1).nonzero().tolist() == [[0, 4], [1, 0]]
