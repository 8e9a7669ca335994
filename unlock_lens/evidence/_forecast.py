"""What each layer's edit will do, by one backward pass: `lens.forecast_by_layer`, and the search over layers."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from unlock_lens.core.steering import SteeringHook, edits_for
from unlock_lens.core.variant import Variant
from unlock_lens.errors import InvalidInput, UnsupportedModel
from unlock_lens.hosts import Batch, Edits
from unlock_lens.method.apply import Chunk, Edit


def forecast(
    steer: SteeringHook, prompts: Variant, wanted: Float[Tensor, "prompt vocabulary"], batch_size: int = 8, at: float = 0.5
) -> dict[int, float]:
    """What each layer's edit alone adds to sum_v wanted[v] log p(v) of the next token, to first order, in nats.

    Args:
        steer: its layers are forecast.
        prompts: of this model, on this machine.
        wanted: what is to follow each prompt: a distribution, or one token of probability 1.
        batch_size: prompts at a time, of like length.
        at: the share of the strength at which the gradient is taken.

    Raises:
        InvalidInput: a hook with a gate.
        UnsupportedModel: a model on a server, or one through which no backward pass leads.
        IncompatibleModel: a direction that was made for another model.
    """
    backend = prompts.backend
    if prompts.remote:
        raise UnsupportedModel(
            f"{backend.identity.name} runs on a server, which gives no gradients back; choose layers with effect_by_layer"
        )
    if steer.gate is not None:
        raise InvalidInput(
            "the hook has a gate, which has no gradient; forecast it without: dataclasses.replace(steer, gate=None)"
        )
    edits = {
        layer: [edit for edit in of_layer if isinstance(edit, Edit)] for layer, of_layer in edits_for(backend, [steer]).items()
    }
    half: Edits = {layer: [replace(edit, alpha=at * edit.alpha) for edit in of_layer] for layer, of_layer in edits.items()}
    layers, tokens = sorted(edits), prompts.tokens
    total = torch.zeros(len(layers))
    for rows in tokens.batches(batch_size):
        some = tokens.rows(rows)
        states, slopes = backend.slopes(Batch(some.ids, some.mask), layers, half, wanted[rows])
        for i, layer in enumerate(layers):
            edited = states[i].unsqueeze(1)
            for edit in edits[layer]:
                edited = edit(edited, Chunk(1))
            total[i] += ((edited.squeeze(1) - states[i]) * slopes[i]).sum()
    return dict(zip(layers, (total / len(prompts)).tolist(), strict=True))
