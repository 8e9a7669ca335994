"""What a batch and a KV cache are trusted with: measured once for each model, and where they are wrong, not used."""

from __future__ import annotations

import copy
import logging
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import unlock_lens as ul
from tests.hosts.families import family, greedy, in_bridge, in_nnsight, plain
from tests.hosts.models import HOSTS, PROMPTS, open_host
from tests.hosts.test_native import KIND
from tests.hosts.test_oracle import ALPHA, STEPS, direction_for
from unlock_lens.core import read
from unlock_lens.evidence.distributions import completion_log_probs, next_token_log_probs
from unlock_lens.hosts import backend_of, trust
from unlock_lens.hosts.decoding import generation_options

TEXTS = ["Q 3 1 4 1 5 think A :", "Q 6 A :", "W", "Q 3 1 4 1 5 9 2 6 think A : S 3", "Q 5 A :"]


@pytest.mark.filterwarnings("ignore:.*has a submodule named 'output'")
@pytest.mark.parametrize(
    ("kind", "host"),
    [(kind, "nnsight") for kind in ("recurrent_gemma", "rwkv", "minimax", "mamba", "openai-gpt", "gemma3n_text")]
    + [(kind, "bridge") for kind in ("mamba", "jamba", "openai-gpt", "lfm2")],
)
def test_a_batch_gives_what_its_rows_give(kind: str, host: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """States, log-probabilities, and steered completions, with prompts of uneven length and of a single token."""
    hf = family(kind)
    model = in_nnsight(hf) if host == "nnsight" else in_bridge(hf, tmp_path)
    rows: list[list[int]] = [model.tokenizer.encode(text) for text in TEXTS]
    oracle = [plain(hf, row) for row in rows]
    found = read.at_all_tokens(ul.Variant(model, TEXTS))
    if kind != "gemma3n_text":  # whose oracle is that of one stream of several
        torch.testing.assert_close(found, torch.cat([states for states, _ in oracle], dim=1), rtol=1e-3, atol=1e-3)
    want = torch.stack([logits[-1].log_softmax(-1) for _, logits in oracle])
    torch.testing.assert_close(next_token_log_probs(model, TEXTS), want, rtol=1e-3, atol=1e-3)
    alone = torch.cat([completion_log_probs(model, [text], [" S 1 2"]) for text in TEXTS])
    torch.testing.assert_close(completion_log_probs(model, TEXTS, [" S 1 2"] * 5), alone, rtol=1e-3, atol=1e-3)
    vectors = torch.randn(3, 48, generator=torch.Generator().manual_seed(0))
    hook = ul.SteeringHook(ul.CapabilityDirection(vectors, (0, 1, 2)), ALPHA)
    together = ul.generate(model, TEXTS, hook, max_new_tokens=STEPS)
    assert together == ul.generate(model, TEXTS, hook, max_new_tokens=STEPS, batch_size=1)
    if kind != "gemma3n_text":
        texts = [greedy(hf, row, vectors, ALPHA, STEPS) for row in rows]
        end = model.tokenizer.eos_token_id
        cut = [ids[: ids.index(end)] if end in ids else ids for ids in texts]
        assert together == [model.tokenizer.decode(ids, skip_special_tokens=True) for ids in cut]
    said = [record for record in caplog.records if "padded" in record.message and record.levelno == logging.WARNING]
    assert len(said) <= 3


@pytest.mark.parametrize("host", HOSTS)
def test_nothing_is_distrusted_without_need(host: str, folders: Any, caplog: pytest.LogCaptureFixture) -> None:
    """And nothing is measured again."""
    model = open_host(folders[KIND, "a"], host)
    direction_for(model)
    ul.generate(model, PROMPTS, max_new_tokens=2)
    found = dict(backend_of(model).found)
    assert found["padding"]
    assert found["cache"]
    assert host == "hooked" or found["padding, with cache"]
    backend_of(model).found["padding"] = False
    ul.generate(model, PROMPTS, max_new_tokens=2)
    assert not backend_of(model).found["padding"]
    assert not caplog.text


@pytest.mark.parametrize("host", HOSTS)
def test_where_rows_are_not_batched_the_same_comes_out(host: str, folders: Any) -> None:
    """Picked tokens in any order, of several rows and lengths."""
    model = open_host(folders[KIND, "a"], host)
    steer = ul.SteeringHook(direction_for(model), ALPHA)
    measured = (
        lambda: read.at_all_tokens(ul.Variant(model, PROMPTS)),
        lambda: read.at_position(ul.Variant(model, PROMPTS), position=0),
        lambda: next_token_log_probs(model, PROMPTS, steer),
        lambda: completion_log_probs(model, PROMPTS, ["S 3 4 = 4", "= 1", "R 3", "W 1 2 3 4 5", "S"], steer),
    )
    batched, written = [run() for run in measured], ul.generate(model, PROMPTS, steer, max_new_tokens=STEPS)
    found = backend_of(model).found
    found.update({name: False for name, holds in found.items() if isinstance(holds, bool)})
    for run, want in zip(measured, batched, strict=True):
        torch.testing.assert_close(run(), want, rtol=1e-4, atol=1e-4)
    assert ul.generate(model, PROMPTS, steer, max_new_tokens=STEPS) == written


@pytest.mark.parametrize(
    ("dtype", "error", "same"),
    [
        (torch.float32, 1e-5, True),
        (torch.float32, 1e-2, False),
        (torch.bfloat16, 1e-2, True),
        (torch.bfloat16, 0.3, False),
        (torch.float64, 1e-5, False),
    ],
)
def test_tolerances_follow_the_dtype(dtype: torch.dtype, error: float, same: bool) -> None:
    true = torch.randn(50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert trust.close(true * (1 + error), true, dtype) == same


def test_infinite_logits_are_the_same_where_they_stand_in_one_place() -> None:
    """Those of tokens that a model never writes."""
    true = torch.tensor([1.0, float("-inf")])
    assert trust.close(true.clone(), true, torch.float32)
    assert not trust.close(true.flip(0), true, torch.float32)


def test_steps_are_compared_until_other_tokens_are_read() -> None:
    tokens, logits = torch.tensor([1, 2, 3]), torch.eye(3)
    other = torch.tensor([1, 0, 3])
    far = torch.stack([logits[0], logits[1], logits[2] + 1])
    assert trust.same_steps((other, far), (tokens, logits), torch.float32)
    assert not trust.same_steps((tokens, far), (tokens, logits), torch.float32)


@pytest.mark.parametrize(
    ("rope", "longest", "looks"),
    [
        ({"rope_type": "dynamic", "factor": 2.0}, 65, True),
        ({"rope_type": "dynamic", "factor": 2.0}, 64, False),
        ({"rope_type": "longrope", "original_max_position_embeddings": 32}, 40, True),
        ({"full_attention": {"rope_type": "longrope", "original_max_position_embeddings": 32}}, 40, True),
        ({"rope_type": "default"}, 99, False),
        (None, 99, False),
    ],
)
def test_ropes_that_look_at_the_longest_row(rope: Any, longest: int, looks: bool) -> None:
    config = SimpleNamespace(rope_parameters=rope, max_position_embeddings=64)
    assert trust.rope_looks_at_the_longest(config, longest) == looks


def test_a_dynamic_rope_gives_a_batch_what_its_rows_give() -> None:
    """Below its length at first, where nothing differs yet."""
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
    model = in_nnsight(_dynamic(rope))
    texts = ["Q " + "3 " * 20 + "A :", "Q 6 A :"]
    next_token_log_probs(model, ["Q 6 A :", "Q 5"])
    alone = torch.cat([next_token_log_probs(model, [text]) for text in texts])
    torch.testing.assert_close(next_token_log_probs(model, texts), alone, rtol=1e-4, atol=1e-4)


def _dynamic(rope: dict[str, Any]) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=23, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, initializer_range=0.3,
        max_position_embeddings=8, bos_token_id=None, eos_token_id=None, pad_token_id=0, rope_parameters=rope,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


# The options of a generation


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("suppress_tokens", list(range(1, 12))),
        ("begin_suppress_tokens", list(range(1, 12))),
        ("bad_words_ids", [[token] for token in range(1, 12)]),
        ("guidance_scale", 1.7),
        ("encoder_repetition_penalty", 1.5),
        ("repetition_penalty", 1.5),
        ("sequence_bias", [[[1], -50.0], [[2], 50.0]]),
        ("stop_strings", ["3"]),
        ("prompt_lookup_num_tokens", 3),
        ("prefill_chunk_size", 2),
        ("min_new_tokens", 20),
        ("num_beams", 3),
        ("do_sample", True),
        ("cache_implementation", "static"),
        ("watermarking_config", {"bias": 9.0}),
        ("exponential_decay_length_penalty", [1, 4.0]),
        ("forced_eos_token_id", 3),
        ("output_hidden_states", True),
        ("return_dict_in_generate", True),
        ("use_cache", False),
        ("max_length", 1),
    ],
)
@pytest.mark.parametrize("kind", ["llama", "mamba"])
def test_a_models_own_options_change_nothing(kind: str, name: str, value: Any) -> None:
    hf = family(kind)
    model = in_nnsight(hf)
    want = ul.generate(model, TEXTS, max_new_tokens=STEPS)
    before = getattr(hf.generation_config, name, None)
    setattr(hf.generation_config, name, value)
    try:
        assert ul.generate(model, TEXTS, max_new_tokens=STEPS) == want
    finally:
        setattr(hf.generation_config, name, before)


def test_every_option_that_there_is_is_named() -> None:
    from transformers import GenerationConfig

    named = generation_options(4)
    known = {name for name in vars(GenerationConfig()) if not name.startswith("_")}
    assert known - set(named) == {
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "decoder_start_token_id",
        "transformers_version",
    }


# Threads and modes


@pytest.mark.parametrize("host", HOSTS)
def test_threads_take_turns(host: str, folders: Any) -> None:
    """Nobody is steered by another's hook."""
    model = open_host(folders[KIND, "a"], host)
    direction = direction_for(model)
    hooks = [
        None,
        ul.SteeringHook(direction, ALPHA),
        ul.SteeringHook(direction, -ALPHA),
        ul.SteeringHook(direction, 1.0, "ablate"),
    ]
    want = [ul.generate(model, PROMPTS, hook, max_new_tokens=STEPS) for hook in hooks]
    found: dict[int, list[Any]] = {i: [] for i in range(4)}

    def work(i: int) -> None:
        for _ in range(3):
            found[i].append(ul.generate(model, PROMPTS, hooks[i], max_new_tokens=STEPS, progress=False))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[i] for i in range(4)] == [[want[i]] * 3 for i in range(4)]


@pytest.mark.parametrize("own", ["ours", "the host's"])
@pytest.mark.parametrize("host", HOSTS)
def test_a_thread_is_not_steered_by_anothers_hook(host: str, own: str, folders: Any) -> None:
    model = open_host(folders[KIND, "a"], host)
    steer = ul.SteeringHook(direction_for(model), ALPHA)
    raised: list[BaseException] = []

    def run() -> None:
        try:
            if own == "ours":
                ul.generate(model, PROMPTS, max_new_tokens=2, progress=False)
            elif host == "nnsight":
                with torch.no_grad(), model.trace(PROMPTS[0]):
                    model.output.logits.save()
            else:
                model(torch.tensor([model.tokenizer.encode(PROMPTS[0])]))
        except BaseException as error:
            raised.append(error)

    with steer.attached(model):
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        ul.generate(model, PROMPTS, max_new_tokens=2)  # this one may
    assert len(raised) == 1
    assert "thread" in str(raised[0])
    run()
    assert len(raised) == 1


@pytest.mark.parametrize("host", HOSTS)
def test_dropout_is_off_and_said_once(host: str, folders: Any) -> None:
    model = open_host(folders["gpt2", "a"], host)
    want = direction_for(model).vectors
    root = backend_of(model).root
    root.train()
    if host == "hooked":  # which has none
        assert torch.equal(direction_for(model).vectors, want)
        return
    with pytest.warns(UserWarning, match="training mode"):
        found = direction_for(model).vectors
    torch.testing.assert_close(found, want)
    assert all(part.training for part in root.modules())
    torch.testing.assert_close(direction_for(model).vectors, want)
    assert ul.generate(model, PROMPTS, max_new_tokens=STEPS) == ul.generate(model, PROMPTS, max_new_tokens=STEPS)


def test_dropout_is_said_where_runs_are_the_users(folders: Any) -> None:
    model = open_host(folders["gpt2", "a"], "bridge")
    steer = ul.SteeringHook(direction_for(model), ALPHA)
    model.original_model.train()
    with pytest.warns(UserWarning, match="training mode"), steer.attached(model):
        pass


def test_training_mode_without_dropout_is_nothing(folders: Any) -> None:
    model = open_host(folders["llama", "a"], "nnsight")
    model._module.train()
    direction_for(model)


def test_what_is_measured_continues_where_a_completion_would_end() -> None:
    """A row that ends at once shows nothing of the steps that read the cache."""
    hf = copy.deepcopy(family("llama"))
    hf.generation_config.eos_token_id = list(range(3, hf.config.vocab_size))
    backend = backend_of(in_nnsight(hf))
    ids = torch.tensor([[3, 4, 5]])
    for cached in (True, False):
        tokens, logits = backend._decode(ids, None, cached)  # pyright: ignore[reportPrivateUsage]
        assert tokens.shape == logits.shape[:2] == (1, trust.STEPS)


def test_a_cache_is_measured_beyond_the_window_that_a_sequence_leaves() -> None:
    """MiniMax's cache writes something else once a sequence is longer than a sliding window."""
    hf = family("minimax", sliding_window=8)
    model = in_nnsight(hf)
    direction = ul.CapabilityDirection(torch.randn(3, 48, generator=torch.Generator().manual_seed(1)), (0, 1, 2))
    for text in ("Q 6 A :", "Q 3 1 4 1 5 9 2 6 5 3 5 think A :"):
        row: list[int] = model.tokenizer.encode(text)
        true = greedy(hf, row, direction.vectors, ALPHA, STEPS)
        found = ul.generate(model, [text], ul.SteeringHook(direction, ALPHA), max_new_tokens=STEPS)
        end = true.index(model.tokenizer.eos_token_id) if model.tokenizer.eos_token_id in true else len(true)
        assert found == [model.tokenizer.decode(true[:end], skip_special_tokens=True)]
    found = backend_of(model).found
    assert found["cache"]
    assert not found["cache, beyond 8 tokens"]
