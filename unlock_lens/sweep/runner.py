"""Sweeps: every choice is made on the train split, and reported once on the test split, beside its controls.

A finished configuration is one line of `results.jsonl`, on disk before the next begins, so a sweep that is stopped goes on.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from unlock_lens import results
from unlock_lens.errors import InvalidInput
from unlock_lens.results import Line, Results
from unlock_lens.statistics import sample_size_in_words
from unlock_lens.sweep.config import SweepConfig, difference
from unlock_lens.sweep.description import described, inputs
from unlock_lens.sweep.material import Material, Setting
from unlock_lens.sweep.measurement import NAIVE, PROMPTED, UNSTEERED, on_test, on_train

logger = logging.getLogger(__name__)
SEEDED = ("random", "shuffled")
INPUTS = "inputs.json"


def run(config: SweepConfig, folder: str | Path, progress: bool = True) -> Results:
    """Run a sweep into a folder, or go on with the one that is there.

    Args:
        config: what to do.
        folder: made if it is missing.
        progress: whether to show a bar with the time left.

    Raises:
        InvalidInput: the folder holds another sweep (the difference is shown), or a value that the models do not allow.

    Example:
        >>> import tempfile
        >>> from unlock_lens import recipes, sweep
        >>> config = recipes.smallest()  # one rank, one strength, few problems of the embedded family
        >>> found = sweep.run(config, tempfile.mkdtemp(), progress=False)
        >>> found.arms()["transferred"]["accuracy"] > 0.9
        True
    """
    folder = Path(folder)
    claim(folder, config)
    done = results.mend(folder / results.LINES)
    material = Material(config, progress)
    _check_inputs(folder / INPUTS, inputs(material), bool(done))
    with tqdm(total=count(config, material.controls), desc=config.name, unit="run", disable=not progress) as bar:
        runner = _Runner(material, folder / results.LINES, done, bar)
        chosen = runner.run()
    for name, content in described(material, chosen).items():
        results.write_whole(folder / f"{name}.json", json.dumps(content, indent=1) + "\n")
    return Results.load(folder)


def grid(config: SweepConfig, capability: str) -> list[Setting]:
    """All settings of a config's grid."""
    g = config.grid
    axes = (g.aligner, g.n, g.aggregate, g.position, g.layer_map, g.layers, g.rank, g.operation, g.positions, g.alpha)
    return [Setting(capability, None, 0, *values) for values in product(*axes)]


def candidates(config: SweepConfig, chosen: Setting, control: str, seed: int) -> list[Setting]:
    """What a control may choose from: as the transfer its strength, and the paper's calibration its rank too."""
    base = replace(chosen, control=control, seed=seed)
    if control == "paper":
        base, ranks = replace(base, aligner="paper"), config.grid.rank
    elif control == "own":
        base, ranks = replace(base, aligner=None, layer_map=None), (None,)
    else:
        ranks = (chosen.rank,)
    return [replace(base, rank=rank, alpha=alpha) for rank, alpha in product(ranks, config.grid.alpha)]


def count(config: SweepConfig, controls: Sequence[str]) -> int:
    """How many lines a whole sweep has."""
    alphas, ranks = len(config.grid.alpha), len(config.grid.rank)
    of_controls = sum(_seeds(config, name) * (alphas * (ranks if name == "paper" else 1) + 1) for name in controls)
    own_prompts = sum(other.locked != config.capability.locked for other in config.others)
    baselines = (3 if NAIVE in controls else 2) + own_prompts
    return baselines + len(grid(config, "")) + 1 + of_controls + len(config.others) * (alphas * ranks + 1)


class _Runner:
    """Runs settings one after the other; what has a line already is not run again."""

    def __init__(self, material: Material, file: Path, done: Sequence[Line], bar: Any) -> None:
        self.material, self.config, self.file, self.bar = material, material.config, file, bar
        self.lines = {_key(line["config"], line["split"]): line for line in done}
        self.bar.update(len(self.lines))

    def run(self) -> Setting:
        """The whole sweep; returns the chosen setting."""
        name = self.config.capability.name
        unsteered = self.test(Setting(name, UNSTEERED))
        warning = sample_size_in_words(unsteered["n"], unsteered["accuracy"])
        if warning:
            logger.warning("%s", warning)
        self.test(Setting(name, PROMPTED))
        chosen = self.best(grid(self.config, name), lambda line: line["accuracy"])
        self.test(chosen)
        for control in self.material.controls:
            for seed in range(_seeds(self.config, control)):
                self.test(self.best(candidates(self.config, chosen, control, seed), lambda line: line["accuracy"]))
        for other in self.config.others:
            self.test(self.best(self._settings_of(other.name, chosen), lambda line, name=other.name: line["behaviours"][name]))
        return chosen

    def best(self, settings: Sequence[Setting], score: Callable[[Line], float]) -> Setting:
        """The setting that scores best on the train split.

        Of equals the one of middle strength: both ends of a plateau are close to its edge.
        """
        scores = [score(self.train(setting)) for setting in settings]
        equals = [setting for setting, value in zip(settings, scores, strict=True) if value == max(scores)]
        return sorted(equals, key=lambda setting: setting.alpha or 0.0)[len(equals) // 2]

    def train(self, setting: Setting) -> Line:
        return self._line(setting, "train", lambda: on_train(self.material, setting))

    def test(self, setting: Setting) -> Line:
        baseline = None if setting.alpha is None else self.test(self.material.baseline(setting))
        return self._line(setting, "test", lambda: on_test(self.material, setting, baseline))

    def _line(self, setting: Setting, split: str, measured: Callable[[], Mapping[str, Any]]) -> Line:
        key = _key(setting.to_json(), split)
        if key not in self.lines:
            line = {"config": setting.to_json(), "split": split, **measured()}
            results.append(self.file, line)
            self.lines[key] = line
            self.bar.update()
        return self.lines[key]

    def _settings_of(self, capability: str, chosen: Setting) -> list[Setting]:
        """Another capability, with the chosen calibration, at every rank and strength."""
        ranks_and_alphas = product(self.config.grid.rank, self.config.grid.alpha)
        return [replace(chosen, capability=capability, rank=rank, alpha=alpha) for rank, alpha in ranks_and_alphas]


def claim(folder: Path, config: SweepConfig) -> None:
    """Make the folder this config's.

    Raises:
        InvalidInput: it is another's, or not a sweep's.
    """
    file, told = folder / results.CONFIG, config.to_yaml()
    if folder.exists() and not folder.is_dir():
        raise InvalidInput(f"{folder} is a file; give a folder")
    if not file.is_file():
        if folder.is_dir() and any(folder.iterdir()):
            raise InvalidInput(f"{folder} holds other files, and no {results.CONFIG}; give a new folder")
        folder.mkdir(parents=True, exist_ok=True)
        results.write_whole(file, told)
        return
    changed = difference(file.read_text(encoding="utf-8"), told)
    if changed:
        raise InvalidInput(f"{folder} holds a sweep of another config; give a new folder, or undo this change:\n{changed}")


def _check_inputs(file: Path, now: Mapping[str, Any], begun: bool) -> None:
    """Models, problems and texts must be those with which the sweep began."""
    told = json.dumps(now, indent=1) + "\n"
    if begun and file.is_file():
        changed = difference(file.read_text(encoding="utf-8"), told)
        if changed:
            raise InvalidInput(f"{file.parent} was begun with other models, problems or texts; give a new folder:\n{changed}")
    results.write_whole(file, told)


def _seeds(config: SweepConfig, control: str) -> int:
    return config.control_seeds if control in SEEDED else 1


def _key(config: Mapping[str, Any], split: str) -> str:
    return json.dumps([split, config], sort_keys=True)
