"""Families that hosts trip over, tiny and random: blocks that give lists or stacks, no cache, no attention, recurrence."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.family_models import draw_weights
from scripts.train_zoo import make_tokenizer
from unlock_lens.zoo.family import MIXES

_LLAMA: dict[str, Any] = {
    "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
    "max_position_embeddings": 128,
}  # fmt: skip
_GPT: dict[str, Any] = {"n_embd": 48, "n_layer": 3, "n_head": 4, "n_positions": 128}
FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": _GPT,
    "llama": _LLAMA,
    "openai-gpt": _GPT,
    "mamba": {"hidden_size": 48, "state_size": 8, "num_hidden_layers": 3},
    "lfm2": {
        **_LLAMA, "num_key_value_heads": 2, "conv_L_cache": 3, "layer_types": ["conv", "full_attention", "conv"],
        "block_ff_dim": 64,
    },
    "jamba": {
        **_LLAMA, "num_key_value_heads": 2, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2,
        "expert_layer_offset": 1, "num_experts": 2, "use_mamba_kernels": False,
    },
    "recurrent_gemma": {
        **_LLAMA, "lru_width": 48, "attention_window_size": 8, "block_types": ["recurrent", "recurrent", "attention"],
    },
    "rwkv": {"hidden_size": 48, "num_hidden_layers": 3, "attention_hidden_size": 48, "intermediate_size": 64},
    "minimax": {
        **_LLAMA, "num_key_value_heads": 2, "head_dim": 16, "num_local_experts": 2,
        "layer_types": ["linear_attention", "full_attention", "linear_attention"], "block_size": 8,
    },
    "gemma3n_text": {
        **_LLAMA, "num_key_value_heads": 2, "head_dim": 16, "sliding_window": 8, "vocab_size_per_layer_input": 23,
        "hidden_size_per_layer_input": 8, "laurel_rank": 8, "altup_num_inputs": 4, "num_kv_shared_layers": 0,
        "activation_sparsity_pattern": [0.0] * 3, "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
    },
    "xlnet": {"d_model": 48, "n_layer": 3, "n_head": 4, "d_inner": 64},
}  # fmt: skip


@cache
def family(kind: str, **changes: Any) -> Any:
    """A bare Hugging Face model, its weights large enough that nothing is a near-tie."""
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = make_tokenizer(MIXES["base"])
    ends = {"vocab_size": len(tokenizer), "bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": 0}
    config = AutoConfig.for_model(kind, **{**ends, **FAMILIES[kind], **changes})
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    draw_weights(model)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = tokenizer.eos_token_id, 0
    return model.float().eval()


def in_nnsight(model: Any) -> Any:
    import nnsight

    return nnsight.TransformersModel(model, tokenizer=make_tokenizer(MIXES["base"]), task="text-generation")


def in_bridge(model: Any, folder: Path) -> Any:
    """Of a copy, because TransformerLens changes the modules that it is given."""
    from transformer_lens.model_bridge import TransformerBridge

    model.save_pretrained(folder)
    make_tokenizer(MIXES["base"]).save_pretrained(folder)
    bridge: Any = TransformerBridge.boot_transformers(str(folder), device="cpu", dtype=torch.float32)
    bridge.cfg.default_prepend_bos = False  # the tokenizer adds none
    return bridge


def without_end(model: Any, ids: list[int]) -> str:
    end = model.tokenizer.eos_token_id
    return model.tokenizer.decode(ids[: ids.index(end)] if end in ids else ids, skip_special_tokens=True)


def turned(h: Tensor, v: Tensor, alpha: float) -> Tensor:
    def unit(x: Tensor) -> Tensor:
        return x / x.norm(dim=-1, keepdim=True)

    return h.norm(dim=-1, keepdim=True) * unit(unit(h) + alpha * unit(v))


@torch.no_grad()
def plain(
    model: Any, row: list[int], vectors: Tensor | None = None, alpha: float = 0.0, at: slice | None = None
) -> tuple[Tensor, Tensor]:
    """The oracle: one prompt, no padding, no cache, hooks of its own; states after each block, and logits."""
    states: list[Tensor] = []
    blocks = next(m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == 3)
    meant = slice(len(row) - 1, len(row)) if at is None else at

    def after(layer: int) -> Any:
        def hook(module: Any, args: Any, output: Any) -> Any:
            h = (output if isinstance(output, Tensor) else output[0]).clone()
            if vectors is not None:
                h[:, meant] = turned(h[:, meant], vectors[layer], alpha)
            states.append(h[0])
            return h if isinstance(output, Tensor) else type(output)([h, *output[1:]])

        return hook

    handles = [block.register_forward_hook(after(i)) for i, block in enumerate(blocks)]
    try:
        logits = model(input_ids=torch.tensor([row]), use_cache=False).logits[0]
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack(states), logits


def greedy(model: Any, row: list[int], vectors: Tensor | None, alpha: float, steps: int, at: slice | None = None) -> list[int]:
    """Ids of the steered completion."""
    whole, end = list(row), len(row)
    for _ in range(steps):
        whole.append(int(plain(model, whole, vectors, alpha, at or slice(end - 1, end))[1][-1].argmax()))
    return whole[end:]
