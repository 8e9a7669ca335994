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
# # The method by hand
#
# Each formula of UNLOCK ([arXiv:2604.06377](https://arxiv.org/abs/2604.06377)), in two to six lines of plain torch, beside
# its picture, and checked against what unlock-lens gives. You will see a direction extracted, carried into another model
# and applied there; at the end the confound of the paper's own calibration, and what becomes of it.
#
#     pip install unlock-lens matplotlib

# %%
import warnings

import matplotlib.pyplot as plt
import pandas as pd
import torch
from torch.nn.functional import normalize
from torch.testing import assert_close
from transformer_lens.model_bridge import TransformerBridge

import unlock_lens as ul
from unlock_lens import controls, zoo
from unlock_lens.core import read

# Some maps below are fitted without unlocked prompts on purpose.
warnings.filterwarnings("ignore", message="no calibration token")
COLOURS = "#1b74c8", "#c8560e", "#96700a", "#757575"


def panels(n, height=3.0):
    """Axes side by side, without the frame's upper and right line."""
    _, axes = plt.subplots(1, n, figsize=(7.2 if n > 1 else 5.2, height), layout="constrained", squeeze=False)
    for panel in axes[0]:
        panel.spines[["top", "right"]].set_visible(False)
    return axes[0]


# %% [markdown]
# **The line to change is the next one.** As it stands it names two models of the embedded family (0.5 and 0.2 million
# parameters), which came with the package. For your own pair write hub ids, such as
# `"Qwen/Qwen2.5-1.5B-Instruct", "Qwen/Qwen2.5-0.5B-Instruct"`.
#
# The cell that defines `tuning`, `task` and `text` then needs prompts and a check of your own, the first picture prompts
# of two more capabilities (or none), ranks and strengths another choice; what is said of the pictures is said of this
# pair.

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
# The prompts ask for the sum of six digits modulo 7. With *think* in the prompt both models add step by step, and are
# right; without it they guess.

# %%
tuning = zoo.running_sum(n=100, seed=1)  # what directions are made of, and strengths are chosen on
task = zoo.running_sum(n=100, seed=0)  # what is reported
text = zoo.text(n=600)  # ordinary text, for calibration
print("locked:  ", tuning.direct[0])
print("unlocked:", tuning.think[0])
print("text:    ", text[0])

# %% [markdown]
# ## 1. Extract
#
# $h[l]$ is the residual stream at the output of block $l$ (`blocks.l.hook_resid_post`), at the last token of the prompt.
# For each prompt $i$ and layer $l$
#
# $$D_i[l] = h_{\text{unlocked},i}[l] - h_{\text{locked},i}[l], \qquad v[l] = \frac1n \sum_i D_i[l].$$


# %%
def states(model, prompts):
    return read.at_position(ul.Variant(model, prompts))  # [layer, prompt, d_model]


locked = states(source, tuning.direct)
D = states(source, tuning.think) - locked
v = D.mean(dim=1)

pair = ul.Variant(source, tuning.direct), ul.Variant(source, tuning.think)
direction = ul.CapabilityDirection.extract(*pair, progress=False)
assert_close(direction.vectors, v, rtol=1e-4, atol=1e-4)
print("D:", tuple(D.shape), " v:", tuple(v.shape), " the library's is the same")

# %% [markdown]
# The paper's other aggregate is the first right singular vector of the centered $D[l]$. Its sign is arbitrary; here it is
# the one with $\langle v[l], \tfrac1n\sum_i D_i[l]\rangle \ge 0$.

# %%
axis = torch.stack([torch.linalg.svd(of_layer - of_layer.mean(dim=0))[2][0] for of_layer in D])
pca = axis * (axis * v).sum(dim=1, keepdim=True).sign()

by_pca = ul.CapabilityDirection.extract(*pair, aggregate="pca", progress=False)
assert_close(by_pca.vectors, pca, rtol=1e-3, atol=1e-3)
print("cosine of pca and mean, by layer:", *(f"{c:.2f}" for c in torch.cosine_similarity(pca, v, dim=1)))

# %% [markdown]
# Look at what was extracted. Left: how long the direction is, beside the locked states. Right: the differences of each
# prompt at layer 1, for three capabilities, projected on $v$ and on the axis beside it along which they vary most.

# %%
others = {name: (states(source, tuning.prompts(name)) - locked)[1] for name in ("reverse", "double")}
clouds = {"think": D[1], **others}
unit = normalize(v[1], dim=0)
beside = torch.cat([cloud - (cloud @ unit)[:, None] * unit for cloud in clouds.values()])
second = torch.linalg.svd(beside - beside.mean(dim=0))[2][0]

left, right = panels(2)
left.plot(locked.norm(dim=2).mean(dim=1), color=COLOURS[3], marker="s", label="locked states")
left.plot(v.norm(dim=1), color=COLOURS[0], marker="o", label="direction")
left.set(xlabel="source layer", ylabel="norm", yscale="log", xticks=range(len(v)))
left.legend(frameon=False, loc="upper left")
for (name, cloud), colour in zip(clouds.items(), COLOURS, strict=False):
    right.scatter(cloud @ unit, cloud @ second, s=10, color=colour, label=name)
right.plot(0, 0, marker="+", color=COLOURS[3], markersize=10, linestyle="none", label="no difference")
right.set(xlabel="along v, layer 1", ylabel="along the second axis")
right.legend(frameon=False)
plt.show()
minus_mean = torch.cosine_similarity(v, -locked.mean(dim=1), dim=1)
print("cosine of v with minus the mean locked state, by layer:", *(f"{cosine:.2f}" for cosine in minus_mean))

# %% [markdown]
# The prompts of one capability make one tight cloud, far from zero: one vector stands for all of them, and the mean is
# that vector. `pca` is the axis along which a cloud is longest. In layers 0 and 1 that is another thing; in layers 2 and
# 3 it is the mean again.
#
# There the locked states are a hundred times as long as in layer 0, and the difference mostly takes them away: it points
# along minus their mean. The last section comes back to this.
#
# ## 2. Align
#
# Target layer $b$ reads the source layer at the same relative depth,
#
# $$a(b) = \left\lfloor \frac{(L_s - 1)\, b}{L_t - 1} \right\rfloor .$$

# %%
H_s, H_t = (read.at_all_tokens(ul.Variant(model, text)).double() for model in (source, target))
L_s, L_t = len(H_s), len(H_t)
layer_map = {b: (L_s - 1) * b // (L_t - 1) for b in range(L_t)}

k = 48
aligner = ul.SubspaceAligner(rank=k)
aligner.fit(source=ul.Variant(source, text), target=ul.Variant(target, text), progress=False)
assert aligner.layer_map == layer_map
print("target layer: source layer", layer_map, " states of the text:", tuple(H_s.shape), tuple(H_t.shape))

# %% [markdown]
# The same text through both models gives $H_s$ and $H_t$, a row a token. Each is centered and decomposed, and cut at the
# leading $k$ singular values:
#
# $$H_s = U_s S_s V_s, \qquad H_t = U_t S_t V_t .$$


# %%
def thin_svd(rows):
    return torch.linalg.svd(rows - rows.mean(dim=0), full_matrices=False)


svd_s, svd_t = [thin_svd(H) for H in H_s], [thin_svd(H) for H in H_t]
left, right = panels(2)
for panel, decomposed, name in ((left, svd_s, "source"), (right, svd_t, "target")):
    for layer, (_, S, _) in enumerate(decomposed):
        shade = 0.35 + 0.65 * layer / (len(decomposed) - 1)
        panel.plot(range(1, len(S) + 1), S, color=COLOURS[0], alpha=shade, label=f"layer {layer}")
    panel.axvline(k, color=COLOURS[3], linestyle=":", linewidth=1)
    panel.set(xlabel=f"singular value of the {name}'s states", ylabel="size", yscale="log", ylim=(1, 3e4))
    panel.legend(frameon=False)
plt.show()

# %% [markdown]
# The dotted line is $k$. From layer 1 on one or two values tower over the others: some tokens have states of very large
# norm, as the last token of a plain prompt has (the picture before).
#
# The map joins the two subspaces by least squares,
#
# $$M = (H_s V_s^\top)^{+}\, H_t V_t^\top = S_s^{-1}\, U_s^\top U_t\, S_t, \qquad W[b] = V_s^\top M V_t .$$
#
# The second form needs no pseudo-inverse, and its leading blocks are the maps of smaller ranks.

# %%
coupling, W = {}, {}
for b, a in layer_map.items():
    (U_s, S_s, V_s), (U_t, S_t, V_t) = svd_s[a], svd_t[b]
    coupling[b] = U_s[:, :k].T @ U_t[:, :k]
    M = coupling[b] / S_s[:k, None] * S_t[:k]
    W[b] = V_s[:k].T @ M @ V_t[:k]

    centered_s, centered_t = (H - H.mean(dim=0) for H in (H_s[a], H_t[b]))
    assert_close(torch.linalg.lstsq(centered_s @ V_s[:k].T, centered_t @ V_t[:k].T).solution, M)
    assert_close(aligner.map(b).double(), W[b], rtol=1e-3, atol=1e-3)
print("W:", [(*of_layer.shape, int(torch.linalg.matrix_rank(of_layer))) for of_layer in W.values()], "d_s, d_t, rank")
print("least squares gives the same M, and the library the same W")

# %% [markdown]
# Axes and sizes are each model's own. $U_s^\top U_t$ alone says how the two go together: an entry is the correlation over
# tokens between an axis of one and an axis of the other.

# %%
for panel, b in zip(panels(L_t, height=2.9), layer_map, strict=True):
    image = panel.imshow(coupling[b].abs(), cmap="Blues", vmin=0, vmax=1)
    panel.set(title=f"target layer {b}, source {layer_map[b]}", xlabel="target axis")
    panel.title.set_fontsize(10)
panel.figure.axes[0].set_ylabel("source axis")
panel.figure.colorbar(image, ax=panel.figure.axes, label="|correlation|", shrink=0.72)
plt.show()

# %% [markdown]
# In the last layer the leading axes find their partners nearly one to one. In layer 0, and everywhere beyond axis 30 or
# so, an axis of one model is spread over many of the other, and a map that is cut early loses what crosses the cut.
#
# ## Transport
#
# $$v_t[b] = v_s[a(b)]\, W[b]$$

# %%
v_t = torch.stack([v[a].double() @ W[b] for b, a in layer_map.items()])

aligned = aligner.transport(direction)
assert_close(aligned.vectors.double(), v_t, rtol=1e-3, atol=1e-3)
print("v_t:", tuple(v_t.shape), " the library's is the same")

# %% [markdown]
# The target has the capability, too, so its own direction can be held against the transported one. In earnest one would
# not know it; here it shows which rank the map needs.

# %%
own = states(target, tuning.think).double().mean(dim=1) - states(target, tuning.direct).double().mean(dim=1)
ranks = range(1, k + 1)
(axes,) = panels(1)
for b, colour in zip(layer_map, COLOURS, strict=False):
    carried = torch.stack([aligner.at_rank(rank).transport(direction).vectors[b] for rank in ranks]).double()
    axes.plot(ranks, torch.cosine_similarity(carried, own[b], dim=1), color=colour, label=f"target layer {b}")
axes.set(xlabel="rank of the map", ylabel="cosine with the target's own", ylim=(-0.1, 1.04))
axes.legend(frameon=False, loc="lower right")
plt.show()

# %% [markdown]
# The last layer is nearly there at rank 1, layer 0 needs most of the rank. This cosine is no proof, as the last section
# shows.
#
# ## 3. Apply
#
# In the prefill, at the last prompt token, at every layer,
#
# $$h \leftarrow \lVert h \rVert \, \operatorname{unit}\left( h / \lVert h \rVert + \alpha\, v / \lVert v \rVert \right).$$
#
# The state is turned towards $v$ in the plane of both, and keeps its norm. Layer 0 is edited first, so what the library
# makes of it in a run can be compared at once; layer $l + 1$ reads the edited state of layer $l$.


# %%
def edited(h, v, alpha):
    return h.norm(dim=-1, keepdim=True) * normalize(normalize(h, dim=-1) + alpha * normalize(v, dim=-1), dim=-1)


h, alpha = states(target, tuning.direct)[0], 0.5
with ul.SteeringHook(aligned, alpha).attached(target):
    steered = states(target, tuning.direct)[0]
assert_close(steered, edited(h, aligned.vectors[0], alpha), rtol=1e-4, atol=1e-4)
print("the library's edit is the same; norm before and after:", f"{h[0].norm():.2f}, {steered[0].norm():.2f}")

# %%
x = normalize(h[0], dim=0)  # the plane: along h, and along what v has beside h
y = normalize(aligned.vectors[0] - (aligned.vectors[0] @ x) * x, dim=0)
flat = torch.stack([x, y], dim=1)
size = h[0].norm()

(axes,) = panels(1, height=4.2)
circle = torch.linspace(0, torch.pi, 200)
axes.plot(size * circle.cos(), size * circle.sin(), color=COLOURS[3], linewidth=1, linestyle=":")
toward = size * normalize(aligned.vectors[0], dim=0) @ flat
arrows = (h[0] @ flat, "h", COLOURS[3], (8, -4)), (toward, "v, at the norm of h", COLOURS[0], (16, -10))
for end, name, colour, offset in arrows:
    axes.annotate("", end.tolist(), (0, 0), arrowprops={"arrowstyle": "->", "color": colour, "linewidth": 1.6})
    axes.annotate(name, end.tolist(), xytext=offset, textcoords="offset points", color=colour)
for strength in (0.2, 0.5, 1.0):
    moved, turned = h[0] @ flat + strength * toward, edited(h[0], aligned.vectors[0], strength) @ flat
    axes.plot(*zip((h[0] @ flat).tolist(), moved.tolist(), strict=True), color=COLOURS[2], linewidth=1)
    axes.plot(*zip(moved.tolist(), turned.tolist(), strict=True), color=COLOURS[2], linewidth=1, linestyle="--")
    axes.plot(*turned.tolist(), marker="o", color=COLOURS[1])
    axes.annotate(f"alpha {strength:g}", turned.tolist(), xytext=(6, 4), textcoords="offset points", color=COLOURS[1])
axes.set(xlabel="along h", ylabel="beside h, towards v", aspect="equal")
plt.show()

# %% [markdown]
# Solid: $\alpha \lVert h \rVert$ along $v$. Dashed: back to the norm of $h$. The dots are the edited states.
#
# How far is far enough, problems decide that are not reported. The control *anti-mean* points away from the target's own
# mean locked state $\mu_t$, and needs no source at all.

# %%
mu = states(target, tuning.direct).mean(dim=1)  # the target's mean locked state
anti_mean = controls.anti_mean(ul.Variant(target, tuning.direct), like=aligned)
assert_close(normalize(anti_mean.vectors, dim=1), normalize(-mu, dim=1), rtol=1e-4, atol=1e-4)
alphas = [i / 10 for i in range(1, 9)]


def completed(problems, vectors, alpha):
    steer = ul.SteeringHook(vectors, alpha)
    return ul.generate(target, problems.direct, steer, max_new_tokens=12, batch_size=100, progress=False)


def right_by_alpha(vectors):
    return [sum(tuning.correct(completed(tuning, vectors, alpha))) for alpha in alphas]


counts = {"transferred": right_by_alpha(aligned), "anti-mean": right_by_alpha(anti_mean)}
(axes,) = panels(1)
for (arm, right), colour, marker in zip(counts.items(), COLOURS, "os", strict=False):
    axes.plot(alphas, right, color=colour, marker=marker, label=arm)
axes.axhline(100 / 7, color=COLOURS[3], linestyle=":", linewidth=1)
axes.text(0.8, 100 / 7 + 2, "chance", color=COLOURS[3], ha="right")
axes.set(xlabel="alpha, fraction of the residual's norm", ylabel="right answers of 100", ylim=(-3, 104))
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# The transfer has a window of strengths; the control has none.
#
# ## The confound
#
# The paper fits its map on the last token of the locked prompts, uncentered: `SubspaceAligner.paper()`. There all rows of
# $H_t$ are nearly the same state $\mu_t$, so the first right singular vector is $\mu_t / \lVert \mu_t \rVert$. At rank 1
# the factor before it is a number, and
#
# $$v_t = (v_s V_s^\top M)\, V_t \;\propto\; \mu_t ,$$
#
# whatever $v_s$ is: a random direction, for instance.


# %%
def cosines(vectors, others):
    return [f"{cosine:.2f}" for cosine in torch.cosine_similarity(vectors, others.to(vectors), dim=1)]


papers = ul.SubspaceAligner.paper(rank=16)
papers.fit(source=ul.Variant(source, tuning.direct), target=ul.Variant(target, tuning.direct), progress=False)
first = torch.stack([torch.linalg.svd(rows, full_matrices=False)[2][0] for rows in states(target, tuning.direct)])
anything = controls.random_like(direction)
print("|cosine| with the mean locked state, by layer")
for name, vectors in {
    "first axis of the locked states": first,
    "random, sent by the paper's, rank 1": papers.at_rank(1).transport(anything).vectors,
    f"random, sent by text, rank {k}": aligner.transport(anything).vectors,
}.items():
    print(f"{name:<36}", *cosines(vectors * (vectors * mu).sum(dim=1, keepdim=True).sign(), mu))

# %% [markdown]
# The paper's map sends it to $\mu_t$, the map from text does not (0.62 at most).
#
# Now the capability's direction. Three cosines for each layer: with $-\mu_t$; with the target's own direction; and with
# that again when the part along $\mu_t$ is taken out of both.

# %%
arms = {
    "target's own": ul.CapabilityDirection(own.float(), aligned.layers, model=aligned.model),
    f"text, rank {k}": aligned,
    "paper's, rank 16": papers.transport(direction),
    "paper's, rank 4": papers.at_rank(4).transport(direction),
    "paper's, rank 1": papers.at_rank(1).transport(direction),
}


def rest(vectors):
    along = normalize(mu, dim=1)
    return vectors - (vectors * along).sum(dim=1, keepdim=True) * along


rows = {name: [*cosines(arm.vectors, -mu), *cosines(arm.vectors, own)] for name, arm in arms.items()}
for name, arm in arms.items():
    beside = rest(arm.vectors).norm(dim=1) / arm.vectors.norm(dim=1)
    left = cosines(rest(arm.vectors), rest(own.float()))
    rows[name] += [cosine if share > 0.01 else "none left" for cosine, share in zip(left, beside, strict=True)]
told = ("with -mu", "with own", "the rest with own's")
pd.DataFrame(rows.values(), index=list(rows), columns=pd.MultiIndex.from_product([told, layer_map], names=["", "layer"]))

# %%
left, right = panels(2)
looks = zip(arms.items(), ("#202020", COLOURS[0], *[COLOURS[1]] * 3), ("-", "-", "-", "--", ":"), strict=True)
for (name, arm), colour, line in looks:
    look = {"color": colour, "linestyle": line, "marker": "o", "markersize": 4}
    left.plot(torch.cosine_similarity(arm.vectors, -mu, dim=1), label=name, **look)
    kept = rest(arm.vectors).norm(dim=1) > 0.01 * arm.vectors.norm(dim=1)
    cosine = torch.cosine_similarity(rest(arm.vectors), rest(own.float()), dim=1)
    right.plot(torch.arange(len(kept))[kept], cosine[kept], **look)
left.set(xlabel="target layer", ylabel="cosine with -mu", ylim=(-0.6, 1.05), xticks=range(L_t))
right.set(xlabel="target layer", ylabel="cosine of the rest with own's", ylim=(-0.6, 1.05), xticks=range(L_t))
left.legend(frameon=False, loc="lower right")
plt.show()

# %% [markdown]
# The target's own direction leans on $-\mu_t$, too, and in the last layer it is hardly anything else. So neither of the
# first two cosines tells a transfer from "away from the locked state". What is left does: the map from text carries it
# (0.94 or more); with the paper's nothing is left at rank 1, and at higher ranks something else (0.54 at best).
#
# What does that mean for the target? Each arm at its best strength on the tuning problems (of equals the middle one),
# then on problems that had no say in anything.

# %%
arms |= {
    f"text, rank {k}, without mu": controls.without_mean(ul.Variant(target, tuning.direct), aligned),
    "anti-mean": anti_mean,
    "random": controls.random_like(aligned),
}
counts = {name: right_by_alpha(arm) for name, arm in arms.items()}

# %%
rows = {}
for name, arm in arms.items():
    ties = [alpha for alpha, count in zip(alphas, counts[name], strict=True) if count == max(counts[name])]
    best = ties[len(ties) // 2]
    completions = completed(task, arm, best)
    rows[name] = [best, sum(task.correct(completions)), task.behaviours(completions).count("think"), completions[0]]
unsteered = ul.generate(target, task.direct, max_new_tokens=12, batch_size=100, progress=False)
rows["unsteered"] = ["", sum(task.correct(unsteered)), task.behaviours(unsteered).count("think"), unsteered[0]]
columns = ["alpha", "right of 100", "step by step", "first completion"]
pd.DataFrame(rows.values(), index=list(rows), columns=columns)

# %% [markdown]
# What arrives, arrives by the rest: with its part along $\mu_t$ taken out the transfer keeps every answer, and that part
# alone (anti-mean, or the paper's at rank 1) brings no step. Where a capability does lie along $\mu_t$, anti-mean brings
# it as well, and a transfer that only does as well as that has shown nothing: hence the control, always.
#
# | formula | in the library |
# |---|---|
# | $D_i[l]$, $v[l]$ | `CapabilityDirection.extract(locked, unlocked, aggregate="mean")` |
# | $a(b)$, $V_s$, $M$, $V_t$, $W[b]$ | `SubspaceAligner(rank).fit(...)`, `.map(b)` |
# | the same, the paper's calibration | `SubspaceAligner.paper(rank).fit(...)` on locked prompts |
# | $v_t[b]$ | `aligner.transport(direction)` |
# | the edit of $h$ | `SteeringHook(direction, alpha)` |
# | $-\mu_t$; without $\mu_t$ | `controls.anti_mean`; `controls.without_mean` |
#
# The same transfer without formulas: `quickstart.ipynb`.
