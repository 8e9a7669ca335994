"""What cross-validation saw when it chose an aligner's rank and ridge."""

from __future__ import annotations

from typing import TYPE_CHECKING

from unlock_lens.evidence.plots import style
from unlock_lens.evidence.plots.vocabulary import CONTRARY
from unlock_lens.method.crossval import CrossValidation

if TYPE_CHECKING:
    import plotly.graph_objects as go


def cross_validation(found: CrossValidation) -> go.Figure:
    """Held-out R2 against rank, mean over layers, one line a ridge strength; what was chosen is ringed.

    Source: docs/aligners.md.

    Example:
        >>> import torch
        >>> from unlock_lens import SubspaceAligner
        >>> from unlock_lens.evidence import plots
        >>> states = torch.randn(1, 50, 8, generator=torch.Generator().manual_seed(0))
        >>> aligner = SubspaceAligner("cv", centered=True, method="rrr").fit_activations(states, 2 * states)
        >>> plots.cross_validation(aligner.cross_validation).data[0].name
        'ridge 0.001'
    """
    import plotly.graph_objects as go

    drawn = style.figure("Held-out R2 of the map, by rank")
    mean = found.r2.mean(dim=0)
    for i, ridge in enumerate(found.ridges):
        colour = style.depth_colour(i / max(1, len(found.ridges) - 1))
        drawn.add_trace(
            go.Scatter(
                x=list(found.ranks),
                y=mean[i].tolist(),
                name=f"ridge {ridge:g}",
                mode="lines+markers",
                line={"color": colour},
                hovertemplate=f"rank %{{x}}, ridge {ridge:g}: R2 %{{y:.3f}}<extra></extra>",
            )
        )
    rank, ridge = found.best
    ring = {"symbol": "circle-open", "size": 15, "color": CONTRARY, "line": {"width": 2.5}}
    best = float(mean.max())
    told = f"chosen: rank {rank}, ridge {ridge:g}, R2 {best:.3f}<extra></extra>"
    drawn.add_trace(go.Scatter(x=[rank], y=[best], name="chosen", mode="markers", marker=ring, hovertemplate=told))
    drawn.update_xaxes(title="rank", **style.log_ticks(found.ranks))
    drawn.update_yaxes(title="held-out R2")
    style.legend_below(drawn)
    return drawn
