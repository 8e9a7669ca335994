"""The study's directions: contrasts of the source, moved to the target by several maps, and controls. Kilobytes each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from decoding import Decoder
from torch import Tensor

import unlock_lens as ul
from unlock_lens import controls
from unlock_lens.core import read
from unlock_lens.core.direction import Provenance
from unlock_lens.evidence.diagnosis import Diagnosis
from unlock_lens.hosts import backend_of, open_model
from unlock_lens.method import extract

FORECAST_ON = 16
"""Prompts of each side that the forecast looks at."""


@dataclass(frozen=True, eq=False)
class Side:
    """One model's last-token states of the extraction prompts, by kind of prompt."""

    model: Any
    states: Mapping[str, Tensor]

    def contrast(
        self, kind: str, aggregate: str = "mean", locked: str = "locked", n: int | None = None
    ) -> ul.CapabilityDirection:
        """The direction from the locked prompts to those of a kind, of all prompts or the first n."""
        differences = extract.differences(self.states[kind][:, :n], self.states[locked][:, :n])
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


def completions(model: Any, prompts: Sequence[str], tokens: int) -> list[str]:
    """What the model writes after each prompt."""
    decoder, read_prompts = Decoder(model), ul.Variant(model, prompts, add_special_tokens=False).tokens
    written = decoder.complete(decoder.prefix(read_prompts.ids, read_prompts.mask), None, tokens)
    return [model.tokenizer.decode(ids) for ids in written]


def prompt(config: Mapping[str, Any], kind: str, question: str) -> str:
    """One prompt of a kind; a few-shot prompt has worked problems before it, asked alike."""
    if kind == "few_shot":
        shown = [f"{prompt(config, 'locked', asked)}{worked}<|im_end|>\n" for asked, worked in config["few_shot"]]
        return "".join([*shown, prompt(config, "locked", question)])
    filled = config["chat"]
    for name, text in (*config["prompts"][kind].items(), ("question", question)):
        filled = filled.replace(f"{{{name}}}", text)
    return filled


class Preparation:
    """Both models, the prompts, and where directions go."""

    def __init__(
        self, config: Mapping[str, Any], source: str, target: str, questions: Sequence[str], out: Path, maps: Path
    ) -> None:
        self.config, self.folders, self.out, self.maps = config, (source, target), out, maps
        self.prompts = {kind: [prompt(config, kind, question) for question in questions] for kind in config["prompts"]}
        self.contrasts = [kind for kind in self.prompts if kind != "locked"]
        out.mkdir(parents=True, exist_ok=True)

    @cached_property
    def source(self) -> Any:
        return open_model(self.folders[0], "nnsight", dtype=self.config["models"]["dtype"])

    @cached_property
    def target(self) -> Any:
        return open_model(self.folders[1], "nnsight", dtype=self.config["models"]["dtype"])

    @cached_property
    def begun(self) -> dict[str, list[str]]:
        """The prompts of the calibration texts."""
        return {kind: of[: self.config["problems"]["texts"]] for kind, of in self.prompts.items()}

    @cached_property
    def completed(self) -> dict[str, list[str]]:
        """What the target writes after them."""
        return {kind: self.written(self.target, of) for kind, of in self.begun.items() if kind != "locked"}

    @property
    def texts(self) -> list[str]:
        """The main map's calibration texts."""
        pairs = [zip(self.begun[kind], of, strict=True) for kind, of in self.completed.items()]
        return self.begun["locked"] + [a + b for of in pairs for a, b in of]

    def all(self) -> None:
        """Make every direction of the trained source through the main map, and keep that map for the forecast."""
        here, there = read_side(self.source, self.prompts), read_side(self.target, self.prompts)
        self.own(there)
        self.paper(here, there)
        main = self.map(self.source, self.texts)
        self.maps.mkdir(parents=True, exist_ok=True)
        main.save(self.maps / "text.safetensors")
        for kind in self.contrasts:
            self.save(main.transport(here.contrast(kind)), f"text_{kind}")
        self.save(-main.transport(here.contrast("same_end")), "minus_same_end")
        for seed in range(self.config["noise"]):
            noise = controls.noise_of_states(here.contrast("same_end"), here.states["locked"], seed)
            self.save(main.transport(noise), f"noise_{seed}")

    def untrained(self) -> None:
        """The same direction from a source with random weights, through its own map; only its config and tokenizer are read."""
        blank = untrained(self.folders[0])
        here = read_side(blank, {kind: self.prompts[kind] for kind in ("locked", "same_end")})
        self.save(self.map(blank, self.texts).transport(here.contrast("same_end")), "untrained_same_end")

    def own(self, there: Side) -> None:
        """The target's own directions, and away from its locked states."""
        for kind in ("cot", "same_end"):
            self.save(there.contrast(kind), f"own_{kind}")
        self.save(controls.away_from(there.states["locked"].double().mean(1).float(), there.contrast("same_end")), "anti_mean")

    def paper(self, here: Side, there: Side) -> None:
        """The paper's calibration, the last tokens of the locked prompts, with all of its grid that these prompts allow."""
        models = backend_of(self.source).identity, backend_of(self.target).identity
        for name, kind, rank, n, aggregate in paper_grid(self.config):
            aligner = ul.SubspaceAligner(rank, centered=aggregate == "pca", positions="last")
            aligner.fit_activations(here.states["locked"][:, :n], there.states["locked"][:, :n], *models)
            self.save(aligner.transport(here.contrast(kind, aggregate, n=n)), name)

    def other_texts(self) -> None:
        """The same direction through maps of other calibration texts; those that there are already are left."""
        here = read_side(self.source, {kind: self.prompts[kind] for kind in ("locked", "same_end")})
        for name, texts in OTHER_TEXTS.items():
            if not (self.out / f"{name}_same_end.safetensors").exists():
                self.save(self.map(self.source, texts(self)).transport(here.contrast("same_end")), f"{name}_same_end")

    @property
    def written_by_source(self) -> list[str]:
        both = self.begun["locked"] + self.begun["same_end"]
        return [a + b for a, b in zip(both, self.written(self.source, both), strict=True)]

    def written(self, model: Any, prompts: Sequence[str]) -> list[str]:
        return completions(model, prompts, self.config["calibration_tokens"])

    def map(self, source: Any, texts: Sequence[str]) -> ul.SubspaceAligner:
        """The default calibration on these texts."""
        here, there = (ul.Variant(model, texts, add_special_tokens=False) for model in (source, self.target))
        aligner = ul.SubspaceAligner(self.config["rank"]).fit(here, there)
        print(f"a map of {len(texts)} texts, {aligner.n_tokens} tokens", flush=True)  # noqa: T201
        return aligner

    def save(self, direction: ul.CapabilityDirection, name: str) -> None:
        direction.save(self.out / f"{name}.safetensors")

    def forecast(self) -> dict[str, Diagnosis]:
        """What `diagnose` says of the main map before anything is generated."""
        main = ul.SubspaceAligner.load(self.maps / "text.safetensors")
        here = read_side(self.source, {kind: self.prompts[kind] for kind in ("locked", "same_end", "cot", "placebo")})
        some = {kind: of[:FORECAST_ON] for kind, of in self.prompts.items()}
        locked = ul.Variant(self.target, some["locked"], add_special_tokens=False)
        return {
            kind: ul.diagnose(
                here.contrast(kind),
                main,
                locked=locked,
                unlocked=ul.Variant(self.source, some[kind], add_special_tokens=False),
                own=ul.CapabilityDirection.load(self.out / f"own_{kind}.safetensors") if kind != "placebo" else None,
            )
            for kind in ("same_end", "cot", "placebo")
        }


OTHER_TEXTS: Mapping[str, Callable[[Preparation], list[str]]] = {
    "prompts": lambda of: [text for kind in of.begun.values() for text in kind],
    "solutions": lambda of: of.begun["locked"] + [text for kind in of.completed.values() for text in kind],
    "source_text": lambda of: of.written_by_source,
}


def paper_grid(config: Mapping[str, Any]) -> Iterator[tuple[str, str, int, int, str]]:
    """Name, contrast, rank, prompts and aggregate of each direction that the paper's calibration chooses from."""
    of = config["paper"]
    for kind in ("cot", "same_end"):
        for aggregate in of["aggregates"]:
            for n in of["prompts"]:
                for rank in (rank for rank in of["ranks"] if rank <= n):
                    yield f"paper_{kind}_{aggregate}_n{n}_r{rank}", kind, rank, n, aggregate


def untrained(folder: str) -> Any:
    """A model of a folder's shape and tokenizer with weights as they are before training."""
    from nnsight import TransformersModel
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    blank: Any = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=torch.bfloat16)
    blank.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    return TransformersModel(blank, tokenizer=AutoTokenizer.from_pretrained(folder))
