"""What most commands have in common: JSON, dtype and device, several strengths; and text that the models write themselves."""

from __future__ import annotations

import json
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import torch

import unlock_lens as ul
import unlock_lens.cli.options as opt
from tests.cli.test_cli import LARGE, SMALL, run, write
from unlock_lens import recipes, zoo
from unlock_lens.evidence.sweep.config import SweepConfig
from unlock_lens.evidence.sweep.material import Material
from unlock_lens.hosts import backend_of, open_model

ASKED = ("--locked", "Q {question} A :", "--unlocked", "Q {question} think A :")


def told(*args: str | Path) -> Any:
    """What a command prints with --json, which has to be JSON alone."""
    done = run(*args, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_each_step_prints_json_and_nothing_else(files: Path, tmp_path: Path) -> None:
    few = write(
        tmp_path, "q.txt", "\n".join(task.removeprefix("Q ").removesuffix(" A :") for task in zoo.running_sum(n=8).direct)
    )
    made = told("extract", "--model", LARGE, "--questions", few, *ASKED, "--out", tmp_path / "d")
    assert (made["file"], made["model"], made["prompt_pairs"]) == (str(tmp_path / "d"), "large-base", 8)
    assert torch.allclose(torch.tensor(made["norms"]), ul.CapabilityDirection.load(tmp_path / "d").vectors.norm(dim=1))
    moved = told("align", "--source", LARGE, "--target", SMALL, "--text", files / "text.txt", "--direction",
                 files / "think.safetensors", "--out", tmp_path / "s", "--batch-size", "200")  # fmt: skip
    assert moved["direction"]["model"] == "small-base"
    assert "aligner" not in moved
    chosen = told("align", "--source", LARGE, "--target", SMALL, "--text", files / "text.txt", "--out", tmp_path / "a",
                  "--rank", "cv", "--batch-size", "200")  # fmt: skip
    assert (chosen["aligner"], 0 < chosen["held_out_r2"] <= 1) == (str(tmp_path / "a"), True)
    whole = told("transfer", "--source", LARGE, "--target", SMALL, "--questions", few, *ASKED, "--text", files / "text.txt",
                 "--batch-size", "200", "--out", tmp_path / "t")  # fmt: skip
    assert (whole["model"], whole["d_model"]) == ("small-base", 64)
    written = told("export", tmp_path / "s", tmp_path / "s.gguf", "--alpha", "2", "--layers", "1-2")
    assert (written["format"], written["alpha"]) == ("gguf", 2)
    assert told("import", tmp_path / "s.gguf", tmp_path / "back")["d_model"] == 64


def test_several_strengths_are_compared(files: Path, tmp_path: Path) -> None:
    """In one table, one file, or as JSON: one line for each prompt and strength, as a run of its own would give it."""
    one = write(tmp_path, "one.txt", "1 2 3 4 5 6\n6 5 4 3 2 1")
    given = ("steer", "--model", LARGE, "--direction", files / "think.safetensors", "--prompts", one, "--template",
             "Q {question} A :", "--max-new-tokens", "9")  # fmt: skip
    rows = told(*given, "--alpha", "0.01,0.6")["completions"]
    assert [row["alpha"] for row in rows] == [0.01, 0.01, 0.6, 0.6]
    assert [row["steered"][:1] for row in rows] == ["=", "=", "S", "S"]
    run(*given, "--alpha", "0.01", "--alpha", "0.6", "--out", tmp_path / "o.jsonl")
    assert [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()] == rows
    shown = run(*given, "--alpha", "0.01,0.6").stdout
    (row,) = (line for line in shown.splitlines() if "S 1 3 6 3 1 0 = 0" in line)
    assert "0.6" in row
    assert "alpha 0.01: 0 of 2" in shown
    assert "alpha 0.6: 2 of 2" in shown


def test_sampled_completions_are_repeated_by_a_seed(files: Path, tmp_path: Path) -> None:
    one = write(tmp_path, "one.txt", "\n".join(["Q 1 2 3 4 5 6 A :"] * 8))
    given = ("steer", "--model", LARGE, "--direction", files / "think.safetensors", "--prompts", one, "--alpha", "0.3")
    sampled = (*given, "--temperature", "3", "--max-new-tokens", "6")
    first, again, other = (told(*sampled, "--seed", seed)["completions"] for seed in ("1", "1", "2"))
    assert first == again != other
    narrow = told(*sampled, "--seed", "1", "--top-p", "0.001")["completions"]
    assert narrow == told(*given, "--max-new-tokens", "6")["completions"]


def test_align_takes_text_that_the_source_writes(files: Path, tmp_path: Path) -> None:
    """What `transfer` does in one command, in two."""
    given = ("--source", LARGE, "--target", SMALL, "--questions", files / "questions.jsonl", *ASKED, "--batch-size", "100",
             "--max-new-tokens", "12")  # fmt: skip
    assert run("transfer", *given, "--out", tmp_path / "whole").returncode == 0
    done = run("align", *given, "--direction", files / "think.safetensors", "--out", tmp_path / "apart")
    assert done.returncode == 0, done.stderr
    whole, apart = (ul.CapabilityDirection.load(tmp_path / name).vectors for name in ("whole", "apart"))
    assert torch.equal(whole, apart)


@pytest.mark.parametrize("backend", ["transformer_lens", "nnsight"])
def test_models_are_loaded_in_a_dtype_and_on_a_device(backend: str, files: Path, tmp_path: Path) -> None:
    for dtype in ("float32", "bfloat16"):
        model = open_model(SMALL, backend, dtype, device="cpu")
        assert {weight.dtype for weight in backend_of(model).root.parameters()} == {getattr(torch, dtype)}
    given = ("extract", "--model", SMALL, "--questions", files / "questions.jsonl", *ASKED, "--batch-size", "100", "--backend",
             backend, "--device", "cpu")  # fmt: skip
    for dtype in ("float32", "bfloat16"):
        done = run(*given, "--dtype", dtype, "--out", tmp_path / dtype)
        assert done.returncode == 0, done.stderr
    exact, rough = (ul.CapabilityDirection.load(tmp_path / dtype) for dtype in ("float32", "bfloat16"))
    assert not torch.equal(exact.vectors, rough.vectors)
    assert bool((exact.cosine(rough) > 0.99).all())
    for wrong in ({"dtype": "int8"}, {"device": "tpu"}, {"device": "meta"}):
        with pytest.raises(ul.InvalidInput, match=next(iter(wrong.values()))):
            open_model(SMALL, backend, **wrong)


def test_python_command_line_and_configs_agree() -> None:
    """On dtype, device and framework, which one place declares."""
    options, fields = opt.Running(), SweepConfig.model_fields
    for name in ("backend", "dtype", "device"):
        default = signature(open_model).parameters[name].default
        assert getattr(options, name) == default == fields[name].default
    for wrong in ({"dtype": "float8"}, {"dtype": "int8"}):
        with pytest.raises(ul.InvalidInput, match="dtype"):
            SweepConfig.parse({**recipes.smallest().model_dump(mode="json"), **wrong})


def test_the_example_config_begins_a_sweep(tmp_path: Path) -> None:
    """With models and problems put in where it says so; what it has as comments is a config too."""
    shown = run("sweep", "--example").stdout
    task = zoo.running_sum(n=400)
    rows = [{"question": " ".join(map(str, q)), "answer": a} for q, a in zip(task.questions, task.answers, strict=True)]
    file = write(tmp_path, "problems.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    mine = shown.replace("org/large", "zoo:large-base").replace("org/small", "zoo:small-base")
    mine = mine.replace("problems.jsonl", str(file)).replace("# aligner:", "aligner:")
    config = SweepConfig.load(write(tmp_path, "own.yaml", mine))
    assert (config.aligner.sinks, config.aligner.skip_first, config.aligner.centered) == ("drop", True, True)
    material = Material(config, progress=False)
    assert set(material.controls) == set(config.controls)
    assert len(material.splits.test) == config.sizes.test
