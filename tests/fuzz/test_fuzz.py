"""A hundred damaged files and answers of each kind; `make fuzz` tries thousands."""

from __future__ import annotations

import pytest

from tests.fuzz.cases import DESCRIBING, KINDS, run


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_refused_or_read(kind: str) -> None:
    found = run(kind, 100)
    assert not found.faults
    assert found.counts.total() == 100
    if kind not in DESCRIBING:
        assert found.counts["refused"]
