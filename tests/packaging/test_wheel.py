"""What users install: the wheel, made from the sdist, in new environments (without extras, with most) and an empty folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.test_import import CORE

ROOT = Path(__file__).parents[2]
KINDS_OF_MODEL = ("base", "base-2", "duo", "post", "shared", "varied")
MODELS = (*(f"{size}-{kind}" for size in ("large", "small") for kind in KINDS_OF_MODEL), "small-gpt2", "small-naive")
MAX_BYTES = 14e6
# What is no Python: settings, pages, the family.
KINDS = {".py", ".css", ".js", ".j2", ".json", ".safetensors", ".typed", ".yaml"}
TRANSFER = """
import unlock_lens as ul
from unlock_lens import zoo

source, target = zoo.load("large-base", "{backend}"), zoo.load("small-base", "{backend}")
task, text = zoo.running_sum(n=20), zoo.text(n=200)
direction = ul.CapabilityDirection.extract(ul.Variant(source, task.direct), ul.Variant(source, task.think))
aligner = ul.SubspaceAligner(rank=48, centered=True, positions="all").fit(ul.Variant(source, text), ul.Variant(target, text))
steer = ul.SteeringHook(aligner.transport(direction), alpha=0.5)
print(task.behaviours(ul.generate(target, task.direct, steer=steer)).count("think"))
"""
NEEDS_GGUF = """
import torch, unlock_lens as ul
from unlock_lens.interchange import to_gguf

direction = ul.CapabilityDirection(torch.eye(1, 4), (2,))
to_gguf(ul.SteeringHook(direction, alpha=1.0, operation="add", positions="all"), "v.gguf", architecture="llama")
"""
NEEDS_MATH = 'from unlock_lens.evidence.tasks import scoring; scoring.math("2", scoring.Problem("1+1?", "2"))'
NEEDS_GYM = """
from unlock_lens.evidence.tasks.problems import Sizes
from unlock_lens.evidence.tasks.specs import ReasoningGymSpec

ReasoningGymSpec(dataset="chain_sum").splits(Sizes(extract=1, train=1, test=1), seed=0)
"""


@dataclass(frozen=True)
class Clean:
    """An environment that has the wheel and what it depends on, and a folder to work in."""

    bin: Path
    folder: Path

    def run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run one of its programs, without a network to the hub and without this repository on any path."""
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV", "JAXTYPING"))
        }
        return subprocess.run(
            [self.bin / program, *arguments],
            cwd=self.folder,
            env={**kept, "HOME": str(self.folder.parent), "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            check=False,
        )


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that was made from it: the one that is named, or a new one."""
    if os.environ["UNLOCK_LENS_WHEEL"] != "1":
        return ROOT / os.environ["UNLOCK_LENS_WHEEL"]
    folder = tmp_path_factory.mktemp("built")
    subprocess.run([sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="session")
def wheel(built: Path) -> Path:
    (found,) = built.glob("*.whl")
    return found


def environment(wheel: Path, folder: Path, extras: str = "") -> Clean:
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    command = [folder / "venv/bin/pip", "install", "--quiet", "--no-compile", "--constraint", ROOT / "constraints.txt"]
    subprocess.run([*command, f"{wheel}{extras}"], check=True, capture_output=True)
    (folder / "empty").mkdir()
    return Clean(folder / "venv/bin", folder / "empty")


@pytest.fixture(scope="session")
def core(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Clean:
    return environment(wheel, tmp_path_factory.mktemp("core"))


@pytest.fixture(scope="session")
def clean(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Clean:
    return environment(wheel, tmp_path_factory.mktemp("clean"), "[cli,evidence,nnsight,transformer-lens]")


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    held = {name for name in names if name.startswith("unlock_lens/")}
    assert tops == {"unlock_lens", "-".join(wheel.name.split("-")[:2]) + ".dist-info"}
    assert {Path(name).suffix for name in held} == KINDS
    assert not [name for name in held if "test" in name or "__pycache__" in name]


def test_the_wheel_holds_the_data_that_the_package_reads(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    parts = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
    assert {f"unlock_lens/zoo/models/{model}/{part}" for model in MODELS for part in parts} <= names
    assert {
        f"unlock_lens/evidence/recipes/{path.name}" for path in (ROOT / "unlock_lens/evidence/recipes").glob("*.yaml")
    } <= names
    assert {"unlock_lens/py.typed", "unlock_lens/evidence/report/page.html.j2", "unlock_lens/evidence/report/page.css"} <= names


def test_wheel_and_sdist_are_small(built: Path) -> None:
    assert {path.name for path in built.iterdir() if path.stat().st_size > MAX_BYTES} == set()


def test_the_sdist_holds_what_the_tests_need(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        tops = {name.split("/")[1] for name in archive.getnames()}
    assert {"CHANGELOG.md", "CITATION.cff", "LICENSE", "Makefile", "README.md", "constraints.txt", "docs", "mkdocs.yml"} <= tops
    assert {".ci", ".github", ".pre-commit-config.yaml", "pyproject.toml", "tests", "tutorials", "unlock_lens"} <= tops
    assert not {"runs", "build", "dist"} & tops


def test_importing_the_core_warns_of_nothing(core: Clean) -> None:
    done = core.run("python", "-W", "error", "-c", "import unlock_lens; print(unlock_lens.__file__)")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(core.bin.parent))


def test_the_core_alone_aligns_and_reads_files(core: Clean) -> None:
    done = core.run("python", "-c", CORE)
    assert done.returncode == 0, done.stderr


def test_its_metadata_has_the_version_of_the_wheel(clean: Clean, wheel: Path) -> None:
    done = clean.run("python", "-c", "from importlib.metadata import version; print(version('unlock-lens'))")
    assert done.stdout.strip() == wheel.name.split("-")[1]


def test_the_command_line_says_what_it_can_do(clean: Clean) -> None:
    done = clean.run("unlock-lens", "--help")
    assert done.returncode == 0, done.stderr
    assert {"demo", "extract", "align", "steer", "sweep", "report"} <= set(done.stdout.split())


def test_the_demo_transfers_and_leaves_nothing_behind(clean: Clean) -> None:
    done = clean.run("unlock-lens", "demo", "--n", "20", "--json")
    assert done.returncode == 0, done.stderr
    transfers = json.loads(done.stdout)["transfers"]
    assert len(transfers) == 4
    assert all(transfer["arms"]["transferred"]["accuracy"] >= 0.9 for transfer in transfers)
    assert all(transfer["arms"]["locked"]["accuracy"] <= 0.3 for transfer in transfers)
    assert list(clean.folder.iterdir()) == []


@pytest.mark.parametrize("backend", ["transformer_lens", "nnsight"])
def test_a_capability_is_transferred(clean: Clean, backend: str) -> None:
    done = clean.run("python", "-c", TRANSFER.format(backend=backend))
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "20"


@pytest.mark.parametrize(
    ("extra", "code"),
    [
        ("transformer-lens", "from unlock_lens import zoo; zoo.load('small-base')"),
        ("nnsight", "from unlock_lens import zoo; zoo.load('small-base', 'nnsight')"),
        ("evidence", "import unlock_lens as ul; ul.lens"),
    ],
)
def test_an_extra_that_the_core_lacks_is_named(core: Clean, extra: str, code: str) -> None:
    last = core.run("python", "-c", code).stderr.strip().splitlines()[-1]
    assert "MissingPackage" in last
    assert f"unlock-lens[{extra}]" in last


@pytest.mark.parametrize(
    ("package", "extra", "code"),
    [("gguf", "gguf", NEEDS_GGUF), ("math_verify", "tasks", NEEDS_MATH), ("reasoning_gym", "tasks", NEEDS_GYM)],
)
def test_a_missing_package_is_named(clean: Clean, package: str, extra: str, code: str) -> None:
    assert "ModuleNotFoundError" in clean.run("python", "-c", f"import {package}").stderr
    last = clean.run("python", "-c", code).stderr.strip().splitlines()[-1]
    assert last.startswith("unlock_lens.errors.")
    assert f"unlock-lens[{extra}]" in last
