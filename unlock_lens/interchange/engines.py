"""Serving engines, such as vLLM: the exact edit as one function of residuals, their positions, and where prompts end.

An engine runs the tokens of many requests in one flat batch: chunks of prompts together with single decoded tokens. The edit
of a token depends on that token alone: on its residual, its position in its request, and the length of that request's prompt.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unlock_lens.core.steering import SteeringHook
from unlock_lens.errors import InvalidInput
from unlock_lens.hosts import Edits
from unlock_lens.hosts.identity import ModelIdentity
from unlock_lens.method.apply import Chunk


@dataclass(frozen=True, eq=False)
class EngineEdit:
    """A hook's edits as a serving engine's plugin calls them: after each block in `layers`, for every pass of the engine.

    Attributes:
        layers: layers whose output is edited, or read by a gate; ascending.
        positions: which tokens are edited, as in `SteeringHook`.
    """

    layers: tuple[int, ...]
    positions: str
    _edits: Edits

    def __call__(
        self,
        layer: int,
        residual: Float[Tensor, "token d_model"],
        positions: Int[Tensor, " token"],
        prompt_lengths: Int[Tensor, " token"],
    ) -> Float[Tensor, "token d_model"]:
        """The residual stream after block `layer`; the very same tensor where no token of the pass is meant.

        Args:
            layer: one of `layers`; within a pass they are called in ascending order.
            residual: of all tokens of the pass, whichever requests they belong to.
            positions: of each token in its request, counted from 0, cached tokens included.
            prompt_lengths: for each token, how many tokens the prompt of its request has, whole.

        Raises:
            InvalidInput: the layer is neither edited nor read, or the number of positions differs.
        """
        if layer not in self._edits:
            raise InvalidInput(f"layer {layer} was given; this edit has layers {list(self.layers)}")
        if not len(residual) == len(positions) == len(prompt_lengths):
            raise InvalidInput(
                f"{len(residual)} residuals, {len(positions)} positions and {len(prompt_lengths)} prompt lengths were given; "
                "give one of each for every token of the pass"
            )
        meant = self._meant(positions, prompt_lengths).to(residual.device)
        if not bool(meant.any()):
            return residual
        chosen = edited = residual[meant].unsqueeze(0)
        for edit in self._edits[layer]:
            edited = edit(edited, Chunk(0))
        return residual if edited is chosen else residual.masked_scatter(meant.unsqueeze(-1), edited)

    def of_parts(
        self,
        layer: int,
        hidden: Float[Tensor, "token d_model"],
        residual: Float[Tensor, "token d_model"],
        positions: Int[Tensor, " token"],
        prompt_lengths: Int[Tensor, " token"],
    ) -> tuple[Float[Tensor, "token d_model"], Float[Tensor, "token d_model"]]:
        """The same for vLLM's blocks, which give the residual stream as two parts that the next block adds up.

        Both parts come back unchanged where no token is meant. Otherwise the first is the edited stream, the second zeros.

        Raises:
            InvalidInput: as above.
        """
        stream = hidden + residual
        edited = self(layer, stream, positions, prompt_lengths)
        return (hidden, residual) if edited is stream else (edited, torch.zeros_like(residual))

    def _meant(self, positions: Tensor, prompt_lengths: Tensor) -> Bool[Tensor, " token"]:
        if self.positions == "last_prompt":
            return positions == prompt_lengths - 1
        if self.positions == "all":
            return torch.ones_like(positions, dtype=torch.bool)
        return positions < prompt_lengths if self.positions == "prompt" else positions >= prompt_lengths


def to_engine(hook: SteeringHook) -> EngineEdit:
    """The edit function of a hook, exact in a model that a serving engine runs: its weights are raw, and it knows no hosts.

    It can be pickled to the engine's workers. They cannot check which model it belongs to: compare the model's name with
    `hook.direction.model`.

    Raises:
        InvalidInput: a gate that decides at the last prompt token about other tokens, which an engine may run in another pass.
        IncompatibleModel: a direction in the zero-mean basis whose operation is not the same edit in raw weights.

    Example:
        >>> import torch
        >>> import unlock_lens as ul
        >>> direction = ul.CapabilityDirection(torch.eye(4)[:1], (0,))
        >>> edit = ul.interchange.to_engine(ul.SteeringHook(direction, 1.0, operation="add"))
        >>> residual = torch.zeros(3, 4)  # two tokens of a prompt of two, and one that another request decodes
        >>> edit(0, residual, positions=torch.tensor([0, 1, 7]), prompt_lengths=torch.tensor([2, 2, 5]))
        tensor([[0., 0., 0., 0.],
                [1., 0., 0., 0.],
                [0., 0., 0., 0.]])
    """
    gate = hook.gate
    if gate is not None and gate.positions != "all":
        if hook.positions != "last_prompt":
            raise InvalidInput(
                f'a gate that decides at the last prompt token was given with positions="{hook.positions}": an engine may run '
                'those tokens in another pass; use positions="last_prompt", or a gate with positions="all"'
            )
        gate = replace(gate, positions="all")  # of the tokens that are meant, which are those that it reads
    # An engine's blocks hold raw states, whatever host the direction was found in.
    direction = hook.direction
    last = max(direction.layers)
    model = direction.model or ModelIdentity("unknown", last + 1, direction.d_model)
    edits = replace(hook, positions="all", gate=gate).edits(replace(model, basis="raw"))
    return EngineEdit(tuple(sorted(edits)), hook.positions, edits)
