"""Sweeps: every choice is made on the train split, and reported once on the test split, beside its controls.

A finished configuration is one line of `results.jsonl`, on disk before the next begins, so a sweep that is stopped goes on.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from tqdm.auto import tqdm

from unlock_lens.errors import InvalidInput, UnlockLensError
from unlock_lens.evidence import results
from unlock_lens.evidence.results import PROMPTED, SEEDED, Line, Results
from unlock_lens.evidence.statistics import sample_size_in_words
from unlock_lens.evidence.sweep.config import SweepConfig, difference
from unlock_lens.evidence.sweep.description import described, inputs, problems, provenance
from unlock_lens.evidence.sweep.material import Material
from unlock_lens.evidence.sweep.measurement import on_test, on_train
from unlock_lens.evidence.sweep.setting import NAIVE, UNSTEERED, Setting

logger = logging.getLogger(__name__)
INPUTS = "inputs.json"


def run(config: SweepConfig, folder: str | Path, progress: bool = True) -> Results:
    """Run a sweep into a folder, or go on with the one that is there.

    Args:
        config: what to do.
        folder: made if it is missing.
        progress: whether to show a bar with the time left.

    Raises:
        InvalidInput: the folder holds another sweep (the difference is shown), or a value that the models do not allow.
        UnsupportedModel: a model that no backend serves.
        RemoteError: as `generate`, where models run on a server.

    Source: docs/evidence.md.

    Example:
        >>> import tempfile
        >>> from unlock_lens.evidence import recipes
        >>> from unlock_lens.evidence import sweep
        >>> config = recipes.smallest()  # one rank, one strength, few problems of the embedded family
        >>> found = sweep.run(config, tempfile.mkdtemp(), progress=False)
        >>> found.arms()["transferred"]["accuracy"] > 0.9
        True
    """
    folder = Path(folder)
    check_folder(folder, config)
    folder.mkdir(parents=True, exist_ok=True)
    with _alone_in(folder):
        done = results.mend(folder / results.LINES)
        material = Material(config, progress)
        _check_inputs(folder / INPUTS, inputs(material), bool(done))
        results.write_whole(folder / results.CONFIG, config.to_yaml())
        with tqdm(total=count(config, material), desc=config.name, unit="run", disable=not progress) as bar:
            runner = _Runner(material, folder / results.LINES, done, bar)
            runner.rehearse()
            at_once = {"problems": lambda: problems(material), "provenance": lambda: provenance(material)}
            _describe(folder, at_once, anew=not done)
            chosen = runner.run()
        _describe(folder, described(material, chosen), anew=len(runner.lines) > len(done))
    return Results.load(folder)


AXES = ("aligner", "n", "aggregate", "position", "layer_map", "layers", "rank", "operation", "positions", "alpha", "method")


def grid(config: SweepConfig, capability: str) -> list[Setting]:
    """All settings of a config's grid.

    Args:
        config: what the sweep does.
        capability: name of the one that is swept.

    Source: docs/evidence.md.

    Example:
        >>> from unlock_lens.evidence import recipes
        >>> from unlock_lens.evidence import sweep
        >>> [(setting.capability, setting.rank, setting.alpha) for setting in sweep.grid(recipes.smallest(), "think")]
        [('think', 48, 0.5)]
    """
    settings = product(*(getattr(config.grid, axis) for axis in AXES))
    return [Setting(capability, **dict(zip(AXES, values, strict=True))) for values in settings]


def candidates(config: SweepConfig, chosen: Setting, control: str, seed: int) -> list[Setting]:
    """What a control may choose from: as the transfer its strength, and the paper's calibration its rank too."""
    base = replace(chosen, control=control, seed=seed)
    if control == "paper":
        base, ranks = replace(base, aligner="paper", method="unlock"), config.grid.rank
    elif control == "own":
        base, ranks = replace(base, aligner=None, method=None), (None,)
    else:
        ranks = (chosen.rank,)
    return [replace(base, rank=rank, alpha=alpha) for rank, alpha in product(ranks, config.grid.alpha)]


def count(config: SweepConfig, material: Material) -> int:
    """How many lines a whole sweep has.

    Args:
        config: what the sweep does.
        material: its models and problems, which tell what controls can be had.

    Source: docs/evidence.md.

    Example:
        >>> from unlock_lens.evidence import recipes
        >>> from unlock_lens.evidence import sweep
        >>> from unlock_lens.evidence.sweep.material import Material
        >>> config = recipes.smallest()
        >>> sweep.count(config, Material(config, progress=False))
        10
    """
    alphas, ranks = len(config.grid.alpha), len(config.grid.rank)
    seeds = {name: _seeds(config, name) for name in material.controls}
    of_controls = sum(n * (alphas * (ranks if name == "paper" else 1) + 1) for name, n in seeds.items())
    own_prompts = sum(other.locked != config.capability.locked for other in config.others)
    baselines = 1 + material.can_ask + (NAIVE in seeds) + own_prompts
    return baselines + len(grid(config, "")) + 1 + of_controls + len(config.others) * (alphas * ranks + 1)


class _Runner:
    """Runs settings one after the other; what has a line already is not run again."""

    def __init__(self, material: Material, file: Path, done: Sequence[Line], bar: Any) -> None:
        self.material, self.config, self.file, self.bar = material, material.config, file, bar
        self.lines = {_key(line["config"], line["split"]): line for line in done}
        self.bar.update(len(self.lines))

    def rehearse(self) -> None:
        """Make every direction of the grid, and one of each control: what cannot work is known before any run."""
        settings = grid(self.config, self.config.capability.name)
        for setting in settings:
            self.material.steer(setting)
        for control in [name for name in self.material.controls if name not in SEEDED]:
            why = self._impossible(control, settings)
            if why:
                logger.warning("the control %s is left out: %s", control, why)
                self.material.left_out[control] = why
        self.bar.total = count(self.config, self.material)

    def _impossible(self, control: str, settings: Sequence[Setting]) -> str | None:
        """Why a control cannot be had."""
        try:
            for setting in settings:
                self.material.steer(candidates(self.config, setting, control, 0)[0])
        except UnlockLensError as error:
            return str(error)
        return None

    def run(self) -> Setting:
        """The whole sweep; returns the chosen setting."""
        name = self.config.capability.name
        unsteered = self.test(Setting(name, UNSTEERED))
        warning = sample_size_in_words(unsteered["n"], unsteered["accuracy"])
        if warning:
            logger.warning("%s", warning)
        if self.material.can_ask:
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

        Of equals the one of middle strength, and of those the one of middle rank: the ends of a plateau are close to its edge.
        """
        scores = [score(self.train(setting)) for setting in settings]
        equals = [setting for setting, value in zip(settings, scores, strict=True) if value == max(scores)]
        of_alpha = _middle(equals, lambda setting: setting.alpha or 0.0)
        return _middle(of_alpha, lambda setting: setting.rank or 0)[0]

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


def check_folder(folder: Path, config: SweepConfig) -> None:
    """Raise InvalidInput unless the folder is new, or holds a sweep of this config; its name and `batch_size` may change."""
    file = folder / results.CONFIG
    if folder.exists() and not folder.is_dir():
        raise InvalidInput(f"{folder} is a file; give a folder")
    if not file.is_file():
        # Hidden files are ours: a lock, or what an interrupted write left.
        if folder.is_dir() and any(not other.name.startswith(".") for other in folder.iterdir()):
            raise InvalidInput(f"{folder} holds other files, and no {results.CONFIG}; give a new folder")
        return
    held = SweepConfig.load(file).model_copy(update={"name": config.name, "batch_size": config.batch_size})
    changed = difference(held.to_yaml(), config.to_yaml())
    if changed and results.read_lines(folder / results.LINES)[0]:
        raise InvalidInput(f"{folder} holds a sweep of another config; give a new folder, or undo this change:\n{changed}")


@contextmanager
def _alone_in(folder: Path) -> Generator[None, None, None]:
    """Two processes in one folder would run everything twice."""
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise InvalidInput(f"another process is running this sweep in {folder}; wait for it, or give a new folder") from None
    try:
        yield
    finally:
        lock.release()


def _describe(folder: Path, parts: Mapping[str, Callable[[], Mapping[str, Any]]], anew: bool) -> None:
    """Write what is not there yet, or all; what cannot be had (too few tokens for a geometry, say) is told and left out."""
    for name, make in parts.items():
        file = folder / f"{name}.json"
        if anew or not file.is_file():
            _write_if_possible(file, make)


def _write_if_possible(file: Path, make: Callable[[], Mapping[str, Any]]) -> None:
    try:
        content = make()
    except UnlockLensError as error:
        logger.warning("%s is left out: %s", file.name, error)
        return
    results.write_whole(file, json.dumps(content, indent=1) + "\n")


def _check_inputs(file: Path, now: Mapping[str, Any], begun: bool) -> None:
    """Models, problems and texts must be those with which the sweep began."""
    told = json.dumps(now, indent=1) + "\n"
    if begun and file.is_file():
        changed = difference(file.read_text(encoding="utf-8"), told)
        if changed:
            raise InvalidInput(f"{file.parent} was begun with other models, problems or texts; give a new folder:\n{changed}")
    results.write_whole(file, told)


def _middle(settings: Sequence[Setting], value: Callable[[Setting], float]) -> list[Setting]:
    """Those whose value is in the middle of all values that there are."""
    values = sorted({value(setting) for setting in settings})
    return [setting for setting in settings if value(setting) == values[len(values) // 2]]


def _seeds(config: SweepConfig, control: str) -> int:
    return config.control_seeds if control in SEEDED else 1


def _key(config: Mapping[str, Any], split: str) -> str:
    told = Setting(**{name: value for name, value in config.items() if name in Setting.__dataclass_fields__})
    if told.method is None and told.aligner is not None:  # a line from before there were methods
        told = replace(told, method="unlock")
    return json.dumps([split, told.to_json()], sort_keys=True)
