"""Random models in every host framework that is installed."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import torch

from scripts.train_zoo import make_tokenizer
from unlock_lens.hosts import open_model
from unlock_lens.zoo.family import MIXES

HAS_HOOKED_TRANSFORMER = version("transformer-lens").startswith("3.")
HOSTS = ("bridge", "nnsight", *(["hooked"] if HAS_HOOKED_TRANSFORMER else []))
KINDS = ("llama", "qwen2", "gpt2")
SHAPES = {"a": (3, 32), "b": (5, 48)}
"""Layers and width of the two models of each kind."""

PROMPTS = ["Q 3 1 A :", "Q 5 think A : S 5 5", "Q 6 6 6 6 1 2 3 rev A :", ":", "W 1 2 3 . Q"]
"""Of uneven length, one of them a single token."""
PARTNERS = ["Q 3 1 think A :", "Q 5 A : =", "Q 6 6 2 6 1 2 3 A :", "=", "R 1 2 3 . Q Q"]


def make_folder(kind: str, shape: str, folder: str) -> None:
    """A random model, its weights large enough that greedy choices are not near-ties."""
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    tokenizer = make_tokenizer(MIXES["base"])
    layers, width = SHAPES[shape]
    shared: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "initializer_range": 0.2,
        "tie_word_embeddings": False,
    }
    llama_like: dict[str, Any] = {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
    }
    torch.manual_seed(KINDS.index(kind) + 10 * layers)
    if kind == "llama":
        model: Any = LlamaForCausalLM(LlamaConfig(**shared, **llama_like))
    elif kind == "qwen2":
        model = Qwen2ForCausalLM(Qwen2Config(**shared, **llama_like, num_key_value_heads=2))
    else:
        model = GPT2LMHeadModel(GPT2Config(**shared, n_embd=width, n_layer=layers, n_head=4, n_positions=64))
    for name, weight in model.named_parameters():  # norms and biases begin as ones and zeros, which hides what is done to them
        if weight.ndim == 1:
            torch.nn.init.normal_(weight, mean=float("bias" not in name), std=0.2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def open_host(folder: str, host: str, **processing: bool) -> Any:
    if host == "hooked":
        return open_hooked(folder, **processing)
    return open_model(folder, {"bridge": "transformer_lens", "nnsight": "nnsight"}[host])


def open_hooked(folder: str, **processing: bool) -> Any:
    """A HookedTransformer of TransformerLens 3.x with a local folder's weights, which its from_pretrained cannot name."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformer_lens.pretrained import weight_conversions
    from transformers import AutoModelForCausalLM, AutoTokenizer

    hf: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    config: Any = hf.config
    kind = config.model_type
    shared: dict[str, Any] = {
        "model_name": folder,
        "n_layers": config.num_hidden_layers,
        "d_model": config.hidden_size,
        "n_ctx": min(config.max_position_embeddings, 1024),
        "n_heads": config.num_attention_heads,
        "d_head": config.hidden_size // config.num_attention_heads,
        "d_vocab": config.vocab_size,
        "device": "cpu",
        "default_prepend_bos": False,
        "original_architecture": type(hf).__name__,
    }
    if kind == "gpt2":
        cfg = HookedTransformerConfig(**shared, d_mlp=4 * config.hidden_size, act_fn="gelu_new", normalization_type="LN")
    else:
        cfg = HookedTransformerConfig(
            **shared,
            d_mlp=config.intermediate_size,
            act_fn="silu",
            normalization_type="RMS",
            final_rms=True,
            gated_mlp=True,
            eps=config.rms_norm_eps,
            positional_embedding_type="rotary",
            rotary_dim=config.hidden_size // config.num_attention_heads,
            rotary_base=int(config.rope_parameters["rope_theta"]),
            rotary_adjacent_pairs=False,
            n_key_value_heads=config.num_key_value_heads if config.num_key_value_heads < config.num_attention_heads else None,
        )
    converted = getattr(weight_conversions, f"convert_{kind}_weights")(hf, cfg)
    model = HookedTransformer(cfg, tokenizer=tokenizer)
    steps = ("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases")
    model.load_and_process_state_dict(converted, **{step: processing.get(step, False) for step in steps})
    return model.eval()
