"""Text is tokenized whole: completions as they follow their prompt, pairs that have read the same, no EOS as a prompt."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import unlock_lens as ul
from unlock_lens.core.tokens import pairs_by_end
from unlock_lens.evidence.distributions import completion_log_probs, next_token_log_probs, price
from unlock_lens.hosts.endings import text_of

TEXTS = ["the answer is four", "step by step", "two plus two ="]


def sentencepiece() -> Any:
    """Puts a space in front of every text, as Llama-2's does."""
    raw = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    raw.pre_tokenizer = pre_tokenizers.Split("\u2581", "merged_with_next")
    raw.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<pad>", "<s>", "</s>", "<unk>", *(f"<0x{i:02X}>" for i in range(256))]
    raw.train_from_iterator(TEXTS * 9, trainers.BpeTrainer(vocab_size=400, special_tokens=special))
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def opened(tokenizer: Any) -> Any:
    import nnsight

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        initializer_range=0.3, max_position_embeddings=64, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    return nnsight.TransformersModel(LlamaForCausalLM(config).eval(), tokenizer=tokenizer, task="text-generation")


@torch.no_grad()
def joint(model: Any, prompt: str, completion: str) -> tuple[float, int]:
    """The log-probability of what the whole text has beyond the prompt, and its number of tokens."""
    before, whole = (model.tokenizer(text)["input_ids"] for text in (prompt, prompt + completion))
    assert whole[: len(before)] == before
    log_probs = model._module(torch.tensor([whole]), use_cache=False).logits[0].log_softmax(-1)
    return sum(float(log_probs[i - 1, whole[i]]) for i in range(len(before), len(whole))), len(whole) - len(before)


def test_completions_are_read_as_they_follow_their_prompts() -> None:
    model = opened(sentencepiece())
    pairs = [("two plus two =", " four"), ("the answer is four", " step by step")]
    want = [joint(model, *pair)[0] for pair in pairs]
    found = completion_log_probs(model, [prompt for prompt, _ in pairs], [completion for _, completion in pairs])
    torch.testing.assert_close(found, torch.tensor(want), rtol=1e-4, atol=1e-4)


def test_the_price_is_that_of_the_text_itself() -> None:
    model = opened(sentencepiece())
    nats, count = joint(model, "two plus two =", " four step by step")
    hook = ul.SteeringHook(ul.CapabilityDirection(torch.ones(2, 32), (0, 1)), 0.0)
    found = price(model, ["two plus two = four step by step"], hook, prompt_end="=").perplexity_unsteered
    assert found == pytest.approx(float(torch.tensor(-nats / count).exp()), rel=1e-4)


def test_a_completion_that_would_merge_with_its_prompt_keeps_its_own_tokens() -> None:
    """A model that goes on from the prompt writes no token that reaches into it."""
    model = opened(sentencepiece())
    ids: list[int] = model.tokenizer(" step", add_special_tokens=False)["input_ids"]
    found = completion_log_probs(model, ["the answer is four ste"], ["p by step"])
    assert found.isfinite().all()
    assert ids


def test_completions_keep_the_space_that_they_begin_with() -> None:
    """So that prompt and completion are the text that the model wrote."""
    tokenizer = sentencepiece()
    whole: list[int] = tokenizer("two plus two = four")["input_ids"]
    n = len(tokenizer("two plus two =")["input_ids"])
    assert text_of(tokenizer, [2], whole[n:]) == " four"
    assert text_of(tokenizer, [2], [2, *whole[n:]]) == ""


def test_a_token_that_has_read_nothing_is_not_paired() -> None:
    """The space that Metaspace puts in front has the span of the first character."""
    assert pairs_by_end([(0, 1), (0, 2), (2, 4)], [(0, 1), (1, 2), (2, 4)]) == [(1, 1), (2, 2)]
    assert pairs_by_end([(0, 1), (1, 2), (2, 4)], [(0, 1), (0, 2), (2, 4)]) == [(1, 1), (2, 2)]


def test_bytes_of_one_character_go_by_the_last_of_them() -> None:
    assert pairs_by_end([(0, 1), (0, 1), (0, 1), (1, 2)], [(0, 1), (1, 2)]) == [(2, 0), (3, 1)]


def with_end(single: str) -> Any:
    tokenizer = sentencepiece()
    special = [("<s>", 1), ("</s>", 2)]
    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(single=single, pair="$A $B", special_tokens=special)
    return tokenizer


def test_a_tokenizer_that_ends_prompts_with_eos_is_an_error() -> None:
    model = opened(with_end("<s> $A </s>"))
    for run in (
        lambda: ul.generate(model, TEXTS, max_new_tokens=2),
        lambda: ul.CapabilityDirection.extract(ul.Variant(model, TEXTS), ul.Variant(model, TEXTS[::-1])),
    ):
        with pytest.raises(ul.InvalidInput, match="</s>"):
            run()
    ul.generate(model, TEXTS, max_new_tokens=2, add_special_tokens=False)
    ul.generate(ul.Variant(model, TEXTS, add_special_tokens=False, prepend_bos=True), max_new_tokens=2)


def test_a_prompt_that_ends_with_a_special_token_of_its_own_is_said() -> None:
    model = opened(with_end("<s> $A"))
    with pytest.warns(UserWarning, match="special"):
        ul.generate(model, ["two plus two</s>", "step"], max_new_tokens=2)


def test_prompts_may_come_from_a_generator() -> None:
    model = opened(sentencepiece())
    assert ul.generate(model, (text for text in TEXTS), max_new_tokens=2) == ul.generate(model, TEXTS, max_new_tokens=2)
    given: Any = (text for text in TEXTS)
    assert torch.equal(next_token_log_probs(model, given), next_token_log_probs(model, TEXTS))
    completions: Any = (text for text in ["four", "by", "two"])
    assert completion_log_probs(model, TEXTS, completions).shape == (3,)
