"""The recipes are the paper's experiments, and their configs run: on the embedded family, with the same keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import unlock_lens as ul
from tests.sweeps import sweep as made_up
from unlock_lens import recipes, report, sweep
from unlock_lens.evidence.results import Results
from unlock_lens.evidence.sweep import SweepConfig
from unlock_lens.evidence.sweep.material import PAPER_ALPHAS, PAPER_RANKS, Material

EXPERIMENTS = ("cot", "post-training", "icl")
TAGS = ("<atok>", "</atok>")
COT_FIGURES = {  # about, read by eye: locked, UNLOCK, CoT prompt, chat model with CoT prompt
    None: (8.0, 20.1, 18, 18),
    "GSM8K": (9, 56, 64, 58),
    "SVAMP": (44, 70, 73, 70),
}
POST_TRAINING_FIGURES = {  # base asked to think step by step, post-trained asked likewise, base with UNLOCK
    None: (61.1, 67.8, 71.3),
    "Minerva": (34.7, 27.9, 39.2),
    "OlympiadBench": (29.0, 37.8, 36.3),
    "DeepMind Math": (78.8, 80.1, 82.4),
}
STEPS = "Let's think step by step"


def figures(config: SweepConfig) -> dict[str | None, dict[str, float]]:
    found: dict[str | None, dict[str, float]] = {}
    for told in config.paper_reports:
        found.setdefault(told.of, {})[told.arm] = told.right
    return found


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_what_the_paper_has_in_every_experiment(name: str) -> None:
    config = recipes.load(name)
    assert config.grid.alpha == (0.05, 0.1, 0.2, 0.5) == PAPER_ALPHAS
    assert config.grid.rank == (1, 4, 16, 64, 128, 256, 512) == PAPER_RANKS
    assert config.grid.n == (4, 16, 32, 64, 128, 256, 512)
    assert config.grid.aggregate == ("mean", "pca")
    assert (config.grid.aligner, config.grid.method) == (("paper",), ("unlock",))
    assert (config.grid.operation, config.grid.positions) == (("norm_preserving",), ("last_prompt",))
    assert (config.grid.position, config.grid.layers, config.grid.layer_map) == ((-1,), (None,), ("proportional",))
    assert (config.dtype, config.batch_size) == ("bfloat16", 16)
    assert config.sizes.in_order
    assert config.sizes.extract == 512
    for template in (config.capability.locked, config.capability.unlocked or config.capability.locked):
        assert all(tag in template for tag in TAGS)


def test_chain_of_thought_is_the_papers() -> None:
    config = recipes.load("cot")
    assert (config.source, config.target) == ("Qwen/Qwen1.5-14B", "Qwen/Qwen1.5-7B")
    task: Any = config.task
    assert (task.kind, task.answer_tags) == ("math", TAGS)
    assert (config.sizes.train, config.sizes.test) == (200, 5000)
    assert config.max_new_tokens == 512
    assert len(config.stop) == 20
    assert {"Question", "I hope", "</atok>"} <= set(config.stop)
    assert STEPS in str(config.capability.unlocked)
    assert STEPS not in config.capability.locked
    arms = ("unsteered", "transferred", "prompted", "post_trained")
    assert figures(config) == {name: dict(zip(arms, told, strict=True)) for name, told in COT_FIGURES.items()}
    assert all(told.about for told in config.paper_reports)


def test_post_training_is_the_papers() -> None:
    config = recipes.load("post-training")
    named = config.source, config.capability.source_unlocked, config.target, config.capability.target_unlocked
    assert named == ("Qwen/Qwen3-4B-Base", "Qwen/Qwen3-4B", "Qwen/Qwen3-14B-Base", "Qwen/Qwen3-14B")
    assert STEPS in config.capability.locked  # and on the other side too
    assert config.capability.unlocked is None
    task: Any = config.task
    assert (task.kind, task.extract.kind, task.test.kind) == ("separate", "math", "agieval_math")
    assert ["Gaokao2023" in task.train[0].dataset, "amc23" in task.train[1].dataset] == [True, True]
    assert {each.n for each in task.train} == {200}
    assert {each.answer_tags for each in (task.extract, *task.train, task.test)} == {TAGS}
    assert config.max_new_tokens == 4096
    assert config.stop == ()
    arms = ("unsteered", "post_trained", "transferred")
    assert figures(config) == {name: dict(zip(arms, told, strict=True)) for name, told in POST_TRAINING_FIGURES.items()}
    assert not any(told.about for told in config.paper_reports)


def test_in_context_learning_is_zero_shot_against_few_shot() -> None:
    config = recipes.load("icl")
    assert len(config.capability.demonstrations) == 4
    assert all(shown.answer.endswith("</atok>") for shown in config.capability.demonstrations)
    assert config.capability.asks
    assert config.max_new_tokens == 512
    assert config.stop == recipes.load("cot").stop
    assert config.paper_reports == ()


ZOO = {
    "source": "zoo:large-base", "target": "zoo:small-base", "dtype": "float32", "max_new_tokens": 12, "batch_size": 40,
    "unrelated": {"kind": "zoo", "n": 20}, "sizes": {"extract": 20, "train": 10, "test": 20, "in_order": True},
}  # fmt: skip
SUM = {"kind": "running_sum", "answer_tags": ["=", "."]}
SUMS = {"kind": "separate", "extract": SUM, "train": [SUM, SUM], "test": SUM}
SHOWN = [{"question": "6 6 6 6 6 6", "answer": "S 6 5 4 3 2 1 = 1 ."}]
IN_THE_ZOO: dict[str, dict[str, Any]] = {
    "cot": {"task": SUM, "stop": ["Q"], "capability": {"locked": "Q {question} A :", "unlocked": "Q {question} think A :"}},
    "post-training": {
        "task": SUMS,
        "capability": {
            "locked": "Q {question} A :", "source_unlocked": "zoo:large-post", "target_unlocked": "zoo:small-post",
        },
    },
    "icl": {"task": SUM, "stop": ["Q"], "capability": {"locked": "Q {question} A :", "demonstrations": SHOWN}},
}  # fmt: skip
"""What the recipes name, as the embedded family has it."""


def in_the_zoo(name: str, **changes: Any) -> SweepConfig:
    """A recipe with the models, questions and prompts of the embedded family, on a corner of its grid."""
    recipe = recipes.load(name).model_dump(mode="json")
    zoos: dict[str, Any] = {**ZOO, **IN_THE_ZOO[name], **changes}
    capability = {**recipe["capability"], **zoos.pop("capability")}
    corner = {**recipe["grid"], "n": [4, 16], "rank": [1, 16], "alpha": [0.5]}
    return SweepConfig.parse({**recipe, **zoos, "capability": capability, "grid": corner})


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_recipes_run_on_the_embedded_family(name: str, tmp_path: Path) -> None:
    found = sweep.run(in_the_zoo(name), tmp_path / "out", progress=False)
    arms = found.arms()
    assert {"unsteered", "transferred", "own", "random", "anti_mean", "shuffled", "forced_8"} <= set(arms)
    assert len(found.trained()) == 8
    assert all(line["strict"]["tags"] == ["=", "."] for line in found.lines)
    judged = report.verdict(found)
    assert "null sources" in judged.headline or judged.status != "arrived"
    rows = list(report.beside_the_paper(found))
    assert len(rows) == len(recipes.load(name).paper_reports)
    ours = {row["label"] for row in rows if row["here"]}
    assert ours == {
        "cot": {"unsteered", "transferred", "prompted"},
        "post-training": {"unsteered", "transferred", "post-trained"},
        "icl": set(),
    }[name]  # fmt: skip
    report.write(found, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert ("Beside the paper" in page) == (name != "icl")


def test_the_papers_figures_are_next_to_ours(tmp_path: Path) -> None:
    told = [
        {"arm": "transferred", "right": 20.1, "about": True, "of": None},
        {"arm": "transferred", "right": 56, "about": False, "of": "GSM8K"},
        {"arm": "post_trained", "right": 18, "about": False, "of": None},
    ]
    plain = made_up(n=100)
    found = Results({**plain.config, "paper_reports": told}, plain.lines)
    rows = list(report.beside_the_paper(found))
    assert [row["paper"] for row in rows] == ["~20.1%", "56%", "18%"]
    assert [bool(row["here"]) for row in rows] == [True, False, False]
    assert rows[0]["here"].startswith("98.0% (")
    assert list(report.beside_the_paper(plain)) == []
    plots: Any = ul.plots  # plotly is not annotated
    drawn = [list(trace.x) for trace in plots.arms(found).data if "the paper reports" in str(trace.hovertemplate)]
    assert drawn == [[0.201]]
    assert not any("the paper reports" in str(trace.hovertemplate) for trace in plots.arms(plain).data)


def test_demonstrations_stand_before_unlocked_prompts_alone(small: Any) -> None:
    capability = in_the_zoo("icl").capability
    assert capability.asked(small, ["1 2 3 4 5 6"], unlocked=False).prompts == ("Q 1 2 3 4 5 6 A :",)
    assert capability.asked(small, ["1 2 3 4 5 6"], unlocked=True).prompts == (
        "Q 6 6 6 6 6 6 A : S 6 5 4 3 2 1 = 1 .\n\nQ 1 2 3 4 5 6 A :",
    )


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_demonstration_that_holds_a_question_is_refused(split: str) -> None:
    config = in_the_zoo("icl")
    question = getattr(config.task.splits(config.sizes, config.seed), split).questions[3]
    shown = [*SHOWN, {"question": f"{question[:5]}\n {question[6:]}", "answer": "= 0"}]
    content = {
        **config.model_dump(mode="json"),
        "capability": {**IN_THE_ZOO["icl"]["capability"], "name": "x", "demonstrations": shown},
    }
    with pytest.raises(ul.InvalidInput, match="demonstration"):
        Material(SweepConfig.parse(content), progress=False)
