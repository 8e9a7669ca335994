"""The native forms: TransformerLens' hook lists and contexts, nnsight's trace bodies and edits; and nothing stays behind."""

from __future__ import annotations

import json
import logging
import shutil
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import unlock_lens as ul
from tests.hosts.models import HOSTS, PROMPTS, make_folder, open_hooked, open_host
from tests.hosts.test_oracle import ALPHA, STEPS, direction_for, oracle_completions
from tests.oracle import Oracle, norm_preserving
from unlock_lens.core.variant import tokenize
from unlock_lens.hosts.positions import Given, Progress
from unlock_lens.hosts.tracing import edit_blocks
from unlock_lens.method import apply as operations

KIND = "qwen2"


@pytest.fixture(scope="module")
def oracle(oracle_of: Any) -> Oracle:
    return oracle_of(KIND)


@pytest.fixture(scope="module")
def nnsight_model(model_of: Any) -> Any:
    return model_of(KIND, "nnsight")


@pytest.fixture(scope="module", params=[host for host in HOSTS if host != "nnsight"])
def lens_model(request: pytest.FixtureRequest, model_of: Any) -> Any:
    return model_of(KIND, request.param)


def oracle_logits(oracle: Oracle, prompt: str, direction: ul.CapabilityDirection, alpha: float) -> Tensor:
    ids = oracle.tokenizer.encode(prompt)

    def edit(layer: int, h: Tensor) -> Tensor:
        return torch.cat([h[:-1], norm_preserving(h[-1:], direction.vectors[layer].double(), alpha)])

    return oracle.run(ids, edit)[1][-1]


# TransformerLens


def test_run_with_hooks_edits_the_last_token(lens_model: Any, oracle: Oracle) -> None:
    direction = direction_for(lens_model)
    steer = ul.SteeringHook(direction, ALPHA)
    for prompt in PROMPTS:
        ids = torch.tensor([lens_model.tokenizer.encode(prompt)])
        logits = lens_model.run_with_hooks(ids, fwd_hooks=steer.fwd_hooks(lens_model), prepend_bos=False)
        torch.testing.assert_close(
            logits[0, -1].double(), oracle_logits(oracle, prompt, direction, ALPHA), rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("side", ["left", "right"])
def test_run_with_hooks_with_padding(lens_model: Any, oracle: Oracle, side: str) -> None:
    """The mask says where each row's last token stands; without it, short rows could be steered in their padding."""
    direction, tokens = direction_for(lens_model), tokenize(lens_model.tokenizer, PROMPTS)
    ids, mask, last = tokens.ids, tokens.mask, [-1] * len(PROMPTS)
    if side == "right":
        ids, mask = (torch.stack([row.roll(int(n)) for row, n in zip(t, tokens.lengths, strict=True)]) for t in (ids, mask))
        last = [int(n) - 1 for n in tokens.lengths]
    how: dict[str, Any] = {} if hasattr(lens_model, "original_model") else {"padding_side": side}
    hooks = ul.SteeringHook(direction, ALPHA).fwd_hooks(lens_model, attention_mask=mask)
    logits = lens_model.run_with_hooks(ids, fwd_hooks=hooks, attention_mask=mask, prepend_bos=False, **how)
    for row, i, prompt in zip(logits, last, PROMPTS, strict=True):
        torch.testing.assert_close(row[i].double(), oracle_logits(oracle, prompt, direction, ALPHA), rtol=1e-4, atol=1e-4)


def test_one_token_after_another_without_a_cache_is_one_generation(lens_model: Any, oracle: Oracle) -> None:
    """A loop written by hand, the whole sequence each time, gives what the model's own generate gives."""
    direction = direction_for(lens_model)
    ids: list[int] = lens_model.tokenizer.encode(PROMPTS[0])
    true = oracle.greedy(PROMPTS[0], dict(enumerate(direction.vectors)), ALPHA, STEPS)
    with lens_model.hooks(fwd_hooks=ul.SteeringHook(direction, ALPHA).fwd_hooks(lens_model)):
        for _ in range(STEPS):
            ids.append(int(lens_model(torch.tensor([ids]), prepend_bos=False)[0, -1].argmax()))
    assert ids[-STEPS:] == true


def test_a_generation_with_a_cache_is_not_continued_by_a_pass_without(lens_model: Any, oracle: Oracle) -> None:
    """A prompt one token longer than the previous one counts as a new prompt, not as its next token."""
    direction = direction_for(lens_model)
    ids = torch.tensor([lens_model.tokenizer.encode(PROMPTS[2])])
    with lens_model.hooks(fwd_hooks=ul.SteeringHook(direction, ALPHA).fwd_hooks(lens_model)):
        lens_model.generate(ids[:, :-1], max_new_tokens=2, do_sample=False, stop_at_eos=False, prepend_bos=False, verbose=False)
        logits = lens_model(ids, prepend_bos=False)
    torch.testing.assert_close(
        logits[0, -1].double(), oracle_logits(oracle, PROMPTS[2], direction, ALPHA), rtol=1e-4, atol=1e-4
    )


def test_a_pass_taken_for_the_next_step_is_said_once(lens_model: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A sweep over prefixes looks the same as generation without a cache; a new list for each is always right."""
    steer = ul.SteeringHook(direction_for(lens_model), ALPHA)
    ids = torch.tensor([lens_model.tokenizer.encode(PROMPTS[2])])
    with caplog.at_level(logging.WARNING):
        for length in (4, 5, 6):
            lens_model.run_with_hooks(ids[:, :length], fwd_hooks=steer.fwd_hooks(lens_model), prepend_bos=False)
        ul.generate(lens_model, PROMPTS, steer, max_new_tokens=3, use_cache=False)
        assert not caplog.text
        with steer.attached(lens_model):
            for length in (4, 5, 6):
                lens_model(ids[:, :length], prepend_bos=False)
    assert len(caplog.records) == 1
    assert "KV cache" in caplog.text


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
def test_masks_of_any_dtype_but_of_the_batch(lens_model: Any, dtype: torch.dtype) -> None:
    steer = ul.SteeringHook(direction_for(lens_model), ALPHA)
    ids = torch.tensor([lens_model.tokenizer.encode(PROMPTS[2])] * 2)
    plain = lens_model.run_with_hooks(ids, fwd_hooks=steer.fwd_hooks(lens_model), prepend_bos=False)
    masks = [torch.ones(rows, ids.shape[1], dtype=dtype) for rows in (2, 1)]
    hooks = steer.fwd_hooks(lens_model, attention_mask=masks[0])
    assert torch.equal(lens_model.run_with_hooks(ids, fwd_hooks=hooks, prepend_bos=False), plain)
    with pytest.raises(ul.InvalidInput, match="mask"):
        lens_model.run_with_hooks(ids, fwd_hooks=steer.fwd_hooks(lens_model, attention_mask=masks[1]), prepend_bos=False)


def test_lists_of_several_hooks_act_in_their_order(lens_model: Any) -> None:
    direction = direction_for(lens_model)
    turn, remove = ul.SteeringHook(direction, 0.5), ul.SteeringHook(direction, 1.0, "ablate")
    ids = torch.tensor([lens_model.tokenizer.encode(PROMPTS[0])])

    def component(*hooks: ul.SteeringHook) -> float:
        kept: list[Tensor] = []
        fwd_hooks = [pair for hook in hooks for pair in hook.fwd_hooks(lens_model)]
        fwd_hooks.append(("blocks.1.hook_resid_post", lambda h, **_: kept.append(h[0, -1].detach())))
        lens_model.run_with_hooks(ids, fwd_hooks=fwd_hooks, prepend_bos=False)
        return float(torch.cosine_similarity(kept[0], direction.vectors[1], dim=0))

    assert component(turn, remove) == pytest.approx(0, abs=1e-5)
    assert component(remove, turn) > 0.1


# nnsight


def test_apply_in_a_trace(nnsight_model: Any, oracle: Oracle) -> None:
    direction = direction_for(nnsight_model)
    steer = ul.SteeringHook(direction, ALPHA)
    with torch.no_grad(), nnsight_model.trace(PROMPTS):
        steer.apply(nnsight_model)
        logits = nnsight_model.output.logits[:, -1].save()
    for found, prompt in zip(logits, PROMPTS, strict=True):
        torch.testing.assert_close(found.double(), oracle_logits(oracle, prompt, direction, ALPHA), rtol=1e-4, atol=1e-4)


def test_each_invoke_has_its_own_edit(nnsight_model: Any, oracle: Oracle) -> None:
    """One batch, one prompt steered one way, one the other, one not at all."""
    direction = direction_for(nnsight_model)
    up, down = ul.SteeringHook(direction, ALPHA), ul.SteeringHook(-direction, ALPHA)
    with torch.no_grad(), nnsight_model.trace() as tracer:
        with tracer.invoke(PROMPTS[0]):
            up.apply(nnsight_model)
            first = nnsight_model.output.logits[0, -1].save()
        with tracer.invoke(PROMPTS[2]):
            down.apply(nnsight_model)
            second = nnsight_model.output.logits[0, -1].save()
        with tracer.invoke(PROMPTS[1]):
            third = nnsight_model.output.logits[0, -1].save()
    for found, prompt, alpha in ((first, PROMPTS[0], ALPHA), (second, PROMPTS[2], -ALPHA), (third, PROMPTS[1], 0.0)):
        torch.testing.assert_close(found.double(), oracle_logits(oracle, prompt, direction, alpha), rtol=1e-4, atol=1e-4)


def test_apply_in_a_session(nnsight_model: Any, oracle: Oracle) -> None:
    direction = direction_for(nnsight_model)
    steer = ul.SteeringHook(direction, ALPHA)
    with torch.no_grad(), nnsight_model.session():
        with nnsight_model.trace(PROMPTS[0]):
            steer.apply(nnsight_model)
            steered = nnsight_model.output.logits[0, -1].save()
        with nnsight_model.trace(PROMPTS[0]):
            plain = nnsight_model.output.logits[0, -1].save()
    torch.testing.assert_close(steered.double(), oracle_logits(oracle, PROMPTS[0], direction, ALPHA), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(plain.double(), oracle_logits(oracle, PROMPTS[0], direction, 0.0), rtol=1e-4, atol=1e-4)


def test_apply_says_when_it_needs_the_tracer(nnsight_model: Any) -> None:
    steer = ul.SteeringHook(direction_for(nnsight_model), ALPHA, positions="generated")
    with pytest.raises(ul.InvalidInput, match="tracer"):
        steer.apply(nnsight_model)


def test_language_model_works_as_transformers_model_does(folders: Any, oracle: Oracle) -> None:
    from nnsight import LanguageModel

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="LanguageModel is deprecated")
        model = LanguageModel(folders[KIND, "a"], dispatch=True, dtype=torch.float32)
    direction = direction_for(model)
    found = ul.generate(model, PROMPTS, steer=ul.SteeringHook(direction, ALPHA), max_new_tokens=STEPS)
    assert found == oracle_completions(oracle, direction, "norm_preserving", "last_prompt")


# All hosts


@pytest.fixture
def any_model(host: str, model_of: Any) -> Any:
    return model_of(KIND, host)


def logits_of(model: Any) -> Tensor:
    ids = torch.tensor([model.tokenizer.encode(PROMPTS[2])])
    if hasattr(model, "trace"):
        with torch.no_grad(), model.trace({"input_ids": ids}):
            logits = model.output.logits.save()
        return logits
    with torch.no_grad():
        return model(ids)


def leftovers(model: Any) -> int:
    module = getattr(model, "_module", model)
    hooks = sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules())
    return hooks + len(getattr(model, "_edits", []))


@pytest.mark.parametrize("end", [None, ValueError, KeyboardInterrupt])
def test_nothing_stays_behind(any_model: Any, end: type[BaseException] | None) -> None:
    """After success, an exception, an interrupt inside `attached`: no hook is left, the plain output is bitwise the same."""
    before, hooks = logits_of(any_model), leftovers(any_model)
    steer = ul.SteeringHook(direction_for(any_model), ALPHA)

    def steered() -> None:
        with steer.attached(any_model):
            assert not torch.equal(logits_of(any_model), before)
            if end is not None:
                raise end

    if end is None:
        steered()
    else:
        with pytest.raises(end):
            steered()
    assert leftovers(any_model) == hooks
    assert torch.equal(logits_of(any_model), before)


@pytest.mark.parametrize("end", [ValueError, KeyboardInterrupt])
def test_nothing_stays_behind_when_an_edit_itself_fails(
    any_model: Any, end: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    before, hooks = logits_of(any_model), leftovers(any_model)
    steer = ul.SteeringHook(direction_for(any_model), ALPHA)

    def fails(vector: Tensor, alpha: float) -> Tensor:
        raise end

    monkeypatch.setitem(operations.OPERATIONS, "norm_preserving", fails)  # pyright: ignore[reportArgumentType]
    with pytest.raises(end):
        ul.generate(any_model, PROMPTS, steer=steer, max_new_tokens=2)
    monkeypatch.undo()
    assert leftovers(any_model) == hooks
    assert torch.equal(logits_of(any_model), before)


def test_several_hooks_at_once_act_in_the_order_given(any_model: Any) -> None:
    """Adding and then taking the component out is not the same as taking it out and then adding."""
    direction = direction_for(any_model)
    turn, remove = ul.SteeringHook(direction, 0.9, layers=[2]), ul.SteeringHook(direction, 1.0, "ablate", layers=[2])
    with ul.attached(any_model, [turn, remove]):
        removed_last = logits_of(any_model)
    with ul.attached(any_model, [remove]):
        removed = logits_of(any_model)
    with ul.attached(any_model, [remove, turn]):
        turned_last = logits_of(any_model)
    with turn.attached(any_model), remove.attached(any_model):
        nested = logits_of(any_model)
    assert torch.equal(nested, removed_last)
    assert not torch.allclose(removed_last, turned_last, atol=1e-3)
    assert not torch.allclose(removed, turned_last, atol=1e-3)


def test_a_completion_does_not_depend_on_its_batch(any_model: Any) -> None:
    steer = ul.SteeringHook(direction_for(any_model), ALPHA)
    together = ul.generate(any_model, PROMPTS, steer=steer, max_new_tokens=STEPS, batch_size=5)
    alone = ul.generate(any_model, PROMPTS, steer=steer, max_new_tokens=STEPS, batch_size=1)
    assert together == alone


def test_sampling_is_repeatable_and_not_greedy(any_model: Any) -> None:
    made: list[list[str]] = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        made.append(ul.generate(any_model, PROMPTS, max_new_tokens=STEPS, temperature=2.0))
    assert made[0] == made[1]
    assert made[0] != made[2]


def test_hooks_of_several_layers_may_be_given_in_any_order(any_model: Any) -> None:
    direction = direction_for(any_model)
    hooks = [ul.SteeringHook(direction, 0.9, layers=[layer]) for layer in (2, 0)]
    found = [ul.generate(any_model, PROMPTS, given, max_new_tokens=2) for given in (hooks, hooks[::-1])]
    assert found[0] == found[1]
    with ul.attached(any_model, hooks):
        first = logits_of(any_model)
    with ul.attached(any_model, hooks[::-1]):
        assert torch.equal(logits_of(any_model), first)


def test_a_block_that_gives_a_tuple_keeps_the_rest_of_it() -> None:
    block = SimpleNamespace(output=(torch.ones(1, 2, 8), "cache"))
    edit = operations.Edit(torch.ones(8), 0.5, "add", "all")
    model: Any = SimpleNamespace(get=lambda path: [block], config=SimpleNamespace(model_type="bloom"))
    edit_blocks(model, "blocks", {0: [edit]}, operations.Chunk(2))
    assert torch.equal(block.output[0], torch.full((1, 2, 8), 1.5))
    assert block.output[1] == "cache"


# Bases


def test_a_raw_direction_serves_a_centered_layer_norm_model(folders: Any, model_of: Any) -> None:
    """Taking the d_model mean out is exact for directions: found in the centered model, they are the raw ones, centered."""
    raw = direction_for(model_of("gpt2", "bridge"))
    folder = folders["gpt2", "a"]
    models = [open_host(folder, "bridge")]
    models[0].enable_compatibility_mode()
    if "hooked" in HOSTS:
        models.append(open_hooked(folder, fold_ln=True, center_writing_weights=True))
    for model in models:
        centered = direction_for(model)
        assert centered.basis == "zero_mean"
        torch.testing.assert_close(raw.zero_mean().vectors, centered.vectors, rtol=1e-3, atol=1e-4)
        steer = ul.SteeringHook(raw, 1.0, "add")
        assert ul.generate(model, PROMPTS, steer=steer, max_new_tokens=STEPS) == ul.generate(
            model_of("gpt2", "bridge"), PROMPTS, steer=steer, max_new_tokens=STEPS
        )


def test_a_centered_direction_serves_a_raw_model_for_add_alone(folders: Any, model_of: Any) -> None:
    model = open_host(folders["gpt2", "a"], "bridge")
    model.enable_compatibility_mode()
    centered = direction_for(model)
    raw_model = model_of("gpt2", "nnsight")
    added = ul.SteeringHook(centered, 1.0, "add")
    true = ul.generate(model, PROMPTS, steer=added, max_new_tokens=STEPS)
    assert ul.generate(raw_model, PROMPTS, steer=added, max_new_tokens=STEPS) == true
    with pytest.raises(ul.IncompatibleModel, match="zero-mean"):
        ul.generate(raw_model, PROMPTS, steer=ul.SteeringHook(centered, 0.5))


def test_compatibility_mode_edits_once(folders: Any) -> None:
    """Aliased hook points must not fire twice: a Llama model's residual stream is the same with and without the mode."""
    plain, compatible = (open_host(folders["llama", "a"], "bridge") for _ in range(2))
    compatible.enable_compatibility_mode()
    steer = ul.SteeringHook(direction_for(plain), 1.0, "add")
    found = [ul.generate(model, PROMPTS, steer=steer, max_new_tokens=STEPS) for model in (plain, compatible)]
    assert found[0] == found[1]


@pytest.mark.parametrize("host", ["bridge", "nnsight"])
def test_half_precision_models(folders: Any, host: str) -> None:
    """Statistics are float32, edits come back in the model's own dtype."""
    model = open_host(folders[KIND, "a"], host)
    module = getattr(model, "_module", model)
    module.to(torch.bfloat16)
    direction = direction_for(model)
    assert direction.vectors.dtype == torch.float32
    with ul.SteeringHook(direction, ALPHA, positions="all").attached(model):
        assert logits_of(model).dtype == torch.bfloat16


# What models bring with them


def changed_copy(folder: str, to: Path, file: str, **changes: Any) -> str:
    shutil.copytree(folder, to)
    told = json.loads((to / file).read_text())
    (to / file).write_text(json.dumps({**told, **changes}))
    return str(to)


def test_a_models_own_generation_config_changes_nothing(folders: Any, model_of: Any, host: str, tmp_path: Path) -> None:
    penalties = {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2, "do_sample": True, "top_k": 3, "temperature": 0.7}
    folder = changed_copy(folders[KIND, "a"], tmp_path / "m", "generation_config.json", **penalties)
    found = ul.generate(open_host(folder, host), PROMPTS, max_new_tokens=STEPS)
    assert found == ul.generate(model_of(KIND, host), PROMPTS, max_new_tokens=STEPS)


def test_a_models_own_top_k_changes_no_sample(folders: Any, model_of: Any, host: str, tmp_path: Path) -> None:
    folder = changed_copy(folders[KIND, "a"], tmp_path / "m", "generation_config.json", do_sample=True, top_k=1, top_p=0.1)
    found: list[list[str]] = []
    for model in (open_host(folder, host), model_of(KIND, host)):
        torch.manual_seed(0)
        found.append(ul.generate(model, PROMPTS, max_new_tokens=STEPS, temperature=2.0))
    assert found[0] == found[1]


def test_every_host_gives_a_model_the_ids_of_its_publisher(folders: Any, host: str, tmp_path: Path) -> None:
    """TransformerLens reloads tokenizers so that they add BOS; a publisher whose tokenizer does not add it is followed."""
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, GPT2Tokenizer

    words = {chr(c): i for i, c in enumerate(range(97, 123))} | {"\u0120": 26, "<bos>": 27}
    tokenizer = GPT2Tokenizer(vocab=words, merges=[], bos_token="<bos>", eos_token="<bos>", unk_token="<bos>")
    tokenizer.save_pretrained(tmp_path)
    GPT2LMHeadModel(
        GPT2Config(vocab_size=28, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=27, eos_token_id=27)
    ).save_pretrained(tmp_path)
    published: Any = AutoTokenizer.from_pretrained(tmp_path)
    assert published.encode("ab") == [0, 1]
    model = open_hooked(str(tmp_path)) if host == "hooked" else open_host(str(tmp_path), host)
    assert ul.Variant(model, ["ab"]).tokens.ids.tolist() == [[0, 1]]


def test_a_sliding_window_does_not_confuse_the_steps(tmp_path: Path) -> None:
    """The cache then holds fewer keys than there were tokens; prefill and decoding are told apart all the same."""
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    make_folder("llama", "a", str(tmp_path))  # for the tokenizer
    config = MistralConfig(
        vocab_size=23, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, sliding_window=4, initializer_range=0.2, max_position_embeddings=64,
        bos_token_id=None, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    MistralForCausalLM(config).save_pretrained(tmp_path)
    model, other = open_host(str(tmp_path), "bridge"), open_host(str(tmp_path), "nnsight")
    direction = direction_for(other)
    long = ["Q 6 6 6 6 1 2 3 rev A :"]
    for positions in ("last_prompt", "prompt", "generated", "all"):
        steer = ul.SteeringHook(direction, ALPHA, positions=positions)
        assert ul.generate(model, long, steer, max_new_tokens=STEPS) == ul.generate(other, long, steer, max_new_tokens=STEPS)


def test_a_pass_after_a_cached_prompt_is_generated_however_long_it_is() -> None:
    """Three tokens at once on top of four in the cache, shorter than the prompt as well as longer."""
    for prompt, more in ((4, 3), (2, 5)):
        progress = Progress()
        for length, seen in ((prompt, 0), (more, prompt)):
            progress.enter(Given(torch.ones(1, length), seen))
        h = torch.ones(1, more, 8)
        for positions, meant in (("generated", True), ("all", True), ("prompt", False), ("last_prompt", False)):
            changed = operations.Edit(torch.ones(8), 0.5, "add", positions)(h, progress.chunk) != h
            assert changed.tolist() == torch.full_like(changed, meant).tolist()
