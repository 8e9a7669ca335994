# ---
# jupyter:
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # A transfer between two models on a server
#
# Both models stay on an NDIF server: the forward passes and the statistics run there, and only sums and factors come back.
# The calls are those of the other notebooks, with `remote=` added.
#
#     pip install 'unlock-lens[nnsight]' matplotlib

# %%
import matplotlib.pyplot as plt
import nnsight

import unlock_lens as ul
from unlock_lens import controls, zoo

nnsight.CONFIG.APP.REMOTE_LOGGING = False  # nnsight's own status lines

# %% [markdown]
# **With your own models** this is the one cell to change. `NDIF_HOST` points to a server that has the package's two models
# here. For NDIF itself, unset `NDIF_HOST`, set `NDIF_API_KEY` before Python starts, and write hub ids that NDIF serves. The
# prompts, the calibration text and the check of the answers belong to the model, so they change with it.

# %% tags=["yours"]
SOURCE, TARGET = "local/large-base", "local/small-base"
tuning, task = zoo.running_sum(n=100, seed=1), zoo.running_sum(n=100, seed=0)
locked, unlocked, prompts = tuning.direct, tuning.think, task.direct
text = zoo.text(n=600)
tuned, right, MAX_NEW_TOKENS = tuning.correct, task.correct, 12

# %% [markdown]
# nnsight loads configuration and tokenizer, and no weights:

# %%
source, target = (nnsight.TransformersModel(name, task="text-generation") for name in (SOURCE, TARGET))
for model in (source, target):
    print(ul.Variant(model, locked).backend.identity, "on", next(model._module.parameters()).device)

# %% [markdown]
# ## What will it cost?
#
# `ul.plan` counts requests, tokens and bytes before anything is sent.

# %%
print(ul.plan(SOURCE, TARGET, prompts=(locked, unlocked), texts=text, rank=48))

# %% [markdown]
# ## Extract and align
#
# `ul.Remote()` sets deadlines and batches, and counts the traffic. The difference of the two variants is taken on the
# server, so one vector for each layer comes back. The map is made here, from the leading axes of each layer and the scores
# of 4096 tokens on them.

# %%
server = ul.Remote()
variants = [ul.Variant(source, given, remote=server) for given in (locked, unlocked)]
direction = ul.CapabilityDirection.extract(*variants, progress=False)
print(f"directions: {server.traffic.down / 1e6:.3f} MB came back")

pair = ul.Variant(source, text, remote=server), ul.Variant(target, text, remote=server)
aligner = ul.SubspaceAligner(rank=48).fit(*pair, progress=False)
aligned = aligner.transport(direction)
activations = sum(
    4 * int(each.tokens.mask.sum()) * each.backend.identity.n_layers * each.backend.identity.d_model for each in pair
)
print(f"calibration: {server.traffic.down / 1e6:.1f} MB came back; the activations are {activations / 1e6:.1f} MB")
print(aligned)

# %% [markdown]
# ## Every strength in one request
#
# `steer.apply(lm)` is one line inside any nnsight body. Here a session holds all strengths of the transferred direction and
# of two controls: a random direction, and *anti-mean*, away from the target's own mean state, which needs no source model.

# %%
away = controls.anti_mean(ul.Variant(target, locked, remote=server), like=aligned)
arms = {"transferred": aligned, "random": controls.random_like(aligned), "anti-mean": away}
alphas = [i / 10 for i in range(1, 11)]
hooks = {(arm, alpha): ul.SteeringHook(arms[arm], alpha) for arm in arms for alpha in alphas}
length = max(len(ids) for ids in target.tokenizer(locked)["input_ids"])

# %%
with target.session(remote=True):
    written = {}
    for setting in hooks:
        with target.generate(max_new_tokens=MAX_NEW_TOKENS, do_sample=False) as tracer:
            with tracer.invoke(locked):
                hooks[setting].apply(target)
            with tracer.invoke():
                ids = tracer.result.save()
        written[setting] = ids[:, length:]
    written = nnsight.save(written)

# %%
counts = {setting: sum(tuned(target.tokenizer.batch_decode(ids, skip_special_tokens=True))) for setting, ids in written.items()}
_, axes = plt.subplots(figsize=(7, 3.4))
for arm, colour, marker in zip(arms, ("#1b74c8", "#96700a", "#c8560e"), "o^s", strict=True):
    axes.plot(alphas, [counts[arm, alpha] for alpha in alphas], color=colour, marker=marker, label=arm)
axes.set(xlabel="strength alpha", ylabel=f"right answers of {len(locked)}", ylim=(-3, 104))
axes.set_title("Every strength, in one request to the server", loc="left", fontsize=10)
axes.spines[["top", "right"]].set_visible(False)
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# The window is narrow: weaker does nothing, stronger breaks the text. So each arm gets its own best strength before it is
# judged, on other problems:

# %%
for arm in arms:
    most = max(counts[arm, alpha] for alpha in alphas)
    best = [alpha for alpha in alphas if counts[arm, alpha] == most]
    steer = ul.SteeringHook(arms[arm], best[len(best) // 2])
    completions = ul.generate(target, prompts, steer, max_new_tokens=MAX_NEW_TOKENS, remote=server, progress=False)
    print(f"{arm:12} alpha {steer.alpha:.1f}  {sum(right(completions)):4} of {len(prompts)} right   {completions[0]}")

# %% [markdown]
# ## What leaves your machine
#
# Prompts as token ids, the directions, and the source of the code that runs there. Calls of unlock-lens read only tensors
# from what comes back; nnsight's own sessions, such as the one above, **unpickle** what the host sends, so use them with
# hosts that you trust. `resume="folder"` keeps finished requests of an interrupted call, and `ul.submit` sends them without
# waiting ([docs/remote.md](../docs/remote.md)).
