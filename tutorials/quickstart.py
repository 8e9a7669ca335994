# ---
# jupyter:
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Move a capability, and see whether it arrived
#
# A larger model shows a capability when its prompt asks for it. A smaller one is not asked. You will find the capability in
# the first as a direction, bring it into the second, and compare with two controls that need no transfer at all. Nothing is
# trained.
#
#     pip install 'unlock-lens[transformer-lens,nnsight,evidence]' matplotlib

# %%
import os

import matplotlib.pyplot as plt
import pandas as pd
import torch

import unlock_lens as ul
from unlock_lens import controls, zoo
from unlock_lens.evidence.evaluation import compare
from unlock_lens.evidence.statistics import wilson_interval

# %% [markdown]
# **With your own models** this is the one cell to change: two models, prompts without and with the capability, ordinary
# text, and a check of completions.
#
# As it stands it takes the two models that come with the package (0.5 and 0.2 million parameters), which add six digits
# modulo 7 step by step when the prompt says *think*. With `UNLOCK_LENS_MODELS` set (`make real`) it takes SmolLM2-135M and
# Gemma-3-270m, two real models of different families; the capability is writing French.

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
    SINKS, MAX_NEW_TOKENS, ALPHAS = "drop", 14, (0.2, 0.3, 0.4, 0.6)

    def shows(prompts, completions):
        """Which completions have at least two common French words."""
        common = {"le", "la", "les", "des", "du", "une", "un", "et", "est", "dans", "que", "qui", "pour", "il", "elle", "sur"}
        return [sum(word in common for word in written.lower().split()) > 1 for written in completions]
else:
    source, target = zoo.load("large-base"), zoo.load("small-base")
    sets = zoo.running_sum(n=100, seed=1), zoo.running_sum(n=100, seed=0)
    tuning, tested = (each.direct for each in sets)
    locked, unlocked, text = sets[0].direct, sets[0].think, zoo.text(n=600)
    SINKS, MAX_NEW_TOKENS, ALPHAS = "auto", 12, tuple(i / 10 for i in range(1, 9))

    def shows(prompts, completions):
        """Which completions end in the right answer."""
        return sets[prompts is not tuning].correct(completions)


for name, prompts in {"locked": locked, "unlocked": unlocked}.items():
    print(f"{name:9}", prompts[0], "|", ul.generate(source, prompts[:1], max_new_tokens=MAX_NEW_TOKENS, progress=False)[0])

# %% [markdown]
# ## Extract, align, transport
#
# The direction is the mean difference of the two prompts' states at the last prompt token, one vector for each layer of the
# source. A low-rank linear map, fitted on what both models make of the same text, carries it into the target. Neither step
# sees an answer.

# %%
direction = ul.CapabilityDirection.extract(ul.Variant(source, locked), ul.Variant(source, unlocked), progress=False)
aligner = ul.SubspaceAligner(sinks=SINKS).fit(source, target, text, progress=False)
aligned = aligner.transport(direction)
print(aligned)

# %% [markdown]
# ## How strong?
#
# The edit turns the state of the last prompt token towards the direction and keeps its norm; `alpha` says how far. Every arm
# chooses its own strength, on prompts that are not reported. **Random** is any direction of the same norms. **Anti-mean**
# points away from the target's own mean state, and has no source.

# %%
away = controls.anti_mean(ul.Variant(target, locked), like=aligned)
arms = {"transferred": aligned, "random": controls.random_like(aligned), "anti-mean": away}


def run(prompts, steer=None):
    completions = ul.generate(target, prompts, steer, max_new_tokens=MAX_NEW_TOKENS, batch_size=100, progress=False)
    return completions, shows(prompts, completions)


counts = {arm: [sum(run(tuning, ul.SteeringHook(vectors, alpha))[1]) for alpha in ALPHAS] for arm, vectors in arms.items()}
best = {}
for arm, right in counts.items():
    equals = [alpha for alpha, count in zip(ALPHAS, right, strict=True) if count == max(right)]
    best[arm] = equals[len(equals) // 2]  # the middle of a plateau
pd.DataFrame(counts.values(), index=list(counts), columns=ALPHAS)

# %% [markdown]
# ## Did it arrive?
#
# On prompts that had no say in anything above:

# %%
found = {"unsteered": run(tested)} | {arm: run(tested, ul.SteeringHook(arms[arm], best[arm])) for arm in arms}
_, axes = plt.subplots(figsize=(7, 2.4))
for place, (arm, (_, right)) in enumerate(found.items()):
    share = 100 * sum(right) / len(right)
    low, high = (100 * end for end in wilson_interval(sum(right), len(right)))
    axes.barh(place, share, 0.62, color="#1b74c8" if arm == "transferred" else "#9aa0a8")
    axes.plot([low, high], [place, place], color="#202020", linewidth=1.5)
axes.set(
    yticks=range(len(found)), yticklabels=list(found), xlabel="completions that show it, %, with 95% intervals", xlim=(0, 104)
)
axes.set_title("Did it arrive, and compared with what?", loc="left", fontsize=10)
axes.invert_yaxis()
axes.spines[["top", "right"]].set_visible(False)
plt.show()

# %%
change = compare(after=found["transferred"][1], before=found["unsteered"][1])
print(f"{change.gained} prompts gained, {change.lost} lost; exact McNemar p = {change.p:.0e}")
for arm in ("unsteered", "transferred"):
    print(f"{arm:12}", tested[0], "|", found[arm][0][0])

# %% [markdown]
# The controls stay near the unsteered target, so the gain is neither any push nor a push away from where the model was.
# One draw of one control on one pair proves little: `evidence.ipynb` shows how such a result can mislead.
#
# `ul.SteeringHook(aligned, best["transferred"]).save("mine.key.safetensors")` keeps the hook; in your own TransformerLens
# code it is `model.hooks(fwd_hooks=steer.fwd_hooks(model))`, in nnsight `steer.apply(model)` inside a trace.
