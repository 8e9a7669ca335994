"""The results of a sweep in its folder: one line for each finished configuration, and their descriptions."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlock_lens.core import writing
from unlock_lens.core.writing import sync_folder, using
from unlock_lens.errors import InvalidInput, plain

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
"""The unsteered target continues from the first 1, 3, 8 tokens that the steered one wrote."""
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
        config: the config (`config.yaml`).
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
            InvalidInput: it is not the folder of a sweep, or has no finished configuration.
        """
        from unlock_lens.core.yaml_files import read_yaml
        from unlock_lens.evidence.schema import ConfigOf, fault_of

        folder = Path(folder)
        if not (folder / CONFIG).is_file():
            raise InvalidInput(f"{folder} is not the folder of a sweep (it has no {CONFIG}); run `unlock-lens sweep` first")
        config = read_yaml(folder / CONFIG)
        if fault := fault_of(config, ConfigOf):
            raise InvalidInput(f"{folder / CONFIG} is not the config of a sweep ({fault}); restore the original")
        found = read_lines(folder / LINES)
        for number, why in found.bad.items():
            logger.warning("%s, line %d is left out: %s", folder / LINES, number, why)
        if not found.lines:
            raise InvalidInput(f"{folder} has no finished configuration yet; run `unlock-lens sweep` again to resume it")
        first: dict[str, Line] = {}
        for line in found.lines:
            first.setdefault(key_of(line["config"], line["split"]), line)
        described = {name: told for name in DESCRIPTIONS if (told := read_description(folder / f"{name}.json")) is not None}
        if "problems" in described and any(
            len(described["problems"].get(line["split"], ())) != line["n"] for line in first.values()
        ):
            logger.warning("%s is left out: its problems are not as many as those of the results", folder / "problems.json")
            del described["problems"]
        return cls(config, tuple(first.values()), **described)

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


@dataclass(frozen=True)
class Read:
    """A results file.

    Attributes:
        lines: those that are whole and agree with the schema and with each other, in order.
        bad: the number of each other one, counted from 1, and what is wrong with it.
        kept: the bytes of the lines that are not bad.
        aside: the bytes of those that are.
        rest: what a line that was cut off left at the end.
    """

    lines: list[Line]
    bad: Mapping[int, str]
    kept: bytes
    aside: bytes
    rest: bytes


def read_lines(file: Path) -> Read:
    """The lines of a results file, the bad ones apart from the others."""
    from unlock_lens.evidence.schema import LineOf

    with using(file, "read"):
        content = file.read_bytes() if file.is_file() else b""
    whole, newline, rest = content.rpartition(b"\n")
    numbered = [(i, raw) for i, raw in enumerate((whole + newline).split(b"\n"), start=1) if raw.strip()]
    parsed: dict[int, Any] = {}
    bad: dict[int, str] = {}
    for number, raw in numbered:
        line, fault = _checked(raw, LineOf)
        if fault:
            bad[number] = fault
        else:
            parsed[number] = line
    for split in ("train", "test"):  # arms are compared problem by problem
        sizes = [line["n"] for line in parsed.values() if line["split"] == split]
        usual = max(set(sizes), key=sizes.count, default=0)
        for number in [number for number, line in parsed.items() if line["split"] == split and line["n"] != usual]:
            bad[number] = f"it has {parsed.pop(number)['n']} problems, the others of the {split} split have {usual}"
    kept, aside = (b"".join(raw + b"\n" for i, raw in numbered if (i in bad) == is_bad) for is_bad in (False, True))
    return Read(list(parsed.values()), dict(sorted(bad.items())), kept, aside, rest)


def mend(file: Path) -> list[Line]:
    """The good lines of a results file; bad ones, and a cut-off one at its end, are set aside with a warning and run again."""
    found = read_lines(file)
    if not (found.bad or found.rest.strip()):
        return found.lines
    damaged = file.with_name(DAMAGED)
    with using(damaged), damaged.open("ab") as kept:
        kept.write(found.aside + (found.rest + b"\n" if found.rest.strip() else b""))
        kept.flush()
        os.fsync(kept.fileno())
    write_whole(file, found.kept.decode("utf-8"))
    if found.rest.strip():
        told = "%s ended in the middle of a line; its %d finished configurations are kept, the rest is in %s and is run again"
        logger.warning(told, file.name, len(found.lines), damaged.name)
    for number, why in found.bad.items():
        logger.warning("line %d of %s is moved to %s, and is run again: %s", number, file.name, damaged.name, why)
    return found.lines


def read_description(file: Path) -> Any:
    """What a description file holds; None, with a warning where there is one that cannot be trusted."""
    from unlock_lens.evidence.schema import DESCRIPTIONS as SCHEMAS
    from unlock_lens.evidence.schema import Inputs

    if not file.is_file():
        return None
    with using(file, "read"):
        raw = file.read_bytes()
    content, fault = _checked(raw, SCHEMAS.get(file.stem, Inputs))
    if fault:
        logger.warning("%s is left out: %s", file, fault)
    return content


def _checked(raw: bytes, kind: Any) -> tuple[Any, str | None]:
    """What some JSON holds, and what is wrong with it."""
    from unlock_lens.evidence.schema import fault_of

    try:
        content = json.loads(raw)
        json.dumps(content, ensure_ascii=False).encode("utf-8")  # half a character can be escaped, and be written nowhere
    except (ValueError, RecursionError) as error:
        return None, f"it is not JSON ({plain(str(error), 200)})"
    fault = fault_of(content, kind)
    return (None, fault) if fault else (content, None)


def append(file: Path, line: Line) -> None:
    """Add one line, on disk when this returns."""
    with using(file):
        is_new = not file.exists()
        with file.open("a", encoding="utf-8") as out:
            out.write(json.dumps(line) + "\n")
            out.flush()
            os.fsync(out.fileno())
        if is_new:
            sync_folder(file.parent)


def write_whole(file: Path, content: str) -> None:
    """Write a text file, on disk when this returns, or leave the old one."""
    writing.write_whole(file, content.encode("utf-8"))
