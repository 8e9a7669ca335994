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
# # A transfer in five minutes
#
# One model adds six digits step by step when it is asked to. A smaller one is not asked, and guesses. You will see the
# capability found in the first, brought into the second, and compared with controls that could do the same without any
# transfer. Nothing is trained: the weights of both models stay as they are.
#
#     pip install unlock-lens matplotlib

# %%
import matplotlib.pyplot as plt
import pandas as pd
import torch
from transformer_lens.model_bridge import TransformerBridge

import unlock_lens as ul
from unlock_lens import controls, zoo
from unlock_lens.evidence.evaluation import compare, evaluate

# %% [markdown]
# **The line to change is the next one.** As it stands it names two models of the embedded family (0.5 and 0.2 million
# parameters), which came with the package. For your own pair write hub ids, such as
# `"Qwen/Qwen2.5-1.5B-Instruct", "Qwen/Qwen2.5-0.5B-Instruct"`.
#
# Another model makes little of the embedded family's prompts, so the cell under *A capability* then needs yours: in the
# place of `task` and `tuning` two sets of problems with prompts and a check of the answers, in the place of `text`
# ordinary text (`own.ipynb` does this step by step). `max_new_tokens` and the strengths in `alphas` depend on the
# model, too.

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
# ## A capability
#
# is what a model shows with one prompt, and not with another: here a prompt with *think*, and the same without it. The
# answer is the sum of the digits modulo 7.

# %%
task = zoo.running_sum(n=100, seed=0)  # what is reported
tuning = zoo.running_sum(n=100, seed=1)  # what the direction is made of, and what strengths are chosen on
text = zoo.text(n=600)  # ordinary text, for calibration

prompts = [task.direct[0], task.think[0]]
written = [ul.generate(model, prompts, max_new_tokens=12, progress=False) for model in (source, target)]
print("right answer:", task.answers[0])
pd.DataFrame(dict(zip(("source", "target"), written, strict=True)), index=prompts)

# %% [markdown]
# Without *think* both guess, and nothing shows steps.
#
# ## Extract
#
# The direction is the mean difference between the two prompts, in the residual stream at the last prompt token, one
# vector a layer. It needs prompts alone, and no answers.

# %%
locked, unlocked = ul.Variant(source, tuning.direct), ul.Variant(source, tuning.think)
direction = ul.CapabilityDirection.extract(locked, unlocked, progress=False)
print(direction)

# %% [markdown]
# ## Align
#
# It lives in the source's 96 dimensions. A linear map into the target's 64 is fitted on what both models make of the
# same ordinary text, at every token.

# %%
aligner = ul.SubspaceAligner(rank=48)
aligner.fit(source=ul.Variant(source, text), target=ul.Variant(target, text), progress=False)
aligned = aligner.transport(direction)
print(aligned)
print("target layer: source layer", aligner.layer_map)

# %% [markdown]
# ## How strong?
#
# The edit turns the last prompt token's state towards the direction and keeps its norm. `alpha` says how far. It is
# chosen on the tuning problems, for the transfer and for two controls alike:
#
# - **random**: any direction of these norms;
# - **anti-mean**: minus the target's own mean state at the last token of the plain prompts. "Away from where it is" needs
#   no source model, and can look like a transfer.

# %%
away = controls.anti_mean(ul.Variant(target, tuning.direct), like=aligned)
arms = {"transferred": aligned, "random": controls.random_like(aligned), "anti-mean": away}
alphas = [i / 10 for i in range(1, 9)]


def run(problems, prompts, steer=None):
    return evaluate(target, problems, prompts, steer, max_new_tokens=12, batch_size=100, progress=False)


counts = {
    arm: [sum(run(tuning, tuning.direct, ul.SteeringHook(vectors, alpha)).right) for alpha in alphas]
    for arm, vectors in arms.items()
}
best = {}
for arm, right in counts.items():
    ties = [alpha for alpha, count in zip(alphas, right, strict=True) if count == max(right)]
    best[arm] = ties[len(ties) // 2]  # the middle of a plateau
print("best:", best)
pd.DataFrame(counts.values(), index=list(counts), columns=alphas)

# %% [markdown]
# Right answers of 100, by alpha. The transfer has a window, in which every answer is right. Too little does nothing, too
# much breaks the text.
#
# ## Steer, in your framework's own way
#
# Hooks of a `SteeringHook` are TransformerLens' own. The target still reads the plain prompt.

# %%
steer = ul.SteeringHook(aligned, best["transferred"])

# %%
with target.hooks(fwd_hooks=steer.fwd_hooks(target)):
    print(target.generate(task.direct[0], max_new_tokens=10, do_sample=False, verbose=False))

# %% [markdown]
# For a list of prompts `ul.generate` does the same in any framework:

# %%
before = ul.generate(target, task.direct[:4], max_new_tokens=12, progress=False)
after = ul.generate(target, task.direct[:4], steer, max_new_tokens=12, progress=False)
pd.DataFrame({"before": before, "after": after, "right answer": task.answers[:4]}, index=task.direct[:4])

# %% [markdown]
# ## Did it arrive?
#
# The reported problems, which had no say in anything above, with 95% Wilson intervals. The best that can be hoped for
# is the target that is asked to think.

# %%
found = {"unsteered": run(task, task.direct)}
found |= {arm: run(task, task.direct, ul.SteeringHook(arms[arm], best[arm])) for arm in arms}
found["asked to think"] = run(task, task.think)

rows = {}
for arm, made in found.items():
    outcome = made.outcome
    interval = f"{100 * outcome.low:.0f} to {100 * outcome.high:.0f}%"
    rows[arm] = [sum(made.right), interval, f"{outcome.behaviours['think']:.0%}", best.get(arm, "")]
pd.DataFrame(rows.values(), index=list(rows), columns=["right of 100", "interval", "step by step", "alpha"])

# %%
_, axes = plt.subplots(figsize=(7, 2.8))
colours = dict(zip(arms, ("#1b74c8", "#96700a", "#c8560e"), strict=True))
for place, (arm, made) in enumerate(found.items()):
    accuracy, low, high = (100 * share for share in (made.outcome.accuracy, made.outcome.low, made.outcome.high))
    errors = [[accuracy - low], [high - accuracy]]
    axes.barh(place, accuracy, 0.62, color=colours.get(arm, "#757575"), xerr=errors, ecolor="#202020", capsize=3)
axes.axvline(100 / 7, color="#757575", linestyle=":", linewidth=1)
axes.text(100 / 7, -0.62, "chance", color="#757575", ha="center")
axes.set(yticks=range(len(found)), yticklabels=list(found), xlabel="right answers, %, with 95% intervals", xlim=(0, 104))
axes.invert_yaxis()
axes.spines[["top", "right"]].set_visible(False)
plt.show()

# %%
change = compare(after=found["transferred"].right, before=found["unsteered"].right)
print(f"{change.gained} problems gained, {change.lost} lost; exact McNemar p = {change.p:.0e}")

# %% [markdown]
# The transfer brings the steps and with them the answers, as many as the prompt that asks for them. The controls stay
# where the unsteered model is. One random draw proves little, and a model of this size little for a large one: both are
# reasons to measure, with controls, on the pair that you care about.
#
# ## Only where it is needed
#
# A gate reads the residual stream at the last prompt token, and lets the hook act where the reading is above a threshold. This
# one is fitted to let plain prompts through and to leave those alone that ask for something else. In a batch of both, each row
# decides for itself (docs/gates.md).

# %%
gate = ul.Gate.fit(act=ul.Variant(target, task.direct), not_act=ul.Variant(target, task.reverse + task.double), progress=False)
steer = ul.SteeringHook(aligned, best["transferred"], gate=gate)
print(gate)
for text in ul.generate(target, [task.direct[0], task.reverse[1], task.direct[2], task.double[3]], steer, progress=False):
    print(text)

# %% [markdown]
# ## Keep it
#
# A hook is saved as a key, one safetensors file with its direction, strength and gate. It steers the model it was made for, and
# no other. Add what it was shown to do (`steer.proven`), and you can give it to somebody else (docs/keys.md).

# %%
steer.save("think.key.safetensors")
key = ul.SteeringHook.load("think.key.safetensors")
kept = key.direction
print(
    torch.equal(kept.vectors, aligned.vectors), kept.provenance.source_model, "rank", kept.provenance.rank, "alpha", key.alpha
)
try:
    ul.generate(source, task.direct[:1], key, progress=False)
except ul.IncompatibleModel as refused:
    print(refused)

# %% [markdown]
# ## Where next
#
# - What happens in each step, with its formula and a picture: `method.ipynb`.
# - Controls, diagnostics, and when a transfer fails: `evidence.ipynb`.
# - Your own templates, models and task: `own.ipynb`.
# - Steered runs in a logit lens, attribution or patching that you have: `analysis.ipynb`.
# - The same in nnsight, and on NDIF: `tracing.ipynb`, `remote.ipynb`.
