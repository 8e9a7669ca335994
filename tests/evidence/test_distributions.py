"""Entropies, divergences and the price of steering against torch and against what must hold.

That hosts agree with the oracle on the log-probabilities themselves is shown in tests/hosts.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import unlock_lens as ul
from unlock_lens import distributions, zoo
from unlock_lens.evidence import _pairs  # pyright: ignore[reportPrivateUsage]

THINK = "Q 1 2 3 4 5 6 think A :"


@pytest.fixture(scope="module")
def steer(small: Any) -> ul.SteeringHook:
    task = zoo.running_sum(n=64)
    direction = ul.CapabilityDirection.extract(ul.Variant(small, task.direct), ul.Variant(small, task.think), progress=False)
    return ul.SteeringHook(direction, 0.5)


def test_entropy_and_divergence_are_torch_distributions_own() -> None:
    logits = torch.randn(2, 5, 11, generator=torch.Generator().manual_seed(0))
    p, q = torch.distributions.Categorical(logits=logits[0]), torch.distributions.Categorical(logits=logits[1])
    torch.testing.assert_close(distributions.entropy(p.logits), p.entropy())
    torch.testing.assert_close(distributions.kl_divergence(p.logits, q.logits), torch.distributions.kl_divergence(p, q))


def test_a_prompt_that_is_answered_for_sure_has_no_entropy_and_a_locked_one_has(small: Any) -> None:
    written = ["S 1 3 6 3 1 0 = 0"]
    sure = distributions.first_token_entropies(small, [THINK], written)
    unsure = distributions.first_token_entropies(small, [THINK.replace("think ", "")], written)
    assert len(sure) == len(unsure) == 8
    assert max(sure) < 0.1
    assert unsure[0] > 1.0


def test_entropies_leave_out_what_no_completion_reaches(small: Any) -> None:
    assert len(distributions.first_token_entropies(small, [THINK], ["= 0"])) == 2
    assert len(distributions.first_token_entropies(small, [THINK], ["= 0"], n_tokens=1)) == 1


def test_a_completion_that_was_cut_is_as_likely_as_what_was_written(small: Any) -> None:
    """No end is put behind it."""
    whole, cut = (float(distributions.completion_log_probs(small, [THINK], [text])) for text in ("S 1 3 6 3 1 0 = 0", "S 1 3"))
    assert whole <= cut
    assert cut > -0.01


def test_small_budgets_change_nothing(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    task = zoo.running_sum(n=7)
    completions = [f"= {answer}" for answer in task.answers]
    at_once = distributions.completion_log_probs(small, task.direct, completions)
    monkeypatch.setattr(_pairs, "AT_ONCE", 1)
    one_by_one = distributions.completion_log_probs(small, task.direct, completions)
    # Batches of other shapes sum in another order: float32 keeps some 1e-6 of each log-probability, and several are added.
    torch.testing.assert_close(one_by_one, at_once, rtol=0, atol=1e-4)


def test_entropies_are_means_over_the_completions_that_reach_a_token(small: Any) -> None:
    prompts, completions = [THINK, "Q 1 2 3 4 5 6 A :"], ["S 1 3 6 3 1 0 = 0", "= 0"]
    both = distributions.first_token_entropies(small, prompts, completions)
    each = [distributions.first_token_entropies(small, [p], [c]) for p, c in zip(prompts, completions, strict=True)]
    # A batch of two and batches of one sum in another order; an entropy adds float32 errors over the whole vocabulary.
    assert both[0] == pytest.approx((each[0][0] + each[1][0]) / 2, abs=1e-4)
    assert both[5] == pytest.approx(each[0][5], abs=1e-4)


def test_steering_concentrates_the_target_on_the_completion_that_it_triggers(small: Any, steer: ul.SteeringHook) -> None:
    prompts, completions = ["Q 1 2 3 4 5 6 A :"], ["S 1 3 6 3 1 0 = 0"]
    plain = distributions.completion_log_probs(small, prompts, completions)
    steered = distributions.completion_log_probs(small, prompts, completions, steer)
    assert float(plain.exp()) < 0.5
    assert float(steered.exp()) > 0.95


def test_the_price_of_doing_nothing_is_nothing(small: Any, steer: ul.SteeringHook) -> None:
    found = distributions.price(small, zoo.text(n=30), ul.SteeringHook(steer.direction, 0.0))
    # Alpha 0 still divides each state by its norm and multiplies it again, and float32 rounds log-probabilities by some 1e-6.
    assert found.kl == pytest.approx(0.0, abs=1e-5)
    assert found.perplexity == pytest.approx(found.perplexity_unsteered, rel=1e-4)


def test_the_price_is_the_mean_over_the_second_halves(small: Any, steer: ul.SteeringHook) -> None:
    """Compared with texts read one at a time, with an edit written out here."""
    texts = ["Q 1 2 3 4 5 6 rev A : R 6 5 4 3 2 1", "Q 1 1 3 4 5 2 double A : W 2 2 6 1 3 4", "Q 2 1 3 A : = 6"]
    divergences: list[float] = []
    steered_nats: list[float] = []
    plain_nats: list[float] = []
    for line in texts:
        ids = torch.tensor([small.tokenizer.encode(line)])
        half = ids.shape[1] // 2
        plain, steered = (
            small.run_with_hooks(ids, fwd_hooks=hooks).log_softmax(-1)[0, half - 1 : -1].detach()
            for hooks in ([], written_out(steer, half - 1))
        )
        divergences += (plain.exp() * (plain - steered)).sum(-1).tolist()
        steered_nats += (-steered[range(len(steered)), ids[0, half:]]).tolist()
        plain_nats += (-plain[range(len(plain)), ids[0, half:]]).tolist()
    found = distributions.price(small, texts, steer, batch_size=2)
    n = len(divergences)
    assert found.kl == pytest.approx(sum(divergences) / n, rel=1e-4)
    assert found.kl > 0.01
    assert found.perplexity == pytest.approx(math.exp(sum(steered_nats) / n), rel=1e-4)
    assert found.perplexity_unsteered == pytest.approx(math.exp(sum(plain_nats) / n), rel=1e-4)


def written_out(steer: ul.SteeringHook, token: int) -> list[tuple[str, Any]]:
    assert isinstance(steer.alpha, float)
    alpha = steer.alpha

    def hook_for(vector: torch.Tensor) -> Any:
        def hook(residual: torch.Tensor, hook: Any) -> torch.Tensor:
            h = residual[:, token].clone()
            turned = h / h.norm() + alpha * vector / vector.norm()
            residual[:, token] = h.norm() * turned / turned.norm()
            return residual

        return hook

    rows = zip(steer.direction.layers, steer.direction.vectors, strict=True)
    return [(f"blocks.{layer}.hook_resid_post", hook_for(vector)) for layer, vector in rows]


def test_a_prompts_end_may_be_named(small: Any, steer: ul.SteeringHook) -> None:
    """Texts whose prompt is their first half, so that both ways of telling agree."""
    texts = ["Q 1 2 3 A : = 1 2 3 4 5", "Q 1 1 3 A : R 6 5 4 3 2"]
    halves, named = (distributions.price(small, texts, steer, prompt_end=end) for end in (None, ":"))
    assert halves.kl == pytest.approx(named.kl, rel=1e-5)  # the same passes
    assert halves.perplexity == pytest.approx(named.perplexity, rel=1e-5)
    with pytest.raises(ul.InvalidInput, match="Q 1 A :"):
        distributions.price(small, [*texts, "Q 1 A :"], steer, prompt_end=":")


def test_a_single_token_has_no_price(small: Any, steer: ul.SteeringHook) -> None:
    with pytest.raises(ul.InvalidInput, match="single token"):
        distributions.price(small, ["Q"], steer)


def test_prompts_and_completions_must_pair(small: Any) -> None:
    with pytest.raises(ul.InvalidInput, match="1 prompts.* 2"):
        distributions.completion_log_probs(small, [THINK], ["S", "R"])
