"""Every causal-LM family of transformers, tiny and random, in each host: `make families`.

    .venv/bin/python -m benchmarks.families --write                # the table of docs/families.md
    .venv/bin/python -m benchmarks.families mamba qwen3_next       # some families, and what differs

A family is exact in a host where states, next-token log-probabilities, and steered completions, in a batch of uneven prompts,
with and without KV cache, are those of the bare Hugging Face model: one prompt at a time, no cache, no padding, its own hooks.
Each is tried in a process of its own, because a TransformerBridge changes classes of transformers for the whole process.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib.util
import io
import logging
import multiprocessing
import os
import tempfile
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import unlock_lens as ul
from benchmarks.family_models import LAYERS, WIDTH, built, families
from scripts.train_zoo import make_tokenizer
from unlock_lens.core import read
from unlock_lens.evidence.distributions import next_token_log_probs
from unlock_lens.zoo.family import MIXES

PAGE = Path(__file__).parents[1] / "docs" / "families.md"
BEGIN, END = "<!-- families: make families -->", "<!-- end of families -->"
HOSTS = {"nnsight": "nnsight", "bridge": "TransformerBridge"}
PROMPTS = ["Q 3 1 4 1 5 think A :", "Q 6 A :", "W", "Q 5 A :"]
"""Of uneven length, one of them a single token."""
POSITIONS = ("last_prompt", "all")
ALPHA, STEPS, CLOSE, SECONDS = 0.6, 4, 1e-4, 60
Outcome = dict[str, str]
"""For each host "exact", "refused: reason", "WRONG: what"; for none, "cannot be built here: reason"."""


def of_block(output: Any) -> Tensor:
    """The residual stream [row, token, d_model] of one row in what a block gives.

    It may be in a tuple, the first of several streams [stream, row, token, d_model], or have its tokens first.
    """
    states = output if isinstance(output, Tensor) else output[0]
    states = states[0] if states.ndim == 4 else states
    return states.transpose(0, 1) if states.shape[1] == 1 and states.shape[0] > 1 else states


def changed(output: Any, states: Tensor) -> Any:
    """The same output with another residual stream."""
    old = output if isinstance(output, Tensor) else output[0]
    if old.ndim == 4:
        new = torch.cat([states[None], old[1:]])
    else:
        new = states if old.shape == states.shape else states.transpose(0, 1)
    return new if isinstance(output, Tensor) else type(output)([new, *output[1:]])


class Plain:
    """The oracle: the bare model, and hooks of its own."""

    def __init__(self, model: Any) -> None:
        self.model, self.tokenizer = model, make_tokenizer(MIXES["base"])
        lists = [part for part in model.modules() if isinstance(part, nn.ModuleList) and len(part) == LAYERS]
        self.blocks = next(part for part in lists if any(True for _ in part[0].children()))
        self.vectors = torch.randn(LAYERS, WIDTH, generator=torch.Generator().manual_seed(1))

    @torch.no_grad()
    def run(self, ids: Sequence[int], steered: slice | None = None) -> tuple[Tensor, Tensor]:
        """States [layer, token, d_model], and log-probabilities after the last token."""
        states: list[Tensor] = []
        with self._hooked(states, steered):
            logits = self.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
        return torch.stack(states), logits.log_softmax(-1)

    @contextlib.contextmanager
    def _hooked(self, states: list[Tensor], steered: slice | None) -> Generator[None, None, None]:
        """Keeps what blocks give, and edits the tokens of a whole sequence that are to be steered."""

        def after(layer: int) -> Callable[..., Any]:
            def hook(module: Any, args: Any, output: Any) -> Any:
                h = of_block(output).clone()
                if steered is not None:
                    h[:, steered] = self._turned(h[:, steered], self.vectors[layer])
                states.append(h[0])
                return output if steered is None else changed(output, h)

            return hook

        handles = [block.register_forward_hook(after(i)) for i, block in enumerate(self.blocks)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @staticmethod
    def _turned(h: Tensor, v: Tensor) -> Tensor:
        new = h / h.norm(dim=-1, keepdim=True) + ALPHA * v / v.norm()
        return h.norm(dim=-1, keepdim=True) * new / new.norm(dim=-1, keepdim=True)

    @torch.no_grad()
    def written(self, prompt: str, positions: str) -> str:
        """The greedy completion of the model's own generate, without cache, steered."""
        ids: list[int] = self.tokenizer.encode(prompt)
        steered = {"last_prompt": slice(len(ids) - 1, len(ids)), "all": slice(None)}[positions]
        with self._hooked([], steered):
            whole = self.model.generate(
                torch.tensor([ids]), max_new_tokens=STEPS, do_sample=False, use_cache=False, num_beams=1
            )
        return str(self.tokenizer.decode(whole[0, len(ids) :], skip_special_tokens=True))


def expected(model: Any) -> dict[str, Any]:
    """All that the hosts must say."""
    plain = Plain(model)
    ids: list[list[int]] = [plain.tokenizer.encode(prompt) for prompt in PROMPTS]
    found: dict[str, Any] = {
        "states": torch.cat([plain.run(row)[0] for row in ids], dim=1),
        "log-probabilities": torch.stack([plain.run(row)[1] for row in ids]),
        "steered log-probabilities": torch.stack([plain.run(row, slice(len(row) - 1, len(row)))[1] for row in ids]),
        "vectors": plain.vectors,
    }
    found |= {positions: [plain.written(prompt, positions) for prompt in PROMPTS] for positions in POSITIONS}
    return found


def differing(model: Any, true: Mapping[str, Any]) -> list[str]:
    """What a host's model gives otherwise."""
    direction = ul.CapabilityDirection(true["vectors"], tuple(range(LAYERS)))
    hooks = {positions: ul.SteeringHook(direction, ALPHA, positions=positions) for positions in POSITIONS}
    found = {
        "states": read.at_all_tokens(ul.Variant(model, PROMPTS)),
        "log-probabilities": next_token_log_probs(model, PROMPTS),
        "steered log-probabilities": next_token_log_probs(model, PROMPTS, hooks["last_prompt"]),
    }
    wrong = [f"{name} by {_off(ours, true[name]):.0e}" for name, ours in found.items() if _off(ours, true[name]) > CLOSE]
    for positions in POSITIONS:
        for cached in (True, False):
            ours = ul.generate(model, PROMPTS, hooks[positions], max_new_tokens=STEPS, use_cache=cached, progress=False)
            if ours != true[positions]:
                wrong.append(f"completions steered at {positions} {'with' if cached else 'without'} cache")
    with hooks["last_prompt"].attached(model):
        ours = ul.generate(model, PROMPTS[:1], max_new_tokens=STEPS, progress=False)
    if ours != true["last_prompt"][:1]:
        wrong.append("completions while attached")
    return wrong


def _off(ours: Tensor, true: Tensor) -> float:
    if ours.shape != true.shape or not bool(ours.isfinite().equal(true.isfinite())):
        return float("inf")
    some = true.isfinite()
    return float((ours[some] - true[some]).norm() / true[some].norm())


def _in_nnsight(model: Any, folder: str) -> Any:
    import nnsight

    return nnsight.TransformersModel(model, tokenizer=make_tokenizer(MIXES["base"]), task="text-generation")


def _in_bridge(model: Any, folder: str) -> Any:
    from transformer_lens.model_bridge import TransformerBridge

    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    tokenizer = make_tokenizer(MIXES["base"])
    tokenizer.save_pretrained(folder)
    own = copy.deepcopy(model)  # TransformerLens changes the modules that it is given
    bridge: Any = TransformerBridge.boot_transformers(
        folder, hf_model=own, tokenizer=tokenizer, device="cpu", dtype=torch.float32
    )
    with torch.no_grad():
        bridge(torch.tensor([[3, 4]]))  # which a few adapters cannot do
    return bridge


def tried(kind: str) -> Outcome:
    """One family in each host."""
    try:
        model = built(kind)
        true = expected(model)
    except Exception as error:
        return dict.fromkeys(HOSTS, f"cannot be built here: {_short(error)}")
    outcome: Outcome = {}
    for host, opened in {"nnsight": _in_nnsight, "bridge": _in_bridge}.items():
        with tempfile.TemporaryDirectory() as folder:
            try:
                ours = opened(model, f"{folder}/{kind}")
            except ul.UnlockLensError as error:
                outcome[host] = f"refused: {_short(error)}"
                continue
            except Exception as error:
                outcome[host] = f"not run by {HOSTS[host]} itself: {_short(error)}"
                continue
            try:
                wrong = differing(ours, true)
                if _off(true["steered log-probabilities"], true["log-probabilities"]) < 100 * CLOSE:
                    wrong.append("nothing shows whether it is steered")
                outcome[host] = f"WRONG: {', '.join(wrong)}" if wrong else "exact"
            except ul.UnlockLensError as error:
                outcome[host] = f"refused: {_short(error)}"
            except Exception as error:
                outcome[host] = f"WRONG: fails with {_short(error)}"
    return outcome


def _short(error: Exception) -> str:
    said = " ".join(str(error).split()).replace("|", "/").partition(". ")[0].partition("; ")[0]
    return f"{'' if isinstance(error, ul.UnlockLensError) else type(error).__name__ + ': '}{said[:110]}".strip()


def _in_process(kind: str, answers: Any) -> None:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        answers.put(tried(kind))


def outcome_of(kind: str) -> Outcome:
    """The same, in a process that is forked, so that what is imported once serves all."""
    forked = multiprocessing.get_context("fork")
    answers = forked.SimpleQueue()
    process = forked.Process(target=_in_process, args=(kind, answers))
    process.start()
    process.join(SECONDS)
    if process.is_alive():
        process.kill()
        return dict.fromkeys(HOSTS, f"cannot be built here: takes more than {SECONDS} seconds")
    return answers.get() if not answers.empty() else dict.fromkeys(HOSTS, f"WRONG: its process ended with {process.exitcode}")


def prepare() -> None:
    """Import what all families need, in silence."""
    for package in ("nnsight", "transformer_lens"):
        assert importlib.util.find_spec(package), f"{package} is needed"
    import nnsight  # noqa: F401  # pyright: ignore[reportUnusedImport]
    from transformer_lens.model_bridge.sources.transformers import helpers

    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    os.environ["HF_HUB_OFFLINE"] = "1"
    assert callable(helpers._ensure_torchvision)  # pyright: ignore[reportPrivateUsage]  which runs `pip install` for multimodal models
    helpers._ensure_torchvision = lambda: False  # pyright: ignore[reportPrivateUsage]
    torch.set_num_threads(1)
    expected(built("llama"))


def table(outcomes: Mapping[str, Outcome]) -> str:
    """As it stands in the documents."""
    counts = {host: sum(of[host] == "exact" for of in outcomes.values()) for host in HOSTS}
    built_here = sum(not of["nnsight"].startswith("cannot") for of in outcomes.values())
    lines = [
        f"{built_here} of {len(outcomes)} families can be built here; {counts['nnsight']} are exact in nnsight and "
        f"{counts['bridge']} in TransformerBridge.",
        "",
        "| family | nnsight | TransformerBridge |",
        "|---|---|---|",
    ]
    return "\n".join([*lines, *(f"| {kind} | {of['nnsight']} | {of['bridge']} |" for kind, of in outcomes.items())])


def written_outcomes() -> dict[str, Outcome]:
    """What the table in the documents says."""
    page = PAGE.read_text()
    rows = [line.strip("| ").split(" | ") for line in page[page.index(BEGIN) : page.index(END)].splitlines() if " | " in line]
    return {kind: {"nnsight": nnsight.strip(), "bridge": bridge.strip()} for kind, nnsight, bridge in rows[1:]}


def main() -> None:
    """Try them all, or some."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", help="families; all when none is named")
    parser.add_argument("--write", action="store_true", help="write the table, or its rows, into docs/families.md")
    asked = parser.parse_args()
    prepare()
    outcomes = written_outcomes() if asked.kinds and asked.write else {}
    for kind in asked.kinds or families():
        outcomes[kind] = outcome_of(kind)
        print(kind, *(f"{HOSTS[host]}: {said}" for host, said in outcomes[kind].items()), sep=" | ", flush=True)  # noqa: T201
    if asked.write:
        page = PAGE.read_text()
        before, after = page[: page.index(BEGIN)], page[page.index(END) :]
        PAGE.write_text(f"{before}{BEGIN}\n{table(outcomes)}\n{after}")


if __name__ == "__main__":
    main()
