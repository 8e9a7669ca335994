"""The edits keep what they promise, for any residual and direction."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests import oracle
from unlock_lens.method.apply import OPERATIONS, POSITIONS, Chunk, Edit, ablate, norm_preserving

SEEDS = st.integers(0, 2**16)


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(SEEDS, st.sampled_from(sorted(OPERATIONS)), st.floats(-2, 2))
def test_operations_are_the_formulas(seed: int, name: str, alpha: float) -> None:
    h, v = draw(seed, 2, 3, 8), draw(seed + 1, 8)
    torch.testing.assert_close(OPERATIONS[name](v, alpha)(h), oracle.OPERATIONS[name](h, v, alpha))


@given(SEEDS, st.floats(0.01, 3), st.floats(0.1, 100))
def test_norm_preserving_keeps_norms_and_ignores_the_directions_scale(seed: int, alpha: float, scale: float) -> None:
    h, v = draw(seed, 4, 8), draw(seed + 1, 8)
    edited = norm_preserving(v, alpha)(h)
    torch.testing.assert_close(edited.norm(dim=-1), h.norm(dim=-1))
    torch.testing.assert_close(edited, norm_preserving(scale * v, alpha)(h))


def test_norm_preserving_leaves_zero_states_finite() -> None:
    assert torch.equal(norm_preserving(torch.ones(4), 0.5)(torch.zeros(2, 4)), torch.zeros(2, 4))


@given(SEEDS)
def test_ablate_takes_the_whole_component_out(seed: int) -> None:
    h, v = draw(seed, 4, 8), draw(seed + 1, 8)
    torch.testing.assert_close(ablate(v, 1.0)(h) @ v, torch.zeros(4, dtype=torch.float64), atol=1e-12, rtol=0)


CHUNKS: dict[str, tuple[Chunk, int, dict[str, list[int]]]] = {
    # name: chunk, its length, the tokens that each rule edits
    "prefill": (Chunk(4), 4, {"last_prompt": [3], "prompt": [0, 1, 2, 3], "generated": [], "all": [0, 1, 2, 3]}),
    "one-token prefill": (Chunk(1), 1, {"last_prompt": [0], "prompt": [0], "generated": [], "all": [0]}),
    "cached step": (Chunk(4, seen=6), 1, {"last_prompt": [], "prompt": [], "generated": [0], "all": [0]}),
    "first cached step": (Chunk(4, seen=4), 1, {"last_prompt": [], "prompt": [], "generated": [0], "all": [0]}),
    "uncached step": (
        Chunk(4),
        6,
        {"last_prompt": [3], "prompt": [0, 1, 2, 3], "generated": [4, 5], "all": [0, 1, 2, 3, 4, 5]},
    ),
    "second half of a prefill": (Chunk(4, seen=2), 2, {"last_prompt": [1], "prompt": [0, 1], "generated": [], "all": [0, 1]}),
}


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("name", CHUNKS)
def test_positions(name: str, positions: str) -> None:
    chunk, length, meant = CHUNKS[name]
    h = draw(0, 2, length, 8)
    original = h.clone()
    edited = Edit(draw(1, 8), 0.5, "add", positions)(h, chunk)
    changed = (edited != h).any(dim=-1)
    assert [row.nonzero().squeeze(1).tolist() for row in changed] == [meant[positions]] * 2
    assert torch.equal(h, original), "the given tensor is never edited in place"
    assert (edited is h) == (not meant[positions])


def test_last_tokens_of_each_row() -> None:
    h = draw(0, 3, 5, 8)
    chunk = Chunk(5, last=torch.tensor([4, 0, 2]))
    changed = (Edit(draw(1, 8), 0.5, "add", "last_prompt")(h, chunk) != h).any(dim=-1)
    assert changed.nonzero().tolist() == [[0, 4], [1, 0], [2, 2]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_edits_keep_the_activations_dtype(dtype: Any) -> None:
    h = draw(0, 1, 2, 8).to(dtype)
    edited = Edit(torch.ones(8), 0.5, "norm_preserving", "all")(h, Chunk(2))
    assert edited.dtype == dtype
    torch.testing.assert_close(edited.double(), norm_preserving(torch.ones(8).double(), 0.5)(h.double()).to(dtype).double())


def test_an_edit_serves_one_dtype_after_another_and_later_gradients() -> None:
    """What is prepared at the first call, be it in inference mode, does not bind the next."""
    edit = Edit(torch.ones(8), 0.5, "norm_preserving", "all")
    with torch.inference_mode():
        edit(draw(0, 1, 2, 8).float(), Chunk(2))
    h = draw(0, 1, 2, 8).float().requires_grad_()
    edit(h, Chunk(2)).sum().backward()
    assert h.grad is not None
    torch.testing.assert_close(edit(draw(0, 1, 2, 8), Chunk(2)), norm_preserving(torch.ones(8).double(), 0.5)(draw(0, 1, 2, 8)))


@pytest.mark.parametrize("operation", sorted(OPERATIONS))
def test_an_edit_that_has_acted_ships_as_a_new_one_does(operation: str) -> None:
    edit = Edit(torch.ones(8), 0.5, operation, "all")
    fresh = pickle.dumps(edit)
    edit(draw(0, 1, 2, 8), Chunk(2))
    assert pickle.dumps(edit) == fresh
    h = draw(1, 1, 2, 8)
    assert torch.equal(pickle.loads(fresh)(h, Chunk(2)), edit(h, Chunk(2)))


@pytest.mark.parametrize("name", sorted(OPERATIONS))
def test_edits_are_exact_where_a_server_computes_in_half_precision(name: str) -> None:
    """NDIF runs requests under autocast: matrix products of float32 would be taken in bfloat16."""
    h, v = draw(0, 2, 3, 64).float(), draw(1, 64).float()
    plain = Edit(v, 0.7, name, "all")(h, Chunk(3))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(Edit(v, 0.7, name, "all")(h, Chunk(3)), plain)


def test_edits_run_on_a_device_without_autocast() -> None:
    """Shapes are scanned on "meta"."""
    assert Edit(torch.ones(8), 0.5, "add", "all")(torch.ones(1, 2, 8, device="meta"), Chunk(2)).shape == (1, 2, 8)
