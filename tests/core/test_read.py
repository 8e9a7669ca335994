"""What is reduced where the model runs gives what is made of the states themselves; `remote="local"` takes a server's way."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import unlock_lens as ul
from tests.checks import unchecked
from unlock_lens import zoo
from unlock_lens.core import differences, jobs, read
from unlock_lens.core.contrast import Contrast
from unlock_lens.core.read import How
from unlock_lens.core.tokens import all_tokens, one_token
from unlock_lens.hosts.ndif import NdifServer
from unlock_lens.hosts.remote import remote_of
from unlock_lens.method.align import METHODS
from unlock_lens.method.reduce import LayerFactors, LeadingAxes, Mean, merged, of_result

TASK = zoo.running_sum(n=12, seed=3)
TEXT = zoo.text(n=24)


@pytest.fixture(scope="module")
def large_nnsight() -> Any:
    return zoo.load("large-base", "nnsight")


def acts(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) + 3


def reduced(reduction: Any, states: Tensor, places: Tensor, size: int) -> dict[str, Tensor]:
    """As passes bring them: `size` tokens at a time, two layers."""
    for start in range(0, len(states), size):
        for i in (0, 1):
            reduction.add(i, states[start : start + size] * (i + 1), places[start : start + size], 1)
    return reduction.result()


def error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def test_a_mean_is_that_of_all_tokens_and_takes_away_what_comes_with_a_minus() -> None:
    states = acts(0, 10, 6)
    places = torch.full((10,), -1)
    found = reduced(Mean(10), states, places, 3)["mean"]
    assert torch.allclose(found[0], states.double().mean(dim=0))
    assert torch.allclose(found[1], 2 * states.double().mean(dim=0))
    difference = Mean(10)
    difference.add(0, states, places, 1)
    difference.add(0, states.flip(1), places, -1)
    assert torch.allclose(difference.result()["mean"][0], (states - states.flip(1)).double().mean(dim=0))


@pytest.mark.parametrize("centered", [True, False])
@pytest.mark.parametrize(("n", "d"), [(5, 9), (20, 6)])
def test_factors_of_held_tokens_are_the_thin_svd(n: int, d: int, centered: bool) -> None:
    states = acts(1, n, d)
    axes = min(n, d)
    layer = of_result(reduced(LeadingAxes(axes, n, n, centered, half=False), states, torch.arange(n), 4), n)[0]
    h = (states - states.mean(dim=0) if centered else states).double()
    values = torch.linalg.svdvals(h)
    assert torch.allclose(layer.axes.values, values[: len(layer.axes.values)], rtol=1e-5)
    assert len(layer.axes.values) == min(axes, n - centered)
    assert error(layer.states(centered), states.double()) < 1e-5
    assert layer.share == pytest.approx(1.0)


@pytest.mark.parametrize("centered", [True, False])
def test_axes_know_tokens_that_are_not_held(centered: bool) -> None:
    """The Gram matrix is summed over all; scores come back of the sample."""
    states = acts(2, 30, 6)
    sample = torch.tensor([3, 4, 11, 20, 25, 28, 29])
    places = torch.full((30,), -1)
    places[sample] = torch.arange(len(sample))
    layer = of_result(reduced(LeadingAxes(6, len(sample), 30, centered, half=False), states, places, 7), 30)[0]
    h = (states - states.mean(dim=0) if centered else states).double()
    assert torch.allclose(layer.axes.mean, states.double().mean(dim=0), atol=1e-6)
    assert torch.allclose(layer.axes.values, torch.linalg.svdvals(h), rtol=1e-5)
    assert error(layer.states(centered), states[sample].double()) < 1e-5
    assert layer.energy == pytest.approx(float(h.square().sum()), rel=1e-5)


def test_half_precision_comes_back_where_it_is_asked_for() -> None:
    states = acts(3, 8, 6)
    found = reduced(LeadingAxes(6, 8, 8, True, half=True), states, torch.arange(8), 8)
    assert (found["vectors"].dtype, found["left"].dtype) == (torch.float16, torch.float16)
    assert (found["values"].dtype, found["mean"].dtype) == (torch.float32, torch.float32)
    assert error(of_result(found, 8)[0].states(True), states.double()) < 1e-3


def test_states_that_are_not_finite_do_not_break_the_decomposition() -> None:
    """Who asked sees it in the mean and the energy, and says which layer."""
    states = acts(4, 8, 6)
    states[3, 2] = torch.inf
    found = reduced(LeadingAxes(6, 8, 8, True, half=False), states, torch.arange(8), 8)
    assert not bool(found["mean"].isfinite().all())
    assert not bool(found["energy"].isfinite().all())


@pytest.mark.parametrize("centered", [True, False])
def test_parts_merge_into_the_factors_of_all_tokens(centered: bool) -> None:
    states = acts(5, 21, 8).double()

    def factors(part: Tensor) -> LayerFactors:
        reduction = LeadingAxes(min(8, len(part)), len(part), len(part), centered, half=False)
        reduction.add(0, part, torch.arange(len(part)), 1)
        return of_result(reduction.result(), len(part))[0]

    whole = factors(states)
    found = merged([factors(part) for part in states.split(7)], 8, centered)
    assert torch.allclose(found.axes.values, whole.axes.values, rtol=1e-5)
    assert torch.allclose(found.axes.mean, whole.axes.mean, atol=1e-6)
    assert error(found.states(centered), states) < 1e-5
    assert found.energy == pytest.approx(whole.energy, rel=1e-5)
    assert found.n == 21


def local(model: Any, prompts: Sequence[str], **settings: Any) -> ul.Variant:
    return ul.Variant(model, prompts, remote=settings.get("remote", "local"))


@pytest.mark.parametrize("aggregate", ["mean", "pca", lambda differences: differences.median(dim=0).values])
@pytest.mark.parametrize("resume", [False, True])
def test_directions_are_those_of_the_states(small_nnsight: Any, aggregate: Any, resume: bool, tmp_path: Path) -> None:
    """One model: the difference is taken where it runs; with resume= in several requests, whose factors are merged."""
    pair = local(small_nnsight, TASK.direct), local(small_nnsight, TASK.think)
    plain = ul.Variant(small_nnsight, TASK.direct), ul.Variant(small_nnsight, TASK.think)
    kept: dict[str, Any] = {"resume": tmp_path / "kept", "batch_size": 1} if resume else {"batch_size": 5}
    found = ul.CapabilityDirection.extract(*pair, aggregate, layers=[0, 2], **kept)
    expected = ul.CapabilityDirection.extract(*plain, aggregate, layers=[0, 2])
    assert error(found.vectors, expected.vectors) < 1e-5
    assert len(list((tmp_path / "kept").glob("*.safetensors"))) == (2 if resume else 0)  # 12 batches, 8 in a request


@pytest.mark.parametrize("aggregate", ["mean", "pca"])
def test_a_contrast_of_two_models_may_have_one_of_them_elsewhere(small_nnsight: Any, aggregate: Any) -> None:
    post = zoo.load("small-post", "nnsight")
    expected = ul.CapabilityDirection.extract(
        ul.Variant(small_nnsight, TASK.direct), ul.Variant(post, TASK.direct), aggregate, batch_size=5
    )
    for where in (("local", "local"), (False, "local"), ("local", False)):
        pair = ul.Variant(small_nnsight, TASK.direct, remote=where[0]), ul.Variant(post, TASK.direct, remote=where[1])
        found = ul.CapabilityDirection.extract(*pair, aggregate, batch_size=5)
        assert error(found.vectors, expected.vectors) < 1e-5


def test_contrasts_come_back_whole_where_the_axes_hold_them(small_nnsight: Any) -> None:
    pair = local(small_nnsight, TASK.direct), local(small_nnsight, TASK.think)
    plain = ul.Variant(small_nnsight, TASK.direct), ul.Variant(small_nnsight, TASK.think)
    assert error(Contrast.capture(*pair).differences, Contrast.capture(*plain).differences) < 1e-5


def test_axes_that_do_not_hold_everything_are_reported(
    small_nnsight: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read, "_settings", lambda variant: ul.Remote(axes=2))
    pair = local(small_nnsight, TASK.direct), local(small_nnsight, TASK.think)
    Contrast.capture(*pair)
    assert "2 axes were returned; they hold" in caplog.text
    assert "ask for more with Remote(axes=...)" in caplog.text


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("sides", [("local", "local"), ("local", False), (False, "local")])
def test_maps_are_those_of_the_states(
    large_nnsight: Any, small_nnsight: Any, method: Any, sides: tuple[str | bool, str | bool]
) -> None:
    """More tokens than the models are wide; each side may run elsewhere."""
    settings: dict[str, Any] = {"rank": 12, "centered": True, "positions": "all", "method": method}
    plain = ul.Variant(large_nnsight, TEXT), ul.Variant(small_nnsight, TEXT)
    placed = ul.Variant(large_nnsight, TEXT, remote=sides[0]), ul.Variant(small_nnsight, TEXT, remote=sides[1])
    expected = ul.SubspaceAligner(**settings).fit(*plain)
    found = ul.SubspaceAligner(**settings).fit(*placed)
    assert found.n_tokens == expected.n_tokens
    for b in expected.layer_map:
        assert error(found.map(b), expected.map(b)) < (1e-3 if method == "cca" else 1e-4)  # whitening blows rounding up


def test_the_papers_map_and_its_means_come_back(large_nnsight: Any, small_nnsight: Any, tmp_path: Path) -> None:
    """Uncentered, last token; in one request and in several, whose factors are merged."""
    expected = ul.SubspaceAligner(8).fit(ul.Variant(large_nnsight, TEXT), ul.Variant(small_nnsight, TEXT))
    sides = local(large_nnsight, TEXT), local(small_nnsight, TEXT)
    for found in (
        ul.SubspaceAligner(8).fit(*sides, batch_size=5),
        ul.SubspaceAligner(rank=8).fit(*sides, batch_size=1, resume=tmp_path),
    ):
        assert error(found.map(2), expected.map(2)) < 1e-4
        assert error(found.maps.target_mean, expected.maps.target_mean) < 1e-5


@pytest.mark.parametrize("settings", [{"rank": 8}, {"rank": 16, "centered": True, "positions": "all"}])
def test_maps_in_several_requests_are_those_of_one(
    large_nnsight: Any, small_nnsight: Any, settings: dict[str, Any], tmp_path: Path
) -> None:
    """Each part has more tokens than the rank: a part ships the axes that merging needs, not the rank's."""
    texts = zoo.text(n=192)
    sides = local(large_nnsight, texts), local(small_nnsight, texts)
    expected = ul.SubspaceAligner(**settings).fit(ul.Variant(large_nnsight, texts), ul.Variant(small_nnsight, texts))
    found = ul.SubspaceAligner(**settings).fit(*sides, resume=tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) == 6
    for b in expected.layer_map:
        assert error(found.map(b), expected.map(b)) < 1e-4


def test_parts_of_few_sampled_tokens_are_not_poorer(
    large_nnsight: Any, small_nnsight: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A request that holds three tokens of the sample, or none, still tells the axes of all of its tokens."""
    monkeypatch.setattr(read, "_settings", lambda variant: ul.Remote(positions=60))
    sides = local(large_nnsight, TEXT), local(small_nnsight, TEXT)
    whole = ul.SubspaceAligner(rank=8, centered=True, positions="all").fit(*sides).maps
    monkeypatch.setattr(jobs, "_KEPT_BATCHES", 1)
    parts = ul.SubspaceAligner(rank=8, centered=True, positions="all").fit(*sides, batch_size=1, resume=tmp_path).maps
    assert len(list(tmp_path.glob("*.safetensors"))) == 2 * len(TEXT)
    for b in whole.layer_map:
        assert error(parts.dense(b), whole.dense(b)) < 1e-3


def test_parts_that_were_cut_are_reported(
    large_nnsight: Any, small_nnsight: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setattr(read, "_settings", lambda variant: ul.Remote(axes=4))
    sides = local(large_nnsight, TEXT), local(small_nnsight, TEXT)
    ul.SubspaceAligner(rank=4, centered=True, positions="all").fit(*sides, batch_size=1, resume=tmp_path)
    assert "of the variance of a part, which is merged with others" in caplog.text


def test_a_side_that_runs_here_does_not_overrule_the_servers_settings(small_nnsight: Any) -> None:
    class Elsewhere:
        remote = ul.Remote(positions=20_000, axes=16)

    there: Any = Elsewhere()
    here = ul.Variant(small_nnsight, TEXT)
    with unchecked():
        assert (read.positions_of(there, here), read.axes_of(there, here)) == (20_000, 16)
    assert (read.positions_of(here), read.axes_of(here)) == (4096, 128)


def test_texts_that_do_not_vary_are_refused(large_nnsight: Any, small_nnsight: Any) -> None:
    texts = [TEXT[0]] * 6
    with pytest.raises(ul.InvalidInput, match="source layer 0 do not vary over the calibration tokens"):
        ul.SubspaceAligner(4, positions="last").fit(local(large_nnsight, texts), local(small_nnsight, texts))


def test_keys_of_requests_tell_all_that_decides_the_result(small_nnsight: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def key(layers: Sequence[int] = (0, 1), prompts: Sequence[str] = TASK.direct, half: bool = False, axes: int = 4) -> str:
        monkeypatch.setattr(read, "_settings", lambda variant: ul.Remote(half=half))
        pair = local(small_nnsight, prompts), local(small_nnsight, TASK.think)
        readings, _ = differences.difference_readings(*pair, layers, -1, axes, How(5))
        return readings[0].requests()[0].key

    keys = [key(), key(layers=(0, 2)), key(prompts=TASK.reverse), key(half=True), key(axes=3)]
    monkeypatch.setattr(small_nnsight, "_remoteable_get_env", lambda: {"peft": "an/adapter"})
    monkeypatch.setattr(NdifServer, "told", {"env": small_nnsight._remoteable_get_env()})
    keys.append(key())
    assert len(set(keys)) == 6


def test_a_choice_by_cross_validation_is_the_same(large_nnsight: Any, small_nnsight: Any) -> None:
    settings: dict[str, Any] = {"rank": "cv", "centered": True, "positions": "all", "method": "ridge", "ridge": "cv"}
    expected = ul.SubspaceAligner(**settings).fit(ul.Variant(large_nnsight, TEXT), ul.Variant(small_nnsight, TEXT))
    found = ul.SubspaceAligner(**settings).fit(local(large_nnsight, TEXT), local(small_nnsight, TEXT))
    assert found.cross_validation is not None
    assert expected.cross_validation is not None
    assert found.cross_validation.best == expected.cross_validation.best


def test_a_sample_of_the_tokens_gives_nearly_the_same_map(
    large_nnsight: Any, small_nnsight: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Axes know all tokens; the coupling is least squares over the sample, the same tokens on both sides."""
    texts = zoo.text(n=100)
    plain = ul.Variant(large_nnsight, texts), ul.Variant(small_nnsight, texts)
    expected = ul.SubspaceAligner(rank=16, centered=True, positions="all").fit(*plain)
    monkeypatch.setattr(read, "_settings", lambda variant: ul.Remote(positions=400))
    sides = local(large_nnsight, texts), local(small_nnsight, texts)
    found = ul.SubspaceAligner(rank=16, centered=True, positions="all").fit(*sides)
    again = ul.SubspaceAligner(rank=16, centered=True, positions="all").fit(*sides)
    assert found.n_tokens == expected.n_tokens == sum(map(len, all_tokens(plain[0], False)))
    direction = ul.CapabilityDirection.extract(ul.Variant(large_nnsight, TASK.direct), ul.Variant(large_nnsight, TASK.think))
    cosine = found.transport(direction).cosine(expected.transport(direction))
    assert bool((cosine > 0.98).all())
    assert bool((cosine < 0.99999).any())  # it is a sample
    assert torch.equal(found.map(2), again.map(2))  # and a seeded one


def test_sinks_are_not_dealt_with_on_a_server(large_nnsight: Any, small_nnsight: Any) -> None:
    with pytest.raises(ul.InvalidInput, match="sinks='drop' was given for a model on a server, where sinks are always kept"):
        ul.SubspaceAligner(8, sinks="drop").fit(local(large_nnsight, TEXT), local(small_nnsight, TEXT))


def test_what_is_resumed_must_run_on_a_server(small: Any, tmp_path: Path) -> None:
    pair = ul.Variant(small, TASK.direct), ul.Variant(small, TASK.think)
    with pytest.raises(ul.InvalidInput, match="resume= and wait= are for models on a server"):
        ul.CapabilityDirection.extract(*pair, resume=tmp_path / "kept")
    with pytest.raises(ul.InvalidInput, match="resume= and wait= are for models on a server"):
        ul.generate(small, TASK.direct, wait=False)
    assert not (tmp_path / "kept").exists()


def test_a_model_is_not_run_here_and_there_at_once(small_nnsight: Any) -> None:
    with pytest.raises(ul.InvalidInput, match="small-base should run on a server for one variant and here for the other; give"):
        ul.CapabilityDirection.extract(ul.Variant(small_nnsight, TASK.direct), local(small_nnsight, TASK.think))


def test_a_layer_that_is_not_finite_is_named(small_nnsight: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    spoiled = torch.ones(2, 64, dtype=torch.float64)
    spoiled[1, 3] = torch.nan
    monkeypatch.setattr(Mean, "result", lambda self: {"mean": spoiled})
    variant = local(small_nnsight, TASK.direct)
    with pytest.raises(ul.InvalidInput, match="the residual stream of small-base is not finite at layer 2"):
        differences.mean_state(variant, [0, 2], -1, How(8))


def test_settings_of_a_server_are_checked() -> None:
    with pytest.raises(ul.InvalidInput, match=r"Remote\(deadline=-1\) was given; a positive number is needed"):
        ul.Remote(deadline=-1)
    with pytest.raises(ul.InvalidInput, match="the host 'here' was given; give its URL, .* or remote=True for NDIF"):
        ul.Remote("here")
    assert remote_of("ndif") == remote_of(True) == ul.Remote()
    with unchecked(), pytest.raises(ul.InvalidInput, match="the host 'http:/x' was given"):
        ul.Variant(zoo.load("small-base", "nnsight"), ["Q"], remote="http:/x")


def placed(model: Any, where: Any) -> Any:
    """As far as a variant says where its model runs."""
    return SimpleNamespace(model=model, remote=where)


def test_a_difference_is_taken_where_one_model_runs_and_nowhere_else() -> None:
    one, other, model, post = "http://one", "http://other", object(), object()
    with unchecked():
        assert read.together(placed(model, one), placed(model, one))
        assert not read.together(placed(model, False), placed(model, False))
        assert not read.together(placed(model, one), placed(model, other))
        assert not read.together(placed(model, one), placed(model, "local"))
        assert not read.together(placed(model, one), placed(post, one))


def test_what_several_requests_gave_comes_in_the_prompts_order(small_nnsight: Any, tmp_path: Path) -> None:
    """Requests hold the longest prompts first."""
    tokens = read.Picked(local(small_nnsight, TEXT), one_token(local(small_nnsight, TEXT)))
    expected, how = read.at_position(ul.Variant(small_nnsight, TEXT), [2]), How(1, resume=tmp_path)
    reading = read.Reading([tokens], [2], read.factoring(tokens.variant, 24, True), read.in_order(tokens.chosen), how)
    assert error(read.factors([reading], 24, True)[0][0].states(True), expected[0]) < 1e-4
    assert error(read.states(tokens, [2], how), expected) < 1e-5
    assert len(list(tmp_path.glob("*.safetensors"))) == 2 * 3


def test_settings_of_two_servers_are_the_most_axes_and_the_fewest_positions() -> None:
    settings = ul.Remote("http://one", axes=16, positions=20_000), ul.Remote("http://other", axes=32, positions=5_000)
    pair = [placed(object(), remote) for remote in settings]
    with unchecked():
        assert (read.axes_of(*pair), read.positions_of(*pair)) == (32, 5_000)


def test_no_more_axes_are_asked_for_than_there_are_tokens_or_dimensions(small_nnsight: Any) -> None:
    make = read.factoring(local(small_nnsight, TEXT), 50, True)
    assert [vars(make(n, n))["axes"] for n in (4, 55, 100)] == [4, 50, 50]
    assert vars(read.factoring(local(small_nnsight, TEXT), 500, True)(300, 300))["axes"] == 64


def test_keys_tell_the_model_the_tokens_and_their_sign(small_nnsight: Any) -> None:
    """The server alone does not tell models that run here as on a server."""

    def key(model: Any = small_nnsight, position: int = -1, sign: int = 1, held: bool = True) -> str:
        variant = local(model, TASK.direct)
        chosen = one_token(variant, position)
        places = read.in_order(chosen) if held else [torch.tensor([-1])] * len(chosen)
        reading = read.Reading([read.Picked(variant, chosen, sign)], [0], lambda _, n: Mean(n), places, How(5))
        return reading.requests()[0].key

    post = zoo.load("small-post", "nnsight")
    assert len({key(), key(model=post), key(position=-2), key(sign=-1), key(held=False)}) == 5


def test_the_layer_that_is_held_worst_decides_what_is_said(caplog: pytest.LogCaptureFixture) -> None:
    states = acts(6, 9, 6)

    def factors(axes: int) -> LayerFactors:
        return of_result(reduced(LeadingAxes(axes, 9, 9, True, half=False), states, torch.arange(9), 9), 9)[0]

    read.warn_of_share([factors(6), factors(6)], "of it")
    assert not caplog.text
    read.warn_of_share([factors(2), factors(6)], "of it")
    assert "axes" in caplog.text


def test_factors_that_are_not_finite_are_named(small_nnsight: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    original = LeadingAxes.result

    def spoiled(reduction: LeadingAxes) -> dict[str, Tensor]:
        found = original(reduction)
        found["energy"][1] = torch.inf
        return found

    monkeypatch.setattr(LeadingAxes, "result", spoiled)
    pair = local(small_nnsight, TASK.direct), local(small_nnsight, TASK.think)
    with pytest.raises(ul.InvalidInput, match="layer 2"):
        ul.CapabilityDirection.extract(*pair, "pca", layers=[0, 2])
