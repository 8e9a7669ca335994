"""SmolLM2-135M-Instruct, a real pretrained model that pip can bring, in every host: `make test-real`.

The capability is Chain-of-Thought, the direction the model's own: extraction and steering on real weights and real text, with
controls, printed. Whether the direction does more than a placebo at the same price is what docs/one_model.md answers.
"""

from __future__ import annotations

import re
from importlib import import_module
from typing import Any

import pytest
import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

import unlock_lens as ul
from tests.hosts.models import HOSTS, open_host
from unlock_lens import controls
from unlock_lens.core import read
from unlock_lens.evidence.statistics import wilson_interval

pytestmark = pytest.mark.real

ASKED, PLACEBO = "Show all of your work, one step after the other.", "The weather is very nice here today."
"""Said after the question, so that all prompts end in the same token."""
EXTRACTED_ON, ALPHA, NEW_TOKENS = 64, 0.1, 96
REPORTED_ON = {"bridge": 32, "nnsight": 32, "hooked": 2}
"""HookedTransformer completes prompts of one length at a time, here one by one."""
console = Console(width=110)


@pytest.fixture(scope="session", params=HOSTS)
def host(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session")
def model(folder: str, host: str) -> Any:
    return open_host(folder, host)


def problems(n: int, seed: int) -> tuple[list[str], list[float]]:
    reasoning_gym: Any = import_module("reasoning_gym")  # of the extra "real" alone
    drawn = list(reasoning_gym.create_dataset("gsm_symbolic", size=n, seed=seed))
    return [entry["question"].partition(" Give the result")[0] for entry in drawn], [float(entry["answer"]) for entry in drawn]


def prompts(tokenizer: Any, questions: list[str], said: str = "") -> list[str]:
    chats = [[{"role": "user", "content": f"{question} {said}".strip()}] for question in questions]
    return [tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False) + "Answer:" for chat in chats]


def direction_of(model: Any, said: str = ASKED) -> tuple[ul.CapabilityDirection, ul.Variant]:
    questions, _ = problems(EXTRACTED_ON, seed=0)
    locked, unlocked = (
        ul.Variant(model, prompts(model.tokenizer, questions, asked), add_special_tokens=False) for asked in ("", said)
    )
    return ul.CapabilityDirection.extract(locked, unlocked, batch_size=16), locked


def complete(model: Any, asked: list[str], steer: ul.SteeringHook | None = None) -> list[str]:
    return ul.generate(model, asked, steer, max_new_tokens=NEW_TOKENS, batch_size=32, add_special_tokens=False)


def last_number(text: str) -> float | None:
    numbers = re.findall(r"-?\d+(?:\.\d+)?", text.replace(",", ""))
    return float(numbers[-1]) if numbers else None


def test_states_are_those_of_the_bare_model(folder: str, model: Any) -> None:
    from transformers import AutoModelForCausalLM

    bare: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    asked = prompts(model.tokenizer, problems(3, seed=0)[0])
    found = read.at_position(ul.Variant(model, asked, add_special_tokens=False))
    for i, prompt in enumerate(asked):
        ids = torch.tensor([model.tokenizer.encode(prompt, add_special_tokens=False)])
        with torch.no_grad():
            states = bare(ids, output_hidden_states=True).hidden_states
        for layer in range(len(states) - 2):  # the last entry is taken after the final norm
            torch.testing.assert_close(found[layer, i], states[layer + 1][0, -1], rtol=1e-2, atol=1e-2)


def test_chain_of_thought(host: str, model: Any) -> None:
    """Asked to, the model reasons in steps. Every direction changes what it writes; the table shows how."""
    direction, locked = direction_of(model)
    questions, answers = problems(REPORTED_ON[host], seed=1)
    plain, asked = (prompts(model.tokenizer, questions, said) for said in ("", ASKED))
    directions = {
        "its own direction": direction,
        "minus its own": -direction,
        "placebo": direction_of(model, PLACEBO)[0],
        "random direction": controls.random_like(direction),
        "anti-mean": controls.anti_mean(locked, direction),
    }
    completions = {"unsteered": complete(model, plain), "asked to": complete(model, asked)}
    completions |= {name: complete(model, plain, ul.SteeringHook(of, ALPHA)) for name, of in directions.items()}
    steps = show(host, model, questions, completions, answers)
    assert steps["asked to"] > steps["unsteered"]
    assert all(completions[name] != completions["unsteered"] for name in directions)


def show(
    host: str, model: Any, questions: list[str], completions: dict[str, list[str]], answers: list[float]
) -> dict[str, int]:
    """Print the table and three completions before and after; returns how many mention a step."""
    title = f"SmolLM2-135M-Instruct, {host}, alpha {ALPHA}, {len(questions)} problems, {NEW_TOKENS} tokens at most"
    table = Table("edit", "mean tokens", '"step"', "right", "95% interval", title=title, box=SIMPLE_HEAD)
    steps: dict[str, int] = {}
    for name, texts in completions.items():
        length = sum(len(model.tokenizer.encode(text, add_special_tokens=False)) for text in texts) / len(texts)
        right = sum(last_number(text) == answer for text, answer in zip(texts, answers, strict=True))
        low, high = wilson_interval(right, len(texts))
        steps[name] = sum("step" in text.lower() for text in texts)
        table.add_row(name, f"{length:.0f}", str(steps[name]), str(right), f"{low:.0%} - {high:.0%}")
    console.print(table)
    for i in range(3):
        console.print(f"[bold]{questions[i]}[/bold]")
        for name in ("unsteered", "its own direction"):
            console.print(f"[bold]{name}:[/bold]", completions[name][i].strip()[:300].replace("\n", " "), highlight=False)
    return steps
