"""A plan says what the library then does: its requests, run on this machine as a server would, are counted beside it."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from nnsight.schema.request import RequestModel
from torch import Tensor
from typer.testing import CliRunner

import unlock_lens as ul
from tests.checks import unchecked
from unlock_lens import zoo
from unlock_lens.cli import plan as cli_plan
from unlock_lens.core.plan import Plan, Step, plan
from unlock_lens.hosts import ndif
from unlock_lens.hosts.base import Batch, Edits, Generation, Pass, Pending
from unlock_lens.hosts.nnsight import NNsightBackend
from unlock_lens.method.reduce import Reduction

ROOT = Path(__file__).parents[2]
LARGE, SMALL = zoo.path() / "large-base", zoo.path() / "small-base"
TASK, TEXTS = zoo.running_sum(n=75), zoo.text(n=90)
PROMPTS = (TASK.direct, TASK.think)
CODE = 200_000
"""Bytes of a request's code, more than any has: functions whose shapes are checked bring what checks them."""


@dataclasses.dataclass
class Seen:
    """What was counted of the requests that the library made."""

    steps: list[Step] = dataclasses.field(default_factory=list)
    payloads: list[int] = dataclasses.field(default_factory=list)


class CountedServer(ndif.NdifServer):
    """Runs each request here, and counts it."""

    seen: Seen

    @property
    def told(self) -> dict[str, Any]:
        return {}

    def _sent(self, traced: Callable[..., Any], *asked: Any) -> Pending:
        return ndif.Done(traced(self.model, self.blocks, *asked, {"remote": "local"}))

    def reduce(self, passes: Sequence[Pass], layers: Sequence[int], reduction: Reduction) -> Pending:
        done = super().reduce(passes, layers, reduction)
        held = [part for parts in vars(reduction).values() if isinstance(parts, dict) for part in parts.values()]
        found = [part for of in held for part in ([of] if isinstance(of, Tensor) else vars(of).values())]  # of a Gram, all
        kept = [*{id(part): part for part in found if isinstance(part, Tensor)}.values()]
        return self._counted([one.batch for one in passes], 0, kept, done)

    def generate(self, batches: Sequence[Batch], edits: Edits, how: Generation) -> Pending:
        here = NNsightBackend(self.model)  # functions whose shapes are checked cannot be sent
        written = {str(i): here.generate(batch, edits, how).clone() for i, batch in enumerate(batches)}
        return self._counted(batches, how.max_new_tokens, [*written.values()], ndif.Done(written))

    def _counted(self, batches: Sequence[Batch], new: int, kept: Sequence[Tensor], done: Pending) -> Pending:
        down = sum(found.nbytes for found in done.result().values())
        written = new * sum(len(batch.ids) for batch in batches)
        tokens = written + sum(int(batch.mask.sum()) for batch in batches)
        padded = written + sum(batch.ids.numel() for batch in batches)
        self.seen.steps.append(Step("", "", 1, tokens, padded, 0, down, sum(part.nbytes for part in kept)))
        return done


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """Requests of models that are called remote, each counted when it is made."""
    found = Seen()
    serialize: Callable[..., bytes] = RequestModel.serialize

    def on(backend: NNsightBackend, remote: ul.Remote) -> CountedServer:
        server = CountedServer(backend.model, backend.blocks, remote)
        server.seen = found
        return server

    def serialized(*args: Any, **settings: Any) -> bytes:
        blob = serialize(*args, **settings)
        found.payloads.append(len(blob))
        return blob

    monkeypatch.setattr(NNsightBackend, "on", on)
    monkeypatch.setattr(RequestModel, "serialize", serialized)
    return found


def _agrees(steps: Sequence[Step], seen: Seen) -> None:
    """All but what goes up, to the byte."""
    asked = iter(seen.steps)
    for step in steps:
        summed = Step.summed(step.name, step.model, list(islice(asked, step.requests)))
        assert dataclasses.replace(step, bytes_up=0) == summed
    assert not list(asked)


def _fits(found: Plan, seen: Seen) -> None:
    """What goes up lies in payloads of code."""
    assert len(seen.payloads) == found.total.requests
    assert 0 < sum(seen.payloads) - found.total.bytes_up < CODE * found.total.requests


@pytest.mark.parametrize("aggregate", ["mean", "pca", torch.mean])
@pytest.mark.parametrize(
    ("settings", "resume", "requests"),
    [
        ({}, False, 1),
        ({"half": True, "axes": 20}, False, 1),
        ({"batches": 3}, False, 4),
        ({}, True, 2),
        ({"batches": 3}, True, 4),
    ],
)
def test_extraction_asks_what_was_planned(
    seen: Seen, aggregate: Any, settings: dict[str, Any], resume: bool, requests: int, tmp_path: Path
) -> None:
    """Chunks, tokens, and from their bytes the axes that come back, for one and for several requests."""
    aggregate = aggregate if isinstance(aggregate, str) else _first
    remote, model = ul.Remote(**settings), zoo.load("large-base", "nnsight")
    found = plan(LARGE, prompts=PROMPTS, aggregate=aggregate, layers=[1, 2], remote=remote, resume=resume)
    locked, unlocked = (ul.Variant(model, of, remote=remote) for of in PROMPTS)
    ul.CapabilityDirection.extract(locked, unlocked, aggregate, [1, 2], resume=tmp_path / "kept" if resume else None)
    _agrees(found.steps, seen)
    _fits(found, seen)
    assert found.total.requests == requests


def _first(differences: Tensor) -> Tensor:
    return differences[0]


def test_a_model_contrast_asks_each_model(seen: Seen) -> None:
    models = [zoo.load(name, "nnsight") for name in ("large-base", "large-post")]
    found = plan(models[0], prompts=(TASK.direct, TASK.direct), unlocked_source=models[1])
    locked, unlocked = (ul.Variant(model, TASK.direct, remote=ul.Remote()) for model in models)
    ul.CapabilityDirection.extract(locked, unlocked)
    of_steps = [(step.name, step.model) for step in found.steps]
    assert of_steps == [("extract unlocked", "large-post"), ("extract locked", "large-base")]
    _agrees(found.steps, seen)
    _fits(found, seen)


@pytest.mark.parametrize(
    ("asked", "settings"),
    [
        ({"rank": 16}, {}),
        ({"rank": 16}, {"positions": 300, "batches": 5}),
        ({"rank": 16, "positions": 4}, {"half": True}),
        ({"rank": "cv"}, {"axes": 24}),
        ({"rank": 16, "method": "ridge", "layer_map": {1: 2}}, {"axes": 30, "positions": 500}),
        ({"rank": None, "method": "procrustes", "positions": "last"}, {}),
        ({"rank": 8, "skip_first": True}, {"resume": True}),
    ],
)
def test_a_calibration_asks_what_was_planned(
    seen: Seen, asked: dict[str, Any], settings: dict[str, Any], tmp_path: Path
) -> None:
    """Both sides: chunks, the sample of tokens, axes by rank or by `Remote.axes`, float16."""
    resume = settings.get("resume", False)
    remote = ul.Remote(**{key: value for key, value in settings.items() if key != "resume"})
    found = plan(LARGE, SMALL, texts=TEXTS, remote=remote, resume=resume, **asked)
    sides = [ul.Variant(zoo.load(name, "nnsight"), TEXTS, remote=remote) for name in ("large-base", "small-base")]
    settings = {"centered": True, "positions": "all", **asked}
    aligner = ul.SubspaceAligner(**settings)
    aligner.fit(sides[0], sides[1], resume=tmp_path / "kept" if resume else None)
    _agrees(found.steps, seen)
    _fits(found, seen)


@pytest.mark.parametrize("batches", [None, 4])
def test_a_generation_asks_what_was_planned(seen: Seen, batches: int | None) -> None:
    """Steered, of no more tokens than are written before the end of a sequence."""
    remote, model = ul.Remote(batches=batches), zoo.load("large-base", "nnsight")
    steer = ul.SteeringHook(ul.CapabilityDirection(torch.ones(4, 96), (0, 1, 2, 3)), 0.01)
    found = plan(LARGE, prompts=PROMPTS, max_new_tokens=2, remote=remote)
    ul.generate(model, TASK.direct, steer, max_new_tokens=2, remote=remote)
    _agrees(found.steps[1:], seen)


def test_what_goes_up_are_indices_masks_and_vectors() -> None:
    """Of each token an id (int32) and a mask (bool), of each that is read row, column and place (int32)."""
    found = plan(LARGE, prompts=6, prompt_tokens=10, max_new_tokens=3)
    up = [step.bytes_up for step in found.steps]
    assert up == [2 * 6 * (10 * (4 + 1) + 3 * 4), 6 * 10 * (8 + 8) + 4 * 4 * 96]


def test_numbers_are_planned_as_texts_of_that_length_are() -> None:
    settings: dict[str, Any] = {"texts": TASK.direct, "max_new_tokens": 3}
    real = plan(LARGE, SMALL, prompts=(TASK.direct, TASK.direct), **settings)
    length, n = real.steps[1].tokens // len(TASK.direct), len(TASK.direct)
    assumed = plan(LARGE, SMALL, prompts=n, prompt_tokens=length, texts=n, text_tokens=length, max_new_tokens=3)
    assert assumed.steps == real.steps
    assert len(assumed.assumptions) == len(real.assumptions) + 2


def test_configs_open_models_and_variants_are_planned_alike() -> None:
    from transformers import AutoConfig

    model = zoo.load("large-base", "nnsight")
    given = (LARGE, str(LARGE), model, ul.Variant(model, ["Q"]), zoo.load("large-base"), AutoConfig.from_pretrained(LARGE))
    totals = [plan(source, prompts=20, prompt_tokens=9).total for source in given]
    assert totals == [totals[0]] * len(given)


def test_the_total_sums_all_but_what_is_held() -> None:
    found = plan(LARGE, SMALL, prompts=20, prompt_tokens=9, texts=30, text_tokens=16, max_new_tokens=4, resume=True)
    written = found.to_json()
    assert [step["name"] for step in written["steps"]] == ["extract", "calibrate source", "calibrate target", "generate"]
    for name in ("requests", "tokens", "padded_tokens", "bytes_up", "bytes_down"):
        assert written["total"][name] == sum(step[name] for step in written["steps"])
    assert written["total"]["server_bytes"] == max(step["server_bytes"] for step in written["steps"])
    assert json.loads(json.dumps(written)) == written
    assert all(step.name in str(found) and step.model in str(found) for step in found.steps)


ASSUMED: dict[str, Any] = {"prompts": 5, "prompt_tokens": 5}
CALIBRATION: dict[str, Any] = {"texts": 5, "text_tokens": 5, "target": SMALL}


@pytest.mark.parametrize(
    ("given", "keyword"),
    [
        ({}, "nothing to plan"),
        ({"prompts": 5}, "prompt_tokens"),
        ({"prompts": 0, "prompt_tokens": 5}, "prompts=0"),
        ({"prompts": PROMPTS, "prompt_tokens": 5}, "prompt_tokens"),
        ({"prompts": (["a"], ["a", "b"])}, "1 locked.*2 unlocked"),
        ({"texts": 5, "text_tokens": 5}, "target"),
        ({**ASSUMED, "target": SMALL}, "target"),
        ({**CALIBRATION, "max_new_tokens": 4}, "prompts"),
        ({**ASSUMED, "max_new_tokens": -1}, "max_new_tokens"),
        ({**ASSUMED, "batch_size": 0}, "batch_size"),
        ({**ASSUMED, "layers": [4]}, "layers"),
        ({**ASSUMED, "aggregate": "median"}, "median"),
        ({**CALIBRATION, "method": "magic"}, "magic"),
        ({**CALIBRATION, "rank": 0}, "rank"),
        ({**CALIBRATION, "positions": "first"}, "positions"),
        ({**CALIBRATION, "layer_map": {3: 0}}, "layer"),
        ({**ASSUMED, "unlocked_source": SMALL}, "shape"),
        ({**ASSUMED, "source": ROOT / "docs"}, "config"),
        ({**ASSUMED, "source": {}}, "dict"),
        ({"prompts": PROMPTS, "source": ROOT / "docs" / "configs" / "llama-3.1-8b"}, "tokenizer"),
    ],
)
def test_nonsense_is_refused(given: dict[str, Any], keyword: str) -> None:
    asked: dict[str, Any] = {"source": LARGE, **given}
    with unchecked(), pytest.raises(ul.UnlockLensError, match=keyword):
        plan(**asked)


def test_a_config_alone_counts_no_texts() -> None:
    from transformers import LlamaConfig

    with pytest.raises(ul.InvalidInput, match="tokenizer"):
        plan(LlamaConfig(), prompts=PROMPTS)


def _run(command: str) -> Any:
    app = typer.Typer()
    app.command()(cli_plan.plan)
    return CliRunner().invoke(app, shlex.split(command.removeprefix("unlock-lens plan")))


def test_the_page_shows_what_its_commands_print(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    page = (ROOT / "docs" / "plan.md").read_text()
    shown = re.findall(r"```sh\n(unlock-lens plan .*?)\n```\n+```text\n(.*?)\n```", page, re.DOTALL)
    assert len(shown) == page.count("```sh") > 0
    for command, output in shown:
        assert output == _run(command.replace("\\\n", " ")).stdout.strip("\n")


def test_the_command_counts_real_files(tmp_path: Path) -> None:
    """The same numbers as from Python, and JSON for programs."""
    questions, text = tmp_path / "q.txt", tmp_path / "t.txt"
    questions.write_text("Q 1 2 3\nQ 4 5 6 1\n")
    text.write_text("\n".join(TEXTS))
    templates = "--locked '{question} A :' --unlocked '{question} think A :'"
    asked = f"--source {LARGE} --target {SMALL} --questions {questions} {templates}"
    done = _run(f"unlock-lens plan {asked} --text {text} --rank cv --half --resume --json")
    prompts = [[f"{question} {end}" for question in ("Q 1 2 3", "Q 4 5 6 1")] for end in ("A :", "think A :")]
    settings: dict[str, Any] = {"rank": "cv", "resume": True, "remote": ul.Remote(half=True)}
    assert json.loads(done.stdout) == plan(LARGE, SMALL, prompts=(prompts[0], prompts[1]), texts=TEXTS, **settings).to_json()


@pytest.mark.parametrize(
    ("options", "keyword"),
    [(f"--questions {__file__} --n 5", "--n"), (f"--text {__file__} --texts 5", "--texts"), ("--n 5", "prompt_tokens")],
)
def test_the_command_refuses_contradictions(options: str, keyword: str) -> None:
    error = _run(f"--source {LARGE} {options}").exception
    assert isinstance(error, ul.InvalidInput)
    assert keyword in str(error)
