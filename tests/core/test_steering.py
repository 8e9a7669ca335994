"""A hook's inputs; what hooks do to models, tests/hosts shows."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import unlock_lens as ul
from tests.checks import unchecked
from unlock_lens import zoo
from unlock_lens.evidence.distributions import next_token_log_probs
from unlock_lens.hosts import backend_of
from unlock_lens.hosts.identity import ModelIdentity, fingerprint
from unlock_lens.method.apply import Chunk

TASK = zoo.running_sum(n=12, seed=3)


def direction_of(model: Any) -> ul.CapabilityDirection:
    return ul.CapabilityDirection.extract(ul.Variant(model, TASK.direct), ul.Variant(model, TASK.think))


def test_numbers_and_names_are_checked_at_once() -> None:
    direction = ul.CapabilityDirection(torch.ones(2, 4), (0, 2))
    for alpha in (float("nan"), float("inf")):
        with pytest.raises(ul.InvalidInput, match="alpha (nan|inf) was given; a finite number is needed"):
            ul.SteeringHook(direction, alpha)
    with pytest.raises(ul.InvalidInput, match=r"layers \[1\] were requested; this direction has \[0, 2\]"):
        ul.SteeringHook(direction, 0.5, layers=[1])
    with pytest.raises(ul.InvalidInput, match="alpha {0: 0.5, 2: nan} was given; a finite number is needed"):
        ul.SteeringHook(direction, {0: 0.5, 2: float("nan")})
    for alpha, layers in (({0: 0.5}, None), ({0: 0.5, 1: 0.5, 2: 0.5}, None), ({0: 0.5, 2: 0.5}, [2])):
        with pytest.raises(ul.InvalidInput, match="alpha has strengths for layers .*; give a strength for each"):
            ul.SteeringHook(direction, alpha, layers=layers)
    with unchecked():
        with pytest.raises(ul.InvalidInput, match="no operation 'project'; use one of norm_preserving, add, ablate"):
            ul.SteeringHook(direction, 0.5, "project")  # pyright: ignore[reportArgumentType]
        with pytest.raises(ul.InvalidInput, match="positions='last' was given; use one of last_prompt, prompt, generated, all"):
            ul.SteeringHook(direction, 0.5, positions="last")  # pyright: ignore[reportArgumentType]


def test_a_strength_for_each_layer_is_a_hook_for_each_layer(small: Any) -> None:
    direction = direction_of(small)
    strengths = {0: 0.3, 1: 0.0, 2: 0.9}
    together = ul.SteeringHook(direction, strengths)
    apart = [ul.SteeringHook(direction, alpha, layers=[layer]) for layer, alpha in strengths.items()]
    found, true = (next_token_log_probs(small, TASK.direct, steer) for steer in (together, apart))
    torch.testing.assert_close(found, true, rtol=0, atol=0)
    assert not torch.equal(found, next_token_log_probs(small, TASK.direct, ul.SteeringHook(direction, 0.3)))


def test_a_direction_of_another_width_or_depth_is_refused(small: Any) -> None:
    wide = ul.SteeringHook(ul.CapabilityDirection(torch.ones(1, 96), (0,)), 0.5)
    deep = ul.SteeringHook(ul.CapabilityDirection(torch.ones(1, 64), (3,)), 0.5)
    for steer in (wide, deep):
        with pytest.raises(
            ul.IncompatibleModel, match=r"its model is unknown; d_model .* does not fit small-base \(3 layers, d_model 64"
        ):
            ul.generate(small, TASK.direct, steer=steer)


def test_a_direction_of_another_model_is_refused_and_both_are_named(small: Any) -> None:
    """The same shape, other weights."""
    post = zoo.load("small-post")
    steer = ul.SteeringHook(direction_of(small), 0.5)
    message = r"made for small-base \(.*weights .*\), but this model is small-post \(.*weights .*check_model=False"
    with pytest.raises(ul.IncompatibleModel, match=message):
        ul.generate(post, TASK.direct, steer=steer)
    with pytest.raises(ul.IncompatibleModel, match=message):
        steer.attached(post)
    with pytest.raises(ul.IncompatibleModel, match=message):
        steer.fwd_hooks(post)
    unafraid = ul.SteeringHook(steer.direction, 0.5, check_model=False)
    assert len(ul.generate(post, TASK.direct, steer=unafraid, max_new_tokens=1)) == 12


def test_a_direction_goes_from_one_framework_to_the_other(small: Any, small_nnsight: Any) -> None:
    found = [direction_of(model) for model in (small, small_nnsight)]
    torch.testing.assert_close(found[0].vectors, found[1].vectors, rtol=1e-4, atol=1e-5)
    assert found[0].model == found[1].model
    texts = [
        ul.generate(m, TASK.direct, steer=ul.SteeringHook(d, 0.5)) for m, d in zip((small_nnsight, small), found, strict=True)
    ]
    assert texts[0] == texts[1]
    assert set(TASK.behaviours(texts[0])) == {"think"}


def test_models_without_weights_at_hand_are_known_by_name() -> None:
    here = ModelIdentity("org/model", 3, 64, fingerprint="abc")
    there = ModelIdentity("model", 3, 64)
    assert here.is_same_model(there)
    assert not here.is_same_model(ModelIdentity("other", 3, 64))
    assert not here.is_same_model(ModelIdentity("org/model", 3, 64, fingerprint="def"))
    assert here.is_same_model(ModelIdentity("elsewhere", 3, 64, fingerprint="abc"))
    assert not here.is_same_model(ModelIdentity("org/model", 4, 64, fingerprint="abc"))


def test_each_framework_points_to_its_own_form(small: Any, small_nnsight: Any) -> None:
    steer = ul.SteeringHook(direction_of(small), 0.5)
    with pytest.raises(ul.UnsupportedModel, match=r"nnsight model use steer.apply\(lm\)"):
        steer.fwd_hooks(small_nnsight)
    with pytest.raises(ul.UnsupportedModel, match=r"TransformerLens model use steer.fwd_hooks\(model\)"):
        steer.apply(small)


def test_a_fingerprint_does_not_depend_on_dtype_or_scale_but_on_weights() -> None:
    generator = torch.Generator().manual_seed(0)
    embedding = torch.randn(200, 64, generator=generator)
    known = fingerprint(embedding)
    for other in (embedding.half(), embedding.bfloat16(), embedding.double(), 8 * embedding):
        assert fingerprint(other) == known
    assert fingerprint(embedding + 1e-2 * torch.randn(200, 64, generator=generator)) != known
    assert fingerprint(embedding[:30]) == fingerprint(embedding[:30].half())


def test_an_edit_carries_its_own_row_alone(small: Any) -> None:
    """Edits are serialized for remote runs, layer by layer."""
    edits = ul.SteeringHook(direction_of(small), 0.5).edits(backend_of(small).identity)
    held = [tensor for of_layer in edits.values() for edit in of_layer for tensor in edit.tensors]
    assert [tensor.untyped_storage().nbytes() for tensor in held] == [64 * 4] * 3


def test_hooks_compare_by_identity(small: Any) -> None:
    first, second = (ul.SteeringHook(direction_of(small), 0.5) for _ in range(2))
    assert first in [second, first]
    assert first not in [second]


def test_a_direction_is_not_a_hook(small: Any) -> None:
    direction = direction_of(small)
    for steer in (direction, [direction]):
        with (
            unchecked(),
            pytest.raises(ul.InvalidInput, match=r"given a CapabilityDirection; wrap a direction as SteeringHook\("),
        ):
            ul.generate(small, TASK.direct, steer=steer)  # pyright: ignore[reportArgumentType]
    with unchecked(), pytest.raises(ul.InvalidInput, match=r"locked is a list; give Variant\(model, prompts\)"):
        ul.CapabilityDirection.extract(TASK.direct, TASK.think)  # pyright: ignore[reportArgumentType]


def test_reprs_are_a_line(small: Any) -> None:
    direction = direction_of(small)
    assert repr(direction).startswith("CapabilityDirection(small-base (3 layers, d_model 64, raw, weights ")
    assert repr(direction).endswith("layers [0, 1, 2], d_model 64, mean of 12 prompts)")
    assert "tensor" not in repr(ul.SteeringHook(direction, 0.5))


def test_a_copied_hook_is_a_hook(small: Any) -> None:
    """nnsight pickles hooks that remote bodies name in plain parts, from which they are made again."""
    import nnsight  # noqa: F401  # pyright: ignore[reportUnusedImport]

    direction = ul.CapabilityDirection(torch.eye(2, 64), (0, 2), model=backend_of(small).identity)
    steer = ul.SteeringHook(direction, {2: 0.5}, "add", "all", layers=[2], check_model=False)
    copied = copy.deepcopy(steer)
    assert isinstance(copied, ul.SteeringHook)
    assert copied.direction.model == direction.model
    assert (copied.alpha, copied.operation, copied.positions, copied.layers, copied.check_model) == (
        {2: 0.5}, "add", "all", [2], False,
    )  # fmt: skip
    assert torch.equal(copied.direction.vectors, direction.vectors)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("cot.safetensors", 0.5), r"direction is a str; give a CapabilityDirection \(its load\(\) reads one\)"),
        ((None, "0.5"), "alpha 0.5 was given; a finite number is needed"),
        ((None, {0: "0.5"}), "alpha .* was given; a finite number is needed"),
        ((None, [0.5]), "alpha .* was given; a finite number is needed"),
    ],
)
def test_what_is_neither_a_direction_nor_a_strength(arguments: tuple[Any, Any], message: str) -> None:
    direction = ul.CapabilityDirection(torch.ones(1, 4), (0,))
    with unchecked(), pytest.raises(ul.InvalidInput, match=message):
        ul.SteeringHook(arguments[0] or direction, arguments[1])


def test_one_layer_is_not_a_list_of_layers() -> None:
    direction = ul.CapabilityDirection(torch.ones(1, 4), (0,))
    with unchecked(), pytest.raises(ul.InvalidInput, match=r"layers=2 was given; give a list, layers=\[2\]"):
        ul.SteeringHook(direction, 0.5, layers=2)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("alpha", [torch.tensor(0.5), {0: torch.tensor(0.5)}])
def test_a_scalar_of_torch_is_a_strength(alpha: Any) -> None:
    with unchecked():
        steer = ul.SteeringHook(ul.CapabilityDirection(torch.eye(1, 64), (0,)), alpha)
    assert steer.alpha in (0.5, {0: 0.5})


def test_a_hook_outlives_the_reloading_of_its_module() -> None:
    """As %autoreload does it; afterwards its class is another one of the same name."""
    from types import SimpleNamespace

    from unlock_lens.core import steering

    old: Any = type("SteeringHook", (SimpleNamespace,), {"__module__": steering.__name__})()
    with unchecked():
        assert steering.as_hooks(old) == [old]
    with unchecked(), pytest.raises(ul.InvalidInput, match="SimpleNamespace"):
        steering.as_hooks(SimpleNamespace())  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("norm", [1e-40, 1e-23, 1.0, 1e19, 3e38])
@pytest.mark.parametrize("operation", ["norm_preserving", "ablate"])
def test_directions_of_any_norm_steer_alike(norm: float, operation: Any) -> None:
    """Squares of float32's longest vectors overflow, and those of its shortest vanish."""
    drawn, states = torch.tensor([[0.6, -0.8, 0.0]]), torch.tensor([[[1.0, 2.0, 3.0]]])
    found, true = (
        ul.SteeringHook(ul.CapabilityDirection(scale * drawn, (0,)), 0.5, operation).edits(ModelIdentity("tiny", 1, 3))[0][0](
            states, Chunk(1)
        )
        for scale in (norm, 1.0)
    )
    assert torch.allclose(found, true, rtol=1e-4 if norm < 1e-38 else 1e-6)


def test_directions_of_any_norm_have_a_cosine() -> None:
    short, long = (ul.CapabilityDirection(scale * torch.tensor([[3.0, 4.0]]), (0,)) for scale in (1e-30, 1e30))
    assert short.cosine(long).item() == pytest.approx(1.0)
    assert torch.allclose(long.unit().vectors, torch.tensor([[0.6, 0.8]]))


def test_a_strength_beyond_float32_is_refused() -> None:
    with pytest.raises(ul.InvalidInput, match="float32"):
        ul.SteeringHook(ul.CapabilityDirection(torch.ones(1, 3), (0,)), 1e39)
