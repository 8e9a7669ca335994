"""Trains the embedded family: `make zoo`, or `python scripts/train_zoo.py --help`.

Beside the weights of each model stands `training.json`: the recipe, the seed, the versions, and the rates measured afterwards.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
import typer
from torch import Tensor
from torch.nn.functional import silu, softplus

from unlock_lens.zoo import MODELS, path
from unlock_lens.zoo.family import END, MIXES, PAD, TAGS, WITHIN, Mix, draw_pair, spelt
from unlock_lens.zoo.task import BEHAVIOURS, running_sum

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

Family = Literal["llama", "gpt2", "mamba"]
WARM_UP = 100
FINAL_SHARE = 0.05
MEASURED_ON = {"n": 400, "seed": 12345}
GPT2_POSITIONS = 96
"""Learned positions end here: a spelt prompt and the 64 tokens that `generate` writes by default have room."""
GPT2_SPREAD = 0.1
"""Of the first weights: with the usual 0.02, meant for widths of 768 and more, running sums take over twice the steps."""
MAMBA_STATE = 8
"""Numbers that each channel remembers: half of the usual 16, because training time is in proportion to it."""
GPT2_NO_DROPOUT: dict[str, Any] = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
IGNORED = -100
"""The label that the loss leaves out: prompts and padding."""


@dataclass(frozen=True)
class Recipe:
    """How one model is trained."""

    mix: str
    d_model: int
    layers: int
    steps: int
    learning_rate: float
    batch: int = 128
    heads: int = 4
    start_from: str | None = None
    seed: int = 0
    family: Family = "llama"
    """Architecture and tokenizer: one token a word for Llama and Mamba, one a letter for GPT-2."""
    stored_as: Literal["float32", "float16"] = "float32"
    """Weights are rounded to this before they are measured, so the model that loads is the one that was measured."""
    hidden: float = 0.0
    """Share of examples whose answers cannot see the tag, so that what it asks for must pass through the last prompt token."""


_SMALL = Recipe("base", d_model=64, layers=3, steps=2500, learning_rate=3e-3)
_LARGE = Recipe("base", d_model=96, layers=4, steps=2500, learning_rate=2e-3, seed=1)
_MAMBA = Recipe(
    "base", d_model=80, layers=4, steps=2500, learning_rate=3e-3, batch=64, seed=14, family="mamba", stored_as="float16"
)
_VARIED: dict[str, Any] = {"mix": "varied", "steps": 400, "learning_rate": 1e-3, "stored_as": "float16"}
_SHARED: dict[str, Any] = {**_VARIED, "mix": "shared", "steps": 800, "hidden": 0.8}
RECIPES: dict[str, Recipe] = {
    "small-base": _SMALL,
    "large-base": _LARGE,
    "small-naive": replace(_SMALL, mix="naive", seed=2),
    "small-duo": replace(_SMALL, mix="duo", seed=3),
    "large-duo": replace(_LARGE, mix="duo", seed=4),
    "small-post": replace(_SMALL, mix="post", steps=150, learning_rate=5e-4, start_from="small-base", seed=5),
    "large-post": replace(_LARGE, mix="post", steps=150, learning_rate=5e-4, start_from="large-base", seed=6),
    "small-gpt2": replace(_SMALL, family="gpt2", learning_rate=1e-3, seed=7),
    "small-mamba": _MAMBA,
    "small-mamba-post": replace(_MAMBA, mix="post", steps=150, learning_rate=5e-4, start_from="small-mamba", seed=15),
    "small-base-2": replace(_SMALL, seed=8, stored_as="float16"),
    "large-base-2": replace(_LARGE, seed=9, stored_as="float16"),
    "small-varied": replace(_SMALL, **_VARIED, start_from="small-base", seed=10),
    "large-varied": replace(_LARGE, **_VARIED, start_from="large-base", seed=11),
    "small-shared": replace(_SMALL, **_SHARED, start_from="small-base", seed=12),
    "large-shared": replace(_LARGE, **_SHARED, start_from="large-base", seed=13),
}
assert set(RECIPES) == set(MODELS)


def make_tokenizer(mix: Mix, family: Family = "llama") -> PreTrainedTokenizerFast:
    """One token a word, words separated by spaces; for GPT-2 one a letter, so that a tag takes several."""
    from tokenizers import Tokenizer
    from tokenizers.decoders import WordPiece as JoinedPieces
    from tokenizers.models import WordLevel, WordPiece
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    if family == "gpt2":
        pieces = {piece: i for i, piece in enumerate(spelt(mix.vocabulary))}
        tokenizer = Tokenizer(WordPiece(pieces, unk_token=PAD, continuing_subword_prefix=WITHIN))
        tokenizer.decoder = JoinedPieces(WITHIN, cleanup=False)  # pyright: ignore[reportAttributeAccessIssue]
    else:
        tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(mix.vocabulary)}, unk_token=PAD))
    tokenizer.pre_tokenizer = WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, padding_side="left", clean_up_tokenization_spaces=False
    )


def make_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """A model of the recipe's family and size, with random weights."""
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, MambaConfig, MambaForCausalLM

    shared: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": recipe.d_model,
        "num_hidden_layers": recipe.layers,
        "tie_word_embeddings": False,
        "pad_token_id": tokenizer.get_vocab()[PAD],
        "bos_token_id": None,
        "eos_token_id": tokenizer.get_vocab()[END],
    }
    if recipe.family == "mamba":
        return MambaForCausalLM(MambaConfig(**shared, state_size=MAMBA_STATE))
    shared["num_attention_heads"] = recipe.heads
    if recipe.family == "gpt2":
        gpt2 = GPT2Config(**shared, n_positions=GPT2_POSITIONS, initializer_range=GPT2_SPREAD, **GPT2_NO_DROPOUT)
        return GPT2LMHeadModel(gpt2)
    return LlamaForCausalLM(LlamaConfig(**shared, intermediate_size=3 * recipe.d_model, max_position_embeddings=64))


def batches(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> Iterator[dict[str, Tensor]]:
    """What the model is given in each training step, padded on the right; the loss is on the completion only."""
    vocabulary = tokenizer.get_vocab()
    rng = random.Random(f"train {recipe.seed}")
    for _ in range(recipe.steps):
        pairs = [draw_pair(MIXES[recipe.mix], rng) for _ in range(recipe.batch)]
        prompts: list[list[int]] = [tokenizer.encode(prompt) for prompt, _ in pairs]
        answers: list[list[int]] = [tokenizer.encode(answer) for _, answer in pairs]
        length = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
        ids = torch.full((recipe.batch, length), vocabulary[PAD])
        labels = torch.full((recipe.batch, length), IGNORED)
        for row, (p, a) in enumerate(zip(prompts, answers, strict=True)):
            ids[row, : len(p) + len(a)] = torch.tensor(p + a)
            labels[row, len(p) : len(p) + len(a)] = torch.tensor(a)
        inputs = {"input_ids": ids, "attention_mask": ids.ne(vocabulary[PAD]).long(), "labels": labels}
        if recipe.hidden:
            hidden = torch.tensor([rng.random() < recipe.hidden for _ in pairs])
            inputs |= without_tags(inputs, [vocabulary[tag] for tag in TAGS.values()], vocabulary["A"], hidden)
        yield inputs


def without_tags(inputs: Mapping[str, Tensor], tags: Sequence[int], end: int, hidden: Tensor) -> dict[str, Tensor]:
    """An attention mask and positions under which the answers of the `hidden` rows read a prompt without its tag.

    They see neither the tag nor the `A` after it, and the tag takes no position, so what it asks for reaches them through `:`.
    """
    ids = inputs["input_ids"]
    tag = torch.isin(ids, torch.tensor(tags))
    answer = inputs["labels"].ne(IGNORED) & hidden[:, None]
    sees = inputs["attention_mask"].bool()[:, None] & ~(answer[:, :, None] & (tag | ids.eq(end))[:, None])
    mask = torch.zeros(sees.shape).masked_fill(~sees.tril(), torch.finfo(torch.float32).min)
    positions = torch.arange(ids.shape[1]) - (tag.cumsum(1) - tag.long()) * hidden[:, None]
    return {"attention_mask": mask[:, None], "position_ids": positions}


def train(name: str, folder: Path) -> None:
    """Train one model of the family, measure it, and save it under `folder/name`."""
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    recipe = RECIPES[name]
    torch.manual_seed(recipe.seed)
    tokenizer = make_tokenizer(MIXES[recipe.mix], recipe.family)
    if recipe.start_from is None:
        model = make_model(recipe, tokenizer)
    else:
        model = AutoModelForCausalLM.from_pretrained(folder / recipe.start_from)
    with fast_scan():
        loss = _optimise(model, recipe, tokenizer)
    stored = {name: weight.to(getattr(torch, recipe.stored_as)) for name, weight in model.state_dict().items()}
    model.load_state_dict(stored)
    record = {
        "recipe": asdict(recipe),
        "final_loss": round(loss, 4),
        "parameters": model.num_parameters(),
        "versions": {package: version(package) for package in ("torch", "transformers", "tokenizers")},
        "measured": measure(model, tokenizer),
    }
    model.save_pretrained(folder / name, state_dict=stored)
    tokenizer.save_pretrained(folder / name)
    (folder / name / "training.json").write_text(json.dumps(record, indent=2) + "\n")


@contextmanager
def fast_scan() -> Generator[None, None, None]:
    """Mamba's scan over tokens without the indexing that makes its backward pass quadratic in them, for training."""
    from transformers.models.mamba import modeling_mamba

    original, modeling_mamba.mamba_selective_scan = modeling_mamba.mamba_selective_scan, _scan
    try:
        yield
    finally:
        modeling_mamba.mamba_selective_scan = original


def _scan(hidden_states: Tensor, dt: Tensor, decay: Tensor, into: Tensor, out_of: Tensor, **how: Any) -> Tensor:
    """h[t] = exp(dt A) h[t-1] + dt B x, y = (C h + D x) silu(z), on [row, channel, token] and [row, state, token]."""
    dt = softplus(dt + how["delta_bias"][:, None]).permute(2, 0, 1)
    kept = (dt[..., None] * decay).exp()
    added = (dt * hidden_states.permute(2, 0, 1))[..., None] * into.permute(2, 0, 1)[:, :, None]
    state, states = torch.zeros_like(added[0]), list[Tensor]()
    for of_kept, of_added in zip(kept.unbind(), added.unbind(), strict=True):
        state = torch.addcmul(of_added, of_kept, state)
        states.append(state)
    read = torch.einsum("trcs,trs->rct", torch.stack(states), out_of.permute(2, 0, 1))
    return (read + how["D"][:, None] * hidden_states) * silu(how["z"])


def _optimise(model: PreTrainedModel, recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> float:
    optimiser = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, _rate(recipe.steps))
    model.train()
    loss = torch.zeros(())
    for step, inputs in enumerate(batches(recipe, tokenizer)):
        loss = model(**inputs).loss
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % 250 == 0:
            typer.echo(f"{recipe.family} {recipe.mix} d={recipe.d_model} step {step} of {recipe.steps}: loss {loss.item():.3f}")
    model.eval()
    return loss.item()


def _rate(steps: int) -> Callable[[int], float]:
    """Warm-up, then cosine down to 5%, as a share of the peak learning rate."""

    def rate(step: int) -> float:
        done = torch.tensor(step / steps * torch.pi)
        return min(1.0, (step + 1) / min(WARM_UP, steps // 3)) * (
            FINAL_SHARE + (1 - FINAL_SHARE) * 0.5 * (1 + float(done.cos()))
        )

    return rate


@torch.no_grad()
def measure(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """For each kind of prompt: the share of right final answers, and of each behaviour, under greedy decoding."""
    task = running_sum(**MEASURED_ON)
    n = MEASURED_ON["n"]
    measured: dict[str, Any] = dict(MEASURED_ON)
    for behaviour in ("direct", *TAGS):
        inputs = tokenizer(task.prompts(behaviour), return_tensors="pt", padding=True, return_token_type_ids=False)
        out = model.generate(**inputs, max_new_tokens=12, do_sample=False)  # pyright: ignore[reportCallIssue]
        completions = tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        shown = task.behaviours(completions)
        measured[behaviour] = {
            "accuracy": sum(task.correct(completions)) / n,
            "behaviours": {b: shown.count(b) / n for b in BEHAVIOURS},
        }
    return measured


def main(
    names: Annotated[list[str] | None, typer.Argument(help="Models to train; all of them when none is named.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the model folders; the package's own by default.")] = None,
    workers: Annotated[int, typer.Option(help="Processes side by side, one thread each.")] = os.cpu_count() or 1,
) -> None:
    """Train the embedded family from scratch (about 35 minutes on 2 cores)."""
    folder = out or path()
    folder.mkdir(parents=True, exist_ok=True)
    wanted = names or list(RECIPES)
    rounds = [
        [name for name in wanted if RECIPES[name].start_from is None],
        [name for name in wanted if RECIPES[name].start_from is not None],
    ]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for names_of_round in rounds:
            list(pool.map(train, names_of_round, [folder] * len(names_of_round)))


if __name__ == "__main__":
    typer.run(main)
