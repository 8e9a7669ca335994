"""What a sweep leaves in its folder: one line for each finished configuration, and what describes them."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlock_lens.errors import InvalidInput

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Results"]

logger = logging.getLogger(__name__)
Line = Mapping[str, Any]
SEEDED = ("random", "shuffled")
"""Controls that are drawn at random, several times."""

NULL = "null"
"""Sources that have no capability, moved by the same maps and chosen among the same settings as the transfer."""
FORCED = ("forced_1", "forced_3", "forced_8")
"""The unsteered target goes on from the first 1, 3, 8 tokens that the steered one wrote."""
AT_PRICE = {"own_at_price": "own", "random_at_price": "random", "anti_mean_at_price": "anti_mean"}
"""Controls once more, at the strength at which they cost on unrelated text what the transfer costs."""
GROUPS = {"forced": FORCED, "at_price": tuple(AT_PRICE)}
"""Controls of a config that stand for several arms."""

CONFIG, LINES, DAMAGED = "config.yaml", "results.jsonl", "results.damaged.jsonl"
TRANSFERRED, UNSTEERED, PROMPTED, POST_TRAINED = "transferred", "unsteered", "prompted", "post_trained"
NAIVE, NAIVE_UNSTEERED = "naive", "naive_unsteered"
DESCRIPTIONS = ("problems", "geometry", "diagnosis", "provenance", "benchmarks")


@dataclass(frozen=True, eq=False)
class Results:
    """A sweep's folder, read.

    Attributes:
        config: what was asked for (`config.yaml`).
        lines: finished configurations (`results.jsonl`), in the order in which they were finished.
        problems: "train" and "test": lists of {"prompt", "answer"}.
        geometry: "maps", "spectra", "effect" per layer.
        diagnosis: the forecast for the chosen configuration.
        benchmarks: what `unlock-lens price` wrote into the folder, a `TaskPrice` for each metric of each task.
        provenance: versions, models, task.
    """

    config: Mapping[str, Any]
    lines: tuple[Line, ...]
    problems: Mapping[str, Any] | None = None
    geometry: Mapping[str, Any] | None = None
    diagnosis: Mapping[str, Any] | None = None
    benchmarks: Sequence[Mapping[str, Any]] | None = None
    provenance: Mapping[str, Any] | None = None

    @classmethod
    def load(cls, folder: str | Path) -> Results:
        """Read a sweep's folder, finished or not; if a configuration occurs twice, its first line counts.

        Raises:
            InvalidInput: it is not a sweep's folder, or holds no finished configuration.
        """
        import yaml

        folder = Path(folder)
        if not (folder / CONFIG).is_file():
            raise InvalidInput(f"{folder} is not the folder of a sweep (it has no {CONFIG}); run `unlock-lens sweep` first")
        lines, _ = read_lines(folder / LINES)
        if not lines:
            raise InvalidInput(f"{folder} holds no finished configuration yet; run `unlock-lens sweep` again to resume it")
        first: dict[str, Line] = {}
        for line in lines:
            first.setdefault(key_of(line["config"], line["split"]), line)
        files = {name: folder / f"{name}.json" for name in DESCRIPTIONS}
        described = {name: json.loads(file.read_text(encoding="utf-8")) for name, file in files.items() if file.is_file()}
        return cls(yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8")), tuple(first.values()), **described)

    def frame(self) -> pd.DataFrame:
        """One row for each finished configuration, its `config` spread over columns (`n` of the config becomes `n_pairs`)."""
        import pandas as pd

        configs = [{"n_pairs" if key == "n" else key: value for key, value in line["config"].items()} for line in self.lines]
        lines = zip(configs, self.lines, strict=True)
        return pd.DataFrame([{**config, **{k: v for k, v in line.items() if k != "config"}} for config, line in lines])

    @property
    def capability(self) -> str | None:
        return self.config.get("capability", {}).get("name")

    def trained(self, control: str | None = None) -> list[Line]:
        """The lines of the train split for the swept capability: of the grid, or of one control."""
        return [line for line in self._mine("train") if line["config"]["control"] == control]

    def tested(self) -> dict[str, list[Line]]:
        """The lines of the test split for the swept capability, one a seed: "transferred", then its controls.

        In a model contrast nothing is prompted: there "post_trained" is the target's own unlocked model.
        """
        post_trained = self.config.get("capability", {}).get("target_unlocked")
        found: dict[str, list[Line]] = {}
        for line in self._mine("test"):
            name = line["config"]["control"] or TRANSFERRED
            found.setdefault(POST_TRAINED if post_trained and name == PROMPTED else name, []).append(line)
        return found

    def arms(self) -> dict[str, Line]:
        """One line of `tested` for each arm; of several seeds the least flattering: the best control, the worst transfer."""
        return {
            name: (min if name == TRANSFERRED else max)(lines, key=lambda line: line["accuracy"])
            for name, lines in self.tested().items()
        }

    def nulls(self) -> list[list[Line]]:
        """The train lines of each null source, one list a source, in the order in which they were drawn."""
        found: dict[int, list[Line]] = {}
        for line in self.trained(NULL):
            found.setdefault(line["config"]["seed"], []).append(line)
        return list(found.values())

    def chosen(self) -> Line | None:
        """The transferred line of the test split; before there is one, the best of the grid on train; None without either."""
        return self.arms().get(TRANSFERRED) or max(self.trained(), key=lambda line: line["accuracy"], default=None)

    def _mine(self, split: str) -> list[Line]:
        """Lines of one split for the swept capability."""
        return [line for line in self.lines if line["split"] == split and line["config"].get("capability") == self.capability]


def key_of(config: Mapping[str, Any], split: str) -> str:
    """What tells the lines of a results file apart."""
    return json.dumps([split, config], sort_keys=True)


def read_lines(file: Path) -> tuple[list[Line], bytes]:
    """The whole lines of a results file, and what a cut-off one at its end left."""
    if not file.is_file():
        return [], b""
    whole, newline, rest = file.read_bytes().rpartition(b"\n")
    try:
        lines = [json.loads(line) for line in (whole + newline).splitlines() if line.strip()]
    except ValueError as error:
        raise InvalidInput(f"{file} is damaged before its last line ({error}); move it away and run the sweep again") from error
    return lines, rest


def mend(file: Path) -> list[Line]:
    """The whole lines of a results file; a cut-off one at its end is set aside with a warning."""
    lines, rest = read_lines(file)
    if rest.strip():
        damaged = file.with_name(DAMAGED)
        with damaged.open("ab") as kept:
            kept.write(rest + b"\n")
        os.truncate(file, file.stat().st_size - len(rest))
        told = "%s ended in the middle of a line; its %d finished configurations are kept, the rest is in %s and is run again"
        logger.warning(told, file.name, len(lines), damaged.name)
    return lines


def append(file: Path, line: Line) -> None:
    """Add one line, on disk when this returns."""
    with file.open("a", encoding="utf-8") as out:
        out.write(json.dumps(line) + "\n")
        out.flush()
        os.fsync(out.fileno())


def write_whole(file: Path, content: str) -> None:
    """Write a file whole or not at all."""
    temporary = file.with_name(f".{file.name}.part")
    temporary.write_text(content, encoding="utf-8")
    os.replace(temporary, file)
