# %% [markdown]
# # 7. Where composition begins
#
# **Question.** Lesson 5 proved that no merge which sees only the adapters beats guessing. A language model
# has many layers, each of which reads what those below it have written. What exactly does the proof need,
# and what happens without it?
#
# You need: lessons 3 and 5. Time: 45 minutes.

# %%
import itertools

import jax
import numpy as np

from notebooks import checks
from notebooks.lesson import drawing, reveal
from toytransformer.compositions import Merge, catalogue
from toytransformer.layers import Stack, predict, two_layers
from toytransformer.regimes import Finite, FullLimit

jax.config.update("jax_enable_x64", True)

# %% [markdown]
# ## The idea
#
# The proof says: the z-rows of the merged output do not depend on $\sigma$, because the y that adapter 1
# *writes* is a row of a matrix, while the y that adapter 2 *reads* is an embedding. In one layer nothing
# connects the two. In a transformer something does. Each layer writes its answers into the **residual
# stream** of the position, and every layer above reads that stream:
#
# $$h_l = r_{l-1} + V_l \sum_j a_j\, r_{l-1}(j), \qquad o_l = (W_l + \Delta_l)\,\phi(h_l), \qquad
# r_l = h_l + \sum_e o_l[e]\, u_e .$$
#
# What is $u_e$? If input embeddings and output labels are **tied**, it is the embedding of the token $e$
# itself. If they are **untied**, it is a vector of its own. The answer is the largest entry of
# $\sum_l o_l$ at the last position.
#
# ## Predict first
#
# Two layers, three chains, an adapter for each hop, the plain sum with weights 1 and 3. In which cases are
# the two-hop questions answered rightly, whatever $\sigma$ is? Write the letters, such as `{"A", "B"}`.
#
# - A: hop 1 in layer 1, hop 2 in layer 2, tied
# - B: hop 1 in layer 2, hop 2 in layer 1, tied
# - C: both in layer 1, tied
# - D: both in layer 2, tied
# - E: hop 1 in layer 1, hop 2 in layer 2, untied
#
# And how does the weight that hop 2 needs grow with the number of chains: without bound? `True` or `False`.

# %%
guessed_cases = None
guessed_without_bound = None

# %% [markdown]
# ## All six relabellings, in the limit
#
# Infinitely wide layers, as in lesson 2: nothing is random, and all inner products count tokens.

# %%
n = 3
cases = {
    "A": ({"hop1": (1,), "hop2": (2,)}, True),
    "B": ({"hop1": (2,), "hop2": (1,)}, True),
    "C": ({"hop1": (1,), "hop2": (1,)}, True),
    "D": ({"hop1": (2,), "hop2": (2,)}, True),
    "E": ({"hop1": (1,), "hop2": (2,)}, False),
}
worlds = list(itertools.permutations(range(n)))


def build(sigma, weights=(1.0, 3.0), facts=n):
    return catalogue.build("two-hop", facts=facts, known=False, sigma=sigma, merge=Merge("sum", weights))


shares = {
    name: [predict(build(sigma), Stack(FullLimit(), tied=tied), placement).accuracy for sigma in worlds]
    for name, (placement, tied) in cases.items()
}
for name, share in shares.items():
    print(f"{name}: right in {', '.join(f'{one:.2f}' for one in share)}")
composing = {name for name, share in shares.items() if min(share) == 1}
assert composing == {"A"}
assert all(max(share) <= 1 / n + 1e-9 for name, share in shares.items() if name != "A")
reveal("right for every relabelling", guessed_cases, composing)

# %% [markdown]
# Only A composes, and it composes *every* world. In B, C and D nothing that adapter 2 reads has seen what
# adapter 1 wrote, so the proof of lesson 5 holds word by word. In E it has seen it, but in vectors that
# mean nothing to it.
#
# ## Watch it happen
#
# On the question *x1 R1 R2* layer 1 sees, at the position of *R1*, exactly the prompt *x1 R1* that adapter
# 1 was trained on. It writes y there. Layer 2, at *R2*, attends to that position. Below are the z-outputs
# in two worlds, once in order A and once in order B. A star is the right answer.

# %%
swapped = (1, 0, 2)
with drawing(width=6.2, height=3.0, ncols=2, sharey=True) as panels:
    for axes, name in zip(panels, ("A", "B"), strict=True):
        placement, tied = cases[name]
        for offset, sigma in ((-0.2, (0, 1, 2)), (0.2, swapped)):
            found = predict(build(sigma), Stack(FullLimit(), tied=tied), placement)
            columns = [found.composition.world.entities.index(f"z{j + 1}") for j in range(n)]
            heights = found.output[0, columns]
            couple = f"x1 goes with y{sigma[0] + 1}"
            axes.bar(np.arange(n) + offset, heights, 0.36, label=couple, edgecolor="black", linewidth=0.5)
            axes.plot(sigma[0] + offset, heights[sigma[0]] + 0.1, "*", color="black")
        axes.set_xticks(range(n), [f"z{j + 1}" for j in range(n)])
        axes.set_title(f"order {name}")
    panels[0].set_ylabel("output on x1 R1 R2")
    panels[1].legend()

# %% [markdown]
# In A the bars follow the star. In B they do not move.
#
# ## How much weight does hop 2 need?
#
# All scores are closed form. With adapter 1 at weight 1 the bridge entity y has a score, an old answer (if
# the base has one) has 1, and each unit of adapter 2's weight gives the right z `own` and every other z
# `other`.

# %%
for facts in (2, 10, 100, float("inf")):
    for known in (False, True):
        one = two_layers(facts, 1.0, known=known)
        assert one.own > one.other
        print(
            f"n = {facts:<5} {'known' if known else 'fresh'}: y {one.bridge:.3f}, own {one.own:.3f}, "
            f"other {one.other:.3f}: right from weight {one.threshold:.3f} on"
        )
needed = [two_layers(facts, 1.0, known=True).threshold for facts in (10, 1000, float("inf"))]
assert needed[0] < needed[1] < needed[2] < 5
reveal("the weight grows without bound", guessed_without_bound, not np.isfinite(needed[-1]))

# %% [markdown]
# So any number of facts composes at one fixed weight, and the hops themselves survive it. A finite network
# scatters around this. Here are ten draws of a small one:

# %%
for name in ("A", "B"):
    placement, tied = cases[name]
    draws = [
        predict(build((0, 1, 2)), Stack(Finite(dimension=256, width=2048, seed=seed), tied=tied), placement)
        for seed in range(10)
    ]
    right = np.mean([draw.accuracy for draw in draws])
    print(f"{name}: right in {right:.2f} of the questions")
    assert (right > 0.8) == (name == "A")

# %% [markdown]
# ## Two steps are two layers
#
# Lesson 6 ended with a chain of thought: answer *x R1*, feed the answer back as a *token*, ask *y R2*. That
# is the same picture, unrolled in time. The second pass is the upper layer, and feeding the answer back is
# the tied embedding. Both ways out of lesson 5 are one.
#
# ## Exercise 1: from which weight on?
#
# Write a function of the scores above: `own` (for each unit of weight), `bridge` (the score of y) and `old`
# (that of the old answer, 0 if there is none) to the weight of adapter 2 from which on the right z wins.


# %% tags=["exercise"]
def needed_weight(own, bridge, old): ...


# %% tags=["solution"]
def needed_weight(own, bridge, old):
    return max(bridge, old) / own


# %% tags=["check"]
checks.needed_weight(needed_weight)

# %% [markdown]
# ## Exercise 2: three hops, three layers
#
# Adapters for *R1*, *R2* and *R3*, tied, with weights 1, 3 and 9. Into which layers do you put them, so
# that *x R1 R2 R3* is answered rightly? Write the layers of hop 1, hop 2 and hop 3, such as `(2, 2, 1)`.

# %% tags=["exercise"]
layers = ...

# %% tags=["solution"]
layers = (1, 2, 3)

# %% tags=["check"]
checks.three_layers(layers)

# %% [markdown]
# **Take home.** What lesson 5 forbids is composing adapters *none of which reads what another writes*.
# Where a layer above reads the answer, in vectors that it knows as inputs, the plain sum composes. A
# language model has such layers; how far this carries there is measured in
# [docs/results.md](../docs/results.md), and limited by the position at which the answer is written.
