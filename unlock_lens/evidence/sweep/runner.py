"""Sweeps: every choice is made on the train split, and reported once on the test split, with its controls.

A finished setting is one line of `results.jsonl`, on disk before the next begins, so that a stopped sweep can be resumed.
Settings with the same prompts run and finish together, up to 16 of them, because the prompts are then read once.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Generator, Hashable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from tqdm.auto import tqdm

from unlock_lens.core.writing import using
from unlock_lens.errors import InvalidInput, UnlockLensError, plain
from unlock_lens.evidence import results
from unlock_lens.evidence.results import (
    AT_PRICE,
    FORCED,
    GROUPS,
    NAIVE,
    NULL,
    PROMPTED,
    SEEDED,
    UNSTEERED,
    Line,
    Results,
    key_of,
)
from unlock_lens.evidence.statistics import sample_size_in_words
from unlock_lens.evidence.sweep.captures import FOLDER, Captures
from unlock_lens.evidence.sweep.config import Setting, SweepConfig, difference
from unlock_lens.evidence.sweep.description import forecast, inputs, problems, provenance
from unlock_lens.evidence.sweep.geometry import geometry
from unlock_lens.evidence.sweep.material import PAPER_ALPHAS, PAPER_RANKS, Material
from unlock_lens.evidence.sweep.measurement import alike, at_price, described, evaluated, measured

logger = logging.getLogger(__name__)


def run(config: SweepConfig, folder: str | Path, progress: bool = True) -> Results:
    """Run a sweep into a folder, which is created if it is missing, or resume the one that is in it.

    Raises:
        InvalidInput: the folder holds another sweep (the difference is shown), or a value that the models do not allow.
        UnsupportedModel: no backend supports the model.
        RemoteError: as `generate`, where models run on a server.
        DiskError: the folder's disk is full or read-only, or the folder was removed; what is finished is kept and resumed.

    Example:
        >>> import tempfile
        >>> from unlock_lens.evidence import recipes, sweep
        >>> config = recipes.smallest()  # one rank, one strength, few problems of the embedded family
        >>> found = sweep.run(config, tempfile.mkdtemp(), progress=False)
        >>> found.arms()["transferred"]["accuracy"] > 0.9
        True
    """
    folder = Path(folder)
    check_folder(folder, config)
    with using(folder, "made"):
        folder.mkdir(parents=True, exist_ok=True)
    with _alone_in(folder):
        done = results.mend(folder / results.LINES)
        material = Material(config, progress)
        made_from = inputs(material)
        _check_inputs(folder / "inputs.json", made_from, bool(done))
        material.kept = Captures(folder / FOLDER, _fixed(config) + json.dumps(made_from))
        results.write_whole(folder / results.CONFIG, config.to_yaml())
        with tqdm(total=count(config, material), desc=plain(config.name, 80), unit="run", disable=not progress) as bar:
            runner = _Runner(material, folder / results.LINES, done, bar)
            runner.rehearse()
            _describe(folder, {"problems": problems, "provenance": provenance}, material, anew=not done)
            chosen = runner.run()
        late = {"geometry": geometry, "diagnosis": lambda material, chosen: forecast(material, chosen).to_json()}
        _describe(folder, late, material, chosen, anew=len(runner.lines) > len(done))
        material.kept.clear()
    return Results.load(folder)


_TOGETHER = 16
"""Settings that run together at most: so many are run again where a sweep is stopped."""
AXES = ("aligner", "n", "aggregate", "position", "layer_map", "layers", "rank", "operation", "positions", "alpha", "method")


def grid(config: SweepConfig, capability: str) -> list[Setting]:
    """All settings of a config's grid, for one capability."""
    settings = product(*(getattr(config.grid, axis) for axis in AXES))
    return [Setting(capability, **dict(zip(AXES, values, strict=True))) for values in settings]


_MAPPED = ("shuffled", "unaligned", "wrong", "placebo", "same_end", "minus", "without_mean", "naive", NULL)
"""Controls that a map makes, or that are made of what a map made: they choose among all settings, as the transfer does."""


def candidates(config: SweepConfig, chosen: Setting, control: str, seed: int, widest: int) -> list[Setting]:
    """What an arm may choose from: as many settings as the transfer, wherever they make a difference to it.

    `widest` is the largest rank that the models allow.
    """
    if control in _MAPPED:
        return [replace(setting, control=control, seed=seed) for setting in grid(config, chosen.capability)]
    if control == "paper":
        alphas = sorted({*PAPER_ALPHAS, *config.grid.alpha})
        ranks = [rank for rank in PAPER_RANKS if rank <= widest]
        base = replace(chosen, control=control, seed=seed, aligner="paper", method="unlock")
        tried = product(("mean", "pca"), config.grid.n, ranks, alphas)
        return [replace(base, aggregate=how, n=n, rank=rank, alpha=alpha) for how, n, rank, alpha in tried]
    base = replace(chosen, control=control, seed=seed)
    if control == "own":
        base = replace(base, aligner=None, method=None, rank=None)
    return [replace(base, alpha=alpha) for alpha in config.grid.alpha]


def count(config: SweepConfig, material: Material) -> int:
    """How many lines a whole sweep has; its models and problems (`material`) decide which controls can be run."""
    settings = grid(config, config.capability.name)
    tried = {name: len(candidates(config, settings[0], name, 0, material.widest)) for name in (*material.controls, NULL)}
    seeds = {name: _seeds(config, name) for name in material.controls if name not in GROUPS}
    of_controls = sum(n * (tried[name] + 1) for name, n in seeds.items()) + config.nulls * tried[NULL]
    of_controls += sum(_seeds(config, arm) for name in material.controls for arm in GROUPS.get(name, ()))
    own_prompts = sum(other.plain != config.capability.plain for other in config.others)
    baselines = 1 + material.can_ask + (NAIVE in seeds) + own_prompts
    others = len(config.others) * (len(config.grid.alpha) * len(config.grid.rank) + 1)
    return baselines + len(settings) + 1 + of_controls + others


class _Runner:
    """Runs settings one after the other; what has a line already is not run again."""

    def __init__(self, material: Material, file: Path, done: Sequence[Line], bar: Any) -> None:
        self.material, self.config, self.file, self.bar = material, material.config, file, bar
        self.lines = {key_of(line["config"], line["split"]): line for line in done}
        self.bar.update(len(self.lines))

    def rehearse(self) -> None:
        """Make every direction of the grid, and one of each control, so that what cannot work is known before any run."""
        settings = grid(self.config, self.config.capability.name)
        for setting in settings:
            self.material.steer(setting)
        for control in [name for name in self.material.controls if name not in (*SEEDED, *GROUPS)]:
            tried = [candidates(self.config, setting, control, 0, self.material.widest)[0] for setting in settings]
            try:
                for setting in tried:
                    self.material.steer(setting)
            except UnlockLensError as error:
                logger.warning("the control %s is left out: %s", control, error)
                self.material.left_out[control] = str(error)
        self.bar.total = count(self.config, self.material)

    def run(self) -> Setting:
        """The whole sweep; returns the chosen setting."""
        name = self.config.capability.name
        unsteered = self.test(Setting(name, UNSTEERED))
        if warning := sample_size_in_words(unsteered["n"], unsteered["accuracy"]):
            logger.warning("%s", warning)
        if self.material.can_ask:
            self.test(Setting(name, PROMPTED))
        chosen = self.best(grid(self.config, name))
        self.test(chosen)
        seeds = {control: _seeds(self.config, control) for control in self.material.controls if control not in GROUPS}
        tried = [self._candidates(chosen, control, seed) for control, n in seeds.items() for seed in range(n)]
        self.together([setting for of_arm in tried for setting in of_arm], "train")
        self.together([self.best(of_arm) for of_arm in tried], "test")
        for control in FORCED if "forced" in self.material.controls else ():
            self.line(Setting(name, control), "test", unsteered, self.test(chosen))
        if "at_price" in self.material.controls:
            self._at_price(chosen)
        nulls = [self._candidates(chosen, NULL, seed) for seed in range(self.config.nulls)]
        self.together([setting for of_null in nulls for setting in of_null], "train")  # judged there, as the transfer is
        for other in self.config.others:  # with the chosen calibration, at every rank and strength
            tried = product(self.config.grid.rank, self.config.grid.alpha)
            settings = [replace(chosen, capability=other.name, rank=rank, alpha=alpha) for rank, alpha in tried]
            self.test(self.best(settings, lambda line, name=other.name: line["behaviours"][name]))
        return chosen

    def _at_price(self, chosen: Setting) -> None:
        kl = self.test(chosen)["price"]["kl"]
        for arm, control in AT_PRICE.items():
            for seed in range(_seeds(self.config, arm)):
                like = self._candidates(chosen, control, seed)[0]
                self.test(at_price(self.material, replace(like, control=arm, alpha=chosen.alpha), kl))

    def _candidates(self, chosen: Setting, control: str, seed: int) -> list[Setting]:
        return candidates(self.config, chosen, control, seed, self.material.widest)

    def together(self, settings: Sequence[Setting], split: str) -> None:
        """Measure what has no line yet; settings with the same prompts at once."""
        groups: dict[Hashable, list[Setting]] = {}
        for setting in dict.fromkeys(settings):
            if key_of(asdict(setting), split) not in self.lines:
                groups.setdefault(alike(self.material, setting), []).append(setting)
        for group in groups.values():
            for first in range(0, len(group), _TOGETHER):
                some = group[first : first + _TOGETHER]
                for setting, found in zip(some, evaluated(self.material, some, split), strict=True):
                    baseline = self._baseline(setting) if split == "test" else None
                    self._keep(setting, split, described(self.material, setting, split, found, baseline))

    def best(self, settings: Sequence[Setting], score: Callable[[Line], float] = lambda line: line["accuracy"]) -> Setting:
        """The setting that scores best on the train split.

        Among equals the one of middle strength, and among those of middle rank (of an even number the upper middle), because
        the ends of a plateau are close to its edge.
        """
        self.together(settings, "train")
        scores = [score(self.line(setting, "train")) for setting in settings]
        equals = [setting for setting, value in zip(settings, scores, strict=True) if value == max(scores)]
        of_alpha = _middle(equals, lambda setting: setting.alpha or 0.0)
        return _middle(of_alpha, lambda setting: setting.rank or 0)[0]

    def test(self, setting: Setting) -> Line:
        return self.line(setting, "test", self._baseline(setting))

    def _baseline(self, setting: Setting) -> Line | None:
        """The test line that a steered setting is paired with."""
        return None if setting.alpha is None else self.test(self.material.baseline(setting))

    def line(self, setting: Setting, split: str, *of: Line | None) -> Line:
        """The result of one setting on one split, measured only if the results file does not hold it yet."""
        key = key_of(asdict(setting), split)
        if key not in self.lines:
            self._keep(setting, split, measured(self.material, setting, split, *of))
        return self.lines[key]

    def _keep(self, setting: Setting, split: str, found: Mapping[str, Any]) -> None:
        config = asdict(setting)
        line = {"config": config, "split": split, **found}
        results.append(self.file, line)
        self.lines[key_of(config, split)] = line
        self.bar.update()


def check_folder(folder: Path, config: SweepConfig) -> None:
    """Raise InvalidInput unless the folder is new, or holds a sweep of this config.

    Its name, `batch_size` and `device` may change.
    """
    file = folder / results.CONFIG
    if folder.exists() and not folder.is_dir():
        raise InvalidInput(f"{folder} is a file; give a folder")
    if not file.is_file():
        # Hidden files are ours: a lock, or what an interrupted write left.
        if folder.is_dir() and any(not other.name.startswith(".") for other in folder.iterdir()):
            raise InvalidInput(f"{folder} has other files but no {results.CONFIG}; give a new folder")
        return
    if not results.read_lines(folder / results.LINES).lines:
        return  # whatever the config was, nothing was made with it
    if changed := difference(_fixed(SweepConfig.load(file)), _fixed(config)):
        raise InvalidInput(f"{folder} holds a sweep of another config; give a new folder, or undo this change:\n{changed}")


def _fixed(config: SweepConfig) -> str:
    """The config without what may change while a sweep is resumed."""
    return config.model_copy(update={"name": "", "batch_size": 1, "device": None}).to_yaml()


@contextmanager
def _alone_in(folder: Path) -> Generator[None, None, None]:
    """Two processes in one folder would run everything twice."""
    lock = FileLock(folder / ".lock", timeout=0)
    with using(folder):
        try:
            lock.acquire()
        except Timeout:  # an OSError too
            told = f"another process is running this sweep in {folder}; wait for it, or give a new folder"
            raise InvalidInput(told) from None
    try:
        yield
    finally:
        lock.release()


def _describe(folder: Path, parts: Mapping[str, Callable[..., Mapping[str, Any]]], *of: Any, anew: bool) -> None:
    """Write what is missing, or everything anew; what cannot be made (too few tokens, say) is left out with a warning."""
    for name, make in parts.items():
        file = folder / f"{name}.json"
        if not anew and results.read_description(file) is not None:
            continue
        try:
            content = json.dumps(make(*of), indent=1) + "\n"
        except UnlockLensError as error:
            logger.warning("%s is left out: %s", file.name, error)
        else:
            results.write_whole(file, content)


def _check_inputs(file: Path, now: Mapping[str, Any], begun: bool) -> None:
    """Models, problems, texts and the library must be those with which the sweep began."""
    content = json.dumps(now, indent=1) + "\n"
    held = results.read_description(file) if begun else None
    if held is not None:
        held = {name: held.get(name, value) for name, value in now.items()}  # older folders lack some
        if changed := difference(json.dumps(held, indent=1) + "\n", content):
            told = "was started with other models, problems or texts, or another version of the library; give a new folder"
            raise InvalidInput(f"{file.parent} {told}:\n{changed}")
    results.write_whole(file, content)


def _middle(settings: Sequence[Setting], value: Callable[[Setting], float]) -> list[Setting]:
    """The settings at the middle one of their different values; of an even number the upper middle."""
    values = sorted({value(setting) for setting in settings})
    return [setting for setting in settings if value(setting) == values[len(values) // 2]]


def _seeds(config: SweepConfig, control: str) -> int:
    if control == "wrong":
        return len(config.others)
    return config.control_seeds if AT_PRICE.get(control, control) in SEEDED else 1
