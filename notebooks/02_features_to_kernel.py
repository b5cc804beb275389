# %% [markdown]
# # 2. From random features to a kernel
#
# **Question.** In lesson 1 the leak of one edit onto another prompt came from a random network. Another
# random network gives another number. Why are they all nearly the same, and which number are they near?
#
# You need: lesson 1, mean and standard deviation, a Gaussian. Time: 45 minutes.

# %%
import jax
import numpy as np

from notebooks import checks
from notebooks.lesson import drawing, reveal
from toytransformer import hidden, kernel
from toytransformer.compositions import Prompt
from toytransformer.regimes import Finite, FullLimit
from toytransformer.sampling import overlap_draws

jax.config.update("jax_enable_x64", True)

# %% [markdown]
# ## Predict first
#
# 1. An edit of *x R1* leaks onto *u R2*, a prompt without a common token, by some share $c$. Which number
#    does $c$ approach when the network gets very wide? 0? 1/2? Something else?
# 2. We make the network four times as wide. By what factor does the random part of $c$ shrink?

# %%
guessed_limit = None
guessed_factor = None

# %% [markdown]
# ## An inner product that is an average
#
# A prompt has a hidden state $h$. Its features are $\phi(h)=\sqrt{2/m}\,\mathrm{relu}(Uh)$, with $m$ rows
# $u_r$ of independent Gaussian numbers in $U$. So the inner product of two prompts' features is an average
# over $m$ independent neurons,
#
# $$\phi(h)\cdot\phi(h') = \frac{2}{m}\sum_{r=1}^{m}\mathrm{relu}(u_r\cdot h)\,\mathrm{relu}(u_r\cdot h'),$$
#
# and an average over many independent terms settles at its mean. That mean is called the **kernel**
# $k(h,h')$. For unit vectors at an angle with cosine $c$ it is a known integral:
#
# $$\kappa(c) = \frac{\sqrt{1-c^2} + (\pi-\arccos c)\,c}{\pi}, \qquad k(h,h') = |h|\,|h'|\,\kappa(\cos).$$
#
# Once by hand, beside the library's and beside sampled networks:


# %%
def kappa_by_hand(c):
    return (np.sqrt(1 - c**2) + (np.pi - np.arccos(c)) * c) / np.pi


cosines = np.linspace(-1, 1, 201)
assert np.allclose(kappa_by_hand(cosines), kernel.kappa(cosines))

width = 1000
chosen = np.linspace(-0.9, 0.9, 10)
sampled = []
for seed, cosine in enumerate(chosen):
    states = np.array([[1.0, 0.0], [cosine, np.sqrt(1 - cosine**2)]])  # two unit vectors at this angle
    phi = hidden.sample_features(jax.random.key(seed), states, width=width)
    sampled.append(float(phi[0] @ phi[1]))
error = kernel.kernel_standard_error(np.ones(10), chosen, np.ones(10), width)

with drawing() as axes:
    axes.plot(cosines, kernel.kappa(cosines), "k-", label="κ, the mean")
    axes.errorbar(
        chosen, sampled, yerr=2 * error, fmt="o", color="#D55E00", capsize=3, label="one network each"
    )
    axes.set(
        xlabel="cosine c of the angle between two hidden states", ylabel="inner product\nof their features"
    )
    axes.set_title("κ is 0 only for opposite states; at a right angle (c = 0) it is not")
    axes.legend()

# Five standard errors: one in millions of samples would lie outside.
assert np.all(np.abs(sampled - kernel.kappa(chosen)) < 5 * error)

# %% [markdown]
# The bars are not fitted. Theory gives the standard deviation of one neuron's term, and an average over $m$
# neurons has $1/\sqrt m$ of it. We check that as well, with many networks at each width.

# %%
key, other = Prompt("x", ("R1",)), Prompt("u", ("R2",))
widths = [64, 256, 1024, 4096]
draws = 200
spread, derived = [], []
gram = FullLimit().hidden_gram([key, other])
for width in widths:
    leaks = overlap_draws(Finite(dimension=np.inf, width=width), [key], other, draws)[:, 0]
    spread.append(leaks.std(ddof=1))
    derived.append(float(kernel.overlap_standard_error(gram[0, 0], gram[0, 1], gram[1, 1], width)))

with drawing() as axes:
    axes.loglog(widths, derived, "k-", label="derived standard deviation")
    axes.loglog(widths, spread, "o", color="#D55E00", label=f"spread of {draws} networks")
    axes.set_xticks(widths, [f"{w:,}" for w in widths])
    axes.set_yticks([0.02, 0.05, 0.1], ["0.02", "0.05", "0.1"])
    axes.minorticks_off()
    axes.set(xlabel="width m", ylabel="standard deviation of the leak")
    axes.set_title("Four times the width, half the randomness")
    axes.legend()

reveal("the random part shrinks by a factor of", guessed_factor, derived[0] / derived[1])
# The spread of n draws is itself known to about 1/sqrt(2 n) of its size. The smallest width is left out: the
# formula is the first term of a series, and not yet exact there.
assert np.allclose(spread[1:], derived[1:], rtol=5 / np.sqrt(2 * draws))

# %% [markdown]
# ## Counting tokens
#
# The kernel needs the angle between hidden states. In our transformer the last token's own embedding is added
# to the average of what the tokens before it send through the value matrix $V$:
#
# $$h(x\,R_1) = e_{R_1} + V e_x, \qquad h(x\,R_1\,R_2) = e_{R_2} + \tfrac12\,(V e_x + V e_{R_1}).$$
#
# Random vectors in a high dimension are nearly at right angles. In the limit they are exactly so: all $e_t$
# and all $V e_t$ are then orthonormal. Inner products of hidden states count common tokens, and nothing is
# random any more.

# %%
shown = [
    Prompt("x", ("R1",)),
    Prompt("u", ("R2",)),
    Prompt("u", ("R1",)),
    Prompt("x", ("R2",)),
    Prompt("x", ("R1", "R2")),
]
counted = FullLimit().hidden_gram(shown)
for prompt, own, inner in zip(shown, np.diag(counted), counted[0], strict=True):
    print(f"{prompt!s:8}  |h|^2 = {own:.2f}   inner product with h(x R1) = {inner:.2f}")

# x R1 and x R2 share V e_x; x R1 and u R1 share e_R1; x R1 and x R1 R2 share half of V e_x.
assert counted[0].tolist() == [2, 0, 1, 1, 0.5]

# %% [markdown]
# So the leak of an edit at $\eta$ onto a prompt $\xi$ is a number that can be written down:
#
# $$c = \frac{k(\eta,\xi)}{k(\eta,\eta)} = \frac{|\xi|}{|\eta|}\;\kappa(\cos).$$

# %%
limit = FullLimit().gram(shown)
leaks = limit[0] / limit[0, 0]

unrelated, shared = leaks[1], leaks[2]
assert np.isclose(unrelated, kappa_by_hand(0.0)) and np.isclose(unrelated, 1 / np.pi)
assert np.isclose(shared, kappa_by_hand(0.5))
assert np.isclose(leaks[3], shared)  # the same relation or the same entity: no difference
reveal("leak of x R1 onto u R2, in the limit", guessed_limit, float(unrelated))
print(f"leak onto a prompt that shares one token: {shared:.4f}; onto x R1 R2: {leaks[4]:.4f}")

# %% [markdown]
# An unrelated prompt gets $1/\pi$, almost a third, of every edit, and no width makes that smaller. Networks
# of three sizes show it; $d$ is the dimension of the embeddings and $m$ the number of neurons:

# %%
sizes = [(64, 256), (256, 2048), (1024, 16384)]
with drawing(height=3.0) as axes:
    for row, (dimension, width) in enumerate(sizes):
        found = overlap_draws(Finite(dimension=dimension, width=width), [key], other, 40)[:, 0]
        axes.plot(found, np.full(len(found), row) + np.linspace(-0.2, 0.2, len(found)), "o", color="#0072B2")
    axes.axvline(1 / np.pi, color="black", label="1/π")
    axes.set_yticks(range(3), [f"d = {d:,}, m = {m:,}" for d, m in sizes])
    axes.set(xlabel="leak of x R1 onto u R2, one dot for each of 40 networks", ylim=(-0.5, 2.9))
    axes.set_title("The larger the network, the nearer to 1/π")
    axes.legend(loc="upper right")
assert np.abs(found - 1 / np.pi).max() < 0.1

# %% [markdown]
# ## Exercise: three hops
#
# Predict the leak of an edit of *x R1* onto *x R1 R2 R3*. Three tokens are attended to now, each with weight
# 1/3: $h(x\,R_1 R_2 R_3) = e_{R_3} + \tfrac13(V e_x + V e_{R_1} + V e_{R_2})$. Count by hand, and write the
# three numbers.

# %% tags=["exercise"]
key_norm_squared = ...  # |h(x R1)|^2
inner_product = ...  # h(x R1) . h(x R1 R2 R3)
query_norm_squared = ...  # |h(x R1 R2 R3)|^2

# %% tags=["solution"]
key_norm_squared = 1 + 1  # e_R1 and V e_x
inner_product = 1 / 3  # only V e_x is in both: 1 times 1/3
query_norm_squared = 1 + 3 * (1 / 3) ** 2  # e_R3, and three values of weight 1/3

# %% tags=["check"]
checks.three_hops(key_norm_squared, inner_product, query_norm_squared)
leak = kernel.overlap(*(np.asarray(n, float) for n in (key_norm_squared, inner_product, query_norm_squared)))
print(f"so an edit of x R1 leaks onto x R1 R2 R3 by {float(leak):.4f}")

# %% [markdown]
# **Take home.** A wide random network computes a kernel. In the limit every leak is a number, found by
# counting common tokens. Even a prompt that shares no token with the edit gets a fixed share of it.
