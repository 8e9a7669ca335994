"""Inspect: its model provider gives what the library gives, in both hosts."""
# pyright: reportMissingImports=false

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import anyio
import pytest

import unlock_lens as ul
from unlock_lens import zoo

pytest.importorskip("inspect_ai", reason="Inspect is not installed: pip install 'unlock-lens[inspect]'")

from inspect_ai import Task, eval
from inspect_ai.dataset import MemoryDataset, Sample, json_dataset
from inspect_ai.log import read_eval_log
from inspect_ai.model import ChatMessageUser, ContentImage, GenerateConfig, Model
from inspect_ai.scorer import includes
from inspect_ai.solver import generate

from unlock_lens.evidence.inspect_model import SteeredAPI

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of Inspect's own dependencies
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
FOLDER = str(zoo.path() / "small-base")
TASK = zoo.running_sum(n=12, seed=3)
TEMPLATE = "{% for m in messages %}Q {{ m['content'] }} {% endfor %}{% if add_generation_prompt %}A :{% endif %}"


TASK_FILE = """
from inspect_ai import Task, task
from inspect_ai.dataset import Sample
from inspect_ai.solver import generate


@task
def sums():
    return Task([Sample("Q 1 2 3 4 5 6 A :", id=1)], solver=generate())
"""


@pytest.fixture(scope="module")
def hook(small: Any) -> ul.SteeringHook:
    train = zoo.running_sum(n=32)
    direction = ul.CapabilityDirection.extract(ul.Variant(small, train.direct), ul.Variant(small, train.think))
    return ul.SteeringHook(direction, 0.5)


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inspect writes traces and logs."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def written(log: Any) -> list[str]:
    assert log.status == "success", log.error
    return [sample.output.completion for sample in sorted(log.samples, key=lambda sample: sample.id)]


@pytest.mark.parametrize("backend", ["transformer_lens", "nnsight"])
def test_samples_are_completed_as_by_generate(backend: str, hook: ul.SteeringHook, tmp_path: Path) -> None:
    hook.save(tmp_path / "cot.key.safetensors")
    file = tmp_path / "problems.jsonl"
    rows = zip(TASK.direct, TASK.answers, strict=True)
    file.write_text("".join(json.dumps({"input": prompt, "target": f"= {answer}"}) + "\n" for prompt, answer in rows))
    task = Task(json_dataset(str(file), auto_id=True), solver=generate(), scorer=includes())
    arguments = {"key": str(tmp_path / "cot.key.safetensors"), "backend": backend, "chat": False, "batch_size": 5}
    (log,) = eval(
        task, model=f"unlock-lens/{FOLDER}", model_args=arguments, max_tokens=12, log_dir=str(tmp_path), display="none"
    )
    wanted = ul.generate(zoo.load("small-base", backend), TASK.direct, hook, max_new_tokens=12)
    assert written(log) == wanted
    assert log.results.scores[0].metrics["accuracy"].value == sum(TASK.correct(wanted)) / len(wanted)


@pytest.mark.skipif(
    "unlock_lens" not in entry_points(group="inspect_ai").names, reason="unlock-lens is not installed with its entry point"
)
def test_the_command_finds_the_provider(hook: ul.SteeringHook, tmp_path: Path) -> None:
    hook.save(tmp_path / "cot.key.safetensors")
    (tmp_path / "task.py").write_text(TASK_FILE)
    command = [str(Path(sys.executable).with_name("inspect")), "eval", "task.py", "--model", f"unlock-lens/{FOLDER}"]
    command += ["-M", "key=cot.key.safetensors", "-M", "chat=false"]
    subprocess.run(
        [*command, "--max-tokens", "12", "--display", "none", "--log-dir", "logs"],
        cwd=tmp_path, check=True, capture_output=True,
    )  # fmt: skip
    (file,) = (tmp_path / "logs").glob("*.eval")
    assert written(read_eval_log(str(file))) == ul.generate(
        zoo.load("small-base"), ["Q 1 2 3 4 5 6 A :"], hook, max_new_tokens=12
    )


def test_a_conversation_is_put_into_the_chat_template(
    hook: ul.SteeringHook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = zoo.load("small-base")
    with pytest.raises(ul.InvalidInput, match="chat template"):
        SteeredAPI("small-base", model=model)
    monkeypatch.setattr(model.tokenizer, "chat_template", TEMPLATE)
    questions = [" ".join(map(str, digits)) for digits in TASK.questions]
    task = Task(MemoryDataset([Sample(question, id=i) for i, question in enumerate(questions)]), solver=generate())
    api = SteeredAPI("small-base", key=hook, model=model)
    given = Model(api, GenerateConfig(max_tokens=12, stop_seqs=["="]))
    (log,) = eval(task, model=given, log_dir=str(tmp_path), display="none")
    assert written(log) == ul.generate(ul.Variant(model, questions, chat=True), steer=hook, max_new_tokens=12, stop=["="])
    assert {sample.output.stop_reason for sample in log.samples} == {"stop"}


def test_a_key_of_another_model_is_refused(large: Any, hook: ul.SteeringHook) -> None:
    with pytest.raises(ul.IncompatibleModel, match="made for|does not fit"):
        SteeredAPI("large-base", key=hook, model=large, chat=False)


def test_what_is_not_served_is_refused(small: Any) -> None:
    api = SteeredAPI("small-base", model=small, chat=False)
    text, image = ChatMessageUser(content="Q 1 A :"), ChatMessageUser(content=[ContentImage(image="x.png")])
    for message, tools, config, keyword in (
        (text, [], GenerateConfig(top_p=0.5), "top_p"),
        (text, [object()], GenerateConfig(), "tools"),
        (image, [], GenerateConfig(), "text"),
    ):
        with pytest.raises(ul.InvalidInput, match=keyword):
            anyio.run(api.generate, [message], tools, "auto", config)
