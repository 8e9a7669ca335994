"""The host frameworks: the only modules that import transformer_lens or nnsight, and only when such a model is given."""

from __future__ import annotations

from copy import copy
from typing import Any, Literal, get_args
from weakref import WeakKeyDictionary

import torch

from unlock_lens.errors import InvalidInput, UnsupportedModel, require
from unlock_lens.hosts.base import Backend, Batch, Edits, Generation, Pass, Pending, Server, Watched
from unlock_lens.hosts.checkpoint import check_name, shape_of
from unlock_lens.hosts.remote import Remote, Where, remote_of
from unlock_lens.hosts.tokenizers import watch

BACKENDS = ("transformer_lens", "nnsight")
Dtype = Literal["float32", "bfloat16", "float16", "float64"]
"""What models are loaded in."""

_NOT_YET = {
    "VLLM": "its blocks return the residual stream in two parts, and its batches have no rows",
    "RemoteBridge": "its hooks run in another process",
}
"""Models of the hosts that look like supported ones and are not."""

__all__ = [
    "Backend", "Batch", "Dtype", "Edits", "Generation", "Pass", "Pending", "Server", "backend_of", "check_device",
    "open_model", "placed", "shape_of",
]  # fmt: skip

watch()

_made: WeakKeyDictionary[Any, tuple[tuple[Any, ...], Watched, Backend]] = WeakKeyDictionary()
"""For each model what its adapter was made from, its weights, and the adapter without the model, which would keep its own key
alive."""


def backend_of(model: Any) -> Backend:
    """The adapter for a model that the user has open; it is created only once for each model.

    Raises:
        UnsupportedModel: it is neither a TransformerLens nor an nnsight model.
    """
    kind = _kind_of(model)
    made = _made.get(model)
    if made is None or made[0] != kind.made_from(model) or not made[1].same(made[2].module_of(model)):
        fresh = kind(model)  # refuses first what cannot be served
        made = _made[model] = kind.made_from(model), Watched(kind.module_of(model)), _with_model(fresh, None)
    return _with_model(made[2], model)


def _with_model(backend: Backend, model: Any) -> Backend:
    same = copy(backend)
    same.model = model
    return same


def _kind_of(model: Any) -> type[Backend]:
    packages = {base.__module__.partition(".")[0] for base in type(model).__mro__}
    if refused := [base.__name__ for base in type(model).__mro__ if base.__name__ in _NOT_YET]:
        raise UnsupportedModel(
            f"a {refused[0]} was given, which is not supported yet: {_NOT_YET[refused[0]]}. Open the model as a "
            "TransformerLens TransformerBridge or an nnsight TransformersModel"
        )
    if "transformer_lens" in packages:
        from unlock_lens.hosts.transformer_lens import TransformerLensBackend

        return TransformerLensBackend
    if "nnsight" in packages:
        from unlock_lens.hosts.nnsight import NNsightBackend

        return NNsightBackend
    if isinstance(model, str):
        raise UnsupportedModel(
            f"the name {model!r} was given; open the model first, in one line:\n"
            f'    TransformerBridge.boot_transformers("{model}")              # TransformerLens\n'
            f'    TransformersModel("{model}", task="text-generation")        # nnsight'
        )
    given = f"{type(model).__module__}.{type(model).__name__}"
    if "transformers" in packages:
        raise UnsupportedModel(
            f"a bare Hugging Face model ({given}) was given; wrap it in one line:\n"
            "    TransformerBridge.boot_transformers(name, hf_model=model, tokenizer=tokenizer)  # TransformerLens\n"
            "    TransformersModel(model, tokenizer=tokenizer)                                   # nnsight"
        )
    raise UnsupportedModel(
        f"{given} was given; expected a TransformerLens TransformerBridge or HookedTransformer, or an nnsight TransformersModel"
    )


def placed(backend: Backend, where: Where) -> Backend | Server:
    """What runs the model's passes: the backend on this machine, or a server."""
    server = remote_of(where)
    return backend.on(server) if server else backend


def open_model(
    name: str,
    backend: str = "transformer_lens",
    dtype: str = "float32",
    remote: Where = False,
    device: str | None = None,
) -> Any:
    """Load a Hugging Face folder or hub id in one of `BACKENDS`.

    For a model that will run on a server, no weights are loaded.

    Args:
        name: folder or hub id.
        backend: "transformer_lens" or "nnsight".
        dtype: of the weights: "float32", "bfloat16", "float16" or "float64"; a server's models are in its own.
        remote: as in `Variant`.
        device: such as "cpu", "cuda" or "cuda:1"; None is the GPU where there is one.

    Raises:
        InvalidInput: there is no such backend, dtype or device, none that runs remotely, or no such model.
        MissingPackage: the backend's framework is not installed.
    """
    if backend not in BACKENDS:
        raise InvalidInput(f"there is no backend {backend!r}; take one of {', '.join(BACKENDS)}")
    if dtype not in get_args(Dtype):
        raise InvalidInput(f"dtype {dtype!r} was given; take one of {', '.join(get_args(Dtype))}")
    if remote and backend != "nnsight":
        raise InvalidInput(f"remote={remote!r} was given with the backend {backend!r}; models on a server take nnsight")
    check_device(device)
    check_name(name)
    require(backend.replace("_", "-"), backend)
    if isinstance(remote_of(remote), Remote):
        from unlock_lens.hosts.nnsight import open_meta_model as opener
    elif backend == "transformer_lens":
        from unlock_lens.hosts.transformer_lens import open_bridge as opener
    else:
        from unlock_lens.hosts.nnsight import open_transformers_model as opener
    try:
        return opener(name, dtype, device)
    except (OSError, ValueError) as error:  # what transformers raises where a folder or hub id holds no model
        raise InvalidInput(f"{name!r} is not a model folder, nor a hub id that can be reached: {error}") from error


def check_device(device: str | None) -> None:
    """Raise InvalidInput unless torch has this device, on this machine."""
    try:
        asked = None if device is None else torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # unknown, not there, or torch built without it
        reason = str(error).splitlines()[0]
        raise InvalidInput(f"device {device!r} cannot be used here ({reason}); take cpu, cuda, cuda:1 or mps") from None
    if asked is not None and asked.is_meta:
        raise InvalidInput("the device 'meta' holds no values; take cpu, cuda, cuda:1 or mps")
