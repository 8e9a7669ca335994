"""Guard: a model is run by one thread at a time, without dropout, and steered by the thread that attached a hook."""

from __future__ import annotations

import threading
import warnings
import weakref
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from unlock_lens.errors import InvalidInput


@dataclass(eq=False)
class _Use:
    """Who uses a model: one run at a time, and the thread that steers the runs of others."""

    lock: Any = field(default_factory=threading.RLock)
    steerer: int | None = None
    hooks: set[object] = field(default_factory=set)
    parts: list[weakref.ref[nn.Module]] = field(default_factory=list)
    """The modules inside, so that looking at their modes takes no walk."""

    def training(self, module: nn.Module) -> list[nn.Module]:
        """Which modules are in training mode."""
        if module.training or not self.parts:
            self.parts = [weakref.ref(part) for part in module.modules()]
        return [part for held in self.parts if (part := held()) is not None and part.training]

    def check(self) -> None:
        """Raise InvalidInput where another thread steers the model."""
        if self.steerer is not None:
            check_thread(self.steerer)


_uses: weakref.WeakKeyDictionary[nn.Module, _Use] = weakref.WeakKeyDictionary()
_making = threading.Lock()
_told_of_dropout: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def _use_of(module: nn.Module) -> _Use:
    with _making:
        return _uses.setdefault(module, _Use())


def check_thread(steerer: int) -> None:
    """Raise InvalidInput in another thread than the one that attached a hook."""
    if threading.get_ident() != steerer:
        raise InvalidInput(
            "this model is steered by another thread, whose hook would act on this run too; attach the hook in the thread that "
            "runs the model, wait until its `attached` block ends, or open the model twice"
        )


@contextmanager
def running(module: nn.Module) -> Generator[None, None, None]:
    """A run of ours: alone on the model, and in evaluation mode, whatever mode it was left in.

    Raises:
        InvalidInput: another thread steers the model.
    """
    use = _use_of(module)
    use.check()
    with use.lock:
        use.check()
        training = use.training(module)
        if not training:
            yield
            return
        tell_of_dropout(module, "it is off in this call")
        try:  # an interrupt may come at any moment
            for part in training:
                part.training = False
            yield
        finally:
            for part in training:
                part.training = True


@contextmanager
def steering(module: nn.Module) -> Generator[None, None, None]:
    """Runs of the user's own are steered by this thread.

    Raises:
        InvalidInput: another thread does.
    """
    use, hook = _use_of(module), object()
    try:  # an interrupt may come at any moment
        with use.lock:
            use.check()
            use.steerer = threading.get_ident()
            use.hooks.add(hook)
        yield
    finally:
        with use.lock:
            use.hooks.discard(hook)
            if not use.hooks:
                use.steerer = None


def tell_of_dropout(module: nn.Module, but: str) -> None:
    """Warn once of a model that was left in training mode with dropout, which puts noise into every number."""
    if module in _told_of_dropout or not _use_of(module).training(module) or not _drops(module):
        return
    _told_of_dropout.add(module)
    warnings.warn(
        f"{type(module).__name__} is in training mode with dropout; {but}. Call model.eval() before it is read or steered",
        stacklevel=4,
    )


def _drops(module: nn.Module) -> bool:
    config = getattr(module, "config", None)
    told = (value for name, value in vars(config).items() if "drop" in name and isinstance(value, float)) if config else ()
    rates = (part.p for part in module.modules() if isinstance(part, nn.Dropout))
    return any(rate > 0 for rate in (*told, *rates))
