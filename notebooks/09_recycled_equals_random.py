# %% [markdown]
# # 9. Recycled equals random
#
# **Question.** A hub holds a thousand adapters. You take some, tune one weight for each on a few examples of
# your task, and the result beats the base. Did the adapters know anything of your task, or would random
# matrices have done as well? And which control can tell?
#
# You need: lessons 3 and 8. Time: 45 minutes.

# %%
import itertools
import warnings
from pathlib import Path

warnings.filterwarnings("ignore", message="IProgress not found")  # nothing here shows a progress bar

import numpy as np

import results
from notebooks import checks
from notebooks.lesson import drawing, reveal
from results.files import read
from results.recycled import Pool
from toytransformer.compositions import Fact, Prompt
from toytransformer.spans import Wanted, by_chance, captured

# %% [markdown]
# ## The target is a relabelling
#
# Your task has $n$ facts, and fact $i$ has the answer $\sigma(i)$. What has to be added to a base that knows
# none of them is, without each answer's mean, the matrix $T_\sigma = P_\sigma - J/n$, with $P_\sigma$ the
# permutation matrix and $J$ all ones. An adapter $k$ adds some matrix $S_k$, and tuned weights add
# $\sum_k a_k S_k$. The best $a$ is a least squares fit. How much of the target it explains is
#
# $$1 - \frac{\lVert T_\sigma - \sum_k a_k S_k\rVert^2}{\lVert T_\sigma\rVert^2}.$$

# %%
n, K = 5, 4
rng = np.random.default_rng(0)


def centred(matrices):
    """Without the means of rows and columns: what T_sigma is made of."""
    rows = matrices - matrices.mean(-1, keepdims=True)
    return rows - rows.mean(-2, keepdims=True)


def explained(matrices, target):
    design = matrices.reshape(len(matrices), -1).T
    a = np.linalg.lstsq(design, target.ravel(), rcond=None)[0]
    return 1 - np.sum((target.ravel() - design @ a) ** 2) / np.sum(target**2)


def targets(n):
    for sigma in itertools.permutations(range(n)):
        yield np.eye(n)[list(sigma)] - 1 / n


def on_average(matrices):
    """Over all n! relabellings: over all tasks that these adapters could not know of."""
    return np.mean([explained(matrices, target) for target in targets(len(matrices[0]))])


# %% [markdown]
# ## Predict first
#
# Four adapters, five facts. On average over all relabellings, which share of the target does the fit explain
#
# 1. if the four $S_k$ are random matrices?
# 2. if they are adapters that store *other* facts about the same five questions?
# 3. What would a fifth adapter add that stores all five facts of the target?

# %%
guessed_random = None
guessed_recycled = None
guessed_own = None

# %% [markdown]
# ## Random and recycled

# %%
random_span = centred(rng.normal(size=(K, n, n)))
strangers = centred(np.eye(n)[np.array([rng.permutation(n) for _ in range(K)])])
shares = {"random": on_average(random_span), "recycled": on_average(strangers)}
reveal("random", guessed_random, shares["random"])
reveal("recycled", guessed_recycled, shares["recycled"])
assert abs(shares["random"] - shares["recycled"]) < 1e-12

# %% [markdown]
# The same number. It is not what the matrices hold that counts but how many they are: a span of $K$
# directions that knows nothing of $\sigma$ explains, on average over all $\sigma$, its part of the space that
# the target lies in, and that has $(n-1)^2$ dimensions (rows and columns without their means):
#
# $$\frac{K}{(n-1)^2}.$$
#
# It is Schur's lemma: relabelling mixes these dimensions so thoroughly that none is special
# ([theory.md](../docs/theory.md), section 10; machine-checked as `Recycled.recycled_equals_random`).

# %%
assert abs(shares["random"] - K / (n - 1) ** 2) < 1e-12
counts = range(1, (n - 1) ** 2 + 1)
many = centred(rng.normal(size=(len(counts), n, n)))
some = [explained(many[:count], next(targets(n))) for count in counts]
mean = [on_average(many[:count]) for count in (1, 4, 8, 12, 16)]
with drawing() as axes:
    axes.plot(counts, [k / (n - 1) ** 2 for k in counts], color="black", label="K / (n - 1)²")
    axes.plot((1, 4, 8, 12, 16), mean, "o", label="random, mean over all relabellings")
    axes.plot(counts, some, ".", label="random, one relabelling")
    axes.set(xlabel="adapters", ylabel="share of the target explained")
    axes.legend()

# %% [markdown]
# So with enough weights a fit explains *everything* on its examples, whatever it fits: sixteen random
# matrices do. One weight for each module of each adapter is many weights. That a fit lowers the loss on its
# examples says nothing of the adapters.
#
# ## Examples of some of the facts
#
# Where $p$ of the $n$ facts are shown, the target is $p$ rows of $T_\sigma$, and the fit is over these. A
# span in the rows and columns without their means explains $K n / (p (n-1)^2)$ on average, `spans.by_chance`:

# %%
p = 3
shown_only = centred(rng.normal(size=(K, p, n)))
some_rows = np.mean([explained(shown_only, target[:p]) for target in targets(n)])
print(f"{p} of {n} facts: {some_rows:.4f}, by chance {by_chance(K, n, p):.4f}")
assert abs(some_rows - by_chance(K, n, p)) < 1e-12

# %% [markdown]
# ## One that does know
#
# The target's own adapter explains all of it alone. One that stores some of the facts gains its overlap with
# what the others leave:

# %%
target = np.eye(n)[list(rng.permutation(n))] - 1 / n
own = explained(np.stack([*random_span, target]), target)
reveal("with the target's own adapter", guessed_own, float(own - explained(random_span, target)))
assert abs(own - 1) < 1e-12
half = target * (np.arange(n) < 3)[:, None]
for name, span in (("random alone", random_span), ("three of five facts, and random", [*random_span, half])):
    print(f"{name:32} {explained(np.stack(span), target):.2f}")

# %% [markdown]
# In numbers: with $r$ what was left and $u$ the part of the new matrix outside the span, the gain is
# $\langle r, u\rangle^2 / \lVert u\rVert^2$, here as a share of the target.

# %%
design = random_span.reshape(K, -1).T


def outside(matrix):
    return matrix.ravel() - design @ np.linalg.lstsq(design, matrix.ravel(), rcond=None)[0]


r, u = outside(target), outside(half)
overlap = (r @ u) ** 2 / (u @ u) / np.sum(target**2)
gain = explained(np.stack([*random_span, half]), target) - explained(random_span, target)
print(f"gain {gain:.4f}, overlap {overlap:.4f}")
assert abs(gain - overlap) < 1e-12

# %% [markdown]
# ## Which control tells
#
# A study of adapters in the wild replaced *the other* adapters by random ones and kept the target's own
# (arXiv:2602.12323). The result was as good as with recycled ones. Look at what such a control can show:

# %%
controls = {
    "recycled, own among them": np.stack([target, *strangers]),
    "random, own kept": np.stack([target, *random_span]),
    "recycled, without own": strangers,
    "random, without own": random_span,
}
for name, span in controls.items():
    print(f"{name:26} {explained(span, target):.2f}")
assert explained(controls["random, own kept"], target) > 1 - 1e-12

# %% [markdown]
# With the target's own adapter kept, *anything* beside it does. Only the lines without it say what recycling
# itself is worth.
#
# ## In the toy transformer
#
# The same with facts, features and closed-form adapters. Of twelve people's homes some are shown as examples;
# the others are asked too. Strangers store homes of other people.

# %%
people = [f"person {k}" for k in range(12)]


def home(person, place):
    return Fact(Prompt(person, ("live_in",)), place)


facts = [home(person, f"city {k}") for k, person in enumerate(people)]
wanted = [Wanted(fact, None, shown=int(k < 6)) for k, fact in enumerate(facts)]
others = [
    [home(f"stranger {a} {k}", f"city {city}") for k, city in enumerate(rng.permutation(12))]
    for a in range(5)
]
for name, adapters in {
    "strangers": others,
    "half of the facts": [facts[3:9]],
    "half of the facts, and strangers": [facts[3:9], *others],
    "own, and strangers": [facts, *others],
    "a new one, of the facts shown": [facts[:6]],
}.items():
    found = captured(adapters, wanted)
    print(f"{name:34} shown {found.shown:6.2f}   others {found.unseen:6.2f}")
print(f"by chance, five of them: {by_chance(5, 12, 6):.2f}")

# %% [markdown]
# Strangers explain little of what is shown, and as little of the rest. A new adapter stores what is shown and
# gains all of it; to the others it says the same mixture of the shown answers, the kernel's share of their
# mean. What is rightly said of facts of which there is no example comes from adapters that know them.
#
# ## In a language model
#
# The rows that come with the project (`lora-limits run recycle`, [recycling.md](../docs/recycling.md)).
# First what the theory says of adapters that are taken from a pool by chance, before anything is measured:
# the share of the examples explained by what they store (`captured`), and by their number (`by_chance`).

# %%
kept = Path(results.__file__).parents[1] / "llm_experiments" / "data" / "pools"
pools = [Pool(read(folder, ["recycled"]).recycled) for folder in sorted(kept.iterdir()) if folder.is_dir()]
for pool in pools:
    said = {}
    for (task, *_), line in pool.selected.items():
        if line["rule"] == "random":
            key = pool.tasks[task]["base"], pool.tasks[task]["examples"], line["pool"], line["count"]
            said.setdefault(key, []).append((line["overlap"], line["by_chance"]))
    for (base, examples, name, count), shares in sorted(said.items()):
        stored, chance = np.mean(shares, axis=0)
        print(
            f"{base}, {examples:3} examples, {count:2} of {name:9}: stored {stored:.2f}, chance {chance:.2f}"
        )

# %% [markdown]
# Then what was measured, as far as the rows have it: shares of right answers on wordings of which no example
# is, by what was in the pool.

# %%
for pool in pools:
    if not pool.examples:
        print("only forecasts are kept of this model")
    for examples in pool.examples:
        print(f"\n{pool.base}, {examples} examples")
        for cell in pool.select(examples=examples, pool=None):
            print(f"  {cell.key.control:42} {cell.mean():.2f}")
        for cell in pool.select(examples=examples, method="adaptive", rule="random"):
            key = cell.key
            print(f"  {key.count:2} by chance, {key.pool:9}, {key.control:16} {cell.mean():.2f}")

# %% [markdown]
# Read them as above: the lines with `target` against those without; and beside every line without it the
# one of random adapters (`drawn-alone`, `norms-alone`) and the new adapter trained on the same examples.
#
# ## Exercise: how many
#
# Somebody tunes one weight for each of $M$ modules of $K$ adapters, on $p$ of $n$ facts. How many adapters,
# at least, does it take until the formula for $p$ of $n$ facts,
#
# $$\frac{d\,n}{p\,(n-1)^2},$$
#
# reaches 1 with $d = K M$ weights, so that random matrices explain all of the examples? Write it as a
# function.


# %% tags=["exercise"]
def enough(modules, facts, shown): ...


# %% tags=["solution"]
def enough(modules, facts, shown):
    return int(np.ceil(shown * (facts - 1) ** 2 / (facts * modules)))


# %% tags=["check"]
checks.enough(enough)

# %% [markdown]
# **Take home.** Tuned weights of adapters that do not know your task do on its examples what random matrices
# of their number do. Ask for three lines before you believe in recycling: without the adapters that know the
# task, random adapters in the place of *all* of them, and one new adapter on the same examples.
