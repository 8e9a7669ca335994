"""What maps are fitted from: held or streamed it is the same; which tokens belong together; sinks; cross-validation."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import unlock_lens as ul
from tests.checks import unchecked
from unlock_lens import zoo
from unlock_lens.core import paired, read
from unlock_lens.core.alignment import SubspaceAligner
from unlock_lens.core.read import How
from unlock_lens.core.tokens import Positions, paired_tokens, pairs_by_end
from unlock_lens.method import calibrate
from unlock_lens.method.align import METHODS
from unlock_lens.method.calibrate import Factored, Held, Layers, SinkRule, Summed, held_bytes, summed_bytes
from unlock_lens.method.crossval import CrossValidation, held_out, rank_grid, splits
from unlock_lens.method.reduce import LayerFactors, LeadingAxes, of_result

TEXT = zoo.text(40, seed=2)


def acts(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def reader(large: Any, small: Any, texts: list[str] = TEXT, sinks: Any = "keep", batch_size: int = 7) -> paired.Reader:
    source, target = ul.Variant(large, texts), ul.Variant(small, texts)
    tokens = paired_tokens(source, target, "all")
    return paired.Reader(
        source=source,
        target=target,
        layer_map={0: 0, 1: 1, 2: 3},
        source_tokens=tokens[0],
        target_tokens=tokens[1],
        centered=True,
        sinks=sinks,
        folds=1,
        rank=None,
        leading_axes=True,
        how=How(batch_size, resume=None, wait=True, progress=False),
    )


@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("method", sorted(METHODS))
def test_streamed_maps_are_those_of_states_at_hand(large: Any, small: Any, centered: bool, method: Any) -> None:
    """More tokens than the models are wide: `fit` keeps sums alone, `fit_activations` is given all states."""
    texts = ul.Variant(large, TEXT), ul.Variant(small, TEXT)
    states = read.at_all_tokens(texts[0]), read.at_all_tokens(texts[1])
    streamed = SubspaceAligner(12, centered, "all", method=method).fit(*texts, batch_size=7)
    held = SubspaceAligner(12, centered, "all", method=method).fit_activations(*states)
    assert streamed.n_tokens == held.n_tokens
    for b in streamed.layer_map:
        error = (streamed.map(b) - held.map(b)).norm() / held.map(b).norm()
        assert float(error) < (1e-3 if method == "cca" else 1e-4)  # whitening blows rounding up
    torch.testing.assert_close(streamed.maps.target_mean, held.maps.target_mean)


def test_tokens_are_held_or_summed_whichever_takes_fewer_bytes(large: Any, small: Any) -> None:
    assert isinstance(reader(large, small).run(), Summed)
    assert isinstance(reader(large, small, TEXT[:4]).run(), Held)
    layer_map = {0: 0, 1: 1, 2: 1}
    assert held_bytes(7, layer_map, 96, 64) == 7 * 4 * (2 * 96 + 3 * 64)
    assert summed_bytes(layer_map, 96, 64) == 8 * (2 * 96 * 96 + 3 * (64 * 64 + 96 * 64))


def test_wide_models_hold_more_tokens_than_they_are_wide() -> None:
    """Qwen1.5 14B to 7B on 5,000 tokens: 6 GB of states beside 16 GB of sums."""
    layer_map = {b: 39 * b // 31 for b in range(32)}
    assert held_bytes(5000, layer_map, 5120, 4096) < 0.4 * summed_bytes(layer_map, 5120, 4096)


def test_the_rule_for_sinks_does_not_hang_on_the_batch_size(
    large: Any, small: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With so low a bar that the zoo has sinks: streamed in batches of any size, as many are left out as of held states."""
    monkeypatch.setattr(calibrate, "SINK", 1.5)
    texts = ul.Variant(large, TEXT), ul.Variant(small, TEXT)
    states = read.at_all_tokens(texts[0]), read.at_all_tokens(texts[1])
    held = SubspaceAligner(8, True, sinks="drop", layer_map={0: 0, 1: 1, 2: 3}).fit_activations(states[0], states[1])
    assert 0 < (held.n_tokens or 0) < states[0].shape[1]
    for batch_size in (1, 7, 40):
        caplog.clear()
        assert reader(large, small, sinks="drop", batch_size=batch_size).run().n == held.n_tokens
        assert f"of {states[0].shape[1]} calibration tokens have more than" in caplog.text


def test_sums_do_not_grow_with_the_number_of_tokens() -> None:
    """Bytes after 10 and after 1,000 batches are the same."""
    sums, sizes = Summed({0: 0, 1: 0, 2: 1}, centered=True), list[int]()
    for batch in range(1000):
        sums.add(dict(enumerate(acts(batch, 2, 5, 8))), dict(enumerate(acts(batch + 1, 3, 5, 6))))
        if batch in (9, 999):
            grams = [gram for held in (sums._source, sums._target, sums._cross) for gram in held.values()]  # pyright: ignore[reportPrivateUsage]
            sizes.append(sum(t.nbytes for gram in grams for t in vars(gram).values() if isinstance(t, Tensor)))
    assert sizes[0] == sizes[1] > 0
    assert sums.n == 5000


def test_a_far_mean_costs_no_digits() -> None:
    """States whose mean is a million times their spread."""
    source, target = acts(0, 200, 6) + 1e6, acts(0, 200, 6) @ acts(1, 6, 5)
    sums = Summed({0: 0}, centered=True)
    for rows in torch.arange(200).split(20):
        sums.add({0: source[rows]}, {0: target[rows]})
    found = METHODS["ridge"].fit(sums.pair(0), 6, 0.0)
    x, y = (h.double() - h.double().mean(dim=0) for h in (source, target))
    torch.testing.assert_close(found.left.T @ found.core @ found.right, torch.linalg.lstsq(x, y).solution, rtol=1e-6, atol=1e-6)


def test_sums_over_no_tokens_are_refused() -> None:
    with pytest.raises(ul.InvalidInput, match="no calibration token"):
        Summed({0: 0}, centered=True).pair(0)


def test_unlike_tokenizers_are_paired_by_where_tokens_end() -> None:
    source = [(0, 0), (0, 3), (3, 7), (7, 8)]  # BOS the+ cat+ !
    target = [(0, 1), (1, 3), (3, 5), (5, 7), (7, 8), (8, 8)]  # t+he+ c+at+!, end of text
    assert pairs_by_end(source, target) == [(1, 1), (2, 3), (3, 4)]
    assert pairs_by_end(source, source) == [(0, 0), (1, 1), (2, 2), (3, 3)]
    bytes_of_one_character = [(0, 1), (0, 1), (0, 1), (1, 2)]
    assert pairs_by_end(bytes_of_one_character, [(0, 1), (1, 2)]) == [(2, 0), (3, 1)]
    assert pairs_by_end([(0, 5)], [(0, 2), (2, 4)]) == []


def test_positions_are_counted_back_from_the_last(large: Any, small: Any) -> None:
    variants = ul.Variant(large, TEXT[:3]), ul.Variant(small, TEXT[:3])
    lengths = variants[0].tokens.lengths.tolist()
    meant: dict[Positions, Callable[[int], Sequence[int]]] = {
        "last": lambda n: [n - 1],
        "all": range,
        1: range,
        3: lambda n: [i for i in range(n) if (n - 1 - i) % 3 == 0],
    }
    for positions, expected in meant.items():
        found = paired_tokens(*variants, positions)
        assert [side[i].tolist() for side in found for i in range(3)] == [list(expected(n)) for n in lengths] * 2
    assert paired_tokens(*variants, "all", skip_first=True)[0][0].tolist() == list(range(1, lengths[0]))


def layers_of(states: Tensor) -> Layers:
    return dict(enumerate(states))


def test_a_token_with_a_huge_norm_is_left_out_or_brought_down() -> None:
    source, target = acts(0, 2, 20, 8), acts(1, 3, 20, 6)
    source[1, 4] *= 100
    target[2, 7] *= 100
    sides = layers_of(source), layers_of(target)
    assert bool(SinkRule.of("keep", *sides).kept(*sides).all())
    dropped = SinkRule.of("drop", *sides).kept(*sides)
    assert dropped.nonzero().flatten().tolist() == [i for i in range(20) if i not in (4, 7)]
    white = SinkRule.of("rescale", *sides)
    torch.testing.assert_close(white.tamed(0, 1, source[1])[4].norm(), source[1].norm(dim=-1).median())
    unit = torch.nn.functional.normalize(white.tamed(1, 2, target[2])[7], dim=0)
    torch.testing.assert_close(unit, target[2, 7] / target[2, 7].norm())
    assert torch.equal(white.tamed(0, 0, source[0]), source[0])
    assert bool(white.kept(*sides).all())


@pytest.mark.parametrize("how", ["drop", "rescale"])
def test_one_sink_rules_no_map_where_it_is_dealt_with(how: Any) -> None:
    """A sink that goes elsewhere in the target than the relation says: with it rank 1 is the sink's own axis, without not."""
    truth = acts(9, 8, 8)
    source = acts(0, 1, 60, 8)
    target = source @ truth
    source[0, 0], target[0, 0] = 1000 * acts(3, 8), 1000 * acts(4, 8)
    clean = SubspaceAligner(8, True).fit_activations(source[:, 1:], target[:, 1:]).map(0)

    def error(dealt: Any) -> float:
        return float(
            (SubspaceAligner(8, True, sinks=dealt).fit_activations(source, target).map(0) - clean).norm() / clean.norm()
        )

    assert error("keep") > 2 * error(how)
    assert error("drop") < 1e-3


@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("method", sorted(METHODS))
def test_the_curve_is_what_fitting_and_looking_gives(method: Any, centered: bool) -> None:
    """Against maps fitted on all folds but one, and the residuals of that one, by way of states."""
    source, target = acts(0, 1, 50, 7), acts(1, 1, 50, 5)
    target += source @ acts(2, 7, 5)
    ridge = 0.1 if METHODS[method].default_ridge is not None else None
    found = SubspaceAligner("cv", centered, method=method, ridge=ridge).fit_activations(source, target).cross_validation
    assert found is not None
    assert found.ranks == rank_grid(7 if method == "ridge" else 5)  # ridge counts axes of the source alone
    missed, spread = torch.zeros(len(found.ranks)), 0.0
    for k in range(5):
        out = torch.arange(50) // 10 == k
        kept = source[:, ~out], target[:, ~out]
        m_s, m_t = (h[0].mean(dim=0) for h in kept)
        x, y = (source[0, out] - m_s, target[0, out] - m_t) if centered else (source[0, out], target[0, out])
        for i, rank in enumerate(found.ranks):
            fitted = SubspaceAligner(rank, centered, method=method, ridge=ridge).fit_activations(*kept)
            missed[i] += (y - x @ fitted.map(0)).square().sum()
        spread += float((target[0, out] - m_t).square().sum())
    torch.testing.assert_close(found.r2[0, 0].float(), 1 - missed / spread, rtol=1e-3, atol=1e-3)


def test_cross_validation_finds_the_rank_and_the_need_of_a_penalty() -> None:
    """A relation of rank 3 in noise, more axes than tokens can tell: more rank or less ridge would fit the noise."""
    source = acts(0, 1, 40, 30)
    target = source @ (acts(1, 30, 3) @ acts(2, 3, 20)) + 6 * acts(3, 1, 40, 20)
    aligner = SubspaceAligner("cv", True, method="rrr", ridge="cv").fit_activations(source, target)
    assert aligner.cross_validation is not None
    rank, ridge = aligner.cross_validation.best
    assert 1 <= rank <= 4
    assert ridge >= 0.01
    assert (aligner.maps.rank, aligner.ridge_) == (rank, ridge)
    frame = aligner.cross_validation.frame()
    assert list(frame.columns) == ["layer", "ridge", "rank", "r2"]
    best = frame.loc[frame.r2.idxmax()]
    assert (best["rank"], best["ridge"]) == (rank, ridge)


def test_layers_that_span_little_do_not_bound_the_others() -> None:
    """Layer 0 of rank 2: the grid goes up to what the other layer spans, and a full rank stays full beside a chosen ridge."""
    source, target = acts(0, 2, 60, 12), acts(1, 2, 60, 9)
    source[0] = acts(2, 60, 2) @ acts(3, 2, 12)
    target += source @ acts(4, 2, 12, 9)
    chosen = SubspaceAligner("cv", True).fit_activations(source, target).cross_validation
    assert chosen is not None
    assert chosen.ranks == rank_grid(9)
    assert SubspaceAligner(None, True, method="ridge", ridge="cv").fit_activations(source, target).maps.spanned == [2, 12]
    wide = SubspaceAligner("cv", True, method="ridge").fit_activations(source, target).cross_validation
    assert wide is not None
    assert wide.ranks == rank_grid(12)


def test_half_precision_sinks_are_measured_in_single() -> None:
    """A norm beyond float16's largest number."""
    states = acts(0, 1, 20, 64).half(), acts(1, 1, 20, 6).half()
    states[0][0, 3] = 30000.0
    white = SinkRule.of("rescale", layers_of(states[0]), layers_of(states[1])).tamed(0, 0, states[0][0])
    assert float(white[3].float().norm()) == pytest.approx(float(states[0][0].float().norm(dim=-1).median()), rel=1e-2)


def test_a_rank_alone_or_a_ridge_alone_is_chosen() -> None:
    source, target = acts(0, 2, 60, 8), acts(1, 2, 60, 6)
    rank_alone = SubspaceAligner("cv", True).fit_activations(source, target).cross_validation
    ridge_alone = SubspaceAligner(4, True, method="rrr", ridge="cv").fit_activations(source, target).cross_validation
    whole = SubspaceAligner(None, True, method="ridge", ridge="cv").fit_activations(source, target)
    assert rank_alone is not None
    assert ridge_alone is not None
    assert (len(rank_alone.ranks), len(rank_alone.ridges)) == (len(rank_grid(6)), 1)
    assert (ridge_alone.ranks, len(ridge_alone.ridges)) == ((4,), 6)
    assert whole.maps.rank == 8  # every axis of the source
    assert rank_grid(20) == (1, 2, 3, 4, 6, 8, 12, 16, 20)


def test_the_curve_streams_and_is_kept(large: Any, small: Any, tmp_path: Any) -> None:
    """Folds are of whole texts; streamed and held they are the same; a saved aligner still has its curve."""
    texts = ul.Variant(large, TEXT), ul.Variant(small, TEXT)
    aligner = SubspaceAligner("cv", True, "all", method="rrr").fit(*texts, batch_size=7)
    assert aligner.cross_validation is not None
    counts = [len(tokens) for tokens in paired_tokens(*texts, "all")[0]]
    fold = torch.cat([torch.full((n,), i * 5 // len(counts)) for i, n in enumerate(counts)])
    h_s, h_t = (read.at_all_tokens(v) for v in texts)
    held = Held({2: 3}, {3: h_s[3]}, {2: h_t[2]}, fold, centered=True).scores(2)
    r2 = held_out(splits(held, centered=True), "rrr", aligner.cross_validation.ranks, [1e-3]).r2
    torch.testing.assert_close(aligner.cross_validation.r2[2], r2, rtol=1e-4, atol=1e-5)
    aligner.save(tmp_path / "a.safetensors")
    loaded = SubspaceAligner.load(tmp_path / "a.safetensors")
    assert isinstance(loaded.cross_validation, CrossValidation)
    assert loaded.cross_validation.best == aligner.cross_validation.best
    assert torch.equal(loaded.cross_validation.r2, aligner.cross_validation.r2)
    assert repr(loaded) == repr(aligner)
    assert torch.equal(loaded.map(2), aligner.map(2))


def test_rank_auto_covers_what_varies_where_prompts_end(large: Any, small: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Prompts of both sides vary less at their ends than at all tokens; the direction arrives at the smaller rank."""
    task = zoo.running_sum(n=60, seed=8)
    texts = [prompt for pair in zip(task.direct, task.think, strict=True) for prompt in pair]
    found, wide = (SubspaceAligner(rank).fit(large, small, texts, batch_size=60) for rank in ("auto", "cv"))
    assert found.cross_validation is not None
    assert found.rank_ < wide.rank_
    assert found.cross_validation.share > 0.9
    assert f"rank {found.rank_} predicts" in capsys.readouterr().err
    direction = ul.CapabilityDirection.extract(ul.Variant(large, task.direct), ul.Variant(large, task.think))
    own = ul.CapabilityDirection.extract(ul.Variant(small, task.direct), ul.Variant(small, task.think))
    assert float(found.transport(direction).cosine(own).mean()) > 0.9


def test_a_map_that_has_seen_no_unlocked_prompt_is_warned_of(large: Any, small: Any) -> None:
    task = zoo.running_sum(n=20, seed=8)
    direction = ul.CapabilityDirection.extract(ul.Variant(large, task.direct), ul.Variant(large, task.think))
    blind = SubspaceAligner(8).fit(large, small, task.direct)
    with pytest.warns(UserWarning, match="unlocked"):
        blind.transport(direction)
    answered = [f"{prompt} S 1" for prompt in task.think]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SubspaceAligner(8).fit(large, small, answered).transport(direction)
        SubspaceAligner(8, positions="last").fit(large, small, [*task.direct, *task.think]).transport(direction)
    with pytest.warns(UserWarning, match="unlocked"):  # the last tokens are those of the answers
        SubspaceAligner(8, positions="last").fit(large, small, answered).transport(direction)


def test_the_mean_part_is_projected_out(large: Any, small: Any) -> None:
    texts = ul.Variant(large, TEXT), ul.Variant(small, TEXT)
    direction = ul.CapabilityDirection(acts(0, 4, 96), (0, 1, 2, 3))
    plain = SubspaceAligner(12, True, "all").fit(*texts)
    without = SubspaceAligner(12, True, "all", without_mean=True).fit(*texts)
    means = plain.maps.target_mean
    found, whole = (torch.cosine_similarity(a.transport(direction).vectors, means, dim=1) for a in (without, plain))
    torch.testing.assert_close(found, torch.zeros(3), rtol=0, atol=1e-5)
    assert float(whole.abs().min()) > 1e-3


def test_layers_that_are_not_mapped_are_not_read(large: Any, small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []
    original = read.run_pass

    def counted(variant: Any, prompts: Any, one: Any, layers: Any, reduction: Any) -> None:
        seen.append(tuple(layers))
        original(variant, prompts, one, layers, reduction)

    monkeypatch.setattr(read, "run_pass", counted)
    SubspaceAligner(4, True, "all", layer_map={1: 2}).fit(ul.Variant(large, TEXT[:10]), ul.Variant(small, TEXT[:10]))
    assert set(seen) == {(2,), (1,)}


def test_a_map_that_predicts_nothing_is_reported(large: Any, small: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Of unrelated tokens; and of texts in another order, which count as many tokens."""
    SubspaceAligner("cv", True).fit_activations(acts(0, 1, 50, 8), acts(1, 1, 50, 6))
    assert "the map carries nothing" in caplog.text
    caplog.clear()
    prompts = zoo.running_sum(n=6).direct
    SubspaceAligner(4, positions="all").fit(ul.Variant(large, prompts), ul.Variant(small, prompts[::-1]))
    assert "6 of 6 texts differ between source and target; their tokens are paired by position" in caplog.text


def test_bad_calibrations_are_refused(large: Any, small: Any) -> None:
    with pytest.raises(ul.InvalidInput, match="needs calibration tokens from at least two texts"):
        SubspaceAligner("cv", centered=False).fit_activations(acts(0, 2, 1, 8), acts(1, 2, 1, 6))
    with unchecked(), pytest.raises(ul.InvalidInput, match="9 source and 8 target tokens"):
        SubspaceAligner("cv").fit_activations(acts(0, 2, 9, 8), acts(1, 2, 8, 6))
    constant = torch.full((2, 300, 8), 0.1)
    for centered, states in ((True, constant), (False, torch.zeros(2, 300, 8))):
        with pytest.raises(ul.InvalidInput, match="activations of source layer 0 do not vary over the calibration tokens"):
            SubspaceAligner(2, centered).fit_activations(states, acts(1, 2, 300, 6))
    with pytest.raises(ul.InvalidInput, match="activations of source layer 0 do not vary"):
        SubspaceAligner(2, True, "all").fit(ul.Variant(large, ["Q"] * 200), ul.Variant(small, ["Q"] * 200))
    for wrong, told in ((acts(0, 8, 6), r"shape \[8, 6\]"), ([[1.0]], "list")):
        with unchecked(), pytest.raises(ul.InvalidInput, match=f"source activations of {told} were given; a torch tensor"):
            SubspaceAligner(2).fit_activations(wrong, acts(1, 2, 8, 6))  # pyright: ignore[reportArgumentType]
    with unchecked(), pytest.raises(ul.InvalidInput, match="layer_map is a list; give {target layer: source layer}"):
        SubspaceAligner(2, layer_map=[0, 1])  # pyright: ignore[reportArgumentType]
    with unchecked(), pytest.raises(ul.InvalidInput, match="source is a TransformerBridge; give Variant"):
        SubspaceAligner(2).fit(large, small)
    with pytest.raises(ul.InvalidInput, match="not fitted yet"):
        _ = SubspaceAligner(4, method="rrr", ridge="cv").ridge_
    with pytest.raises(ul.InvalidInput, match="batch_size 0 was given"):
        SubspaceAligner(2, True, "all").fit(ul.Variant(large, TEXT), ul.Variant(small, TEXT), batch_size=0)


@pytest.mark.parametrize("sinks", ["keep", "drop"])
def test_the_sample_beside_the_sums_is_of_all_texts_with_their_folds(
    large: Any, small: Any, monkeypatch: pytest.MonkeyPatch, sinks: Any
) -> None:
    """No more tokens than the sums have bytes: each with its states on both sides, the fold of its text, and the sums' rule."""
    monkeypatch.setattr(paired, "_SMALL", 0)
    monkeypatch.setattr(calibrate, "SINK", 1.5)
    asked = replace(reader(large, small, sinks=sinks), folds=5)
    sums = asked.run()
    assert isinstance(sums, Summed)
    assert sums.sample is not None
    n = len(sums.sample.fold)
    drawn = (torch.cat(list(asked._sample(n))) >= 0).nonzero().flatten()  # pyright: ignore[reportPrivateUsage]
    text = torch.arange(len(TEXT)).repeat_interleave(asked.source.tokens.lengths)
    assert n == len(drawn) < len(text)
    assert int(drawn[-1]) >= n  # not the first tokens alone
    assert torch.equal(sums.sample.fold, (text * 5 // len(TEXT))[drawn])
    torch.testing.assert_close(sums.sample.source[3], read.at_all_tokens(asked.source)[3, drawn])
    torch.testing.assert_close(sums.sample.target[2], read.at_all_tokens(asked.target)[2, drawn])
    assert (sums.sample.n < n) == (sinks == "drop")


def test_sinks_are_brought_down_by_the_norms_of_their_own_side(large: Any, small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Maps fitted in a stream equal those fitted on states in memory, also where sinks are rescaled."""
    monkeypatch.setattr(calibrate, "SINK", 1.5)
    streamed = reader(large, small, sinks="rescale")
    states = read.at_all_tokens(streamed.source), read.at_all_tokens(streamed.target)
    how: dict[str, Any] = {"sinks": "rescale", "layer_map": streamed.layer_map}
    held = SubspaceAligner(8, True, **how).fit_activations(*states)
    kept = SubspaceAligner(8, True, layer_map=streamed.layer_map).fit_activations(*states)
    for b in streamed.layer_map:
        pair = METHODS["unlock"].fit(streamed.run().pair(b), 8, 0.0)
        found = (pair.left.T @ pair.core @ pair.right).float()
        assert float((found - held.map(b)).norm() / held.map(b).norm()) < 1e-4
        assert float((kept.map(b) - held.map(b)).norm() / held.map(b).norm()) > 1e-2


def test_folds_are_of_whole_texts_where_states_are_held(large: Any, small: Any) -> None:
    asked = replace(reader(large, small, TEXT[:4]), folds=2)
    held = asked.run()
    assert isinstance(held, Held)
    assert torch.equal(held.fold, torch.tensor([0, 0, 1, 1]).repeat_interleave(asked.source.tokens.lengths))


def test_a_servers_sample_is_of_all_texts_with_their_folds(small_nnsight: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read, "_settings", lambda variant: ul.Remote(positions=60))
    large_nnsight = zoo.load("large-base", "nnsight")
    sides = (ul.Variant(model, TEXT, remote="local") for model in (large_nnsight, small_nnsight))
    asked = replace(reader(large_nnsight, small_nnsight), source=next(sides), target=next(sides), folds=5)
    found = asked.run()
    assert isinstance(found, Factored)
    drawn = (torch.cat(list(asked._sample(60))) >= 0).nonzero().flatten()  # pyright: ignore[reportPrivateUsage]
    text = torch.arange(len(TEXT)).repeat_interleave(asked.source.tokens.lengths)
    assert torch.equal(found.fold, (text * 5 // len(TEXT))[drawn])


def test_usual_norms_are_those_of_texts_from_first_to_last(large: Any, small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paired, "SAMPLE", 2)
    asked = reader(large, small, sinks="drop")
    ends = ul.Variant(large, [TEXT[0], TEXT[-1]]), ul.Variant(small, [TEXT[0], TEXT[-1]])
    states = [read.at_all_tokens(variant) for variant in ends]
    typical = asked._rule().typical  # pyright: ignore[reportPrivateUsage]
    assert typical[0][3] == pytest.approx(float(states[0][3].norm(dim=-1).median()), rel=1e-5)
    assert typical[1][2] == pytest.approx(float(states[1][2].norm(dim=-1).median()), rel=1e-5)


def test_a_token_that_is_left_out_is_in_no_fold() -> None:
    source, target = acts(0, 1, 20, 8), acts(1, 1, 20, 6)
    source[0, 4] *= 1000
    sides = layers_of(source), layers_of(target)
    held = Held({0: 0}, *sides, torch.arange(20) // 4, True, SinkRule.of("drop", *sides))
    assert held.scores(0).fold.tolist() == [i // 4 for i in range(20) if i != 4]


def test_a_small_sample_bounds_the_axes_and_says_where_it_is_few(
    large: Any, small: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Least squares over all axes want several tokens for each."""
    monkeypatch.setattr(read, "_settings", lambda variant: ul.Remote(positions=60))
    asked = replace(reader(large, small), leading_axes=False)
    assert asked.readings()[1] == 15
    assert not caplog.text
    assert replace(asked, rank=20).readings()[1] == 20
    assert "rank 20" in caplog.text


def test_a_map_is_as_exact_as_the_coarser_of_both_sides() -> None:
    sides = acts(0, 20, 8), acts(1, 20, 6)

    def dtype(*kinds: torch.dtype) -> torch.dtype:
        source, target = ({0: h.to(kind)} for h, kind in zip(sides, kinds, strict=True))
        return Held({0: 0}, source, target, torch.zeros(20, dtype=torch.long), True).dtype

    assert dtype(torch.float64, torch.float64) == torch.float64
    assert dtype(torch.float64, torch.float32) == dtype(torch.float32, torch.float64) == torch.float32


def test_a_target_that_does_not_vary_is_named() -> None:
    source, target = acts(0, 20, 6), torch.ones(20, 5)
    sums = Summed({0: 0}, centered=True)
    sums.add({0: source}, {0: target})
    sides: list[LayerFactors] = []
    for states in (source, target):
        reduction = LeadingAxes(5, 20, 20, centered=True, half=False)
        reduction.add(0, states, torch.arange(20), 1)
        sides += of_result(reduction.result(), 20)
    factored = Factored({0: 0}, {0: sides[0]}, {0: sides[1]}, torch.zeros(20, dtype=torch.long))
    for found in (sums, factored):
        with pytest.raises(ul.InvalidInput, match="target layer 0"):
            found.pair(0)


def test_a_norm_of_just_the_bar_is_not_a_sink() -> None:
    states = torch.eye(8)[:5]
    states[4] *= calibrate.SINK
    assert bool(SinkRule.of("drop", {0: states}, {0: states}).kept({0: states}, {0: states}).all())
