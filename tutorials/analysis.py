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
# # Steering inside an analysis that you already have
#
# You have a TransformerLens model open, and an analysis: an `ActivationCache`, the logit lens, direct logit attribution,
# activation patching. A steered run goes through all of it, because steering is nothing but a list of hooks at
# `blocks.l.hook_resid_post`: put `with model.hooks(fwd_hooks=steer.fwd_hooks(model)):` around the lines that run the model,
# and leave the others as they are. Below, each analysis is made of an unsteered and of a steered run of the same prompts.
#
#     pip install unlock-lens matplotlib

# %%
import matplotlib.pyplot as plt
import pandas as pd
import torch
from transformer_lens import patching
from transformer_lens.model_bridge import TransformerBridge

import unlock_lens as ul
from unlock_lens import lens, zoo

torch.set_grad_enabled(False)
BLUE, ORANGE, OCHRE, GREY = "#1b74c8", "#c8560e", "#96700a", "#757575"

# %% [markdown]
# **The line to change is the next one.** As it stands it names two models of the embedded family, 0.5 and 0.2 million
# parameters. Write hub ids in their place, such as `"Qwen/Qwen2.5-1.5B-Instruct", "Qwen/Qwen2.5-0.5B-Instruct"`; then the
# prompts in `task`, the calibration texts and the two tokens that are compared have to be yours, too.

# %%
SOURCE, TARGET = str(zoo.path() / "large-base"), str(zoo.path() / "small-base")


# %%
def opened(name):
    """A model in TransformerLens, which shall put no BOS before text, as the family's tokenizer puts none."""
    model = TransformerBridge.boot_transformers(name, device="cpu", dtype=torch.float32)
    model.cfg.default_prepend_bos = False
    return model


source, target = opened(SOURCE), opened(TARGET)
target.enable_compatibility_mode()  # folds the norms into the weights, as direct logit attribution wants it
task, text = zoo.running_sum(n=64), zoo.text(n=600)

locked, unlocked = ul.Variant(source, task.direct), ul.Variant(source, task.think)
aligner = ul.SubspaceAligner(rank=48)
aligner.fit(ul.Variant(source, text), ul.Variant(target, text), progress=False)
directions = {
    name: aligner.transport(ul.CapabilityDirection.extract(locked, ul.Variant(source, prompts), progress=False))
    for name, prompts in {"think": task.think, "reverse": task.reverse, "double": task.double}.items()
}
steer = ul.SteeringHook(directions["think"], alpha=0.5)
print(steer.direction)

# %% [markdown]
# ## Two caches
#
# The question of this analysis: what makes the model answer step by step? A step-by-step answer opens with `S`, a direct
# one with `=`. What is measured throughout is the **logit difference S minus =** at the last prompt token.

# %%
tokens = target.tokenizer(task.direct, return_tensors="pt")["input_ids"]
S, EQUALS = target.tokenizer.convert_tokens_to_ids(["S", "="])


def logit_difference(logits):
    return (logits[:, -1, S] - logits[:, -1, EQUALS]).mean()


logits, cache = target.run_with_cache(tokens)
with target.hooks(fwd_hooks=steer.fwd_hooks(target)):
    steered_logits, steered_cache = target.run_with_cache(tokens)

for name, found in {"unsteered": logits, "steered": steered_logits}.items():
    sure = found[:, -1].softmax(-1)[:, [S, EQUALS]].mean(0)
    print(f"{name:9}  S - = {logit_difference(found):6.2f}   p(S) {sure[0]:.3f}   p(=) {sure[1]:.3f}")

# %% [markdown]
# The steered cache holds the **edited** stream: its hooks run after ours. So the edit itself can be read off it, as what
# `resid_post` has beyond `resid_mid` plus the MLP's output. It is at the last prompt token and nowhere else.

# %%
layers = range(target.cfg.n_layers)
edits = torch.stack(
    [
        steered_cache["resid_post", layer] - steered_cache["resid_mid", layer] - steered_cache["mlp_out", layer]
        for layer in layers
    ]
)
size = edits.norm(dim=-1).mean(dim=1)
print("norm of the edit, by layer, at the last token:", [round(x, 1) for x in size[:, -1].tolist()])
print("at all tokens before it:", round(size[:, :-1].max().item(), 4))

# %% [markdown]
# ## Logit lens
#
# The same call on both caches. `accumulated_resid` gives the stream before each block and after the last one.

# %%
figure, axes = plt.subplots(figsize=(6.4, 3.2))
for name, some, colour in (("unsteered", cache, GREY), ("steered", steered_cache, BLUE)):
    stack, labels = some.accumulated_resid(return_labels=True, apply_ln=True, pos_slice=-1)
    found = target.unembed(stack).softmax(-1).mean(dim=1)
    axes.plot(labels, found[:, S], color=colour, marker="o", label=f"{name}, S")
    axes.plot(labels, found[:, EQUALS], color=colour, marker="s", linestyle="--", label=f"{name}, =")
axes.set(xlabel="residual stream", ylabel="probability, logit lens", ylim=(-0.03, 1.03))
axes.spines[["top", "right"]].set_visible(False)
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# Unsteered, the stream leans to `=` after the first block already, and stays there: the model mixes its ways of answering.
# Steered, it leans to `S` from the first edit on, and after the last block it says `S` alone.
#
# ## Direct logit attribution
#
# `decompose_resid` takes the stream apart into what each component wrote, and `logit_attrs` gives each part its share of
# the logit difference. A steered stream has parts that no component wrote, the edits: put them beside the others, and the
# sum is the logit difference to the last digit.

# %%
parts, names = steered_cache.decompose_resid(return_labels=True, pos_slice=-1)
parts = torch.cat([parts, edits[:, :, -1]])
steered_shares = steered_cache.logit_attrs(parts, tokens=S, incorrect_tokens=EQUALS, pos_slice=-1).mean(dim=1)
parts, _ = cache.decompose_resid(return_labels=True, pos_slice=-1)
shares = cache.logit_attrs(parts, tokens=S, incorrect_tokens=EQUALS, pos_slice=-1).mean(dim=1)

print(f"unsteered: parts sum to {shares.sum():.3f}, the logit difference is {logit_difference(logits):.3f}")
print(f"steered:   parts sum to {steered_shares.sum():.3f}, it is {logit_difference(steered_logits):.3f}")

figure, axes = plt.subplots(figsize=(7.4, 3.2))
names = [*names, *(f"{layer}_edit" for layer in layers)]
places = torch.arange(len(names))
axes.bar(places[: len(shares)] - 0.2, shares, width=0.4, color=GREY, label="unsteered")
axes.bar(places + 0.2, steered_shares, width=0.4, color=[BLUE] * len(shares) + [ORANGE] * len(layers), label="steered")
axes.bar(0, 0, color=ORANGE, label="steered, the edits themselves")
axes.axhline(0, color="black", linewidth=0.8)
axes.set_xticks(places, names, rotation=40, ha="right")
axes.set_ylabel("share of the logit\ndifference S minus =")
axes.spines[["top", "right"]].set_visible(False)
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# So steering is not one push at the output. The edit of the last layer writes part of the difference itself, and the last
# MLP, which reads what the earlier edits left in the stream, turns from `=` to `S` and writes more of it than all edits.
#
# ## Activation patching
#
# Copy one activation of the steered run into the unsteered one, for each layer and position, and see what of the effect
# comes along. `patching` is TransformerLens' own; the steered cache takes the place of the clean one.

# %%
patched = patching.get_act_patch_block_every(target, tokens, steered_cache, logit_difference)
base, whole = logit_difference(logits), logit_difference(steered_logits)
share = (patched - base) / (whole - base)

figure, axes = plt.subplots(1, 3, figsize=(9.5, 2.7), sharey=True, layout="constrained")
for panel, found, name in zip(axes, share, ("resid_pre", "attn_out", "mlp_out"), strict=True):
    image = panel.imshow(found, cmap="RdBu", vmin=-1, vmax=1, aspect="auto")
    panel.set(title=name, xlabel="position", yticks=list(layers))
    panel.set_xticks(range(tokens.shape[1]), target.tokenizer.convert_ids_to_tokens(tokens[0]))
axes[0].set_ylabel("layer")
figure.colorbar(image, ax=axes, label="share of the effect")
plt.show()
print("resid_pre, last position, by layer:", [f"{x:.0%}" for x in share[0, :, -1].tolist()])
print("mlp_out, last position, by layer:", [f"{x:.0%}" for x in share[2, :, -1].tolist()])

# %% [markdown]
# All that comes along comes at the last position, as it must: there alone was the stream edited. What enters layer 2 holds
# the edits of layers 0 and 1 and brings three quarters; the rest is the edit of layer 2 itself, which comes after. (The
# digits on the axis are those of the first prompt.)
#
# ## Where a run lies along the direction
#
# `lens.projection` reads an `ActivationCache` along the direction, token by token: a trace to plot over positions. Prompts
# that ask to think have one token more, `think` before `A :`.

# %%
_, asked_cache = target.run_with_cache(target.tokenizer(task.think, return_tensors="pt")["input_ids"])
traces = {"unsteered": cache, "steered": steered_cache, "asked to think": asked_cache}
figure, axes = plt.subplots(1, len(layers), figsize=(9.5, 2.9), sharex=True, layout="constrained")
for (name, some), colour in zip(traces.items(), (GREY, BLUE, OCHRE), strict=True):
    trace = lens.projection(steer.direction, some, relative=True).mean(dim=1)
    for panel, of_layer, layer in zip(axes, trace, layers, strict=True):
        panel.plot(range(-len(of_layer), 0), of_layer, color=colour, marker=".", label=name)
        panel.set(title=f"layer {layer}", xlabel="token, from the end", ylim=(-1, 1))
        panel.spines[["top", "right"]].set_visible(False)
axes[0].set_ylabel("cosine with the direction")
axes[0].legend(frameon=False, fontsize=8)
plt.show()

# %% [markdown]
# At the last token, where the answer is chosen, the plain run lies against the direction. Steering takes it away from there,
# at the last layer to just where the run is that was asked to think.
#
# ## Which layer's edit brings the effect
#
# `lens.effect_by_layer` takes the hook apart by runs, so what later layers make of an edit is in it: the effect of each
# layer alone, what is lost when it is left out, and what all layers up to it bring, in nats of log-probability of `S`. The
# edit of layer 0 alone brings a third of the whole and without it half is lost; the last one is not needed for `S` to win.
# That is another measure than the logit difference above: once `S` has won, a larger difference adds no probability.

# %%
lens.effect_by_layer(target, task.direct, ["S"] * 64, steer, progress=False).round(2)

# %% [markdown]
# ## Tokens that a direction writes, and the arithmetic of capabilities
#
# A direction lives where the unembedding reads, so it can be asked which tokens it writes by itself. At the last layer the
# three capabilities are nearly one direction (first table: cosines): all of them push the direct answer's `=` down.

# %%
rows = []
for name, direction in directions.items():
    rows.append(lens.tokens_written(direction, target, k=1).loc[(2, 1)].rename(name))
print(lens.cosines(directions)[2].numpy().round(2))
print(torch.stack([d.vectors[2].norm() for d in directions.values()]).numpy().round(1), "norms")
pd.DataFrame(rows).round(1)

# %% [markdown]
# What is theirs alone shows when one is taken from the other: `think - reverse` writes `S` and takes `R` away, the two
# tokens with which these answers open.

# %%
for one, other in (("think", "reverse"), ("reverse", "double"), ("double", "think")):
    told = lens.tokens_written(directions[one] - directions[other], target, k=1).loc[(2, 1)]
    print(f"{one:8} - {other:8}  raises {told['raises']} by {told['by']:.1f}, lowers {told['lowers']} by {told['down by']:.1f}")

# %% [markdown]
# ## On with your own analysis
#
# | you have | you write |
# |---|---|
# | `model.run_with_cache(tokens)` | the same inside `with model.hooks(fwd_hooks=steer.fwd_hooks(model)):` |
# | `model.run_with_hooks(tokens, fwd_hooks=yours)` | `fwd_hooks=[*steer.fwd_hooks(model), *yours]` |
# | prompts padded on the right | `steer.fwd_hooks(model, attention_mask=mask)` |
# | an ActivationCache of each variant | `ul.interchange.from_caches(locked_cache, unlocked_cache)` |
# | a steered model that others should read | `with steer.attached(model): ...` |
#
# `run_with_cache` has no `fwd_hooks=` of its own: a TransformerBridge takes one, and does nothing with it. Take a new list
# of hooks for each run. Before you believe what steering shows, hold it against the controls:
# [evidence.ipynb](evidence.ipynb).
