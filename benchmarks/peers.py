"""Beside its peers: extraction and steered generation of unlock-lens, steering-vectors and repeng on one model.

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
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measure import Work, interleaved
from peers_measure import EXTRACTED, GENERATED, generate
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from speed_extract import LENGTHS, PAIRS
from speed_generate import TOKENS, steered, unsteered
from speed_models import BATCH, HOSTS, SHAPE, Models, bare_pass, batches, make_folder, prompts

import unlock_lens as ul
from unlock_lens.core.variant import tokenize

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
        generation[host] = unsteered(model, host)
        generation[f"{host}, last_prompt"] = steered(model, "last_prompt")
        generation[f"{host}, every token"] = steered(model, "all")
    extracted, generated = interleaved(extraction, rounds), interleaved(generation, rounds)
    return {
        f"unlock-lens, {host}, {positions}": {
            EXTRACTED: asdict(extracted.ratio(host, "bare")),
            GENERATED: asdict(generated.ratio(f"{host}, {positions}", "bare")),
            OVER_HOST: asdict(generated.ratio(f"{host}, {positions}", host)),
        }
        for host in HOSTS
        for positions in ("last_prompt", "every token")
    }


def _extract(model: Any, texts: list[list[str]], size: int) -> ul.CapabilityDirection:
    """Tokenized each time, as the peers do."""
    locked, unlocked = (ul.Variant(model, text) for text in texts)
    return ul.CapabilityDirection.extract(locked, unlocked, batch_size=size, progress=False)


def theirs(python: Path, told: Mapping[str, Any]) -> Found:
    """Measured by the other environment's Python."""
    script = Path(__file__).parent / "peers_measure.py"
    quiet = {**os.environ, "TQDM_DISABLE": "1"}
    done = subprocess.run([python, script], input=json.dumps(told), stdout=subprocess.PIPE, text=True, check=True, env=quiet)
    return json.loads(done.stdout)


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
        }
        found = {**ours(Models(Path(folder)), told), **theirs(asked.python, told)}
    Console(width=128).print(table(found))
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
