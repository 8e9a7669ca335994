"""Random programs that steer, nest, fail, are interrupted and leave generators behind: afterwards a model is what it was.

CI runs a few for each host; UNLOCK_LENS_PROGRAMS=250 runs so many (`make test-state`).
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import unlock_lens as ul
from tests.hosts.models import HOSTS, PROMPTS
from tests.hosts.test_oracle import direction_for

PROGRAMS = int(os.environ.get("UNLOCK_LENS_PROGRAMS", "12"))
TOGETHER = ["Q 3 1 A :", "Q 5 think A : S 5 5"]
Step = tuple[Any, ...]


class Broken(Exception):
    """What a program raises on purpose."""


ENDS = st.sampled_from([None, None, Broken, KeyboardInterrupt])
MOMENTS = st.integers(0, 120)
HOOKS = st.lists(st.integers(0, 5), min_size=1, max_size=2)
LEAVES: st.SearchStrategy[Step] = st.one_of(
    st.tuples(st.just("generate"), HOOKS | st.just([]), ENDS, MOMENTS),
    st.tuples(st.just("extract"), ENDS),
    st.tuples(st.just("native"), HOOKS, ENDS),
    st.tuples(st.just("twice"), HOOKS),
)


def blocks(inner: st.SearchStrategy[Step]) -> st.SearchStrategy[Step]:
    steps = st.lists(inner, max_size=3)
    return st.one_of(
        st.tuples(st.just("attach"), HOOKS, steps, ENDS),
        st.tuples(st.just("drop context"), HOOKS, steps),
        st.tuples(st.just("drop generator"), HOOKS, steps),
    )


STEPS = st.recursive(LEAVES, blocks, max_leaves=6)
ALL_PROGRAMS = st.lists(STEPS, min_size=1, max_size=3)


def module_of(model: Any) -> nn.Module:
    return getattr(model, "_module", None) or getattr(model, "original_model", model)


def state(model: Any) -> list[Any]:
    """Every hook that is on the model, edits of nnsight's, and the mode of each part."""
    parts = [part for root in (model, module_of(model)) if isinstance(root, nn.Module) for part in root.modules()]
    hooks = [(len(part._forward_hooks), len(part._forward_pre_hooks), len(part._backward_hooks)) for part in parts]
    points = [(len(point.fwd_hooks), len(point.bwd_hooks)) for point in getattr(model, "hook_dict", {}).values()]
    return [hooks, points, [part.training for part in parts], list(getattr(model, "_edits", []))]


def output(model: Any) -> Tensor:
    ids = torch.tensor([model.tokenizer.encode(PROMPTS[2])])
    with torch.no_grad():
        found = module_of(model)(ids)
    return found if isinstance(found, Tensor) else found.logits


@contextmanager
def interrupted(model: Any, end: type[BaseException] | None, moment: int) -> Generator[None, None, None]:
    """The module that is called at that moment raises, as a hook of the user's or Ctrl-C would."""
    calls = iter(range(moment))

    def count(module: nn.Module, args: Any) -> None:
        if next(calls, None) is None and end is not None:
            raise end

    handles = [part.register_forward_pre_hook(count) for part in module_of(model).modules()] if end else []
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class Program:
    """Runs steps on a model; what they raise on purpose ends there."""

    def __init__(self, model: Any) -> None:
        self.model, direction = model, direction_for(model)
        how: list[dict[str, Any]] = [
            {}, {"positions": "all"}, {"operation": "add", "positions": "generated"}, {"layers": (1,)},
            {"operation": "ablate", "positions": "prompt"}, {"operation": "add", "layers": (0,)},
        ]  # fmt: skip
        self.hooks = [ul.SteeringHook(direction, 0.4, **each) for each in how]

    def chosen(self, which: list[int]) -> list[ul.SteeringHook]:
        return [self.hooks[i] for i in which]

    def run(self, steps: list[Step]) -> None:
        for kind, *told in steps:
            with suppress(Broken, KeyboardInterrupt):
                getattr(self, kind.replace(" ", "_"))(*told)

    def generate(self, which: list[int], end: type[BaseException] | None, moment: int) -> None:
        with interrupted(self.model, end, moment):
            ul.generate(self.model, TOGETHER, self.chosen(which), max_new_tokens=2, progress=False)

    def extract(self, end: type[BaseException] | None) -> None:
        def mean(differences: Tensor) -> Tensor:
            if end is not None:
                raise end
            return differences.mean(dim=0)

        ul.CapabilityDirection.extract(
            ul.Variant(self.model, TOGETHER), ul.Variant(self.model, PROMPTS[2:4]), aggregate=mean, progress=False
        )

    def native(self, which: list[int], end: type[BaseException] | None) -> None:
        """In the framework's own form, beside a hook of the user's."""
        hooks = self.chosen(which)
        if hasattr(self.model, "trace"):
            last = [hook for hook in hooks if hook.positions == "last_prompt"]
            with self.model.trace(TOGETHER[0]):
                ul.apply(self.model, last or [self.hooks[0]])
                if end is not None:
                    raise end
            return

        def own(states: Tensor, hook: Any = None) -> None:
            if end is not None:
                raise end

        listed = [one for hook in hooks for one in hook.fwd_hooks(self.model)]
        ids = torch.tensor([self.model.tokenizer.encode(TOGETHER[0])])
        self.model.run_with_hooks(ids, fwd_hooks=[*listed, ("blocks.1.hook_resid_post", own)])

    def twice(self, which: list[int]) -> None:
        """A hook inside itself; and a context that is over, which Python refuses to enter again."""
        hooks = self.chosen(which)
        with ul.attached(self.model, hooks), ul.attached(self.model, hooks):
            output(self.model)
        context = ul.attached(self.model, hooks)
        with context:
            pass
        with pytest.raises((RuntimeError, AttributeError)):
            context.__enter__()

    def attach(self, which: list[int], steps: list[Step], end: type[BaseException] | None) -> None:
        with ul.attached(self.model, self.chosen(which)):
            self.run(steps)
            output(self.model)
            if end is not None:
                raise end

    def drop_context(self, which: list[int], steps: list[Step]) -> None:
        """Entered, and never left."""
        context = ul.attached(self.model, self.chosen(which))
        context.__enter__()
        self.run(steps)
        del context
        gc.collect()

    def drop_generator(self, which: list[int], steps: list[Step]) -> None:
        def steered() -> Generator[None, None, None]:
            with ul.attached(self.model, self.chosen(which)):
                self.run(steps)
                yield

        next(iter(steered()))
        gc.collect()


def proved(model: Any) -> Callable[[list[Step]], None]:
    program, before, hooks = Program(model), output(model), state(model)
    written = ul.generate(model, TOGETHER, max_new_tokens=3, progress=False)

    def run(steps: list[Step]) -> None:
        program.run(steps)
        assert state(model) == hooks
        assert torch.equal(output(model), before)
        assert ul.generate(model, TOGETHER, max_new_tokens=3, progress=False) == written

    return run


@pytest.mark.filterwarnings("ignore")  # prompts of two tasks end on other tokens
@pytest.mark.parametrize("host", HOSTS)
def test_after_any_program_a_model_is_what_it_was(model_of: Any, host: str) -> None:
    run = proved(model_of("llama", host))
    checked = settings(max_examples=PROGRAMS, suppress_health_check=[*HealthCheck])(given(ALL_PROGRAMS)(run))
    checked()
