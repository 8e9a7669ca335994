"""What is refused, and how: models that are no decoders, no heads, prompts that do not fit, hosts that are not served yet."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

import unlock_lens as ul
from scripts.train_zoo import make_tokenizer
from tests.hosts.families import FAMILIES, family, in_bridge, in_nnsight
from unlock_lens.core import read
from unlock_lens.evidence.distributions import next_token_log_probs
from unlock_lens.hosts import backend_of, open_model
from unlock_lens.hosts.tracing import path_of_blocks
from unlock_lens.zoo.family import MIXES

PROMPTS = ["Q 3 1 A :", "Q 5 think A :"]


def in_task(model: Any, task: str) -> Any:
    import nnsight

    return nnsight.TransformersModel(model, tokenizer=make_tokenizer(MIXES["base"]), task=task)


@pytest.mark.parametrize("name", ["VLLM", "RemoteBridge"])
@pytest.mark.parametrize("package", ["nnsight.modeling.vllm", "transformer_lens.model_bridge"])
def test_hosts_that_are_not_served_yet_are_named(name: str, package: str) -> None:
    kind = type("Served", (type(name, (), {"__module__": package}),), {})
    with pytest.raises(ul.UnsupportedModel, match=name):
        backend_of(kind())


def test_an_encoder_decoder_is_refused(tmp_path: Path) -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    model = T5ForConditionalGeneration(
        T5Config(vocab_size=23, d_model=16, d_kv=4, d_ff=16, num_layers=2, num_decoder_layers=2, num_heads=2)
    )
    with pytest.raises(ul.UnsupportedModel, match="encoder-decoder"):
        backend_of(in_nnsight(model))


def test_the_text_decoder_of_a_multimodal_model_is_taken() -> None:
    """Its tower of images may have as many blocks."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    text = LlamaConfig(**FAMILIES["llama"], vocab_size=23)
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2, image_size=8, patch_size=4
    )
    model = LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text, image_token_index=22))
    path = path_of_blocks(model, 3)
    assert "language_model" in path
    assert type(next(model.get_submodule(path).children())).__name__ == "LlamaDecoderLayer"


def test_two_lists_that_might_be_it_are_an_error() -> None:
    blocks = [nn.ModuleList(nn.Sequential(nn.Linear(2, 2)) for _ in range(3)) for _ in range(2)]
    module: Any = nn.Module()
    module.one, module.other, module.config = *blocks, SimpleNamespace()
    with pytest.raises(ul.UnsupportedModel, match="one, other"):
        path_of_blocks(module, 3)
    del module.other
    assert path_of_blocks(module, 3) == "one"


@pytest.mark.parametrize("kind", ["LlamaModel", "LlamaForSequenceClassification"])
def test_a_model_without_a_head_is_read_but_predicts_nothing(kind: str) -> None:
    import transformers

    config = transformers.LlamaConfig(**FAMILIES["llama"], vocab_size=23, num_labels=1)
    task = {"LlamaModel": "feature-extraction"}.get(kind, "text-classification")
    model = in_task(getattr(transformers, kind)(config).eval(), task)
    assert read.at_position(ul.Variant(model, PROMPTS)).shape == (3, 2, 48)
    for predicts in (next_token_log_probs, ul.generate):
        with pytest.raises(ul.UnsupportedModel, match="head"):
            predicts(model, PROMPTS)


@pytest.mark.parametrize("host", ["nnsight", "bridge"])
def test_prompts_beyond_learned_positions_are_refused(host: str, tmp_path: Path) -> None:
    hf = family("gpt2", n_positions=8)
    model = in_nnsight(hf) if host == "nnsight" else in_bridge(hf, tmp_path)
    for run in (ul.generate, next_token_log_probs):
        with pytest.raises(ul.InvalidInput, match="8 learned positions"):
            run(model, ["Q 3 1 4 1 5 9 2 6 A :"])
    with pytest.warns(UserWarning, match="cut after 4"):
        written = ul.generate(model, ["Q 3 1 A :"], max_new_tokens=9)
    assert written == ul.generate(model, ["Q 3 1 A :"], max_new_tokens=4)


def test_rotary_positions_have_no_such_end() -> None:
    model = in_nnsight(family("llama", max_position_embeddings=8))
    ul.generate(model, ["Q 3 1 4 1 5 9 2 6 A :"], max_new_tokens=4)


def test_a_multimodal_folder_makes_nobody_install_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

    from unlock_lens.hosts import transformer_lens as host

    LlavaConfig(vision_config=CLIPVisionConfig(), text_config=LlamaConfig()).save_pretrained(tmp_path)
    monkeypatch.setattr(host, "find_spec", lambda name: None)
    with pytest.raises(ul.UnsupportedModel, match="torchvision"):
        open_model(str(tmp_path))
