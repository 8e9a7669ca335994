"""What unlock-lens asks of a host framework, and nothing more."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor

from unlock_lens.hosts.identity import ModelIdentity
from unlock_lens.hosts.remote import Remote
from unlock_lens.method.apply import Edit
from unlock_lens.method.reduce import Reduction

Edits = Mapping[int, Sequence[Edit]]
"""For each edited layer its edits, in the order in which they are made."""

Keep = Callable[[int, Tensor], None]
"""Takes the states of the i-th captured layer, [picked, d_model], in float32 at least, on the device where they are."""


@dataclass(frozen=True)
class Batch:
    """What one forward pass reads: ids and mask, padded on the left."""

    ids: Int[Tensor, "row token"]
    mask: Int[Tensor, "row token"]


@dataclass(frozen=True, eq=False)
class Pass:
    """One forward pass whose states are reduced: of each picked token its row and column, and where it is held (-1: nowhere).

    At sign -1 the states are subtracted from those of another pass.
    """

    batch: Batch
    rows: Int[Tensor, " picked"]
    columns: Int[Tensor, " picked"]
    places: Int[Tensor, " picked"]
    sign: int = 1


@dataclass(frozen=True)
class Generation:
    """How completions are made: greedily at temperature 0, otherwise sampled, on a server with `seed`."""

    max_new_tokens: int
    use_cache: bool = True
    temperature: float = 0.0
    seed: int | None = None


@runtime_checkable
class Pending(Protocol):
    """A request that was submitted."""

    @property
    def id(self) -> str | None:
        """The server's name of it; None where it ran on this machine."""
        ...

    def result(self, wait: bool = True) -> Any:
        """What the request saved; None while it is running, unless it is waited for.

        Raises:
            RemoteError: it failed, or takes longer than it may.
        """


class Runs(ABC):
    """What a model does on either machine."""

    @abstractmethod
    def log_probs(self, batch: Batch, edits: Edits, prompt_length: int) -> Float[Tensor, "row predicted vocabulary"]:
        """Next-token log-probabilities (nats) at each token from the last prompt token on, in one edited forward pass.

        `prompt_length` counts the prompts' tokens with their padding; what follows them is read, not written.
        """

    @abstractmethod
    def unembed(self, residual: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch vocabulary"]:
        """Logits that the model's own final norm and unembedding make of residual states, before any soft cap.

        Raises:
            UnsupportedModel: weights that are not on this machine, or no final norm.
        """


class Server(Runs):
    """A model that runs on a server, or ("local") on this machine as a server would run it."""

    remote: Remote | Literal["local"]

    @property
    @abstractmethod
    def told(self) -> dict[str, Any]:
        """What of the server decides the result of a request, for its key: URL, the model's key there, adapters."""

    @abstractmethod
    def reduce(self, passes: Sequence[Pass], layers: Sequence[int], reduction: Reduction) -> Pending:
        """Submit the reduction of the states of ascending `layers`, all passes in one request."""

    @abstractmethod
    def generate(self, batches: Sequence[Batch], edits: Edits, how: Generation) -> Pending:
        """Submit `Backend.generate` for several batches, all in one request."""

    @abstractmethod
    def reattach(self, job_id: str, sent: float) -> Pending:
        """A request that was submitted at that time (seconds since the epoch), perhaps by another process."""


class Backend(Runs):
    """A model in its host framework. Layer l always means the output of block l (`blocks.l.hook_resid_post`)."""

    model: Any
    identity: ModelIdentity
    tokenizer: Any
    end_tokens: Sequence[int]
    """Ids of the tokens that end a completion."""

    @abstractmethod
    def __init__(self, model: Any) -> None:
        """Look at the model.

        Raises:
            UnsupportedModel: it cannot be served.
        """

    @staticmethod
    @abstractmethod
    def made_from(model: Any) -> tuple[Any, ...]:
        """What of the model may change after its adapter was made, so that another is needed; quick to look at."""

    @abstractmethod
    def on(self, server: Remote | Literal["local"]) -> Server:
        """The same model on a server, or on this machine as a server would run it.

        Raises:
            UnsupportedModel: this model cannot run there.
        """

    @abstractmethod
    def capture(
        self, batch: Batch, layers: Sequence[int], rows: Int[Tensor, " picked"], columns: Int[Tensor, " picked"], keep: Keep
    ) -> None:
        """Give `keep` the states of ascending `layers` at the tokens (rows[i], columns[i]), while the pass runs."""

    @abstractmethod
    def generate(self, batch: Batch, edits: Edits, how: Generation) -> Int[Tensor, "row new_token"]:
        """Ids of the completions; what follows a row's end-of-sequence token means nothing."""

    @abstractmethod
    def attached(self, edits: Edits, mask: Tensor | None = None) -> AbstractContextManager[None]:
        """Edits every run of the model inside the block; `mask` is that of the whole prompts, where passes do not tell."""

    @abstractmethod
    def fwd_hooks(self, edits: Edits, mask: Tensor | None = None) -> list[tuple[str, Callable[..., Any]]]:
        """TransformerLens' native form; `mask` as in `attached`."""

    @abstractmethod
    def apply(self, edits: Edits, tracer: Any, layer: int | None = None) -> None:
        """Nnsight's native form, inside a trace body; with a layer, that one in the current pass."""


def end_tokens(generation_config: Any, tokenizer: Any) -> tuple[int, ...]:
    """What ends a completion: the model's generation config says it before the tokenizer does."""
    ends = getattr(generation_config, "eos_token_id", None)
    ends = tokenizer.eos_token_id if ends is None else ends
    return (ends,) if isinstance(ends, int) else tuple(ends or ())


def state_of(weight: Tensor | None) -> tuple[Any, ...]:
    """Differs once a weight is loaded, replaced or changed in place."""
    if weight is None or weight.is_meta:
        return ()
    return id(weight), weight.data_ptr(), weight.dtype, 0 if weight.is_inference() else weight._version
