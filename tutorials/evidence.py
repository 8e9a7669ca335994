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
# # Is it real?
#
# Steering results are easy to fool oneself with. You will see a transfer that looks perfect and is none, a transfer
# that is one, and what tells them apart: controls, paired comparisons, specificity, the price, a forecast before the
# run, and a model into which nothing can be transferred. Last, a sweep does all of it in one call.
#
#     pip install unlock-lens matplotlib

# %%
import tempfile
import textwrap
import warnings
from collections import Counter

import matplotlib.pyplot as plt
import pandas as pd
import torch
from transformer_lens.model_bridge import TransformerBridge
from transformers.utils import logging

import unlock_lens as ul
from unlock_lens import controls, report, sweep, zoo
from unlock_lens.core import read
from unlock_lens.evidence.distributions import price
from unlock_lens.evidence.evaluation import compare, evaluate
from unlock_lens.evidence.statistics import sample_size_in_words
from unlock_lens.evidence.sweep.config import SweepConfig
from unlock_lens.evidence.tasks.texts import ZooText

logging.disable_progress_bar()  # of weights that are loaded
# Some maps below are fitted without unlocked prompts on purpose.
warnings.filterwarnings("ignore", message="no calibration token")

# %% [markdown]
# **The line to change is the next one.** As it stands it names two models of the embedded family (0.5 and 0.2 million
# parameters). Hub ids, such as `"Qwen/Qwen2.5-1.5B-Instruct", "Qwen/Qwen2.5-0.5B-Instruct"`, do as well. The prompts
# below are the embedded family's own, so put prompts and a check of yours in the place of `task`, `tuning` and
# `extract` (the next tutorial, `own`, shows how), texts of yours in the place of `text`, `fresh` and `unrelated`, and
# leave out the duo pair and the naive model, which belong to the family.

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
# Three sets of problems: directions are extracted from one, strengths are chosen on another, results are reported on
# the third. A question is six digits; asked to *think*, these models add them step by step, and are right.

# %%
extract, tuning, task = zoo.running_sum(n=200, seed=2), zoo.running_sum(n=60, seed=1), zoo.running_sum(n=100, seed=0)
ALPHAS = tuple(i / 10 for i in range(1, 9))


def run(model, problems, direction=None, alpha=0.0, prompts=None):
    """Completions, judged; plain prompts unless others are given."""
    steer = None if direction is None else ul.SteeringHook(direction, alpha)
    return evaluate(model, problems, prompts or problems.direct, steer, max_new_tokens=12, batch_size=100, progress=False)


def window(model, direction):
    """What a direction does to the tuning problems at each strength."""
    return {alpha: run(model, tuning, direction, alpha).outcome for alpha in ALPHAS}


def best(outcomes):
    """The strength with most right answers; the middle one of equals."""
    most = max(outcome.accuracy for outcome in outcomes.values())
    equals = [alpha for alpha, outcome in outcomes.items() if outcome.accuracy == most]
    return equals[len(equals) // 2]


def percent(shares):
    return [100 * share for share in shares]


def accuracies(outcomes):
    return percent(outcome.accuracy for outcome in outcomes.values())


def tidy(axes):
    axes.spines[["top", "right"]].set_visible(False)
    axes.set(xlabel="alpha, fraction of the residual's norm", ylabel="right answers, %", ylim=(-4, 104))


print("locked:  ", task.direct[0])
print("unlocked:", task.think[0])

# %% [markdown]
# ## A result that looks good
#
# The duo pair knows two behaviours: it answers at once, or step by step. The direction comes from the large one, and
# the map is the paper's: last token of the locked prompts, uncentered, rank 16.


# %%
duo_source, duo_target = opened(str(zoo.path() / "large-duo")), opened(str(zoo.path() / "small-duo"))
locked, unlocked = ul.Variant(duo_source, extract.direct), ul.Variant(duo_source, extract.think)
duo_locked = ul.Variant(duo_target, extract.direct)
duo_direction = ul.CapabilityDirection.extract(locked, unlocked, batch_size=100, progress=False)
duo_aligner = ul.SubspaceAligner.paper(rank=16).fit(locked, duo_locked, batch_size=100, progress=False)
duo_aligned = duo_aligner.transport(duo_direction)

duo_window = window(duo_target, duo_aligned)
before, after = run(duo_target, task), run(duo_target, task, duo_aligned, best(duo_window))
found = compare(after.right, before.right)
print(f"right of 100: {sum(before.right)} unsteered, {sum(after.right)} steered")
print(f"paired difference {found.difference:+.0%} ({found.low:+.0%} to {found.high:+.0%}), McNemar p {found.p:.0e}")

# %% [markdown]
# All right, and a p value that nobody would question. Now the control that needs no source at all: **anti-mean**, minus
# the target's own mean state at the end of the locked prompts.

# %%
duo_away = controls.anti_mean(duo_locked, like=duo_aligned, batch_size=100)
away_window = window(duo_target, duo_away)
control = run(duo_target, task, duo_away, best(away_window))
found = compare(after.right, control.right)
print(f"right of 100: {sum(after.right)} transferred, {sum(control.right)} anti-mean")
print(f"paired difference {found.difference:+.0%} ({found.low:+.0%} to {found.high:+.0%}), McNemar p {found.p:.0f}")
cosines = torch.cosine_similarity(duo_aligned.vectors, duo_away.vectors)
print("cosine of the two, by layer:", *(f"{cosine:.2f}" for cosine in cosines.tolist()))

_, axes = plt.subplots(figsize=(7, 3.4))
axes.plot(ALPHAS, accuracies(duo_window), color="#1b74c8", marker="o", label="transferred")
axes.plot(ALPHAS, accuracies(away_window), color="#c8560e", marker="s", linestyle="--", label="anti-mean, no source")
axes.axhline(100 / 7, color="#757575", linestyle=":", linewidth=1)
axes.text(0.1, 100 / 7 - 8, "chance", color="#757575")
axes.set_title("duo pair: the control does the same", loc="left", fontsize=10)
tidy(axes)
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# The control does as well. "Away from the locked state" is enough here, since there is only one other behaviour to go
# to, and the paper's calibration sends the direction almost exactly there in the last layer. The statistics were right,
# and the question was wrong: not "better than unsteered?", but "better than what needs no source?".
#
# ## The real case
#
# The base pair knows four behaviours (answer at once, think, reverse, double). The map is fitted on all tokens of
# ordinary text, centered, rank 48. The paper's calibration runs beside it.

# %%
text = zoo.text(n=600)
source_locked, target_locked = ul.Variant(source, extract.direct), ul.Variant(target, extract.direct)
source_text, target_text = ul.Variant(source, text), ul.Variant(target, text)


def behaviour(model, name):
    """Direction of one behaviour in a model."""
    pair = ul.Variant(model, extract.direct), ul.Variant(model, extract.prompts(name))
    return ul.CapabilityDirection.extract(*pair, batch_size=100, progress=False)


think = behaviour(source, "think")
on_text = ul.SubspaceAligner(rank=48)
on_text.fit(source_text, target_text, batch_size=100, progress=False)
papers = ul.SubspaceAligner.paper(rank=16).fit(source_locked, target_locked, batch_size=100, progress=False)
aligned = on_text.transport(think)

# %% [markdown]
# ## A forecast, before the run
#
# `ul.diagnose` asks three things. Can the target do it when it is asked to (`ability`, with a check of the whole
# answer)? Do source and target, on texts that the map was not fitted to, tell the capability at the same tokens? And
# does the steered target begin as the unlocked source does (`Probe`: one forward pass a strength)?

# %%
fresh = zoo.text(n=200, seed=7)


def ability(model):
    """Share of problems that a model solves step by step when it is asked to."""
    asked = run(model, tuning, prompts=tuning.think)
    steps = tuning.behaviours(asked.completions)
    return sum(right and step == "think" for right, step in zip(asked.right, steps, strict=True)) / len(steps)


def forecast(model, aligner, texts):
    """The forecast for a map of `think` into a model; the texts are fresh ones, of the kind that the map was fitted on."""
    begins = {"locked": ul.Variant(model, tuning.direct[:32]), "unlocked": ul.Variant(source, tuning.think[:32])}
    read = ul.Variant(source, texts), ul.Variant(model, texts)
    return ul.diagnose(think, aligner, *read, ability=ability(model), batch_size=100, **begins)


def in_lines(made):
    """Verdict and reasons, in lines that fit a page."""
    return "\n".join([made.verdict, *(textwrap.fill(f"- {reason}", 100, subsequent_indent="  ") for reason in made.reasons)])


promising = forecast(target, on_text, fresh)
print(in_lines(promising))
print(f"by geometry alone: {promising.geometry:.1f}; begin a sweep at alpha {promising.probe.alpha}")

# %% [markdown]
# ## Controls
#
# | arm | what it is | what it rules out |
# |---|---|---|
# | random | vectors of the same norms, ten seeds | any push will do |
# | anti-mean | away from the target's locked state | no source is needed |
# | shuffled | the same map, fitted on tokens paired at random, three seeds | the map knows nothing of the source |
# | without mean | the transfer less its part along the target's mean state | the transfer lives by that part (a reference) |
# | own | the target's own direction | nothing: it says what could be reached (a reference) |
#
# Each is tried at every strength. Judged at the strength of the transfer alone, a control could look weak for no reason
# but its scale.

# %%
states = [read.at_all_tokens(variant, batch_size=100) for variant in (source_text, target_text)]
models = source_text.backend.identity, target_text.backend.identity


def shuffled(seed):
    """`think` through a map of tokens that do not belong together."""
    aligner = ul.SubspaceAligner(rank=48)
    aligner.fit_activations(states[0], controls.shuffled(states[1], seed), *models)
    return controls.at_norms_of(aligner.transport(think), like=aligned)


arms = {
    "transferred": aligned,
    "paper's calibration": papers.transport(think),
    "anti-mean": controls.anti_mean(target_locked, like=aligned, batch_size=100),
    "without mean": controls.without_mean(target_locked, aligned, batch_size=100),
    "own": behaviour(target, "think"),
    **{f"shuffled {seed}": shuffled(seed) for seed in range(3)},
    **{f"random {seed}": controls.random_like(aligned, seed) for seed in range(10)},
}
windows = {arm: window(target, direction) for arm, direction in arms.items()}

# %%
styles = {
    "own": ("#757575", "^:"),
    "without mean": ("#757575", "v--"),
    "anti-mean": ("#c8560e", "s-"),
    "paper's calibration": ("#c8560e", "x--"),
    "transferred": ("#1b74c8", "o-"),
}
_, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.6), sharey=True)
for arm, (colour, style) in styles.items():
    left.plot(ALPHAS, accuracies(windows[arm]), style, color=colour, label=arm)
for name, colour, style in (("random", "#96700a", "-"), ("shuffled", "#c8560e", "--")):
    for seed, arm in enumerate(arm for arm in arms if arm.startswith(name)):
        right.plot(
            ALPHAS, accuracies(windows[arm]), style, color=colour, alpha=0.7, label=None if seed else f"{name}, each seed"
        )
for axes in (left, right):
    tidy(axes)
    axes.set_ylim(-4, 145)
    axes.set_yticks(range(0, 101, 20))
    axes.legend(frameon=False, loc="upper left", fontsize=8, ncols=2)
right.set_ylabel("")
plt.tight_layout()
plt.show()

# %% [markdown]
# The transfer has the window of the target's own direction. Without its mean part it works at least as well, so it does
# not live by that part. Anti-mean, the paper's calibration and the shuffled maps bring nothing. But look at the right:
# of ten random directions one brings the capability, too, at a strength at which the transfer does not.
#
# ## Reported on other problems, with intervals
#
# Each arm at its own best strength. Intervals are Wilson's, at 95%. The comparison is paired: the same problems, so
# that the luck of the draw is the same on both sides.

# %%
reported = {arm: run(target, task, arms[arm], best(windows[arm])) for arm in arms}
unsteered, asked = run(target, task), run(target, task, prompts=task.think)
everything = {"unsteered": unsteered, **reported, "asked to think": asked}

rows = {}
for arm in ("unsteered", "anti-mean", "paper's calibration", "shuffled 0", "shuffled 1", "shuffled 2", "random 0", "random 5"):
    found = compare(reported["transferred"].right, everything[arm].right)
    difference = f"{found.difference:+.0%} ({found.low:+.0%} to {found.high:+.0%})"
    rows[arm] = [
        sum(everything[arm].right),
        difference,
        found.gained,
        found.lost,
        f"{found.p:.0e}" if found.p < 0.01 else f"{found.p:.2f}",
    ]
columns = ["right of 100", "transferred is better by", "gained", "lost", "McNemar p"]
pd.DataFrame(rows.values(), index=list(rows), columns=columns)

# %%
shown = {}
for arm, evaluation in everything.items():
    shown.setdefault(arm.split()[0] if arm[-1].isdigit() else arm, []).append(evaluation.outcome)
colours = {"transferred": "#1b74c8", "random": "#96700a", "anti-mean": "#c8560e", "shuffled": "#c8560e"}

_, axes = plt.subplots(figsize=(7.5, 3.8))
for row, (arm, outcomes) in enumerate(shown.items()):
    for i, outcome in enumerate(outcomes):
        y = row + (i - (len(outcomes) - 1) / 2) * 0.07
        colour, share = colours.get(arm, "#757575"), 100 * outcome.accuracy
        axes.plot([100 * outcome.low, 100 * outcome.high], [y, y], color=colour, linewidth=1.5)
        axes.plot(share, y, "o", color=colour, markersize=5 if len(outcomes) == 1 else 3)
axes.axvline(100 / 7, color="#757575", linestyle=":", linewidth=1)
axes.text(100 / 7 + 1, -0.75, "chance", color="#757575")
names = [arm if len(outcomes) == 1 else f"{arm}, {len(outcomes)} seeds" for arm, outcomes in shown.items()]
axes.set_yticks(range(len(names)), names)
axes.set(xlabel="right answers, %, with 95% Wilson intervals", xlim=(-2, 102), ylim=(len(names) - 0.4, -1))
axes.spines[["top", "right"]].set_visible(False)
plt.tight_layout()
plt.show()

# %% [markdown]
# How many problems does it take? Twenty would have been few:

# %%
rate = unsteered.outcome.accuracy
print(*(sample_size_in_words(n, rate) or f"{n} problems can show a gain of 20 points" for n in (20, 100)), sep="\n")

# %% [markdown]
# ## Specificity
#
# One random direction of ten did as well, so right answers to *one* capability are no proof. What does a random
# direction bring, at any strength?

# %%
lines = []
for seed in range(10):
    seen = Counter()
    for outcome in windows[f"random {seed}"].values():
        seen.update(name for name, share in outcome.behaviours.items() if share > 0.5)
    lines.append(f"random {seed}: " + ", ".join(f"{name} at {n} strengths" for name, n in seen.items()))
print("\n".join(lines))

# %% [markdown]
# Half of them bring a behaviour when they are strong, whichever they happen to lie near. So let the source name it:
# three directions, one map, the strength that was chosen for *think*. Does each bring its own, and no other?

# %%
alpha = best(windows["transferred"])
names = ("think", "reverse", "double")
brought = [run(target, task, on_text.transport(behaviour(source, name)), alpha).outcome.behaviours for name in names]
shown = ("direct", *names, "other")

_, axes = plt.subplots(figsize=(6, 2.9))
image = axes.imshow([[100 * row[name] for name in shown] for row in brought], cmap="Blues", vmin=0, vmax=100)
for i, row in enumerate(brought):
    for j, name in enumerate(shown):
        axes.text(j, i, f"{row[name]:.0%}", ha="center", va="center", color="white" if row[name] > 0.5 else "#333333")
axes.set_xticks(range(len(shown)), shown)
axes.set_yticks(range(len(names)), names)
axes.set(xlabel="behaviour of the completions", ylabel="direction of the source")
plt.colorbar(image, label="completions, %")
plt.tight_layout()
plt.show()

# %% [markdown]
# Each brings its own, in all completions. A random direction would have to be lucky three times, at one strength, and
# each time with the behaviour that was asked for.
#
# ## The price
#
# What does the edit do to text that has nothing to do with it? Here those are prompts that ask for something else. The
# prompt is steered, and what follows is read. KL(unsteered || steered) is a mean over next-token distributions, in
# nats; in brackets stands the perplexity of the text, which is 1.0 unsteered.

# %%
unrelated = ZooText(n=100, without=("think",), plain=False).read(seed=1)
strengths = (0.3, 0.5, 0.7)
costs = {
    arm: [price(target, unrelated, ul.SteeringHook(arms[arm], at), batch_size=100, prompt_end=":") for at in strengths]
    for arm in ("transferred", "anti-mean", "random 0")
}
print("such as:", unrelated[0])
pd.DataFrame(
    {arm: [f"{cost.kl:.2f} ({cost.perplexity:.1f})" for cost in row] for arm, row in costs.items()},
    index=pd.Index(strengths, name="alpha"),
)

# %% [markdown]
# The price grows steeply with the strength: take the lowest that works, not the highest.
#
# ## When transfer fails: the naive model
#
# `small-naive` has the same size and the same training, less every text that shows step-by-step answers.

# %%
naive = opened(str(zoo.path() / "small-naive"))
to_naive = ul.SubspaceAligner(rank=48)
to_naive.fit(source_text, ul.Variant(naive, text), batch_size=100, progress=False)
into_naive = to_naive.transport(think)
naive_window = window(naive, into_naive)
kinds = {
    alpha: {name: percent([share])[0] for name, share in outcome.behaviours.items()} for alpha, outcome in naive_window.items()
}
pd.DataFrame(kinds.values(), index=pd.Index(kinds, name="alpha")).round().astype(int)

# %% [markdown]
# At no strength does it think. Strong edits bring a behaviour that it does have, which is not the one that was sent:
# the task's count of behaviours says so. The forecast saw it before:

# %%
hopeless = forecast(naive, to_naive, fresh)
print(in_lines(hopeless))

# %% [markdown]
# Its reasons, in order: the model cannot do it when it is asked to; the two models do not tell the capability at the
# same tokens; the probe sees no completion begin as it should.
#
# ## What forecasts are worth
#
# The same forecast for other maps of the same direction, and then what came, at the best strength. "Without think" is a
# map fitted on texts that hold no trace of step-by-step answers.

# %%
without, fresh_without = (ZooText(n=n, without=("think",)).read(seed) for n, seed in ((600, 0), (200, 7)))
blind = ul.SubspaceAligner(rank=48)
blind.fit(ul.Variant(source, without), ul.Variant(target, without), batch_size=100, progress=False)
maps = {
    "text, rank 48": (target, on_text, fresh),
    "text, rank 16": (target, on_text.at_rank(16), fresh),
    "text, rank 4": (target, on_text.at_rank(4), fresh),
    "text without think": (target, blind, fresh_without),
    "paper's calibration": (target, papers, zoo.running_sum(n=200, seed=3).direct),
    "naive target": (naive, to_naive, fresh),
}
forecasts, came = {}, {}
for name, (model, aligner, texts) in maps.items():
    forecasts[name] = forecast(model, aligner, texts)
    outcomes = window(model, aligner.transport(think)).values()
    came[name] = max(outcome.behaviours["think"] for outcome in outcomes)

_, axes = plt.subplots(figsize=(7.5, 3.6))
for row, (name, made) in enumerate(forecasts.items()):
    reach = min(1.0, 2 * made.ability)
    axes.barh(row, 100 * came[name], height=0.6, color="#1b74c8", alpha=0.35, label=None if row else "came: step by step, %")
    axes.plot(100 * made.score, row - 0.14, "o", color="#c8560e", label=None if row else "forecast with a probe")
    axes.plot(100 * reach * made.geometry, row + 0.14, "D", color="#757575", label=None if row else "by geometry alone")
axes.set_yticks(range(len(maps)), list(maps))
axes.set(xlabel="forecast score times 100; completions step by step, %", xlim=(-2, 102), ylim=(len(maps) - 0.5, -0.5))
axes.spines[["top", "right"]].set_visible(False)
axes.legend(frameon=False, loc="lower right")
plt.tight_layout()
plt.show()

# %% [markdown]
# With a probe the forecast is close in all six. Geometry alone (times ability) steers nothing. It names the hopeless
# ones, and is unsure of two maps, of which one brings all and the other a third.
#
# ## All of it in one call
#
# A sweep chooses rank and strength on one split, reports once on another, runs the controls, the naive model and the
# other behaviours, and words the verdict. This grid is small; `recipes.load("zoo")` is the whole one.

# %%
config = SweepConfig.parse(
    {
        "name": "think, large to small",
        "source": SOURCE,
        "target": TARGET,
        "naive": "zoo:small-naive",
        "task": {"kind": "running_sum"},
        "sizes": {"extract": 100, "train": 40, "test": 100},
        "capability": {"name": "think", "locked": "Q {question} A :", "unlocked": "Q {question} think A :"},
        "calibration": {"kind": "zoo", "n": 600},
        "grid": {"aligner": ["text"], "n": [100], "rank": [16, 48], "alpha": [0.4, 0.5, 0.6]},
        "controls": ["random", "anti_mean", "shuffled", "naive", "own"],
        "sampling": {"samples": 0},
        "max_new_tokens": 12,
        "batch_size": 100,
    }
)
with tempfile.TemporaryDirectory() as folder:
    found = sweep.run(config, folder, progress=False)
print(report.verdict(found).headline)
report.summary(found)[["accuracy", "low", "high", "gained", "lost", "rank", "alpha"]].round(2)

# %% [markdown]
# `report.verdict(found)` has paragraphs, too, and `report.write(found, "report.html")` makes a page with figures and
# completions side by side. On the command line, with the config in a file (`config.to_yaml()` writes one):
#
#     unlock-lens diagnose mine.yaml
#     unlock-lens sweep mine.yaml --out mine
#     unlock-lens report mine --html mine.html
#
# Every right answer came, no control came near, and the verdict still does not credit the source: two of 19 sources without
# a capability, through the same map and with the same strengths to choose from, do as well. In a model this small some
# noise opens a behaviour, and only such a test shows it. In the family whose plain prompts vary, noise does not
# (`unlock-lens sweep --zoo`). Then `others`, the further behaviours of the task, say whether a transfer is specific.
#
# What to take home: choose strengths on other problems than you report; give every control its own best strength; run
# anti-mean always; send sources without a capability through the same map; count behaviours and not only right answers;
# ask first whether the target can do it.
