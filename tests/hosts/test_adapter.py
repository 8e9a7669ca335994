"""The adapter is made once for each model, and anew when what it was made from changes; it keeps no model alive."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch

from tests.hosts.models import HOSTS, open_host
from unlock_lens.hosts import backend_of
from unlock_lens.hosts.base import Backend


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every model that an adapter is made for."""
    seen: list[Any] = []
    for kind in {kind_of(host) for host in HOSTS}:
        original = kind.__init__

        def counted(self: Backend, model: Any, original: Any = original) -> None:
            seen.append(type(model).__name__)
            original(self, model)

        monkeypatch.setattr(kind, "__init__", counted)
    return seen


def kind_of(host: str) -> type[Backend]:
    from unlock_lens.hosts.nnsight import NNsightBackend
    from unlock_lens.hosts.transformer_lens import TransformerLensBackend

    return NNsightBackend if host == "nnsight" else TransformerLensBackend


def embedding_of(model: Any) -> torch.nn.Parameter:
    return model._module.get_input_embeddings().weight if hasattr(model, "trace") else model.W_E


@pytest.fixture
def model(folders: Any, host: str) -> Any:
    return open_host(folders["gpt2", "a"], host)


def test_it_is_made_once(model: Any, looked_at: list[Any]) -> None:
    first, second = backend_of(model), backend_of(model)
    assert len(looked_at) == 1
    assert first.model is second.model is model
    assert (first.identity, first.tokenizer) == (second.identity, second.tokenizer)
    assert type(first) is kind_of("nnsight" if hasattr(model, "trace") else "bridge")


def test_what_one_caller_changes_is_its_own(model: Any) -> None:
    ends = backend_of(model).end_tokens
    backend_of(model).end_tokens = ()
    assert backend_of(model).end_tokens == ends != ()


def test_models_are_distinguished(folders: Any, host: str, looked_at: list[Any]) -> None:
    models = [open_host(folders["gpt2", shape], host) for shape in ("a", "b")]
    assert [backend_of(model).identity.d_model for model in models * 2] == [32, 48, 32, 48]
    assert len(looked_at) == 2


def test_another_tokenizer_makes_another(model: Any, folders: Any, looked_at: list[Any]) -> None:
    from transformers import AutoTokenizer

    backend_of(model)
    model.tokenizer = other = AutoTokenizer.from_pretrained(folders["llama", "a"])
    assert backend_of(model).tokenizer is other
    backend_of(model)
    assert len(looked_at) == 2


def test_another_end_token_makes_another(model: Any, looked_at: list[Any]) -> None:
    config = getattr(getattr(model, "_module", None) or getattr(model, "original_model", None), "generation_config", None)
    if config is None:
        pytest.skip("a HookedTransformer has no generation config")
    backend_of(model)
    config.eos_token_id = [3, 4]
    assert backend_of(model).end_tokens == (3, 4)
    assert len(looked_at) == 2


@pytest.mark.parametrize("change", ["in place", "replaced"])
@torch.no_grad()
def test_other_weights_make_another(model: Any, looked_at: list[Any], change: str) -> None:
    before, weight = backend_of(model).identity.fingerprint, embedding_of(model)
    if change == "in place":
        weight.neg_()
    else:
        weight.data = -weight.data
    assert backend_of(model).identity.fingerprint != before
    backend_of(model)
    assert len(looked_at) == 2


def test_weights_that_are_loaded_later_make_another(folders: Any, looked_at: list[Any]) -> None:
    import nnsight

    lazy = nnsight.TransformersModel(folders["gpt2", "a"], task="text-generation")
    assert backend_of(lazy).identity.fingerprint is None
    lazy.dispatch()
    assert backend_of(lazy).identity.fingerprint == backend_of(open_host(folders["gpt2", "a"], "nnsight")).identity.fingerprint
    assert len(looked_at) == 3


def test_compatibility_mode_makes_another(folders: Any, looked_at: list[Any]) -> None:
    bridge = open_host(folders["gpt2", "a"], "bridge")
    assert backend_of(bridge).identity.basis == "raw"
    bridge.enable_compatibility_mode()
    assert backend_of(bridge).identity.basis == "zero_mean"
    backend_of(bridge)
    assert len(looked_at) == 2


def test_no_model_is_kept_alive(folders: Any, host: str) -> None:
    model = open_host(folders["gpt2", "a"], host)
    backend_of(model)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
