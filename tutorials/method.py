# ---
# jupyter:
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # The method by hand
#
# The formulas of UNLOCK ([arXiv:2604.06377](https://arxiv.org/abs/2604.06377)) in plain torch, each checked against the
# library, and one picture of what they do to the target's states.
#
#     pip install 'unlock-lens[transformer-lens,nnsight]' matplotlib

# %%
import os

import matplotlib.pyplot as plt
import torch
from torch.nn.functional import normalize
from torch.testing import assert_close

import unlock_lens as ul
from unlock_lens import zoo
from unlock_lens.core import read

# %% [markdown]
# **With your own models** this is the one cell to change: two models, prompts without and with the capability, and text.
# With `UNLOCK_LENS_MODELS` set (`make real`) the pair is SmolLM2 and Gemma, and the capability is writing French.

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
    RANK, LAYER, ALPHA = 32, 10, 0.3
else:
    source, target = zoo.load("large-base"), zoo.load("small-base")
    task = zoo.running_sum(n=100, seed=1)
    locked, unlocked = task.direct, task.think
    text, RANK, LAYER, ALPHA = [*zoo.text(n=600), *locked, *unlocked], 48, 2, 0.5

# %% [markdown]
# ## 1. Extract
#
# $h[l]$ is the residual stream at the output of block $l$, at the last token of the prompt. For prompt $i$
#
# $$D_i[l] = h_{\text{unlocked},i}[l] - h_{\text{locked},i}[l], \qquad v[l] = \frac1n \sum_i D_i[l].$$


# %%
def states(model, prompts):
    return read.at_position(ul.Variant(model, prompts)).double()  # [layer, prompt, d_model]


D = states(source, unlocked) - states(source, locked)
v = D.mean(dim=1)
direction = ul.CapabilityDirection.extract(ul.Variant(source, locked), ul.Variant(source, unlocked), progress=False)
assert_close(direction.vectors.double(), v, rtol=1e-3, atol=1e-3)

# %% [markdown]
# ## 2. Align
#
# Target layer $b$ reads the source layer at the same relative depth. The states of the same tokens of text, centered, are
# decomposed on both sides, and cut at the leading $k$ singular values:
#
# $$a(b) = \left\lfloor \frac{(L_s - 1)\, b}{L_t - 1} \right\rfloor, \qquad H_s = U_s S_s V_s, \qquad H_t = U_t S_t V_t .$$
#
# The map joins the two subspaces by least squares, and carries the direction over:
#
# $$M = (H_s V_s^\top)^{+}\, H_t V_t^\top, \qquad W[b] = V_s^\top M V_t, \qquad v_t[b] = v[a(b)]\, W[b].$$

# %%
H_s, H_t = (states(model, text) for model in (source, target))  # at the last token of each text
aligner = ul.SubspaceAligner(rank=RANK, positions="last", sinks="keep").fit(source, target, text, progress=False)
aligned = aligner.transport(direction)

v_t = torch.empty_like(aligned.vectors, dtype=torch.float64)
for b in range(len(H_t)):
    a = (len(H_s) - 1) * b // (len(H_t) - 1)
    rows_s, rows_t = (H - H.mean(dim=0) for H in (H_s[a], H_t[b]))
    V_s, V_t = (torch.linalg.svd(rows, full_matrices=False)[2][:RANK] for rows in (rows_s, rows_t))
    M = torch.linalg.lstsq(rows_s @ V_s.T, rows_t @ V_t.T).solution
    W = V_s.T @ M @ V_t
    v_t[b] = v[a] @ W
cosines = torch.cosine_similarity(v_t, aligned.vectors.double(), dim=1)
assert_close(cosines, torch.ones_like(cosines), rtol=1e-3, atol=1e-3)
print("W", tuple(W.shape), "of rank", RANK, " v_t", tuple(v_t.shape), " the library's v_t is the same")

# %% [markdown]
# ## 3. Apply
#
# While the prompt is read, at its last token and at every layer,
#
# $$h \leftarrow \lVert h \rVert \, \operatorname{unit}\left( h / \lVert h \rVert + \alpha\, v_t / \lVert v_t \rVert \right).$$
#
# The state turns towards $v_t$ and keeps its norm.


# %%
def edited(h, v, alpha):
    return h.norm(dim=-1, keepdim=True) * normalize(normalize(h, dim=-1) + alpha * normalize(v, dim=-1), dim=-1)


h = states(target, locked)
with ul.SteeringHook(aligned, ALPHA).attached(target):
    steered = states(target, locked)
assert_close(steered[0], edited(h[0], aligned.vectors[0].double(), ALPHA), rtol=2e-2, atol=2e-2)  # the library's is the same

# %% [markdown]
# ## What it does to the target's states
#
# One layer; the horizontal axis is the target's own direction, which the transfer never saw. Every line follows one locked
# prompt while the strength grows.

# %%
there = states(target, unlocked)[LAYER]
across = normalize(there.mean(dim=0) - h[LAYER].mean(dim=0), dim=0)
rest = torch.cat([h[LAYER], there])
rest = rest - rest.mean(dim=0)
up = torch.linalg.svd(rest - (rest @ across)[:, None] * across, full_matrices=False)[2][0]
plane = torch.stack([across, up], dim=1)

paths = [h[LAYER] @ plane]
for share in (0.2, 0.4, 0.6, 0.8, 1.0):
    with ul.SteeringHook(aligned, share * ALPHA).attached(target):
        paths.append(states(target, locked)[LAYER] @ plane)
paths = torch.stack(paths)
_, axes = plt.subplots(figsize=(7, 4))
axes.plot(paths[:, :30, 0], paths[:, :30, 1], color="#1b74c8", linewidth=0.8, alpha=0.5)
axes.scatter(*paths[0].T, s=14, color="#757575", label="locked prompts")
axes.scatter(*(there @ plane).T, s=14, color="#96700a", marker="s", label="unlocked prompts")
axes.scatter(*paths[-1].T, s=14, color="#1b74c8", marker="^", label=f"locked prompts, steered at alpha {ALPHA:g}")
axes.set(xlabel=f"along the target's own direction, layer {LAYER}", ylabel="across it")
axes.set_title("Where steering takes the locked states, as it grows", loc="left", fontsize=10)
axes.legend(frameon=False)
plt.show()
way = [(path[:, 0].mean() - paths[0, :, 0].mean()) / ((there @ plane)[:, 0].mean() - paths[0, :, 0].mean()) for path in paths]
print("share of the way, by strength:", [f"{share:.0%}" for share in way])

# %% [markdown]
# On SmolLM2 and Gemma a strength that changes the text overshoots ninefold here. Nor does this prove anything about answers:
# `quickstart.ipynb` counts them, `evidence.ipynb` asks what else would do it.
