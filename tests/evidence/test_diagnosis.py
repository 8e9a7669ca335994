"""The forecast's numbers where the truth is known, its words, and that it tells good calibrations of the zoo from bad ones."""

from __future__ import annotations

import io
import json
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

import unlock_lens as ul
from tests.checks import unchecked
from unlock_lens import zoo
from unlock_lens.core import read
from unlock_lens.core.contrast import Contrast
from unlock_lens.core.direction import Provenance
from unlock_lens.evidence import controls
from unlock_lens.evidence.diagnosis import Diagnosis, diagnose, show
from unlock_lens.evidence.probe import Probe
from unlock_lens.hosts.identity import ModelIdentity

TASK = zoo.running_sum(n=32, seed=5)
TEXT = zoo.text(n=300, seed=5)
MODEL = ModelIdentity("made", 2, 8)


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def made(d: int = 8, rank: int = 8, n: int = 200) -> tuple[ul.SubspaceAligner, torch.Tensor, torch.Tensor]:
    """An exact linear map from a source of two layers to a target of two, and the states that it was fitted on."""
    source = drawn(0, 2, n, d)
    target = source @ drawn(1, 2, d, d)
    return ul.SubspaceAligner(rank, centered=True).fit_activations(source, target), source, target


def made_contrast(differences: torch.Tensor) -> Contrast:
    return Contrast(differences, tuple(range(len(differences))), MODEL, Provenance())


def assert_alike(one: Diagnosis, other: Diagnosis) -> None:
    """The same forecast, up to the order of sums."""
    assert (one.rank, one.ability) == (other.rank, other.ability)
    assert one.score == pytest.approx(other.score, abs=1e-4)
    for pair in zip(one.layers, other.layers, strict=True):
        found, same = ({name: value for name, value in asdict(layer).items() if value is not None} for layer in pair)
        assert found == pytest.approx(same, rel=1e-4, abs=1e-4)


def test_stability() -> None:
    aligner, source, _ = made()
    direction = ul.CapabilityDirection(source[:, 0], (0, 1))
    alike = source[:, :1].expand(2, 10, 8).clone()
    found = diagnose(direction, aligner, contrast=made_contrast(alike)).layers
    assert [layer.stability for layer in found] == pytest.approx([1, 1])
    loose = diagnose(direction, aligner, contrast=made_contrast(drawn(3, 2, 10, 8)))
    assert all((layer.stability or 0) < 0.9 for layer in loose.layers)
    assert any("more prompt pairs" in reason for reason in loose.reasons)


def test_layers_print_as_a_table_and_become_a_frame() -> None:
    aligner, source, target = made()
    found = diagnose(ul.CapabilityDirection(source[:, 0], (0, 1)), aligner, source_acts=source, target_acts=target)
    head, *rows = repr(found.layers).splitlines()
    assert head.split()[:3] == ["layer", "cover", "agree"]
    assert [row.split()[0] for row in rows] == ["0>0", "1>1"]
    assert "own" not in head  # was not measured
    assert repr(found) == str(found)
    assert found.frame().index.tolist() == [0, 1]
    assert found.frame()["coverage"].tolist() == [layer.coverage for layer in found.layers]
    assert found.layers == Diagnosis.from_json(json.loads(json.dumps(found.to_json()))).layers


# Forecasts on constructed data


def test_an_exact_map_is_a_good_forecast() -> None:
    aligner, source, target = made()
    direction = ul.CapabilityDirection(source[:, 0], (0, 1))
    own = aligner.transport(direction)
    found = diagnose(direction, aligner, own=own, ability=1.0, source_acts=source, target_acts=target)
    assert found.score > 0.95
    assert "map is good" in found.verdict
    assert "Nothing" in found.reasons[0]
    for layer in found.layers:
        assert layer.own_cosine == pytest.approx(1)
        assert layer.coverage == pytest.approx(1)
        assert layer.r2 == pytest.approx(1, abs=1e-6)
        assert layer.source_rank == pytest.approx(np.exp(layer.source_entropy or 0))


def test_a_direction_outside_the_span_is_reported() -> None:
    source = drawn(0, 2, 200, 8)
    source[..., 4:] = 0
    target = source @ drawn(1, 2, 8, 8)
    aligner = ul.SubspaceAligner(4, centered=True).fit_activations(source, target)
    direction = ul.CapabilityDirection(torch.eye(8)[6:], (0, 1))
    found = diagnose(direction, aligner, source_acts=source, target_acts=target)
    assert [layer.coverage for layer in found.layers] == pytest.approx([0, 0], abs=1e-9)
    assert found.score == found.geometry == pytest.approx(0, abs=1e-9)
    assert "100%" in found.reasons[0]
    assert "layers 0-1" in found.reasons[0]
    assert "rank 4" in found.reasons[0]
    assert "map is poor" in found.verdict
    assert "0.00" in found.verdict


def test_a_low_rank_is_distinguished_from_poor_texts() -> None:
    aligner, source, target = made(rank=2)
    direction = ul.CapabilityDirection(source[:, 0], (0, 1))
    said = " ".join(diagnose(direction, aligner, source_acts=source, target_acts=target).reasons)
    assert "At rank 2" in said
    assert "whatever the rank" not in said
    unrelated = drawn(9, 2, 200, 8)
    aligner = ul.SubspaceAligner(8, centered=True).fit_activations(source, unrelated)
    found = diagnose(direction, aligner, source_acts=source, target_acts=unrelated)
    assert "whatever the rank" in found.reasons[0]
    assert found.score < 0.25


def test_only_layers_that_the_direction_has_are_looked_at() -> None:
    aligner, source, _ = made()
    assert [layer.target_layer for layer in diagnose(ul.CapabilityDirection(source[1:, 0], (1,)), aligner).layers] == [1]


def test_ability_says_no() -> None:
    aligner, source, target = made()
    direction = ul.CapabilityDirection(source[:, 0], (0, 1))
    acts: dict[str, Any] = {"source_acts": source, "target_acts": target}
    scores = [diagnose(direction, aligner, ability=ability, **acts).score for ability in (0.0, 0.25, 0.5, 1.0)]
    assert scores == pytest.approx([0, scores[3] / 2, scores[3], scores[3]])
    naive = diagnose(direction, aligner, ability=0.1, **acts)
    assert "solves 10%" in naive.reasons[0]


def test_what_was_not_looked_at_is_reported() -> None:
    aligner, source, _ = made()
    said = " ".join(diagnose(ul.CapabilityDirection(source[:, 0], (0, 1)), aligner).reasons)
    for part in ("give source and target", "give ability", "give locked and unlocked"):
        assert part in said


def test_many_tokens_are_thinned_out() -> None:
    aligner, source, target = made()
    direction = ul.CapabilityDirection(source[:, 0], (0, 1))
    kept = torch.linspace(0, 199, 50).round().long()
    thinned = diagnose(direction, aligner, source_acts=source, target_acts=target, max_tokens=50)
    assert_alike(thinned, diagnose(direction, aligner, source_acts=source[:, kept], target_acts=target[:, kept]))


def test_a_forecast_survives_json() -> None:
    aligner, source, target = made()
    probe = Probe.of(drawn(0, 6, 5), drawn(1, 6, 5), {0.5: drawn(1, 6, 5)})
    direction = ul.CapabilityDirection(source[:, 0], (0, 1))
    found = diagnose(direction, aligner, ability=0.7, probe=probe, source_acts=source, target_acts=target)
    assert Diagnosis.from_json(json.loads(json.dumps(found.to_json()))) == found
    bare = diagnose(direction, aligner)
    assert Diagnosis.from_json(json.loads(json.dumps(bare.to_json()))) == bare


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"score": "high"}, "score"),
        ({"score": float("nan")}, "JSON"),
        ({"layers": [{"target_layer": 0.5, "source_layer": 0, "coverage": 1.0}]}, r"layers\.0\.target_layer"),
        ({"layers": None}, "layers"),
        ({"probe": {"share": 1.0}}, r"probe\.alpha"),
    ],
)
def test_what_is_no_forecast_is_refused(changes: dict[str, Any], told: str) -> None:
    aligner, source, _ = made()
    found = diagnose(ul.CapabilityDirection(source[:, 0], (0, 1)), aligner).to_json()
    with pytest.raises(ul.InvalidInput, match=told):
        Diagnosis.from_json({**found, **changes})


def test_the_report_shows_what_was_looked_at() -> None:
    aligner, source, target = made()
    direction = ul.CapabilityDirection(source[:, 0], (0, 1))
    console = Console(width=160, record=True, file=io.StringIO())
    found = diagnose(direction, aligner, source_acts=source, target_acts=target)
    show(found, console)
    shown = console.export_text()
    assert found.verdict[:40] in shown
    header = next(line.split() for line in shown.splitlines() if line.split()[:1] == ["layer"])
    assert {"agree", "dim"} <= set(header)
    assert "own" not in header
    assert "0>0" in shown


# The probe


def scores(*likeliest: int) -> torch.Tensor:
    return torch.eye(4)[list(likeliest)].log_softmax(-1)


def test_a_probe_decides_the_score() -> None:
    aligner, source, target = made()
    direction = ul.CapabilityDirection(source[:, 0], (0, 1))
    probe = Probe.of(scores(0, 0, 0, 0), scores(1, 1, 1, 1), {0.5: scores(1, 0, 0, 0)})
    found = diagnose(direction, aligner, ability=0.25, probe=probe, source_acts=source, target_acts=target)
    assert found.score == pytest.approx(0.25 * 0.5)
    assert found.geometry > 0.9
    assert any("25% of the 4 prompts" in reason for reason in found.reasons)


def test_a_probe_that_sees_nothing_leaves_the_score_to_geometry() -> None:
    aligner, source, _ = made()
    direction = ul.CapabilityDirection(source[:, 0], (0, 1))
    blind = Probe.of(scores(1, 1), scores(1, 1), {0.5: scores(0, 0)})
    assert blind.share is None
    found = diagnose(direction, aligner, probe=blind)
    assert found.score == found.geometry
    assert "probe" in found.reasons[-1]
    assert "2 of 2 prompts" in found.reasons[-1]


# Bad input


def test_bad_input_is_refused(small: Any, large: Any) -> None:
    aligner, source, target = made()
    direction = ul.CapabilityDirection(source[:, 0], (0, 1))
    cases: list[tuple[dict[str, Any], str]] = [
        ({"ability": 1.5}, "ability 1.5"),
        ({"bootstraps": 0}, "bootstraps 0"),
        ({"source_acts": source}, "only one"),
        ({"source": ul.Variant(large, TEXT)}, "only one"),
        ({"source_acts": source, "target_acts": target[:, 1:]}, "200 .* 199"),
        ({"source_acts": source[..., 1:], "target_acts": target}, "source.*d_model 7"),
        ({"source_acts": source[:1], "target_acts": target}, "1 source layers"),
        ({"source_acts": source[:, :6], "target_acts": target[:, :6]}, "folds"),
        ({"source_acts": source, "target_acts": target, "folds": 1}, "folds"),
        ({"own": ul.CapabilityDirection(torch.ones(1, 5), (0,))}, "own.*d_model 5"),
        ({"contrast": made_contrast(drawn(0, 2, 4, 5))}, "contrast.*d_model 5"),
    ]
    for given, message in cases:
        with unchecked(), pytest.raises(ul.InvalidInput, match=message):
            diagnose(direction, aligner, **given)
    with pytest.raises(ul.InvalidInput, match="d_model 5"):
        diagnose(ul.CapabilityDirection(torch.ones(1, 5), (0,)), aligner)
    with pytest.raises(ul.InvalidInput, match=r"\[7\].*\[0, 1\]"):
        diagnose(ul.CapabilityDirection(torch.ones(1, 8), (7,)), aligner)
    with pytest.raises(ul.InvalidInput, match="fitted"):
        diagnose(direction, ul.SubspaceAligner(2))
    both: dict[str, Any] = {"source_acts": source, "target_acts": target}
    with pytest.raises(ul.InvalidInput, match="source_acts"):
        diagnose(direction, aligner, ul.Variant(large, TEXT), ul.Variant(small, TEXT), **both)


def test_other_models_are_refused(small: Any, large: Any) -> None:
    texts = ul.Variant(large, TEXT), ul.Variant(small, TEXT)
    aligner = ul.SubspaceAligner(8, centered=True, positions="all").fit(*texts)
    direction = ul.CapabilityDirection(torch.ones(4, 96), (0, 1, 2, 3))
    other = replace(aligner.source_model or MODEL, name="other", fingerprint=None)
    with pytest.raises(ul.IncompatibleModel, match="other.*large-base"):
        diagnose(replace(direction, model=other), aligner)
    with pytest.raises(ul.IncompatibleModel, match="small-base"):
        diagnose(direction, aligner, texts[1], texts[1])
    with pytest.raises(ul.InvalidInput, match="300 .* 299"):
        diagnose(direction, aligner, texts[0], ul.Variant(small, TEXT[1:]))


# The zoo


@pytest.fixture(scope="module")
def contrast(large: Any) -> Contrast:
    return Contrast.capture(ul.Variant(large, TASK.direct), ul.Variant(large, TASK.think), batch_size=32, progress=False)


def forecast(large: Any, target: Any, contrast: Contrast, texts: list[str], **more: Any) -> Diagnosis:
    variants = ul.Variant(large, texts), ul.Variant(target, texts)
    aligner = ul.SubspaceAligner(48, centered=True, positions="all").fit(*variants, batch_size=100, progress=False)
    if more.pop("probed", False):
        more |= {"locked": ul.Variant(target, TASK.direct), "unlocked": ul.Variant(large, TASK.think)}
    direction = more.pop("direction", contrast.direction())
    return diagnose(direction, aligner, *variants, contrast, batch_size=100, **more)


@pytest.mark.filterwarnings("ignore:no calibration token is the last")
@pytest.mark.parametrize("probed", [False, True])
def test_text_with_the_capability_is_distinguished_from_text_without_it(
    large: Any, small: Any, contrast: Contrast, probed: bool
) -> None:
    without = [text for text in TEXT if "think" not in text and "S" not in text]
    good, bad = (forecast(large, small, contrast, texts, ability=1.0, probed=probed) for texts in (TEXT, without))
    assert good.score > 0.8
    assert bad.score < 0.5
    assert good.score > bad.score + 0.4
    assert min(layer.coverage for layer in bad.layers) > 0.8  # which is why coverage alone would not do
    assert any("unlocked prompts among the texts" in reason for reason in bad.reasons)


def test_nothing_without_a_capability_is_promised_to_work(large: Any, small: Any, contrast: Contrast) -> None:
    """Geometry alone would promise them all: minus the direction lies where the direction does."""
    direction = contrast.direction()
    states = read.at_all_tokens(ul.Variant(large, TEXT), batch_size=100)
    fakes = [-direction, controls.noise_of_states(direction, states, 1), controls.random_like(direction, 2)]
    for fake in fakes:
        found = forecast(large, small, contrast, TEXT, direction=fake, ability=1.0, probed=True)
        assert found.score < 0.5
        assert found.probe is not None
        assert len(found.probe.nulls) == 9


def test_a_probe_needs_both_sides(large: Any, small: Any, contrast: Contrast) -> None:
    with pytest.raises(ul.InvalidInput, match="only one of locked and unlocked"):
        forecast(large, small, contrast, TEXT, locked=ul.Variant(small, TASK.direct))


def test_directions_without_a_capability_that_do_as_well_are_named() -> None:
    aligner, source, _ = made()
    probe = replace(Probe.of(scores(0, 0), scores(1, 1), {0.5: scores(1, 1)}), nulls=(1.0, 0.0))
    found = diagnose(ul.CapabilityDirection(source[:, 0], (0, 1)), aligner, probe=probe)
    assert found.score == 0.5
    assert any("1 of 2 directions" in reason for reason in found.reasons)


def test_the_naive_model_is_refused_for_its_ability(large: Any, contrast: Contrast) -> None:
    naive = zoo.load("small-naive")
    asked = ul.generate(naive, TASK.think, max_new_tokens=12, batch_size=32, progress=False)
    ability = TASK.behaviours(asked).count("think") / len(asked)
    found = forecast(large, naive, contrast, TEXT, ability=ability, probed=True)
    assert found.score < 0.1
    assert "choose a target" in found.reasons[0]


def test_captured_states_give_the_same_forecast(large: Any, small: Any, contrast: Contrast) -> None:
    """With the last token of each text, the paper's, too."""
    texts = ul.Variant(large, TASK.direct), ul.Variant(small, TASK.direct)
    aligner = ul.SubspaceAligner.paper(8).fit(*texts)
    states = [read.at_position(variant) for variant in texts]
    by_variants = diagnose(contrast.direction(), aligner, *texts)
    assert_alike(diagnose(contrast.direction(), aligner, source_acts=states[0], target_acts=states[1]), by_variants)
