"""Where completions end: at an end-of-sequence token, or before the first stop string in their text.

Shipped to servers, so it imports torch alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_SPARE = 8
"""Tokens beyond a stop string's bytes that are decoded to look for it; some tokens hold no text."""


def text_of(tokenizer: Any, end_tokens: Sequence[int], ids: Sequence[int]) -> str:
    """The text of new tokens up to an end-of-sequence token, with the space that it begins with."""
    ends = [i for i, token in enumerate(ids) if token in end_tokens]
    kept = list(ids[: ends[0]] if ends else ids)
    text = tokenizer.decode(kept, skip_special_tokens=True)
    # SentencePiece's decoders take away the space of what stands first, which does not stand first here.
    first = next((piece for piece in tokenizer.convert_ids_to_tokens(kept) if piece not in tokenizer.all_special_tokens), "")
    return f" {text}" if str(first).startswith("\u2581") and not text.startswith(" ") else text


def before(text: str, stop: Sequence[str]) -> str:
    """The text up to the first stop string in it; all of it where it holds none."""
    return text[: min((text.find(each) for each in stop if each in text), default=len(text))]


class StopCriterion:
    """A stopping criterion of transformers' kind: ends each row once its completion holds a stop string.

    Transformers' own `stop_strings` also counts a stop string that begins in the prompt, and prepares the whole vocabulary.
    """

    def __init__(self, tokenizer: Any, end_tokens: Sequence[int], stop: Sequence[str], prompt_length: int) -> None:
        self.tokenizer, self.end_tokens, self.stop, self.prompt_length = tokenizer, end_tokens, stop, prompt_length
        self.reach = max(len(each.encode()) for each in stop) + _SPARE

    def __call__(self, ids: Tensor, scores: Any = None, **_: Any) -> Tensor:
        rows = ids[:, self.prompt_length :].tolist()
        return torch.tensor([self.holds_stop(row) for row in rows], dtype=torch.bool, device=ids.device)

    def holds_stop(self, row: list[int]) -> bool:
        """Whether the last tokens, and then the whole completion, hold a stop string."""
        last = self.tokenizer.decode(row[-self.reach :], skip_special_tokens=True)
        if all(each not in last for each in self.stop):
            return False
        whole = text_of(self.tokenizer, self.end_tokens, row)
        return before(whole, self.stop) != whole


def stopping(tokenizer: Any, end_tokens: Sequence[int], stop: Sequence[str], prompt_length: int) -> dict[str, Any]:
    """What `generate` of transformers takes to end rows at stop strings; nothing where there are none."""
    return {"stopping_criteria": [StopCriterion(tokenizer, end_tokens, stop, prompt_length)]} if stop else {}
