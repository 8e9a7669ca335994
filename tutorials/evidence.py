# ---
# jupyter:
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Is it real?
#
# A transfer that looks perfect and proves nothing, and one that holds. Controls tell them apart, each tried at every strength.
#
#     pip install 'unlock-lens[transformer-lens,nnsight,evidence]' matplotlib

# %%
import os
import warnings

import matplotlib.pyplot as plt
import pandas as pd
import torch

import unlock_lens as ul
from unlock_lens import controls, zoo
from unlock_lens.evidence.evaluation import compare

warnings.filterwarnings("ignore", message="no calibration token")  # the paper's calibration has none, on purpose

# %% [markdown]
# **With your own models** this is the one cell to change: two models, prompts without and with the capability, text, and a
# check of completions. As it stands it takes a pair of the package whose plain prompts vary. With `UNLOCK_LENS_MODELS` set
# (`make real`) it takes SmolLM2 and Gemma, and the capability is writing French.

# %% tags=["yours"]
if MODELS := os.environ.get("UNLOCK_LENS_MODELS"):
    from nnsight import TransformersModel

    source, target = (
        TransformersModel(f"{MODELS}/{name}", task="text-generation", dispatch=True, dtype=torch.bfloat16)
        for name in ("smollm2", "gemma")
    )
    WHO = {"My sister": "Ma sœur", "The old king": "Le vieux roi", "The teacher": "Le professeur", "The doctor": "Le médecin"}
    DID = {"lives in": "habite dans", "has seen": "a vu", "is looking for": "cherche", "was born in": "est né dans"}
    locked, unlocked = ([f"{a} {b}," for a in who for b in did] for who, did in ((WHO, DID), (WHO.values(), DID.values())))
    text = [*locked, *unlocked, *(f"{s} the village." for s in locked), *(f"{s} le village." for s in unlocked)]
    openings = [
        f"{a} {b}"
        for a in ("Our mayor", "A soldier", "His wife", "The baker")
        for b in ("went back to", "opened", "saw", "found")
    ]
    tuning, tested = openings[::2], openings[1::2]
    SINKS, ALPHAS, SEEDS = "drop", (0.2, 0.3, 0.4, 0.6), 3

    def shows(prompts, completions):
        """Which completions have at least two common French words."""
        common = {"le", "la", "les", "des", "du", "une", "un", "et", "est", "dans", "que", "qui", "pour", "il", "elle", "sur"}
        return [sum(word in common for word in written.lower().split()) > 1 for written in completions]
else:
    source, target = zoo.load("large-varied"), zoo.load("small-varied")
    sets = zoo.running_sum(n=100, seed=1), zoo.running_sum(n=100, seed=0)
    tuning, tested, locked, unlocked = sets[0].direct, sets[1].direct, sets[0].direct, sets[0].think
    text = [*zoo.text(n=600, mix="varied"), *locked, *unlocked]
    SINKS, ALPHAS, SEEDS = "auto", tuple(i / 10 for i in range(1, 9)), 9

    def shows(prompts, completions):
        return sets[prompts is not tuning].correct(completions)


# %% [markdown]
# ## A result that looks good
#
# Two models that know two ways to answer: at once, or step by step. The direction of *step by step* comes from the large one
# through the paper's calibration (last token of the locked prompts, uncentered, rank 16). The control is **anti-mean**: away
# from the target's own mean state, with no source at all.


# %%
def run(model, prompts, judge, steer=None):
    return judge(prompts, ul.generate(model, prompts, steer, max_new_tokens=12, batch_size=100, progress=False))


def shares(model, prompts, judge, direction):
    """The share of completions that show the capability, in percent, at every strength."""
    return [100 * sum(run(model, prompts, judge, ul.SteeringHook(direction, alpha))) / len(prompts) for alpha in ALPHAS]


duo = zoo.load("large-duo"), zoo.load("small-duo")
sums = zoo.running_sum(n=100, seed=1)
duo_locked = [ul.Variant(model, sums.direct) for model in duo]
duo_direction = ul.CapabilityDirection.extract(duo_locked[0], ul.Variant(duo[0], sums.think), progress=False)
duo_aligned = ul.SubspaceAligner.paper(rank=16).fit(*duo_locked, progress=False).transport(duo_direction)
duo_arms = {"transferred": duo_aligned, "anti-mean": controls.anti_mean(duo_locked[1], like=duo_aligned)}
duo_curves = {arm: shares(duo[1], sums.direct, lambda _, made: sums.correct(made), v) for arm, v in duo_arms.items()}
print("cosine of the two, by layer:", [f"{c:.2f}" for c in duo_aligned.cosine(duo_arms["anti-mean"]).tolist()])

# %% [markdown]
# ## The same question to another pair
#
# The map is now fitted on all tokens of text that holds both kinds of prompt. **Random** is any direction of these norms, by
# several seeds. **Own**, the target's own direction, is not a control: it says what can be reached.

# %%
plain = ul.Variant(target, locked)
direction = ul.CapabilityDirection.extract(ul.Variant(source, locked), ul.Variant(source, unlocked), progress=False)
aligned = ul.SubspaceAligner(sinks=SINKS).fit(source, target, text, progress=False).transport(direction)
arms = {
    "transferred": aligned,
    "own": ul.CapabilityDirection.extract(plain, ul.Variant(target, unlocked), progress=False),
    "anti-mean": controls.anti_mean(plain, like=aligned),
    **{f"random {seed}": controls.random_like(aligned, seed) for seed in range(SEEDS)},
}
curves = {arm: shares(target, tuning, shows, v) for arm, v in arms.items()}

# %%
_, panels = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True, layout="constrained")
looks = {"transferred": "#1b74c8", "own": "#0c8a66", "anti-mean": "#c8560e", "random": "#9aa0a8"}
titles = "The warning: anti-mean does the same", "This pair: does any control do the same?"
for panel, found, title in zip(panels, (duo_curves, curves), titles, strict=True):
    for arm, curve in found.items():
        kind = arm.split()[0]
        label = kind if arm in (kind, "random 0") else None
        panel.plot(ALPHAS, curve, color=looks[kind], marker="o", markersize=3, label=label)
    panel.set_title(title, loc="left", fontsize=10)
    panel.set(xlabel="strength alpha", ylim=(-4, 104))
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(frameon=False, fontsize=8)
panels[0].set_ylabel("completions that show it, %")
plt.show()

# %% [markdown]
# ## Reported on other prompts
#
# Each arm at its own best strength; the comparison is paired, prompt by prompt.

# %%
reported = {"unsteered": run(target, tested, shows)}
for arm, curve in curves.items():
    equals = [alpha for alpha, share in zip(ALPHAS, curve, strict=True) if share == max(curve)]
    reported[arm] = run(target, tested, shows, ul.SteeringHook(arms[arm], equals[len(equals) // 2]))
rows = {}
for arm, right in reported.items():
    found = compare(reported["transferred"], right)
    difference = f"{found.difference:+.0%} ({found.low:+.0%} to {found.high:+.0%})"
    rows[arm] = [f"{sum(right) / len(right):.0%}", difference, f"{found.p:.1g}"]
as_good = sum(max(curve) >= max(curves["transferred"]) for arm, curve in curves.items() if arm.startswith("random"))
print(f"{as_good} of {SEEDS} random directions do as well: p = {(1 + as_good) / (1 + SEEDS):.2g}")
pd.DataFrame(rows.values(), index=list(rows), columns=["show it", "transferred is better by", "McNemar p"])

# %% [markdown]
# `unlock-lens sweep` runs all of this with 19 null sources, more controls and the price on unrelated text, and
# `unlock-lens report` writes the verdict as one page ([docs/evidence.md](../docs/evidence.md)).
