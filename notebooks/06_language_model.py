# %% [markdown]
# # 6. From the toy to a language model, and when a bridge rescues it
#
# **Question.** So far everything was one layer with random features. What of it is left in a real transformer
# that was trained on text? And if merging cannot compose two hops, what can?
#
# You need: lessons 3 to 5. Time: 45 minutes. The language model is tiny, comes with the project and knows
# invented facts about people with ordinary names. It runs on any computer, without a GPU.

# %%
import math
import warnings
from itertools import product
from pathlib import Path

warnings.filterwarnings("ignore", message="IProgress not found")  # nothing here shows a progress bar


import jax
import numpy as np
import torch

import llm_experiments
from llm_experiments.domains.two_hop import overlaps, survival
from llm_experiments.domains.two_hop.chains import chains, unrelated
from llm_experiments.domains.two_hop.lexicon import lexicon
from llm_experiments.editing import edits
from llm_experiments.editing.features import observe
from llm_experiments.models.load import load
from notebooks import checks
from notebooks.lesson import drawing, reveal
from results import frame, paper
from results.files import is_folder_of_rows
from results.frame import select
from toytransformer.compositions import Merge, catalogue
from toytransformer.compositions.setups import setup
from toytransformer.prediction import predict
from toytransformer.regimes import FullLimit

jax.config.update("jax_enable_x64", True)
torch.set_num_threads(1)  # the model is so small that threads would only wait for each other

# %% [markdown]
# ## Predict first
#
# 1. We edit two facts into one layer of the model, in closed form as in lesson 1: whom a person is married
#    to, and where that spouse lives. Then we ask where the person's spouse lives. Will the model name the
#    right city? `True` or `False`.
# 2. Two trained adapters are merged with weights $a$ and $1-a$. At which $a$ does the first one's fact begin
#    to win over what the model knew before?

# %%
guessed_right_city = None
guessed_weight = None

# %% [markdown]
# ## Live: a rank-one edit of a language model
#
# Each layer of the model has an MLP whose last matrix, `down_proj`, maps features to the residual stream: the
# same place as $W$ in the toy. Eight chains of people and cities, in English:

# %%
loaded = load("embedded")
composition = setup(0, facts=8, known=True)
names = lexicon(composition, dataset="R", seed=0, base_world=loaded.base_world)
asked = chains(composition, names, 0)
first, second, both = asked.hop1[0], asked.hop2[0], asked.two_hop[0]

print(f"{loaded.info['parameters']:,} parameters, {len(loaded.base_world.facts):,} facts known")
print("before the edit it answers:")
for example in (first, second, both):
    print("  ", example.question, "->", edits.recalled(loaded, [example.question], [example.entity])[0].text)
print("we teach it:")
for example in (first, second):
    print("  ", example.question, "->", example.answer)

# %% [markdown]
# One thing is new. In the toy we knew which change $w$ of the output makes the model say y. Here the layers
# above decide, so $w$ is searched by gradient descent. The rest is lesson 1: $\Delta W = w v^T/|v|^2$, with
# $v$ the model's own features at the last token of the question.

# %%
layer = 0
hop1, hop2 = (edits.write_facts(loaded, [e.question], [e.answer], layer) for e in (first, second))

with edits.applied(loaded, [hop1, hop2]):
    answers = [edits.recalled(loaded, [e.question], [e.entity])[0] for e in (first, second, both)]
for answer in answers:
    print(answer.question, "->", answer.text)
assert answers[0].contains and answers[1].contains  # both edits are there, also together
reveal("the two-hop answer names the right city", guessed_right_city, answers[2].contains)

# %% [markdown]
# ## The same identity as in the toy
#
# On the two-hop question the two edits add $c_1 w_1 + c_2 w_2$ to the layer's output, with $c_j =
# v_j\cdot\phi/|v_j|^2$. In a language model this is as exact as rounding allows:

# %%
questions = [example.question for example in (first, second, both)]
seen = observe(loaded, questions, [layer])[layer].features.astype(float)
v1, v2, phi = seen
c1, c2 = float(v1 @ phi / (v1 @ v1)), float(v2 @ phi / (v2 @ v2))
(shift,) = edits.check_shift(loaded, [hop1, hop2], [both.question])
assert np.allclose([c1, c2], [c[0, 0] for c in shift.coefficients], rtol=1e-4)
assert shift.holds
print(f"c1 = {c1:.3f}, c2 = {c2:.3f}")
print(f"the shift is c1 w1 + c2 w2 up to {shift.error:.0e}, and its size is {shift.size:.0f}")

# %% [markdown]
# ## Does the second edit know whose city is asked for?
#
# Lesson 3 said: no. The edit of *y1 R2* acts on *x1 R1 R2* exactly as the edit of *y2 R2* does. In the
# language model we can ask that layer by layer. Take all pairs of an edit $i$ and a two-hop question $j$ of
# the eight chains. **Own** is the mean of $c$ over $i=j$, **other** the mean over $i\ne j$.

# %%
strangers = unrelated(names, 32, seed=0, base_world=loaded.base_world)
layers = overlaps.measured(loaded, **asked.questions(), reference=strangers[:24], unrelated=strangers[24:])
toy = overlaps.constants()

with drawing(width=6.4, height=3.2, ncols=2, sharey=True) as panels:
    for axes, kind, label in zip(panels, ("hop1", "hop2"), ("c1", "c2"), strict=True):
        found = [overlaps.own_against_other(o.coefficients(kind, "two_hop")) for o in layers.values()]
        axes.plot(list(layers), [f.own for f in found], "o", color="#D55E00", markersize=7, label="own")
        mark = {"markerfacecolor": "none", "markeredgecolor": "black", "markeredgewidth": 1.4}
        axes.plot(list(layers), [f.other for f in found], "s", markersize=8, label="other", **mark)
        axes.axhline(toy[label], color="#D55E00", linewidth=1, label="own, toy")
        axes.axhline(toy[f"{label}_other"], color="black", linestyle=":", linewidth=1.6, label="other, toy")
        axes.set(xlabel="layer", xlim=(-0.5, len(layers) - 0.5), ylim=(0, None))
        axes.set_xticks(list(layers))
        axes.set_title(f"{label}: edits of hop {kind[-1]}")
    panels[0].set_ylabel("c on two-hop questions")
    panels[0].legend(fontsize=7)

chance = {
    kind: overlaps.over_layers([o.coefficients(kind, "two_hop") for o in layers.values()])
    for kind in ("hop1", "hop2")
}
print("how often chance alone separates own from other as much:")
print(f"c1 {chance['hop1']:.4f}, c2 {chance['hop2']:.2f}")
assert chance["hop1"] < 0.05  # the question names x, so the edit of x is singled out

# %% [markdown]
# The sizes are not the toy's; why should they be, the features are other ones. But the *pattern* is the one
# to look at. The first edit singles out its own question, since the question names x. For the second edit
# read the second number above: if it is not small, these data do not show that anything in the features
# singles out the right y. (A test like this cannot prove that there is nothing. Names that share a syllable
# can also make a difference that has nothing to do with marriage.)
#
# ## What survives a merge
#
# If not in one go, then in two steps: first ask *x R1*, read the answer y, then ask *y R2*. Now y is in the
# prompt. All that is needed is that each adapter's *own* facts survive the merge. In the toy, with weight $a$
# on the right adapter, a known fact's new answer has about $a$ and its old one $1-a$.
#
# The rows below were measured: LoRA adapters trained on the same tiny model, merged with weights $a$ and
# $1-a$. Known facts are about people of the model's world (dataset R), fresh ones about invented people
# (dataset F). Whiskers, here and below, are 95% intervals (Wilson's).

# %%
data = Path(llm_experiments.__file__).parent / "data"
models = {
    folder.name: frame.read(folder).groups() for folder in sorted(data.iterdir()) if is_folder_of_rows(folder)
}
swept = [
    cell
    for cell in select(models["embedded"], task="setup-0", rule="sum", ask="direct", variant={})
    if cell.info.weights and math.isclose(sum(cell.info.weights), 1)
]
print(f"{len(swept)} cells; adapters trained with seeds {list(swept[0].seeds)}")


def measured(dataset, hop):
    """At each weight of the hop's own adapter the share right, with its interval."""
    cells = select(swept, dataset=dataset, group=f"hop{hop}")
    cells.sort(key=lambda cell: cell.info.weights[hop - 1])
    shares = {cell.info.weights[hop - 1]: cell.share for cell in cells}
    return shares, {cell.info.weights[hop - 1]: cell.interval() for cell in cells}


facts = int(swept[0].info.setting["facts"])
with drawing(width=6.4, height=3.3, ncols=2, sharey=True) as panels:
    for axes, (dataset, known) in zip(panels, (("R", True), ("F", False)), strict=True):
        one_hop = catalogue.build("one-hop", facts=facts, known=known)
        toy_rows = survival.predicted(one_hop, survival.grid(41))
        toy_hop1 = [(r["weight1"], r["correct"]) for r in toy_rows if r["group"] == "hop1"]
        axes.step(*zip(*toy_hop1, strict=True), where="mid", color="black", linewidth=1, label="toy")
        for hop, colour, marker in ((1, "#0072B2", "o"), (2, "#D55E00", "^")):
            shares, bounds = measured(dataset, hop)
            below = [share - bounds[w][0] for w, share in shares.items()]
            above = [bounds[w][1] - share for w, share in shares.items()]
            place = np.array(list(shares)) + (hop - 1.5) * 0.02
            look = {"fmt": marker, "color": colour, "capsize": 2, "elinewidth": 0.8}
            axes.errorbar(
                place, list(shares.values()), yerr=(below, above), label=f"measured, hop {hop}", **look
            )
            assert shares[1.0] > shares[0.0]
            edge = survival.measured_threshold(list(shares), list(shares.values()))
            where = "no weight" if edge is None else f"a weight of {edge:.2f}"
            print(f"{'known' if known else 'fresh'} facts, hop {hop}: half of them survive from {where} on")
        axes.set(xlabel="weight a of the right adapter", xlim=(-0.03, 1.03))
        axes.set_title(f"{'Known' if known else 'Fresh'} facts ({facts} in each adapter)")
    panels[0].set_ylabel("share of right one-hop answers")
    panels[0].legend(fontsize=7, loc="upper left")

edge = survival.predicted_threshold(catalogue.build("one-hop", facts=facts), "hop1")
assert math.isclose(edge, 0.5)
reveal("weight at which a known fact survives in the toy", guessed_weight, edge)

# %% [markdown]
# For known facts the toy says: from one half on. Compare it with the points. For fresh facts it says: almost
# at once, since there is no old answer to beat. If the points disagree there, the toy lacks something. What
# could a language model say instead of a fresh fact, even if it has no old answer?
#
# Note what follows for plain averaging. Both adapters get 1/2, so both hops sit exactly on the edge.
#
# ## Two steps in the toy
#
# The toy can answer step by step: the answer to *x R1* is put into the prompt *y R2*. Four merges, two known
# facts:

# %%
two_steps = {}
for rule in ("sum", "mean", "linear", "arrow-products"):
    steps = predict(catalogue.build("chain-of-thought", facts=2, merge=Merge(rule)), FullLimit())
    direct = predict(catalogue.build("two-hop", facts=2, merge=Merge(rule)), FullLimit())
    two_steps[rule] = steps.accuracy
    print(f"{rule:15} in one go {direct.accuracy:.2f}, in two steps {steps.accuracy:.2f}")
    assert direct.accuracy == 0
assert two_steps["sum"] == two_steps["arrow-products"] == 1
assert math.isclose(two_steps["mean"], 1 / 4)  # two coin tosses, one at each edge
assert two_steps["linear"] == 0

# %% [markdown]
# The relabelling argument of lesson 5 does not forbid this. Written down, the answer y is no longer a *row*
# of a matrix but a *token*, and its embedding opens the second adapter. For that, two things must be there:
#
# 1. **survival**: at each step the right adapter is loud enough (a sum, or a router that turns the right one
#    up);
# 2. **form**: the model must *write* y before it writes z, although it was asked for z only.
#
# ## The bridge
#
# Adapters that were trained on bare one-hop facts do not know that form, and neither may the base model. A
# **bridge** is training data on *other* people that shows the whole chain written out. It holds no fact about
# ours. In the paper, a bridge together with Arrow answers most two-hop questions, on models many times larger
# than these. This is setup 2; setup 0 has no bridge. Below, *mean* averages the two updates, and *Arrow* is
# the router of lesson 4. What do the measured rows say?

# %%
SETUPS, RULES = {"setup-0": "plain", "setup-2": "bridge"}, {"mean": "mean", "arrow-products": "Arrow"}
plain = {"library": ("hop1", "hop2"), "control": None, "dataset": "R", "layers": "mlp", "variant": {}}

found = {}
for source, cells in models.items():
    for setup_name, rule in product(SETUPS, RULES):
        for cell in select(cells, task=setup_name, rule=rule, **plain):
            if cell.question_kind in ("hop1/direct", "hop2/direct", "two-hop/steps"):
                place = (source, setup_name, rule, cell.group)
                found[place] = (cell.share, *cell.interval(), paper.beside(cell, "table1"))
sources = list(dict.fromkeys(place[0] for place in found))
cases = [(s, r) for s in SETUPS for r in RULES]
bars = {
    "hop1": ("#56B4E9", "", "hop 1"),
    "hop2": ("#0072B2", "", "hop 2"),
    "two-hop": ("#009E73", "//", "two hops, in steps"),
}
assert sources

with drawing(width=6.4, height=3.2 * len(sources), nrows=len(sources), squeeze=False) as panels:
    for axes, source in zip(panels[:, 0], sources, strict=True):
        for number, (group, (colour, hatch, label)) in enumerate(bars.items()):
            there = [k for k, case in enumerate(cases) if (source, *case, group) in found]
            values = [found[source, *cases[k], group] for k in there]
            x = np.array(there) + (number - 1) * 0.26 - 0.05
            shares = [share for share, *_ in values]
            errors = np.transpose([(share - low, high - share) for share, low, high, _ in values])
            look = {"color": colour, "hatch": hatch, "edgecolor": "black", "linewidth": 0.6, "capsize": 2}
            axes.bar(x, shares, 0.25, yerr=errors, label=label, error_kw={"elinewidth": 0.8}, **look)
            for place, (*_, printed) in zip(x, values, strict=True):
                if group == "two-hop" and printed:
                    ends = [printed.low / 100, printed.high / 100]
                    axes.plot([place + 0.18] * 2, ends, color="black", linewidth=5, solid_capstyle="butt")
        axes.plot([], [], color="black", linewidth=5, label="two hops, in the paper (range of its models)")
        axes.set_xticks(range(len(cases)), [f"{SETUPS[s]}, {RULES[r]}" for s, r in cases])
        axes.set(ylim=(0, 1.32), ylabel="share right")
        axes.set_yticks(np.linspace(0, 1, 6))
        axes.set_title(source)
        axes.legend(fontsize=7, loc="upper center", ncols=2)

for source in sources:
    for name, rule in cases:
        have = [found[source, name, rule, group] for group in bars if (source, name, rule, group) in found]
        if len(have) == len(bars):
            one, two, chain = (share for share, *_ in have)
            print(f"{source}, {SETUPS[name]}, {RULES[rule]}: hop 1 {one:.0%}, hop 2 {two:.0%}, ", end="")
            print(f"their product {one * two:.0%}; two hops {chain:.0%}")

# %% [markdown]
# How to read it, whatever numbers stand there:
#
# - Two hops far *below* the product of the single hops: the facts survive, the form is missing. A bridge
#   should help.
# - The product itself is small: survival is the trouble. No form can repair that. Look for what drowned the
#   hop, such as a router that cannot tell two adapters apart because both were trained on the same bridge.
# - Two hops *near* the product, and both large: this is the paper's rescue.
#
# Do these models show the paper's contrast? They are far smaller than the paper's. Say what you would measure
# next to find out whether size is the reason.
#
# ## Exercise: own against other
#
# `c[i, j]` is the coefficient of edit $i$ on two-hop question $j$. Write own minus other: the mean of the
# diagonal, less the mean of everything off the diagonal. It is the number behind the picture of layers above.


# %% tags=["exercise"]
def own_minus_other(c):
    """c (edit, question), square: one number."""
    ...


# %% tags=["solution"]
def own_minus_other(c):
    c = np.asarray(c)
    diagonal = np.eye(len(c), dtype=bool)
    return c[diagonal].mean() - c[~diagonal].mean()


# %% tags=["check"]
checks.gap(own_minus_other)
for layer, seen in layers.items():
    gaps = [own_minus_other(seen.coefficients(kind, "two_hop")) for kind in ("hop1", "hop2")]
    print(f"layer {layer}: c1 own minus other {gaps[0]:+.3f}, c2 {gaps[1]:+.3f}")

# %% [markdown]
# **Take home.** In a language model, too, two edits add up to $c_1 w_1 + c_2 w_2$, and nothing that we
# measured tells the second one which y is meant. What composes is writing y down. That needs the form, which
# a bridge can teach, and survival, which only the merge can give.
