"""steering-vectors, repeng and saklas, measured in an environment of their own; started by peers.py.

Prints JSON: what extraction and steered generation take, as ratios to the bare model in this process, and what a fit does.
"""
# pyright: reportMissingImports=false
# This file runs where unlock-lens is not installed, and the peers are not installed where it is checked.

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from typing import Any

import peers_fit
import torch
from measure import Work, interleaved

EXTRACTED, GENERATED = "extraction", "generation"


def bare_batches(tokenizer: Any, texts: Sequence[str], size: int) -> list[Any]:
    """Left-padded, in the given order, as both libraries take them."""
    return [tokenizer(list(texts[i : i + size]), padding=True, return_tensors="pt") for i in range(0, len(texts), size)]


def bare_pass(model: Any, batches: Sequence[Any]) -> None:
    """The model's body alone."""
    with torch.no_grad():
        for batch in batches:
            model.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)


def generate(model: Any, ids: torch.Tensor, tokens: int) -> Any:
    """Greedy, with the KV cache."""
    return model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False)


def fits(told: dict[str, Any]) -> dict[str, Any]:
    """The map of saklas: orthogonal between equal widths, otherwise least squares of the least norm."""
    from safetensors.torch import load_file
    from saklas.io.alignment import fit_alignment

    def fit(source: torch.Tensor, target: torch.Tensor) -> peers_fit.Predict:
        maps = fit_alignment(dict(enumerate(source)), dict(enumerate(target)), min_shared_layers=1)
        return lambda layer, states: states @ maps[layer].right.T @ maps[layer].left.T + maps[layer].offset

    return peers_fit.measured(load_file(told["states"]), fit, told["rounds"])


def measured(told: dict[str, Any]) -> dict[str, Any]:
    """All ratios; `told` is what peers.py says: folder, texts, batch, prompt, tokens, rounds."""
    from repeng import ControlModel, ControlVector, DatasetEntry
    from steering_vectors import train_steering_vector
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer: Any = PreTrainedTokenizerFast.from_pretrained(told["folder"])
    load = partial(LlamaForCausalLM.from_pretrained, told["folder"], dtype=torch.float32, attn_implementation="eager")
    bare, steered, controlled = (load().eval() for _ in range(3))
    locked, unlocked = told["texts"]
    pairs = list(zip(unlocked, locked, strict=True))
    entries = [DatasetEntry(positive, negative) for positive, negative in pairs]
    size = told["batch"]

    vector = train_steering_vector(steered, tokenizer, pairs, batch_size=size)
    control = ControlVector.train(bare, tokenizer, entries, batch_size=size)
    extraction: dict[str, Work] = {
        "bare": partial(bare_pass, bare, [batch for text in told["texts"] for batch in bare_batches(tokenizer, text, size)]),
        "steering-vectors": partial(train_steering_vector, bare, tokenizer, pairs, batch_size=size),
        "repeng": partial(ControlVector.train, bare, tokenizer, entries, batch_size=size),
    }
    times = {EXTRACTED: interleaved(extraction, told["rounds"])}

    vector.patch_activations(steered, multiplier=0.1)
    with_control = ControlModel(controlled, list(control.directions))
    with_control.set_control(control, 0.1)
    ids = tokenizer(told["prompt"], return_tensors="pt")["input_ids"]
    models = {"bare": bare, "steering-vectors": steered, "repeng": with_control}
    generation: dict[str, Work] = {name: partial(generate, model, ids, told["tokens"]) for name, model in models.items()}
    times[GENERATED] = interleaved(generation, told["rounds"])
    return {
        f"{name} {version(name)}": {what: asdict(of.ratio(name, "bare")) for what, of in times.items()}
        for name in ("steering-vectors", "repeng")
    }


def main() -> None:
    """Reads what to do from standard input."""
    torch.set_num_threads(1)
    told = json.load(sys.stdin)
    with redirect_stdout(sys.stderr):
        found = {
            "steering": measured(told) if "steering" in told["only"] else {},
            "fits": {f"saklas {version('saklas')}": fits(told)} if "fits" in told["only"] else {},
        }
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
