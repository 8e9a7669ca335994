"""Beside its peers: extraction, steered generation and fits of unlock-lens, its hosts alone, steering-vectors, repeng, saklas.

    make bench-peers

The peers need transformers below 5, so they run in an environment of their own; every number is a ratio to the bare Hugging
Face model in the same process, so that ratios compare across environments. docs/speed.md says what each does differently.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nnsight
import peers_fit
import torch
from measure import Work, interleaved
from peers_measure import EXTRACTED, GENERATED, generate
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file
from speed_extract import LENGTHS, PAIRS
from speed_generate import TOKENS, steered, unsteered
from speed_models import BATCH, HOSTS, SHAPE, Models, bare_pass, batches, make_folder, prompts, random_direction

import unlock_lens as ul
from unlock_lens.core.variant import tokenize

PARTS = ("ours", "steering", "fits")
OVER_HOST = "generation, over the host's own"
Found = Mapping[str, Mapping[str, Mapping[str, float]]]


def ours(models: Models, told: Mapping[str, Any]) -> Found:
    """Both hosts; generation at the last prompt token (the paper's) and at every token (what the peers do)."""
    texts, rounds = told["texts"], told["rounds"]
    read = [batch for text in texts for batch in batches(ul.Variant(models.bridge, text), told["batch"])]
    extraction: dict[str, Work] = {"bare": partial(bare_pass, models.bare, read)}
    generation: dict[str, Work] = {
        "bare": partial(generate, models.bare, tokenize(models.tokenizer, [told["prompt"]]).ids, TOKENS)
    }
    for host in HOSTS:
        model = models.of_host(host)
        extraction[host] = partial(_extract, model, texts, told["batch"])
        extraction[f"{host} alone"] = partial(READ_ALONE[host], model, read)
        generation[host] = unsteered(model, host)
        generation[f"{host} alone, edited"] = partial(EDITED_ALONE[host], model, told["prompt"])
        generation[f"{host}, last_prompt"] = steered(model, "last_prompt")
        generation[f"{host}, every token"] = steered(model, "all")
    extracted, generated = interleaved(extraction, rounds), interleaved(generation, rounds)
    found = {
        f"unlock-lens, {host}, {positions}": {
            EXTRACTED: asdict(extracted.ratio(host, "bare")),
            GENERATED: asdict(generated.ratio(f"{host}, {positions}", "bare")),
            OVER_HOST: asdict(generated.ratio(f"{host}, {positions}", host)),
        }
        for host in HOSTS
        for positions in ("last_prompt", "every token")
    }
    for host, package in zip(HOSTS, ("transformer-lens", "nnsight"), strict=True):
        found[f"{host} {version(package)} alone, unsteered"] = {
            EXTRACTED: asdict(extracted.ratio(f"{host} alone", "bare")),
            GENERATED: asdict(generated.ratio(host, "bare")),
        }
        found[f"{host} alone, a vector added at the last prompt token"] = {
            GENERATED: asdict(generated.ratio(f"{host} alone, edited", "bare")),
            OVER_HOST: asdict(generated.ratio(f"{host} alone, edited", host)),
        }
    return found


def _read_bridge(model: Any, read: Sequence[Mapping[str, torch.Tensor]]) -> list[torch.Tensor]:
    """The last token's state of every layer, by hooks written by hand."""
    kept: list[torch.Tensor] = []
    names = [f"blocks.{layer}.hook_resid_post" for layer in range(model.cfg.n_layers)]
    hooks = [(name, lambda states, hook: kept.append(states[:, -1].clone())) for name in names]
    with torch.no_grad():
        for batch in read:
            model.run_with_hooks(
                batch["input_ids"], attention_mask=batch["attention_mask"], return_type="logits", fwd_hooks=hooks
            )
    return kept


def _read_nnsight(model: Any, read: Sequence[Mapping[str, torch.Tensor]]) -> list[torch.Tensor]:
    """The same in a trace."""
    kept: list[torch.Tensor] = []
    with torch.no_grad():
        for batch in read:
            inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
            with model.trace(inputs):
                states = nnsight.save([block.output[:, -1].clone() for block in model.model.layers])
            kept += states
    return kept


def _edited_bridge(model: Any, prompt: str) -> Any:
    """A vector added to the last prompt token at every layer, by hooks written by hand that look at each pass."""
    vectors, tokens = random_direction().vectors, tokenize(model.tokenizer, [prompt])

    def adding(layer: int) -> Any:
        def hook_fn(states: torch.Tensor, hook: Any) -> torch.Tensor:
            if states.shape[1] > 1:
                states[:, -1] += 0.1 * vectors[layer]
            return states

        return f"blocks.{layer}.hook_resid_post", hook_fn

    with model.hooks(fwd_hooks=[adding(layer) for layer in range(len(vectors))]):
        return model.generate(
            tokens.ids, max_new_tokens=TOKENS, attention_mask=tokens.mask, return_type="tokens",
            do_sample=False, stop_at_eos=False, prepend_bos=False, verbose=False,
        )  # fmt: skip


def _edited_nnsight(model: Any, prompt: str) -> Any:
    """The same in the body of `generate`, which edits the first pass alone."""
    vectors, tokens = random_direction().vectors, tokenize(model.tokenizer, [prompt])
    inputs = {"input_ids": tokens.ids, "attention_mask": tokens.mask}
    with model.generate(max_new_tokens=TOKENS, do_sample=False) as tracer:
        with tracer.invoke(inputs):
            for block, vector in zip(model.model.layers, vectors, strict=True):
                block.output[:, -1] += 0.1 * vector
        with tracer.invoke():
            ids = tracer.result.save()
    return ids


READ_ALONE = {"TransformerBridge": _read_bridge, "nnsight": _read_nnsight}
EDITED_ALONE = {"TransformerBridge": _edited_bridge, "nnsight": _edited_nnsight}


def _extract(model: Any, texts: list[list[str]], size: int) -> ul.CapabilityDirection:
    """Tokenized each time, as the peers do."""
    locked, unlocked = (ul.Variant(model, text) for text in texts)
    return ul.CapabilityDirection.extract(locked, unlocked, batch_size=size, progress=False)


def theirs(python: Path, told: Mapping[str, Any]) -> dict[str, Any]:
    """Measured by the other environment's Python."""
    script = Path(__file__).parent / "peers_measure.py"
    quiet = {**os.environ, "TQDM_DISABLE": "1"}
    done = subprocess.run([python, script], input=json.dumps(told), stdout=subprocess.PIPE, text=True, check=True, env=quiet)
    return json.loads(done.stdout)


def our_fits(states: dict[str, torch.Tensor], rounds: int) -> dict[str, Any]:
    """The default map, and the orthogonal one."""

    def fit(method: Any, source: torch.Tensor, target: torch.Tensor) -> peers_fit.Predict:
        aligner = ul.SubspaceAligner(method=method).fit_activations(source, target)
        means = source.mean(dim=1), target.mean(dim=1)
        return lambda layer, states: (states - means[0][layer]) @ aligner.map(layer) + means[1][layer]

    methods = ("unlock", "procrustes")
    return {f"unlock-lens, {method}": peers_fit.measured(states, partial(fit, method), rounds) for method in methods}


def fits_table(found: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Table:
    """One line a library and pair of widths."""
    shown = Table("fit", "widths", "over two thin SVDs a layer", "peak MB", "held-out error", box=SIMPLE_HEAD)
    for name, of_widths in found.items():
        for widths, of in of_widths.items():
            time = f"{of['minimum']:.2f} ({of['median']:.2f})"
            shown.add_row(name, widths, time, f"{of['megabytes']:.1f}", f"{of['error']:.3f}")
    return shown


def table(found: Found) -> Table:
    """One line a library; the peers steer the bare model itself, so they have no host."""
    columns = (EXTRACTED, GENERATED, OVER_HOST)
    shown = Table("ratio to the bare model: least times (median)", *columns, box=SIMPLE_HEAD)
    for name, ratios in found.items():
        cells = [f"{of['minimum']:.2f} ({of['median']:.2f})" if (of := ratios.get(column)) else "" for column in columns]
        shown.add_row(name, *cells)
    return shown


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", type=Path, default=Path(".venv-peers/bin/python"), help="of the peers' environment")
    parser.add_argument("--rounds", type=int, default=5, help="how often each work is timed (5)")
    parser.add_argument(
        "--only", nargs="+", choices=PARTS, default=PARTS, help="ours and the hosts alone, the peers' steering, or all fits"
    )
    parser.add_argument("--json", type=Path, help="where to write what was found")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("unlock_lens").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        make_folder(Path(folder), SHAPE)
        told: dict[str, Any] = {
            "folder": folder,
            "texts": [prompts(PAIRS, *LENGTHS, seed=seed) for seed in (0, 1)],
            "batch": BATCH,
            "prompt": prompts(1, 24, 24)[0],
            "tokens": TOKENS,
            "rounds": asked.rounds,
            "only": asked.only,
            "states": str(Path(folder) / "states.safetensors"),
        }
        states = peers_fit.make_states()
        save_file(states, told["states"])
        others = theirs(asked.python, told) if {"steering", "fits"} & set(asked.only) else {}
        steering = {**(ours(Models(Path(folder)), told) if "ours" in asked.only else {}), **others.get("steering", {})}
        fits = {**(our_fits(states, asked.rounds) if "fits" in asked.only else {}), **others.get("fits", {})}
    today = str(date.today())
    Console(width=128).print(today, table(steering), fits_table(fits))
    if asked.json:
        asked.json.write_text(json.dumps({"date": today, "steering": steering, "fits": fits}, indent=1))


if __name__ == "__main__":
    main()
