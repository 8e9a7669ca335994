# ---
# jupyter:
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Steering inside an analysis that you already have
#
# A steered run goes through any TransformerLens analysis, because steering is a list of hooks: put
# `with model.hooks(fwd_hooks=steer.fwd_hooks(model)):` around the lines that run the model, and leave the others as they
# are. Here activation patching says which part of the effect comes from where.
#
#     pip install 'unlock-lens[transformer-lens]' matplotlib

# %%
import os

import matplotlib.pyplot as plt
import torch
from transformer_lens import patching
from transformer_lens.model_bridge import TransformerBridge

import unlock_lens as ul
from unlock_lens import zoo

_ = torch.set_grad_enabled(False)

# %% [markdown]
# **With your own models** this is the one cell to change: two models, prompts without and with the capability, prompts of
# one length to analyse, text, and the two first tokens that tell the behaviours apart. As it stands it takes the models of
# the package, whose step-by-step answers open with `S` and direct ones with `=`. With `UNLOCK_LENS_MODELS` set (`make real`)
# it takes SmolLM2 and Gemma, and the capability is writing French.

# %% tags=["yours"]
if MODELS := os.environ.get("UNLOCK_LENS_MODELS"):
    source, target = (
        TransformerBridge.boot_transformers(f"{MODELS}/{name}", device="cpu", dtype=torch.float32)
        for name in ("smollm2", "gemma")
    )
    WHO = {"My sister": "Ma sœur", "The old king": "Le vieux roi", "The teacher": "Le professeur", "The doctor": "Le médecin"}
    DID = {"lives in": "habite dans", "has seen": "a vu", "is looking for": "cherche", "was born in": "est né dans"}
    locked, unlocked = ([f"{a} {b}," for a in who for b in did] for who, did in ((WHO, DID), (WHO.values(), DID.values())))
    text = [*locked, *unlocked, *(f"{s} the village." for s in locked), *(f"{s} le village." for s in unlocked)]
    prompts, WANTED, USUAL = ["The old baker has opened"], " la", " the"
    SINKS, ALPHA = "drop", 0.3
else:
    source, target = zoo.load("large-base"), zoo.load("small-base")
    task = zoo.running_sum(n=64)
    locked, unlocked, prompts = task.direct, task.think, task.direct
    text, SINKS, ALPHA = zoo.text(n=600), "auto", 0.5
    WANTED, USUAL = "S", "="

direction = ul.CapabilityDirection.extract(ul.Variant(source, locked), ul.Variant(source, unlocked), progress=False)
aligner = ul.SubspaceAligner(sinks=SINKS).fit(source, target, text, progress=False)
steer = ul.SteeringHook(aligner.transport(direction), ALPHA)
print(steer.direction)

# %% [markdown]
# ## Two caches of the same prompts
#
# What is measured is the **logit difference** of the two tokens at the last prompt token.

# %%
tokens = target.tokenizer(prompts, return_tensors="pt")["input_ids"]
wanted, usual = (target.tokenizer(each, add_special_tokens=False)["input_ids"][-1] for each in (WANTED, USUAL))


def difference(logits):
    return (logits[:, -1, wanted] - logits[:, -1, usual]).mean()


logits, cache = target.run_with_cache(tokens)
with target.hooks(fwd_hooks=steer.fwd_hooks(target)):
    steered_logits, steered_cache = target.run_with_cache(tokens)
for name, found in {"unsteered": logits, "steered": steered_logits}.items():
    sure = found[:, -1].softmax(-1)[:, [wanted, usual]].mean(0)
    print(f"{name:9}  difference {difference(found):6.2f}   p({WANTED}) {sure[0]:.3f}   p({USUAL}) {sure[1]:.3f}")

# %% [markdown]
# The steered cache holds the edited stream, so the edit can be read off it. It is at the last prompt token, and nowhere
# else:

# %%
moved = torch.stack([steered_cache["resid_post", layer] - cache["resid_post", layer] for layer in range(target.cfg.n_layers)])
size = moved.norm(dim=-1).mean(dim=1)
print(f"change of the stream: at the last token {size[:, -1].max():.1f}, at all others {size[:, :-1].max():.4f}")

# %% [markdown]
# ## Activation patching
#
# Copy one activation of the steered run into the unsteered one, for each layer and position, and see how much of the effect
# comes along. `patching` is TransformerLens' own; the steered cache takes the place of the clean one.

# %%
patched = patching.get_act_patch_block_every(target, tokens, steered_cache, difference)
base, whole = difference(logits), difference(steered_logits)
share = (patched - base) / (whole - base)

figure, axes = plt.subplots(1, 3, figsize=(9, 2.7), sharey=True, layout="constrained")
names = "stream before the layer", "attention writes", "MLP writes"
for panel, found, name in zip(axes, share, names, strict=True):
    image = panel.imshow(found, cmap="RdBu", vmin=-1, vmax=1, aspect="auto")
    panel.set_title(name, fontsize=10)
    panel.set(xlabel="tokens of the first prompt", yticks=range(target.cfg.n_layers))
    panel.set_xticks(range(tokens.shape[1]), target.tokenizer.convert_ids_to_tokens(tokens[0]))
axes[0].set_ylabel("layer")
figure.colorbar(image, ax=axes, label="share of the effect")
figure.suptitle("All of the effect comes along at the last position", x=0.01, ha="left", fontsize=10)
plt.show()
print("stream, last position, by layer:", [f"{round(part, 2) + 0.0:.0%}" for part in share[0, :, -1].tolist()])
print("MLP, last position, by layer:   ", [f"{round(part, 2) + 0.0:.0%}" for part in share[2, :, -1].tolist()])

# %% [markdown]
# All that comes along comes at the last position, where the stream was edited. What enters a layer holds the edits of all
# layers before it, and the MLPs that read them add to the effect: steering is not one push at the output.
#
# | you have | you write |
# |---|---|
# | `model.run_with_cache(tokens)` | the same inside `with model.hooks(fwd_hooks=steer.fwd_hooks(model)):` |
# | `model.run_with_hooks(tokens, fwd_hooks=yours)` | `fwd_hooks=[*steer.fwd_hooks(model), *yours]` |
# | prompts padded on the right | `steer.fwd_hooks(model, attention_mask=mask)` |
# | an `ActivationCache` of each variant | `ul.interchange.from_caches(locked_cache, unlocked_cache)` |
# | nnsight | `steer.apply(model)` inside a trace or generate body |
#
# Take a new list of hooks for each run.
