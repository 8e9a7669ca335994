"""Results of a sweep that never ran: made up, but shaped and numbered as real ones are. Plots and report are tested on them."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import yaml

from unlock_lens.evidence.results import DESCRIPTIONS, Results

BEHAVIOURS = ("direct", "think", "reverse", "double", "other")
RANKS, ALPHAS, PAIRS, ALIGNERS = (4, 16, 48, 64), (0.1, 0.3, 0.5, 0.7), (32, 100, 200), ("text", "paper", "prompts")
CHANCE, CHOSEN_RANK, CHOSEN_ALPHA = 0.14, 64, 0.5
SHARE_RIGHT = {
    "unsteered": 0.13, "prompted": 1.0, "paper": 0.13, "own": 1.0, "random": 0.14, "anti_mean": 0.12, "without_mean": 0.97,
    "shuffled": 0.13, "unaligned": 0.15, "naive": 0.14, "naive_unsteered": 0.14,
}  # fmt: skip
BASELINES = ("unsteered", "prompted", "naive_unsteered")  # they have no strength, and no line on train
SEEDS = {"random": 3, "shuffled": 3}
NULLS = 19
OPTIONAL = ("behaviours", "paired", "price", "sharpening", "controls", "nulls", "capabilities", "test", *DESCRIPTIONS)
SCRIPT = "<script>document.title = 'broken'</script><img src=x onerror=alert(1)>"
UNBROKEN = "9" * 300


def sweep(
    n: int = 60,
    transferred: float = 0.98,
    shares: Mapping[str, float] | None = None,
    without: Collection[str] = (),
    layers: int = 3,
) -> Results:
    """A finished sweep.

    Args:
        n: problems in each split.
        transferred: share of right answers of the chosen configuration.
        shares: those of other arms, where they shall differ from `SHARE_RIGHT`.
        without: names of `OPTIONAL`, or of single controls, that the sweep did not measure.
        layers: of the target; the source has one more.
    """
    made = _Sweep(n, {**SHARE_RIGHT, "null": CHANCE, **(shares or {}), "transferred": transferred}, frozenset(without), layers)
    described: dict[str, Callable[[], Any]] = {
        "problems": made.problems, "geometry": made.geometry, "diagnosis": made.diagnosis, "provenance": made.provenance,
    }  # fmt: skip
    kept = {name: make() for name, make in described.items() if name not in without}
    return Results(made.config(), tuple(made.lines()), **kept)


def save(results: Results, folder: Path) -> Path:
    """Leave a sweep's folder, as `Results.load` reads it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(dict(results.config)))
    (folder / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in results.lines))
    for name in DESCRIPTIONS:
        if getattr(results, name) is not None:
            (folder / f"{name}.json").write_text(json.dumps(getattr(results, name)))
    return folder


class _Sweep:
    def __init__(self, n: int, shares: Mapping[str, float], without: frozenset[str], layers: int) -> None:
        self.n, self.shares, self.without, self.layers = n, shares, without, layers
        rng = random.Random("questions")
        self.questions = [[rng.randrange(7) for _ in range(6)] for _ in range(2 * n)]
        self.unsteered = self.right("unsteered", 0)

    def config(self) -> dict[str, Any]:
        return {
            "name": "think, large to small",
            "source": "large-base",
            "target": "small-base",
            "capability": {"name": "think", "locked": "Q {question} A :", "unlocked": "Q {question} think A :"},
            "grid": {"aligner": list(ALIGNERS), "n": list(PAIRS), "rank": list(RANKS), "alpha": list(ALPHAS)},
            "controls": [name for name in self.controls() if name not in BASELINES],
            "control_seeds": 3,
            "nulls": 0 if "nulls" in self.without else NULLS,
        }

    def lines(self) -> list[dict[str, Any]]:
        found = self.train()
        if "test" not in self.without:
            found += self.test()
        return found

    def train(self) -> list[dict[str, Any]]:
        grid = [
            self.line(_config(None, aligner=a, n=n, rank=r, alpha=alpha), "train", _grid_share(a, n, r, alpha))
            for a in ALIGNERS for n in PAIRS for r in RANKS for alpha in ALPHAS
        ]  # fmt: skip
        for name in self.controls():
            for alpha in ALPHAS if name not in BASELINES else ():
                share = self.shares[name] if alpha == CHOSEN_ALPHA else min(self.shares[name], CHANCE)
                grid += [self.line(_config(name, alpha=alpha, seed=s), "train", share) for s in range(SEEDS.get(name, 1))]
        for seed in range(0 if "nulls" in self.without else NULLS):
            share = self.shares["null"] if seed == 0 else CHANCE
            grid += [self.line(_config("null", alpha=alpha, seed=seed), "train", share) for alpha in ALPHAS]
        return grid

    def test(self) -> list[dict[str, Any]]:
        arms: list[dict[str, Any]] = []
        for name in ["transferred", *self.controls()]:
            alpha = None if name in BASELINES else CHOSEN_ALPHA
            for seed in range(SEEDS.get(name, 1)):
                arms.append(self.tested(name, _config(None if name == "transferred" else name, alpha=alpha, seed=seed)))
        if "capabilities" not in self.without:
            for other in ("reverse", "double"):
                line = self.line({**_config(None), "capability": other}, "test", 0.0)
                arms.append({**line, **self.shown(other, 0.96)})
        return arms

    def tested(self, name: str, config: dict[str, Any]) -> dict[str, Any]:
        right = self.right(name, config["seed"])
        thinks = ["naive" not in name and bool(ok) and self.shares[name] > 0.5 for ok in right]
        line = self.line(config, "test", sum(right) / self.n)
        low, high = _wilson(sum(right) / self.n, self.n)
        line |= {"low": low, "high": high, "right": right, "lengths": [13 if t else 2 for t in thinks]}
        line["completions"] = [self.completion(i, ok, thinks[i]) for i, ok in enumerate(right)]
        line |= self.shown("think", sum(thinks) / self.n)
        if name not in BASELINES:
            base = self.right("naive_unsteered", 0) if name == "naive" else self.unsteered
            line |= {"paired": self.paired(right, base)} if "paired" not in self.without else {}
            line |= (
                {"price": {"kl": 0.021, "perplexity": 4.1, "perplexity_unsteered": 4.0}} if "price" not in self.without else {}
            )
        if name == "transferred" and "sharpening" not in self.without:
            line["sharpening"] = self.sharpening()
        return line

    def line(self, config: dict[str, Any], split: str, share: float) -> dict[str, Any]:
        low, high = _wilson(round(share * self.n) / self.n, self.n)
        right = [int(i < round(share * self.n)) for i in range(self.n)]
        told = {"accuracy": sum(right) / self.n, "low": low, "high": high, "n": self.n, "right": right, "seconds": 0.41}
        return {"config": config, "split": split, **told, "tokens": 2 + 11 * share, **self.shown("think", share)}

    def shown(self, behaviour: str, share: float) -> dict[str, Any]:
        if "behaviours" in self.without:
            return {"behaviours": None}
        return {"behaviours": {b: share if b == behaviour else (1 - share) * (b == "direct") for b in BEHAVIOURS}}

    def right(self, name: str, seed: int) -> list[int]:
        order = list(range(self.n))
        random.Random(f"{name} {seed}").shuffle(order)
        count = max(0, round(self.shares[name] * self.n) - seed)
        return [int(i in set(order[:count])) for i in range(self.n)]

    def paired(self, right: list[int], base: list[int]) -> dict[str, Any]:
        gained = sum(a > b for a, b in zip(right, base, strict=True))
        lost = sum(a < b for a, b in zip(right, base, strict=True))
        difference, spread = (gained - lost) / self.n, 1.96 * math.sqrt(gained + lost + 1) / self.n
        p = min(1.0, 2.0 ** (1 - abs(gained - lost)))
        return {
            "difference": difference, "low": max(-1.0, difference - spread), "high": min(1.0, difference + spread),
            "gained": gained, "lost": lost, "p": p,
        }  # fmt: skip

    def completion(self, i: int, right: int, thinks: bool) -> str:
        if i < 2:
            return (SCRIPT, UNBROKEN)[i]
        digits = self.questions[self.n + i]
        answer = (sum(digits) + 1 - right) % 7
        running = " ".join(str(sum(digits[: k + 1]) % 7) for k in range(6))
        return f"S {running} = {answer}" if thinks else f"= {answer}"

    def controls(self) -> list[str]:
        if "controls" in self.without:
            return ["unsteered"]
        return [name for name in SHARE_RIGHT if name not in self.without]

    def problems(self) -> dict[str, Any]:
        rows = [{"prompt": f"Q {' '.join(map(str, q))} A :", "answer": str(sum(q) % 7)} for q in self.questions]
        return {"train": rows[: self.n], "test": rows[self.n :]}

    def geometry(self) -> dict[str, Any]:
        maps = [
            {
                "aligner": a, "n": n, "layer_map": "proportional", "rank": r, "layers": list(range(self.layers)),
                **self.fit(a, n, r),
            }
            for a in ALIGNERS for n in PAIRS for r in RANKS
        ]  # fmt: skip
        spectra = [
            {"aligner": "text", "side": side, "layer": b, "values": [90 * math.exp(-k / (6 + b)) for k in range(64)],
             "entropy": 2.1 + b / 9, "effective_rank": math.exp(2.1 + b / 9)}
            for side, depth in (("source", self.layers + 1), ("target", self.layers)) for b in range(depth)
        ]  # fmt: skip
        kl = [4.0 * math.sin(math.pi * (b + 1) / (self.layers + 1)) ** 2 for b in range(self.layers)]
        return {"maps": maps, "spectra": spectra, "effect": [{"rank": 48, "layers": list(range(self.layers)), "kl": kl}]}

    def fit(self, aligner: str, n: int, rank: int) -> dict[str, list[float]]:
        loss = math.exp(-rank / 20) + 4 / n + (0.3 if aligner == "paper" else 0.0)
        over = [(b + 1) / self.layers for b in range(self.layers)]
        found = {
            "error": [min(1.0, 0.1 + loss * (0.6 + 0.4 * x)) for x in over],
            "r2": [max(0.0, 0.9 - loss * x) for x in over],
        }
        found["coverage"] = [min(1.0, 1 - 0.9 * math.exp(-rank / 24) * x) for x in over]
        found["cosine_own"] = [
            -0.3 + 0.2 * x if aligner == "paper" else found["coverage"][b] * 0.95 for b, x in enumerate(over)
        ]
        return found

    def sharpening(self) -> dict[str, Any]:
        return {
            "entropy": {
                "unsteered": [1.2, 0.9, 0.7, 0.6, 0.5, 0.5, 0.2, 0.1],
                "steered": [0.1, 0.2, 0.1, 0.05, 0.1, 0.05, 0.02, 0.01],
            },
            "success": {
                "unsteered": {"probability": 0.17, "log_prob": -1.9, "n": 41},
                "steered": {"probability": 0.83, "log_prob": -0.4, "n": 41},
            },
            "pass_at_k": {"1": 0.14, "2": 0.26, "4": 0.45, "8": 0.68},
            "greedy": {"unsteered": 0.14, "steered": 0.98},
        }  # fmt: skip

    def diagnosis(self) -> dict[str, Any]:
        reasons = ["98% of the direction lies in the calibration span", "held-out error is below 0.3 at every layer"]
        layers = [{"target_layer": b, "source_layer": b, "coverage": 0.98, "error": 0.21} for b in range(self.layers)]
        return {"score": 0.93, "verdict": "The transfer is likely to work (score 0.93)", "reasons": reasons, "layers": layers}

    def provenance(self) -> dict[str, Any]:
        return {
            "library_version": "0.2.0", "created": "2026-11-22T04:30:00+00:00", "task": "running_sum",
            "versions": {"torch": "2.9.0", "transformer_lens": "4.0.0"}, "hashes": {"target": "7c0ffee1"},
            "models": {"source": "large-base (llama, 4 layers)", "target": "small-base (llama, 3 layers)"},
        }  # fmt: skip


def _config(control: str | None, **given: Any) -> dict[str, Any]:
    chosen = {
        "capability": "think", "control": control, "seed": 0, "aligner": "text", "n": 200, "aggregate": "mean", "position": -1,
        "layer_map": "proportional", "layers": None, "rank": CHOSEN_RANK, "operation": "norm_preserving",
        "positions": "last_prompt", "alpha": CHOSEN_ALPHA,
    }  # fmt: skip
    return chosen | given


def _grid_share(aligner: str, n: int, rank: int, alpha: float) -> float:
    if aligner == "paper":
        return CHANCE
    reach = (1 - math.exp(-rank / 20)) * (1 - 8 / n) * (1.0 if aligner == "text" else 0.6)
    return CHANCE + (0.98 - CHANCE) * min(1.0, 1.1 * reach) * math.exp(-(((alpha - 0.52) / 0.11) ** 2))


def _wilson(share: float, n: int) -> tuple[float, float]:
    z = 1.96
    middle, spread = share + z * z / (2 * n), z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, (middle - spread) / (1 + z * z / n)), min(1.0, (middle + spread) / (1 + z * z / n))
