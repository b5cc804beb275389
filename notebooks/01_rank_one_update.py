# %% [markdown]
# # 1. One fact is a rank-one update
#
# **Question.** A network says that Ann lives in Paris. You may change one matrix of it, so that it says Rome.
# What is the *smallest* change, and what else does the network say differently afterwards?
#
# You need: vectors, matrices, inner products. Time: 45 minutes. Run the cells from top to bottom.

# %%
import jax
import numpy as np
from flax import nnx

from notebooks import checks
from notebooks.lesson import drawing, reveal
from toytransformer.adapters import closed_form
from toytransformer.compositions import Fact, Prompt, World
from toytransformer.network import OneLayerTransformer
from toytransformer.prediction import base_output, wanted_shift
from toytransformer.training import one_fact_gap, train_lora

jax.config.update("jax_enable_x64", True)

# %% [markdown]
# ## Predict first
#
# Write your guesses into the next cell before you read on. A wrong guess is worth more than none.
#
# 1. The change is a matrix. What is the rank of the smallest one?
# 2. We edit only *Ann lives_in*. By what share of that change does the output on *Bob born_in* move, a prompt
#    that has no word in common with it? 0 is not at all, 1 is just as much.

# %%
guessed_rank = None
guessed_share = None

# %% [markdown]
# ## The network
#
# A prompt is an entity followed by a relation. A random, frozen network turns it into a vector of features
# $\phi$ (all of them $\ge 0$, they come out of a ReLU). A readout matrix $W$ turns features into one number
# for each entity, $W\phi$, and the entity with the largest number is the answer. Only $W$ is ever changed.
#
# First we teach it four facts.

# %%
asked = [Prompt(who, (what,)) for what in ("lives_in", "born_in") for who in ("Ann", "Bob")]
old = ("Paris", "Oslo", "Lima", "Cairo")
edit = Fact.of("Ann", "lives_in", "Rome")
world = World.of(base=[Fact(*pair) for pair in zip(asked, old, strict=True)], edits=[edit])

network = OneLayerTransformer(
    (*world.entities, *world.relations), world.entities, dimension=64, width=1024, rngs=nnx.Rngs(0)
)
network.fit_readout(asked, base_output(world, asked))


def answers(outputs):
    return [world.entities[i] for i in np.asarray(outputs).argmax(axis=1)]


before = answers(network(asked))
for prompt, answer in zip(asked, before, strict=True):
    print(f"{prompt}: {answer}")
assert before == list(old)

# %% [markdown]
# ## The smallest change, by hand
#
# Let $v$ be the features of *Ann lives_in* and $w$ the change we want in the output: $+1$ for Rome, $-1$ for
# Paris. We need a matrix $\Delta$ with $\Delta v = w$. There are very many. One of them reads along $v$ and
# writes $w$:
#
# $$\Delta W = \frac{w\,v^T}{|v|^2}, \qquad \Delta W\,v = w\,\frac{v^T v}{|v|^2} = w.$$
#
# This is Proposition 1 of the paper *When Does LoRA Reuse Work?*, which these lessons follow
# (`docs/theory.md` has it on one page). Here it is once by hand, beside the library's.

# %%
features = np.asarray(network.features(asked), float)  # one row for each prompt
v = features[0]
w = wanted_shift(world, [edit])[0]

by_hand = np.outer(w, v) / (v @ v)
adapter = closed_form(v[None], w[None])

assert np.allclose(by_hand @ v, w)
assert np.allclose(adapter.delta(), by_hand)
after = answers(network(asked, adapter.delta()))
for prompt, answer in zip(asked, after, strict=True):
    print(f"{prompt}: {answer}")
assert after == ["Rome", *before[1:]]
reveal("rank of the update", guessed_rank, int(np.linalg.matrix_rank(by_hand)))

# %% [markdown]
# ## Nothing smaller does it
#
# The size of a matrix is the root of the sum of its squared entries (the Frobenius norm). Take any matrix $M$
# and repair it, so that it stores the fact too: $M + (w - Mv)\,v^T/|v|^2$. Its part along $v$ is forced to be
# $\Delta W$. Everything else is extra, at a right angle to it, and only adds length. We try many.

# %%
rng = np.random.default_rng(0)
sizes = []
for scale in np.geomspace(1e-4, 1e-2, 200):
    other = scale * rng.standard_normal(by_hand.shape)
    other += np.outer(w - other @ v, v) / (v @ v)
    assert np.allclose(other @ v, w)  # it stores the fact as well
    sizes.append(np.linalg.norm(other))
print(f"norm of the rank-one update {np.linalg.norm(by_hand):.4f}, smallest of the others {min(sizes):.4f}")
assert np.linalg.norm(by_hand) < min(sizes)

# %% [markdown]
# ## Training finds it
#
# A LoRA adapter writes $\Delta W = A B^T$ with two thin matrices. We train one of rank 4 by gradient descent,
# on the squared error of this one fact plus `penalty` times $|A|^2 + |B|^2$. Nobody tells it to use rank one.
# Two things are predicted: its second singular value vanishes, and its distance from the closed form is
# `penalty` $/(|w||v|)$.

# %%
penalties = [1.0, 0.3, 0.1, 0.03, 0.01]
trained = [train_lora(v[None], w[None], rank=4, penalty=penalty, seed=1) for penalty in penalties]
predicted = [one_fact_gap(v, w, penalty) for penalty in penalties]

values = np.linalg.svd(trained[-1].lora.delta(), compute_uv=False)
print(f"singular values of the trained update: {values[0]:.4f}, then {values[1]:.1e}")
assert values[1] < 1e-4 * values[0]
assert np.allclose([found.gap for found in trained], predicted, rtol=1e-3)

with drawing() as axes:
    axes.loglog(penalties, predicted, "k-", label="predicted: penalty / (|w| |v|)")
    axes.loglog(penalties, [found.gap for found in trained], "o", color="#D55E00", label="trained, rank 4")
    axes.set(xlabel="penalty", ylabel="relative distance\nfrom the closed form")
    axes.set_title("The weaker the penalty, the nearer training comes to the rank-one update")
    axes.legend()

# %% [markdown]
# ## What else moves
#
# On another prompt with features $\phi$ the same update adds
#
# $$\Delta W\,\phi = w\,\frac{v\cdot\phi}{|v|^2} = c\,w.$$
#
# So every prompt gets the *same* change $w$ (towards Rome, away from Paris), only more or less of it. The
# number $c$ is all there is to know. It is called the **leak** here.

# %%
leaks = features @ v / (v @ v)
shifts = adapter.shift(features)
assert np.allclose(shifts, np.outer(leaks, w))

with drawing(height=2.4) as axes:
    axes.barh(
        [str(prompt) for prompt in asked],
        leaks,
        color=["#0072B2", "#56B4E9", "#56B4E9", "#E4E4E4"],
        edgecolor="black",
    )
    for row, leak in enumerate(leaks):
        axes.text(leak + 0.02, row, f"{leak:.2f}", va="center")
    axes.invert_yaxis()
    axes.set(xlim=(0, 1.15), xlabel="leak c: share of the edit's change that arrives")
    axes.set_title("An edit of Ann lives_in moves every other prompt too")

reveal("leak onto Bob born_in", guessed_share, float(leaks[3]))
assert np.all(leaks > 0)

# %% [markdown]
# No leak is zero. Features are never negative, so two feature vectors are at a right angle only if no neuron
# is active on both prompts, and there are too many neurons for that. Here the leaks were too small to change
# another answer. Lesson 2 computes them without any network; in lesson 3 they decide what the network says.
#
# ## Exercise: two facts at once
#
# Ann moves to Rome *and* Bob moves to Lima. Two rank-one updates added up do not do it: each one leaks onto
# the other's prompt. Write the smallest $\Delta W$ that stores both facts exactly.
#
# *Hint.* Look for $\Delta W = T\,G^{-1}\,\Phi^T$. The columns of $\Phi$ are the two feature vectors, those of
# $T$ the two changes. Which 2 × 2 matrix $G$ makes $\Delta W\,\Phi = T$? Mind that the arguments below hold
# them as *rows*.


# %% tags=["exercise"]
def store_two(features, changes):
    """features (2, feature), changes (2, entity): return Delta W, (entity, feature)."""
    ...


# %% tags=["solution"]
def store_two(features, changes):
    """Delta W = T G^-1 Phi^T, with G the inner products of the two feature vectors."""
    gram = features @ features.T
    return changes.T @ np.linalg.solve(gram, features)


# %% tags=["check"]
checks.two_facts(store_two)

# %% [markdown]
# **Take home.** Storing one fact costs one rank-one matrix $w v^T/|v|^2$: $v$ says when it acts, $w$ says
# what it writes. It acts, a little, everywhere.
