"""The study's table and figure, from its lines of results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from study_files import written_between

from unlock_lens.evidence.evaluation import compare
from unlock_lens.evidence.statistics import wilson_interval

DOCS = Path(__file__).parent.parent / "docs"
Rows = dict[int, dict[str, Any]]
"""What an arm made of each problem."""
HEAD = (
    "arm", "setting", "n", "right (flexible)", "right (strict)", "gained / lost, p", "transferred minus this",
    "tokens", "cut off", "zlib", "KL on other text",
)  # fmt: skip
LENGTHS = ("arm", "under 50 characters: right of all", "longer: right of all", "right of the 450 unread")
SHORT = 50
"""Characters of an answer without steps, as the paper draws the line."""
READ_BEFORE = 210
"""Test problems below this number had been read by an earlier version of the study."""


def write(config: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> None:
    """Write all of it into the study's page of docs/, and the main study's short form into the README."""
    arms, settings = tested(config, lines)
    document = DOCS / config["page"]
    written_between(document, "study", "\n".join(table(config, arms, settings, lines)))
    written_between(document, "choosing", "\n".join(choosing(lines)))
    if config["files"] != "study":
        return
    written_between(document, "nulls", "\n".join(nulls(config, lines)))
    written_between(document, "lengths", "\n".join(by_length(arms)))
    written_between(document, "forecast", "\n".join(forecasts(lines)))
    written_between(DOCS.parent / "README.md", "study", "\n".join(in_short(config, arms)))
    (DOCS / "results.svg").write_text(figure({arm: arms[arm] for arm in config["in_readme"] if arm in arms}))


def tested(config: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Rows], dict[str, str]]:
    """The rows of each arm, and the setting that it was tested at, in the config's order."""
    arms: dict[str, Rows] = {arm: {} for arm in config["arms"]}
    settings: dict[str, str] = {}
    for line in lines:
        if line["split"] == "test" and line["arm"] in arms:
            arms[line["arm"]].update({row["problem"]: row for row in line["rows"]})
            settings[line["arm"]] = f"{line['direction']}, {line['alpha']:g}" if line["direction"] else ""
    return {arm: rows for arm, rows in arms.items() if rows}, settings


def table(
    config: Mapping[str, Any], arms: Mapping[str, Rows], settings: Mapping[str, str], lines: Sequence[Mapping[str, Any]]
) -> Iterator[str]:
    """Markdown, an arm a row; comparisons are on the problems that both arms have."""
    yield _row(HEAD) + "\n" + _row(["---"] * len(HEAD))
    base, transfer = arms.get("unsteered", {}), arms.get(config["transfer"], {})
    prices = {line["arm"]: line for line in lines if line["split"] == "price"}
    for arm, rows in arms.items():
        n, of = len(rows), list(rows.values())
        name = f"**{arm}**" if arm == config["transfer"] else arm
        cells = [name, settings[arm], str(n), _share([row["flexible"] for row in of]), _share([row["strict"] for row in of])]
        cells += [_changed(rows, base) if rows is not base else "", _difference(transfer, rows) if rows is not transfer else ""]
        cells += [f"{fmean(row['tokens'] for row in of):.0f}", f"{fmean(not row['ended'] for row in of):.0%}"]
        price = f"{prices[arm]['kl']:.2f}, worst 5% {prices[arm]['kl_worst']:.1f}" if arm in prices else ""
        yield _row([*cells, f"{fmean(row['zlib'] for row in of):.2f}", price])


def in_short(config: Mapping[str, Any], arms: Mapping[str, Rows]) -> Iterator[str]:
    """Markdown for the README: right answers, length and the difference from the transfer of the arms that matter most."""
    head = ("Qwen2.5-Coder-0.5B, 500 problems of GSM8K", "right", "transferred minus this", "mean length")
    yield _row(head) + "\n" + _row(["---"] * len(head))
    transfer = arms.get(config["transfer"], {})
    for arm in (arm for arm in config["in_readme"] if arm in arms):
        rows = arms[arm]
        name = f"**{arm}**" if arm == config["transfer"] else arm
        difference = _difference(transfer, rows) if arm != config["transfer"] else ""
        length = f"{fmean(row['tokens'] for row in rows.values()):.0f} tokens"
        yield _row([name, _share([row["flexible"] for row in rows.values()]), difference, length])


def by_length(arms: Mapping[str, Rows]) -> Iterator[str]:
    """Markdown: right answers among short and long completions, and among problems that were never read before."""
    yield _row(LENGTHS) + "\n" + _row(["---"] * len(LENGTHS))
    for arm, rows in arms.items():
        short, long = (
            [row["flexible"] for row in rows.values() if (row["characters"] < SHORT) is one] for one in (True, False)
        )
        unread = [row["flexible"] for problem, row in rows.items() if problem >= READ_BEFORE]
        yield _row([arm, *(f"{sum(right)} of {len(right)}" for right in (short, long)), _share(unread)])


def nulls(config: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Markdown: how the draws of noise do at their best strength, beside the transfer at its own, on the same problems."""
    best: dict[str, int] = {}
    problems = range(*config["problems"]["noise"])
    for line in lines:
        of_noise = line["split"] == "null"
        if of_noise or (line["split"] == "choose" and line["arm"] == config["transfer"]):
            right = sum(row["flexible"] for row in line["rows"] if row["problem"] in problems)
            arm = line["arm"] if of_noise else config["transfer"]
            best[arm] = max(best.get(arm, 0), right)
    transfer, draws = best.pop(config["transfer"], 0), sorted(best.values(), reverse=True)
    if draws:
        as_good = sum(right >= transfer for right in draws)
        chance, middle = (1 + as_good) / (1 + len(draws)), draws[len(draws) // 2]
        yield (
            f"Of {len(problems)} problems the transfer has {transfer} right at its best strength. The {len(draws)} draws of "
            f"noise have {draws[-1]} to {draws[0]} right, each at its own best strength, the middle one {middle}. "
            f"As good as the transfer: {as_good} of {len(draws)} (p = {chance:.3f})."
        )


def forecasts(lines: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """What `diagnose` said of each contrast before anything was generated."""
    for line in lines:
        if line["split"] == "forecast":
            yield f"- `{line['direction']}`: {' '.join(text.rstrip('.') + '.' for text in (line['verdict'], *line['reasons']))}"


def choosing(lines: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Markdown: what each arm brought at every strength on the choosing problems; of several directions the best."""
    of = [line for line in lines if line["split"] == "choose"]
    alphas = sorted({line["alpha"] for line in of})
    yield _row(["arm", *(f"alpha {alpha:g}" for alpha in alphas)]) + "\n" + _row(["---"] * (1 + len(alphas)))
    for arm in dict.fromkeys(line["arm"] for line in of):
        cells: list[str] = []
        for alpha in alphas:
            tried = [line["rows"] for line in of if line["arm"] == arm and line["alpha"] == alpha]
            cells.append(_brief(max(tried, key=lambda rows: sum(row["flexible"] for row in rows))) if tried else "")
        yield _row([arm, *cells])


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _brief(rows: Sequence[Mapping[str, Any]]) -> str:
    return f"{sum(row['flexible'] for row in rows)} of {len(rows)}, {fmean(row['tokens'] for row in rows):.0f} tokens"


def _share(right: Sequence[bool]) -> str:
    if not right:
        return ""
    low, high = wilson_interval(sum(right), len(right))
    return f"{100 * sum(right) / len(right):.1f}% ({100 * low:.0f}-{100 * high:.0f})"


def _both(a: Rows, b: Rows) -> tuple[list[bool], list[bool]]:
    shared = sorted(a.keys() & b.keys())
    return [a[i]["flexible"] for i in shared], [b[i]["flexible"] for i in shared]


def _changed(rows: Rows, base: Rows) -> str:
    after, before = _both(rows, base)
    if not after:
        return ""
    found = compare(after, before)
    return f"{found.gained} / {found.lost}, {found.p:.2g}"


def _difference(transfer: Rows, rows: Rows) -> str:
    after, before = _both(transfer, rows)
    if not after:
        return ""
    found = compare(after, before)
    return f"{100 * found.difference:+.1f} ({100 * found.low:+.1f} to {100 * found.high:+.1f}), p {found.p:.2g}"


STYLE = """<style>
.bars { --ink: #1f2937; --faint: #6b7280; --plain: #475569; --moved: #c2410c; --paper: #ffffff; font: 13px sans-serif; }
@media (prefers-color-scheme: dark) {
  .bars { --ink: #e5e7eb; --faint: #9ca3af; --plain: #94a3b8; --moved: #fb923c; --paper: #0d1117; }
}
.bars .paper { fill: var(--paper); } .bars .ink { fill: var(--ink); } .bars .faint { fill: var(--faint); }
.bars .plain { fill: var(--plain); stroke: var(--plain); } .bars .moved { fill: var(--moved); stroke: var(--moved); }
</style>"""


def figure(arms: Mapping[str, Rows]) -> str:
    """An SVG: the share of right answers of each arm as a bar, with its interval."""
    step, left, width, right_edge = 26, 250, 380, 60
    shares = {arm: [row["flexible"] for row in rows.values()] for arm, rows in arms.items()}
    scale = width / max([wilson_interval(sum(right), len(right))[1] for right in shares.values()], default=1.0)
    height, whole = step * len(shares) + 34, left + width + right_edge
    drawn = [
        f'<svg class="bars" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {whole} {height}" role="img">',
        "<title>Share of 500 problems that each arm answers, with 95% Wilson intervals</title>",
        STYLE,
        f'<rect class="paper" width="{whole}" height="{height}"/>',
        f'<text class="faint" x="{left}" y="{height - 10}">problems answered, with 95% intervals</text>',
    ]
    for i, (arm, right) in enumerate(shares.items()):
        y, share = step * i + 16, sum(right) / len(right)
        low, high = (left + scale * end for end in wilson_interval(sum(right), len(right)))
        kind = "moved" if arm.startswith("transferred") else "plain"
        drawn += [
            f'<text class="ink" x="{left - 10}" y="{y + 4}" text-anchor="end">{arm}</text>',
            f'<rect class="{kind}" x="{left}" y="{y - 8}" width="{scale * share:.1f}" height="16" opacity="0.45"/>',
            f'<line class="{kind}" x1="{low:.1f}" x2="{high:.1f}" y1="{y}" y2="{y}" stroke-width="2"/>',
            f'<text class="ink" x="{high + 8:.1f}" y="{y + 4}">{share:.1%}</text>',
        ]
    return "\n".join([*drawn, "</svg>", ""])
