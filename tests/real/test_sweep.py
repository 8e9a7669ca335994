"""A whole sweep on a real pretrained model, in nnsight: forecast, controls, geometry, report. `make test-real` runs it.

There is one model, so source and target are the same and the map is from it to itself: what is shown is that the whole path
holds on real weights and text, and what its controls say there.
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from rich.console import Console

from unlock_lens import report, sweep
from unlock_lens.evidence.report.table import show
from unlock_lens.evidence.sweep import SweepConfig

pytestmark = pytest.mark.real

CHAT = "<|im_start|>user\n{question}%s<|im_end|>\n<|im_start|>assistant\nAnswer:"
"""All prompts end in the same token."""


def config_for(folder: str) -> SweepConfig:
    return SweepConfig.parse(
        {
            "name": "Chain-of-Thought, SmolLM2 to itself",
            "source": folder,
            "target": folder,
            "backend": "nnsight",
            "task": {"kind": "reasoning_gym", "dataset": "gsm_symbolic", "check": "number"},
            "sizes": {"extract": 32, "train": 8, "test": 16},
            "capability": {
                "name": "chain-of-thought",
                "locked": CHAT % "",
                "unlocked": CHAT % " Show all of your work, one step after the other.",
            },
            "grid": {"aligner": ["prompts"], "n": [32], "rank": [256], "alpha": [0.1]},
            "controls": ["own", "random", "anti_mean", "unaligned"],
            "control_seeds": 1,
            "sampling": {"samples": 0},
            "max_new_tokens": 96,
            "batch_size": 16,
            "special_tokens": False,
        }
    )


def test_a_sweep(folder: str, tmp_path: Path) -> None:
    found = sweep.run(config_for(folder), tmp_path / "out")
    report.write(found, tmp_path / "report.html")
    console = Console(width=120)
    show(report.summary(found), console)
    console.print(str(report.verdict(found)))
    arms = found.arms()
    assert set(arms) == {"unsteered", "prompted", "transferred", "own", "random", "anti_mean", "unaligned"}
    assert arms["transferred"]["tokens"] > arms["unsteered"]["tokens"]
    assert report.verdict(found).status != "arrived"  # this model cannot do these problems, steered or asked
    assert found.diagnosis is not None
    assert 0 <= found.diagnosis["score"] <= 1
    assert found.geometry is not None
    assert all(math.isfinite(error) for line in found.geometry["maps"] for error in line["error"])
