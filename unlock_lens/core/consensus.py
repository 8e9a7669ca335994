"""Several sources: a direction that they agree on, and a label-free check that maps compose (docs/combining.md)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce

import torch

from unlock_lens.core.alignment import SubspaceAligner
from unlock_lens.core.direction import CapabilityDirection
from unlock_lens.errors import InvalidInput, caution

_APART = 0.0


def consensus(directions: Sequence[CapabilityDirection]) -> CapabilityDirection:
    """The direction that several agree on, in one space: u[l] = unit(mean_i unit(v_i[l])), at the mean norm of the v_i[l].

    Models write at different sizes, and so do the maps that carry directions, so each counts equally. The mean of unit
    vectors is the direction with the largest sum of cosines with all of them. At the mean norm, a strength of
    operation="add" has the same meaning as for one of them.

    Args:
        directions: at least two, of the same layers and in one model's residual stream (transport them first).

    Warns:
        UserWarning: two of them point apart (a cosine below 0 at some layer), so the mean is a compromise.

    Raises:
        InvalidInput: there are fewer than two directions, or they cancel each other.
        IncompatibleModel: layers, width, basis or model differ.

    Source: docs/combining.md.

    Example:
        >>> import torch
        >>> import unlock_lens as ul
        >>> a, b = (ul.CapabilityDirection(torch.tensor([v]), (0,)) for v in ([2.0, 0.0], [0.0, 4.0]))
        >>> ul.consensus([a, b]).vectors
        tensor([[2.1213, 2.1213]])
    """
    if len(directions) < 2:
        raise InvalidInput(f"{len(directions)} direction was given; a consensus needs at least two")
    first = directions[0]
    cosines = [first.cosine(other) for other in directions[1:]]  # refuses what is of another space
    units = torch.stack([direction.vectors.double() for direction in directions])
    norms = units.norm(dim=-1, keepdim=True)
    units = units / norms
    pairs = torch.einsum("ald,bld->lab", units, units)
    if float(pairs.min()) < _APART:
        layer = first.layers[int(pairs.amin(dim=(1, 2)).argmin())]
        caution(
            f"two of the directions have a cosine of {float(pairs.min()):.2f} at layer {layer}: they point apart; check each"
        )
    mean = units.mean(dim=0)
    size = mean.norm(dim=-1, keepdim=True)
    if float(size.min()) < 1e-6:
        raise InvalidInput(f"the directions cancel at layer {first.layers[int(size.argmin())]}; leave one out")
    vectors = (mean / size * norms.mean(dim=0)).float()
    with_first = ", ".join(f"{float(cosine.mean()):.2f}" for cosine in cosines)
    told = f"the consensus of {len(directions)} directions (cosines of the first with the others: {with_first})"
    return replace(first, vectors=vectors, provenance=first.provenance.then(told))


def path_cosine(
    direction: CapabilityDirection, path: Sequence[SubspaceAligner], direct: SubspaceAligner | None = None
) -> dict[int, float]:
    """Cosine of a direction sent along a path of maps with the same direction sent by one map, or not sent at all.

    `path_cosine(direction, [ab, ba])` sends it from A to B and back to A, and compares it with the direction itself.
    `path_cosine(direction, [ab, bc], ac)` compares the path from A to B to C with the straight one. No labels and no target
    direction are needed. Layers for which the two paths start from different layers of the direction's model are left out.

    Returns:
        {layer of the last model: cosine}.

    Raises:
        InvalidInput: the path is empty, or the two paths start from different layers everywhere.
        IncompatibleModel: the maps do not connect.

    Source: docs/combining.md.

    Example:
        >>> import unlock_lens as ul
        >>> from unlock_lens import zoo
        >>> a, b, task = zoo.load("large-base"), zoo.load("small-base"), zoo.running_sum(n=32)
        >>> direction = ul.CapabilityDirection.extract(ul.Variant(a, task.direct), ul.Variant(a, task.think))
        >>> ab, ba = (ul.SubspaceAligner().fit(*pair, zoo.text(n=200)) for pair in ((a, b), (b, a)))
        >>> sorted(ul.path_cosine(direction, [ab, ba]))
        [0, 3]
    """
    if not path:
        raise InvalidInput("the path is empty; give the maps in the order in which they are applied")
    came = reduce(lambda moved, aligner: aligner.transport(moved), path, direction)
    other = direction if direct is None else direct.transport(direction)
    origin = {layer: layer for layer in direction.layers}
    there = reduce(lambda known, aligner: {b: known[a] for b, a in aligner.layer_map.items() if a in known}, path, origin)
    straight = origin if direct is None else {b: a for b, a in direct.layer_map.items() if a in origin}
    layers = [layer for layer, a in there.items() if straight.get(layer) == a]
    if not layers:
        raise InvalidInput("the two paths start from different layers everywhere; fit the aligners with a matching layer_map=")
    cosines = came.at_layers(layers).cosine(other.at_layers(layers))
    return dict(zip(sorted(layers), cosines.tolist(), strict=True))
