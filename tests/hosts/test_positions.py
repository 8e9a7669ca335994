"""Where tokens stand: however a prompt and what follows it are cut into passes, the same tokens are edited."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

import unlock_lens as ul
from tests.hosts.families import family, greedy, in_bridge, in_nnsight, plain
from unlock_lens.hosts.positions import Given, Progress, as_rows, from_rows, given_to, prompt_given
from unlock_lens.method.apply import Edit

ALPHA = 0.8
LONG, SHORT = "Q 3 1 4 1 5 think A :", "Q 6 A :"
STEPS = 6


def hook_of(seed: int, positions: Any = "last_prompt") -> ul.SteeringHook:
    vectors = torch.randn(3, 48, generator=torch.Generator().manual_seed(seed))
    return ul.SteeringHook(ul.CapabilityDirection(vectors, (0, 1, 2)), ALPHA, positions=positions)


@pytest.fixture(scope="module")
def hf() -> Any:
    return family("llama")


@pytest.fixture(scope="module")
def traced(hf: Any) -> Any:
    return in_nnsight(hf)


@pytest.fixture(scope="module")
def bridge(hf: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return in_bridge(hf, tmp_path_factory.mktemp("llama"))


# The rule


class Counted:
    """A cache that knows how many tokens it holds, or (None) does not."""

    def __init__(self, held: int | None) -> None:
        self.held = held

    def get_seq_length(self) -> int:
        if self.held is None:
            raise ValueError("of attention layers alone")
        return self.held


IDS = torch.arange(6).reshape(2, 3)


@pytest.mark.parametrize(
    ("told", "seen"),
    [
        ({}, 0),
        ({"attention_mask": torch.ones(2, 3)}, 0),
        ({"attention_mask": torch.ones(2, 8)}, 5),
        ({"attention_mask": torch.ones(2, 2)}, 0),  # XLNet reads a token more than its mask has
        ({"past_key_values": Counted(5)}, 5),
        ({"past_key_values": Counted(0)}, 0),
        ({"past_key_values": Counted(0), "attention_mask": torch.ones(2, 8)}, 5),  # a recurrent cache counts nothing
        ({"cache_params": Counted(None), "position_ids": torch.tensor([[2, 3, 4], [5, 6, 7]])}, 5),
        ({"cache_params": Counted(None), "cache_position": torch.tensor([5, 6, 7])}, 5),
        ({"cache_params": Counted(None)}, None),
        ({"state": [torch.ones(2, 4)]}, None),
        ({"past_key_values": ((torch.ones(2, 4, 5, 8),) * 2,) * 3}, 5),
    ],
)
def test_positions_come_from_mask_cache_and_position_ids(told: dict[str, Any], seen: int | None) -> None:
    found = given_to((), {"input_ids": IDS, **told})
    assert found is not None
    assert (found.seen, found.length) == (seen, 3)


@pytest.mark.parametrize("how", ["mask", "pad"])
def test_padding_on_the_right_is_seen(how: str) -> None:
    ids = torch.tensor([[1, 2, 3, 4], [1, 2, 0, 0]])
    found = given_to((ids,), {"attention_mask": (ids != 0).long()}) if how == "mask" else given_to((ids,), {}, pad=0)
    assert found is not None
    assert found.last is not None
    assert found.last.tolist() == [3, 1]
    for other in ({"attention_mask": torch.ones(2, 4)}, {}):
        unpadded = given_to((ids.flip(1),), other, pad=0)
        assert unpadded is not None
        assert unpadded.last is None


def test_what_is_new_comes_with_the_mask_of_all() -> None:
    found = prompt_given((), {"inputs": IDS, "attention_mask": torch.ones(2, 8), "past_key_values": Counted(5)})
    assert found is not None
    assert found.length == 8


def test_a_forward_without_ids_tells_nothing() -> None:
    assert given_to((), {"pixel_values": torch.ones(2, 3)}) is None


@pytest.mark.parametrize(
    ("shape", "first", "view"),
    [((2, 3, 8), False, (2, 3, 8)), ((3, 2, 8), True, (2, 3, 8)), ((4, 2, 3, 8), False, (2, 3, 8))],
)
def test_blocks_that_hold_their_states_otherwise(shape: tuple[int, ...], first: bool, view: tuple[int, ...]) -> None:
    states = torch.randn(shape)
    rows = as_rows(states, 2, 3, first)
    assert tuple(rows.shape) == view
    changed = from_rows(rows + 1, states, first)
    assert changed.shape == states.shape
    assert torch.equal(as_rows(changed, 2, 3, first), rows + 1)


@pytest.mark.parametrize("shape", [(6, 8), (2, 4, 8), (3, 2, 8), (2, 3), (1, 2, 4, 8)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ul.UnsupportedModel, match="shape"):
        as_rows(torch.ones(shape), 2, 3)


@drawn(
    lengths=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    more=st.integers(0, 4),
    cuts=st.sets(st.integers(1, 8)),
    positions=st.sampled_from(["last_prompt", "prompt", "generated", "all"]),
    side=st.sampled_from(["left", "right"]),
)
def test_any_cut_edits_the_same_tokens(lengths: list[int], more: int, cuts: set[int], positions: str, side: str) -> None:
    width = max(lengths)
    mask = torch.zeros(len(lengths), width, dtype=torch.long)
    for row, length in zip(mask, lengths, strict=True):
        row[: length if side == "right" else None][-length:] = 1
    progress, edit = Progress(mask), Edit(torch.ones(4), 1.0, "add", positions)
    ends = sorted({cut for cut in cuts if cut < width + more} | {width + more})
    edited: list[Tensor] = []
    for start, end in zip([0, *ends], ends, strict=False):
        states = torch.zeros(len(lengths), end - start, 4)
        progress.enter(Given(states, start))
        edited.append(edit(states, progress.chunk)[..., 0].bool())
    last = torch.tensor(lengths) - 1 if side == "right" else torch.full((len(lengths),), width - 1)
    column = torch.arange(width + more)
    meant = {
        "last_prompt": column == last[:, None],
        "prompt": (column < width).expand(len(lengths), -1),
        "generated": (column >= width).expand(len(lengths), -1),
        "all": torch.ones(len(lengths), width + more, dtype=torch.bool),
    }
    assert torch.equal(torch.cat(edited, 1), meant[positions])


@pytest.mark.parametrize(
    ("passes", "prompts", "doubt"),
    [
        ([(5, 0), (1, 5), (1, 6)], [5, 5, 5], False),
        ([(5, 0), (1, 5), (4, 0), (1, 4)], [5, 5, 4, 4], False),  # a new prompt
        ([(7, 5), (1, 12)], [12, 12], False),  # begun before the hook was attached
        ([(3, 5), (3, 5)], [8, 8], False),  # the same prefix, twice
        ([(5, 0), (4, 5), (2, 7)], [5, 5, 5], True),  # the beginning of a longer prompt, or a draft of which two are kept
        ([(5, 0), (1, None), (1, None)], [5, 5, 5], False),
    ],
)
def test_where_nobody_tells_how_long_the_prompt_is(passes: list[Any], prompts: list[int], doubt: bool) -> None:
    progress, doubts = Progress(), list[str | None]()
    found: list[int] = []
    for i, (length, seen) in enumerate(passes):
        progress.enter(Given(torch.full((1, length), i), seen))
        found.append(progress.chunk.prompt_length)
        doubts.append(progress.doubt)
    assert found == prompts
    assert any(doubts) == doubt


# Hosts


def by_hand(model: Any, row: list[int], ends: list[int]) -> list[int]:
    """The likeliest token after each, the row being read in passes that end there, each on top of the cache of those before."""
    kept, found = None, list[int]()
    for start, end in zip([0, *ends], ends, strict=False):
        ids = torch.tensor([row[start:end]])
        if hasattr(model, "trace"):
            inputs = {"input_ids": ids, "use_cache": True} | ({"past_key_values": kept} if kept is not None else {})
            with torch.no_grad(), model.trace(inputs):
                output = model.output.save()
            logits, kept = output.logits, output.past_key_values
        else:
            with torch.no_grad():
                logits, kept = model(ids, return_type="logits_and_cache", past_key_values=kept, use_past_kv_cache=True)
        found += logits[0].argmax(-1).tolist()
    return found


@pytest.mark.parametrize("host", ["traced", "bridge"])
@settings(max_examples=12)
@drawn(
    cuts=st.sets(st.integers(1, 14)),
    seed=st.integers(0, 3),
    positions=st.sampled_from(["last_prompt", "prompt", "generated", "all"]),
)
def test_any_cut_into_passes_gives_the_oracles_tokens(
    host: str, request: Any, hf: Any, cuts: set[int], seed: int, positions: Any
) -> None:
    model, hook = request.getfixturevalue(host), hook_of(seed, positions)
    row: list[int] = model.tokenizer.encode(LONG)
    n, vectors = len(row), hook.direction.vectors
    at = {"last_prompt": slice(n - 1, n), "prompt": slice(0, n), "generated": slice(n, None), "all": slice(None)}[positions]
    row = row + greedy(hf, row, vectors, ALPHA, STEPS, at)
    ends = sorted({cut for cut in cuts if cut < len(row)} | {len(row)})
    with hook.attached(model, torch.ones(1, n)):
        found = by_hand(model, row, ends)
    assert found[n - 1 : -1] == row[n:]


WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "chunked": {"prefill_chunk_size": 4},
    "chunks of one": {"prefill_chunk_size": 1},
    "prompt lookup": {"prompt_lookup_num_tokens": 3},
    "no cache": {"use_cache": False},
    "static cache": {"cache_implementation": "static"},
    "assisted": {"assistant_model": "itself"},
}
LOOKED_UP = "Q 3 1 4 1 think A : 3 1 4 1"


@pytest.mark.parametrize("positions", ["last_prompt", "generated", "prompt"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("form", ["traced attached", "traced apply", "traced tracer", "bridge attached", "bridge fwd_hooks"])
def test_every_way_to_generate(form: str, way: str, positions: Any, request: Any, hf: Any) -> None:
    model, how = request.getfixturevalue(form.split()[0]), dict(WAYS[way])
    if how.get("assistant_model"):
        how["assistant_model"] = family("llama", num_hidden_layers=1)
    if form == "bridge attached" and way == "static cache":
        pytest.skip("TransformerLens' attention does not take the mask of a static cache")
    for seed in range(2):
        hook = hook_of(seed, positions)
        row: list[int] = model.tokenizer.encode(LOOKED_UP)
        n = len(row)
        at = {"last_prompt": slice(n - 1, n), "prompt": slice(0, n), "generated": slice(n, None)}[positions]
        want = greedy(hf, row, hook.direction.vectors, ALPHA, STEPS, at)
        needs_tracer = form == "traced apply" and (positions == "generated" or way == "no cache")
        if needs_tracer:
            with pytest.raises(ul.InvalidInput, match="tracer"):
                generated_by(form, model, row, hook, how)
            continue
        found = generated_by(form, model, row, hook, how)
        assert found[: len(want)] == want[: len(found)]
        assert len(found) == len(want) or found[-1] == hf.generation_config.eos_token_id


def generated_by(form: str, model: Any, row: list[int], hook: ul.SteeringHook, how: dict[str, Any]) -> list[int]:
    ids, options = torch.tensor([row]), {"max_new_tokens": STEPS, "do_sample": False, **how}
    if form == "traced attached":
        with hook.attached(model), model.generate(ids, **options) as tracer:
            out = tracer.result.save()
    elif form.startswith("traced"):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*was never reached")
            with model.generate(**options) as tracer:
                with tracer.invoke(ids):
                    hook.apply(model, tracer if form == "traced tracer" else None)
                with tracer.invoke():
                    out = tracer.result.save()
    else:
        options["use_past_kv_cache"] = options.pop("use_cache", True)
        with torch.no_grad(), hook.attached(model) if "attached" in form else model.hooks(fwd_hooks=hook.fwd_hooks(model)):
            out = model.hf_generate(ids, **options)
    return out[0, len(row) :].tolist()


@pytest.mark.parametrize("positions", ["last_prompt", "prompt"])
def test_beams_with_an_invoke_for_each_prompt(traced: Any, positions: Any) -> None:
    hook, options = hook_of(0, positions), {"max_new_tokens": STEPS, "do_sample": False, "num_beams": 3}
    with hook.attached(traced), traced.generate([LONG, SHORT], **options) as tracer:
        want = tracer.result.save()
    with traced.generate(**options) as tracer:
        with tracer.invoke(LONG):
            hook.apply(traced)
        with tracer.invoke(SHORT):
            hook.apply(traced)
        with tracer.invoke():
            found = tracer.result.save()
    assert torch.equal(found, want)


def test_beams_with_a_hook_for_one_of_two_invokes(traced: Any) -> None:
    hook, options = hook_of(0), {"max_new_tokens": STEPS, "do_sample": False, "num_beams": 3}
    with traced.generate([LONG, SHORT], **options) as tracer:
        without = tracer.result.save()
    with hook.attached(traced), traced.generate([LONG, SHORT], **options) as tracer:
        steered = tracer.result.save()
    with traced.generate(**options) as tracer:
        with tracer.invoke(LONG):
            hook.apply(traced)
        with tracer.invoke(SHORT):
            pass
        with tracer.invoke():
            found = tracer.result.save()
    assert torch.equal(found[0], steered[0])
    assert torch.equal(found[1], without[1])


@pytest.mark.parametrize("kept", ["by hand", "generate"])
@pytest.mark.parametrize("host", ["traced", "bridge"])
def test_a_prefix_in_the_cache(host: str, kept: str, request: Any, hf: Any) -> None:
    """Its rest is the prompt, and its last token the prompt's."""
    model, hook = request.getfixturevalue(host), hook_of(1)
    row: list[int] = model.tokenizer.encode(LONG)
    want = greedy(hf, row, hook.direction.vectors, ALPHA, STEPS)
    with torch.no_grad():
        past = hf(torch.tensor([row[:5]]), use_cache=True).past_key_values
    if kept == "by hand":
        rest = torch.tensor([row[5:]])
        with torch.no_grad(), hook.attached(model):
            if host == "bridge":
                logits = model(rest, past_key_values=past)
            else:
                with model.trace({"input_ids": rest, "past_key_values": past}):
                    logits = model.output.logits.save()
        assert int(logits[0, -1].argmax()) == want[0]
        return
    with torch.no_grad(), hook.attached(model):
        options = {"past_key_values": past, "max_new_tokens": STEPS, "do_sample": False}
        if host == "bridge":
            out = model.original_model.generate(torch.tensor([row]), **options)
        else:
            with model.generate({"input_ids": torch.tensor([row])}, **options) as tracer:
                out = tracer.result.save()
    assert out[0, len(row) :].tolist() == want[: out.shape[1] - len(row)]


@pytest.mark.parametrize("form", ["attached", "fwd_hooks"])
def test_texts_that_the_host_pads_on_the_right(form: str, hf: Any, bridge: Any) -> None:
    hook, texts, side = hook_of(0), [LONG, SHORT], bridge.tokenizer.padding_side
    bridge.tokenizer.padding_side = "right"
    try:
        with torch.no_grad(), hook.attached(bridge) if form == "attached" else bridge.hooks(fwd_hooks=hook.fwd_hooks(bridge)):
            logits = bridge(texts, prepend_bos=False)
    finally:
        bridge.tokenizer.padding_side = side
    for i, text in enumerate(texts):
        row = bridge.tokenizer.encode(text)
        want = plain(hf, row, hook.direction.vectors, ALPHA)[1][-1]
        torch.testing.assert_close(logits[i, len(row) - 1], want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("form", ["attached", "apply"])
def test_a_trace_padded_on_the_right(form: str, hf: Any, traced: Any) -> None:
    hook, rows = hook_of(0), [traced.tokenizer.encode(text) for text in (LONG, SHORT)]
    width = max(map(len, rows))
    inputs = {
        "input_ids": torch.tensor([row + [0] * (width - len(row)) for row in rows]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows]),
        "position_ids": torch.arange(width).repeat(2, 1),
    }
    with torch.no_grad():
        if form == "attached":
            with hook.attached(traced), traced.trace(inputs):
                logits = traced.output.logits.save()
        else:
            with traced.trace(inputs):
                hook.apply(traced)
                logits = traced.output.logits.save()
    for i, row in enumerate(rows):
        want = plain(hf, row, hook.direction.vectors, ALPHA)[1][-1]
        torch.testing.assert_close(logits[i, len(row) - 1], want, rtol=1e-4, atol=1e-4)


def test_an_edit_of_one_layer_leaves_room_for_reads(hf: Any, traced: Any) -> None:
    """Between the edits every layer can be read, as it is after them."""
    hook = hook_of(0)
    row: list[int] = traced.tokenizer.encode(LONG)
    want, logits = plain(hf, row, hook.direction.vectors, ALPHA)
    read: list[Tensor] = []
    with torch.no_grad(), traced.trace(torch.tensor([row])):
        for layer in range(3):
            hook.apply(traced, layer=layer)
            read.append(traced.model.layers[layer].output.clone())
        found = traced.output.logits.save()
    torch.testing.assert_close(torch.cat(read), want, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[0], logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("positions", ["last_prompt", "all"])
def test_an_edit_of_one_layer_in_a_loop_of_your_own(hf: Any, traced: Any, positions: Any) -> None:
    hook = hook_of(0, positions)
    row: list[int] = traced.tokenizer.encode(LONG)
    n, sizes = len(row), list[float]()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*was never reached")
        with traced.generate(max_new_tokens=STEPS, do_sample=False) as tracer:
            with tracer.invoke(torch.tensor([row])):
                for _ in tracer.iter[:]:
                    for layer in range(3):
                        hook.apply(traced, layer=layer)
                        sizes.append(float(traced.model.layers[layer].output.norm()))
            with tracer.invoke():
                out = tracer.result.save()
    want = greedy(hf, row, hook.direction.vectors, ALPHA, STEPS, slice(n - 1, n) if positions == "last_prompt" else slice(None))
    assert out[0, n:].tolist() == want[: out.shape[1] - n]
    assert len(sizes) == 3 * (out.shape[1] - n)


def test_a_layer_that_is_not_steered_is_named(traced: Any) -> None:
    with pytest.raises(ul.InvalidInput, match="layer 2"), traced.trace(LONG):
        hook_of(0).at_layers([0]).apply(traced, layer=2)


def test_a_block_may_be_read_before_the_edit(hf: Any, traced: Any) -> None:
    """The pass has begun by then."""
    hook = hook_of(0).at_layers([1, 2])
    with torch.no_grad(), traced.trace([LONG, SHORT]):
        first = traced.model.layers[0].output.clone().save()
        hook.apply(traced)
        logits = traced.output.logits[:, -1].save()
    with torch.no_grad(), hook.attached(traced), traced.trace([LONG, SHORT]):
        want = traced.output.logits[:, -1].save()
    assert torch.equal(logits, want)
    assert first.shape[0] == 2


# What does not happen is said


def test_layers_that_a_pass_does_not_reach_are_named(bridge: Any) -> None:
    ids = torch.tensor([bridge.tokenizer.encode(LONG)])
    with pytest.warns(UserWarning, match=r"\[1, 2\]"):
        bridge.run_with_hooks(ids, fwd_hooks=hook_of(0).fwd_hooks(bridge), stop_at_layer=1)


def test_nothing_listens_once_the_hooks_are_gone(bridge: Any) -> None:
    root, ids = bridge.original_model, torch.tensor([bridge.tokenizer.encode(LONG)])

    def listening() -> tuple[int, int, bool]:
        return len(root._forward_pre_hooks), len(root._forward_hooks), "generate" in vars(root)

    before = listening()
    bridge.run_with_hooks(ids, fwd_hooks=hook_of(0).fwd_hooks(bridge))
    assert listening() == before
    kept = hook_of(0).fwd_hooks(bridge)
    with hook_of(1).attached(bridge):
        assert listening() == (before[0] + 2, before[1] + 2, True)
    assert listening() == (before[0] + 1, before[1] + 1, True)
    del kept
    assert listening() == before == (0, 0, False)


@pytest.mark.parametrize("kind", ["gemma3n_text", "xlnet", "openai-gpt", "mamba"])
def test_families_whose_blocks_give_something_else(kind: str, tmp_path: Path) -> None:
    """A stack of streams, [token, row, d_model], a list, no attention: an edit moves the next token, in each host."""
    from unlock_lens.evidence.distributions import next_token_log_probs

    model = family(kind)
    hosts = [in_nnsight(model)] + ([in_bridge(model, tmp_path)] if kind in ("openai-gpt", "mamba") else [])
    hook = ul.SteeringHook(ul.CapabilityDirection(torch.ones(3, 48), (0, 1, 2)), 50.0, operation="add", layers=[1])
    moved = [next_token_log_probs(host, [LONG], hook) - next_token_log_probs(host, [LONG]) for host in hosts]
    assert all(change.abs().max() > 1e-3 for change in moved)
    torch.testing.assert_close(moved[0], moved[-1], rtol=1e-3, atol=1e-3)


def test_a_list_of_hooks_that_would_not_fire_is_refused(tmp_path: Path) -> None:
    model = in_bridge(family("openai-gpt"), tmp_path)
    with pytest.raises(ul.UnsupportedModel, match="hook_resid_post"):
        hook_of(0).fwd_hooks(model)
    row: list[int] = model.tokenizer.encode(LONG)
    want = greedy(family("openai-gpt"), row, hook_of(0).direction.vectors, ALPHA, STEPS)
    found = model.tokenizer.encode(ul.generate(model, [LONG], hook_of(0), max_new_tokens=STEPS)[0])
    assert found == want[: len(found)]
    with torch.no_grad(), hook_of(0).attached(model):
        logits = model(torch.tensor([row]))
    assert int(logits[0, -1].argmax()) == want[0]
