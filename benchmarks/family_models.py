"""A tiny random model of every causal-LM family that transformers has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from scripts.train_zoo import make_tokenizer
from unlock_lens.zoo.family import MIXES

LAYERS, WIDTH = 3, 48
_NAMES: Mapping[int, str] = {
    LAYERS: "num_hidden_layers n_layer n_layers num_layers num_blocks decoder_layers num_decoder_layers num_layers_per_stack "
    "encoder_layers num_encoder_layers",
    WIDTH: "hidden_size d_model n_embd emb_dim embedding_dim embedding_size input_embedding_size output_embedding_size "
    "attention_hidden_size lru_width word_embed_proj_dim",
    64: "intermediate_size moe_intermediate_size shared_expert_intermediate_size shared_intermediate_size decoder_ffn_dim "
    "encoder_ffn_dim ffn_dim ffn_hidden_size expert_ffn_hidden_size d_inner dim_ff dff intermediate_size_mlp "
    "dense_intermediate_size moe_shared_expert_intermediate_size feed_forward_size block_ff_dim",
    128: "max_position_embeddings n_positions n_ctx max_seq_len context_length max_target_positions",
    4: "num_attention_heads n_head n_heads num_heads decoder_attention_heads encoder_attention_heads attention_heads "
    "num_decoder_attention_heads swa_num_attention_heads linear_num_value_heads mamba_n_heads mamba_num_heads "
    "linear_num_heads num_experts num_local_experts n_routed_experts moe_num_experts index_n_heads altup_num_inputs",
    2: "num_key_value_heads num_kv_heads swa_num_key_value_heads linear_num_key_heads num_experts_per_tok "
    "num_experts_per_token moe_topk moe_k",
    1: "n_group topk_group n_groups num_expert_group mamba_n_groups mamba_ngroups n_shared_experts pretraining_tp "
    "first_k_dense_replace num_dense_layers",
    0: "num_kv_shared_layers num_nextn_predict_layers",
    12: "head_dim dim_head d_head linear_head_dim swa_head_dim",
    8: "qk_rope_head_dim qk_nope_head_dim v_head_dim sliding_window state_size mamba_d_state ssm_state_size laurel_rank "
    "linear_key_head_dim linear_value_head_dim hidden_size_per_layer_input local_attention chunk_size mamba_chunk_size "
    "attention_window_size time_step_rank mamba_dt_rank rotary_dim window_size index_head_dim index_topk",
    16: "q_lora_rank kv_lora_rank qk_head_dim",
}  # fmt: skip
SMALL = {name: size for size, names in _NAMES.items() for name in names.split()}
_LINEAR = {"layer_types": ["linear_attention", "full_attention", "linear_attention"]}
SPECIAL: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0}},
    "gpt_neo": {"attention_types": [[["global", "local", "global"], 1]]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention", "mamba"]},
    "jamba": {
        "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1,
        "use_mamba_kernels": False,
    },
    "lfm2": {"layer_types": ["conv", "full_attention", "conv"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv"]},
    "mamba2": {"num_heads": 8, "head_dim": 12, "n_groups": 1},
    "nemotron_h": {"layers_block_type": ["mamba", "attention", "mamba"], "mamba_head_dim": 12},
    "minimax": {**_LINEAR, "block_size": 8},
    "olmo_hybrid": _LINEAR,
    "qwen3_next": _LINEAR,
    "qwen3_5": {"text_config": _LINEAR},
    "qwen3_5_moe": {"text_config": _LINEAR},
    "qwen3_5_text": _LINEAR,
    "qwen3_5_moe_text": _LINEAR,
    "xlnet": {"use_mems_eval": False},
    "recurrent_gemma": {"block_types": ["recurrent", "recurrent", "attention"]},
}  # fmt: skip
"""What a family needs besides."""

TOO_LARGE = ("gemma4", "gemma4_unified", "gemma4_unified_assistant")
"""Whose parts for images and sounds take minutes to make, whatever is asked for; their text decoders are families too."""


def families() -> list[str]:
    """All that transformers opens as causal language models."""
    return list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def _small(default: Any, vocabulary: int) -> dict[str, Any]:
    """The sizes of a config, and of those within it, that are to be made small."""
    named = default.to_dict()
    sizes: dict[str, Any] = {
        name: SMALL[name] for name, value in named.items() if name in SMALL and isinstance(value, int | None)
    }
    if "kv_lora_rank" in named:  # keys and values of all heads come from one latent vector
        sizes |= {"num_key_value_heads": sizes["num_attention_heads"]}
        sizes.pop("head_dim", None)
    sizes |= {name: vocabulary for name in named if name in ("vocab_size", "vocab_size_per_layer_input")}
    for name in named:
        within = getattr(default, name, None)
        if name.endswith("_config") and hasattr(within, "to_dict") and isinstance(named[name], dict):
            sizes[name] = {**_small(within, vocabulary), **({} if "text" in name else {"num_hidden_layers": 2})}
    return sizes


def built(kind: str) -> Any:
    """A model with weights so large that nothing is a near-tie."""
    if kind in TOO_LARGE:
        raise MemoryError("its parts for images and sounds are too large")
    tokenizer = make_tokenizer(MIXES["base"])
    ends: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": 0}
    config_class: Any = CONFIG_MAPPING[kind]
    try:
        sizes: dict[str, Any] = _small(config_class(), len(tokenizer))
    except Exception:  # a default that its own class refuses
        sizes = {**SMALL}
    special: dict[str, Any] = SPECIAL.get(kind, {})
    within = {name: {**sizes.get(name, {}), **value} for name, value in special.items() if isinstance(value, dict)}
    config = config_class(**{**sizes, **ends, **special, **within})
    text = config.get_text_config(decoder=True)
    text.is_decoder = True
    for name, value in ends.items():
        setattr(text, name, value)
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    draw_weights(model)
    model.generation_config = GenerationConfig(**ends)
    return model.float().eval()


@torch.no_grad()
def draw_weights(model: Any) -> None:
    """Weights large enough that nothing is a near-tie."""
    for name, weight in model.named_parameters():
        scale = weight.shape[-1] ** -0.5 if weight.ndim > 1 else 0.2
        weight.copy_(torch.randn_like(weight) * scale + float(weight.ndim == 1 and "bias" not in name))
