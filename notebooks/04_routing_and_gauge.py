# %% [markdown]
# # 4. Why routing does not help, and a surprise
#
# **Question.** Adding two adapters did not compose them. A *router* looks at the prompt and decides how much
# of each adapter to use. Can a clever router do it? And does a merge depend on anything but the updates
# $\Delta_i$?
#
# You need: lesson 3, the singular value decomposition. Time: 45 minutes.

# %%
import jax
import numpy as np

from notebooks import checks
from notebooks.lesson import drawing, reveal
from toytransformer import merging
from toytransformer.compositions import Merge, catalogue
from toytransformer.prediction import base_output, predict
from toytransformer.regimes import FullLimit

jax.config.update("jax_enable_x64", True)
limit = FullLimit()

# %% [markdown]
# ## Predict first
#
# 1. A router may use any weights $1-w$ and $w$ on the two adapters, different ones for each prompt. For how
#    many of three situations (one known fact, one fresh fact, two fresh facts) is there a $w$ with which the
#    right answer z1 wins?
# 2. The router *Arrow* compares a prompt with what each adapter reads. Which weight does it give adapter 2 on
#    *x1 R1 R2*?
# 3. An adapter is stored as two factors, $\Delta = A B^T$. We change the sign of both: $\Delta = (-A)(-B)^T$.
#    Does any merge rule give another result? `True` or `False`.

# %%
guessed_situations = None
guessed_weight = None
guessed_sign_matters = None

# %% [markdown]
# ## Any router at all
#
# On one prompt a router is just a number $w$. So we try them all and look at the *margin*: the output of the
# right answer less the largest other output. Above zero, the right answer wins.

# %%
situations = {"one known fact": (1, True), "one fresh fact": (1, False), "two fresh facts": (2, False)}
grid = np.linspace(0, 1, 41)
margins = {}
for name, (n, known) in situations.items():
    margins[name] = []
    for w in grid:
        merge = Merge("sum", (float(1 - w), float(w)))
        found = predict(catalogue.build("two-hop", facts=n, known=known, merge=merge), limit)
        others = np.delete(found.output[0], found.composition.world.entities.index("z1"))
        margins[name].append(found.coefficient(0, "z1") - others.max())

with drawing(height=3.4) as axes:
    axes.axhline(0, color="black", linewidth=0.7)
    axes.axhspan(0, 0.75, color="#E4E4E4", linewidth=0)
    axes.text(0.01, 0.68, "z1 wins", va="center")
    looks = (("#00508A", "-"), ("#009E73", "--"), ("#D55E00", ":"))
    for (name, values), (colour, dashes) in zip(margins.items(), looks, strict=True):
        axes.plot(grid, values, color=colour, linestyle=dashes, linewidth=2, label=name)
    axes.set(
        xlabel="weight w of adapter 2 (adapter 1 has 1 − w)",
        ylabel="margin of z1",
        xlim=(0, 1),
        ylim=(-1.1, 0.75),
    )
    axes.set_title("Only one fresh fact can win: there is no other z to mix it up with")
    axes.legend(loc="lower right")

wins = {name: max(values) > 1e-9 for name, values in margins.items()}
assert wins == {"one known fact": False, "one fresh fact": True, "two fresh facts": False}
reveal("situations in which some router succeeds", guessed_situations, sum(wins.values()))

# %% [markdown]
# With two facts the margin climbs to zero and stays there: adapter 2 gives z1 and z2 the same, so the best
# that a router can reach is a tie. A router can turn adapters up and down. It cannot make an adapter say what
# it does not say.
#
# ## What Arrow does
#
# Arrow takes from each adapter the direction it reads most, its top right singular vector $p_i$ with
# $|p_i|=1$. On a prompt with features $\phi$ the weights are a softmax of $|p_i\cdot\phi|/T$. For one fact $p
# = v/|v|$, so
#
# $$|p_i\cdot\phi| = \frac{|v_i\cdot\phi|}{|v_i|} = c_i\,|v_i|, \qquad |v_i| = \sqrt2 .$$
#
# (The length is that of lesson 2, with activations scaled so that a temperature $T = 1$ has a meaning at
# every width.)

# %%
arrow = Merge("arrow-products", options={"temperature": 1.0, "temperature_scaling": "sqrt-width"})
routed = predict(catalogue.build("two-hop", facts=1, merge=arrow), limit)
composition = routed.composition
phi = limit.features(composition.prompts).values
v1, v2, asked = (phi[composition.prompts.index(p)] for p in composition.prompts)

logits = np.array([abs(v @ asked) / np.linalg.norm(v) for v in (v1, v2)])
by_hand = np.exp(logits) / np.exp(logits).sum()
assert np.allclose(routed.merged.routing(asked[None])[0], by_hand)
reveal("Arrow's weight of adapter 2", guessed_weight, float(by_hand[1]))
print("answer:", max(routed.shares, key=routed.shares.get))

# %% [markdown]
# ## Many rules, one look
#
# The library has many more rules, see `docs/merging.md`. Here are four that work on the *products*
# $\Delta_i$: two facts, known and fresh. (TIES and DARE act on single entries of a matrix. They are left out
# here because they are slow to compute, but the ledger has them.)

# %%
rules = ["sum", "mean", "sum-truncated", "arrow-products"]
assert all(merging.resolve(rule).gauge_invariant for rule in rules)
for known in (True, False):
    for rule in rules:
        found = predict(catalogue.build("two-hop", facts=2, known=known, merge=Merge(rule)), limit)
        assert found.accuracy == 0
        outcome = max(found.shares, key=found.shares.get)
        print(f"{'known' if known else 'fresh'}, {rule:15} {outcome}")

# %% [markdown]
# ## The surprise
#
# Some popular rules do not add products. They add the *factors*: with $\Delta_i = A_i B_i^T$,
#
# $$\left(\sum_i w_i A_i\right)\left(\sum_j w_j B_j\right)^T
# = \sum_i w_i^2 A_iB_i^T + \sum_{i\ne j} w_i w_j\,A_iB_j^T .$$
#
# The second sum is made of **cross terms**. $A_2 B_1^T$ reads what adapter 1 reads (x) and writes what
# adapter 2 writes (z). That is the composition we want! But the factors are not determined by $\Delta_i$. For
# every invertible $R$
#
# $$A B^T = (A R)(B R^{-T})^T .$$
#
# Such a change is called a change of **gauge**. We take two known facts for each hop, leave adapter 1 alone,
# and turn the two columns of adapter 2 by an angle. Both $\Delta_i$ stay as they are.

# %%
aligned = predict(
    catalogue.build("two-hop", facts=2, gauge="facts", merge=Merge("linear", checks.UNEVEN)), limit
)
hop1, hop2 = aligned.adapters
rows = dict(zip(aligned.composition.prompts, limit.features(aligned.composition.prompts).values, strict=True))
questions = aligned.composition.questions
asked = np.stack([rows[question.prompt] for question in questions])
names = aligned.composition.world.entities
right = [names.index(question.correct) for question in questions]
base = base_output(aligned.composition.world, [question.prompt for question in questions])


def margin(rule, first, second):
    """Of the right answer over the largest other, for both questions."""
    output = base + merging.merge((first, second), Merge(rule, checks.UNEVEN)).shift(asked)
    own = output[[0, 1], right]
    output[[0, 1], right] = -np.inf
    return own - output.max(axis=1)


def rotation(angle):
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


angles = np.linspace(-np.pi, np.pi, 121)
linear, total = [], []
for angle in angles:
    turned = hop2.regauge(rotation(angle))
    assert np.allclose(turned.delta(), hop2.delta())
    linear.append(margin("linear", hop1, turned))
    total.append(margin("sum", hop1, turned))
linear, total = np.array(linear), np.array(total)

with drawing(height=3.6) as axes:
    degrees = np.degrees(angles)
    axes.axhline(0, color="black", linewidth=0.7)
    good = linear.min(axis=1) > 0
    axes.fill_between(degrees, -3, 1.5, where=good, color="#009E73", alpha=0.25, linewidth=0)
    axes.plot(degrees, linear[:, 0], color="#0072B2", label="factors added, x1 R1 R2")
    axes.plot(
        degrees, linear[:, 1], color="#D55E00", linestyle=":", linewidth=2.2, label="factors added, x2 R1 R2"
    )
    axes.plot(degrees, total[:, 0], "k--", label="products added (both)")
    axes.set(
        xlabel="angle by which adapter 2's columns are turned, in degrees",
        ylabel="margin of the right answer",
    )
    axes.set(xlim=(-180, 180), ylim=(linear.min() - 0.9, linear.max() + 0.2))
    axes.set_xticks(range(-180, 181, 90))
    axes.set_title("The same two updates: right (shaded) or wrong, as the gauge will have it")
    axes.legend(loc="lower center", ncols=2, fontsize=7)

assert np.ptp(total, axis=0).max() < 1e-9 and total.max() < 0
assert (
    good[60] and not good[0]
)  # right when the columns fit (angle 0), wrong with the signs changed (180 degrees)
reveal("does the sign of the factors matter to some rule", guessed_sign_matters, bool(good[60] != good[0]))

# %% [markdown]
# At angle 0 column $j$ of both adapters belongs to chain $j$, and adding factors answers *both* two-hop
# questions. Nothing in the two updates says so. It is in the way they were written down. The paper's Theorem
# 3 says that such merging cannot compose; for the answer (the largest output) that is not quite true, as you
# see. What is true instead is lesson 5.
#
# ## Exercise: mend a gauge
#
# Somebody stored adapter 2 with its columns in the other order, so column 1 belongs to chain 2. Both answers
# are wrong now. Give a 2 × 2 matrix $R$ with which `broken.regauge(R)` makes both right. `regauge` replaces
# $A$ by $A R$ and $B$ by $B R^{-T}$.

# %%
found, first, broken = checks.swapped()
print("answers now:", checks.answers(found, first, broken))

# %% tags=["exercise"]
R = ...

# %% tags=["solution"]
R = [[0, 1], [1, 0]]  # exchange the two columns back

# %% tags=["check"]
checks.gauge(R)

# %% [markdown]
# To find $R$ you used that x1 goes with z1 and x2 with z2. But that *is* the answer to the two-hop questions.
# Somebody who does not know it has to guess the order, and with $n$ facts there are $n!$ of them.
#
# **Take home.** Routers choose among answers that adapters give, and no adapter gives the composed one. Rules
# that add factors can look better or worse, depending on a choice that nobody made on purpose.
