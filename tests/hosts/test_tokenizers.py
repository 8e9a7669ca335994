"""The tokenizer that a user gave is the one that is read with, in every host, with BOS where it adds BOS."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, GPT2Tokenizer

import unlock_lens as ul
from unlock_lens.hosts.tokenizers import meant_by

WORDS = {chr(c): i for i, c in enumerate(range(97, 123))} | {"\u0120": 26, "<bos>": 27}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 whose published tokenizer knows BOS and does not add it."""
    folder = tmp_path_factory.mktemp("gpt2")
    GPT2Tokenizer(vocab=WORDS, merges=[], bos_token="<bos>", eos_token="<bos>", unk_token="<bos>").save_pretrained(folder)
    sizes: dict[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
    GPT2LMHeadModel(GPT2Config(vocab_size=32, bos_token_id=27, eos_token_id=27, **sizes)).save_pretrained(folder)
    return folder


def opened(folder: Path, host: str, tokenizer: Any) -> Any:
    hf = GPT2LMHeadModel.from_pretrained(folder)
    if host == "nnsight":
        from nnsight import TransformersModel

        return TransformersModel(hf, tokenizer=tokenizer or AutoTokenizer.from_pretrained(folder), task="text-generation")
    from transformer_lens.model_bridge import TransformerBridge

    return TransformerBridge.boot_transformers(str(folder), hf_model=hf, tokenizer=tokenizer, device="cpu")


@pytest.mark.filterwarnings("ignore:the host of")  # TransformerLens' own text path adds BOS where these tokenizers do not
@pytest.mark.parametrize("host", ["bridge", "nnsight"])
@pytest.mark.parametrize("given", ["none", "as published", "adds BOS", "has a token more"])
def test_ids_are_those_of_the_tokenizer_that_was_given(folder: Path, host: str, given: str) -> None:
    tokenizer: Any = None if given == "none" else AutoTokenizer.from_pretrained(folder, add_bos_token=given == "adds BOS")
    if given == "has a token more":
        tokenizer.add_special_tokens({"additional_special_tokens": ["<think>"]})
    expected = (tokenizer or AutoTokenizer.from_pretrained(folder))("ab<think>")["input_ids"]
    model = opened(folder, host, tokenizer)
    assert ul.Variant(model, ["ab<think>"]).tokens.ids.tolist() == [expected]
    assert (expected[0] == 27) is (given == "adds BOS")


@pytest.mark.filterwarnings("ignore:the host of")
@pytest.mark.parametrize("host", ["bridge", "nnsight"])
@pytest.mark.parametrize("adds", [True, False])
@pytest.mark.parametrize("wanted", [True, False])
def test_bos_is_as_asked(folder: Path, host: str, adds: bool, wanted: bool) -> None:
    model = opened(folder, host, AutoTokenizer.from_pretrained(folder, add_bos_token=adds))
    assert ul.Variant(model, ["ab"], prepend_bos=wanted).tokens.ids.tolist() == [[27, 0, 1] if wanted else [0, 1]]


def test_a_tokenizer_that_is_put_in_later_is_read_with(folder: Path) -> None:
    model = opened(folder, "bridge", AutoTokenizer.from_pretrained(folder, add_bos_token=True))
    assert ul.Variant(model, ["ab"]).tokens.ids.tolist() == [[27, 0, 1]]
    model.tokenizer = AutoTokenizer.from_pretrained(folder)
    assert ul.Variant(model, ["ab"], prepend_bos=False).tokens.ids.tolist() == [[0, 1]]


def test_a_host_that_reads_text_otherwise_is_reported_once(folder: Path, tmp_path: Path) -> None:
    named = tmp_path / "read-otherwise"
    GPT2LMHeadModel.from_pretrained(folder).save_pretrained(named)
    AutoTokenizer.from_pretrained(folder).save_pretrained(named)
    model = opened(named, "bridge", None)
    with pytest.warns(UserWarning, match="prepend_bos"):
        _ = ul.Variant(model, ["ab"]).tokens
    _ = ul.Variant(model, ["ba"]).tokens  # a second warning would be an error here


def test_of_a_model_that_was_opened_before_the_import_the_published_tokenizer_counts(folder: Path) -> None:
    held = AutoTokenizer.from_pretrained(folder, add_bos_token=True)  # as TransformerLens would have loaded it, unwatched
    with pytest.warns(UserWarning, match="imported"):
        assert meant_by(held)("ab")["input_ids"] == [0, 1]


def test_a_caution_stands_at_the_callers_line(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import torch\nimport unlock_lens as ul\nfrom unlock_lens import zoo\n"
        "ids = torch.tensor([[11, 0]])\nul.Variant(zoo.load('small-base'), tokens=ids)\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert f"{script}:5: UserWarning" in done.stderr
    assert "attention_mask" in done.stderr
