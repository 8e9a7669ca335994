"""The table of families in docs/families.md is what comes out, in each host."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.families import HOSTS, Outcome, families, written_outcomes
from tests.hosts.models import HAS_HOOKED_TRANSFORMER

ROOT = Path(__file__).parents[2]
FAST = ("llama", "gpt2", "gemma2", "mamba2", "lfm2", "qwen3_next")
"""A rotary and a learned position, a soft cap, a recurrence, and two hybrids."""


def tried(*kinds: str) -> dict[str, Outcome]:
    """In a process of its own, because it changes classes of the hosts."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.families", *kinds], cwd=ROOT, capture_output=True, text=True, check=True
    )
    rows = [line.split(" | ") for line in done.stdout.splitlines() if line.count(" | ") == len(HOSTS)]
    return {
        kind: {host: said.removeprefix(f"{HOSTS[host]}: ") for host, said in zip(HOSTS, of_hosts, strict=True)}
        for kind, *of_hosts in rows
    }


@pytest.mark.skipif(HAS_HOOKED_TRANSFORMER, reason="the table is that of TransformerLens 4")
def test_fast_families_are_exact_in_both_hosts() -> None:
    assert tried(*FAST) == {kind: dict.fromkeys(HOSTS, "exact") for kind in FAST}


def test_the_table_has_every_family_and_none_that_is_wrong() -> None:
    written = written_outcomes()
    assert list(written) == families()
    assert [kind for kind, of in written.items() if any("WRONG" in said for said in of.values())] == []
    exact = {host: {kind for kind, of in written.items() if of[host] == "exact"} for host in HOSTS}
    assert len(exact["nnsight"]) >= 50
    assert len(exact["bridge"]) >= 45


@pytest.mark.full
@pytest.mark.skipif(HAS_HOOKED_TRANSFORMER, reason="the table is that of TransformerLens 4")
def test_every_family_is_as_the_table_says() -> None:
    assert tried() == written_outcomes()
