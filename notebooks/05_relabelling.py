# %% [markdown]
# # 5. Relabelling: the proof in one picture
#
# **Question.** Lessons 3 and 4 tried some merges, and they failed. Perhaps a better one will be found next
# year. Is there an argument against *all* of them?
#
# You need: lessons 3 and 4, permutations. Time: 45 minutes.

# %%
import itertools
import math

import jax
import numpy as np

from notebooks import checks
from notebooks.lesson import drawing, reveal
from toytransformer.compositions import Merge, catalogue
from toytransformer.prediction import predict
from toytransformer.regimes import Finite
from toytransformer.relabelling import average

jax.config.update("jax_enable_x64", True)

# %% [markdown]
# ## The idea
#
# Adapter 1 stores *x_i R1* → *y*, adapter 2 stores *y R2* → *z*. In the lessons so far x1 was married to y1.
# But couples can be formed in any way. Let a permutation $\sigma$ say who belongs to whom:
#
# $$x_i\,R_1 \to y_{\sigma(i)}, \qquad y_i\,R_2 \to z_i, \qquad\text{so } x_i\,R_1R_2 \to z_{\sigma(i)} .$$
#
# For three chains there are $3! = 6$ such worlds. Adapter 2 is the same in all of them. Only adapter 1
# changes, and all that changes in it is *which name it writes*: the rows of $\Delta_1$ that belong to the y's
# change places.
#
# ## Predict first
#
# We train the adapters anew in each of the six worlds, merge, ask all three two-hop questions, and average
# the share of right answers over the worlds.
#
# 1. At most which share can a merge reach that sees nothing but the two adapters?
# 2. One *single* adapter is trained on the facts of both hops at once. Can it do better than that? `True` or
#    `False`.

# %%
guessed_share = None
guessed_single_adapter_is_better = None

# %% [markdown]
# ## The picture
#
# A small random network and a merge in which z's win (adapter 2 has weight 3). One panel for each world. A
# row is a question *x_i R1 R2*, a column an answer *z_j*. Darker is a larger output. A ring marks the model's
# favourite z of each row, a star the right answer. A filled green ring is a hit.

# %%
n = 3
network = Finite(dimension=16, width=64, seed=6)
worlds = list(itertools.permutations(range(n)))


def build(sigma, merge, **library):
    return catalogue.build("two-hop", facts=n, known=False, sigma=sigma, merge=merge, **library)


def z_outputs(found):
    columns = [found.composition.world.entities.index(f"z{j + 1}") for j in range(n)]
    return found.output[:, columns]


loud = Merge("sum", (1.0, 3.0))
tables = [z_outputs(predict(build(sigma, loud), network)) for sigma in worlds]

with drawing(width=6.4, height=4.6, nrows=2, ncols=3, sharex=True, sharey=True) as panels:
    for axes, sigma, table in zip(panels.flat, worlds, tables, strict=True):
        axes.imshow(table, cmap="Greys", vmin=tables[0].min() - 0.3, vmax=tables[0].max() + 1.2)
        favourite = table.argmax(axis=1)
        for i in range(n):
            hit = favourite[i] == sigma[i]
            face = "#009E73" if hit else "none"
            axes.plot(
                favourite[i],
                i,
                "o",
                markersize=23,
                markerfacecolor=face,
                markeredgecolor="black",
                markeredgewidth=1.6,
            )
            axes.plot(sigma[i], i, "*", markersize=11, color="white" if hit else "black")
        axes.set_xticks(range(n), [f"z{j + 1}" for j in range(n)])
        axes.set_yticks(range(n), [f"x{i + 1} R1 R2" for i in range(n)])
        axes.tick_params(length=0)
        couples = ", ".join(f"x{i + 1}–y{j + 1}" for i, j in enumerate(sigma))
        axes.set_title(f"{couples}: {sum(favourite == sigma)} of {n}", fontsize=7.5, fontweight="normal")

# %% [markdown]
# Compare the panels. The stars wander. The grey shades, and the rings with them, **do not move**: the outputs
# on the z's are the same in all six worlds.

# %%
for table in tables:
    assert np.allclose(table, tables[0])
favourite = tables[0].argmax(axis=1)
total = sum(int(sum(favourite == sigma)) for sigma in worlds)
print(f"hits in all worlds together: {total} of {n * len(worlds)}")
assert total == n * math.factorial(n - 1)
reveal("share of right answers, averaged over the worlds", guessed_share, total / (n * len(worlds)))

# %% [markdown]
# ## The proof
#
# Call a merge **label-blind** if its outputs on the z's do not depend on $\sigma$.
#
# 1. Then the favourite z of question $i$ is some $a(i)$, the same in every world. (The rings do not move.)
# 2. Question $i$ is answered rightly in the worlds with $\sigma(i) = a(i)$. Once $\sigma(i)$ is fixed, the
#    others can be permuted freely: that is the case in $(n-1)!$ of the $n!$ worlds. (One star in $n$ meets
#    the ring.)
# 3. So each question is right in a share $(n-1)!/n! = 1/n$ of the worlds, or in fewer, if the answer is not a
#    z at all. $\square$
#
# Nothing was said about features, width or attention. And $1/n$ is what you get by guessing.
#
# ## Who is label-blind?
#
# $\Delta_1$ writes only to the y's (and their old answers), so its z-rows are zero in every world. What the
# rules of lesson 4 compute from $\Delta_1$ beside that, such as its right singular vectors, does not see
# which row is which. The library goes through all worlds and measures both: the share, and by how much any
# z-output moves.

# %%
merges = {
    "sum": Merge("sum"),
    "sum, weights 1 and 3": Merge("sum", (1.0, 3.0)),
    "mean": Merge("mean"),
    "linear (factors), weights 1.2 and 1.5": Merge("linear", (1.2, 1.5)),
    "Arrow, products": Merge("arrow-products"),
    "Arrow, factors": Merge("arrow-factors"),
}
for name, merge in merges.items():
    result = average(lambda sigma, merge=merge: build(sigma, merge), n, network)
    print(f"{name:38} share {result.accuracy:.3f}, largest change of a z-output {result.spread:.0e}")
    assert result.label_blind
    assert result.accuracy <= 1 / n + 1e-12

single = average(lambda sigma: build(sigma, Merge(), library=("mixed",)), n, network)
print(f"{'one adapter trained on both hops':38} share {single.accuracy:.3f}")
assert single.label_blind and single.accuracy <= 1 / n + 1e-12
reveal("one adapter for both hops is better", guessed_single_adapter_is_better, single.accuracy > 1 / n)

# %% [markdown]
# Even one adapter that has seen all six facts cannot do it. It was never shown that the answer y of one fact
# and the question y of another have anything to do with each other: the y that it *writes* is a row of a
# matrix, the y that it *reads* is an embedding. To the network these are two different things.
#
# And the good gauge of lesson 4? Its columns were put in order by somebody who knew $\sigma$. Then the merge
# is told $\sigma$ and is not label-blind. A gauge chosen without knowing $\sigma$ gains nothing on average.
#
# ## Exercise 1: the counting step
#
# Write the share of hits for favourites `a`, a tuple: the mean of `a[i] == sigma[i]` over all `i` and over
# all permutations `sigma` of `range(len(a))`. Favourites may repeat. Try some `a`, also `(0, 0, 0)`.


# %% tags=["exercise"]
def share_of_hits(a): ...


# %% tags=["solution"]
def share_of_hits(a):
    permutations = list(itertools.permutations(range(len(a))))
    matches = sum(a[i] == sigma[i] for sigma in permutations for i in range(len(a)))
    return matches / (len(a) * len(permutations))


# %% tags=["check"]
checks.hits(share_of_hits)

# %% [markdown]
# ## Exercise 2: what escapes?
#
# Which of these libraries, added up, beat 1/3? Write the letters, such as `{"A", "B"}`.
#
# - A: `hop1` (x R1 → y) and `hop2` (y R2 → z)
# - B: `mixed`, one adapter with the facts of both
# - C: `hop1`, `hop2` and `mixed`
# - D: `hop1`, `hop2` and `oracle`, which was trained on x R1 R2 → z
# - E: `joint`, one adapter with all three kinds of facts

# %% tags=["exercise"]
escaping = ...

# %% tags=["solution"]
escaping = {"D", "E"}

# %% tags=["check"]
checks.escapes(escaping)

# %% [markdown]
# **Take home.** Whatever you compute from adapters that never met, the second hop cannot depend on what the
# first hop found. Two things can: training data that shows both hops together, and writing the first answer
# down, so that a *row* becomes an *embedding*. That is lesson 6.
