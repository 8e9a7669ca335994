"""How well the strength and the layers are found that a grid of generations finds, and what a budget is worth.

    OMP_NUM_THREADS=1 python benchmarks/strength.py windows budgets blind layers sets time
    OMP_NUM_THREADS=1 python benchmarks/strength.py real --smollm2 MODELS/smollm2     # benchmarks/real_models.py makes it

All 20 transfers of three capabilities between Llamas of two sizes and a GPT-2, and in the duo family, by the default aligner.
Strengths are found on 32 prompts; completions are of 100 other problems.
"""

from __future__ import annotations

import argparse
import logging
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import yaml
from aligner_cases import CAPABILITIES, Transfer, transfers
from aligner_tables import Table
from rich.console import Console
from scipy.stats import spearmanr
from small_pair import Openings

import unlock_lens as ul
from unlock_lens import distributions, lens, zoo
from unlock_lens.evidence import _search
from unlock_lens.evidence._forecast import forecast
from unlock_lens.hosts import open_model

BATCH, SHOWN, REAL = 100, 0.9, 16
GRID = tuple(0.05 * 1.12**i for i in range(32))
BUDGETS = (0.01, 0.02, 0.03)
EXTRACT, CHOOSE, REPORT = zoo.running_sum(200, seed=1), zoo.running_sum(32, seed=4), zoo.running_sum(100, seed=9)
HOSTS = {"TransformerLens": "transformer_lens", "nnsight": "nnsight"}
TELL = Console(width=140, highlight=False, markup=False, soft_wrap=True).print
model = cache(zoo.load)


def every() -> list[Transfer]:
    """The transfers of a prompt contrast."""
    return [each for each in transfers() if each.capability != "post"]


@cache
def aligner(source: str, target: str, mix: str) -> ul.SubspaceAligner:
    """Calibrated on ordinary text and on the prompts of both sides."""
    texts = zoo.text(600, seed=1, mix=mix) + [prompt for name in ("direct", *CAPABILITIES) for prompt in EXTRACT.prompts(name)]
    return ul.SubspaceAligner().fit(model(source), model(target), texts, batch_size=200, progress=False)


@cache
def moved(each: Transfer) -> ul.CapabilityDirection:
    """The source's direction in the target."""
    source = model(each.source)
    locked, unlocked = ul.Variant(source, EXTRACT.direct), ul.Variant(source, EXTRACT.prompts(each.capability))
    direction = ul.CapabilityDirection.extract(locked, unlocked, batch_size=200, progress=False)
    return aligner(each.source, each.target, each.mix).transport(direction)


def found(each: Transfer, backend: str = "transformer_lens", **how: Any) -> ul.Strength:
    """The strength that is found."""
    how = {"locked": CHOOSE.direct, "unlocked": CHOOSE.prompts(each.capability)} | how
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that no strength does both is what some rows are about
        return ul.strength(moved(each), model(each.target, backend), batch_size=BATCH, progress=False, **how)


def share(each: Transfer, steer: ul.SteeringHook, task: zoo.Task = REPORT) -> float:
    """How many completions show the behaviour."""
    written = ul.generate(model(each.target), task.direct, steer, max_new_tokens=14, batch_size=BATCH, progress=False)
    shown = task.behaviours([text.partition(".")[0] for text in written])
    return shown.count(each.capability) / len(shown)


@cache
def window(each: Transfer) -> list[float]:
    """The strengths of the grid at which at least 90% of the completions show the behaviour."""
    return [alpha for alpha in GRID if share(each, ul.SteeringHook(moved(each), alpha)) >= SHOWN]


def unrelated(each: Transfer) -> list[str]:
    """Ordinary text of the family."""
    return zoo.text(48, seed=7, mix=each.mix)


def windows() -> Table:
    """Reach and knee against the window of a grid of 32 strengths."""
    rows: list[list[str]] = []
    inside = {"reach": 0, "knee": 0}
    for each in every():
        good, reach = window(each), found(each)
        knee = found(each, unlocked=None)
        for name, one in (("reach", reach), ("knee", knee)):
            inside[name] += good[0] <= one.alpha <= good[-1]
        shown = [f"{one.alpha:.3f}: {share(each, one.hook):.0%}" for one in (reach, knee)]
        rows.append(
            [str(each), f"{good[0]:.3f} to {good[-1]:.3f}", shown[0], f"{reach.reach:.0%}", str(reach.passes), shown[1]]
        )
    counted = [f"{inside[name]} of {len(rows)} inside" for name in ("reach", "knee")]
    rows.append(["all", "", counted[0], "", "", counted[1]])
    return Table("windows", ["transfer", "window of the grid", "found: shows it", "reach", "passes", "knee: shows it"], rows)


def budgets() -> Table:
    """What a budget is worth: mean KL over the budget where the mean binds, measured again by `distributions.price`."""
    rows: list[list[str]] = []
    for host, backend in HOSTS.items():
        for budget in BUDGETS:
            spent: list[float] = []
            for each in every():
                texts = unrelated(each)
                one = found(each, backend, unrelated=texts, budget=budget)
                again = distributions.price(model(each.target, backend), texts, one.hook, batch_size=BATCH)
                if not one.met and again.kl_worst < _search.WITHIN * _search.WORST:
                    spent.append(again.kl / budget)
            within = sum(0.9 <= part <= 1.0001 for part in spent)
            ends = f"{min(spent):.2f} to {max(spent):.2f}" if spent else ""
            rows.append([host, f"{budget:g}", f"{within} of {len(spent)}", ends])
    return Table("budgets", ["host", "budget, nats", "within 10% of it", "spent / budget"], rows)


def blind() -> Table:
    """Unlocked prompts that are the locked ones and the token that opens the answer: first tokens against continuations."""
    rows: list[list[str]] = []
    goes_on = _search.goes_on
    for each in every():
        if each.family == "duo":
            continue  # whose answers open with no token of their own
        unlocked = [f"{prompt} {'SRW'[CAPABILITIES.index(each.capability)]}" for prompt in CHOOSE.direct]
        cells: list[str] = []
        for told in (goes_on, lambda before, after: False):
            _search.goes_on = told
            one = found(each, unlocked=unlocked)
            cells.append(f"{one.alpha:.3f}: {share(each, one.hook):.0%}")
        rows.append([str(each), *cells])
    _search.goes_on = goes_on
    return Table("blind", ["transfer", "continuation scored: shows it", "first tokens scored: shows it"], rows)


def _forecasts(
    target: Any, steer: ul.SteeringHook, locked: Sequence[str], unlocked: Sequence[str]
) -> Iterator[tuple[str, list[float]]]:
    prompts, direction = ul.Variant(target, locked), steer.direction
    asked, plain = (distributions.next_token_log_probs(target, of, batch_size=BATCH).exp() for of in (unlocked, locked))
    first = torch.nn.functional.one_hot(asked.argmax(1), asked.shape[1]).float()
    yield "backward pass at half the strength", [*forecast(steer, prompts, first, BATCH).values()]
    yield "backward pass, unsteered", [*forecast(steer, prompts, first, BATCH, at=0.0).values()]
    yield "backward pass at the strength", [*forecast(steer, prompts, first, BATCH, at=1.0).values()]
    written, weights = lens.logits_written(direction, target), target.W_U.detach()
    alone = direction.unit().vectors @ weights
    for name, logits in (("logit lens", written), ("unembedding alone", alone)):
        yield f"{name}, of the token", (logits @ first.mean(0)).tolist()
        yield f"{name}, compared with what is written now", (logits @ (first - plain).mean(0)).tolist()


def layers() -> Table:
    """Spearman's rho of forecasts with measured effects of layers: mean over transfers, and all layers pooled."""
    told: dict[str, list[list[float]]] = {}
    truth: dict[str, list[list[float]]] = {"alone": [], "left out": []}
    for each in every():
        alpha, target = found(each).alpha, model(each.target)
        opens = ul.generate(target, CHOOSE.prompts(each.capability), max_new_tokens=1, batch_size=BATCH, progress=False)
        steer = ul.SteeringHook(moved(each), alpha)
        effect = lens.effect_by_layer(target, CHOOSE.direct, opens, steer, batch_size=BATCH, progress=False)
        for name in truth:
            truth[name].append(effect[name].tolist())
        for name, values in _forecasts(target, steer, CHOOSE.direct, CHOOSE.prompts(each.capability)):
            told.setdefault(name, []).append(values)
    return _against(truth, told, "layers")


def _against(truth: Mapping[str, list[list[float]]], told: Mapping[str, list[list[float]]], title: str) -> Table:
    rows = [[name, *(cell for true in truth.values() for cell in _rhos(values, true))] for name, values in told.items()]
    heads = [f"{name}: {how}" for name in truth for how in ("mean rho", "pooled rho")]
    return Table(title, ["forecast", *heads], rows)


def real(folder: str) -> Iterator[Table]:
    """SmolLM2's own French, German and capitals, on the parallel openings of benchmarks/small_pair.yaml: 30 layers."""
    target = open_model(folder)
    openings = Openings.of(yaml.safe_load((Path(__file__).parent / "small_pair.yaml").read_text())).contrasts
    locked, text = openings["comma english"], [*openings["english"], *openings["german"]]
    told: dict[str, list[list[float]]] = {}
    truth: dict[str, list[list[float]]] = {"alone": [], "left out": []}
    rows: list[list[str]] = []
    for name in ("french", "german", "capitals"):
        unlocked = openings[f"comma {name}"]
        direction = ul.CapabilityDirection.extract(ul.Variant(target, locked), ul.Variant(target, unlocked), progress=False)
        how: dict[str, Any] = {"locked": locked[:REAL], "unlocked": unlocked[:REAL], "batch_size": REAL, "progress": False}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            one = ul.strength(direction, target, **how)
            within = ul.strength(direction, target, **how, unrelated=text, budget=0.05)
        assert within.price
        bound = f"{within.price.kl:.3f} nats, worst 5% {within.price.kl_worst:.2f}"
        rows.append([name, f"{one.alpha:.3f}", f"{one.reach:.0%}", str(one.passes), f"{within.alpha:.3f}: {bound}"])
        opens = ul.generate(target, unlocked[:REAL], max_new_tokens=1, batch_size=REAL, progress=False)
        effect = lens.effect_by_layer(target, locked[:REAL], opens, one.hook, batch_size=REAL, progress=False)
        for column in truth:
            truth[column].append(effect[column].tolist())
        for forecast_name, values in _forecasts(target, one.hook, locked[:REAL], unlocked[:REAL]):
            told.setdefault(forecast_name, []).append(values)
        yield Table(f"SmolLM2, so far {name}", ["capability", "strength", "reach", "passes", "at a budget of 0.05"], rows)
        yield _against(truth, told, f"layers of SmolLM2, so far {name}")


def _rhos(told: Sequence[list[float]], true: Sequence[list[float]]) -> list[str]:
    each = [_rho(a, b) for a, b in zip(told, true, strict=True)]
    pooled = _rho([x for row in told for x in row], [x for row in true for x in row])
    return [f"{sum(each) / len(each):.2f}", f"{pooled:.2f}"]


def _rho(one: Sequence[float], other: Sequence[float]) -> float:
    found: Any = spearmanr(one, other)
    return float(found.statistic)


def sets() -> Table:
    """All layers against those that `layers="auto"` takes, at the strength that reaches; the price on ordinary text."""
    rows: list[list[str]] = []
    worst, _search.WORST = _search.WORST, 1e9
    for each in every():
        cells: list[str] = []
        for chosen in (None, "auto"):
            one = found(each, layers=chosen, unrelated=unrelated(each), budget=1e9)
            assert one.price
            told = "" if chosen is None else f"{list(one.hook.layers or ())}, {one.passes} passes: "
            cells += [f"{told}{share(each, one.hook):.0%}", f"{one.price.kl:.2f}"]
        rows.append([str(each), *cells])
    _search.WORST = worst
    return Table("sets", ["transfer", "all layers show it", "price, nats", "auto: shows it", "price, nats"], rows)


def seconds() -> Table:
    """How long the search takes, in forward passes over its prompts of the same batch size; the median of 5."""
    rows: list[list[str]] = []
    for each in every()[:4]:
        direction, target = moved(each), model(each.target)
        steer, prompts = ul.SteeringHook(direction, 0.5), ul.Variant(target, REPORT.direct)
        how: dict[str, Any] = {"locked": REPORT.direct, "unlocked": REPORT.prompts(each.capability)}
        cells: list[str] = []
        for size in (8, BATCH):
            one = _median(partial(distributions.next_token_log_probs, target, prompts, steer, size))
            whole = _median(partial(ul.strength, direction, target, batch_size=size, progress=False, **how))
            cells.append(f"{whole / one:.1f}")
        rows.append([str(each), *cells])
    return Table("time", ["transfer", "batches of 8: search / pass", f"batches of {BATCH}: search / pass"], rows)


def _median(work: Any) -> float:
    taken: list[float] = []
    for _ in range(5):
        begun = time.perf_counter()
        work()
        taken.append(time.perf_counter() - begun)
    return sorted(taken)[2]


PARTS = {"windows": windows, "budgets": budgets, "blind": blind, "layers": layers, "sets": sets, "time": seconds}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=[*PARTS], choices=[*PARTS, "real"], help="which tables to print")
    parser.add_argument("--smollm2", default="MODELS/smollm2", help="SmolLM2's folder, for the part real")
    torch.set_num_threads(1)
    logging.getLogger("unlock_lens").setLevel(logging.ERROR)
    given = parser.parse_args()
    for part in given.parts:
        for table in real(given.smollm2) if part == "real" else [PARTS[part]()]:
            TELL(table.markdown())


if __name__ == "__main__":
    main()
