# %% [markdown]
# # 3. Two adapters on one prompt
#
# **Question.** One adapter knows that Ann is now married to Bob. Another one knows that Bob now lives in
# Rome. You add the two. Where does Ann's spouse live?
#
# You need: lessons 1 and 2. Time: 45 minutes.

# %%
import jax
import numpy as np

from notebooks import checks
from notebooks.lesson import drawing, reveal
from toytransformer import kernel
from toytransformer.compositions import Merge, catalogue
from toytransformer.prediction import predict
from toytransformer.regimes import FullLimit

jax.config.update("jax_enable_x64", True)
limit = FullLimit()  # infinitely wide: every result below is a number, not a sample

# %% [markdown]
# ## The names
#
# We write *x1* for Ann, *y1* for Bob and *z1* for Rome; *R1* is "is married to" and *R2* is "lives in". There
# can be several such chains, numbered 1 to $n$.
#
# | prompt | what the base model says | what an adapter is taught |
# |---|---|---|
# | x1 R1 | y1_old (Ann's former spouse) | y1 (adapter 1) |
# | y1 R2 | a1 (where Bob used to live) | z1 (adapter 2) |
# | x1 R1 R2 | b1 (where the former spouse lives) | nothing. The right answer is now **z1** |
#
# If the base model has those old answers, the facts are **known**. If it never heard of these people, its
# outputs there are 0 and the facts are **fresh**.
#
# ## Predict first
#
# We add both adapters, $W + \Delta_1 + \Delta_2$, and ask *x1 R1 R2*. Choose for each of the four cases one
# of `"correct"` (z1), `"bridge"` (y1), `"old"` (b1).

# %%
guess_known_1 = None  # known facts, one chain
guess_known_10 = None  # known facts, ten chains
guess_fresh_1 = None  # fresh facts, one chain
guess_fresh_10 = None  # fresh facts, ten chains

# %% [markdown]
# ## By hand
#
# From lesson 1: adapter 1 adds its change, $+1$ for y1 and $-1$ for y1_old, times the leak $c_1$ of *x1 R1*
# onto *x1 R1 R2*. Adapter 2 adds $+1$ for z1 and $-1$ for a1, times the leak $c_2$ of *y1 R2* onto the same
# prompt. So
#
# $$\text{output} = i_{b_1} + c_1\,(i_{y_1} - i_{y_1\text{old}}) + c_2\,(i_{z_1} - i_{a_1}),$$
#
# where $i$ is the unit vector of an entity. (This is Theorem 2 of the paper.) From lesson 2: $c_1$ and $c_2$
# follow from counting tokens. *x1 R1* and *x1 R1 R2* share half of $V e_{x1}$, and *y1 R2* and *x1 R1 R2*
# share $e_{R2}$.

# %%
c1, c2 = (float(kernel.overlap(*np.array(numbers))) for numbers in ((2.0, 0.5, 1.5), (2.0, 1.0, 1.5)))

one = predict(catalogue.build("two-hop", facts=1), limit)
names = one.composition.world.entities
by_hand = np.zeros(len(names))
for name, value in (("b1", 1), ("y1", c1), ("y1_old", -c1), ("z1", c2), ("a1", -c2)):
    by_hand[names.index(name)] += value
assert np.allclose(one.output[0], by_hand)
print(f"c1 = {c1:.4f}, c2 = {c2:.4f}; the old answer keeps 1 and wins")
assert max(c1, c2) < 1

# %% [markdown]
# ## The four cases

# %%
guesses = {
    (True, 1): guess_known_1,
    (True, 10): guess_known_10,
    (False, 1): guess_fresh_1,
    (False, 10): guess_fresh_10,
}
cases = {(known, n): predict(catalogue.build("two-hop", facts=n, known=known), limit) for known, n in guesses}

roles = {"right\nz1": "#009E73", "bridge\ny1": "#E69F00", "old\nb1": "#00508A", "other\nz2": "#E4E4E4"}
with drawing(height=3.4, ncols=4, sharey=True) as panels:
    for axes, ((known, n), found) in zip(panels, cases.items(), strict=True):
        heights = []
        for role in roles:
            entity = role.split()[1]
            exists = entity in found.composition.world.entities
            heights.append(found.coefficient(0, entity) if exists else np.nan)
        bars = axes.bar(list(roles), np.nan_to_num(heights), color=list(roles.values()), edgecolor="black")
        top = int(np.nanargmax(heights))
        for place, (bar, height) in enumerate(zip(bars, heights, strict=True)):
            bar.set_linewidth(2.5 if place == top else 0.5 if np.isfinite(height) else 0)
            text = f"{height:.2f}" if np.isfinite(height) else "none"
            weight = "bold" if place == top else "normal"
            axes.text(place, bar.get_height() + 0.02, text, ha="center", fontweight=weight, fontsize=7)
        axes.tick_params(axis="x", labelsize=6.5)
        axes.set_title(f"{'known' if known else 'fresh'}, n = {n}", fontweight="normal")
    panels[0].set_ylabel("output on x1 R1 R2")

for (known, n), found in cases.items():
    outcome = max(found.shares, key=found.shares.get)
    assert found.shares[outcome] == 1
    reveal(f"{'known' if known else 'fresh'} facts, n = {n}", guesses[known, n], outcome)

# %% [markdown]
# One case looks like a success: one fresh fact is answered by z1. But look at the last panel. With ten chains
# z1 and z2 get exactly the same. Adapter 2 sees only *R2* in the prompt, which it shares with *every* fact it
# stores, so it votes for every $z$ alike. With one chain there is only one $z$ to vote for: right, for the
# wrong reason.
#
# How many votes each $z$ gets is known too. With $n$ facts the edits are made together, and each gets the
# less the more there are:
#
# $$\text{output of each } z_i = \frac{c_2}{1 + \kappa(\tfrac12)\,(n-1)}.$$

# %%
numbers = [1, 2, 3, 5, 10, 20]
votes, bridge = [], []
for n in numbers:
    found = predict(catalogue.build("two-hop", facts=n, known=False), limit)
    each = [found.coefficient(0, f"z{i}") for i in range(1, n + 1)]
    assert np.allclose(
        each, c2 / (1 + kernel.kappa(np.asarray(0.5)) * (n - 1))
    )  # all alike, as in the formula
    votes.append(each[0])
    bridge.append(found.coefficient(0, "y1"))

with drawing() as axes:
    axes.plot(numbers, bridge, "s-", color="#E69F00", markeredgecolor="black", label="bridge y1")
    axes.plot(numbers, votes, "o--", color="#009E73", label="every z alike")
    axes.set(xlabel="facts n in each adapter", ylabel="output on x1 R1 R2", ylim=(0, 0.65))
    axes.set_xticks(numbers)
    axes.set_title("Fresh facts: from two chains on, the model answers the first hop")
    axes.legend()
assert votes[0] > bridge[0]
assert all(b > v for b, v in zip(bridge[1:], votes[1:], strict=True))

# %% [markdown]
# ## A control
#
# Any claim that two adapters compose should be tested on somebody else, too. *u1* was never edited, and the
# base model knows *u1 R1 R2*. Adapter 2 votes for z1 there exactly as loudly as on *x1 R1 R2*:

# %%
control = predict(catalogue.build("other-entity", facts=1), limit)
on_other, on_own = control.coefficient(0, "z1"), one.coefficient(0, "z1")
print(f"output of z1 on x1 R1 R2: {on_own:.4f}, on u1 R1 R2: {on_other:.4f}")
assert np.isclose(on_other, on_own)

# %% [markdown]
# ## Exercise: force it
#
# One known fact for each hop. The adapters may have weights: $W + \alpha_1\Delta_1 + \alpha_2\Delta_2$. Find
# weights with which *x1 R1 R2* is answered by z1. Use the formula above. Then read what the check says about
# *u1*.

# %% tags=["exercise"]
alpha_1 = ...
alpha_2 = ...

# %% tags=["solution"]
alpha_1 = 0.0
alpha_2 = 1.01 / c2  # z1 has alpha_2 c2, and has to be above the old answer's 1

# %% tags=["check"]
checks.weights((alpha_1, alpha_2))

# %% [markdown]
# That was not bad luck. Whatever the weights are, adapter 2 adds the same to both prompts, so it cannot be
# heard on the one and be silent on the other:

# %%
both = 0
for first in np.linspace(-2, 4, 13):
    for second in np.linspace(-2, 4, 13):
        merge = Merge("sum", (float(first), float(second)))
        edited = predict(catalogue.build("two-hop", facts=1, merge=merge), limit)
        other = predict(catalogue.build("other-entity", facts=1, merge=merge), limit)
        both += edited.strict_accuracy == 1 and other.strict_accuracy == 1
print(f"pairs of weights, of 169 tried, with z1 for x1 and the old answer for u1: {both}")
assert both == 0

# %% [markdown]
# **Take home.** The sum of the two adapters is a mixture of the two one-hop answers, with known coefficients.
# The second adapter never learns *whose* city is asked for. It votes the same for everybody.
