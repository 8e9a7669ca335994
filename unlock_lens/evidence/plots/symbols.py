"""The marks of a drawing, by the names that plotly gives them."""

from __future__ import annotations

import math

Point = tuple[float, float]


def _regular(n: int, turn: float = -90.0, inner: float | None = None) -> list[Point]:
    """A polygon in the unit circle; with `inner` a star whose notches lie at that radius."""
    radii = (1.0,) if inner is None else (1.0, inner)
    steps = n * len(radii)
    angles = [math.radians(turn + 360 * i / steps) for i in range(steps)]
    return [(radii[i % len(radii)] * math.cos(a), radii[i % len(radii)] * math.sin(a)) for i, a in enumerate(angles)]


def _plus(turn: float) -> list[Point]:
    arm, a = 0.38, math.radians(turn)
    corners = [(arm, -1), (arm, -arm), (1, -arm), (1, arm), (arm, arm), (arm, 1)]
    corners = [*corners, *((-x, -y) for x, y in corners)]
    return [(x * math.cos(a) - y * math.sin(a), x * math.sin(a) + y * math.cos(a)) for x, y in corners]


POLYGONS: dict[str, list[Point]] = {
    "square": _regular(4, 45), "diamond": _regular(4), "diamond-wide": [(1.3, 0), (0, 0.8), (-1.3, 0), (0, -0.8)],
    "triangle-up": _regular(3), "triangle-down": _regular(3, 90), "pentagon": _regular(5),
    "star": _regular(5, inner=0.4), "hexagram": _regular(6, inner=0.58), "cross": _plus(0), "x": _plus(45),
    "hourglass": [(0.8, -1), (-0.8, -1), (0.8, 1), (-0.8, 1)],
}  # fmt: skip
THIN = {"cross-thin": "M{0} {3}H{2}M{4} {1}V{5}", "line-ns": "M{4} {1}V{5}"}


def outline(symbol: str, x: float, y: float, size: float) -> str:
    """The path of a mark; "" for a circle.

    Raises:
        KeyError: a symbol that is not drawn here.
    """
    name, r = symbol.removesuffix("-open").removesuffix("-dot"), size / 2
    if name == "circle":
        return ""
    if name in THIN:
        return THIN[name].format(*(f"{value:.1f}" for value in (x - r, y - r, x + r, y, x, y + r)))
    return "M" + "L".join(f"{x + 1.1 * r * dx:.1f} {y + 1.1 * r * dy:.1f}" for dx, dy in POLYGONS[name]) + "Z"
