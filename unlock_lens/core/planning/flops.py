"""FLOPs of forward passes, counted on a model that has shapes and no weights."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch

from unlock_lens.errors import UnsupportedModel

_BUILT = 8
"""Blocks that are built and counted, so that 126 take no longer; those beyond repeat the last of them."""
_PERIOD = 4
"""How many they repeat: blocks alternate in ones, twos or fours (dense and mixture of experts), if at all."""
_LENGTHS = (16, 32)


@dataclass(frozen=True)
class Part:
    """FLOPs of one part of a model: so many for each token, and for each pair of a token and one that it attends to."""

    token: float = 0.0
    pair: float = 0.0

    def __add__(self, other: Part) -> Part:
        return Part(self.token + other.token, self.pair + other.pair)

    def of(self, tokens: int, pairs: int) -> float:
        return self.token * tokens + self.pair * pairs


@dataclass(frozen=True)
class PassCost:
    """FLOPs of a model's parts; a multiplication and an addition are two.

    Attributes:
        blocks: one for each.
        around: what comes before the blocks.
        head: of the output head, for one token.
        modules: how many the whole model has, each of which a request names.
    """

    blocks: tuple[Part, ...]
    around: Part
    head: float
    modules: int

    @classmethod
    def of(cls, config: Any) -> PassCost:
        """Count passes of two lengths: a pass is linear in tokens, but for attention, which is linear in pairs of them.

        Raises:
            UnsupportedModel: a model that cannot run without weights.
        """
        n = int(config.num_hidden_layers)
        model = _built(_shortened(config, min(n, _BUILT)))
        short, long = (_counted(model, length) for length in _LENGTHS)
        *blocks, around, head = (_part(a, b) for a, b in zip(short, long, strict=True))
        built = [len(list(block.modules())) for block in _blocks_of(model)[1]]
        repeated = [i if i < _BUILT else _BUILT - _PERIOD + i % _PERIOD for i in range(n)]
        modules = len(list(model.modules())) - sum(built) + sum(built[i] for i in repeated)
        return cls(tuple(blocks[i] for i in repeated), around, head.token, modules)

    def forward(self, rows: int, length: int, last: int) -> int:
        """A pass over a padded batch, up to the output of block `last`; padding is computed like any token."""
        part = sum(self.blocks[: last + 1], self.around)
        return round(rows * part.of(length, length**2))

    def generation(self, rows: int, length: int, new: int) -> int:
        """Completions of `new` tokens each, with a KV cache: the head sees each prompt's last token, and those written."""
        part = sum(self.blocks, self.around)
        decoded = part.of(new - 1, sum(length + i for i in range(1, new)))
        return round(rows * (part.of(length, length**2) + decoded + self.head * new))


def _part(short: int, long: int) -> Part:
    """Of the FLOPs of passes over two lengths."""
    per_token = [count / length for count, length in zip((short, long), _LENGTHS, strict=True)]
    pair = (per_token[1] - per_token[0]) / (_LENGTHS[1] - _LENGTHS[0])
    return Part(per_token[0] - pair * _LENGTHS[0], pair)


def _shortened(config: Any, layers: int) -> Any:
    """The same config with fewer layers; what it says of each layer (such as its kind of attention) is cut too."""
    short, n = copy.deepcopy(config), config.num_hidden_layers
    for name, value in vars(config).items():
        if isinstance(value, list) and len(value) == n:
            setattr(short, name, value[:layers])
    short.num_hidden_layers = layers
    short._experts_implementation = "batched_mm"  # a mixture of experts whose products can be counted without weights
    return short


def _built(config: Any) -> Any:
    """The model without weights; eager attention, whose products can be counted."""
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="eager").eval()
    except ValueError as error:
        raise UnsupportedModel(f"a {config.model_type} model is no decoder that can be planned for: {error}") from error


def _counted(model: Any, length: int) -> list[int]:
    """FLOPs of each block, of what is around them, and of the head, in a pass over one row."""
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    ids = torch.zeros(1, length, dtype=torch.long, device="meta")
    try:
        with torch.device("meta"), torch.no_grad(), counter:
            model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    except (RuntimeError, NotImplementedError) as error:
        kind = model.config.model_type
        raise UnsupportedModel(f"the passes of a {kind} model cannot be counted without its weights: {error}") from error
    counts = {name: sum(by_kind.values()) for name, by_kind in counter.get_flop_counts().items()}
    root, (path, found) = type(model).__name__, _blocks_of(model)
    blocks = [counts.get(f"{root}.{path}.{i}", 0) for i in range(len(found))]
    body = counts.get(f"{root}.{model.base_model_prefix}", 0)
    return [*blocks, body - sum(blocks), counts[root] - body]


def _blocks_of(model: Any) -> tuple[str, torch.nn.ModuleList]:
    """The list of blocks, and its path."""
    lists = [(name, part) for name, part in model.named_modules() if isinstance(part, torch.nn.ModuleList)]
    blocks = [(name, part) for name, part in lists if len(part) == model.config.num_hidden_layers]
    if not blocks:
        raise UnsupportedModel(f"a {model.config.model_type} model has no list of blocks; a decoder is needed")
    return min(blocks, key=lambda found: found[0].count("."))
