# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Bring your own capability
#
# Questions in a table, two templates, a check in a few lines of Python, and a pair of models: that is all a transfer
# needs. You will see a capability defined from nothing, moved within a family, moved to a model of another family with
# another tokenizer, a contrast of two models in the place of two prompts, and the same task in a sweep. A checklist for
# the case that nothing happens stands at the end.
#
#     pip install unlock-lens matplotlib

# %%
import dataclasses
import json
import random
import warnings
from collections import Counter
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import torch
from transformer_lens.model_bridge import TransformerBridge
from transformers.utils import logging

import unlock_lens as ul
from unlock_lens import controls, report, sweep, zoo
from unlock_lens.evidence.evaluation import compare, evaluate
from unlock_lens.evidence.sweep.config import SweepConfig
from unlock_lens.evidence.tasks import JsonlSpec, Sizes

logging.disable_progress_bar()  # of weights that are loaded
# Some maps below are fitted without unlocked prompts on purpose.
warnings.filterwarnings("ignore", message="no calibration token")
logging.set_verbosity_error()  # steered too much, a model may write padding, of which transformers warns

# %% [markdown]
# **The line to change is the next one.** As it stands it names two models of the embedded family (0.5 and 0.2 million
# parameters). Hub ids do as well, such as `"Qwen/Qwen2.5-1.5B-Instruct", "Qwen/Qwen2.5-0.5B-Instruct"`. Then write the
# cells of the questions, the templates and the check for them, and raise `LENGTH` and the rank in `fitted`; all that
# follows is made from those. The sections on another family and on two models open further models by name.

# %%
SOURCE, TARGET = str(zoo.path() / "large-base"), str(zoo.path() / "small-base")


# %%
def opened(name):
    """A model in TransformerLens, which shall put no BOS before text, as the family's tokenizer puts none."""
    model = TransformerBridge.boot_transformers(name, device="cpu", dtype=torch.float32)
    model.cfg.default_prepend_bos = False
    return model


source, target = opened(SOURCE), opened(TARGET)

# %% [markdown]
# ## Questions
#
# Plain dicts with a question and an answer, one JSON object a line. The capability here is to double each of six digits
# modulo 7. The embedded models begin that with a `W`, so it belongs to the answer.

# %%
rng = random.Random(0)
rows = []
for _ in range(400):
    digits = [rng.randrange(7) for _ in range(6)]
    doubled = [2 * digit % 7 for digit in digits]
    rows.append({"question": " ".join(map(str, digits)), "answer": " ".join(["W", *map(str, doubled)])})
Path("doubling.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n")
print(Path("doubling.jsonl").read_text().splitlines()[0])

# %% [markdown]
# `JsonlSpec` reads them and draws three sets that share no question: directions come from one, strengths are chosen on
# another, results are reported on the third. If you have the dicts in Python only, `Task("name", tuple(Problem(**row)
# for row in rows), check)` does the same without a file.

# %%
splits = JsonlSpec(path="doubling.jsonl").splits(Sizes(extract=200, train=60, test=100), seed=0)
print({name: len(getattr(splits, name)) for name in ("extract", "train", "test")})

# %% [markdown]
# ## Templates
#
# Two strings with a `{question}`. The locked one leaves the capability out, the unlocked one asks for it. They differ
# in as little as possible, and end on the same token: that is where directions are taken, and where the edit goes in.

# %%
LOCKED, UNLOCKED = "Q {question} A :", "Q {question} double A :"
extract, tuning, task = splits.extract, splits.train, splits.test
print(task.prompts(LOCKED)[0], "|", task.prompts(UNLOCKED)[0])

# %% [markdown]
# ## A check
#
# A check takes a completion and its problem and says whether it is right. A second function may tell *what* the model
# does, right or wrong. Both are attached to the tasks. Behaviour and correctness move apart, so it pays to have both.

# %%
LENGTH = 12
KINDS = {"W": "doubles", "=": "answers at once", "S": "adds step by step", "R": "reverses"}


def is_doubled(completion, problem):
    """The question's digits doubled modulo 7, after the opening W."""
    digits = [int(digit) for digit in problem.question.split()]
    return completion.split() == ["W", *(str(2 * digit % 7) for digit in digits)]


def kind_of(completion):
    """What a completion does, by its first word."""
    return KINDS.get(completion[:1], "other")


mine = {"check": is_doubled, "classify": kind_of, "behaviour_names": (*KINDS.values(), "other")}
extract, tuning, task = (dataclasses.replace(part, **mine) for part in (extract, tuning, task))
print("right, of a wrong answer and 99 true ones:", sum(task.correct(["W 0 0 0 0 0 0", *task.answers[1:]])))

# %% [markdown]
# ## Look before you transfer
#
# The source must have the capability when it is asked to and lack it when it is not. The target must be able to, too:
# steering unlocks, and teaches nothing.


# %%
def run(model, problems, direction=None, alpha=0.0, template=LOCKED):
    """Completions, judged."""
    steer = None if direction is None else ul.SteeringHook(direction, alpha)
    settings = {"max_new_tokens": LENGTH, "batch_size": 100, "progress": False}
    return evaluate(model, problems, problems.prompts(template), steer, **settings)


def looked(name, model):
    """What a model makes of both templates."""
    lines = []
    for template in (LOCKED, UNLOCKED):
        found = run(model, task, template=template)
        kinds = dict(Counter(task.behaviours(found.completions)))
        lines.append(f"{name:6} {template:23} {sum(found.right):3} of 100 right, {kinds}, such as: {found.completions[0]}")
    return "\n".join(lines)


print(looked("source", source), looked("target", target), sep="\n")

# %% [markdown]
# ## Calibration text
#
# The map between the two residual streams is fitted on text that both models read. What that text spans decides what
# can be carried. It needs no corpus here: the source answers the questions of `extract`, with and without being asked
# for the capability. Beside it, to see the difference, stand the locked prompts alone.


# %%
def written(model, problems, *templates):
    """Prompts, each with what a model writes after it."""
    prompts = [prompt for template in templates for prompt in problems.prompts(template)]
    answers = ul.generate(model, prompts, max_new_tokens=LENGTH, batch_size=100, progress=False)
    return [f"{prompt} {answer}" for prompt, answer in zip(prompts, answers, strict=True)]


texts = written(source, extract, LOCKED, UNLOCKED)
print(texts[0], "|", texts[-1])

# %% [markdown]
# ## Transfer
#
# Extract at the last prompt token, fit on all tokens of the texts, transport.


# %%
def fitted(source, target, texts):
    """The map from one model to another, on all tokens of texts."""
    aligner = ul.SubspaceAligner(rank=48)
    return aligner.fit(ul.Variant(source, texts), ul.Variant(target, texts), batch_size=100, progress=False)


locked, unlocked = (ul.Variant(source, extract.prompts(template)) for template in (LOCKED, UNLOCKED))
direction = ul.CapabilityDirection.extract(locked, unlocked, batch_size=100, progress=False)
aligner = fitted(source, target, texts)
aligned = aligner.transport(direction)

# %% [markdown]
# A forecast before the run. The probe looks at first tokens, the rest at texts that the map was not fitted to: here the
# tuning questions, answered by the source.

# %%
begins = {"locked": ul.Variant(target, tuning.prompts(LOCKED)), "unlocked": ul.Variant(source, tuning.prompts(UNLOCKED))}
ability = run(target, tuning, template=UNLOCKED).outcome.accuracy
fresh = written(source, tuning, LOCKED, UNLOCKED)
read = ul.Variant(source, fresh), ul.Variant(target, fresh)
forecast = ul.diagnose(direction, aligner, *read, ability=ability, batch_size=100, **begins)
print(forecast.verdict, *forecast.reasons, sep="\n- ")

# %%
ALPHAS = tuple(i / 10 for i in range(2, 10))
away = controls.anti_mean(ul.Variant(target, extract.prompts(LOCKED)), like=aligned, batch_size=100)
arms = {
    "transferred": aligned,
    "locked prompts alone": fitted(source, target, extract.prompts(LOCKED)).transport(direction),
    "random": controls.random_like(aligned),
    "anti-mean": away,
}


def window(model, direction, problems=tuning):
    """Right answers to the tuning problems, in percent, at each strength."""
    return [100 * run(model, problems, direction, alpha).outcome.accuracy for alpha in ALPHAS]


def best(shares):
    """The strength with most right answers; the middle one of equals."""
    equals = [alpha for alpha, share in zip(ALPHAS, shares, strict=True) if share == max(shares)]
    return equals[len(equals) // 2]


windows = {arm: window(target, vectors) for arm, vectors in arms.items()}

_, axes = plt.subplots(figsize=(8, 3.6))
styles = (("#1b74c8", "o-"), ("#757575", "D:"), ("#96700a", "^-"), ("#c8560e", "s--"))
for (arm, shares), (colour, style) in zip(windows.items(), styles, strict=True):
    axes.plot(ALPHAS, shares, style, color=colour, label=arm)
axes.set(xlabel="alpha, fraction of the residual's norm", ylabel="right answers, %", ylim=(-4, 104))
axes.spines[["top", "right"]].set_visible(False)
axes.legend(frameon=False, loc="upper left", fontsize=8)
plt.show()

# %% [markdown]
# The locked prompts alone bring nothing: no token of theirs shows the behaviour. With the source's answers in the texts
# it arrives, in a window of strengths. Reported on problems that nothing was chosen on, each arm at its best strength,
# with 95% Wilson intervals and the paired comparison with the unsteered target. (One random direction is one draw, and
# another may bring the behaviour by chance; the sweep below runs several.)

# %%
before = run(target, task)
table = {}
for arm, vectors in arms.items():
    alpha = best(windows[arm])
    after = run(target, task, vectors, alpha)
    found, outcome = compare(after.right, before.right), after.outcome
    kind = Counter(task.behaviours(after.completions)).most_common(1)[0][0]
    table[arm] = [alpha, f"{outcome.accuracy:.0%} ({outcome.low:.0%}-{outcome.high:.0%})", found.gained, found.lost, kind]
columns = ["alpha", "right", "gained", "lost", "mostly"]
pd.DataFrame(table.values(), index=list(table), columns=columns)

# %% [markdown]
# ## Another family, another tokenizer
#
# `small-gpt2` is a GPT-2: learned positions, LayerNorm, a vocabulary in another order. Its tokenizer spells the tags.


# %%
gpt2 = opened(str(zoo.path() / "small-gpt2"))
backends = [ul.Variant(model, task.prompts(UNLOCKED)).backend for model in (source, gpt2)]
read = [" ".join(backend.tokenizer.tokenize(task.prompts(UNLOCKED)[0])) for backend in backends]
print(*(f"{backend.identity.architecture:5} {tokens}" for backend, tokens in zip(backends, read, strict=True)), sep="\n")

# %% [markdown]
# The calls stay as they are. `positions="all"` pairs tokens that end at the same character, where both models have read
# the same text, and the answers are among them. `positions="last"`, the paper's way, takes the last token of each text
# alone: of locked prompts that is the same ":" each time, from which no map can learn what doubling looks like.

# %%
to_gpt2 = fitted(source, gpt2, texts).transport(direction)
prompts = ul.Variant(source, extract.prompts(LOCKED)), ul.Variant(gpt2, extract.prompts(LOCKED))
papers = ul.SubspaceAligner.paper(rank=16).fit(*prompts, batch_size=100, progress=False).transport(direction)
gpt2_window, papers_window = window(gpt2, to_gpt2), window(gpt2, papers)
lines = [looked("gpt2", gpt2)]
for name, vectors, shares in (("all", to_gpt2, gpt2_window), ("last", papers, papers_window)):
    after = run(gpt2, task, vectors, best(shares))
    told = f"{sum(after.right):3} of 100 right at alpha {best(shares)}, such as: {after.completions[0]}"
    lines.append(f"{name:6} {'steered':23} {told}")
print("\n".join(lines))

# %% [markdown]
# A probe works here too: where vocabularies differ, it compares what the first tokens write.
#
# ## Two models in the place of two prompts
#
# Where the capability came by training, the contrast is two models on the same prompts: `small-post` is `small-base`
# trained further, to add step by step always. Now the small models are the source and the large one is the target. The
# questions stay, and get another check.


# %%
def is_sum(completion, problem):
    """Running sums modulo 7, then the last of them: a final digit that could be guessed is not enough."""
    digits = [int(digit) for digit in problem.question.split()]
    sums = [str(sum(digits[: i + 1]) % 7) for i in range(len(digits))]
    return completion.split() == ["S", *sums, "=", sums[-1]]


base, post, large = (
    opened(str(zoo.path() / "small-base")),
    opened(str(zoo.path() / "small-post")),
    opened(str(zoo.path() / "large-base")),
)
sums, sums_tuning = (dataclasses.replace(part, check=is_sum) for part in (task, tuning))
trained = ul.CapabilityDirection.extract(
    locked=ul.Variant(base, extract.prompts(LOCKED)),
    unlocked=ul.Variant(post, extract.prompts(LOCKED)),
    batch_size=100,
    progress=False,
)

# %% [markdown]
# Which texts? Answers of both models to plain prompts show the behaviour, and still are not enough. The edit goes in at
# the last prompt token, which is read before any answer, so from plain prompts alone the map sees no state in which the
# steps are about to come. Prompts that ask for them show it such states.

# %%
plain = written(base, extract, LOCKED) + written(post, extract, LOCKED)
upwards = {
    "answers to plain prompts": fitted(base, large, plain).transport(trained),
    "and to prompts that ask": fitted(base, large, plain + written(base, extract, "Q {question} think A :")).transport(trained),
}
post_windows = {name: window(large, vectors, sums_tuning) for name, vectors in upwards.items()}
lines = [f"{'unsteered':25} {sum(run(large, sums).right):3} of 100 right"]
for name, vectors in upwards.items():
    alpha = best(post_windows[name])
    after = run(large, sums, vectors, alpha)
    lines.append(f"{name:25} {sum(after.right):3} of 100 right at alpha {alpha}, such as: {after.completions[0]}")
print("\n".join(lines))

# %%
_, axes = plt.subplots(figsize=(7, 3.6))
axes.plot(ALPHAS, windows["transferred"], "o-", color="#1b74c8", label="doubling: large Llama to small Llama")
axes.plot(ALPHAS, gpt2_window, "s-", color="#96700a", label="doubling: large Llama to GPT-2")
upward = post_windows["and to prompts that ask"]
axes.plot(ALPHAS, upward, "^-", color="#c8560e", label="post-training: small Llama to large Llama")
axes.set(xlabel="alpha, fraction of the residual's norm", ylabel="right answers, %", ylim=(-4, 150))
axes.set_yticks(range(0, 101, 20))
axes.spines[["top", "right"]].set_visible(False)
axes.legend(frameon=False, loc="upper left")
plt.show()

# %% [markdown]
# Each pair has a window of its own. Look for it on the tuning problems each time.
#
# ## The same task in a sweep
#
# A sweep's config names files, so that it can be run again from the command line. The check of a JSONL task is one of
# `exact`, `number`, `choice` and `math`; `exact` does for answers that are written out word by word, as these are. For
# a check of your own, put a `Task` with it into a Python file, `{"kind": "python", "path": "mine.py"}`. The calibration
# texts go into a file, too; one that holds a question of the train or test split would be left out.

# %%
Path("texts.jsonl").write_text("\n".join(json.dumps({"text": line}) for line in texts) + "\n")
config = SweepConfig.parse(
    {
        "name": "doubling, large to small",
        "source": SOURCE,
        "target": TARGET,
        "task": {"kind": "jsonl", "path": "doubling.jsonl", "check": "exact"},
        "sizes": {"extract": 200, "train": 60, "test": 100},
        "capability": {"name": "doubling", "locked": LOCKED, "unlocked": UNLOCKED},
        "calibration": {"kind": "file", "path": "texts.jsonl"},
        "grid": {"aligner": ["text"], "n": [200], "rank": [16, 48], "alpha": [0.4, 0.5, 0.6, 0.7]},
        "controls": ["own", "random", "anti_mean", "shuffled"],
        "sampling": {"samples": 0},
        "max_new_tokens": LENGTH,
        "batch_size": 100,
    }
)
found = sweep.run(config, "doubling", progress=False)
print(report.verdict(found).headline)
report.summary(found)[["accuracy", "low", "high", "gained", "lost", "rank", "alpha"]].round(2)

# %% [markdown]
# All answers came, and one of three maps whose tokens were paired at random brings them as well: in models this small that
# happens, and the verdict does not credit the source. The [tutorial on evidence](evidence.ipynb) says more. From a shell,
# with that config in a file (`Path("mine.yaml").write_text(config.to_yaml())`):
#
#     unlock-lens sweep mine.yaml --out doubling
#     unlock-lens report doubling --html doubling.html
#
# ## When nothing happens
#
# | look at | because | with |
# |---|---|---|
# | ability | steering unlocks what is there | the target on the unlocked template, with a check of the whole answer |
# | strength | windows are narrow, each pair has its own | eight strengths, as in `window` above; `forecast.probe.alpha` |
# | calibration text | what it does not span is not carried | is the behaviour in it, and foretold by a prompt? |
# | rank | too low a rank makes another direction of it | `aligner.at_rank(k)`, `rank="cv"` |
# | templates | where they end is where the direction is taken | do both end on the same token? else `position=` in `extract` |
# | positions | an edit of one token acts on what follows through attention alone | `SteeringHook(..., positions="all")` |
# | layers | some map badly | `forecast.layers`, `SteeringHook(..., layers=[...])` |
# | tokenizer, BOS | one token more or less moves everything | `Variant(...).tokens`, `add_special_tokens=` everywhere |
# | your check | a completion may be right and be cut off | `max_new_tokens`; print some completions |
# | forecast | it names what stands in the way | `ul.diagnose(...)`: read the reasons, not the score alone |
#
# And when something does happen, that tutorial asks whether it is real.
