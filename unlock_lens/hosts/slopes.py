"""How a prediction depends on the residual stream: the gradient at every layer, from one forward and one backward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from unlock_lens.errors import UnsupportedModel
from unlock_lens.hosts.base import Batch
from unlock_lens.hosts.positions import as_rows, from_rows
from unlock_lens.method.apply import Chunk, LayerEdit

Hook = Callable[..., Tensor]


class Leaves:
    """Hooks that edit the outputs of blocks and add a zero to the last token's state, whose gradient is the slope there.

    Attributes:
        states: of each layer, [row, d_model], before its edit.
    """

    def __init__(self, batch: Batch, turned: bool = False) -> None:
        self.states: dict[int, Tensor] = {}
        self._leaves: dict[int, Tensor] = {}
        rows, tokens = batch.ids.shape
        self._shape, self._turned, self._chunk = (rows, tokens), turned, Chunk(tokens)

    def hook(self, layer: int, edits: Sequence[LayerEdit]) -> Hook:
        """For the output of a block."""

        def hook_fn(states: Tensor, hook: object = None) -> Tensor:
            residual = as_rows(states, *self._shape, self._turned)
            self.states[layer] = residual[:, -1].detach()
            for edit in edits:
                residual = edit(residual, self._chunk)
            self._leaves[layer] = torch.zeros_like(self.states[layer], requires_grad=True)
            moved = residual.clone()
            moved[:, -1] = residual[:, -1] + self._leaves[layer]
            return from_rows(moved, states, self._turned)

        return hook_fn

    def slopes(self, logits: Tensor, wanted: Tensor, layers: Sequence[int], name: str) -> tuple[Tensor, Tensor]:
        """States and gradients of sum_v wanted[v] log p(v), [layer, row, d_model]."""
        if missed := [layer for layer in layers if layer not in self._leaves]:
            raise UnsupportedModel(f"the outputs of layers {missed} of {name} were not reached, so they have no gradient")
        log_probs = logits[:, -1].float().log_softmax(-1)
        width = min(wanted.shape[1], log_probs.shape[1])  # a vocabulary may be padded to a round number
        score = (wanted[:, :width].to(log_probs) * log_probs[:, :width]).sum()
        found = torch.autograd.grad(score, [self._leaves[layer] for layer in layers])
        states = [self.states[layer].float().cpu() for layer in layers]
        return torch.stack(states), torch.stack([slope.float().cpu() for slope in found])
