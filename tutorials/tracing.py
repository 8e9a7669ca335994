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
# # Steering in nnsight, here and on NDIF
#
# `steer.apply(lm)` is one line inside any nnsight body: `trace`, `generate`, several invokes, a `session`. This notebook
# shows each on this machine. The same bodies run on an NDIF server with `remote=True`, and at the end is what changes.
#
#     pip install unlock-lens matplotlib

# %%
import warnings

import matplotlib.pyplot as plt
import nnsight
import torch
from nnsight import TransformersModel

import unlock_lens as ul
from unlock_lens import lens, zoo

# How nnsight says that a loop over all steps has ended.
warnings.filterwarnings("ignore", message=".*was never reached", category=UserWarning)
BLUE, ORANGE, OCHRE, GREY = "#1b74c8", "#c8560e", "#96700a", "#757575"

# %% [markdown]
# **The line to change is the next one.** As it stands it names two models of the embedded family, 0.5 and 0.2 million
# parameters. Write hub ids in their place, such as `"Qwen/Qwen2.5-1.5B-Instruct", "Qwen/Qwen2.5-0.5B-Instruct"`; then the
# prompts in `task` and the calibration texts have to be yours, too.

# %%
SOURCE, TARGET = str(zoo.path() / "large-base"), str(zoo.path() / "small-base")

# %%
source, lm = (TransformersModel(name, task="text-generation", dispatch=True, dtype=torch.float32) for name in (SOURCE, TARGET))
task, text = zoo.running_sum(n=100), zoo.text(n=600)

direction = ul.CapabilityDirection.extract(ul.Variant(source, task.direct), ul.Variant(source, task.think), progress=False)
aligner = ul.SubspaceAligner(rank=48)
aligner.fit(ul.Variant(source, text), ul.Variant(lm, text), progress=False)
steer = ul.SteeringHook(aligner.transport(direction), alpha=0.5)
print(steer.direction)

# %% [markdown]
# ## In a generate body
#
# Without a tracer the edit is made in the prefill, at the last prompt token: what the method asks for. Decoding is
# untouched. Results are read in an invoke of their own.

# %%
prompts = task.direct[:3]
with lm.generate(max_new_tokens=12, do_sample=False) as tracer:
    with tracer.invoke(prompts):
        steer.apply(lm)
    with tracer.invoke():
        ids = tracer.result.save()

for text_of_row in lm.tokenizer.batch_decode(ids, skip_special_tokens=True):
    print(text_of_row)

# %% [markdown]
# ## In a trace, beside reads of your own
#
# Nnsight runs a body in the order of the model, and `steer.apply(lm)` goes through all steered layers: what is read after it,
# from the last of them on, is the edited stream. To read earlier layers in the same invoke, edit layer by layer with
# `steer.apply(lm, layer=l)`, or read them in another invoke, as here. Several invokes share one forward pass, and each is
# edited or not by its own body. This pass reads the prompts twice, plain and steered.

# %%
layers = range(len(lm.model.layers))
with torch.no_grad():
    with lm.trace() as tracer:
        with tracer.invoke(task.direct):
            plain_logits = lm.lm_head.output[:, -1].save()
        with tracer.invoke(task.direct):
            steer.apply(lm)
            steered_logits = lm.lm_head.output[:, -1].save()
        with tracer.invoke():  # the whole batch: plain rows, then steered ones
            states = nnsight.save([])
            for layer in layers:
                states.append(lm.model.layers[layer].output)

n = len(task.direct)
plain, steered = ({layer: states[layer][rows] for layer in layers} for rows in (slice(0, n), slice(n, None)))
for name, logits in (("plain", plain_logits), ("steered", steered_logits)):
    first = lm.tokenizer.batch_decode(logits.argmax(-1).unsqueeze(1))
    print(f"{name:8} first tokens:", {token: first.count(token) for token in sorted(set(first))})

# %% [markdown]
# What was saved goes into any analysis. Two of them: the logit lens, by the model's own modules, and `lens.projection`, the
# cosine of every token's state with the direction.

# %%
S, EQUALS = lm.tokenizer.convert_tokens_to_ids(["S", "="])
figure, axes = plt.subplots(1, 2, figsize=(9, 3.1), layout="constrained")
for name, found, colour in (("plain", plain, GREY), ("steered", steered, BLUE)):
    last = torch.stack([found[layer][:, -1] for layer in layers])
    with torch.no_grad():
        sure = lm._module.lm_head(lm._module.model.norm(last)).softmax(-1).mean(dim=1)
    axes[0].plot(layers, sure[:, S], color=colour, marker="o", label=f"{name}, S (step by step)")
    axes[0].plot(layers, sure[:, EQUALS], color=colour, marker="s", linestyle="--", label=f"{name}, = (direct)")
    trace = lens.projection(steer.direction, found, relative=True)[-1].mean(dim=0)
    axes[1].plot(range(-len(trace), 0), trace, color=colour, marker=".", label=name)
axes[0].set(
    xlabel="layer, output of the block",
    ylabel="probability, logit lens",
    xticks=list(layers),
    yticks=[0, 0.5, 1],
    ylim=(-0.03, 1.4),
)
axes[1].set(xlabel="token, from the end", ylabel="cosine with the direction,\nlast layer", ylim=(-1.05, 1.05))
for panel in axes:
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(frameon=False, fontsize=8, loc="upper left", ncols=2)
plt.show()

# %% [markdown]
# At the last prompt token, and nowhere else, the steered run leaves the plain one.
#
# ## A steered copy
#
# `lm.edit()` keeps an edit for later calls, and leaves the model as it was. The copy shares the weights.

# %%
with lm.edit(inplace=False) as (_, steered_lm):
    steer.apply(lm)

for name, model in (("the model", lm), ("the copy", steered_lm)):
    completions = ul.generate(model, task.direct, max_new_tokens=12, progress=False)
    print(f"{name:10}{sum(task.correct(completions)):4} of 100 right, first: {completions[0]}")

# %% [markdown]
# `with steer.attached(lm): ...` is the same for the length of a block, in nnsight as in TransformerLens.
#
# ## Every step instead of the prompt
#
# `positions="all"` and `"generated"` act while the model writes. `apply` then takes the tracer and loops over the steps, so
# results are read in another invoke. For this capability it gains nothing and costs room: at the last prompt token the model
# chooses how to answer, and a push at every later token soon breaks the answer that was begun. The window of strengths that
# work gets narrower, and beyond it nothing is right any more, not even by chance.

# %%
everywhere = ul.SteeringHook(steer.direction, alpha=0.5, positions="all")
with lm.generate(max_new_tokens=12, do_sample=False) as tracer:
    with tracer.invoke(task.direct[:1]):
        everywhere.apply(lm, tracer)
    with tracer.invoke():
        ids = tracer.result.save()
print(lm.tokenizer.decode(ids[0], skip_special_tokens=True))

alphas = [i / 10 for i in range(1, 11)]
figure, axes = plt.subplots(figsize=(6.4, 3))
for positions, colour, marker in (("last_prompt", BLUE, "o"), ("prompt", OCHRE, "^"), ("all", ORANGE, "s")):
    right = []
    for alpha in alphas:
        hook = ul.SteeringHook(steer.direction, alpha, positions=positions)
        right.append(sum(task.correct(ul.generate(lm, task.direct, hook, max_new_tokens=12, progress=False))))
    axes.plot(alphas, right, color=colour, marker=marker, label=f'positions="{positions}"')
    print(f"{positions:12}", right)
axes.axhline(100 / 7, color=GREY, linestyle=":", linewidth=1)
axes.text(1.06, 100 / 7, "chance", color=GREY, va="center")
axes.set(xlabel="alpha, fraction of the residual's norm", ylabel="right answers of 100", ylim=(-3, 104))
axes.spines[["top", "right"]].set_visible(False)
axes.legend(frameon=False, loc="upper right")
plt.show()

# %% [markdown]
# ## The same on NDIF
#
# A model on a server is opened without weights, and the bodies get `remote=True`. `remote="local"` runs them here, as a
# server would get them: by their source, with what they name. What works so is ready to be sent.

# %%
with lm.trace(task.direct[:2], remote="local"):
    steer.apply(lm)
    sent = lm.lm_head.output[:, -1].argmax(-1).save()
print(lm.tokenizer.batch_decode(sent.unsqueeze(1)))

# %% [markdown]
# | here | on NDIF |
# |---|---|
# | `TransformersModel(name, task="text-generation", dispatch=True)` | the same without `dispatch=True`: no weights are loaded |
# | `ul.Variant(lm, prompts)` | `ul.Variant(lm, prompts, remote=True)`: sums come back, not states |
# | `ul.generate(lm, prompts, steer)` | `ul.generate(lm, prompts, steer, remote=True)` |
# | `with lm.generate(...) as tracer:`, `lm.trace(...)` | the same with `remote=True`; `steer.apply(lm)` as it stands |
# | nothing to count | `ul.plan(...)` before, `ul.Remote().traffic` after |
#
# In a remote body name tensors, hooks and the model; a hook that is made inside the body, or a whole `CapabilityDirection`
# in it, cannot be sent. [remote.ipynb](remote.ipynb) is a whole transfer on a server, with its plan, its bytes and its
# controls.
