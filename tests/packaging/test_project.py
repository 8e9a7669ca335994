"""What the project's own settings say of each other: Pythons, pins, targets, workflows."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import unlock_lens

ROOT = Path(__file__).parents[2]
SETTINGS = (ROOT / "pyproject.toml").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()
PYTHONS = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', SETTINGS)


def pins(python: str) -> dict[str, str]:
    """The version that constraints.txt allows of each package, on a Python."""
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    held = [pin for pin in map(Requirement, lines) if pin.marker is None or pin.marker.evaluate({"python_version": python})]
    found: dict[str, str] = {canonicalize_name(pin.name): str(pin.specifier).removeprefix("==") for pin in held}
    assert len(found) == len(held), "a package is pinned twice"
    return found


def requirements() -> list[Requirement]:
    """Every requirement in pyproject.toml: those of the package and of all extras."""
    project = SETTINGS[: SETTINGS.index("[project.scripts]")]
    arrays = re.findall(
        r"^([\w-]+) = \[\n((?: +\".*\",\n)*)\]", project[project.index("dependencies = [") :], flags=re.MULTILINE
    )
    assert {name for name, _ in arrays} >= {"dependencies", "all", "dev", "evidence", "nnsight", "transformer-lens"}
    found = [Requirement(text) for _, array in arrays for text in re.findall(r'"(.*)"', array)]
    return [requirement for requirement in found if requirement.name != "unlock-lens"]


def workflow(name: str) -> Any:
    return yaml.safe_load((ROOT / f".github/workflows/{name}.yml").read_text())


@pytest.mark.parametrize("python", PYTHONS)
def test_what_is_required_is_pinned_within_its_range(python: str) -> None:
    pinned = pins(python)
    asked = [(str(one), pinned.get(canonicalize_name(one.name)), one.specifier) for one in requirements()]
    assert [one for one, pin, range_ in asked if pin is None or not range_.contains(pin)] == []


@pytest.mark.parametrize(("name", "command"), [("ci", ".ci/run"), ("nightly", "make test-all")])
def test_continuous_integration_runs_on_every_python_that_is_named(name: str, command: str) -> None:
    (job,) = workflow(name)["jobs"].values()
    assert job["strategy"]["matrix"]["python"] == PYTHONS == ["3.10", "3.11", "3.12", "3.13"]
    assert job["env"]["PYTHON"] == "python"
    assert job["steps"][-1] == {"run": command}


@pytest.mark.parametrize("name", ["ci", "docs", "nightly", "release"])
def test_workflows_may_only_read_unless_a_job_says_more(name: str) -> None:
    assert workflow(name)["permissions"] == {"contents": "read"}


@pytest.mark.parametrize("name", ["ci", "docs", "nightly", "release"])
def test_versions_in_workflows_are_counted_from_all_tags(name: str) -> None:
    steps = [step for job in workflow(name)["jobs"].values() for step in job["steps"]]
    checkouts = [step for step in steps if step.get("uses", "").startswith("actions/checkout@")]
    assert {step["with"]["fetch-depth"] for step in checkouts} == {0}


@pytest.mark.parametrize("file", sorted((ROOT / ".github/workflows").glob("*.yml")), ids=lambda file: file.stem)
def test_actions_are_pinned_by_their_commit(file: Path) -> None:
    """Whoever moves a tag would run code in our name; the version stands beside it as a comment."""
    used = re.findall(r"uses: (.*)", file.read_text())
    assert used
    assert [each for each in used if not re.fullmatch(r"[\w/-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", each)] == []


def test_what_is_published_is_made_without_an_extra_index() -> None:
    jobs = workflow("release")["jobs"]
    assert set(jobs["publish"]["needs"]) == {"build", "test"}
    for name in ("build", "publish"):
        assert "INDEX" not in str(jobs[name])
    uploads = [name for name, job in jobs.items() if "upload-artifact" in str(job)]
    assert uploads == ["build"]


def test_every_target_is_listed_and_phony() -> None:
    listed = set(re.findall(r"^([a-z0-9-]+):.* ## ", MAKEFILE, flags=re.MULTILINE))
    (phony,) = re.findall(r"^\.PHONY: (.*)", MAKEFILE.replace("\\\n", " "), flags=re.MULTILINE)
    assert set(phony.split()) == listed


def test_ci_run_names_targets_that_there_are() -> None:
    commands = re.findall(r"^make (.*)$", (ROOT / ".ci/run").read_text(), flags=re.MULTILINE)
    targets = [target for command in commands for target in command.split() if not target.startswith("$")]
    assert {target for target in targets if not re.search(rf"^{target}:", MAKEFILE, flags=re.MULTILINE)} == set()
    assert {"check", "test"} <= set(targets)


def test_types_are_offered_to_type_checkers() -> None:
    assert Path(unlock_lens.__file__).with_name("py.typed").is_file()
