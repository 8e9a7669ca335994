"""Keys: a hook goes through a file, a folder and the hub, and steers the same; what cannot be trusted is refused."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import unlock_lens as ul
from tests.core.test_hub import hub  # noqa: F401  # pyright: ignore[reportUnusedImport]
from tests.hub_server import Hub
from unlock_lens import zoo
from unlock_lens.core import files

TASK = zoo.running_sum(n=16, seed=3)
MIXED = [prompt for pair in zip(TASK.direct, TASK.double, strict=True) for prompt in pair]
SHOWN = ul.Evidence("running sums", 100, 0.83, (0.75, 0.9), 0.24, {"random": 0.0, "anti-mean": 0.01}, "arrived")


@pytest.fixture(scope="module")
def gate(small: Any) -> ul.Gate:
    return ul.Gate.fit(ul.Variant(small, TASK.direct), ul.Variant(small, TASK.double), progress=False)


@pytest.fixture(scope="module")
def steer(small: Any, gate: ul.Gate) -> ul.SteeringHook:
    direction = ul.CapabilityDirection.extract(ul.Variant(small, TASK.direct), ul.Variant(small, TASK.think), progress=False)
    strengths = {0: 2.0, 2: 3.0}
    return ul.SteeringHook(direction, strengths, "add", "last_prompt", [0, 2], gate=gate).proven(SHOWN)


def same(a: ul.SteeringHook, b: ul.SteeringHook) -> bool:
    assert a.gate is not None
    assert b.gate is not None
    pairs = (a.direction, b.direction), (a.gate.direction, b.gate.direction)
    return json.dumps(a.description) == json.dumps(b.description) and all(
        torch.equal(one.vectors, other.vectors) for one, other in pairs
    )


def rewritten(path: Path, change: Any) -> Path:
    """The same file with other metadata, and the hash that belongs to it, if the change does not set one."""
    with safe_open(path, framework="pt") as file:
        told = json.loads(file.metadata()["unlock_lens"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    before = told["content_hash"]
    change(told)
    if told["content_hash"] == before:
        told["content_hash"] = files.content_hash(tensors, told)
    save_file(tensors, path, metadata={"unlock_lens": json.dumps(told)})
    return path


@pytest.mark.parametrize("host", ["small", "small_nnsight"])
def test_a_key_steers_as_the_hook_does(
    steer: ul.SteeringHook, host: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """The same tokens in both hosts, some of the rows let through by its gate."""
    model = request.getfixturevalue(host)
    steer.save(tmp_path / "think.key.safetensors")
    key = ul.SteeringHook.load(tmp_path / "think.key.safetensors")
    assert same(key, steer)
    assert key.evidence == SHOWN
    written, plain = (ul.generate(model, MIXED, each, max_new_tokens=10) for each in (steer, None))
    assert ul.generate(model, MIXED, key, max_new_tokens=10) == written
    assert written[1::2] == plain[1::2]
    assert all(a != b for a, b in zip(written[::2], plain[::2], strict=True))
    with key.attached(model):
        assert ul.generate(model, MIXED, max_new_tokens=10) == written


def test_a_plain_hook_is_a_key_too(steer: ul.SteeringHook, tmp_path: Path) -> None:
    path = tmp_path / "key.safetensors"
    ul.SteeringHook(steer.direction, 0.5).save(path)
    key = ul.SteeringHook.load(path)
    assert (key.alpha, key.layers, key.gate, key.evidence, key.chat_template_hash) == (0.5, None, None, None, None)
    ul.SteeringHook(steer.direction, 0.5, check_model=False).save(path)
    assert ul.SteeringHook.load(path).check_model


def test_a_key_of_another_model_is_refused(steer: ul.SteeringHook, tmp_path: Path) -> None:
    steer.save(tmp_path / "key.safetensors")
    key = ul.SteeringHook.load(tmp_path / "key.safetensors")
    for name in ("small-post", "large-base"):
        with pytest.raises(ul.IncompatibleModel, match=f"small-base .* {name}"):
            ul.generate(zoo.load(name), TASK.direct, key)


def test_a_key_that_fits_any_model_is_reported(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="model is unknown, so this key cannot refuse"):
        ul.SteeringHook(ul.CapabilityDirection(torch.ones(1, 4), (0,)), 0.5).save(tmp_path / "key.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda told: told.update(format_version=9), "format version 9, but this library reads 1 to 3"),
        (lambda told: told.update(kind="direction"), "holds: direction; expected: key"),
        (lambda told: told["evidence"].pop("controls"), "evidence.controls is missing"),
        (lambda told: told["evidence"].update(n=None, price=None), "evidence.n is None"),
        (lambda told: told["evidence"].update(gain=0.99), r"not a readable .*gain of 0.99 in \(0.75, 0.9\)"),
        (lambda told: told.pop("gate"), "gate is missing"),
        (lambda told: told["gate"].update(threshold="high"), "gate.threshold is 'high'"),
        (lambda told: told.update(content_hash="0"), "hash"),
    ],
)
def test_keys_that_cannot_be_trusted_are_refused(steer: ul.SteeringHook, tmp_path: Path, change: Any, message: str) -> None:
    path = tmp_path / "key.safetensors"
    steer.save(path)
    with pytest.raises(ul.ArtifactError, match=message):
        ul.SteeringHook.load(rewritten(path, change))


def test_a_direction_is_not_a_key(steer: ul.SteeringHook, tmp_path: Path) -> None:
    steer.direction.save(tmp_path / "direction.safetensors")
    with pytest.raises(ul.ArtifactError, match="holds: direction; expected: key"):
        ul.SteeringHook.load(tmp_path / "direction.safetensors")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"gain": 0.95}, "the gain in its interval"),
        ({"n": 0}, "at least 1 and 0"),
        ({"price": float("nan")}, "price of nan"),
        ({"controls": {}}, "at least one control"),
        ({"verdict": " "}, "a verdict"),
    ],
)
def test_half_the_evidence_is_none(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ul.InvalidInput, match=message):
        dataclasses.replace(SHOWN, **wrong)


def test_a_folder_and_its_card(steer: ul.SteeringHook, small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The card shows the evidence and the gate, beside a direction's; its code runs."""
    steer.direction.save_pretrained(tmp_path / "think")
    steer.save_pretrained(tmp_path / "think")
    assert sorted(file.name for file in (tmp_path / "think").iterdir()) == [
        "README.md", "direction.safetensors", "key.safetensors",
    ]  # fmt: skip
    assert same(ul.SteeringHook.from_pretrained(tmp_path / "think"), steer)
    card = (tmp_path / "think" / "README.md").read_text()
    section = card[card.index("## key.safetensors") :]
    assert steer.gate is not None
    for row in (
        "| evidence: task | running sums |",
        "| evidence: gain | 0.83 |",
        "| evidence: interval | 0.75, 0.9 |",
        "| evidence: price | 0.24 |",
        "| evidence: controls | random 0.0, anti-mean 0.01 |",
        "| evidence: verdict | arrived |",
        "| alpha | 0: 2.0, 2: 3.0 |",
        "| operation | add |",
        "| layers | 0, 2 |",
        f"| gate | layer 0, threshold {steer.gate.threshold}, positions last_prompt, auroc 1.0, hits 1.0, false_alarms 0.0 |",
    ):
        assert row in section.splitlines(), row
    assert re.search(r"^\| model \| name `small-base`, n_layers 3", section, re.MULTILINE)
    code = re.findall(r"```python\n(.*?)```", section, re.DOTALL)[0]
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"model": small, "prompts": MIXED[:2]}
    exec(code, names)
    assert len(names["completions"]) == 2


def test_the_hub(steer: ul.SteeringHook, hub: Hub) -> None:  # noqa: F811
    assert steer.push_to_hub("me/think") == f"{hub.url}/me/think"
    assert sorted(hub.files("me/think")) == ["README.md", "key.safetensors"]
    assert same(ul.SteeringHook.from_pretrained("me/think"), steer)


def test_another_chat_template_is_reported(steer: ul.SteeringHook, small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    template = "{% for m in messages %}{{ m['content'] }} A :{% endfor %}"
    monkeypatch.setattr(small.tokenizer, "chat_template", template, raising=False)
    chat = ul.Variant(small, ["Q 1 2 3 4 5 6", "Q 2 2 3 4 5 6"], chat=True)
    proven = steer.proven(SHOWN, chat)
    assert proven.chat_template_hash is not None
    ul.generate(chat, steer=proven, max_new_tokens=1)  # says nothing
    with pytest.warns(UserWarning, match=f"chat template {proven.chat_template_hash}, but these are in none"):
        ul.generate(small, TASK.direct, proven, max_new_tokens=1)


def test_an_interrupted_save_leaves_the_old_key(
    steer: ul.SteeringHook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "key.safetensors"
    steer.save(path)
    before = path.read_bytes()

    def fails(*of: Any) -> None:
        raise OSError

    monkeypatch.setattr("unlock_lens.core.files.os.replace", fails)
    with pytest.raises(OSError):  # noqa: PT011
        dataclasses.replace(steer, alpha=1.0).save(path)
    assert [path.read_bytes()] == [file.read_bytes() for file in tmp_path.iterdir()] == [before]
