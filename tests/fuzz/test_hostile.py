"""Files that were made to mislead (`hostile.zip`): each is refused, or read as what it says; honest ones among them are read.

Folders are kinds of files, names tell what was done. Files of the first format have a hash of their numbers alone, so that
seven of them are read with a name or a setting that somebody changed, and a warning.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest

from tests.fuzz import cases
from unlock_lens import interchange
from unlock_lens.core.inputs import read_texts
from unlock_lens.errors import ArtifactError, UnlockLensError
from unlock_lens.evidence.results import Results
from unlock_lens.evidence.sweep.config import SweepConfig

READ = {
    "artifacts": (
        "good", "aligner-good", "good-aligner", "basis-raw-to-..._", "bit_flip__aligner__sampled_-silently_wrong_object-008",
        "bit_flip__aligner__sampled_-silently_wrong_object-012", "bit_flip__direction__exhaustive_-silently_wrong_object-002",
        "header_characters-silently_wrong_object-014", "header_characters-silently_wrong_object-017",
        "header_characters-silently_wrong_object-018", "header_characters-silently_wrong_object-021",
    ),
    "gguf": ("good", "fuzz-00", "hint-ansi", "hint-array", "layer-1-and-01", "layer-999999"),
    "pt": ("good", "legacy-good", "coefficient-bool", "key-words", "tensor-bool", "tensor-f8", "tensor-param"),
    "jsonl": ("good", "1e400", "ansi", "arabic-digits", "bom", "exponent", "format", "infinity", "nul", "slot"),
    "yaml": (
        "good", "ansi-at-name", "bin-at-name", "binary-bad-at-name", "hex-at-name", "huge-at-name", "huge-int-at-sizes.test",
        "int_-at-max_new_tokens", "int_-at-sizes.test", "list-at-grid.alpha", "octal-at-name",
        "sexagesimal-at-max_new_tokens", "sexagesimal-at-seed",
    ),
    "cards": ("none",),
}  # fmt: skip
"""What is read; all else is refused. Descriptions and lines of a sweep's folder are left out one by one instead."""


def artifact(path: Path) -> str:
    try:
        return cases.use_direction(path)
    except ArtifactError as error:
        if "expected: direction" not in str(error):
            raise
    return cases.use_aligner(path)


def torch_file(path: Path) -> str:
    """What either importer makes of it."""
    try:
        return cases.use(interchange.from_lm_eval(path))
    except UnlockLensError:
        return cases.use(interchange.from_steering_vectors(path))


def card(path: Path) -> None:
    path.rename(path.with_name("README.md"))
    cases.use_card(path.with_name("README.md"))


READERS: dict[str, Callable[[Path], Any]] = {
    "artifacts": artifact,
    "gguf": lambda path: cases.use(interchange.from_gguf(path)),
    "pt": torch_file,
    "jsonl": read_texts,
    "yaml": lambda path: SweepConfig.load(path).to_yaml(),
    "cards": card,
}


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    with ZipFile(Path(__file__).with_name("hostile.zip")) as held:
        held.extractall(folder)
    return folder


@pytest.mark.parametrize("kind", READERS)
def test_a_hostile_file_is_refused_or_says_what_it_says(hostile: Path, kind: str, tmp_path: Path) -> None:
    read: set[str] = set()
    said: list[str] = []
    for file in sorted((hostile / kind).iterdir()):
        path = tmp_path / file.name
        path.write_bytes(file.read_bytes())
        began = time.process_time()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                READERS[kind](path)
            read.add(file.stem)
        except UnlockLensError as error:
            said.append(str(error))
        assert time.process_time() - began < cases.SLOW, file.name
    assert read == set(READ[kind])
    assert [told for told in said if not all(c.isprintable() or c in "\n\t" for c in told)] == []


def test_the_damaged_parts_of_a_sweeps_folder_are_left_out(
    hostile: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR, "unlock_lens")
    refused: set[str] = set()
    for damaged in sorted((hostile / "results").iterdir()):
        folder = tmp_path / damaged.name
        folder.mkdir()
        for name, content in cases.sweep_files().items():
            (folder / name).write_bytes(content)
        for file in damaged.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        try:
            found = Results.load(folder)
        except UnlockLensError:
            refused.add(damaged.name)
            continue
        for make in (found.frame, found.arms, found.nulls, found.chosen, found.tested):
            make()
        if damaged.name.startswith("result_line"):
            lines = (folder / "results.jsonl").read_text().splitlines()
            bad = "result_line,_a_key_missing-55" not in damaged.name  # what it lacks may be left out
            assert len(found.lines) == len(lines) - bad, damaged.name
    assert refused == {name for name in refused if name.startswith("config.yaml")}
    assert len(refused) == 10
