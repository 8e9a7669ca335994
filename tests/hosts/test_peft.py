"""A real PEFT adapter: it counts for what a model is, and is steered as the model that it makes."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

import unlock_lens as ul
from tests.hosts.families import family, greedy, in_bridge, in_nnsight, plain, without_end
from unlock_lens.core import read
from unlock_lens.hosts import backend_of

pytest.importorskip("peft")
PROMPTS = ["Q 3 1 4 1 5 think A :", "Q 6 A :", "W"]
ALPHA, STEPS = 0.6, 4


def adapted() -> Any:
    """A Llama with a LoRA adapter whose weights are not the zeros that it begins with."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(3)
    model: Any = get_peft_model(
        copy.deepcopy(family("llama")), LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    )
    return model.eval()


def opened(model: Any, host: str, folder: Path) -> Any:
    """As a user opens it: PEFT's model in nnsight, the merged one in TransformerLens, which takes no other."""
    return in_nnsight(model) if host == "nnsight" else in_bridge(copy.deepcopy(model).merge_and_unload(), folder)


@pytest.mark.parametrize("host", ["nnsight", "bridge"])
def test_a_model_with_an_adapter_is_read_and_steered(host: str, tmp_path: Path) -> None:
    peft = adapted()
    model = opened(peft, host, tmp_path)
    rows: list[list[int]] = [model.tokenizer.encode(prompt) for prompt in PROMPTS]
    true = torch.cat([plain(peft, row)[0] for row in rows], dim=1)
    torch.testing.assert_close(read.at_all_tokens(ul.Variant(model, PROMPTS)), true, rtol=1e-4, atol=1e-4)
    own = [
        peft.generate(input_ids=torch.tensor([row]), max_new_tokens=STEPS, do_sample=False)[0, len(row) :].tolist()
        for row in rows
    ]
    assert ul.generate(model, PROMPTS, max_new_tokens=STEPS) == [without_end(model, ids) for ids in own]
    vectors = torch.randn(3, 48, generator=torch.Generator().manual_seed(0))
    hook = ul.SteeringHook(ul.CapabilityDirection(vectors, (0, 1, 2)), ALPHA)
    steered = [without_end(model, greedy(peft, row, vectors, ALPHA, STEPS)) for row in rows]
    assert ul.generate(model, PROMPTS, hook, max_new_tokens=STEPS) == steered
    assert steered != [without_end(model, greedy(family("llama"), row, vectors, ALPHA, STEPS)) for row in rows]


def test_an_adapter_is_part_of_what_a_model_is_while_it_is_on() -> None:
    peft, base = adapted(), backend_of(in_nnsight(family("llama"))).identity
    model = in_nnsight(peft)
    with_adapter = backend_of(model).identity
    assert not with_adapter.is_same_model(base)
    assert with_adapter.is_same_model(backend_of(in_nnsight(adapted())).identity)
    first = next(weight for name, weight in peft.named_parameters() if "lora_A" in name)
    with torch.no_grad():
        first.neg_()
    assert not backend_of(model).identity.is_same_model(with_adapter)
    states = read.at_position(ul.Variant(model, PROMPTS))
    with peft.disable_adapter():
        assert not backend_of(model).identity.is_same_model(with_adapter)
        off = read.at_position(ul.Variant(model, PROMPTS))
    assert (states - off).norm() > 0.01 * off.norm()
    true = torch.stack([plain(family("llama"), model.tokenizer.encode(prompt))[0][:, -1] for prompt in PROMPTS], dim=1)
    torch.testing.assert_close(off, true, rtol=1e-4, atol=1e-4)
