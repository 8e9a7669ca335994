"""The card of a folder or a repository: what its artifacts are, made from what they tell of themselves."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from typing import Any

from unlock_lens.core import artifact
from unlock_lens.errors import ArtifactError

Told = Mapping[str, Any]
CARD = "README.md"
ENCODING = "utf-8-sig"
"""To read a card by: some editors put a mark before the first sign, which would hide the metadata."""
BEGIN = "<!-- unlock-lens writes from here to its next comment whenever an artifact is saved; write above or below -->"
END = "<!-- unlock-lens ends here -->"
_LIBRARY = "unlock-lens"
_TAGS = (_LIBRARY, "activation-steering", "interpretability")
_FRONT_MATTER = f"---\nlibrary_name: {_LIBRARY}\n---\n\n"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def file_of(kind: str) -> str:
    """The name of an artifact's file in folders and repositories."""
    return f"{kind}.safetensors"


def card_of(name: str, all_told: Mapping[str, Told], written: str | None) -> str:
    """The card of a folder or a repository: metadata for the hub, and what its artifacts tell.

    Args:
        name: by which it is loaded.
        all_told: metadata of the artifacts, by kind.
        written: the card that is there. Its own text and metadata stay.

    Raises:
        ArtifactError: metadata of an artifact or of the card that cannot be read.
    """
    import yaml
    from huggingface_hub import ModelCard

    text = f"# {name.rsplit('/', 1)[-1]}\n" if written is None else written
    try:
        card = ModelCard(text if text.lstrip().startswith("---") else _FRONT_MATTER + text)
    except (ValueError, TypeError, RecursionError, yaml.YAMLError) as error:
        raise ArtifactError(
            f"the metadata at the top of {name}'s {CARD} cannot be read; mend it, or remove the file"
        ) from error
    with artifact.reading(f"an artifact beside {name}'s {CARD}"):
        told = [section for kind in KINDS if kind in all_told for section in KINDS[kind](name, all_told[kind])]
        models = [model for kind in KINDS if kind in all_told for model in _models(all_told[kind])]
    above, below = _own_text(card.text)
    made = "\n\n".join((BEGIN, *told, _CAVEAT, END))
    card.text = f"{above.rstrip()}\n\n{made}\n{below}"
    card.data["library_name"] = card.data.get("library_name") or _LIBRARY
    card.data["tags"] = _added(card.data.get("tags"), _TAGS)
    if on_hub := [model["name"] for model in models if _HUB_ID.fullmatch(model["name"])]:
        card.data["base_model"] = _added(card.data.get("base_model"), on_hub)
    return str(card)


def _added(own: Any, ours: Sequence[str]) -> list[Any]:
    """What stands in the metadata, one thing or a list, and after it what is not there yet."""
    there = own if isinstance(own, list) else [own] if own else []
    return [*there, *(one for one in dict.fromkeys(ours) if one not in there)]


def _own_text(text: str) -> tuple[str, str]:
    """What was written above and below the part that is made; where a mark is missing, all of it is above."""
    above, begun, rest = text.rpartition(BEGIN)
    _, ended, below = rest.partition(END)
    return (above, below.removeprefix("\n")) if begun and ended else (text, "")


_CAVEAT = """## Before you rely on it

That text changes under steering proves no transfer: random directions, and "away from the target's mean state", can do that
too. Hold the gain against those controls, at the same strength and on problems that chose nothing; `unlock-lens sweep` runs
all of them.

The method is UNLOCK, [arXiv:2604.06377](https://arxiv.org/abs/2604.06377)."""


def _direction_section(name: str, told: Told) -> Sequence[str]:
    made, model = told["provenance"], told["model"]
    unlocked, source = made["unlocked_model"], made["source_model"]
    prompts = f"{made['n_prompts']}; hash of the locked {made['locked_hash']}, of the unlocked {made['unlocked_hash']}"
    rows = {
        **_model_rows("model", model),
        "basis": told["basis"],
        "layers": ", ".join(map(str, told["layers"])),
        "aggregate": made["aggregate"],
        "token of the prompt": made["position"],
        "prompts": prompts if made["n_prompts"] else None,
        **(_model_rows("unlocked model", unlocked) if unlocked not in (model, source) else {}),
        **_model_rows("transported from", source),
        "rank of the map": made["rank"],
        **{f"then ({i})": step for i, step in enumerate(made["steps"], 1)},
    }
    return (
        f"## {file_of('direction')}: a capability direction",
        f"One vector a layer, in the residual stream of {_named(model)} at the outputs of blocks (layer l: of block l).",
        _table({**rows, **_file_rows(told)}),
        f"""```python
import unlock_lens as ul

direction = ul.CapabilityDirection.from_pretrained("{name}")
steer = ul.SteeringHook(direction, alpha=0.3)  # the strength is yours to choose
completions = ul.generate(model, prompts, steer=steer)
```""",
    )


def _aligner_section(name: str, told: Told) -> Sequence[str]:
    from unlock_lens.core.alignment import SubspaceAligner

    settings = [setting for setting in signature(SubspaceAligner).parameters if setting != "layer_map"]  # a row of its own
    rows = {
        **_model_rows("source", told["source_model"]),
        **_model_rows("target", told["target_model"]),
        **{setting: told.get(setting) for setting in settings},
        "chosen by cross-validation": _chosen(told.get("cross_validation")),
        "target layer from source layer": ", ".join(f"{b} from {a}" for b, a in told["layer_map"]),
        "calibration": f"{told['n_tokens']} tokens; hash of the texts {told['prompts_hash']}",
    }
    return (
        f"## {file_of('aligner')}: a map between two models",
        f"It carries directions from the residual stream of {_named(told['source_model'])} to {_named(told['target_model'])}.",
        _table({**rows, **_file_rows(told)}),
        f"""```python
import unlock_lens as ul

aligner = ul.SubspaceAligner.from_pretrained("{name}")
moved = aligner.transport(direction)  # a direction of the source; steer the target with what comes out
```""",
    )


def _chosen(cross_validation: Told | None) -> str | None:
    from unlock_lens.method.crossval import CrossValidation

    if not cross_validation:
        return None
    rank, ridge = CrossValidation.from_json(cross_validation).best
    return f"rank {rank}, ridge {ridge:g}"


KINDS: Mapping[str, Callable[[str, Told], Sequence[str]]] = {"direction": _direction_section, "aligner": _aligner_section}


def _models(told: Told) -> list[Told]:
    """All models that an artifact names."""
    made = told.get("provenance", {})
    named = [told.get("model"), made.get("source_model"), told.get("source_model"), told.get("target_model")]
    return [model for model in named if model]


def _named(model: Told | None) -> str:
    """A hub id; of what looks like a path its last part alone."""
    if not model:
        return "a model that is not named"
    name = model["name"] if _HUB_ID.fullmatch(model["name"]) else re.split(r"[/\\]", model["name"])[-1]
    return f"`{name}`"


def _model_rows(what: str, model: Told | None) -> dict[str, Any]:
    if model is None:
        return {}
    shape = f"{model['n_layers']} layers, d_model {model['d_model']}, {model['basis']}"
    known = {"revision": model.get("revision"), "weights": model.get("fingerprint")}
    return {what: ", ".join([_named(model), shape, *(f"{key} {value}" for key, value in known.items() if value)])}


def _file_rows(told: Told) -> dict[str, Any]:
    return {"written": f"{told['created']}, unlock-lens {told['library_version']}", "hash of the numbers": told["content_hash"]}


def _table(rows: Mapping[str, Any]) -> str:
    shown = {key: " ".join(str(value).split()).replace("|", "\\|") for key, value in rows.items() if value is not None}
    return "\n".join(["| what | value |", "|---|---|", *(f"| {key} | {value} |" for key, value in shown.items())])
