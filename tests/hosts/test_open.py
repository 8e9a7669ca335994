"""Which models are served, and what the others are told."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import unlock_lens as ul
from unlock_lens import zoo
from unlock_lens.hosts import BACKENDS, backend_of, open_model

FOLDER = str(zoo.path() / "small-base")


def bare() -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(FOLDER)


def test_a_bare_hugging_face_model_is_shown_the_line_that_wraps_it() -> None:
    with pytest.raises(ul.UnsupportedModel) as caught:
        ul.generate(bare(), ["Q"])
    assert "LlamaForCausalLM" in str(caught.value)
    assert "TransformerBridge.boot_transformers(" in str(caught.value)
    assert "TransformersModel(" in str(caught.value)


@pytest.mark.filterwarnings("ignore:the host of")  # which puts BOS before what these models were trained on without
def test_the_lines_that_the_error_shows_work() -> None:
    from nnsight import TransformersModel
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(FOLDER)
    prompts = ["Q 1 2 3 4 5 6 think A :"]
    bridge = TransformerBridge.boot_transformers(FOLDER, hf_model=bare(), tokenizer=tokenizer)
    assert ul.generate(bridge, prompts) == ["S 1 3 6 3 1 0 = 0"]
    assert ul.generate(TransformersModel(bare(), tokenizer=tokenizer), prompts) == ["S 1 3 6 3 1 0 = 0"]


def test_anything_else_is_refused() -> None:
    with pytest.raises(ul.UnsupportedModel, match="Linear"):
        _ = ul.Variant(torch.nn.Linear(2, 2), ["Q"]).tokens
    with pytest.raises(ul.UnsupportedModel, match="boot_transformers"):
        ul.generate("gpt2", ["Q"])


def test_an_nnsight_wrapper_without_a_tokenizer_is_refused() -> None:
    from nnsight import NNsight

    with pytest.raises(ul.UnsupportedModel, match="tokenizer"):
        backend_of(NNsight(bare()))


def test_what_cannot_run_remotely_is_refused_at_once(small: Any) -> None:
    """nnsight would run a wrapper that is not remotable here, without a word."""
    from nnsight import NNsight
    from transformers import AutoTokenizer

    wrapped: Any = NNsight(bare())
    wrapped.__dict__["tokenizer"] = AutoTokenizer.from_pretrained(FOLDER)
    for model, message in ((small, "nnsight"), (wrapped, "NNsight")):
        with pytest.raises(ul.UnsupportedModel, match=message):
            ul.Variant(model, ["Q"], remote=True)
        with pytest.raises(ul.UnsupportedModel, match=message):
            ul.generate(model, ["Q"], remote=True)


def test_a_folder_of_this_machine_is_not_asked_of_a_server(small_nnsight: Any) -> None:
    with pytest.raises(ul.UnsupportedModel, match="folder"):
        ul.Variant(small_nnsight, ["Q"], remote=True)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_folder_without_a_model_is_named(backend: str, tmp_path: Path) -> None:
    with pytest.raises(ul.InvalidInput, match="folder"):
        open_model(str(tmp_path), backend)


REMOTE_LOCAL = """
import torch
import unlock_lens as ul
from unlock_lens import zoo

model, task = zoo.load("small-base", "nnsight"), zoo.running_sum(n=4)
here, there = (
    ul.CapabilityDirection.extract(ul.Variant(model, task.direct, remote=where), ul.Variant(model, task.think, remote=where))
    for where in (False, "local")
)
torch.testing.assert_close(there.vectors, here.vectors)
for positions in ("last_prompt", "generated"):
    steer = ul.SteeringHook(here, 0.5, positions=positions)
    assert ul.generate(model, task.direct, steer, remote="local") == ul.generate(model, task.direct, steer)

gate = ul.Gate.fit(ul.Variant(model, task.direct), ul.Variant(model, task.double))
mixed = task.direct + task.double
gated = ul.SteeringHook(here, 3.0, "add", "all", layers=range(gate.layer, 3), gate=gate)
acted = ul.generate(model, mixed, gated)
assert acted == ul.generate(model, mixed, gated, remote="local")
assert acted[4:] == ul.generate(model, task.double) != ul.generate(model, task.double, ul.SteeringHook(here, 3.0, "add", "all"))
assert not set(acted[:4]) & set(ul.generate(model, task.direct))

from unlock_lens.evidence.probe import Probe
from unlock_lens.evidence.distributions import completion_log_probs, first_token_entropies, next_token_log_probs, price
from unlock_lens.evidence.evaluation import evaluate, sample

steer, text = ul.SteeringHook(here, 0.5), zoo.text(n=4)
written = ul.generate(model, task.direct, steer)
for measured in (
    lambda **where: evaluate(model, task, task.direct, steer, 8, **where).completions,
    lambda **where: sample(model, task, task.direct, 2, max_new_tokens=8, **where).pass_at.keys(),
    lambda **where: next_token_log_probs(model, task.direct, steer, **where).round(decimals=4).tolist(),
    lambda **where: completion_log_probs(model, task.direct, written, steer, **where).round(decimals=4).tolist(),
    lambda **where: [round(nats, 4) for nats in first_token_entropies(model, task.direct, written, steer, **where)],
    lambda **where: round(price(model, text, steer, **where).kl, 5),
    lambda remote=False: Probe.run(
        here, ul.Variant(model, task.direct, remote=remote), ul.Variant(model, task.think, remote=remote)
    ),
):
    assert measured(remote="local") == measured()

with model.generate(max_new_tokens=12, do_sample=False, remote="local") as run:
    with run.invoke(task.direct):
        steer.apply(model)
    with run.invoke():
        ids = run.result.save()
end, written = len(task.direct[0].split()), ul.generate(model, task.direct, steer, 12)
assert model.tokenizer.batch_decode(ids[:, end:], skip_special_tokens=True) == written

# What is sent names modules that every server has, and brings those of this library along.
import pickletools

from nnsight.intervention.serialization import dumps, loads

import inspect
from importlib import import_module

from unlock_lens.hosts import ndif
from unlock_lens.method.reduce import LeadingAxes, Mean, States

names = ("align", "apply", "calibrate", "crossval", "extract", "gate", "linalg", "reduce")
rooms = [import_module(f"unlock_lens.method.{name}") for name in names]
of_method = [
    one
    for room in rooms
    for one in vars(room).values()
    if (inspect.isfunction(one) or inspect.isclass(one)) and one.__module__ == room.__name__
]
assert len(of_method) > 50
built = (LeadingAxes(4, 8, 10, True, False), Mean(4), States(1, 2, 3), steer, gated)
for sent in (*of_method, *built, ndif.reduced, ndif.generated, ndif.unembedded):
    named = {word for _, word, _ in pickletools.genops(dumps(sent)) if isinstance(word, str)}
    assert not named & {"jaxtyping", "beartype", "safetensors", "transformer_lens"}, (sent, named)

# A hook, pickled as for a server, where this library is installed and where it is not.
import sys

sent, gated_sent = dumps(steer), dumps(gated)
assert isinstance(loads(sent), ul.SteeringHook)
assert loads(gated_sent).gate.threshold == gate.threshold
for name in [name for name in sys.modules if name.partition(".")[0] == "unlock_lens"]:
    del sys.modules[name]
sys.modules["unlock_lens"] = None
shipped = loads(sent)
assert type(shipped).__name__ == "ShippedHook"
with model.generate(max_new_tokens=12, do_sample=False) as run:
    with run.invoke(task.direct):
        shipped.apply(model)
    with run.invoke():
        ids = run.result.save()
assert model.tokenizer.batch_decode(ids[:, end:], skip_special_tokens=True) == written

shipped = loads(gated_sent)
assert type(shipped).__name__ == "ShippedHook"
with model.generate(max_new_tokens=64, do_sample=False) as run:
    with run.invoke(mixed):
        shipped.apply(model, run)
    with run.invoke():
        ids = run.result.save()
asked = [text.split(": ")[-1] for text in model.tokenizer.batch_decode(ids, skip_special_tokens=True)]
assert asked == acted, (asked, acted)
print("the same")
"""


def test_remote_local_gives_what_local_gives(tmp_path: Path) -> None:
    """nnsight's simulation serializes everything as for a server; in a process of its own, for the run-time checks of
    these tests cannot be serialized.
    """
    script = tmp_path / "local.py"  # not -c: Python 3.13 takes its text for the source of every function made by exec
    script.write_text(REMOTE_LOCAL)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert done.stdout == "the same\n", done.stderr


def test_backends_are_named() -> None:
    with pytest.raises(ul.InvalidInput, match="jax.*nnsight"):
        open_model(FOLDER, "jax")


def test_a_model_without_a_tokenizer_is_refused(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small, "tokenizer", None)
    with pytest.raises(ul.UnsupportedModel, match="tokenizer"):
        backend_of(small)
