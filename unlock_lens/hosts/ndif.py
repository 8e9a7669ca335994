"""NDIF: an nnsight model on a server. Bodies of traces are shipped as source with what they name; conclusions come back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import nnsight
import torch
from jaxtyping import Float
from torch import Tensor

from unlock_lens.hosts.base import Batch, Edits, Generation, Pass, Pending, Server
from unlock_lens.hosts.job import Job, host_of, model_key
from unlock_lens.hosts.nnsight import (
    acts_on_steps,
    apply_edits,
    generation_options,
    inputs_of,
    open_loops_end_quietly,
    residual_of,
    traced_log_probs,
    unembedding_paths,
)
from unlock_lens.hosts.remote import Remote
from unlock_lens.method.apply import at_least_float32
from unlock_lens.method.reduce import Reduction


def unembedded(model: Any, norm: str, head: str, residual: Tensor, where: Any) -> Any:
    """A trace of one token, in which the model's own modules are called on other states."""
    found = None
    with torch.no_grad():
        with model.trace(torch.zeros(1, 1, dtype=torch.long), **where):
            states = residual.to(model.get(norm).weight)
            found = nnsight.save(model.get(head)(model.get(norm)(states)).float().cpu())
    return found


@dataclass(frozen=True)
class Done:
    """What ran on this machine, as a server would have run it."""

    found: Any
    id: None = None

    def result(self, wait: bool = True) -> Any:
        return self.found


class States:
    """No reduction: the states themselves, of one pass."""

    def __init__(self) -> None:
        self.states: dict[int, Tensor] = {}

    def add(self, i: int, states: Tensor, places: Tensor, sign: int) -> None:
        self.states[i] = at_least_float32(states).cpu()

    def result(self) -> dict[str, Tensor]:
        return {"states": torch.stack([self.states[i] for i in sorted(self.states)])}


def reduced(model: Any, blocks: str, passes: Sequence[Pass], layers: Sequence[int], reduction: Reduction, where: Any) -> Any:
    """All passes in one session; each ends after the last layer that is read."""
    # Small integers travel; the server widens them.
    read = [
        ([part.to(torch.int32) for part in (one.batch.ids, one.rows, one.columns, one.places)], one.batch.mask.bool(), one.sign)
        for one in passes
    ]
    found = None
    with torch.no_grad():
        with model.session(**where):
            for small, mask, sign in read:
                ids, rows, columns, places = small[0].long(), small[1].long(), small[2].long(), small[3].long()
                with model.trace({"input_ids": ids, "attention_mask": mask.long(), "use_cache": False}) as tracer:
                    for i, layer in enumerate(layers):
                        reduction.add(i, residual_of(model.get(blocks)[layer].output).detach()[rows, columns], places, sign)
                    tracer.stop()
            found = nnsight.save(reduction.result())
    return found


def generated(model: Any, blocks: str, batches: Sequence[Batch], edits: Edits, how: Generation, where: Any) -> Any:
    """All batches in one session."""
    # A body is shipped with what it names, so it names no backend; a function that holds a `with` cannot be shipped.
    read = [(inputs_of(batch), batch.ids.shape[1]) for batch in batches]
    seed = how.seed
    options, every_step = generation_options(how), acts_on_steps(edits) or not how.use_cache
    found = None
    with open_loops_end_quietly():
        with model.session(**where):
            if seed is not None:
                torch.manual_seed(seed)
            completions = {}
            for i, (inputs, length) in enumerate(read):
                with model.generate(**options) as tracer:
                    with tracer.invoke(inputs):
                        apply_edits(model, blocks, edits, tracer if every_step else None)
                    with tracer.invoke():
                        whole = tracer.result.save()
                completions[str(i)] = whole[:, length:].clone().cpu()  # a view would come back with all that it is a view of
            found = nnsight.save(completions)
    return found


class NdifServer(Server):
    """The server's side of an nnsight model."""

    def __init__(self, model: Any, blocks: str, remote: Remote | Literal["local"]) -> None:
        self.model, self.blocks, self.remote = model, blocks, remote

    @property
    def told(self) -> dict[str, Any]:
        """Locally, the model's identity tells the rest."""
        if not isinstance(self.remote, Remote):
            return {"host": self.remote}
        key = model_key(self.model, self.remote)
        return {"host": host_of(self.remote), "model": key, "env": self.model._remoteable_get_env()}

    def reduce(self, passes: Sequence[Pass], layers: Sequence[int], reduction: Reduction) -> Pending:
        where, job = self._where()
        found = reduced(self.model, self.blocks, passes, layers, reduction, where)
        return job or Done(found)

    def generate(self, batches: Sequence[Batch], edits: Edits, how: Generation) -> Pending:
        where, job = self._where()
        found = generated(self.model, self.blocks, batches, edits, how, where)
        return job or Done(found)

    def reattach(self, job_id: str, sent: float) -> Pending:
        assert isinstance(self.remote, Remote)
        return Job(self.model, self.remote, job_id, sent)

    def states(self, one: Pass, layers: Sequence[int]) -> Float[Tensor, "layer picked d_model"]:
        return self.reduce([one], layers, States()).result()["states"]

    def log_probs(self, batch: Batch, edits: Edits, prompt_length: int) -> Float[Tensor, "row predicted vocabulary"]:
        where, job = self._where()
        with torch.no_grad():
            found = traced_log_probs(self.model, self.blocks, batch, edits, prompt_length, where)
        return (job or Done(found)).result()

    def unembed(self, residual: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch vocabulary"]:
        where, job = self._where()
        norm, head = unembedding_paths(self.model, self.blocks)
        found = unembedded(self.model, norm, head, residual, where)
        return (job or Done(found)).result()

    def _where(self) -> tuple[dict[str, Any], Job | None]:
        if self.remote == "local":
            return {"remote": "local"}, None
        assert isinstance(self.remote, Remote)
        job = Job(self.model, self.remote)
        return {"backend": job}, job
