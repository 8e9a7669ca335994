"""Which model something belongs to: all of its embedding counts, and in which basis its host holds it."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import unlock_lens as ul
from tests.hosts.families import family, in_bridge, in_nnsight
from tests.hosts.models import HAS_HOOKED_TRANSFORMER, open_host
from unlock_lens.core import read
from unlock_lens.hosts import backend_of
from unlock_lens.hosts.identity import ModelIdentity, fingerprint, weights_print
from unlock_lens.hosts.transformer_lens import _basis  # pyright: ignore[reportPrivateUsage]


def embedding(rows: int = 2000) -> torch.Tensor:
    return torch.randn(rows, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("half", ["first", "last"])
def test_a_fingerprint_sees_the_whole_embedding(half: str) -> None:
    """More rows than are looked at: a change of either half of the vocabulary is seen."""
    changed = embedding()
    rows = slice(0, 1000) if half == "first" else slice(1000, 2000)
    changed[rows] *= -1
    assert fingerprint(changed) != fingerprint(embedding())


def test_a_fingerprint_ignores_precision_and_scale() -> None:
    assert fingerprint(embedding().bfloat16()) == fingerprint(3 * embedding()) == fingerprint(embedding())


@pytest.mark.parametrize(
    ("normalization", "left_over", "basis"),
    [
        ("LN", 0.0, "zero_mean"),
        ("LN", 1e-6, "zero_mean"),
        ("LN", 1e-4, "raw"),
        ("LNPre", 0.0, "zero_mean"),
        ("RMS", 0.0, "raw"),
    ],
)
def test_a_basis_is_zero_mean_where_the_embedding_has_no_mean(normalization: str, left_over: float, basis: str) -> None:
    """What rounding leaves of the d_model mean is a millionth of the weights; a hundred times that is a mean."""
    centered = embedding().double()
    centered -= centered.mean(dim=1, keepdim=True)
    centered += left_over * centered.abs().mean()
    model = SimpleNamespace(cfg=SimpleNamespace(normalization_type=normalization), W_E=centered)
    assert _basis(model) == basis


@pytest.mark.parametrize("mean", [1.0, -1.0])
def test_one_row_with_a_mean_makes_a_basis_raw(mean: float) -> None:
    """Of either sign; all other rows have none."""
    rows = embedding().double()
    rows -= rows.mean(dim=1, keepdim=True)
    rows[7] += mean
    assert _basis(SimpleNamespace(cfg=SimpleNamespace(normalization_type="LN"), W_E=rows)) == "raw"


def test_a_row_of_zeros_leaves_a_zero_mean_basis() -> None:
    """The embedding of a pad token, say."""
    rows = embedding().double()
    rows -= rows.mean(dim=1, keepdim=True)
    rows[0] = 0
    assert _basis(SimpleNamespace(cfg=SimpleNamespace(normalization_type="LN"), W_E=rows)) == "zero_mean"


# All weights


def identity_with(weights: str | None) -> ModelIdentity:
    return ModelIdentity("m", 3, 48, fingerprint="same", weights=weights)


@pytest.mark.parametrize(
    "name", ["model.layers.2.mlp.down_proj.weight", "model.layers.0.input_layernorm.weight", "lm_head.weight"]
)
def test_every_weight_counts(name: str) -> None:
    model = copy.deepcopy(family("llama"))
    before = weights_print(model)
    with torch.no_grad():
        model.get_parameter(name).neg_()
    assert not identity_with(before).is_same_model(identity_with(weights_print(model)))
    assert str(identity_with(before)) != str(identity_with(weights_print(model)))


def test_the_size_of_a_weight_counts_for_what_is_resumed() -> None:
    model = copy.deepcopy(family("llama"))
    before = weights_print(model)
    with torch.no_grad():
        model.lm_head.weight.mul_(2)
    assert weights_print(model) != before
    assert identity_with(before).is_same_model(identity_with(weights_print(model)))


def test_a_dtype_does_not_make_another_model() -> None:
    model = family("llama")
    prints = [weights_print(copy.deepcopy(model).to(dtype)) for dtype in (torch.float32, torch.bfloat16, torch.float16)]
    assert len(set(prints)) == 3
    assert all(identity_with(prints[0]).is_same_model(identity_with(other)) for other in prints)


class Adapted(nn.Module):
    """What adapter libraries make of a linear layer."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.base_layer, self.lora_A = linear, nn.Linear(linear.in_features, 2, bias=False)
        self._disable_adapters, self.active_adapters = False, ["default"]

    @property
    def disable_adapters(self) -> bool:
        return self._disable_adapters

    def switch_off(self) -> None:
        self._disable_adapters = True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base_layer(x)


def test_adapters_count_and_whether_they_act() -> None:
    model: Any = copy.deepcopy(family("llama"))
    prints = [weights_print(model)]
    mlp: Any = model.model.layers[2].mlp
    adapted: Any = Adapted(mlp.down_proj)
    mlp.down_proj = adapted
    prints.append(weights_print(model))
    adapted.switch_off()
    prints.append(weights_print(model))
    same = [[identity_with(a).is_same_model(identity_with(b)) for b in prints] for a in prints]
    assert same == [[i == j for j in range(3)] for i in range(3)]


def test_weights_that_are_elsewhere_have_no_print() -> None:
    with torch.device("meta"):
        assert weights_print(nn.Linear(2, 2)) is None


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_hosts_agree_which_model_it_is(kind: str, folders: Any) -> None:
    bridge, traced = (backend_of(open_host(folders[kind, "a"], host)).identity for host in ("bridge", "nnsight"))
    assert bridge.is_same_model(traced)
    other = backend_of(open_host(folders[kind, "b"], "nnsight")).identity
    assert not bridge.is_same_model(other)


def test_folded_weights_are_those_of_the_same_model(folders: Any) -> None:
    model = open_host(folders["llama", "a"], "bridge")
    plain = backend_of(model).identity
    model.enable_compatibility_mode()
    assert backend_of(model).identity.is_same_model(plain)
    assert backend_of(model).identity.weights != plain.weights


@pytest.mark.parametrize("change", ["in place", "replaced", "adapted", "switched"])
def test_a_change_of_any_weight_is_seen(change: str) -> None:
    hf: Any = copy.deepcopy(family("llama"))
    mlp: Any = hf.model.layers[2].mlp
    if change == "switched":
        mlp.down_proj = Adapted(mlp.down_proj)
    model = in_nnsight(hf)
    before = backend_of(model).identity
    with torch.no_grad():
        if change == "in place":
            mlp.up_proj.weight.neg_()
        elif change == "replaced":
            mlp.up_proj.weight = nn.Parameter(-mlp.up_proj.weight)
        elif change == "adapted":
            mlp.down_proj = Adapted(hf.get_submodule("model.layers.2.mlp.down_proj"))
        else:
            mlp.down_proj.switch_off()
    assert backend_of(model).identity.weights != before.weights
    assert not backend_of(model).identity.is_same_model(before)


def test_a_hook_of_a_model_that_was_trained_on_is_refused() -> None:
    """With its embedding frozen."""
    hf = copy.deepcopy(family("llama"))
    model = in_nnsight(hf)
    prompts = ["Q 3 1 A :", "Q 5 A :"]
    other = ul.Variant(model, ["Q 3 1 think A :", "Q 5 rev A :"])
    hook = ul.SteeringHook(ul.CapabilityDirection.extract(ul.Variant(model, prompts), other), 0.5)
    with torch.no_grad():
        hf.model.layers[1].mlp.up_proj.weight.add_(torch.randn_like(hf.model.layers[1].mlp.up_proj.weight))
    with pytest.raises(ul.IncompatibleModel, match="transport"):
        ul.generate(model, prompts, hook, max_new_tokens=2)


@pytest.mark.skipif(HAS_HOOKED_TRANSFORMER, reason="TransformerLens 3 refuses weights on the disk itself")
def test_an_offloaded_model_is_served(tmp_path: Path) -> None:
    """accelerate keeps its embedding on the disk."""
    pytest.importorskip("accelerate")
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoModelForCausalLM

    whole = in_bridge(family("llama"), tmp_path)
    spread = {"model.embed_tokens": "disk", "model.layers.0": "cpu", "model.layers.1": "disk", "model.layers.2": "disk"}
    spread |= {"model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "disk"}
    hf: Any = AutoModelForCausalLM.from_pretrained(
        tmp_path, device_map=spread, offload_folder=tmp_path / "offloaded", dtype=torch.float32
    )
    model: Any = TransformerBridge.boot_transformers(str(tmp_path), hf_model=hf.eval())
    model.cfg.default_prepend_bos = False
    prompts = ["Q 3 1 A :", "Q 5 think A :"]
    assert backend_of(model).identity.is_same_model(backend_of(whole).identity)
    found, want = (read.at_all_tokens(ul.Variant(of, prompts)) for of in (model, whole))
    torch.testing.assert_close(found, want)
    assert ul.generate(model, prompts, max_new_tokens=4) == ul.generate(whole, prompts, max_new_tokens=4)
