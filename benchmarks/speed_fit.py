"""Fitting the map against the method's formula with two full SVDs, every rank against one, and the file against dense maps."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from measure import Work, interleaved
from speed_rows import Row, Setup
from torch import Tensor

import unlock_lens as ul

N, SOURCE_WIDTH, TARGET_WIDTH, RANK = 512, 1536, 3584, 128
SAME = 1e-5


def states(n: int, width: int, seed: int) -> Tensor:
    """[layer, n, d] of one layer: singular values that fall as those of a residual stream do, and a mean far from zero."""
    generator = torch.Generator().manual_seed(seed)
    spanned = min(n, width)
    scale = torch.arange(1, spanned + 1) ** -0.5
    scores = torch.randn(n, spanned, generator=generator) * scale
    basis = torch.linalg.qr(torch.randn(width, spanned, generator=generator)).Q
    return (scores @ basis.T + torch.randn(width, generator=generator) / width**0.5)[None]


def formula(source: Tensor, target: Tensor, rank: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """V_s, M, V_t as docs/method.md has them: two full SVDs and a pseudoinverse."""
    h_s, h_t = source[0].to(dtype), target[0].to(dtype)
    v_s, v_t = (torch.linalg.svd(h, full_matrices=False).Vh[:rank] for h in (h_s, h_t))
    return v_s, torch.linalg.pinv(h_s @ v_s.T) @ (h_t @ v_t.T), v_t


def fit(source: Tensor, target: Tensor, rank: int) -> ul.SubspaceAligner:
    """The paper's calibration: uncentered."""
    return ul.SubspaceAligner.paper(rank).fit_activations(source, target)


def fit_rows(setup: Setup) -> list[Row]:
    """One pair of layers, at rank 128."""
    pair = states(N, SOURCE_WIDTH, 0), states(N, TARGET_WIDTH, 1)
    works: dict[str, Work] = {
        "fit": partial(fit, *pair, RANK),
        "two full SVDs and pinv, float64": partial(formula, *pair, RANK, torch.float64),
        "two full SVDs and pinv, float32": partial(formula, *pair, RANK, torch.float32),
    }
    times = interleaved(works, setup.rounds, setup.tell)
    v_s, core, v_t = formula(*pair, RANK, torch.float64)
    true = v_s.T @ core @ v_t
    aligner = fit(*pair, RANK)
    error = float((aligner.map(0).double() - true).norm() / true.norm())
    file = setup.folder / "aligner.safetensors"
    return [
        *(Row.timed(times, "fit", against, 0.12) for against in list(works)[1:]),
        Row.counted("fit, relative error of the map", "the same formula, float64", error, SAME),
        Row.counted("aligner on disk", "dense maps", _bytes_of(aligner, file) / (SOURCE_WIDTH * TARGET_WIDTH * 4), _disk_bar()),
    ]


def rank_rows(setup: Setup) -> list[Row]:
    """Fitted once, and taken at every rank."""
    pair = states(N, SOURCE_WIDTH, 0), states(N, TARGET_WIDTH, 1)

    def every_rank() -> None:
        aligner = fit(*pair, N)
        for rank in range(1, N + 1):
            aligner.at_rank(rank)

    works: dict[str, Work] = {
        "fit at rank 512, and at_rank(1) to at_rank(512)": every_rank,
        "fit at rank 512": partial(fit, *pair, N),
    }
    return [Row.timed(interleaved(works, setup.rounds, setup.tell), *works, bar=1.1)]


def _bytes_of(aligner: ul.SubspaceAligner, file: Path) -> int:
    aligner.save(file)
    return file.stat().st_size


def _disk_bar() -> float:
    return (SOURCE_WIDTH + TARGET_WIDTH) * RANK / (SOURCE_WIDTH * TARGET_WIDTH) + 0.01
