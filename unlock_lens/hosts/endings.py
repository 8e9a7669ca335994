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
        last = ids[:, max(self.prompt_length, ids.shape[1] - self.reach) :].tolist()
        near = self.tokenizer.batch_decode(last, skip_special_tokens=True)
        ends = [self.holds(text) and self.holds(self.whole(row)) for text, row in zip(near, ids, strict=True)]
        return torch.tensor(ends, dtype=torch.bool, device=ids.device)

    def holds(self, text: str) -> bool:
        """Whether a text holds a stop string; the last tokens' is looked at first, because the completion may be long."""
        return any(each in text for each in self.stop)

    def whole(self, row: Tensor) -> str:
        """The completion of a row."""
        return text_of(self.tokenizer, self.end_tokens, row[self.prompt_length :].tolist())

    def held_by(self, new: Tensor) -> Tensor:
        """Which completions [row, new token] hold a stop string anywhere."""
        ended = [self.holds(text_of(self.tokenizer, self.end_tokens, row)) for row in new.tolist()]
        return torch.tensor(ended, dtype=torch.bool, device=new.device)


def stopping(tokenizer: Any, end_tokens: Sequence[int], stop: Sequence[str], prompt_length: int) -> dict[str, Any]:
    """What `generate` of transformers takes to end rows at stop strings; nothing where there are none."""
    return {"stopping_criteria": [StopCriterion(tokenizer, end_tokens, stop, prompt_length)]} if stop else {}
