"""Dose and response: where a behaviour sets in, how wide its window is, and what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest

import unlock_lens as ul
from unlock_lens import plots, zoo
from unlock_lens.evidence import response as module

TASK = zoo.running_sum(n=40, seed=9)
ALPHAS = (0.3, 0.35, 0.4, 0.5, 0.6, 0.7, 0.9)
HOW: dict[str, Any] = {"max_new_tokens": 12, "batch_size": 40, "progress": False}


def thinks(texts: Sequence[str]) -> list[bool]:
    """Whether completions go step by step."""
    return [behaviour == "think" for behaviour in TASK.behaviours(texts)]


@pytest.fixture(scope="module")
def own(small: Any) -> ul.CapabilityDirection:
    task = zoo.running_sum(n=64)
    return ul.CapabilityDirection.extract(ul.Variant(small, task.direct), ul.Variant(small, task.think), progress=False)


@pytest.fixture(scope="module")
def found(small: Any, own: ul.CapabilityDirection) -> ul.Response:
    steer, texts = ul.SteeringHook(own, 0.5), zoo.text(24, seed=3)
    more: dict[str, Any] = {"correct": TASK.correct, "unrelated": texts, "own": steer, "alphas": ALPHAS}
    return ul.response(steer, small, TASK.direct, thinks, **more, **HOW)


def test_the_curve_is_what_generate_and_price_give(small: Any, own: ul.CapabilityDirection, found: ul.Response) -> None:
    steer = ul.SteeringHook(own, 0.5)
    written = ul.generate(small, TASK.direct, steer, max_new_tokens=12, batch_size=40, progress=False)
    row = found.table.loc[0.5]
    assert row["share"] == sum(thinks(written)) / 40
    assert row["accuracy"] == sum(TASK.correct(written)) / 40
    assert row["kl"] == ul.distributions.price(small, zoo.text(24, seed=3), steer, batch_size=40).kl
    assert found.table.loc[0.0, "kl"] == 0


def test_the_window_is_the_stretch_in_which_nine_of_ten_show_it(found: ul.Response) -> None:
    assert found.window is not None
    low, high = found.window
    shares: Any = found.table["share"]
    assert (shares.loc[low:high] >= 0.9).all()
    assert shares[shares.index < low].iloc[-1] < 0.9
    assert found.width == pytest.approx(np.log2(high / low))


def test_the_ec50_lies_where_the_share_ishalf_way(found: ul.Response) -> None:
    assert found.ec50 is not None
    assert found.ec50_interval is not None
    shares: Any = found.table["share"]
    half = (shares.iloc[0] + shares.max()) / 2
    assert shares[shares.index < found.ec50].iloc[-1] <= half <= shares[shares.index >= found.ec50].iloc[0]
    assert found.ec50_interval[0] <= found.ec50 <= found.ec50_interval[1]


def test_the_same_direction_needs_as_much(found: ul.Response) -> None:
    assert found.ratio == 1


def test_multiples_of_the_hooks_own_strength(own: ul.CapabilityDirection) -> None:
    tried = module.strengths(ul.SteeringHook(own, 0.4), None)
    assert (tried[0], tried[-1]) == pytest.approx((0.1, 0.8))
    assert 0.4 in tried


def test_equal_price(found: ul.Response) -> None:
    assert found.share_at_price(0.0) == found.table["share"].iloc[0]
    assert found.share_at_price(1e9) == found.table["share"].max()
    costs = found.table["kl"]
    assert found.table["share"].iloc[0] <= found.share_at_price(float(costs.median())) <= found.table["share"].max()


def test_bootstrap_by_hand() -> None:
    """Ten prompts that switch on one after another: half do by the geometric middle of 1 and 2, in some draws by 1."""
    tried = [1.0, 2.0, 4.0]
    outcomes = np.array([[0] * 10, [1] * 3 + [0] * 7, [1] * 7 + [0] * 3, [1] * 10], dtype=float)
    ec50, interval = module.half_way(outcomes, tried, seed=0)
    assert ec50 is not None
    assert interval is not None
    assert ec50 == pytest.approx(2**0.5)
    assert interval == (0.0, 4.0)


def test_where_all_prompts_switch_at_once_the_step_is_the_interval() -> None:
    outcomes = np.array([[0] * 10, [0] * 10, [1] * 10, [1] * 10], dtype=float)
    ec50, interval = module.half_way(outcomes, [1.0, 2.0, 4.0], seed=0)
    assert ec50 == pytest.approx(2**0.5)
    assert interval == (1.0, 2.0)


def test_an_effect_that_is_there_at_the_least_strength() -> None:
    outcomes = np.array([[0] * 10, [1] * 10, [0] * 10], dtype=float)
    assert module.half_way(outcomes, [1.0, 2.0], seed=0) == (1.0, (0.0, 1.0))


@pytest.mark.parametrize(
    ("shares", "window"),
    [([0, 0.1, 0.2], None), ([0, 0.9, 1.0], (1.0, 2.0)), ([0, 0.95, 0.2], (1.0, 1.0)), ([0.95, 0.1, 0.92], (2.0, 2.0))],
)
def test_windows(shares: list[float], window: tuple[float, float] | None) -> None:
    assert module.window_of(pd.Series(shares, index=[0.0, 1.0, 2.0])) == window


def test_a_direction_that_has_no_effect_has_no_ec50(small: Any, own: ul.CapabilityDirection) -> None:
    with pytest.warns(UserWarning, match="no EC50"):
        flat = ul.response(ul.SteeringHook(-own, 0.5), small, TASK.direct, thinks, alphas=[0.1, 0.2], **HOW)
    assert (flat.ec50, flat.window, flat.width, flat.ratio) == (None, None, None, None)


def test_the_figure_has_both_curves_and_both_prices(found: ul.Response) -> None:
    drawn: Any = plots.dose_response(found)
    names = [trace.name for trace in drawn.data if trace.name]
    assert names.count("EC50") == 2
    assert {"this direction", "own direction"} <= set(names)
    assert [*drawn.data[1].y] == [*found.table["share"].iloc[1:]]


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ({"alphas": [0.5]}, "at least two"),
        ({"alphas": [-1.0, 0.5]}, "positive"),
        ({"shows": lambda texts: [True]}, "1 verdicts on 40"),
    ],
)
def test_bad_input(small: Any, own: ul.CapabilityDirection, how: dict[str, Any], told: str) -> None:
    given: dict[str, Any] = {"shows": thinks} | how
    with pytest.raises(ul.InvalidInput, match=told):
        ul.response(ul.SteeringHook(own, 0.5), small, TASK.direct, given.pop("shows"), **HOW, **given)


def test_strengths_for_each_layer(small: Any, own: ul.CapabilityDirection) -> None:
    with pytest.raises(ul.InvalidInput, match="each layer"):
        ul.response(ul.SteeringHook(own, {0: 0.5, 1: 0.5, 2: 0.5}), small, TASK.direct, thinks, **HOW)
