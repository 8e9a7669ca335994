"""The model of the speed benchmarks: a Llama with random weights, bare and in each host, and prompts for it.

The shape is SmolLM2-135M's with 12 layers for 30, and so with 19,661 words for 49,152: the output head takes the share of a
pass that it takes there, and hides no more of what steering costs. Attention is eager everywhere, as TransformerLens sets it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import unlock_lens as ul

HOSTS = ("TransformerBridge", "nnsight")
BATCH = 16
SHAPE = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 12,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
}
VOCABULARY = 49152 * 12 // 30 + 1
_PAD, _END = "<pad>", "<end>"


def make_tokenizer_folder(folder: Path, vocabulary: int = VOCABULARY) -> None:
    """Write a tokenizer, one token a word."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    words = [_PAD, _END, *(f"w{i}" for i in range(vocabulary - 2))]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token=_PAD))
    tokenizer.pre_tokenizer = WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=_PAD, eos_token=_END, padding_side="left", clean_up_tokenization_spaces=False
    ).save_pretrained(folder)


def make_folder(folder: Path, shape: dict[str, int], vocabulary: int = VOCABULARY) -> None:
    """Write a random model and its tokenizer as a Hugging Face folder."""
    from transformers import LlamaConfig, LlamaForCausalLM

    make_tokenizer_folder(folder, vocabulary)
    torch.manual_seed(0)
    # No end token: a completion has as many tokens as are asked for.
    ends: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": None}
    config = LlamaConfig(vocab_size=vocabulary, max_position_embeddings=2048, tie_word_embeddings=True, **shape, **ends)
    LlamaForCausalLM(config).save_pretrained(folder)


def prompts(count: int, shortest: int, longest: int, vocabulary: int = VOCABULARY, seed: int = 0) -> list[str]:
    """Random words, as many as drawn evenly between the two lengths."""
    draw = random.Random(seed)
    lengths = [draw.randint(shortest, longest) for _ in range(count)]
    return [" ".join(f"w{draw.randrange(vocabulary - 2)}" for _ in range(length)) for length in lengths]


@dataclass(frozen=True)
class Models:
    """One set of weights: bare, and in each host. Each is loaded when it is first used."""

    folder: Path

    @cached_property
    def tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.folder)

    @cached_property
    def bare(self) -> Any:
        return self._load()

    @cached_property
    def bridge(self) -> Any:
        from transformer_lens.model_bridge import TransformerBridge

        return TransformerBridge.boot_transformers(
            str(self.folder), hf_model=self._load(), tokenizer=self.tokenizer, device="cpu", dtype=torch.float32
        )

    @cached_property
    def nnsight(self) -> Any:
        from nnsight import TransformersModel

        return TransformersModel(self._load(), tokenizer=self.tokenizer)

    def of_host(self, host: str) -> Any:
        return self.bridge if host == "TransformerBridge" else self.nnsight

    def _load(self) -> Any:
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32, attn_implementation="eager").eval()


def batches(variant: ul.Variant, size: int = BATCH) -> list[dict[str, Tensor]]:
    """The left-padded batches that an extraction reads, made beforehand, with positions as the hosts count them."""
    rows = [variant.tokens.rows(indices) for indices in variant.tokens.batches(size)]
    return [
        {"input_ids": row.ids, "attention_mask": row.mask, "position_ids": (row.mask.cumsum(dim=1) - 1).clamp_min(0)}
        for row in rows
    ]


def bare_pass(model: Any, batches: Sequence[dict[str, Tensor]]) -> None:
    """The Hugging Face body alone: no output head, no KV cache, nothing kept."""
    with torch.no_grad():
        for batch in batches:
            model.model(**batch, use_cache=False)


def bridge_pass(model: Any, batches: Sequence[dict[str, Tensor]]) -> None:
    """TransformerBridge's own pass to the last block's output, no hook of ours."""
    layers = model.cfg.n_layers
    with torch.no_grad():
        for batch in batches:
            ids, mask = batch["input_ids"], batch["attention_mask"]
            model.run_with_hooks(ids, attention_mask=mask, return_type=None, stop_at_layer=layers)


def random_direction(seed: int = 0) -> ul.CapabilityDirection:
    """One vector a layer; what it points to does not matter for speed."""
    generator = torch.Generator().manual_seed(seed)
    layers, width = SHAPE["num_hidden_layers"], SHAPE["hidden_size"]
    return ul.CapabilityDirection(torch.randn(layers, width, generator=generator), tuple(range(layers)))
