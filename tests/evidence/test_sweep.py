"""Sweeps choose on train and report once on test, capture once, and survive what stops them."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from filelock import FileLock
from safetensors.torch import load_file, save_file

import unlock_lens as ul
from unlock_lens import recipes, report, results, sweep, zoo
from unlock_lens.core import read
from unlock_lens.evidence.results import Line, Results
from unlock_lens.evidence.sweep import description, runner
from unlock_lens.evidence.sweep.config import CONTROLS, Setting, SweepConfig
from unlock_lens.evidence.sweep.material import PAPER_ALPHAS, PAPER_RANKS, Material
from unlock_lens.evidence.sweep.measurement import evaluated
from unlock_lens.hosts import Backend
from unlock_lens.method import calibrate as calibration


def changed(**changes: Any) -> SweepConfig:
    return SweepConfig.parse({**recipes.smallest().model_dump(mode="json"), **changes})


SEVERAL = changed(
    name="several",
    grid={"aligner": ["text", "paper"], "n": [20, 100], "rank": [4, 48], "alpha": [0.4, 0.5]},
    controls=list(CONTROLS),
    control_seeds=2,
    nulls=3,
    others=[{"name": "reverse", "locked": "Q {question} A :", "unlocked": "Q {question} rev A :"}],
)


AS_ON_A_SERVER = """
import sys
from unlock_lens import recipes, sweep
from unlock_lens.evidence.sweep.config import SweepConfig

few = {
    **recipes.smallest().model_dump(mode="json"),
    "backend": "nnsight",
    "sizes": {"extract": 20, "train": 8, "test": 8},
    "grid": {"aligner": ["text"], "n": [20], "rank": [48], "alpha": [0.5]},
    "controls": ["anti_mean"],
    "sampling": {"samples": 1, "problems": 4},
}
told = []
for where in (False, "local"):
    config = SweepConfig.parse({**few, "remote": where})
    lines = sweep.run(config, f"{sys.argv[1]}/{where}", progress=False).lines
    told.append([line["completions"] for line in lines if "completions" in line])
print(told[0] == told[1], len(told[0]))
"""


def test_a_sweep_runs_as_on_a_server(tmp_path: Path) -> None:
    """Every run is serialized as for NDIF, in a process of its own: what checks types in these tests cannot be."""
    script = tmp_path / "sweep.py"  # not -c: Python 3.13 takes its text for the source of every function made by exec
    script.write_text(AS_ON_A_SERVER)
    done = subprocess.run([sys.executable, script, tmp_path], capture_output=True, text=True, check=False)
    assert done.stdout == "True 4\n", done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sweep") / "out"


@pytest.fixture(scope="module")
def found(folder: Path) -> Results:
    return sweep.run(SEVERAL, folder, progress=False)


def without_time(lines: Any) -> list[Any]:
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def test_the_capability_arrives_and_controls_stay_where_they_were(found: Results) -> None:
    arms = {name: line["accuracy"] for name, line in found.arms().items()}
    assert set(arms) == {
        "transferred", "unsteered", "prompted", "paper", "own", "random", "anti_mean", "without_mean", "shuffled", "naive",
        "naive_unsteered", "minus", "wrong", "forced_1", "forced_3", "forced_8", "own_at_price", "random_at_price",
        "anti_mean_at_price",
    }  # fmt: skip
    for name in ("transferred", "prompted", "own"):
        assert arms[name] >= 0.9, name
    for name in ("unsteered", "random", "anti_mean", "shuffled", "naive", "minus", "wrong"):
        assert arms[name] <= 0.5, name


def test_every_setting_of_the_grid_is_tried_on_train_once(found: Results) -> None:
    tried = [line["config"] for line in found.lines if line["split"] == "train" and line["config"]["control"] is None]
    wanted = [asdict(setting) for setting in sweep.grid(SEVERAL, "think")]
    assert [config for config in tried if config["capability"] == "think"] == wanted
    assert len({json.dumps([line["config"], line["split"]]) for line in found.lines}) == len(found.lines)
    material = Material(SEVERAL, progress=False)
    assert len(found.lines) == sweep.count(SEVERAL, material)
    assert "unaligned" not in material.controls  # the widths differ


def test_the_best_of_train_is_reported_on_test_and_no_other(found: Results) -> None:
    for control in (None, "random", "anti_mean", "naive"):
        of_control = [line for line in found.lines if line["config"]["control"] == control]
        reported = [line for line in of_control if line["split"] == "test" and line["config"]["capability"] == "think"]
        assert len(reported) == (2 if control == "random" else 1)
        for line in reported:
            rivals = [
                other
                for other in of_control
                if other["split"] == "train" and other["config"]["seed"] == line["config"]["seed"]
                and other["config"]["capability"] == "think"
            ]  # fmt: skip
            best = max(other["accuracy"] for other in rivals)
            assert best == next(other["accuracy"] for other in rivals if other["config"] == line["config"])


def test_lines_hold_what_is_promised(found: Results) -> None:
    for line in found.lines:
        assert {"config", "split", "accuracy", "low", "high", "n", "behaviours", "right", "tokens", "seconds"} <= set(line)
        assert line["low"] <= line["accuracy"] <= line["high"]
        assert line["n"] == len(line["right"]) == (20 if line["split"] == "train" else 100)
        assert line["accuracy"] == pytest.approx(sum(line["right"]) / line["n"])
        if line["split"] == "test":
            assert len(line["completions"]) == len(line["lengths"]) == 100
    chosen = found.arms()["transferred"]
    assert chosen["paired"]["gained"] - chosen["paired"]["lost"] == pytest.approx(100 * chosen["paired"]["difference"])
    assert chosen["paired"]["low"] > 0.5
    assert chosen["paired"]["p"] < 1e-6
    assert chosen["price"]["kl"] > 0
    sharpening = chosen["sharpening"]
    assert sharpening["success"]["steered"]["probability"] > sharpening["success"]["unsteered"]["probability"]
    assert sharpening["entropy"]["steered"][0] < sharpening["entropy"]["unsteered"][0]
    assert set(sharpening["pass_at_k"]) == {"1", "2", "4", "8"}


def test_other_capabilities_are_specific(found: Results) -> None:
    line = next(line for line in found.lines if line["split"] == "test" and line["config"]["capability"] == "reverse")
    assert line["behaviours"]["reverse"] >= 0.9
    assert line["paired"]["gained"] == 0  # it reverses, and adds nothing


def test_its_description_is_next_to_it(found: Results, folder: Path) -> None:
    assert found.problems is not None
    assert [len(found.problems[split]) for split in ("train", "test")] == [20, 100]
    assert found.problems["test"][0]["prompt"].startswith("Q ")
    assert found.provenance is not None
    assert set(found.provenance["controls_left_out"]) == {"unaligned", "placebo", "same_end"}
    assert str(folder) not in json.dumps(found.provenance)


def test_running_it_again_runs_nothing(found: Results, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (folder / results.LINES).read_bytes()

    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("a finished setting was run again")

    monkeypatch.setattr(runner, "measured", fail)
    monkeypatch.setattr(runner, "evaluated", fail)
    sweep.run(SEVERAL, folder, progress=False)
    assert (folder / results.LINES).read_bytes() == before


def test_arms_that_run_together_write_what_each_writes_alone(
    found: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each setting by itself, by the host's own generate: the same lines but for the time."""
    monkeypatch.setattr(runner, "_TOGETHER", 1)
    monkeypatch.setattr(Backend, "_shares", lambda *_: False)
    alone = sweep.run(SEVERAL, tmp_path / "out", progress=False)
    assert [line.get("completions") for line in alone.lines] == [line.get("completions") for line in found.lines]
    assert [line["right"] for line in alone.lines] == [line["right"] for line in found.lines]


def test_settings_with_the_same_prompts_are_completed_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    together: list[tuple[str, int]] = []

    def counted(material: Any, settings: Any, split: str) -> Any:
        together.append((split, len(settings)))
        return evaluated(material, settings, split)

    monkeypatch.setattr(runner, "evaluated", counted)
    done = sweep.run(recipes.smallest(), tmp_path / "out", progress=False)
    # The grid's only setting; the controls' three on train and on test; the nulls' nineteen.
    assert together == [("train", 1), ("train", 3), ("test", 3), ("train", 16), ("train", 3)]
    assert len(done.lines) == 29


def stopping_after(n: int, append: Callable[[Path, Line], None] = results.append) -> Callable[[Path, Line], None]:
    """Writes n lines, then is stopped as by Ctrl-C."""
    left = iter(range(n))

    def stopping(file: Path, line: Line) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt
        append(file, line)

    return stopping


def test_an_interrupted_sweep_resumes_and_ends_like_an_uninterrupted_one(
    found: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Ctrl-C twice, then a line cut off by the power: in the end the lines are those of the sweep that nothing stopped."""
    appended = results.append
    for n in (5, 13):
        monkeypatch.setattr(results, "append", stopping_after(n))
        with pytest.raises(KeyboardInterrupt):
            sweep.run(SEVERAL, tmp_path / "out", progress=False)
    monkeypatch.setattr(results, "append", appended)
    file = tmp_path / "out" / results.LINES
    assert len(file.read_text().splitlines()) == 18
    os.truncate(file, file.stat().st_size - 40)
    with caplog.at_level(logging.WARNING):
        again = sweep.run(SEVERAL, tmp_path / "out", progress=False)
    assert " 17 finished" in caplog.text
    assert without_time(again.lines) == without_time(found.lines)


def test_a_killed_sweep_loses_at_most_the_run_in_flight(tmp_path: Path) -> None:
    """SIGKILL, for real."""
    (tmp_path / "c.yaml").write_text(recipes.smallest().to_yaml())
    code = "import sys; from unlock_lens import sweep; from unlock_lens.evidence.sweep.config import SweepConfig as C; "
    code += "sweep.run(C.load(sys.argv[1]), sys.argv[2], progress=False)"
    file = tmp_path / "out" / results.LINES
    running = subprocess.Popen([sys.executable, "-c", code, tmp_path / "c.yaml", tmp_path / "out"])
    while running.poll() is None and not (file.is_file() and file.read_bytes().count(b"\n") >= 2):
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    running.wait()
    kept = file.read_bytes().rpartition(b"\n")[0].splitlines()
    assert len(kept) >= 2
    sweep.run(recipes.smallest(), tmp_path / "out", progress=False)
    assert file.read_bytes().splitlines()[: len(kept)] == kept
    assert len(file.read_bytes().splitlines()) == 29


def test_a_changed_config_is_refused_with_the_difference(found: Results, folder: Path) -> None:
    other = changed(**{**SEVERAL.model_dump(mode="json"), "seed": 7})
    with pytest.raises(ul.InvalidInput, match=r"\n-seed: 0\n\+seed: 7"):
        sweep.run(other, folder, progress=False)


def test_a_changed_file_behind_the_same_config_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "problems.jsonl"

    def write(shift: int) -> None:
        rows = [{"question": f"{i % 7} {i % 5} {i // 7 % 7} 1 2 {i // 49}", "answer": i % 7 + shift} for i in range(100)]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))

    write(0)
    config = changed(
        task={"kind": "jsonl", "path": str(file), "check": "number"},
        sizes={"extract": 60, "train": 10, "test": 20},
        grid={"aligner": ["text"], "n": [60], "rank": [48], "alpha": [0.5]},
        sampling={"samples": 0},
    )
    sweep.run(config, tmp_path / "out", progress=False)
    write(1)
    with pytest.raises(ul.InvalidInput, match="other models, problems"):
        sweep.run(config, tmp_path / "out", progress=False)


@pytest.mark.parametrize("backend", ["transformer_lens", "nnsight"])
def test_a_changed_weight_of_a_block_is_refused(tmp_path: Path, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The embedding is what it was."""
    model = shutil.copytree(zoo.path() / "small-varied", tmp_path / "mine")
    config = changed(target=str(model), backend=backend, sizes={"extract": 100, "train": 10, "test": 10}, controls=[])
    monkeypatch.setattr(results, "append", stopping_after(1))
    with pytest.raises(KeyboardInterrupt):
        sweep.run(config, tmp_path / "out", progress=False)
    weights = load_file(model / "model.safetensors")
    name = next(name for name in weights if "layers.1." in name and name.endswith("down_proj.weight"))
    weights[name] *= 1.01
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(ul.InvalidInput, match=r"other models(?s:.)*-  \"target\"(?s:.)*\+  \"target\""):
        sweep.run(config, tmp_path / "out", progress=False)


def test_another_version_of_the_library_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "append", stopping_after(1))
    with pytest.raises(KeyboardInterrupt):
        sweep.run(recipes.smallest(), tmp_path / "out", progress=False)
    file = tmp_path / "out" / "inputs.json"
    told = json.loads(file.read_text())
    file.write_text(json.dumps({**told, "library": "0.0.1"}))
    with pytest.raises(ul.InvalidInput, match=r"version of the library(?s:.)*0\.0\.1"):
        sweep.run(recipes.smallest(), tmp_path / "out", progress=False)
    del told["library"]  # as older folders have it
    file.write_text(json.dumps(told))
    with pytest.raises(KeyboardInterrupt):
        sweep.run(recipes.smallest(), tmp_path / "out", progress=False)


def test_the_batch_size_may_change_in_the_middle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "append", stopping_after(1))
    with pytest.raises(KeyboardInterrupt):
        sweep.run(recipes.smallest(), tmp_path / "out", progress=False)
    monkeypatch.undo()
    found = sweep.run(changed(batch_size=7, name="less memory"), tmp_path / "out", progress=False)
    assert (found.config["batch_size"], found.config["name"]) == (7, "less memory")
    assert found.arms()["transferred"]["accuracy"] >= 0.9


def test_a_first_start_that_failed_claims_no_folder(tmp_path: Path) -> None:
    whole = {"aligner": ["text"], "n": [100], "rank": [65], "alpha": [0.5]}
    with pytest.raises(ul.InvalidInput, match="grid.rank"):
        sweep.run(changed(grid=whole), tmp_path / "out", progress=False)
    assert sweep.run(changed(grid={**whole, "rank": [48]}), tmp_path / "out", progress=False).lines


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("dear to someone")
    with pytest.raises(ul.InvalidInput, match="config.yaml"):
        sweep.run(recipes.smallest(), tmp_path, progress=False)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({"rank": [65]}, "grid.rank.*64"),
        ({"layers": ["0-3"]}, "0 to 2"),
        ({"layer_map": ["0:4"]}, "grid.layer_map"),
    ],
)
def test_values_that_the_models_do_not_allow_are_refused_before_any_run(
    tmp_path: Path, grid: dict[str, Any], message: str
) -> None:
    whole = {"aligner": ["text"], "n": [100], "rank": [48], "alpha": [0.5], **grid}
    with pytest.raises(ul.InvalidInput, match=message):
        sweep.run(changed(grid=whole), tmp_path / "out", progress=False)
    assert not (tmp_path / "out" / results.LINES).exists()


def test_too_few_problems_are_reported_in_words(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    few = changed(sizes={"extract": 100, "train": 5, "test": 5}, sampling={"samples": 0}, controls=[])
    with caplog.at_level(logging.WARNING):
        sweep.run(few, tmp_path / "out", progress=False)
    assert "5 problems" in caplog.text
    assert "take at least" in caplog.text


def test_activations_are_captured_once_and_decomposed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four ranks and two strengths cost what one does: 2 readings of pairs, 2 of calibration texts, 2 x 3 decompositions."""
    counted = {"states": 0, "principal": 0}

    def counting(module: Any, name: str) -> None:
        original = getattr(module, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            counted[name] += 1
            return original(*args, **kwargs)

        monkeypatch.setattr(module, name, call)

    counting(read, "states")
    counting(calibration, "principal")
    wide = {"aligner": ["text"], "n": [50, 100], "rank": [8, 16, 32, 48], "alpha": [0.4, 0.5]}
    material = Material(changed(grid=wide), progress=False)
    for setting in sweep.grid(material.config, "think"):
        material.steer(setting)
    assert counted == {"states": 2 + 2, "principal": 6}


@pytest.mark.parametrize(
    ("ranks", "alphas", "rank", "alpha"),
    [
        ((2, 4, 8), (0.1, 0.2, 0.3), 4, 0.2),
        ((2, 4), (0.1, 0.2, 0.3, 0.4), 4, 0.3),
        ((1, 2, 4, 8), (0.1, 0.2), 4, 0.2),
    ],
)
def test_of_equal_settings_the_one_in_the_middle_of_the_plateau_is_chosen(
    ranks: tuple[int, ...], alphas: tuple[float, ...], rank: int, alpha: float
) -> None:
    """Middle strength first, then middle rank; of an even number the upper middle."""
    settings = [Setting("think", rank=rank, alpha=alpha) for rank in (1, 2, 4, 8) for alpha in (0.1, 0.2, 0.3, 0.4)]

    class Stub(runner._Runner):  # pyright: ignore[reportPrivateUsage]
        def __init__(self) -> None:
            pass

        def together(self, settings: Any, split: str) -> None:
            pass

        def line(self, setting: Setting, split: str, *of: Any) -> Line:
            assert split == "train"
            return {"accuracy": float(setting.rank in ranks and setting.alpha in alphas)}

    assert Stub().best(settings) == Setting("think", rank=rank, alpha=alpha)


def test_the_config_is_kept_with_its_defaults(found: Results, folder: Path) -> None:
    assert SweepConfig.parse(yaml.safe_load((folder / results.CONFIG).read_text())) == SEVERAL
    assert found.config["sampling"] == {"samples": 8, "temperature": 1.0, "problems": 100}


def test_two_processes_do_not_sweep_in_one_folder(tmp_path: Path) -> None:
    with FileLock(tmp_path / ".lock"), pytest.raises(ul.InvalidInput, match="another process"):
        sweep.run(recipes.smallest(), tmp_path, progress=False)
    assert [file.name for file in tmp_path.iterdir()] == [".lock"]
    sweep.run(recipes.smallest(), tmp_path, progress=False)  # a lock that was left behind holds nobody up


def test_another_unlocked_model_behind_the_same_name_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep that was begun with one post-trained source does not go on with another."""
    held = tmp_path / "post"
    shutil.copytree(zoo.path() / "large-post", held)
    contrast = {"name": "think", "locked": "Q {question} A :", "source_unlocked": str(held)}
    config = changed(capability=contrast, controls=[], sampling={"samples": 0})
    monkeypatch.setattr(results, "append", stopping_after(1))
    with pytest.raises(KeyboardInterrupt):
        sweep.run(config, tmp_path / "out", progress=False)
    shutil.rmtree(held)
    shutil.copytree(zoo.path() / "large-base", held)
    with pytest.raises(ul.InvalidInput, match="other models"):
        sweep.run(config, tmp_path / "out", progress=False)


def test_where_nothing_asks_the_target_nothing_is_called_prompted(tmp_path: Path) -> None:
    contrast = {"name": "think", "locked": "Q {question} A :", "source_unlocked": "zoo:large-post"}
    found = sweep.run(changed(capability=contrast, controls=["own"]), tmp_path / "out", progress=False)
    assert set(found.arms()) == {"unsteered", "transferred"}
    assert found.provenance is not None
    assert found.provenance["controls_left_out"] == {"own": "capability.target_unlocked is not named"}


@pytest.mark.parametrize("name", ["chess", "unlocked"])
def test_others_that_the_task_cannot_tell_are_refused_at_once(tmp_path: Path, name: str) -> None:
    others = [{"name": name, "locked": "Q {question} A :", "unlocked": "Q {question} rev A :"}]
    with pytest.raises(ul.InvalidInput, match=f"others.*{name}"):
        sweep.run(changed(others=others), tmp_path / "out", progress=False)


def test_a_single_pair_is_swept_and_reports_what_is_missing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    one = {"aligner": ["paper"], "n": [1], "rank": [1], "alpha": [0.5]}
    with caplog.at_level(logging.WARNING):
        found = sweep.run(changed(grid=one, controls=[]), tmp_path / "out", progress=False)
    assert "geometry.json" in caplog.text
    assert "diagnosis.json" in caplog.text
    assert found.problems is not None
    assert found.arms()["transferred"]["n"] == 100


def test_what_clashes_is_found_before_any_run(tmp_path: Path) -> None:
    """At the first token locked and unlocked prompts are the same."""
    clash = {"aligner": ["text"], "n": [100], "rank": [48], "alpha": [0.5], "position": [-1, 0]}
    with pytest.raises(ul.InvalidInput, match="layer 0.*zero"):
        sweep.run(changed(grid=clash), tmp_path / "out", progress=False)
    assert not (tmp_path / "out" / results.LINES).exists()


def test_a_control_that_cannot_be_had_is_left_out_with_the_reason(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The naive model is smaller than the target, and has no layer 3."""
    up = {"source": "zoo:small-base", "target": "zoo:large-base", "controls": ["naive"]}
    mapped = {"aligner": ["text"], "n": [100], "rank": [48], "alpha": [0.6], "layer_map": ["0:0 3:2"]}
    with caplog.at_level(logging.WARNING):
        found = sweep.run(changed(**up, grid=mapped), tmp_path / "out", progress=False)
    assert re.search("naive.*layer 3", caplog.text)
    assert set(found.arms()) == {"unsteered", "prompted", "transferred"}


def test_calibration_texts_that_hold_test_questions_are_left_out(tmp_path: Path) -> None:
    asked = Material(recipes.smallest(), progress=False).splits
    leaking = [f"Q {question} think A : = 1" for question in asked.test.questions]
    (tmp_path / "t.txt").write_text("\n".join([*leaking, *zoo.text(n=300)]))
    material = Material(changed(calibration={"kind": "file", "path": str(tmp_path / "t.txt")}), progress=False)
    assert material.texts is not None
    assert not any(question in line for line in material.texts for question in asked.test.questions)
    assert material.leaking >= 40
    (tmp_path / "t.txt").write_text("\n".join(leaking))
    with pytest.raises(ul.InvalidInput, match="calibration text"):
        Material(changed(calibration={"kind": "file", "path": str(tmp_path / "t.txt")}), progress=False)


def test_the_forecast_steers_as_the_sweep_does(tmp_path: Path) -> None:
    """Taking the component along the direction out unlocks here too; a probe that added it at that strength would say no."""
    grid = {"aligner": ["text"], "n": [100], "rank": [48], "alpha": [1.0], "operation": ["ablate"]}
    pair = {"source": "zoo:large-base", "target": "zoo:small-base", "calibration": {"kind": "zoo", "n": 600}}
    config = changed(grid=grid, controls=["shuffled", "random"], **pair)
    material = Material(config, progress=False)
    setting = sweep.grid(config, "think")[0]
    assert material.probe(setting).share == 1.0
    assert material.probe(replace(setting, operation="norm_preserving")).share == 0.0
    norms = material.direction(setting).vectors.norm(dim=1)
    for control in ("shuffled", "random"):
        drawn = material.direction(replace(setting, control=control, seed=1))
        torch.testing.assert_close(drawn.vectors.norm(dim=1), norms, rtol=1e-4, atol=1e-4)


def test_a_finished_sweep_keeps_its_provenance(found: Results, folder: Path) -> None:
    before = (folder / "provenance.json").read_bytes()
    sweep.run(SEVERAL, folder, progress=False)
    assert (folder / "provenance.json").read_bytes() == before


def test_methods_are_swept_and_the_paper_keeps_its_own(tmp_path: Path) -> None:
    grid = {"aligner": ["text"], "n": [100], "rank": [16], "alpha": [0.5], "method": ["unlock", "cca"]}
    material = Material(changed(grid=grid, controls=["paper"]), progress=False)
    unlock, cca = sweep.grid(material.config, "think")
    assert [material.aligner(setting).method for setting in (unlock, cca)] == ["unlock", "cca"]
    assert not torch.equal(material.direction(unlock).vectors, material.direction(cca).vectors)
    paper = next(each for each in runner.candidates(material.config, cca, "paper", 0, 64) if each.rank == 16)
    assert (material.aligner(paper).method, material.aligner(paper).positions) == ("unlock", "last")
    found = sweep.run(material.config, tmp_path / "out", progress=False)
    assert {line["config"]["method"] for line in found.lines if line["config"]["rank"]} == {"unlock", "cca"}
    assert found.geometry is not None


def test_a_host_that_is_not_installed_is_left_out_of_the_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(description, "VERSIONED", ("torch", "no-such-package"))
    assert list(description._versions()) == ["torch"]  # pyright: ignore[reportPrivateUsage]


CHAT = "{% for turn in messages %}{{ turn['content'] }} {% endfor %}A :"
"""A chat template after which the family reads what it was trained on; a system's turn stands before the question."""


@pytest.fixture(scope="module")
def chatting(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("chatting")
    for side, name in (("source", "large-varied"), ("target", "small-varied")):
        shutil.copytree(zoo.path() / name, folder / side)
        (folder / side / "chat_template.jinja").write_text(CHAT)
    return {side: str(folder / side) for side in ("source", "target")}


def accuracies(config: SweepConfig, folder: Path) -> dict[str, float]:
    return {name: arm["accuracy"] for name, arm in sweep.run(config, folder, progress=False).arms().items()}


PLAIN = {"controls": ["own"], "sampling": {"samples": 0}}


def test_a_sweep_in_the_chat_template_is_the_sweep_in_text(chatting: dict[str, str], tmp_path: Path) -> None:
    capability = {"name": "think", "locked": "Q {question}", "unlocked": "Q {question} think", "chat": True}
    found = accuracies(changed(**chatting, capability=capability, **PLAIN), tmp_path / "chat")
    assert found == accuracies(changed(**PLAIN), tmp_path / "text")


def test_a_contrast_may_be_one_of_system_prompts(chatting: dict[str, str], tmp_path: Path) -> None:
    capability = {"name": "think", "locked": "{question} think", "chat": True, "system": "7", "unlocked_system": "Q"}
    material = Material(changed(**chatting, capability=capability, **PLAIN), progress=False)
    locked, unlocked = (material.asked(material.source, material.splits.train, unlocked=which) for which in (False, True))
    question = material.splits.train.questions[0]
    assert (locked.prompts[0], unlocked.prompts[0]) == (f"7 {question} think A :", f"Q {question} think A :")
    assert material.can_ask
    with pytest.raises(ul.InvalidInput, match="chat"):
        changed(capability={**capability, "chat": False})


def test_pairs_take_the_place_of_the_extract_split(tmp_path: Path) -> None:
    plain = Material(changed(**PLAIN), progress=False)
    extract = plain.splits.extract
    pairs = zip(extract.prompts("Q {question} A :"), extract.prompts("Q {question} think A :"), strict=True)
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps({"locked": a, "unlocked": b}) + "\n" for a, b in pairs))
    capability = {"name": "think", "locked": "Q {question} A :", "unlocked": "Q {question} think A :", "pairs": str(file)}
    paired = Material(changed(capability=capability, **PLAIN), progress=False)
    setting = runner.grid(plain.config, "think")[0]
    assert torch.equal(paired.direction(setting).vectors, plain.direction(setting).vectors)
    file.write_text(json.dumps({"locked": plain.splits.test.questions[0], "unlocked": "x"}) + "\n")
    with pytest.raises(ul.InvalidInput, match=r"grid.n|test question"):
        Material(paired.config, progress=False)


def test_pairs_that_were_edited_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    extract = Material(changed(**PLAIN), progress=False).splits.extract
    pairs = zip(extract.prompts("Q {question} A :"), extract.prompts("Q {question} think A :"), strict=True)
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps({"locked": a, "unlocked": b}) + "\n" for a, b in pairs))
    capability = {"name": "think", "locked": "Q {question} A :", "unlocked": "Q {question} think A :", "pairs": str(file)}
    config = changed(capability=capability, **PLAIN)
    monkeypatch.setattr(results, "append", stopping_after(1))
    with pytest.raises(KeyboardInterrupt):
        sweep.run(config, tmp_path / "out", progress=False)
    file.write_text(file.read_text().replace("think", "Think", 1))
    with pytest.raises(ul.InvalidInput, match="pairs"):
        sweep.run(config, tmp_path / "out", progress=False)


def test_options_of_the_aligner_are_keys_of_the_config() -> None:
    material = Material(changed(aligner={"sinks": "drop", "skip_first": True}, **PLAIN), progress=False)
    setting = runner.grid(material.config, "think")[0]
    fitted = material.aligner(replace(setting, aligner="text"))
    assert (fitted.sinks, fitted.skip_first, fitted.centered) == ("drop", True, True)
    with pytest.raises(ul.InvalidInput, match="did you mean sinks"):
        changed(aligner={"sink": "drop"})
    with pytest.raises(ul.InvalidInput, match="positions"):
        changed(aligner={"positions": 0})


def test_controls_are_tried_once_more_at_the_price_of_the_transfer(found: Results) -> None:
    arms = found.arms()
    price = arms["transferred"]["price"]["kl"]
    for name in ("own_at_price", "anti_mean_at_price"):
        assert arms[name]["price"]["kl"] == pytest.approx(price, rel=0.1)
        assert "paired" in arms[name]
    assert len(found.tested()["random_at_price"]) == SEVERAL.control_seeds
    assert arms["own_at_price"]["accuracy"] > 0.9


def test_the_summary_tells_among_how_many_settings_each_arm_chose(found: Results) -> None:
    tried = report.summary(found)["tried"].to_dict()
    assert tried["transferred"] == tried["shuffled"] == 2 * 2 * 2 * 2
    assert tried["paper"] == 2 * 2 * len(PAPER_RANKS[:4]) * len({*PAPER_ALPHAS, *SEVERAL.grid.alpha})
    assert tried["random"] == len(SEVERAL.grid.alpha)
    assert math.isnan(tried["unsteered"])
