"""What a direction writes, in every host, against the formula with the bare model's weights."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import unlock_lens as ul
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
