"""A plan says what the library then does: its own requests, run here, are counted beside it."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import shlex
import subprocess
import sys
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nnsight
import pytest
import torch
import typer
from huggingface_hub import HfApi
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

import unlock_lens as ul
from tests.checks import unchecked
from unlock_lens import zoo
from unlock_lens.cli import plan as cli_plan
from unlock_lens.core.planning import Step, plan
from unlock_lens.core.planning.flops import PassCost
from unlock_lens.core.planning.sizes import Shape, reading_memory
from unlock_lens.hosts import ndif
from unlock_lens.hosts.base import Batch, Edits, Generation, Pass, Pending
from unlock_lens.hosts.job import Job
from unlock_lens.hosts.nnsight import NNsightBackend
from unlock_lens.method.reduce import Factors, Reduction

ROOT = Path(__file__).parents[2]
LARGE, SMALL = zoo.path() / "large-base", zoo.path() / "small-base"
TASK, TEXTS = zoo.running_sum(n=75), zoo.text(n=90)
PROMPTS = (TASK.direct, TASK.think)


@dataclass
class Seen:
    """One request as the library made it."""

    tokens: int
    padded_tokens: int
    bytes_up: int
    bytes_down: int


class CountedServer(ndif.NdifServer):
    """Counts each request, and runs it here; where it is told to, it serializes it as for NDIF before."""

    seen: list[Seen]
    serializes: bool

    def reduce(self, passes: Sequence[Pass], layers: Sequence[int], reduction: Reduction) -> Pending:
        up = self._size(lambda where: ndif.reduced(self.model, self.blocks, passes, layers, reduction, where))
        found = ndif.reduced(self.model, self.blocks, passes, layers, reduction, {"remote": "local"})
        return self._counted([one.batch for one in passes], 0, up, found)

    def generate(self, batches: Sequence[Batch], edits: Edits, how: Generation) -> Pending:
        up = self._size(lambda where: ndif.generated(self.model, self.blocks, batches, edits, how, where))
        here = NNsightBackend(self.model)
        found = {str(i): here.generate(batch, edits, how).clone() for i, batch in enumerate(batches)}
        return self._counted(batches, how.max_new_tokens, up, found)

    def _size(self, send: Callable[[dict[str, Any]], Any]) -> int:
        if not self.serializes:
            return 0
        assert isinstance(self.remote, ul.Remote)
        job = Job(self.model, self.remote)
        send({"backend": job})
        return job.remote.traffic.up

    def _counted(self, batches: Sequence[Batch], new: int, up: int, found: dict[str, Tensor]) -> Pending:
        stored = io.BytesIO()
        torch.save({"found": found}, stored)
        rows = sum(len(batch.ids) for batch in batches)
        tokens = sum(int(batch.mask.sum()) for batch in batches) + rows * new
        padded = sum(batch.ids.numel() for batch in batches) + rows * new
        self.seen.append(Seen(tokens, padded, up, len(stored.getvalue())))
        return ndif.Done(found)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Seen]:
    """Requests of models that are called remote, each counted when it is made."""
    return counted_from_now(monkeypatch, serializes=False)


def counted_from_now(monkeypatch: pytest.MonkeyPatch, serializes: bool) -> list[Seen]:
    found: list[Seen] = []

    def counted(backend: NNsightBackend, remote: ul.Remote) -> CountedServer:
        server = CountedServer(backend.model, backend.blocks, remote)
        server.seen, server.serializes = found, serializes
        return server

    def weighed(job: Job, tracer: Any = None) -> None:
        job.remote.traffic.up = len(job._serialize(tracer))  # pyright: ignore[reportPrivateUsage]

    monkeypatch.setattr(NNsightBackend, "on", counted)
    monkeypatch.setattr(Job, "__call__", weighed)
    monkeypatch.setattr(HfApi, "model_info", lambda hub, name, timeout: None)
    monkeypatch.setattr(nnsight.TransformersModel, "to_model_key", lambda model: "a folder, which no server knows")
    return found


def _agrees(step: Step, seen: Sequence[Seen]) -> None:
    assert step.requests == len(seen)
    for name in ("tokens", "padded_tokens"):
        assert getattr(step, name) == sum(getattr(one, name) for one in seen), name
    assert step.bytes_down == pytest.approx(sum(one.bytes_down for one in seen), rel=0.1)


@pytest.mark.parametrize("aggregate", ["mean", "pca", torch.mean])
@pytest.mark.parametrize("settings", [{}, {"half": True, "axes": 20}, {"batches": 3}])
@pytest.mark.parametrize("resume", [False, True])
def test_extraction_asks_what_was_planned(
    seen: list[Seen], aggregate: Any, settings: dict[str, Any], resume: bool, tmp_path: Path
) -> None:
    """Chunks, tokens, and from their bytes the axes that come back, for one and for several requests."""
    aggregate = aggregate if isinstance(aggregate, str) else _first
    remote, model = ul.Remote(**settings), zoo.load("large-base", "nnsight")
    found = plan(LARGE, prompts=PROMPTS, aggregate=aggregate, layers=[1, 2], remote=remote, resume=resume)
    ul.CapabilityDirection.extract(
        ul.Variant(model, TASK.direct, remote=remote),
        ul.Variant(model, TASK.think, remote=remote),
        aggregate,
        [1, 2],
        resume=tmp_path / "kept" if resume else None,
    )
    (step,) = found.steps
    _agrees(step, seen)
    assert step.requests == (-(-10 // 3) if "batches" in settings else 2 if resume else 1)


def _first(differences: Tensor) -> Tensor:
    return differences[0]


def test_a_model_contrast_asks_each_model(seen: list[Seen]) -> None:
    models = [zoo.load(name, "nnsight") for name in ("large-base", "large-post")]
    found = plan(models[0], prompts=(TASK.direct, TASK.direct), unlocked_source=models[1])
    locked, unlocked = (ul.Variant(model, TASK.direct, remote=ul.Remote()) for model in models)
    ul.CapabilityDirection.extract(locked, unlocked)
    assert [(step.name, step.model) for step in found.steps] == [
        ("extract unlocked", "large-post"),
        ("extract locked", "large-base"),
    ]
    for step, one in zip(found.steps, seen, strict=True):
        _agrees(step, [one])


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
    seen: list[Seen], asked: dict[str, Any], settings: dict[str, Any], tmp_path: Path
) -> None:
    """Both sides: chunks, the sample of tokens, axes by rank or by `Remote.axes`, float16."""
    resume = settings.pop("resume", False)
    remote = ul.Remote(**settings)
    found = plan(LARGE, SMALL, texts=TEXTS, remote=remote, resume=resume, **asked)
    sides = [ul.Variant(zoo.load(name, "nnsight"), TEXTS, remote=remote) for name in ("large-base", "small-base")]
    given: dict[str, Any] = {"positions": "all", **asked}
    ul.SubspaceAligner(centered=True, **given).fit(sides[0], sides[1], resume=tmp_path / "kept" if resume else None)
    half = len(seen) // 2
    for step, of in zip(found.steps, (seen[:half], seen[half:]), strict=True):
        _agrees(step, of)


@pytest.mark.parametrize("batches", [None, 4])
def test_a_generation_asks_what_was_planned(seen: list[Seen], batches: int | None) -> None:
    """Steered, of no more tokens than are written before the end of a sequence."""
    remote, model = ul.Remote(batches=batches), zoo.load("large-base", "nnsight")
    direction = ul.CapabilityDirection(torch.randn(4, 96), (0, 1, 2, 3))
    steer = ul.SteeringHook(direction, 0.01)
    found = plan(LARGE, prompts=PROMPTS, max_new_tokens=2, remote=remote)
    ul.generate(model, TASK.direct, steer, max_new_tokens=2, remote=remote)
    assert found.steps[1].name == "generate"
    _agrees(found.steps[1], seen)


def test_uploads_are_as_large_as_planned() -> None:
    """In another process, because functions whose shapes are checked cannot be sent."""
    code = "import tests.checks; from tests.core.test_plan import tell_uploads; tell_uploads()"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    told = json.loads(done.stdout)
    assert len(told) == 5
    for planned, seen in told:
        assert planned == pytest.approx(seen, rel=0.1)


def tell_uploads() -> None:
    """Two extractions, both sides of a calibration in small requests, a steered generation: as planned, as serialized."""
    model, remote = zoo.load("large-base", "nnsight"), ul.Remote(batches=2)
    direction = ul.CapabilityDirection(torch.randn(4, 96), (0, 1, 2, 3))
    with pytest.MonkeyPatch.context() as patch:
        seen = counted_from_now(patch, serializes=True)
        whole = ul.Remote()
        locked, unlocked = (ul.Variant(model, of, remote=whole) for of in PROMPTS)
        ul.CapabilityDirection.extract(locked, unlocked, progress=False)
        ul.CapabilityDirection.extract(locked, unlocked, "pca", progress=False)
        texts = ul.Variant(model, TEXTS[:32], remote=remote)
        ul.SubspaceAligner(16, positions="all").fit(texts, texts, progress=False)
        ul.generate(model, TASK.direct, ul.SteeringHook(direction, 0.1), 2, remote=whole, progress=False)
    plans = [plan(model, prompts=PROMPTS), plan(model, prompts=PROMPTS, aggregate="pca", max_new_tokens=2)]
    plans.append(plan(model, model, texts=TEXTS[:32], rank=16, remote=remote))
    steps = [plans[0].steps[0], plans[1].steps[0], *plans[2].steps, plans[1].steps[1]]
    ups = [one.bytes_up for one in seen]
    sums = [ups[0], ups[1], sum(ups[2:4]), sum(ups[4:6]), ups[6]]
    print(json.dumps([[step.bytes_up, up] for step, up in zip(steps, sums, strict=True)]))  # noqa: T201


@pytest.mark.parametrize("name", ["large-base", "small-gpt2"])
def test_flops_are_those_of_real_passes(name: str) -> None:
    """Of a padded batch up to a layer, and of a completion, counted while the weights are there."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(zoo.path() / name, attn_implementation="eager")
    cost = PassCost.of(model.config)
    ids = torch.randint(1, 10, (5, 23))
    blocks = max((part for part in model.modules() if isinstance(part, torch.nn.ModuleList)), key=len)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        handle = blocks[1].register_forward_hook(_stop)
        with pytest.raises(StopIteration):
            model(ids, attention_mask=torch.ones_like(ids), use_cache=False)
        handle.remove()
    assert cost.forward(5, 23, last=1) == pytest.approx(counter.get_total_flops(), rel=0.01)
    with torch.no_grad(), counter:
        model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False, eos_token_id=None)
    assert cost.generation(5, 23, 6) == pytest.approx(counter.get_total_flops(), rel=0.01)


def _stop(*_: Any) -> None:
    raise StopIteration


def test_blocks_beyond_the_counted_ones_repeat_them() -> None:
    """A mixture of experts whose first block is dense, deeper than what is built, against all of it built."""
    from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3MoeConfig

    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 50,
    }
    experts: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8}
    mixed: Any = Qwen3MoeConfig(num_hidden_layers=13, mlp_only_layers=[0], **experts, **sizes)
    mixed._experts_implementation = "batched_mm"
    for config in (LlamaConfig(num_hidden_layers=13, **sizes), mixed):
        counter = FlopCounterMode(display=False)
        with torch.device("meta"), torch.no_grad():
            model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="eager")
            ids = torch.zeros(3, 40, dtype=torch.long)
            with counter:
                model.base_model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
        cost = PassCost.of(config)
        assert cost.forward(3, 40, last=12) == counter.get_total_flops()
        assert cost.modules == len(list(model.modules()))


class Live(TorchDispatchMode):
    """Counts the bytes of tensors that are alive, and their peak, without those that were given."""

    def __init__(self, *given: Tensor) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known = {tensor.untyped_storage().data_ptr() for tensor in given}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._meet, out)
        return out

    def _meet(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage.data_ptr()
        if key not in self.known:
            self.known.add(key)
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._forget, key, storage.nbytes())

    def _forget(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


@pytest.mark.parametrize(("rows", "n"), [(60, 60), (400, 400), (60, 400), (300, 400)])
def test_memory_is_what_a_reduction_holds(rows: int, n: int) -> None:
    """Counted while it runs, but for the workspace of the eigenvalue routine: two matrices of its size, which torch does not
    show. Passes of one token each, so that the model's own activations are next to nothing."""
    layers, d, axes = 6, 128, 16
    config = type("Config", (), {"hidden_size": d, "intermediate_size": 1})()
    states = torch.randn(layers, n, d)
    places = torch.where(torch.arange(n) < rows, torch.arange(n), -1)
    with Live(states, places) as live:
        reduction = Factors(axes, rows, n, True, False)
        for i in range(layers):
            for token in range(n):
                reduction.add(i, states[i, token][None], places[token][None], 1)
        reduction.result()
    side = d if n > rows else min(rows, d)
    said = reading_memory(reduction, [Shape(1, 1, 1)], layers, config)
    assert said - 2 * 8 * side**2 == pytest.approx(live.peak, rel=0.1)


def test_numbers_are_planned_as_texts_of_that_length_are() -> None:
    lengths = {len(prompt.split()) for prompt in TASK.direct}
    assert len(lengths) == 1
    settings: dict[str, Any] = {"texts": TASK.direct, "max_new_tokens": 3}
    real = plan(LARGE, SMALL, prompts=(TASK.direct, TASK.direct), **settings)
    length, n = real.steps[1].tokens // len(TASK.direct), len(TASK.direct)
    assumed = plan(LARGE, SMALL, prompts=n, prompt_tokens=length, texts=n, text_tokens=length, max_new_tokens=3)
    assert assumed.steps == real.steps
    assert len(assumed.assumptions) == len(real.assumptions) + 2


def test_configs_open_models_and_variants_are_planned_alike() -> None:
    from transformers import AutoConfig

    model = zoo.load("large-base", "nnsight")
    asked: dict[str, Any] = {"prompts": 20, "prompt_tokens": 9}
    plans = [plan(given, **asked) for given in (LARGE, str(LARGE), model, ul.Variant(model, ["Q"]))]
    plans.append(plan(AutoConfig.from_pretrained(LARGE), **asked))
    numbers = [dataclasses.replace(found.total, model="") for found in plans]
    assert numbers == [numbers[0]] * 5


def test_the_total_sums_all_but_memory() -> None:
    found = plan(LARGE, SMALL, prompts=20, prompt_tokens=9, texts=30, text_tokens=16, max_new_tokens=4, resume=True)
    told = found.to_json()
    assert [step["name"] for step in told["steps"]] == ["extract", "calibrate source", "calibrate target", "generate"]
    for name in ("requests", "tokens", "padded_tokens", "bytes_up", "bytes_down", "flops"):
        assert told["total"][name] == sum(step[name] for step in told["steps"])
    assert told["total"]["server_bytes"] == max(step["server_bytes"] for step in told["steps"])
    assert json.loads(json.dumps(told)) == told
    assert all(step.name in str(found) for step in found.steps)


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({}, "there is nothing to plan"),
        ({"prompts": 5}, "prompts=5 and prompt_tokens=None were given; a number of prompts needs prompt_tokens="),
        ({"prompts": 0, "prompt_tokens": 5}, "prompts=0 and prompt_tokens=5 were given"),
        ({"prompts": PROMPTS, "prompt_tokens": 5}, "prompt_tokens=5 was given for prompts that are not a number"),
        ({"prompts": (["a"], ["a", "b"])}, "1 locked and 2 unlocked prompts were given"),
        ({"texts": 5, "text_tokens": 5}, "texts= were given without a target"),
        ({"prompts": 5, "prompt_tokens": 5, "target": SMALL}, "a target was given and nothing for it to do"),
        ({"texts": 5, "text_tokens": 5, "target": SMALL, "max_new_tokens": 4}, "max_new_tokens=4 was given without prompts"),
        ({"prompts": 5, "prompt_tokens": 5, "max_new_tokens": -1}, "max_new_tokens -1 was given"),
        ({"prompts": 5, "prompt_tokens": 5, "batch_size": 0}, "batch_size 0 was given"),
        ({"prompts": 5, "prompt_tokens": 5, "layers": [4]}, "choose different ones from 0 to 3"),
        ({"prompts": 5, "prompt_tokens": 5, "aggregate": "median"}, "there is no aggregate 'median'"),
        ({"texts": 5, "text_tokens": 5, "target": SMALL, "method": "magic"}, "there is no method 'magic'"),
        ({"texts": 5, "text_tokens": 5, "target": SMALL, "rank": 0}, "rank 0 was given"),
        ({"texts": 5, "text_tokens": 5, "target": SMALL, "positions": "first"}, "positions 'first' was given"),
        ({"texts": 5, "text_tokens": 5, "target": SMALL, "layer_map": {3: 0}}, "the layer map sends target layer 3"),
        ({"prompts": 5, "prompt_tokens": 5, "unlocked_source": SMALL}, "a contrast needs two models of one shape"),
        ({"prompts": 5, "prompt_tokens": 5, "source": ROOT / "docs"}, "has no config that can be read"),
        ({"prompts": PROMPTS, "source": ROOT / "docs" / "configs" / "llama-3.1-8b"}, "has no config and tokenizer"),
    ],
)
def test_nonsense_is_refused(given: dict[str, Any], match: str) -> None:
    asked: dict[str, Any] = {"source": LARGE, **given}
    with unchecked(), pytest.raises(ul.UnlockLensError, match=re.escape(match)):
        plan(**asked)


def test_a_config_alone_counts_no_texts() -> None:
    from transformers import LlamaConfig

    with pytest.raises(ul.InvalidInput, match="a config has no tokenizer to count these texts with"):
        plan(LlamaConfig(), prompts=PROMPTS)


def test_an_object_that_is_no_model_is_refused() -> None:
    with pytest.raises(ul.UnsupportedModel, match="builtins.dict was given"):
        plan({}, prompts=5, prompt_tokens=5)


def _printed(command: str) -> str:
    """What the command prints in a terminal of 80 columns."""
    app = typer.Typer()
    app.command()(cli_plan.plan)
    done = CliRunner().invoke(app, shlex.split(command.removeprefix("unlock-lens plan")), env={"COLUMNS": "80"})
    assert done.exit_code == 0, done.output
    return "\n".join(line.rstrip() for line in done.stdout.splitlines()).strip("\n")


def test_the_page_shows_what_its_commands_print(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    page = (ROOT / "docs" / "plan.md").read_text()
    shown = re.findall(r"```sh\n(unlock-lens plan .*?)\n```\n+```text\n(.*?)\n```", page, re.DOTALL)
    assert len(shown) == page.count("```sh") == 4
    for command, output in shown:
        assert output == _printed(command.replace("\\\n", " "))


def test_the_command_counts_real_files(tmp_path: Path) -> None:
    """The same numbers as from Python, and JSON for programs."""
    questions, text = tmp_path / "q.txt", tmp_path / "t.txt"
    questions.write_text("Q 1 2 3\nQ 4 5 6 1\n")
    text.write_text("\n".join(TEXTS))
    templates = "--locked '{question} A :' --unlocked '{question} think A :'"
    asked = f"--source {LARGE} --target {SMALL} --questions {questions} {templates}"
    told = json.loads(_printed(f"unlock-lens plan {asked} --text {text} --rank cv --half --resume --json"))
    prompts = [[f"{question} {end}" for question in ("Q 1 2 3", "Q 4 5 6 1")] for end in ("A :", "think A :")]
    settings: dict[str, Any] = {"rank": "cv", "resume": True, "remote": ul.Remote(half=True)}
    assert told == plan(LARGE, SMALL, prompts=(prompts[0], prompts[1]), texts=TEXTS, **settings).to_json()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ("--questions q.txt --n 5", "--questions and --n were given"),
        ("--text t.txt --texts 5", "--text and --texts were given"),
        ("--n 5", "a number of prompts needs prompt_tokens="),
    ],
)
def test_the_command_refuses_contradictions(options: str, match: str) -> None:
    app = typer.Typer()
    app.command()(cli_plan.plan)
    with pytest.raises(ul.InvalidInput, match=match):
        CliRunner().invoke(app, ["--source", str(LARGE), *shlex.split(options)], catch_exceptions=False)
