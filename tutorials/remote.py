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
# # A transfer between two models that run on NDIF
#
# A capability of a large model is found and brought into a small one, while the weights of both stay on an NDIF server.
# The passes and the statistics run there, and what comes back are sums and factors, not activations. The steered model
# is compared with controls, and a sweep of strengths runs as one nnsight session.
#
#     pip install unlock-lens matplotlib

# %% [markdown]
# **The line to change is the next one.** As it stands it names two models of the embedded family (0.5 and 0.2 million
# parameters) on a server of one's own, to which the environment's `NDIF_HOST` points. For NDIF, unset `NDIF_HOST`, put
# your key into `NDIF_API_KEY` before Python starts, and write hub ids that NDIF serves, such as
# `"meta-llama/Llama-3.1-70B", "meta-llama/Llama-3.1-8B"` (gated, so the hub wants your token, too).
#
# The code below stays as it is, but the prompts are the embedded family's own, of which another model makes little: for
# a result, put prompts and a check of yours in the place of `task`, `tuning` and `text`.

# %%
SOURCE, TARGET = "local/large-base", "local/small-base"

# %%
import matplotlib.pyplot as plt
import nnsight
import pandas as pd

import unlock_lens as ul
from unlock_lens import controls, zoo

nnsight.CONFIG.APP.REMOTE_LOGGING = False  # nnsight's own status lines

task = zoo.running_sum(n=100, seed=0)  # what is reported
tuning = zoo.running_sum(n=100, seed=1)  # what strengths are chosen on
text = zoo.text(n=600)  # ordinary text, for calibration
print("locked:  ", task.direct[0])
print("unlocked:", task.think[0])
print("right:   ", task.answers[0])
print("text:    ", text[0])

# %% [markdown]
# ## Two models without weights
#
# Nnsight loads the configuration and the tokenizer, and no parameter.

# %%
source = nnsight.TransformersModel(SOURCE, task="text-generation")
target = nnsight.TransformersModel(TARGET, task="text-generation")
for model in (source, target):
    print(ul.Variant(model, task.direct).backend.identity, "on", next(model._module.parameters()).device)

# %% [markdown]
# ## A plan before spending
#
# From configs and tokenizers alone: requests, tokens, bytes each way, and what the server keeps until a request ends.

# %%
print(ul.plan(SOURCE, TARGET, prompts=(task.direct, task.think), texts=text, rank=48))

# %% [markdown]
# ## Extract
#
# `ul.Remote()` says how requests are made (deadlines, batches, how much comes back) and counts what they cost. Both
# variants are the same model on the same server, so their difference is taken there: one mean difference a layer comes
# back.

# %%
server = ul.Remote()


def traffic() -> None:
    t = server.traffic
    print(f"so far: {t.requests} requests, {t.up / 1e6:.1f} MB up, {t.down / 1e6:.1f} MB down, {t.seconds:.0f} seconds")


def states(*variants: ul.Variant) -> float:
    """MB of the activations: all tokens of all prompts, every layer, float32."""
    shapes = [(int(v.tokens.mask.sum()), v.backend.identity) for v in variants]
    return sum(4 * tokens * model.n_layers * model.d_model for tokens, model in shapes) / 1e6


locked, unlocked = (ul.Variant(source, prompts, remote=server) for prompts in (task.direct, task.think))
direction = ul.CapabilityDirection.extract(locked, unlocked, progress=False)
print(direction)
print(f"came back: {server.traffic.down / 1e6:.3f} MB; the prompts' activations: {states(locked, unlocked):.1f} MB")
traffic()

# %% [markdown]
# ## Align
#
# The map between the two residual streams is fitted on all tokens of ordinary text. Of each layer the leading axes come
# back, and how 4096 of the tokens score on them; the map is made of those here, and transports the direction.

# %%
before = server.traffic.down
aligner = ul.SubspaceAligner(rank=48)
pair = ul.Variant(source, text, remote=server), ul.Variant(target, text, remote=server)
aligner.fit(*pair, progress=False)
aligned = aligner.transport(direction)
print(aligned)
print(f"came back: {(server.traffic.down - before) / 1e6:.1f} MB; the texts' activations: {states(*pair):.1f} MB")
traffic()

# %% [markdown]
# The share that comes back gets smaller as models and texts get larger: factors grow with the width plus the tokens
# that are sampled, activations with the width times the tokens.

# %% [markdown]
# ## How strong? The native way
#
# `steer.apply(lm)` edits the prefill inside any nnsight body. Here a session holds all strengths of the transferred
# direction and of two controls, in one request (nnsight's own, which `server` does not count). The controls have the
# norms of the transferred direction. One is random; the other, minus the target's own mean locked state, needs no
# source model at all. Strengths are looked for on problems that are not reported.

# %%
away = controls.anti_mean(ul.Variant(target, tuning.direct, remote=server), like=aligned)
arms = {"transferred": aligned, "random": controls.random_like(aligned), "anti-mean": away}
alphas = [i / 10 for i in range(1, 11)]
hooks = {(arm, alpha): ul.SteeringHook(arms[arm], alpha) for arm in arms for alpha in alphas}
prompts = tuning.direct
length = max(len(ids) for ids in target.tokenizer(prompts)["input_ids"])

# %%
with target.session(remote=True):
    written = {}
    for setting in hooks:
        with target.generate(max_new_tokens=12, do_sample=False) as tracer:
            with tracer.invoke(prompts):
                hooks[setting].apply(target)
            with tracer.invoke():
                ids = tracer.result.save()
        written[setting] = ids[:, length:]
    written = nnsight.save(written)

# %%
right = {}
for setting, ids in written.items():
    right[setting] = sum(tuning.correct(target.tokenizer.batch_decode(ids, skip_special_tokens=True)))

_, axes = plt.subplots(figsize=(7, 3.4))
for arm, colour, marker in zip(arms, ("#1b74c8", "#96700a", "#c8560e"), "o^s", strict=True):
    axes.plot(alphas, [right[arm, alpha] for alpha in alphas], color=colour, marker=marker, label=arm)
axes.axhline(100 / 7, color="#757575", linestyle=":", linewidth=1)
axes.text(1.06, 100 / 7, "chance", color="#757575", va="center")
axes.set(xlabel="alpha, fraction of the residual's norm", ylabel="right answers of 100", ylim=(-3, 104))
axes.spines[["top", "right"]].set_visible(False)
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# The window is narrow: too little does nothing, too much breaks the text. Never judge a transfer by one strength.

# %% [markdown]
# ## Steer, on the problems that are reported
#
# Each arm at the strength that was best for it, the middle one where several were.

# %%
best = {}
for arm in arms:
    most = max(right[arm, alpha] for alpha in alphas)
    ties = [alpha for alpha in alphas if right[arm, alpha] == most]
    best[arm] = ties[len(ties) // 2]

# %%
rows = {}
for arm, alpha in {"unsteered": "", **best, "asked to think": ""}.items():
    steer = ul.SteeringHook(arms[arm], alpha) if arm in arms else None
    asked = task.think if arm == "asked to think" else task.direct
    completions = ul.generate(target, asked, steer, max_new_tokens=12, remote=server, progress=False)
    steps = task.behaviours(completions).count("think")
    rows[arm] = [alpha, sum(task.correct(completions)), steps, completions[0]]
traffic()
columns = ["alpha", "right of 100", "step by step", "first completion"]
pd.DataFrame(rows.values(), index=list(rows), columns=columns)

# %% [markdown]
# ## Jobs that are collected later
#
# `ul.submit` sends all requests of a call into a folder and returns the server's names of them. The same call collects
# them, in this process or in another, tomorrow: what is finished is kept in the folder, and is not asked again.

# %% tags=["varies"]
pair = [ul.Variant(source, prompts, remote=server) for prompts in (task.direct, task.reverse)]
job_ids = ul.submit(ul.CapabilityDirection.extract, *pair, progress=False, resume="reverse.jobs")
print(len(job_ids), "requests are on their way")

# %%
reverse = ul.CapabilityDirection.extract(*pair, progress=False, resume="reverse.jobs")
steer = ul.SteeringHook(aligner.transport(reverse), best["transferred"])
completions = ul.generate(target, task.direct, steer, max_new_tokens=12, remote=server, progress=False)
print(task.behaviours(completions).count("reverse"), "of 100 reverse the digits:", task.direct[0], completions[0])
traffic()

# %% [markdown]
# Another capability went through the same map at the same strength: neither was fitted to it.
#
# ## What left this machine, and what came back
#
# | | left | came back |
# |---|---|---|
# | extract, align | prompts as token ids, the reductions' code | sums and factors |
# | `ul.generate` | prompts as token ids, directions, the edits' code | token ids of completions |
# | the session | the body's source, what it names: prompts as text, hooks | what the body saved |
#
# Each request also names the model, the versions of Python and nnsight, and the files that its code comes from, and
# carries your key.
#
# Calls of unlock-lens read tensors alone from what comes back. Nnsight's own traces and sessions, as the one above,
# **unpickle** what the host sends, which can run code here: use them with hosts that you trust.
