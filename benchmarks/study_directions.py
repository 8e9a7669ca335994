"""The study's directions: contrasts of the source, moved to the target by several maps, and controls. Kilobytes each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from decoding import Decoder
from torch import Tensor

import unlock_lens as ul
from unlock_lens import controls
from unlock_lens.core import read
from unlock_lens.core.direction import Provenance
from unlock_lens.hosts import backend_of, open_model
from unlock_lens.method import extract

CONTRASTS = ("cot", "same_end", "placebo")
PAPER_RANKS = (1, 4, 16)


@dataclass(frozen=True, eq=False)
class Side:
    """One model's last-token states of the extraction prompts, by kind of prompt."""

    model: Any
    states: Mapping[str, Tensor]

    def contrast(self, kind: str, aggregate: str = "mean", locked: str = "locked") -> ul.CapabilityDirection:
        differences = extract.differences(self.states[kind], self.states[locked])
        vectors = torch.stack([extract.aggregated(of_layer, aggregate) for of_layer in differences])
        identity = backend_of(self.model).identity
        made = Provenance(aggregate=aggregate, position=-1, n_prompts=differences.shape[1], steps=(f"contrast {kind}",))
        return ul.CapabilityDirection(vectors, tuple(range(len(vectors))), identity.basis, identity, made)


def read_side(model: Any, prompts: Mapping[str, Sequence[str]], add_special_tokens: bool = False) -> Side:
    """Read the last token of each prompt."""
    states: dict[str, Tensor] = {}
    for kind, texts in prompts.items():
        states[kind] = read.at_position(ul.Variant(model, texts, add_special_tokens))
        print(f"read {len(texts)} {kind} prompts with {backend_of(model).identity.name}", flush=True)  # noqa: T201
    return Side(model, states)


def completed(model: Any, prompts: Sequence[str], tokens: int) -> list[str]:
    """Prompts with what the model writes after them."""
    decoder, read_prompts = Decoder(model), ul.Variant(model, prompts, add_special_tokens=False).tokens
    written = decoder.complete(decoder.prefix(read_prompts.ids, read_prompts.mask), None, tokens)
    return [prompt + model.tokenizer.decode(ids) for prompt, ids in zip(prompts, written, strict=True)]


def prepare(config: Mapping[str, Any], source_folder: str, target_folder: str, questions: Sequence[str], out: Path) -> None:
    """Make every direction, and save it in the target's residual stream."""
    out.mkdir(parents=True, exist_ok=True)
    source, target = (
        open_model(folder, "nnsight", dtype=config["models"]["dtype"]) for folder in (source_folder, target_folder)
    )
    prompts = {
        kind: [template.replace("{question}", question) for question in questions]
        for kind, template in config["prompts"].items()
    }
    there = read_side(target, prompts)
    for kind in CONTRASTS:
        there.contrast(kind).save(out / f"own_{kind}.safetensors")
    own = there.contrast("same_end")
    controls.away_from(there.states["locked"].double().mean(1).float(), own).save(out / "anti_mean.safetensors")
    half = len(questions) // 2
    texts = prompts["locked"] + completed(
        target, prompts["cot"][:half] + prompts["same_end"][half:], config["calibration_tokens"]
    )
    here = read_side(source, prompts)
    contrasts = {kind: here.contrast(kind) for kind in CONTRASTS}
    models = backend_of(source).identity, backend_of(target).identity
    for kind in ("cot", "same_end"):
        for aggregate in ("mean", "pca"):
            for rank in PAPER_RANKS:
                paper = ul.SubspaceAligner(rank, centered=aggregate == "pca", positions="last")
                paper.fit_activations(here.states["locked"], there.states["locked"], *models)
                moved = paper.transport(here.contrast(kind, aggregate))
                moved.save(out / f"paper_{kind}_{aggregate}_{rank}.safetensors")
    text = ul.SubspaceAligner(config["rank"]).fit(
        ul.Variant(source, texts, add_special_tokens=False), ul.Variant(target, texts, add_special_tokens=False)
    )
    for kind in CONTRASTS:
        text.transport(contrasts[kind]).save(out / f"text_{kind}.safetensors")
    for seed in range(config["noise"]):
        noise = controls.noise_of_states(contrasts["same_end"], here.states["locked"], seed)
        text.transport(noise).save(out / f"noise_{seed}.safetensors")
    print(f"{text.n_tokens} calibration tokens; directions are in {out}", flush=True)  # noqa: T201
