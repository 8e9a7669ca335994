"""The command line as users run it, end to end on the embedded family."""

from __future__ import annotations

import io
import json
import os
import shlex
import shutil
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import typer

import unlock_lens as ul
import unlock_lens.cli.options as opt
from tests.checks import unchecked
from unlock_lens import cli, recipes, results, zoo
from unlock_lens.cli.app import app
from unlock_lens.core.alignment import SETTINGS
from unlock_lens.evidence.sweep.config import AlignerOptions, Grid
from unlock_lens.hosts import open_model

SMALL, LARGE = (str(zoo.path() / f"{size}-base") for size in ("small", "large"))


@dataclass
class Done:
    """What a command left."""

    returncode: int
    stdout: str
    stderr: str


def run(*args: str | Path, columns: int = 100) -> Done:
    """The entry point, in this process: starting Python for each command takes seconds."""
    out, err = io.StringIO(), io.StringIO()
    returncode = 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["unlock-lens", *map(str, args)])
        patch.setenv("COLUMNS", str(columns))
        patch.setenv("NO_COLOR", "1")
        try:
            cli.main()
        except SystemExit as end:
            returncode = int(end.code or 0)
    return Done(returncode, out.getvalue(), err.getvalue())


@pytest.mark.parametrize("backend", ["transformer_lens", "nnsight"])
def test_from_extraction_to_steered_completions(files: Path, tmp_path: Path, backend: str) -> None:
    aligned = run(
        "align", "--source", LARGE, "--target", SMALL, "--text", files / "text.txt", "--direction", files / "think.safetensors",
        "--out", tmp_path / "small.safetensors", "--save-aligner", tmp_path / "aligner.safetensors", "--batch-size", "200",
        "--backend", backend,
    )  # fmt: skip
    assert aligned.returncode == 0, aligned.stderr
    steered = run(
        "steer", "--model", SMALL, "--direction", tmp_path / "small.safetensors", "--alpha", "0.5", "--prompts",
        files / "questions.jsonl", "--template", "Q {question} A :", "--out", tmp_path / "out.jsonl", "--max-new-tokens", "12",
        "--batch-size", "100", "--backend", backend,
    )  # fmt: skip
    assert steered.returncode == 0, steered.stderr
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    task = zoo.running_sum(n=100, seed=1)
    assert [row["prompt"] for row in rows] == task.direct
    assert "100 of 100" in steered.stdout
    assert set(task.behaviours([row["unsteered"] for row in rows])) == {"direct"}
    assert sum(task.correct([row["steered"] for row in rows])) >= 95
    for file, kind in (("small.safetensors", "direction"), ("aligner.safetensors", "aligner")):
        told = json.loads(run("inspect", tmp_path / file, "--json").stdout)
        assert told["kind"] == kind
    assert told["n_tokens"] == sum(len(text.split()) for text in zoo.text(n=600))


def test_steer_shows_both_completions(files: Path) -> None:
    done = run("steer", "--model", LARGE, "--direction", files / "think.safetensors", "--alpha", "0.6", "--prompts",
               write(files, "one.txt", "1 2 3 4 5 6"), "--template", "Q {question} A :")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "S 1 3 6 3 1 0 = 0" in done.stdout
    assert "unsteered" in done.stdout
    assert "1 of 1" in done.stdout


def test_a_whole_transfer_is_one_command(files: Path, tmp_path: Path) -> None:
    """Without calibration text the source writes it; an aligner's options are those of `align`."""
    asked = ("--questions", files / "questions.jsonl", "--locked", "Q {question} A :", "--unlocked", "Q {question} think A :")
    given = ("transfer", "--source", LARGE, "--target", SMALL, *asked, "--batch-size", "100")
    done = run(*given, "--max-new-tokens", "12", "--stop", ".", "--out", tmp_path / "self")
    assert done.returncode == 0, done.stderr
    assert "small-base" in done.stdout
    given_on = shlex.split(done.stdout.partition("try it: ")[2])  # to be copied, template and all
    assert given_on[:4] == ["unlock-lens", "steer", "--model", SMALL]
    assert given_on[given_on.index("--template") + 1] == "Q {question} A :"
    assert run(*given_on[1:], "--max-new-tokens", "2", "--batch-size", "100").returncode == 0
    steer = ("steer", "--model", SMALL, "--prompts", files / "questions.jsonl", "--template", "Q {question} A :")
    how = ("--alpha", "0.5", "--max-new-tokens", "12", "--batch-size", "100")
    done = run(*steer, "--direction", tmp_path / "self", *how, "--out", tmp_path / "steered.jsonl")
    assert "100 of 100" in done.stdout, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "steered.jsonl").read_text().splitlines()]
    assert sum(row["steered"].startswith("S") for row in rows) >= 95
    run(*steer, "--direction", tmp_path / "self", *how, "--stop", "=", "--stop", "S 0", "--out", tmp_path / "stopped.jsonl")
    stopped = [json.loads(line)["steered"] for line in (tmp_path / "stopped.jsonl").read_text().splitlines()]
    assert stopped == [row["steered"].partition("=")[0].partition("S 0")[0] for row in rows]
    done = run(*given, "--text", files / "text.txt", "--rank", "4", "--aggregate", "pca", "--out", tmp_path / "text")
    assert done.returncode == 0, done.stderr
    told = json.loads(run("inspect", tmp_path / "text", "--json").stdout)
    assert (told["provenance"]["rank"], told["provenance"]["aggregate"]) == (4, "pca")


def write(folder: Path, name: str, content: str) -> Path:
    (folder / name).write_text(content)
    return folder / name


def test_inspect_tells_people(files: Path) -> None:
    done = run("inspect", files / "think.safetensors")
    assert done.returncode == 0
    for told in ("direction", "large-base", "weights", "locked_hash", "norms", "format_version", "Q {question} think A :"):
        assert told in done.stdout
    assert '"' not in done.stdout  # no JSON in a cell
    assert max(map(len, done.stdout.splitlines())) <= 100


def test_align_without_a_direction_writes_the_aligner(files: Path, tmp_path: Path) -> None:
    done = run("align", "--source", LARGE, "--target", SMALL, "--text", files / "text.txt", "--out", tmp_path / "a", "--paper",
               "--rank", "4", "--batch-size", "200")  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(run("inspect", tmp_path / "a", "--json").stdout)
    assert (told["kind"], told["rank"], told["centered"], told["positions"]) == ("aligner", 4, False, "last")


def test_align_by_another_method_with_its_rank_chosen(files: Path, tmp_path: Path) -> None:
    done = run("align", "--source", LARGE, "--target", SMALL, "--text", files / "text.txt", "--out", tmp_path / "a",
               "--method", "rrr", "--rank", "cv", "--ridge", "0.01", "--positions", "2", "--sinks", "rescale", "--without-mean",
               "--batch-size", "200")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "cross-validation" in done.stdout
    told = json.loads(run("inspect", tmp_path / "a", "--json").stdout)
    given = {"method": "rrr", "rank": "cv", "ridge": 0.01, "positions": 2, "sinks": "rescale", "without_mean": True}
    assert {name: told[name] for name in given} == given
    assert told["cross_validation"]["ridges"] == [0.01]


def test_mistakes_are_told_in_a_line_before_any_model_is_loaded(files: Path, tmp_path: Path) -> None:
    """The model's folder has its config and no weights: had it been opened, the error would be another."""
    direction, questions, model = files / "think.safetensors", files / "questions.jsonl", tmp_path / "model"
    model.mkdir()
    shutil.copy(Path(LARGE, "config.json"), model)
    extract = ("extract", "--model", model, "--questions", questions)
    steer = ("steer", "--model", model, "--prompts", questions)
    align = ("align", "--source", model, "--target", model, "--text", files / "text.txt")
    transfer = ("transfer", "--source", model, "--target", model, "--questions", questions)
    ul.CapabilityDirection(torch.ones(1, 64), (0,)).save(tmp_path / "wide.safetensors")
    wide = ("--direction", tmp_path / "wide.safetensors")
    for args, keyword in [
        ((*extract, "--out", tmp_path / "d"), "--unlocked"),
        ((*extract, "--unlocked", "x", "--out", tmp_path / "d"), "{question}"),
        ((*extract, "--unlocked", "{question}!", "--out", tmp_path / "no" / "d"), "cannot be written"),
        ((*extract, "--unlocked", "{question}!", "--layers", "x", "--out", tmp_path / "d"), "layers 'x'"),
        ((*extract, "--unlocked", "{question}!", "--field", "body", "--out", tmp_path / "d"), "body"),
        ((*extract, "--unlocked", "{question}!", "--resume", tmp_path / "r", "--out", tmp_path / "d"), "--remote"),
        ((*extract, "--unlocked", "{question}!", "--remote", "ndfi", "--out", tmp_path / "d"), "'ndfi'"),
        ((*steer, "--direction", questions, "--alpha", "1"), "artifact"),
        ((*steer, "--direction", direction, "--alpha", "nan"), "alpha nan"),
        ((*steer, "--direction", direction, "--alpha", "1", "--layers", "7"), "[0, 1, 2, 3]"),
        ((*steer, "--direction", direction, "--alpha", "1", "--out", tmp_path), "cannot be written"),
        ((*steer, "--direction", direction, "--alpha", "1", "--stop", ""), "stop string"),
        ((*steer, "--direction", direction), "--key"),
        ((*steer, "--key", direction), "expected: key"),
        ((*steer, "--key", direction, "--alpha", "1"), "leave out --direction, --alpha"),
        ((*transfer, "--out", tmp_path / "d"), "--unlocked"),
        ((*transfer, "--unlocked", "{question}!", "--out", tmp_path / "d", "--stop", ""), "stop string"),
        ((*transfer, "--unlocked", "{question}!", "--out", tmp_path / "d", "--text", tmp_path / "no"), "no file"),
        ((*transfer, "--unlocked", "{question}!", "--out", tmp_path), "cannot be written"),
        ((*align, "--out", tmp_path / "a", "--rank", "0"), "rank 0"),
        ((*align, "--out", tmp_path / "a", "--paper", "--method", "ridge"), "--paper"),
        ((*align, "--out", tmp_path / "a", "--rank", "best"), "rank 'best'"),
        ((*align, "--out", tmp_path / "a", "--ridge", "1"), "ridge 1"),
        ((*align, "--out", tmp_path / "a", "--ridge", "x", "--method", "rrr"), "ridge 'x'"),
        ((*align, "--out", tmp_path / "a", "--positions", "first"), "positions 'first'"),
        ((*align, "--out", tmp_path / "a", "--positions", "0"), "positions 0"),
        ((*align, "--out", tmp_path / "a", "--save-aligner", tmp_path), "cannot be written"),
        (("inspect", tmp_path / "nothing"), "nothing"),
        ((*extract, "--unlocked", "{question}!", "--layers", "6", "--out", tmp_path / "d"), "0 to 3"),
        ((*extract, "--unlocked-model", SMALL, "--out", tmp_path / "d"), "one shape"),
        ((*extract, "--unlocked", "{question}!", "--device", "cuda:77", "--out", tmp_path / "d"), "'cuda:77'"),
        ((*steer, *wide, "--alpha", "1"), "d_model 64"),
        ((*steer, "--direction", direction, "--alpha", "0.1,x"), "0.1,x"),
        ((*steer, "--direction", direction, "--alpha", "1", "--top-p", "0.5"), "temperature"),
        ((*align, *wide, "--out", tmp_path / "a"), "d_model 64"),
        ((*align, "--out", tmp_path / "a", "--layer-map", "9:0"), "target layer 9"),
        ((*align[:5], "--out", tmp_path / "a"), "--text"),
        ((*align[:5], "--questions", questions, "--paper", "--out", tmp_path / "a"), "--paper"),
        ((*transfer, "--unlocked", "{question}!", "--layer-map", "0:9", "--out", tmp_path / "d"), "source layer 9"),
    ]:
        with unchecked():
            done = run(*args)
        told = " ".join(done.stderr.split())
        assert done.returncode == 1, args
        assert told.startswith("error: "), told
        assert keyword in told, told
        assert "Traceback" not in told
    assert {file.name for file in tmp_path.iterdir()} == {"model", "wide.safetensors"}


def test_a_direction_for_another_model_is_refused(files: Path) -> None:
    given = ("--direction", files / "think.safetensors", "--alpha", "0.5", "--prompts", files / "questions.jsonl")
    done = run("steer", "--model", SMALL, *given)
    assert done.returncode == 1
    assert "small-base" in done.stderr
    assert "large-base" in done.stderr


def test_a_key_steers_without_further_settings(files: Path, tmp_path: Path) -> None:
    """From a file and from a folder; what it was shown to do is told, by inspect too."""
    direction = ul.CapabilityDirection.load(files / "think.safetensors")
    shown = ul.Evidence("running sums", 100, 0.8, (0.7, 0.9), 0.2, {"random": 0.0}, "arrived")
    key = ul.SteeringHook(direction, 0.6).proven(shown)
    key.save(tmp_path / "think.key.safetensors")
    key.save_pretrained(tmp_path / "folder")
    written: list[str] = []
    for i, given in enumerate(
        (
            ("--key", tmp_path / "think.key.safetensors"),
            ("--key", tmp_path / "folder"),
            ("--direction", files / "think.safetensors", "--alpha", "0.6"),
        )
    ):
        out = tmp_path / f"{i}.jsonl"
        done = run(
            "steer",
            "--model",
            LARGE,
            *given,
            "--prompts",
            files / "questions.jsonl",
            "--template",
            "Q {question} A :",
            "--out",
            out,
        )
        assert done.returncode == 0, done.stderr
        assert ("verdict: arrived" in done.stdout) == (i < 2)
        written.append(out.read_text())
    assert written[0] == written[1] == written[2]
    told = json.loads(run("inspect", tmp_path / "think.key.safetensors", "--json").stdout)
    assert (told["kind"], told["alpha"], told["evidence"]["verdict"]) == ("key", 0.6, "arrived")
    refused = run("steer", "--model", SMALL, "--key", tmp_path / "folder", "--prompts", files / "questions.jsonl")
    assert refused.returncode == 1
    assert "large-base" in refused.stderr


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("configs") / "small.yaml"
    file.write_text(recipes.smallest().to_yaml())
    return file


def test_a_sweep_and_its_report(config: Path, tmp_path: Path) -> None:
    swept = run("sweep", config, "--out", tmp_path / "out")
    assert swept.returncode == 0, swept.stderr
    told = " ".join(swept.stdout.split())
    assert "“think” arrived" in told
    assert "transferred" in told
    page = tmp_path / "page.html"
    assert run("report", tmp_path / "out", "--html", page).returncode == 0
    assert "“think” arrived" in page.read_text(encoding="utf-8")
    told = json.loads(run("report", tmp_path / "out", "--json").stdout)
    assert told["verdict"]["status"] == "arrived"
    arms = {arm["arm"]: arm for arm in told["arms"]}
    assert arms["transferred"]["accuracy"] > 0.9
    assert arms["unsteered"]["alpha"] is None
    shutil.copytree(tmp_path / "out", tmp_path / "twin")
    both = run("report", tmp_path / "out", tmp_path / "twin", "--json")
    assert [each["verdict"]["status"] for each in json.loads(both.stdout)["sweeps"]] == ["arrived", "arrived"]
    shown = run("report", tmp_path / "out", tmp_path / "twin").stdout
    assert (shown.count("arrived"), "transferred" in shown, "twin" in "".join(shown.split())) == (2, True, True)
    assert "--html" in run("report", tmp_path / "out", tmp_path / "twin", "--html", page).stderr
    again = run("sweep", config, "--out", tmp_path / "out", "--json")
    assert json.loads(again.stdout) == told
    assert len((tmp_path / "out" / results.LINES).read_text().splitlines()) == 29


def test_a_stopped_sweep_says_that_it_goes_on(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(results, "append", stop)
    done = run("sweep", config, "--out", tmp_path / "out")
    assert done.returncode == 130
    assert str(tmp_path / "out") in done.stderr


def test_diagnose_tells_every_calibration_with_reasons(tmp_path: Path) -> None:
    content = recipes.smallest().model_dump(mode="json")
    content["grid"] = {"aligner": ["text", "paper"], "n": [100], "rank": [48], "alpha": [0.5]}
    (tmp_path / "c.yaml").write_text(json.dumps(content))
    done = run("diagnose", tmp_path / "c.yaml")
    assert done.returncode == 0, done.stderr
    told = " ".join(done.stdout.split())
    assert "calibration: text, rank 48" in told
    assert "score 1.00" in told
    assert "calibration: paper, rank 48" in told
    as_json = json.loads(run("diagnose", tmp_path / "c.yaml", "--json", "--rank", "16").stdout)
    assert {name: told["rank"] for name, told in as_json.items()} == {"text": 16, "paper": 16}


def test_reproduce_shows_its_config_and_runs_the_small_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = run("reproduce", "cot", "--show")
    assert "Qwen/Qwen1.5-14B" in shown.stdout
    assert "--out" in run("reproduce", "cot").stderr
    assert "demonstrations" in run("reproduce", "icl", "--show").stdout
    assert "demonstrations" in run("reproduce", "icl", "--zoo", "--out", tmp_path / "out").stderr
    known = {"cot-zoo": recipes.smallest()}
    monkeypatch.setattr(recipes, "load", known.__getitem__)
    done = run("reproduce", "cot", "--zoo", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "report.html").is_file()


def test_mistakes_of_sweeps_are_told_in_a_line(config: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(config.read_text().replace("alpha:", "alhpa:"))
    for args, keyword in [
        (("sweep", "--out", tmp_path / "o"), "--zoo"),
        (("sweep", config, "--zoo", "--out", tmp_path / "o"), "--zoo"),
        (("sweep", config), "--out"),
        (("sweep", tmp_path / "bad.yaml", "--out", tmp_path / "o"), "'alhpa'"),
        (("diagnose", tmp_path / "bad.yaml"), "'alhpa'"),
        (("report", tmp_path, "--html", tmp_path / "o.html"), "sweep"),
    ]:
        done = run(*args)
        assert done.returncode == 1, args
        assert keyword in " ".join(done.stderr.split()), done.stderr
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    "command",
    [
        "demo",
        "extract",
        "align",
        "steer",
        "inspect",
        "transfer",
        "plan",
        "diagnose",
        "sweep",
        "report",
        "reproduce",
        "export",
        "import",
    ],
)
def test_help_has_an_example(command: str) -> None:
    done = run(command, "--help")
    assert done.returncode == 0
    assert f"unlock-lens {command}" in " ".join(done.stdout.split())
    assert "Example" in done.stdout


def test_the_command_alone_shows_the_way() -> None:
    shown = run("--help").stdout
    steps = [shown.index(f"unlock-lens {command}") for command in ("demo", "transfer", "steer", "sweep", "report")]
    assert steps == sorted(steps)


def test_the_version_is_told() -> None:
    assert run("--version").stdout.split() == ["unlock-lens", ul.__version__]


def test_no_help_text_is_cut() -> None:
    """In 80 columns too: every word of a docstring and of every option is there."""
    listed = words(run("--help", columns=80).stdout)
    for command in typer.main.get_command(app).commands.values():  # pyright: ignore[reportAttributeAccessIssue]
        assert words(command.short_help) in listed
        if command.name == "eval":
            continue  # its options are another program's
        shown = run(command.name, "--help", columns=80).stdout
        assert max(map(len, shown.splitlines())) <= 80
        for option in command.params:
            assert words(getattr(option, "help", "") or "") in words(shown), option.name
        examples = shown.partition("Example:\n")[2].partition("\n\n")[0]
        assert all(len(line) <= 80 for line in examples.splitlines())


def words(text: str) -> str:
    """Without line breaks, which may fall at hyphens."""
    return "".join(text.split())


def test_examples_are_what_a_shell_reads() -> None:
    """Lines are broken with a backslash, and whole they are the docstring's own commands."""
    shown = run("extract", "--help", columns=80).stdout.partition("Example:\n")[2].partition("\n\n")[0]
    commands = [shlex.split(line) for line in shown.replace("\\\n", " ").splitlines()]
    assert [command[:2] for command in commands] == [["unlock-lens", "extract"]] * 2
    assert "{question} Answer: Let's think step by step." in commands[0]
    assert commands[1][-2:] == ["--out", "cot.safetensors"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_commands_and_options(shell: str) -> None:
    program = str(Path(sys.executable).with_name("unlock-lens"))
    words = {"bash": "unlock-lens ste", "zsh": "unlock-lens ste", "fish": "unlock-lens ste"}[shell]
    told = {"_UNLOCK_LENS_COMPLETE": f"complete_{shell}", "COMP_WORDS": words, "COMP_CWORD": "1",
            "_TYPER_COMPLETE_ARGS": words, "_TYPER_COMPLETE_FISH_ACTION": "get-args"}  # fmt: skip
    done = subprocess.run([program], env={**os.environ, **told}, capture_output=True, text=True, check=False)
    assert "steer" in done.stdout
    assert "extract" not in done.stdout


WARNING = """
import logging, warnings
from tqdm.auto import tqdm
import unlock_lens.cli.app as module

def warns():
    for _ in tqdm(range(2), desc="working", mininterval=0):
        warnings.warn("mind the gap", UserWarning)
        logging.getLogger("unlock_lens.test").warning("and the step")

module.app = warns
module.main()
"""


def test_a_warning_stands_above_the_bar_not_in_it() -> None:
    """In a process of its own: these tests take warnings for errors, and keep what is logged."""
    done = subprocess.run([sys.executable, "-c", WARNING], capture_output=True, text=True, check=True)
    lines = [line.rpartition("\r")[2] for line in done.stderr.split("\n")]
    assert "warning: mind the gap" in lines
    assert "warning: and the step" in lines


def test_the_command_is_installed() -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("unlock-lens"), "--help"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert "extract" in done.stdout


def test_what_changes_nothing_says_so(files: Path) -> None:
    done = run(
        "steer", "--model", LARGE, "--direction", files / "think.safetensors", "--alpha", "0.01", "--prompts",
        files / "questions.jsonl", "--template", "Q {question} A :", "--max-new-tokens", "2", "--batch-size", "100",
    )  # fmt: skip
    assert "0 of 100" in done.stdout
    assert "--alpha" in done.stdout


CHAT = "{% for turn in messages %}{{ turn['role'][0] }} {{ turn['content'] }} {% endfor %}A :"


@pytest.fixture(scope="module")
def chatting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The large model with a chat template."""
    folder = tmp_path_factory.mktemp("chat") / "chatting"
    shutil.copytree(LARGE, folder)
    (folder / "chat_template.jinja").write_text(CHAT)
    return folder


@pytest.mark.parametrize("backend", ["transformer_lens", "nnsight"])
def test_pairs_of_chat_prompts(chatting: Path, tmp_path: Path, backend: str) -> None:
    task = zoo.running_sum(n=8)
    pairs = [
        {"locked": a.removesuffix(" A :"), "unlocked": b.removesuffix(" A :")}
        for a, b in zip(task.direct, task.think, strict=True)
    ]
    file = write(tmp_path, "pairs.jsonl", "".join(json.dumps(pair) + "\n" for pair in pairs))
    done = run(
        "extract",
        "--model",
        chatting,
        "--pairs",
        file,
        "--chat",
        "--system",
        "1",
        "--out",
        tmp_path / "d",
        "--backend",
        backend,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(run("inspect", tmp_path / "d", "--json").stdout)["provenance"]["locked"]
    assert told["first"][0] == f"s 1 u {pairs[0]['locked']} A :"
    assert told["system"] == "1"
    model = open_model(str(chatting), backend)
    prompts = [[pair[side] for pair in pairs] for side in ("locked", "unlocked")]
    sides = [ul.Variant(model, of, chat=True, system="1") for of in prompts]
    expected = ul.CapabilityDirection.extract(sides[0], sides[1])
    assert torch.equal(ul.CapabilityDirection.load(tmp_path / "d").vectors, expected.vectors)


def test_pairs_and_questions_exclude_each_other(files: Path, tmp_path: Path) -> None:
    pairs = write(tmp_path, "pairs.jsonl", '{"locked": "a"}\n')
    out = ("--out", tmp_path / "d")
    for args, keyword in [
        (("extract", "--model", LARGE, *out), "--pairs"),
        (("extract", "--model", LARGE, "--pairs", pairs, "--questions", pairs, *out), "--pairs"),
        (("extract", "--model", LARGE, "--pairs", pairs, "--unlocked", "{question}!", *out), "--unlocked"),
        (("extract", "--model", LARGE, "--pairs", pairs, *out), "unlocked"),
    ]:
        done = run(*args)
        assert (done.returncode, keyword in done.stderr) == (1, True), done.stderr


def test_prompts_can_be_left_out_of_files(files: Path, tmp_path: Path) -> None:
    run("extract", "--model", LARGE, "--questions", files / "questions.jsonl", "--locked", "Q {question} A :", "--unlocked",
        "Q {question} think A :", "--out", tmp_path / "d", "--no-record-prompts", "--batch-size", "100")  # fmt: skip
    told = json.loads(run("inspect", tmp_path / "d", "--json").stdout)["provenance"]["unlocked"]
    assert (told["first"], told["template"], told["n"]) == ([], "Q {question} think A :", 100)


def test_every_option_of_the_aligner_is_one_of_the_commands_and_a_key_of_configs() -> None:
    """With the same defaults, from one place."""
    for command in ("align", "plan"):
        told = " ".join(run(command, "--help").stdout.split())
        assert all(f"--{name.replace('_', '-')}" in told for name in SETTINGS)
    assert vars(opt.Aligner()) == dict(SETTINGS)
    in_grid = {name: default for name, default in SETTINGS.items() if name in Grid.model_fields}
    assert {**AlignerOptions().model_dump(), **in_grid} == dict(SETTINGS)
    assert repr(ul.SubspaceAligner(**opt.aligner_settings(opt.Aligner()))) == repr(ul.SubspaceAligner())
