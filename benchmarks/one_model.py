"""One model's own directions: three contrasts that end in one token, three placebos, noise, and forced tokens, at one price.

    python benchmarks/one_model.py run MODEL      # MODEL is a folder with SmolLM2-135M-Instruct (benchmarks/real_models.py)
    python benchmarks/one_model.py table          # into docs/one_model.md

A finished setting is one line of benchmarks/results/one_model.jsonl; `run` resumes where it was stopped.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import yaml
from decoding import Decoder
from study import judged, unrelated
from study_directions import read_side
from study_files import append, lines, written_between

import unlock_lens as ul
from unlock_lens import controls, distributions
from unlock_lens.evidence.statistics import wilson_interval
from unlock_lens.hosts import open_model

HERE = Path(__file__).parent
CONFIG, RESULTS, DOCUMENT = HERE / "one_model.yaml", HERE / "results" / "one_model.jsonl", HERE.parent / "docs" / "one_model.md"
FORCED = (1, 3, 8)


def problems(n: int, seed: int) -> list[tuple[str, str]]:
    """Questions and answers of GSM-symbolic."""
    drawn: Any = import_module("reasoning_gym").create_dataset("gsm_symbolic", size=n, seed=seed)
    return [(entry["question"].partition(" Give the result")[0], str(entry["answer"])) for entry in drawn]


def directions(config: Mapping[str, Any], model: Any) -> dict[str, ul.CapabilityDirection]:
    """Every arm's direction."""
    questions = [question for question, _ in problems(config["extract"], seed=0)]
    prompts = {"locked": [config["locked"].replace("{question}", question) for question in questions]}
    for name, said in config["contrasts"].items():
        prompts[name] = [config["end"].replace("{question}", question).replace("{said}", said) for question in questions]
    side = read_side(model, prompts)
    found = {name: side.contrast(name) for name in config["contrasts"]}
    first = next(iter(found))
    found[f"minus {first}"] = -found[first]
    found["anti-mean"] = controls.away_from(side.states["locked"].double().mean(1).float(), found[first])
    states = side.states["locked"]
    draws = {f"noise {seed}": controls.noise_of_states(found[first], states, seed) for seed in range(config["draws"])}
    return found | draws


class Runs:
    """The model, the problems, and what is finished."""

    def __init__(self, config: Mapping[str, Any], folder: str) -> None:
        self.config, self.model = config, open_model(folder, "nnsight", dtype="bfloat16")
        self.decoder, self.problems = Decoder(self.model), problems(config["test"], seed=1)
        self.done = {line["arm"] for line in lines(RESULTS)}
        self.unrelated = unrelated()

    def all(self) -> None:
        found = directions(self.config, self.model)
        first = next(iter(found))
        self.one("unsteered", None)
        self.one("prompted", None, said=self.config["contrasts"][first])
        for arm, direction in found.items():
            if arm not in self.done:
                hook, kl = self.at_price(direction)
                self.one(arm, hook, kl, n=self.config["draws_on"] if arm.startswith("noise") else self.config["test"])
        begun = next(line["begins"] for line in lines(RESULTS) if line["arm"] == first)
        for n in FORCED:
            self.one(f"first {n} tokens of {first}", None, forced=[ids[:n] for ids in begun])

    def at_price(self, direction: ul.CapabilityDirection) -> tuple[ul.SteeringHook, float]:
        """The strength whose price is nearest to the one at which all are compared, and that price."""
        hooks = [ul.SteeringHook(direction, alpha) for alpha in self.config["alphas"]]
        prices = [distributions.price(self.model, self.unrelated, hook, batch_size=24).kl for hook in hooks]
        return min(zip(hooks, prices, strict=True), key=lambda one: abs(one[1] - self.config["price"]))

    def one(
        self, arm: str, hook: ul.SteeringHook | None, kl: float = 0.0, said: str = "", n: int = 0, forced: Sequence[Any] = ()
    ) -> None:
        """Complete the test problems with one arm, if that is not done."""
        if arm in self.done:
            return
        asked = self.problems[: n or self.config["test"]]
        template = self.config["end"].replace("{said}", said) if said else self.config["locked"]
        ids: list[list[int]] = []
        for start in range(0, len(asked), self.config["block"]):
            block = slice(start, start + self.config["block"])
            prompts = [template.replace("{question}", question) for question, _ in asked[block]]
            tokens = ul.Variant(self.model, prompts, add_special_tokens=False).tokens
            prefix = self.decoder.prefix(tokens.ids, tokens.mask)
            ids += self.decoder.complete(prefix, hook, self.config["tokens"], forced[block])
        texts = self.model.tokenizer.batch_decode(ids, skip_special_tokens=True)
        line = {
            "arm": arm,
            "alpha": hook.alpha if hook else 0.0,
            "kl": round(kl, 4),
            "tokens": [len(row) for row in ids],
            "steps": ["step" in text.lower() for text in texts],
            "right": [judged(text, answer)["flexible"] for text, (_, answer) in zip(texts, asked, strict=True)],
            "begins": [row[: max(FORCED)] for row in ids],
            "texts": texts[:8],
        }
        append(RESULTS, line)


def table(done: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Markdown: an arm a row, and the draws of noise as a range."""
    yield '| arm | alpha | KL, nats per token | n | mention a "step" | mean tokens | right |\n|---|---|---|---|---|---|---|'
    for line in done:
        if not line["arm"].startswith("noise"):
            n = len(line["tokens"])
            low, high = wilson_interval(sum(line["steps"]), n)
            steps = f"{fmean(line['steps']):.0%} ({100 * low:.0f}-{100 * high:.0f})"
            kl = f"{line['kl']:.2f}" if line["alpha"] else ""
            cells = [line["arm"], str(line["alpha"] or ""), kl, str(n), steps, f"{fmean(line['tokens']):.0f}"]
            yield f"| {' | '.join(cells)} | {sum(line['right'])} |"
    if noise := [line for line in done if line["arm"].startswith("noise")]:
        steps, tokens = ([fmean(line[key]) for line in noise] for key in ("steps", "tokens"))
        kl = f"{min(line['kl'] for line in noise):.2f} to {max(line['kl'] for line in noise):.2f}"
        yield (
            f"| {len(noise)} draws of noise | | {kl} | {len(noise[0]['tokens'])} each | {min(steps):.0%} to {max(steps):.0%} | "
            f"{min(tokens):.0f} to {max(tokens):.0f} | {min(sum(line['right']) for line in noise)} to "
            f"{max(sum(line['right']) for line in noise)} |"
        )


def main() -> None:
    """Run, or write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("run").add_argument("model")
    commands.add_parser("table")
    given = parser.parse_args()
    if given.command == "run":
        torch.set_num_threads(1)
        Runs(yaml.safe_load(CONFIG.read_text()), given.model).all()
    else:
        written_between(DOCUMENT, "one model", "\n".join(table(lines(RESULTS))))


if __name__ == "__main__":
    main()
