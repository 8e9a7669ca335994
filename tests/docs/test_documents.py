"""What the documents show is what happens: their code blocks, configs and links, and the examples of docstrings."""

from __future__ import annotations

import doctest
import importlib
import inspect
import os
import pkgutil
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
import yaml

import unlock_lens
from unlock_lens import zoo
from unlock_lens.evidence.sweep import SweepConfig

ROOT = Path(__file__).parents[2]
START = (ROOT / "docs" / "start.md").read_text()
OWN_TEMPLATES = {
    "direct = [f": ("{question}\\nAnswer:", "{question}\\nAnswer: Let's think step by step."),
    "unlock-lens extract": ("{question} Answer:", "{question} Answer: Let's think step by step."),
}
"""Of docs/start.md's two examples with a pair of one's own."""
WITHIN = r"(?:(?!```).)*"
BLOCK = re.compile(rf"```python\n(?P<code>{WITHIN})```\n{WITHIN}```text\n(?P<output>{WITHIN})```", re.DOTALL)
DOCUMENTS = ("README.md", "AGENTS.md", "CONTRIBUTING.md", *sorted(f"docs/{file.name}" for file in (ROOT / "docs").glob("*.md")))
EXAMPLES = [(name, match) for name in DOCUMENTS for match in BLOCK.finditer((ROOT / name).read_text())]
CONFIGS = [
    (name, text) for name in DOCUMENTS for text in re.findall(r"```yaml\n(.*?)```", (ROOT / name).read_text(), re.DOTALL)
]
MODULES = [module.name for module in pkgutil.walk_packages(unlock_lens.__path__, "unlock_lens.")]


def test_every_code_block_is_run() -> None:
    blocks = sum((ROOT / name).read_text().count("```python") for name in DOCUMENTS)
    assert len(EXAMPLES) == blocks >= 6


@pytest.mark.parametrize(("name", "text"), CONFIGS)
def test_configs_in_documents_are_configs(name: str, text: str) -> None:
    assert SweepConfig.parse(yaml.safe_load(text), name).source == "zoo:large-base"


@pytest.mark.parametrize("name", [*DOCUMENTS, "CHANGELOG.md"])
def test_links_between_documents_lead_somewhere(name: str) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / name).read_text())
    assert [link for link in links if not ((ROOT / name).parent / link).exists()] == []


@pytest.mark.parametrize("name", [*DOCUMENTS, "CHANGELOG.md"])
def test_no_placeholder_is_left(name: str) -> None:
    assert not re.search(r"\b[A-Z]+_(TABLE|OUTPUT)\b|TODO|FIXME|@@", (ROOT / name).read_text())


@pytest.mark.parametrize(("name", "match"), EXAMPLES)
def test_documents_show_what_their_code_prints(name: str, match: re.Match[str], tmp_path: Path) -> None:
    (tmp_path / "example.py").write_text(match["code"])
    done = subprocess.run([sys.executable, tmp_path / "example.py"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == match["output"]


@pytest.mark.parametrize("module", MODULES)
def test_docstrings_examples_run(module: str) -> None:
    torch.manual_seed(0)
    found = importlib.import_module(module)
    assert doctest.testmod(found, extraglobs=dict(vars(unlock_lens))).failed == 0


def test_every_function_and_main_object_has_an_example() -> None:
    named = {name: getattr(unlock_lens, name) for name in unlock_lens.__all__}
    shown = [one for one in named.values() if inspect.isfunction(one)]
    shown += [unlock_lens.CapabilityDirection, unlock_lens.SubspaceAligner, unlock_lens.SteeringHook]
    assert len(shown) >= 9
    assert [one.__name__ for one in shown if ">>>" not in (one.__doc__ or "")] == []


def own_pair(lines: str) -> str:
    """What docs/start.md shows for a pair of one's own, with models and templates of the embedded family in it."""
    block = next(found for found in re.findall(r"(?:^    .*\n|^\n)+", START, re.MULTILINE) if lines in found)
    replacements = {
        "Qwen/Qwen2.5-1.5B-Instruct": str(zoo.path() / "large-base"),
        "Qwen/Qwen2.5-0.5B-Instruct": str(zoo.path() / "small-base"),
        OWN_TEMPLATES[lines][1]: "{question} think A :",
        OWN_TEMPLATES[lines][0]: "{question} A :",
    }
    for old, new in replacements.items():
        assert old in block, f"docs/start.md does not hold {old!r} any more"
        block = block.replace(old, new)
    return textwrap.dedent(block)


def test_getting_started_transfers_between_a_pair_of_your_own(tmp_path: Path) -> None:
    """Its code runs as it stands, with folders in place of hub ids; the strength that it finds brings the capability."""
    code = own_pair("direct = [f")
    given = "from unlock_lens import zoo\ntask = zoo.running_sum(n=128)\nsolutions = zoo.text(n=600)\n"
    given += "questions = [prompt.removesuffix(' A :') for prompt in task.direct]\n"
    (tmp_path / "pair.py").write_text(given + code)
    done = subprocess.run([sys.executable, tmp_path / "pair.py"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("The transfer is likely to work")
    assert re.search(r"\n0\.\d+ \['S 3 5 5 4 4 6 = 6', 'S 0 5 5 2 4 1 = 1'", done.stdout)


def test_the_readme_transfers_without_python(tmp_path: Path) -> None:
    """Its three commands, from two text files to completions side by side."""
    task = zoo.running_sum(n=64)
    (tmp_path / "questions.txt").write_text("\n".join(prompt.removesuffix(" A :") for prompt in task.direct))
    (tmp_path / "texts.txt").write_text("\n".join(zoo.text(n=300)))
    commands = own_pair("unlock-lens extract").replace("--alpha 0.1", "--alpha 0.5")
    bin_folder = str(Path(sys.executable).parent)
    done = subprocess.run(
        ["sh", "-euc", commands],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{bin_folder}:{os.environ['PATH']}", "COLUMNS": "200"},
    )
    assert done.returncode == 0, done.stderr
    assert "S 3 5 5 4 4 6 = 6" in done.stdout
