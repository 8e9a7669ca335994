"""Absolute times on a GPU: models of the shapes of Qwen2.5-1.5B and 7B with random weights in bfloat16, made on the spot.

    python benchmarks/gpu.py                    # all of it, in five minutes of an H100; as Markdown
    python benchmarks/gpu.py --shapes tiny --tokens 2000 --device cpu   # the script itself, without a GPU

Extraction against a bare forward pass, a fit of all layers, and generation steered against unsteered.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from speed_models import make_tokenizer_folder, prompts

import unlock_lens as ul

SHAPES: dict[str, dict[str, int]] = {
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4},
    "1.5B": {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12},
    "7B": {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28},
}
KEY_HEADS = {"tiny": 2, "1.5B": 2, "7B": 4}
VOCABULARY = 151_936
LENGTH = 250
NEW_TOKENS = 64
ROUNDS = 3


class Bench:
    """Models of random weights on one device."""

    def __init__(self, device: str, folder: Path, vocabulary: int) -> None:
        self.device, self.folder, self.vocabulary = torch.device(device), folder, vocabulary
        make_tokenizer_folder(folder, vocabulary)

    def model(self, shape: str) -> Any:
        """An nnsight model."""
        from nnsight import TransformersModel
        from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

        ends: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": None}
        sizes: dict[str, Any] = SHAPES[shape] | {"num_key_value_heads": KEY_HEADS[shape], "vocab_size": self.vocabulary}
        config = Qwen2Config(**sizes, **ends, max_position_embeddings=2048, dtype=torch.bfloat16)
        torch.manual_seed(0)
        with self.device:
            weights: Any = Qwen2ForCausalLM(config)
        weights.to(torch.bfloat16).eval()
        return TransformersModel(weights, tokenizer=AutoTokenizer.from_pretrained(self.folder))

    def seconds(self, work: Callable[[], Any], rounds: int = ROUNDS) -> float:
        """The least of several rounds after one that does not count."""
        found: list[float] = []
        for _ in range(rounds + 1):
            self._wait()
            start = time.perf_counter()
            work()
            self._wait()
            found.append(time.perf_counter() - start)
        return min(found[1:] or found)

    def once(self, work: Callable[[], Any]) -> tuple[float, float]:
        """Seconds of one run, and the most memory that it took beyond what was held, in GiB."""
        on_gpu = self.device.type == "cuda"
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        before, seconds = torch.cuda.memory_allocated() if on_gpu else 0, self.seconds(work, rounds=0)
        return seconds, ((torch.cuda.max_memory_allocated() if on_gpu else 0) - before) / 2**30

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def rows(bench: Bench, shapes: list[str], tokens: int) -> Iterator[str]:
    """Markdown, a measurement a row."""
    yield "| what | model | seconds | against | ratio or memory |\n|---|---|---|---|---|"
    models = {shape: bench.model(shape) for shape in shapes}
    for shape, model in models.items():
        yield from extraction(bench, shape, model)
        yield from generation(bench, shape, model)
    texts = prompts(tokens // LENGTH, LENGTH, LENGTH, bench.vocabulary)
    source, target = models[shapes[0]], models[shapes[-1]]
    aligner = ul.SubspaceAligner()
    sides = (ul.Variant(source, texts), ul.Variant(target, texts))
    seconds, memory = bench.once(lambda: aligner.fit(*sides, batch_size=32, progress=False))
    read = bench.seconds(lambda: [_forward(bench, model, texts, 32) for model in (source, target)], rounds=0)
    yield (
        f"| fit of all layers on {aligner.n_tokens:,} tokens | {shapes[0]} to {shapes[-1]} | {seconds:.1f} | "
        f"bare passes of both, {read:.1f} s | {seconds / read:.1f} times; {memory:.1f} GiB beyond the models |"
    )


def extraction(bench: Bench, shape: str, model: Any) -> Iterator[str]:
    """A direction of 64 pairs of prompts, and the same prompts through the bare model."""
    locked, unlocked = (prompts(64, 40, 120, bench.vocabulary, seed) for seed in (1, 2))
    sides = ul.Variant(model, locked), ul.Variant(model, unlocked)
    ours = bench.seconds(lambda: ul.CapabilityDirection.extract(*sides, batch_size=64, progress=False))
    bare = bench.seconds(lambda: [_forward(bench, model, some, 64) for some in (locked, unlocked)])
    yield f"| extract, 64 pairs | {shape} | {ours:.3f} | bare passes, {bare:.3f} s | {ours / bare:.2f} times |"


def generation(bench: Bench, shape: str, model: Any) -> Iterator[str]:
    """New tokens of the host's own generate, with every layer steered at the last prompt token and without."""
    layers, width = SHAPES[shape]["num_hidden_layers"], SHAPES[shape]["hidden_size"]
    drawn = torch.randn(layers, width, generator=torch.Generator().manual_seed(0))
    steer = ul.SteeringHook(ul.CapabilityDirection(drawn, tuple(range(layers))), 0.1)
    for batch in (1, 128):
        some = ul.Variant(model, prompts(batch, 100, 100, bench.vocabulary))
        how: dict[str, Any] = {"max_new_tokens": NEW_TOKENS, "batch_size": batch, "progress": False}
        plain, steered = (bench.seconds(partial(ul.generate, model, some, hook, **how)) for hook in (None, steer))
        yield (
            f"| generate {NEW_TOKENS} tokens steered, batch {batch} | {shape} | {steered:.3f} | unsteered, {plain:.3f} s | "
            f"{steered / plain:.3f} times, {batch * NEW_TOKENS / steered:,.0f} tokens a second |"
        )


@torch.inference_mode()
def _forward(bench: Bench, model: Any, texts: list[str], batch_size: int) -> None:
    tokens = ul.Variant(model, texts).tokens
    for start in range(0, len(texts), batch_size):
        some = slice(start, start + batch_size)
        ids, mask = tokens.ids[some].to(bench.device), tokens.mask[some].to(bench.device)
        model._module.model(ids, attention_mask=mask, use_cache=False)


def main() -> None:
    """Print the table as it is measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["1.5B", "7B"])
    parser.add_argument("--tokens", type=int, default=100_000, help="calibration tokens of the fit")
    parser.add_argument("--device", default="cuda")
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit(
            "there is no GPU here: torch.cuda.is_available() is False; --device cpu --shapes tiny tries the script"
        )
    card = torch.cuda.get_device_name() if given.device == "cuda" else "CPU"
    names = ("torch", "transformers", "nnsight")
    print(f"{card}; {', '.join(f'{name} {version(name)}' for name in names)}; bfloat16\n", flush=True)  # noqa: T201
    with tempfile.TemporaryDirectory() as folder:
        vocabulary = 1000 if given.shapes == ["tiny"] else VOCABULARY
        for row in rows(Bench(given.device, Path(folder), vocabulary), given.shapes, given.tokens):
            print(row, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
