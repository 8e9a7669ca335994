"""Listening: reports what a model's forward receives, so that edits can follow runs that the user makes."""

from __future__ import annotations

import logging
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Collection, Sequence
from functools import wraps
from typing import Any

from torch import Tensor
from torch.utils.hooks import RemovableHandle

from unlock_lens.errors import UnsupportedModel
from unlock_lens.hosts.guard import check_thread
from unlock_lens.hosts.positions import Given, Progress, given_to, prompt_given

logger = logging.getLogger(__name__)
_told: weakref.WeakKeyDictionary[Any, dict[int, weakref.ref[Progress]]] = weakref.WeakKeyDictionary()
"""Who hears of the generations of a Hugging Face model."""


class Listener:
    """Tells a `Progress` of each pass, and the user of layers whose edits it never reached, for as long as the progress lives.

    The Hugging Face model inside a host is listened to: its forward is given mask, cache and positions, and its `generate` the
    whole prompts.

    Args:
        progress: who is told; it is not kept alive.
        layers: that are edited in each pass.
        root: the Hugging Face model; None where passes are told by `heard`.
        pad: the id that the host pads with, where it makes no mask of it.
    """

    def __init__(self, progress: Progress, layers: Collection[int], root: Any, pad: int | None) -> None:
        self._progress = weakref.ref(progress)
        self._layers, self._pad = set(layers), pad
        self._made: set[int] = set()
        self._said: set[str] = set()
        self._thread = threading.get_ident()
        handles: Sequence[RemovableHandle] = ()
        if root is not None:
            before = root.register_forward_pre_hook(self._enter, with_kwargs=True)
            handles = before, root.register_forward_hook(self._leave, always_call=True)
            _announce(root, progress)
        self.stop: Callable[[], Any] = weakref.finalize(
            progress, _stop, handles, None if root is None else weakref.ref(root), id(progress)
        )

    def made(self, layer: int) -> None:
        """The states of a layer went through its edits.

        Raises:
            InvalidInput: in another thread than the one that attached them.
        """
        check_thread(self._thread)
        self._made.add(layer)

    def heard(self, given: Given | None) -> None:
        """A pass begins.

        Raises:
            InvalidInput: rows that do not fit the mask that was given.
            UnsupportedModel: a forward that is given no ids.
        """
        progress = self._progress()
        if progress is None:
            return
        if given is None:
            raise UnsupportedModel("the model's forward receives no ids; a text decoder is needed")
        progress.enter(given)
        if progress.doubt and progress.doubt not in self._said:
            self._said.add(progress.doubt)
            logger.warning(progress.doubt)

    def _enter(self, module: Any, args: Any, kwargs: Any) -> None:
        self._made.clear()
        self.heard(given_to(args, kwargs, self._pad))

    def _leave(self, module: Any, args: Any, output: Any) -> None:
        missed, failed = sorted(self._layers - self._made), sys.exc_info()[0]
        # Any other exception tells enough; this one is TransformerLens' way to end a pass early.
        if missed and (failed is None or failed.__name__ == "StopAtLayerException"):
            warnings.warn(
                f"layers {missed} are steered, but this pass did not reach them: it ended earlier, or their hook points do not "
                "fire",
                stacklevel=2,
            )


def _announce(root: Any, progress: Progress) -> None:
    """Tell it of each generation which prompts it is given."""
    if root in _told:
        _told[root][id(progress)] = weakref.ref(progress)
        return
    if not hasattr(root, "generate"):
        return
    original, told = root.generate, {id(progress): weakref.ref(progress)}

    def tell(prompt: Given | None) -> None:
        for listening in list(told.values()):
            if (one := listening()) is not None:
                one.begin(prompt)

    @wraps(original)
    def generate(*args: Any, **kwargs: Any) -> Any:
        tell(prompt_given(args, kwargs))
        try:
            return original(*args, **kwargs)
        finally:
            tell(None)

    root.generate, _told[root] = generate, told


def _stop(handles: Sequence[RemovableHandle], root: weakref.ref[Any] | None, progress: int) -> None:
    for handle in handles:
        handle.remove()
    module = root() if root else None
    if module is not None and module in _told:
        _told[module].pop(progress, None)
        if not _told[module]:
            del _told[module], module.generate


def heard_pattern(listener: Listener) -> tuple[Callable[..., None], Callable[..., None]]:
    """Hooks for a HookedTransformer, whose forward cannot be listened to: on what enters block 0, and on its attention pattern.

    The pattern is [row, head, query, key]: keys beyond the queries come from the KV cache.
    """
    entering: list[Tensor] = []

    def enter(residual: Tensor, hook: Any) -> None:
        entering[:] = [residual.detach()]

    def look(pattern: Tensor, hook: Any) -> None:
        length, keys = pattern.shape[-2:]
        listener.heard(Given(entering[0], keys - length))

    return enter, look
