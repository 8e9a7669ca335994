"""NDIF: an nnsight model on a server, and the sessions that it is sent, which run here as well.

Bodies of traces are shipped as source with what they name; conclusions come back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import nnsight
import torch
from jaxtyping import Float
from torch import Tensor

from unlock_lens.errors import RemoteError
from unlock_lens.hosts.answers import fault_of_log_probs, fault_of_logits
from unlock_lens.hosts.base import Batch, Edits, Generation, Pass, Pending, Server, scaled
from unlock_lens.hosts.decoding import generation_options
from unlock_lens.hosts.endings import stopping
from unlock_lens.hosts.positions import Given, as_rows, residual_of, takes
from unlock_lens.hosts.remote import Remote
from unlock_lens.hosts.tracing import (
    Place,
    edit_blocks,
    edit_every_step,
    inputs_of,
    open_loops_end_quietly,
    tokens_first,
    unembedding_paths,
)
from unlock_lens.hosts.transport import Job, host_of, model_key
from unlock_lens.hosts.trust import two_rows
from unlock_lens.method.apply import Chunk
from unlock_lens.method.reduce import Reduction


@dataclass(frozen=True)
class Done:
    """What ran on this machine, as a server would have run it."""

    found: Any
    id: None = None

    def result(self, wait: bool = True) -> Any:
        return self.found


def reduced(model: Any, blocks: str, passes: Sequence[Pass], layers: Sequence[int], reduction: Reduction, where: Any) -> Any:
    """All passes in one session; each ends after the last layer that is read."""
    # Small integers travel; the server widens them.
    read = [
        (
            [part.to(torch.int32) for part in (one.batch.ids, one.rows, one.columns, one.places)],
            one.batch.mask.bool(),
            one.sign,
        )
        for one in passes
    ]
    found = None
    with torch.no_grad():
        with model.session(**where):
            for small, mask, sign in read:
                ids, rows, columns, places = small[0].long(), small[1].long(), small[2].long(), small[3].long()
                with model.trace({"input_ids": ids, "attention_mask": mask.long(), "use_cache": False}) as tracer:
                    for i, layer in enumerate(layers):
                        states = residual_of(model.get(blocks)[layer].output).detach()
                        states = as_rows(states, ids.shape[0], ids.shape[1], tokens_first(model))
                        reduction.add(i, states[rows, columns], places, sign)
                    tracer.stop()
            found = nnsight.save(reduction.result())
    return found


def traced_log_probs(model: Any, blocks: str, batch: Batch, edits: Edits, prompt_length: int, where: Any) -> Any:
    """One traced and edited forward pass; `where` says on which machine."""
    inputs, chunk, predicted = inputs_of(batch), Chunk(prompt_length), batch.ids.shape[1] - prompt_length + 1
    place = Place(Given(batch.ids), chunk, None)
    asked = {"logits_to_keep": predicted, "use_cache": False}
    inputs = {**inputs, **{name: value for name, value in asked.items() if takes(model._module, name)}}
    found = None
    with torch.no_grad():
        with model.trace(inputs, **where):
            edit_blocks(model, blocks, edits, chunk, place)
            logits = model.output.logits[:, -predicted:]
            found = nnsight.save(logits.float().log_softmax(-1).cpu())
    return found


def generated(model: Any, blocks: str, batches: Sequence[Batch], edits: Edits, how: Generation, where: Any) -> Any:
    """Ids of the completions of all batches, generated in one session: {"0": [row, new token], ...}."""
    # A body is shipped with what it names, so it names no batch and no backend.
    read = [(inputs_of(batch), batch.ids.shape[1]) for batch in batches]
    seed, stop, options = how.seed, how.stop, generation_options(how.max_new_tokens, how.use_cache, how.sampling)
    found = None
    with open_loops_end_quietly():
        with model.session(**where):
            if seed is not None:
                torch.manual_seed(seed)
            completions = {}
            for i, (inputs, length) in enumerate(read):
                with model.generate(**options, **stopping(model.tokenizer, (), stop, length)) as tracer:
                    with tracer.invoke(inputs):
                        edit_every_step(model, blocks, edits, tracer, Given(inputs["input_ids"]))
                    with tracer.invoke():
                        whole = nnsight.save(tracer.result)
                completions[str(i)] = whole[:, length:].clone().cpu()  # a view would come back with all that it is a view of
            found = nnsight.save(completions)
    return found


def unembedded(model: Any, blocks: str, last: int, ids: Tensor, residual: Tensor, where: Any) -> Any:
    """A trace of a few tokens, in which the model's own norm and unembedding are called on other states, and on its own."""
    norm, head = unembedding_paths(model, blocks)
    found = None
    with torch.no_grad():
        with model.trace({"input_ids": ids, "use_cache": False}, **where):
            states = residual_of(model.get(blocks)[last].output)
            states = as_rows(states, ids.shape[0], ids.shape[1], tokens_first(model))
            own = model.output.logits
            written, ours = (model.get(head)(model.get(norm)(some)) for some in (residual.to(states), states))
            found = nnsight.save([written.cpu(), ours.cpu(), own.cpu()])
    return found


class NdifServer(Server):
    """An nnsight model on a server."""

    def __init__(self, model: Any, blocks: str, remote: Remote | Literal["local"]) -> None:
        self.model, self.blocks, self.remote = model, blocks, remote

    @property
    def told(self) -> dict[str, Any]:
        """Locally, the model's identity decides the rest."""
        if not isinstance(self.remote, Remote):
            return {"host": self.remote}
        key = model_key(self.model, self.remote)
        return {"host": host_of(self.remote), "model": key, "env": self.model._remoteable_get_env()}

    @property
    def vocabulary(self) -> int:
        return int(self.model.config.get_text_config().vocab_size)

    def reduce(self, passes: Sequence[Pass], layers: Sequence[int], reduction: Reduction) -> Pending:
        return self._sent(reduced, passes, layers, reduction)

    def generate(self, batches: Sequence[Batch], edits: Edits, how: Generation) -> Pending:
        return self._sent(generated, batches, edits, how)

    def reattach(self, job_id: str, sent: float) -> Pending:
        assert isinstance(self.remote, Remote)
        return Job(self.model, self.remote, job_id, sent)

    def log_probs(self, batch: Batch, edits: Edits, prompt_length: int) -> Float[Tensor, "row predicted vocabulary"]:
        found, rows = self._sent(traced_log_probs, batch, edits, prompt_length).result(), len(batch.ids)
        _check(fault_of_log_probs(found, rows, batch.ids.shape[1] - prompt_length + 1, self.vocabulary))
        return found

    def unembed(self, residual: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch vocabulary"]:
        last, ids = int(self.model.config.get_text_config().num_hidden_layers) - 1, two_rows(self.model.tokenizer)[0]
        found = self._sent(unembedded, last, ids.unsqueeze(0), residual).result()
        _check(fault_of_logits(found, [(*residual.shape[:-1],), (1, len(ids)), (1, len(ids))], self.vocabulary))
        return scaled(str(self.model.repo_id), self.model.config.get_text_config(), *found)

    def _sent(self, traced: Callable[..., Any], *asked: Any) -> Pending:
        """The request that such a function makes of its traces."""
        job = Job(self.model, self.remote) if isinstance(self.remote, Remote) else None
        found = traced(self.model, self.blocks, *asked, {"backend": job} if job else {"remote": self.remote})
        return job or Done(found)


def _check(fault: str | None) -> None:
    if fault:
        raise RemoteError(f"the result does not fit the request: {fault}; check that this is the right server")
