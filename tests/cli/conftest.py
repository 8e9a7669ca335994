"""What the tests of the command line start from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.test_cli import LARGE, run
from unlock_lens import zoo


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions, calibration text, and a direction of the large model."""
    folder = tmp_path_factory.mktemp("cli")
    questions = [" ".join(map(str, digits)) for digits in zoo.running_sum(n=100, seed=1).questions]
    (folder / "questions.jsonl").write_text("".join(json.dumps({"question": q}) + "\n" for q in questions))
    (folder / "text.txt").write_text("\n".join(zoo.text(n=600)))
    done = run(
        "extract", "--model", LARGE, "--questions", folder / "questions.jsonl", "--locked", "Q {question} A :",
        "--unlocked", "Q {question} think A :", "--out", folder / "think.safetensors", "--batch-size", "100",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "d_model 96, from 100" in done.stdout
    return folder
