"""What a direction writes, in every host, against the formula with the bare model's weights."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import unlock_lens as ul
from tests.hosts.families import FAMILIES, family, in_bridge, in_nnsight, plain
from tests.hosts.models import HAS_HOOKED_TRANSFORMER, PROMPTS, SHAPES, open_hooked, open_host
from unlock_lens import distributions, lens
from unlock_lens.core import read
from unlock_lens.hosts import backend_of
from unlock_lens.hosts.tracing import unembedding_paths


def direction_of(shape: str = "a") -> ul.CapabilityDirection:
    layers, width = SHAPES[shape]
    return ul.CapabilityDirection(torch.randn(layers, width, generator=torch.Generator().manual_seed(1)), tuple(range(layers)))


@torch.no_grad()
def folded(oracle: Any, vectors: Tensor) -> Tensor:
    """W_U with the norm's weight folded in, no bias, centered over the vocabulary."""
    base, vectors = oracle.model.base_model, vectors.double()
    if hasattr(base, "ln_f"):
        centered = vectors - vectors.mean(dim=1, keepdim=True)
        normed = centered / centered.norm(dim=1, keepdim=True) * base.ln_f.weight
    else:
        normed = vectors / vectors.norm(dim=1, keepdim=True) * base.norm.weight
    logits = normed * vectors.shape[1] ** 0.5 @ oracle.model.lm_head.weight.T
    return logits - logits.mean(dim=1, keepdim=True)


def test_logits_that_a_direction_writes(kind: str, host: str, model_of: Any, oracle_of: Any) -> None:
    direction, true = direction_of(), folded(oracle_of(kind), direction_of().vectors)
    found = lens.logits_written(direction, model_of(kind, host))
    assert float((found - true).norm() / true.norm()) < 1e-5
    assert torch.equal(lens.logits_written(2.0 * direction, model_of(kind, host)), found), "a multiple writes the same"


def test_unembedding_is_the_end_of_a_run(kind: str, host: str, model_of: Any) -> None:
    """The last block's output, unembedded, is what the model predicts."""
    model = model_of(kind, host)
    last = read.at_position(ul.Variant(model, PROMPTS), layers=[SHAPES["a"][0] - 1])[0]
    found = backend_of(model).unembed(last).log_softmax(-1)
    assert float((found - distributions.next_token_log_probs(model, PROMPTS)).abs().max()) < 1e-4


def test_compatibility_mode_writes_the_same(kind: str, folders: Any, oracle_of: Any) -> None:
    """A bridge whose norms were folded into its weights, as analyses want it."""
    model = open_host(folders[kind, "a"], "bridge")
    model.enable_compatibility_mode()
    true = folded(oracle_of(kind), direction_of().vectors)
    assert float((lens.logits_written(direction_of(), model) - true).norm() / true.norm()) < 1e-5


@pytest.mark.skipif(not HAS_HOOKED_TRANSFORMER, reason="TransformerLens 4 has no HookedTransformer")
def test_folded_weights_write_the_same(kind: str, folders: Any, oracle_of: Any) -> None:
    """TransformerLens' own folding changes nothing in what a direction writes, up to the centering that it has in its basis."""
    model = open_hooked(folders[kind, "a"], fold_ln=True, center_writing_weights=kind == "gpt2", center_unembed=True)
    direction, true = direction_of(), folded(oracle_of(kind), direction_of().vectors)
    assert float((lens.logits_written(direction, model) - true).norm() / true.norm()) < 1e-5


def test_the_last_norm_beside_the_blocks_is_the_final_one() -> None:
    """Bloom has one after its embeddings too."""
    from transformers import BloomConfig, BloomForCausalLM

    module = BloomForCausalLM(BloomConfig(vocab_size=8, hidden_size=8, n_layer=1, n_head=2))
    assert unembedding_paths(SimpleNamespace(_module=module), "transformer.h") == ("transformer.ln_f", "lm_head")


# What is done to logits beside norm and unembedding


_SCALED: dict[str, dict[str, Any]] = {
    "cohere": {"logit_scale": 0.25, "num_key_value_heads": 2},
    "granite": {"logits_scaling": 8.0, "num_key_value_heads": 2},
    "gemma2": {"final_logit_softcapping": 5.0, "num_key_value_heads": 2, "head_dim": 16},
}


@pytest.mark.parametrize("kind", _SCALED)
def test_logits_have_the_size_that_the_model_gives_them(kind: str) -> None:
    FAMILIES[kind] = {**FAMILIES["llama"], **_SCALED[kind]}
    hf = family(kind)
    model, row = in_nnsight(hf), torch.tensor([[3, 5, 6, 7, 2, 9]])
    states, own = plain(hf, row[0].tolist())
    found = backend_of(model).unembed(states[-1])
    if cap := _SCALED[kind].get("final_logit_softcapping"):
        found = cap * torch.tanh(found / cap)
    torch.testing.assert_close(found, own, rtol=1e-3, atol=1e-3)


def test_logits_of_something_else_are_refused() -> None:
    """Gemma-3n's come from several streams."""
    with pytest.raises(ul.UnsupportedModel, match="logits"):
        lens.logits_written(ul.CapabilityDirection(torch.ones(1, 48), (2,)), in_nnsight(family("gemma3n_text")))


class Int8(torch.nn.Module):
    """What quantized linear layers have in common: integers for a weight, and a forward that knows what they mean."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        scale = linear.weight.detach().abs().amax(1, keepdim=True) / 127
        self.register_buffer("scale", scale)
        self.weight = torch.nn.Parameter((linear.weight.detach() / scale).round().to(torch.int8), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return x.float() @ (self.weight.float() * self.get_buffer("scale")).T


def test_a_quantized_head_reads_states_unchanged() -> None:
    hf = copy.deepcopy(family("llama"))
    direction = ul.CapabilityDirection(torch.randn(1, 48, generator=torch.Generator().manual_seed(0)), (2,))
    want = lens.logits_written(direction, in_nnsight(hf))
    hf.lm_head = Int8(hf.lm_head)
    found = lens.logits_written(direction, in_nnsight(hf))
    assert float(torch.cosine_similarity(found, want)) > 0.999


def test_a_norm_that_is_missing_is_named(tmp_path: Path) -> None:
    """OPT-350m has none."""
    FAMILIES["opt"] = {
        "hidden_size": 48, "ffn_dim": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "max_position_embeddings": 64,
        "word_embed_proj_dim": 24, "do_layer_norm_before": False,
    }  # fmt: skip
    direction = ul.CapabilityDirection(torch.ones(1, 48), (2,))
    for model in (in_nnsight(family("opt")), in_bridge(family("opt"), tmp_path)):
        with pytest.raises(ul.UnsupportedModel, match="norm"):
            lens.tokens_written(direction, model)


def test_rows_of_a_padded_vocabulary_name_no_token() -> None:
    model = in_nnsight(family("llama", vocab_size=64))
    written = lens.tokens_written(ul.CapabilityDirection(torch.randn(3, 48), (0, 1, 2)), model, k=20)
    assert (written["raises"] != "").all()
