"""Which token of one model belongs to which token of another."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from unlock_lens.core.tokens import paired_tokens
from unlock_lens.core.variant import Tokens
from unlock_lens.errors import InvalidInput


class _Tokenizer:
    def __init__(self, vocabulary: dict[str, int]) -> None:
        self.vocabulary = vocabulary

    def get_vocab(self) -> dict[str, int]:
        return self.vocabulary


class _Variant:
    """Texts, their ids (unpadded) and where the tokens stand in the text."""

    def __init__(self, prompts: list[str], ids: list[list[int]], spans: Any = None, vocabulary: dict[str, int] | None = None):
        width = max(map(len, ids))
        padded = torch.tensor([[0] * (width - len(row)) + row for row in ids])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in ids])
        self.prompts, self.tokens, self.spans = prompts, Tokens(padded, mask), spans
        self.backend = SimpleNamespace(tokenizer=_Tokenizer(vocabulary or {"a": 0}), identity=SimpleNamespace(name="a-model"))

    def __len__(self) -> int:
        return len(self.prompts)


def pairs(source: Any, target: Any, **how: Any) -> list[tuple[int, int]]:
    from tests.checks import unchecked

    with unchecked():
        found = paired_tokens(source, target, "all", **how)
    return [(int(a), int(b)) for a, b in zip(found[0][0], found[1][0], strict=True)]


def test_the_first_token_is_left_out_where_either_side_has_it() -> None:
    """BOS stands before the text in the target alone, so its pairs are shifted by one."""
    source = _Variant(["ab"], [[5, 6]], [[(0, 1), (1, 2)]])
    target = _Variant(["ab"], [[1, 7, 8]], [[(0, 0), (0, 1), (1, 2)]])
    assert pairs(source, target) == [(0, 1), (1, 2)]
    assert pairs(source, target, skip_first=True) == [(1, 2)]
    assert pairs(target, source, skip_first=True) == [(2, 1)]
    assert pairs(source, source, skip_first=True) == [(1, 1)]


def test_unlike_texts_are_paired_by_place_only_in_one_vocabulary() -> None:
    one, other = _Variant(["ab"], [[5, 6]]), _Variant(["cd"], [[7, 8]])
    assert pairs(one, other) == [(0, 0), (1, 1)]
    foreign = _Variant(["cd"], [[7, 8]], vocabulary={"b": 0})
    with pytest.raises(InvalidInput, match="text 0"):
        pairs(one, foreign)
    longer = _Variant(["cde"], [[7, 8, 9]])
    with pytest.raises(InvalidInput, match="text 0"):
        pairs(one, longer)
