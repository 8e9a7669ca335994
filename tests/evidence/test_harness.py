"""lm-evaluation-harness: its model class gives what the library gives, and unsteered what the harness' own `hf` gives."""
# pyright: reportMissingImports=false

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import unlock_lens as ul
from unlock_lens import distributions, zoo

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: pip install 'unlock-lens[lm-eval]'")

from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from lm_eval.models.huggingface import HFLM

from unlock_lens.evidence import benchmarks, harness
from unlock_lens.evidence.harness import SteeredLM

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of the harness' own dependencies
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
MODEL = "small-base"
FOLDER = str(zoo.path() / MODEL)
TASK = zoo.running_sum(n=12, seed=3)
TEMPLATE = "{% for m in messages %}Q {{ m['content'] }} {% endfor %}{% if add_generation_prompt %}A :{% endif %}"


@pytest.fixture(scope="module")
def hook(small: Any) -> ul.SteeringHook:
    train = zoo.running_sum(n=32)
    direction = ul.CapabilityDirection.extract(ul.Variant(small, train.direct), ul.Variant(small, train.think))
    return ul.SteeringHook(direction, 0.5)


@pytest.fixture(scope="module", params=["transformer_lens", "nnsight"])
def model(request: pytest.FixtureRequest, small: Any, small_nnsight: Any) -> Any:
    return small if request.param == "transformer_lens" else small_nnsight


@pytest.fixture(scope="module")
def hf() -> Any:
    return HFLM(pretrained=FOLDER, dtype="float32", device="cpu", batch_size=5, max_length=64)


def asked(kind: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
    return [Instance(kind, {}, of, i) for i, of in enumerate(arguments)]


def local_tasks(folder: Path) -> list[Any]:
    """A generating task and one of log-likelihoods, on one JSONL file."""
    file = folder / "problems.jsonl"
    rows = zip(TASK.direct, TASK.answers, strict=True)
    file.write_text("".join(json.dumps({"prompt": prompt, "answer": answer}) + "\n" for prompt, answer in rows))
    shared = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(file)}, "cache_dir": str(folder / "cache")},
        "test_split": "test",
        "doc_to_text": "{{prompt}}",
    }
    writes = {
        "task": "sums",
        "output_type": "generate_until",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["."], "max_gen_toks": 12},
        "filter_list": [
            {"name": "final", "filter": [{"function": "regex", "regex_pattern": r"= (\d)"}, {"function": "take_first"}]}
        ],
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }
    chooses = {
        "task": "openings",
        "output_type": "multiple_choice",
        "doc_to_choice": ["S", "=", "R", "W"],
        "doc_to_target": 0,
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    return [{**shared, **writes}, {**shared, **chooses}]


def test_completions_of_a_task_are_those_of_generate(model: Any, hook: ul.SteeringHook, tmp_path: Path) -> None:
    found = simple_evaluate(SteeredLM(model, hook, batch_size=5), tasks=local_tasks(tmp_path), bootstrap_iters=0)
    written = [sample["resps"][0][0] for sample in found["samples"]["sums"]]
    assert written == ul.generate(model, TASK.direct, hook, max_new_tokens=12, stop=["."])
    assert written != ul.generate(model, TASK.direct, max_new_tokens=12, stop=["."])
    right = sum(TASK.correct(written)) / len(TASK.direct)
    assert found["results"]["sums"]["exact_match,final"] == right
    # The choices are single tokens, so that their log-likelihoods are those of the next token.
    likeliest = distributions.next_token_log_probs(model, TASK.direct, hook)
    choices = [model.tokenizer.encode(choice)[0] for choice in ("S", "=", "R", "W")]
    for sample in found["samples"]["openings"]:
        given = torch.tensor([response[0] for (response,) in sample["resps"]])
        torch.testing.assert_close(given, likeliest[sample["doc_id"]][choices], atol=1e-5, rtol=0)
    assert found["config"]["model_identity"].startswith(MODEL)


def test_unsteered_it_is_the_harness_own_model(model: Any, hf: Any, tmp_path: Path) -> None:
    pairs = [(prompt, f" {text}") for prompt in TASK.direct[:3] for text in ("S", "=", "S 1 2 3 = 4", "R 6 6")]
    pairs += [("", "Q 1 2"), ("Q 1  ", "2 3"), (" ".join(["Q 1 2 3"] * 20), "4 5")]  # empty, spaces at its end, cut
    texts = [(" ".join(zoo.text(n=12)),), ("Q 1 2 3 A : = 4",)]
    prompts = [(prompt, {"until": ["4 4"], "max_gen_toks": 12}) for prompt in [*TASK.think, *TASK.direct, "Q 1"]]
    ours = SteeredLM(model, batch_size=5)
    assert ours.max_length == hf.max_length == 64
    with pytest.warns(UserWarning, match="cut"):
        likelihoods = ours.loglikelihood(asked("loglikelihood", pairs), disable_tqdm=True)
    theirs = hf.loglikelihood(asked("loglikelihood", pairs), disable_tqdm=True)
    assert [greedy for _, greedy in likelihoods] == [greedy for _, greedy in theirs]
    assert [nats for nats, _ in likelihoods] == pytest.approx([nats for nats, _ in theirs], abs=1e-4)
    rolling = ours.loglikelihood_rolling(asked("loglikelihood_rolling", texts), disable_tqdm=True)
    assert len(ours.tok_encode(texts[0][0])) > 2 * ours.max_length  # several windows
    assert rolling == pytest.approx(
        hf.loglikelihood_rolling(asked("loglikelihood_rolling", texts), disable_tqdm=True), abs=1e-3
    )
    written = ours.generate_until(asked("generate_until", prompts), disable_tqdm=True)
    assert written == hf.generate_until(asked("generate_until", prompts), disable_tqdm=True)
    whole = ul.generate(model, TASK.think, max_new_tokens=12)
    assert any("4 4" in text for text in whole)  # two tokens make the stop string
    assert written[: len(whole)] == [text.partition("4 4")[0] for text in whole]


def test_the_edit_falls_on_the_last_token_of_the_context(model: Any, hook: ul.SteeringHook) -> None:
    prompt, following = TASK.direct[0], "S 1 2"
    ((nats, _),) = SteeredLM(model, hook).loglikelihood(asked("loglikelihood", [(prompt, f" {following}")]))
    (wanted,) = distributions.completion_log_probs(model, [prompt], [f" {following}"], hook).tolist()
    assert nats == pytest.approx(wanted, abs=1e-5)
    # An empty context is the prefix token; so is that of a whole text, whose first token alone is far from the rest.
    prefix = model.tokenizer.eos_token
    (of_text,) = SteeredLM(model, hook).loglikelihood_rolling(asked("loglikelihood_rolling", [(following,)]))
    ((of_empty, _),) = SteeredLM(model, hook).loglikelihood(asked("loglikelihood", [("", following)]))
    (wanted,) = distributions.completion_log_probs(model, [prefix], [f" {following}"], hook).tolist()
    assert (of_text, of_empty) == pytest.approx((wanted, wanted), abs=1e-5)


@pytest.mark.parametrize("backend", ["transformer_lens", "nnsight"])
def test_a_key_is_opened_by_name(backend: str, hook: ul.SteeringHook, tmp_path: Path) -> None:
    hook.save(tmp_path / "cot.key.safetensors")
    arguments = f"pretrained={FOLDER},key={tmp_path / 'cot.key.safetensors'},backend={backend}"
    lm = get_model("unlock-lens").create_from_arg_string(arguments, {"batch_size": 4, "device": None})
    assert isinstance(lm, SteeredLM)
    (written,) = lm.generate_until(asked("generate_until", [(TASK.direct[0], {"until": [], "max_gen_toks": 12})]))
    assert [written] == ul.generate(lm.model, TASK.direct[:1], hook, max_new_tokens=12)


def test_a_key_of_another_model_is_refused(large: Any, hook: ul.SteeringHook) -> None:
    with pytest.raises(ul.IncompatibleModel, match="made for|does not fit"):
        SteeredLM(large, hook)


def test_an_empty_continuation_is_refused_and_not_scored_as_certain(small: Any) -> None:
    lm = SteeredLM(small)
    for continuation in ("", " "):
        with pytest.raises(ul.InvalidInput, match="empty"):
            lm.loglikelihood(asked("loglikelihood", [("Q 1", " 2"), ("Q 1", continuation)]), disable_tqdm=True)


@pytest.mark.parametrize(
    ("settings", "keyword"),
    [
        ({"num_beams": 4}, "num_beams"),
        ({"do_sample": True}, "temperature"),
        ({"do_sample": True, "temperature": 0.7, "top_p": 0.9}, "top_p"),
        ({"max_gen_toks": 64}, "room"),
    ],
)
def test_what_would_change_the_text_unnoticed_is_refused(small: Any, settings: dict[str, Any], keyword: str) -> None:
    with pytest.raises(ul.InvalidInput, match=keyword):
        SteeredLM(small).generate_until(asked("generate_until", [("Q 1", {"until": ["."], "max_gen_toks": 8, **settings})]))


def test_arguments_are_checked(small: Any) -> None:
    with pytest.raises(ul.InvalidInput, match="batch_size"):
        SteeredLM(small, batch_size="auto")
    with pytest.raises(ul.InvalidInput, match="device"):
        SteeredLM(small, device="mps")


def test_a_chat_template_is_applied_and_compared_with_the_key(hook: ul.SteeringHook, monkeypatch: pytest.MonkeyPatch) -> None:
    model = zoo.load(MODEL)
    history = [{"role": "user", "content": "1 2 3 4 5 6"}]
    with pytest.raises(ul.InvalidInput, match="no chat template"):
        SteeredLM(model, hook).apply_chat_template(history)
    monkeypatch.setattr(model.tokenizer, "chat_template", TEMPLATE)
    variant = ul.Variant(model, ["1 2 3 4 5 6"], chat=True)
    evidence = ul.Evidence("sums", 10, 0.5, (0.4, 0.6), 0.1, {"random": 0.0}, "arrived")
    key = hook.proven(evidence, variant)
    lm = SteeredLM(model, key)
    text = lm.apply_chat_template(history)
    assert (text, lm.chat_template(True)) == (variant.prompts[0], TEMPLATE)
    written = lm.generate_until(asked("generate_until", [(text, {"until": [], "max_gen_toks": 12})]), disable_tqdm=True)
    assert written == ul.generate(variant, steer=key, max_new_tokens=12)
    with pytest.warns(UserWarning, match="chat template"):
        SteeredLM(model, key).generate_until(asked("generate_until", [("Q 1 2 A :", {"until": [], "max_gen_toks": 2})]))


def test_the_price_is_paired(model: Any, hook: ul.SteeringHook, tmp_path: Path) -> None:
    found = {price.task: price for price in benchmarks.prices(model, hook, local_tasks(tmp_path), batch_size=5)}
    plain, steered = (ul.generate(model, TASK.direct, of, max_new_tokens=12, stop=["."]) for of in (None, hook))
    right = [TASK.correct(written) for written in (plain, steered)]
    changes = [int(after) - int(before) for before, after in zip(*right, strict=True)]
    sums = found["sums"]
    assert (sums.n, sums.metric) == (len(TASK.direct), "exact_match,final")
    assert (sums.gained, sums.lost) == (changes.count(1), changes.count(-1))
    assert sums.difference == pytest.approx(sum(changes) / len(changes))
    assert sums.interval[0] <= sums.difference <= sums.interval[1]
    assert sums.interval == ul.statistics.bootstrap_difference(right[1], right[0])
    assert found["openings"].steered > found["openings"].unsteered


def test_a_metric_that_is_not_a_mean_is_left_out_by_name(small: Any, hook: ul.SteeringHook, tmp_path: Path) -> None:
    task = {**local_tasks(tmp_path)[1], "task": "texts", "output_type": "loglikelihood_rolling", "doc_to_target": "{{prompt}}"}
    del task["doc_to_choice"]
    task |= {"doc_to_text": "", "metric_list": [{"metric": "word_perplexity"}]}
    with pytest.warns(UserWarning, match="word_perplexity of texts"), pytest.raises(ul.InvalidInput, match="texts"):
        benchmarks.prices(small, hook, [task])


def test_the_command_registers_the_model_and_calls_the_harness(
    hook: ul.SteeringHook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hook.save(tmp_path / "cot.key.safetensors")
    (tmp_path / "tasks").mkdir()
    task = local_tasks(tmp_path)[0]
    (tmp_path / "tasks" / "sums.yaml").write_text(json.dumps(task))  # JSON is YAML
    monkeypatch.setattr("sys.argv", [])
    harness.main(
        [
            *("--model_args", f"pretrained={FOLDER},key={tmp_path / 'cot.key.safetensors'},backend=nnsight"),
            *("--tasks", "sums", "--include_path", str(tmp_path / "tasks"), "--batch_size", "4"),
            *("--output_path", str(tmp_path / "out"), "--log_samples"),
        ]
    )
    (samples,) = (tmp_path / "out").rglob("samples_sums_*.jsonl")
    written = [json.loads(line)["resps"][0][0] for line in samples.read_text().splitlines()]
    assert written == ul.generate(zoo.load(MODEL, "nnsight"), TASK.direct, hook, max_new_tokens=12, stop=["."])
