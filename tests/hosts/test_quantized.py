"""Models whose weights are packed, kept elsewhere, or changed by an adapter: right, or refused by name, in every host."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import unlock_lens as ul
from scripts.train_zoo import make_tokenizer
from tests.hosts.families import family, greedy, in_nnsight, plain, without_end
from tests.hosts.models import HAS_HOOKED_TRANSFORMER
from unlock_lens.core import read
from unlock_lens.hosts import backend_of
from unlock_lens.zoo.family import MIXES

PROMPTS = ["Q 3 1 4 1 5 think A :", "Q 6 A :", "W"]
ALPHA, STEPS = 0.6, 4
QUANTIZERS = {"torchao": "torchao", "quanto": "optimum.quanto"}


Make = Callable[[], Any]


@pytest.fixture(scope="module", params=QUANTIZERS)
def make(request: pytest.FixtureRequest) -> Make:
    """Makes a Llama whose linear layers are int8; each time anew, because TransformerLens changes what it is given."""
    package = QUANTIZERS[request.param]
    for name in dict.fromkeys((package.partition(".")[0], package)):
        pytest.importorskip(name, reason=f"{request.param} is not installed")
    return torchao_int8 if request.param == "torchao" else quanto_int8


def torchao_int8() -> Any:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_  # pyright: ignore[reportMissingImports]

    model = copy.deepcopy(family("llama"))
    quantize_(model, Int8WeightOnlyConfig())
    return model.eval()


def quanto_int8() -> Any:
    from optimum.quanto import freeze, qint8, quantize  # pyright: ignore[reportMissingImports]

    model = copy.deepcopy(family("llama"))
    quantize(model, weights=qint8)
    freeze(model)
    return model.eval()


def opened(model: Any, host: str, folder: Path) -> Any:
    if host == "nnsight":
        return in_nnsight(model)
    from transformer_lens.model_bridge import TransformerBridge

    tokenizer = make_tokenizer(MIXES["base"])
    family("llama").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    bridge: Any = TransformerBridge.boot_transformers(str(folder), hf_model=model, tokenizer=tokenizer, device="cpu")
    bridge.cfg.default_prepend_bos = False
    return bridge


@pytest.mark.skipif(HAS_HOOKED_TRANSFORMER, reason="TransformerLens 3 copies weights, and knows no packed ones")
@pytest.mark.parametrize("host", ["nnsight", "bridge"])
def test_int8_weights_are_read_fitted_and_steered(make: Make, host: str, tmp_path: Path) -> None:
    quantized, model = make(), opened(make(), host, tmp_path)
    rows: list[list[int]] = [model.tokenizer.encode(prompt) for prompt in PROMPTS]
    true = torch.cat([plain(quantized, row)[0] for row in rows], dim=1)
    torch.testing.assert_close(read.at_all_tokens(ul.Variant(model, PROMPTS)), true.detach(), rtol=1e-4, atol=1e-4)
    float_states = torch.cat([plain(family("llama"), row)[0] for row in rows], dim=1)
    assert (true - float_states).norm() > 1e-3 * true.norm()  # it is the quantized model that was read
    vectors = torch.randn(3, 48, generator=torch.Generator().manual_seed(0))
    identity = backend_of(model).identity
    hook = ul.SteeringHook(ul.CapabilityDirection(vectors, (0, 1, 2), "raw", identity), ALPHA)
    steered = [without_end(model, greedy(quantized, row, vectors, ALPHA, STEPS)) for row in rows]
    assert ul.generate(model, PROMPTS, hook, max_new_tokens=STEPS) == steered
    assert steered != ul.generate(model, PROMPTS, max_new_tokens=STEPS)
    aligner = ul.SubspaceAligner(rank=2).fit(model, model, PROMPTS * 4)
    assert aligner.target_model is not None
    assert aligner.target_model.is_same_model(identity)


def test_an_int8_model_is_its_float_model_in_another_dtype(make: Make) -> None:
    """So that a key made for one acts in the other, as one does that was made in float32 and acts in bfloat16."""
    other = copy.deepcopy(family("llama"))
    with torch.no_grad():
        other.get_input_embeddings().weight.neg_()
    identity, whole, another = (backend_of(in_nnsight(of)).identity for of in (make(), family("llama"), other))
    assert identity.is_same_model(whole)
    assert identity.weights != whole.weights  # what is kept for resuming tells them apart
    assert not identity.is_same_model(another)


class Packed(nn.Embedding):
    """An embedding that a quantizer packed into bytes."""

    def __init__(self, of: nn.Embedding) -> None:
        super().__init__(of.num_embeddings, of.embedding_dim)
        self.scale = float(of.weight.detach().abs().max()) / 127
        packed = (of.weight.detach() / self.scale).round().to(torch.int8)
        self.weight = nn.Parameter(packed, requires_grad=False)

    def forward(self, input: Tensor) -> Tensor:
        return self.weight[input].float() * self.scale


def test_an_embedding_that_has_no_fingerprint_is_reported() -> None:
    hf: Any = copy.deepcopy(family("llama"))
    hf.set_input_embeddings(Packed(hf.get_input_embeddings()))
    model = in_nnsight(hf)
    with pytest.warns(UserWarning, match="embedding is quantized"):
        identity = backend_of(model).identity
    assert identity.fingerprint is None
    states = read.at_position(ul.Variant(model, PROMPTS))
    true = torch.stack([plain(hf, model.tokenizer.encode(prompt))[0][:, -1] for prompt in PROMPTS], dim=1)
    torch.testing.assert_close(states, true.detach(), rtol=1e-4, atol=1e-4)


def test_a_model_that_is_partly_on_the_disk_is_served_in_nnsight(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    from transformers import AutoModelForCausalLM

    family("llama").save_pretrained(tmp_path)
    # nnsight's pipeline needs the first module on a device.
    spread = {"model.embed_tokens": "cpu", "model.layers.0": "disk", "model.layers.1": "disk", "model.layers.2": "disk"}
    spread |= {"model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "disk"}
    hf: Any = AutoModelForCausalLM.from_pretrained(
        tmp_path, device_map=spread, offload_folder=tmp_path / "offloaded", dtype=torch.float32
    )
    model, whole = in_nnsight(hf.eval()), in_nnsight(family("llama"))
    assert backend_of(model).identity.fingerprint == backend_of(whole).identity.fingerprint
    found, want = (read.at_all_tokens(ul.Variant(of, PROMPTS)) for of in (model, whole))
    torch.testing.assert_close(found, want)
    vectors = torch.randn(3, 48, generator=torch.Generator().manual_seed(0))
    hook = ul.SteeringHook(ul.CapabilityDirection(vectors, (0, 1, 2)), ALPHA)
    written, wanted = (ul.generate(of, PROMPTS, hook, max_new_tokens=STEPS) for of in (model, whole))
    assert written == wanted
    assert written != ul.generate(whole, PROMPTS, max_new_tokens=STEPS)


def test_an_adapter_that_is_switched_after_extraction_is_reported() -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed")
    from tests.hosts.test_peft import adapted

    wrapped = adapted()
    wrapped.add_adapter("other", peft.LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False))
    model = in_nnsight(wrapped.eval())
    direction = ul.CapabilityDirection.extract(ul.Variant(model, PROMPTS[:2]), ul.Variant(model, PROMPTS[1:]))
    hook = ul.SteeringHook(direction, ALPHA)
    assert len(ul.generate(model, PROMPTS, hook, max_new_tokens=STEPS)) == len(PROMPTS)
    wrapped.set_adapter("other")
    with pytest.raises(ul.IncompatibleModel, match="made for"):
        ul.generate(model, PROMPTS, hook, max_new_tokens=STEPS)
    wrapped.set_adapter("default")
    assert len(ul.generate(model, PROMPTS, hook, max_new_tokens=STEPS)) == len(PROMPTS)
