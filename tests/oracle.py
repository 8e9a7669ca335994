"""The formulas of the method written plainly, as an oracle: bare Hugging Face model, one prompt at a time, float64, no padding,
no KV cache. Nothing of unlock_lens is used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def unit(vector: Tensor) -> Tensor:
    return vector / vector.norm(dim=-1, keepdim=True)


def norm_preserving(h: Tensor, v: Tensor, alpha: float) -> Tensor:
    return h.norm(dim=-1, keepdim=True) * unit(unit(h) + alpha * unit(v))


def add(h: Tensor, v: Tensor, alpha: float) -> Tensor:
    return h + alpha * v


def ablate(h: Tensor, v: Tensor, alpha: float) -> Tensor:
    return h - alpha * (h @ unit(v))[..., None] * unit(v)


OPERATIONS: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "norm_preserving": norm_preserving,
    "add": add,
    "ablate": ablate,
}


Gate = tuple[int, Tensor, float, str]
"""The layer that is read, the reader w, the threshold of <w, h>, and who decides: "last_prompt" or "all" (each token)."""


class Oracle:
    """One model in float64."""

    def __init__(self, folder: str) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager").eval()
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        base = self.model.base_model
        self.blocks = base.layers if hasattr(base, "layers") else base.h

    @torch.no_grad()
    def run(self, ids: list[int], edit: Callable[[int, Tensor], Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Residual stream after each block, [layer, token, d_model], and the logits, [token, vocabulary]."""
        states: list[Tensor] = []

        def hook(layer: int) -> Callable[..., Tensor]:
            def after_block(module: Any, inputs: Any, output: Any) -> Any:
                h = output if isinstance(output, Tensor) else output[0]
                h = h if edit is None else edit(layer, h[0]).unsqueeze(0)
                states.append(h[0])
                return h if isinstance(output, Tensor) else (h, *output[1:])

            return after_block

        handles = [block.register_forward_hook(hook(layer)) for layer, block in enumerate(self.blocks)]
        try:
            logits = self.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
        finally:
            for handle in handles:
                handle.remove()
        return torch.stack(states), logits

    def at_position(self, prompts: Sequence[str], position: int = -1) -> Tensor:
        """H: [layer, prompt, d_model]."""
        return torch.stack([self.run(self.tokenizer.encode(p))[0][:, position] for p in prompts], dim=1)

    def at_all_tokens(self, prompts: Sequence[str], skip_first: bool = False) -> Tensor:
        return torch.cat([self.run(self.tokenizer.encode(p))[0][:, int(skip_first) :] for p in prompts], dim=1)

    def greedy(
        self,
        prompt: str,
        vectors: dict[int, Tensor],
        alpha: float,
        steps: int,
        operation: str = "norm_preserving",
        positions: str = "last_prompt",
        gate: Gate | None = None,
    ) -> list[int]:
        """Ids of the steered completion."""
        ids: list[int] = self.tokenizer.encode(prompt)
        edit = self._editing(len(ids), vectors, alpha, operation, positions, gate)
        end = len(ids)
        for _ in range(steps):
            ids.append(int(self.run(ids, edit)[1][-1].argmax()))
        return ids[end:]

    def log_probs(
        self, prompt: str, completion: str, vectors: dict[int, Tensor], alpha: float, operation: str, positions: str
    ) -> Tensor:
        """Next-token log-probabilities from the last prompt token on, the completion being read: [token, vocabulary]."""
        ids: list[int] = self.tokenizer.encode(prompt)
        end = len(ids)
        ids = [*ids, *self.tokenizer.encode(completion)]
        logits = self.run(ids, self._editing(end, vectors, alpha, operation, positions))[1]
        return logits[end - 1 : -1].log_softmax(-1)

    @staticmethod
    def _editing(
        end: int, vectors: dict[int, Tensor], alpha: float, operation: str, positions: str, gate: Gate | None = None
    ) -> Callable[[int, Tensor], Tensor]:
        """The edit of each layer, for a prompt of `end` tokens."""
        read: list[Tensor] = []  # by the gate, in this pass
        meant = {"last_prompt": slice(end - 1, end), "prompt": slice(0, end), "generated": slice(end, None), "all": slice(None)}

        def edit(layer: int, h: Tensor) -> Tensor:
            before, h = h, h.clone()
            if gate is not None and layer == gate[0]:
                read[:] = [before @ gate[1].to(h) > gate[2]]
            if layer in vectors:
                tokens = meant[positions]
                h[tokens] = OPERATIONS[operation](h[tokens], vectors[layer].to(h), alpha)
            if gate is None or layer not in vectors:
                return h
            acts = read[0] if gate[3] == "all" else read[0][end - 1].expand(len(h))
            return torch.where(acts[:, None], h, before)

        return edit


def mean_direction(unlocked: Tensor, locked: Tensor) -> Tensor:
    """v[l] = mean_i D_i[l]."""
    return (unlocked - locked).mean(dim=1)


def pca_direction(unlocked: Tensor, locked: Tensor) -> Tensor:
    """First right singular vector of the centered D[l], turned so that <v, mean D> >= 0."""
    found: list[Tensor] = []
    for differences in unlocked - locked:
        mean = differences.mean(dim=0)
        vector = torch.linalg.svd(differences - mean, full_matrices=False).Vh[0]
        found.append(vector if vector @ mean >= 0 else -vector)
    return torch.stack(found)


def layer_of_source(b: int, source_layers: int, target_layers: int) -> int:
    """a(b) = floor((L_s - 1) b / (L_t - 1))."""
    return int((source_layers - 1) * b / (target_layers - 1)) if target_layers > 1 else source_layers - 1


def linear_map(h_s: Tensor, h_t: Tensor, rank: int, centered: bool) -> Tensor:
    """W = V_s^T pinv(H_s V_s^T) (H_t V_t^T) V_t, by two full SVDs and pinv."""
    if centered:
        h_s, h_t = h_s - h_s.mean(dim=0), h_t - h_t.mean(dim=0)
    k = min(rank, h_s.shape[0])
    v_s, v_t = (torch.linalg.svd(h, full_matrices=False).Vh[:k] for h in (h_s, h_t))
    return v_s.T @ torch.linalg.pinv(h_s @ v_s.T) @ (h_t @ v_t.T) @ v_t
