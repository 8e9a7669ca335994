"""Maps, transports and edits of states that strain floats, against the formulas in float64 (tests/oracle.py).

200 configurations of each, with fixed seeds: a transported vector is within eight units in the last place of float32 (of
||v|| ||W||), an edited state within four of its dtype (of what is added up), or a library error says why not.
"""

from __future__ import annotations

import random
from collections import Counter

import pytest
import torch
from torch import Tensor

import unlock_lens as ul
from tests import oracle
from unlock_lens.errors import UnlockLensError
from unlock_lens.method.apply import Chunk, Edit

CONFIGURATIONS = 200
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
STRAINS = ("none", "sinks", "duplicates", "constant", "one token", "condition 1e8", "denormal")
LAST = torch.finfo(torch.float32).eps
ALLOWED = 8 * LAST
LEAST = torch.finfo(torch.float32).tiny * LAST
"""What float32 can still tell from zero."""


def strained(rng: random.Random, strain: str, n: int, d: int, dtype: torch.dtype) -> Tensor:
    g = torch.Generator().manual_seed(rng.randrange(2**31))
    k = min(n, d)
    u, v = (torch.linalg.qr(torch.randn(m, k, generator=g, dtype=torch.float64)).Q for m in (n, d))
    least = -8 if strain == "condition 1e8" else -1
    states = (
        n**0.5 * u @ torch.diag(torch.logspace(0, least, k, dtype=torch.float64)) @ v.T + torch.randn(d, generator=g).double()
    )
    if strain == "sinks":
        rows = torch.randint(n, (max(1, n // 20),), generator=g)
        states[rows] *= 1e4 / states[rows].norm(dim=1, keepdim=True)
    elif strain == "duplicates":
        states = states[torch.randint(max(1, n // 4), (n,), generator=g)]
    elif strain == "constant":
        states = states[:1].expand(n, d).clone()
    elif strain == "denormal":
        states *= torch.finfo(dtype).tiny if dtype != torch.float64 else 1e-39
    return states.to(dtype)


def map_of(source: Tensor, target: Tensor, rank: int, centered: bool, cut: float) -> Tensor:
    """The formula of docs/method.md in float64, with the library's cut of small singular values."""
    h_s, h_t = ((h - h.mean(dim=0)) if centered else h for h in (source.double(), target.double()))
    sides: list[tuple[Tensor, Tensor, Tensor]] = []
    for h in (h_s, h_t):
        u, s, v = torch.linalg.svd(h, full_matrices=False)
        kept = s > cut * s[0]
        sides.append((u[:, kept][:, :rank], s[kept][:rank], v[kept][:rank]))
    (u_s, s_s, v_s), (u_t, s_t, v_t) = sides
    return v_s.T @ ((u_s.T @ u_t) * s_t / s_s[:, None]) @ v_t


def fit_and_transport(seed: int) -> tuple[str, float]:
    """What came of one configuration: its strain, or the error; and how far it is off."""
    rng = random.Random(f"fit {seed}")
    strain, dtype, centered = STRAINS[seed % len(STRAINS)], rng.choice(DTYPES), rng.random() < 0.5
    n, d_s, d_t = (1 if strain == "one token" else rng.choice((6, 30, 120))), rng.choice((8, 24)), rng.choice((8, 32))
    rank = rng.choice((1, 4, 16))
    source, target = (strained(rng, strain, n, d, dtype) for d in (d_s, d_t))
    vector = torch.randn(d_s, generator=torch.Generator().manual_seed(seed))
    try:
        aligner = ul.SubspaceAligner(rank, centered=centered).fit_activations(source[None], target[None])
        found = aligner.transport(ul.CapabilityDirection(vector[None], (0,))).vectors[0].double()
    except UnlockLensError as error:
        return type(error).__name__, 0.0
    cut = max(n, d_s, d_t) * torch.finfo(torch.float64).eps if dtype == torch.float64 else 1e-6
    true = map_of(source, target, rank, centered, cut)
    scale = float(vector.double().norm() * torch.linalg.matrix_norm(true))
    return strain, float((found - vector.double() @ true).norm()) / scale


@pytest.mark.filterwarnings("ignore")
def test_a_strained_fit_is_the_formula_or_an_error() -> None:
    found = [fit_and_transport(seed) for seed in range(CONFIGURATIONS)]
    assert [(seed, *each) for seed, each in enumerate(found) if each[1] > ALLOWED] == []
    kinds = Counter(kind for kind, _ in found)
    assert set(kinds) == {*STRAINS, "InvalidInput"}
    assert kinds["InvalidInput"] <= 30  # states that do not vary have no centered map


def test_a_strained_edit_is_the_formula() -> None:
    """Half precision is computed in float32, and rounded once."""
    for seed in range(CONFIGURATIONS):
        rng, g = random.Random(f"edit {seed}"), torch.Generator().manual_seed(seed)
        dtype, operation, alpha = rng.choice(DTYPES), rng.choice(sorted(oracle.OPERATIONS)), rng.uniform(-2, 2)
        size = rng.choice((1.0, 1e3, "denormal", 1e-6 if dtype == torch.float16 else rng.choice((1e-30, 1e-20, 1e25))))
        tiny, last = torch.finfo(dtype).tiny, torch.finfo(dtype).eps
        if dtype == torch.float64:  # the formula's own squares vanish below it
            tiny = 1e-39
        h = (torch.randn(1, 3, 16, generator=g, dtype=torch.float64) * (tiny if size == "denormal" else float(size))).to(dtype)
        v = torch.randn(16, generator=g) * rng.choice((1e-30, 1e-3, 1.0, 1e3) if operation != "add" else (1e-3, 1.0))
        if rng.random() < 0.2:
            h[0, 1] = h[0, 0]  # a duplicate
        found = Edit(v, alpha, operation, "all")(h, Chunk(3)).double()
        true = oracle.OPERATIONS[operation](h.double(), v.double(), alpha)
        summed = h.double().norm(dim=-1) + abs(alpha) * (v.double().norm() if operation == "add" else h.double().norm(dim=-1))
        if operation == "norm_preserving":  # where h and v nearly cancel, the rest is all rounding
            summed = summed / (oracle.unit(h.double()) + alpha * oracle.unit(v.double())).norm(dim=-1)
        least = 4 * max(tiny * last, LEAST if dtype != torch.float64 else 0.0)  # of 16 numbers
        held = max(last, LAST if dtype != torch.float64 else 0.0) * summed + least
        assert bool(((found - true).norm(dim=-1) <= 4 * held).all()), (seed, dtype, operation, size)
