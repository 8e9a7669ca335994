"""The version comes from git tags, by the settings in pyproject.toml."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.version import Version

ROOT = Path(__file__).parents[2]
# Repositories of their own, whatever git is set up to do for the one who runs this.
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith(("GIT_", "SETUPTOOLS_SCM_"))} | {
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """What the version depends on, outside any repository."""
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


@pytest.fixture
def repository(tree: Path) -> Path:
    git(tree, "init", "--quiet")
    git(tree, "add", ".")
    commit(tree)
    return tree


def git(tree: Path, *arguments: str) -> None:
    told = ("-c", "user.name=nobody", "-c", "user.email=nobody@example.org")
    subprocess.run(["git", *told, *arguments], cwd=tree, env=ENVIRONMENT, check=True, capture_output=True)


def commit(tree: Path) -> None:
    git(tree, "commit", "--quiet", "--allow-empty", "--message", "a change")


def version(tree: Path) -> Version:
    command = [sys.executable, "-m", "hatchling", "version"]
    done = subprocess.run(command, cwd=tree, env=ENVIRONMENT, check=True, capture_output=True, text=True)
    return Version(done.stdout.strip())


@pytest.mark.parametrize("release", ["1.2.3", "1.2.3rc1"])
def test_a_tagged_commit_has_the_version_of_its_tag(repository: Path, release: str) -> None:
    git(repository, "tag", f"v{release}")
    assert str(version(repository)) == release


def test_commits_after_a_tag_lie_between_it_and_the_next_patch(repository: Path) -> None:
    git(repository, "tag", "v1.2.3")
    commit(repository)
    first = version(repository)
    commit(repository)
    second = version(repository)
    assert Version("1.2.3") < first < second < Version("1.2.4")
    assert second.base_version == "1.2.4"
    assert second.dev == 2


def test_before_any_tag_it_is_a_development_version_of_the_first_release(repository: Path) -> None:
    commit(repository)
    assert version(repository).release == (0, 1, 0)
    assert version(repository).dev == 2


@pytest.mark.parametrize("tag", ["1.2.3", "v1.2", "data-2026"])
def test_other_tags_are_not_versions(repository: Path, tag: str) -> None:
    git(repository, "tag", tag)
    assert version(repository).release == (0, 1, 0)


def test_a_tree_without_git_has_the_fallback(tree: Path) -> None:
    assert str(version(tree)) == "0.1.0.dev0"
