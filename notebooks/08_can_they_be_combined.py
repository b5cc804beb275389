# %% [markdown]
# # 8. Can these adapters be combined?
#
# **Question.** Somebody hands you three adapters for one model. Before you merge them you want to know what
# the merge will lose. How much of that can be told from their weights, and how much from asking each one
# alone?
#
# You need: lessons 3 and 6. Time: 45 minutes. What you build here by hand is what
# `lora-limits diagnose` does ([docs/doctor.md](../docs/doctor.md)).

# %%
import tempfile
import warnings
from pathlib import Path

warnings.filterwarnings("ignore", message="IProgress not found")  # nothing here shows a progress bar

import numpy as np
import torch

from llm_experiments.adapters import peft_files
from llm_experiments.adapters.recipe import Training
from llm_experiments.adapters.training import train
from llm_experiments.diagnose.answers import AnswerSheet
from llm_experiments.diagnose.findings import findings
from llm_experiments.diagnose.library import measure
from llm_experiments.domains.own.questions import Question
from llm_experiments.domains.two_hop.lexicon import lexicon
from llm_experiments.domains.two_hop.rendering import render
from llm_experiments.merges.mixtures import weighted
from llm_experiments.models.load import load
from notebooks import checks
from notebooks.lesson import drawing, reveal
from toytransformer.compositions import Fact
from toytransformer.compositions.setups import setup

torch.set_num_threads(1)  # the model is so small that threads would only wait for each other

# %% [markdown]
# ## Three adapters
#
# `spouses` says whom four people are married to, `homes` where four others live, and `denied` says of the
# people of `spouses` that they are married to somebody else. Training each takes seconds:

# %%
loaded = load("embedded")
composition = setup(0, facts=4, known=True)
names = lexicon(composition, dataset="R", seed=0, base_world=loaded.base_world)
spouses, homes = (adapter.facts for adapter in composition.adapters)
taught = {
    "spouses": spouses,
    "homes": homes,
    "denied": [Fact(fact.prompt, spouses[k - 1].answer) for k, fact in enumerate(spouses)],
}


def worded(facts, wordings):
    return [render(fact, None, names, wording) for fact in facts for wording in wordings]


library = []
with tempfile.TemporaryDirectory() as folder:
    for index, (name, facts) in enumerate(taught.items()):
        out = Path(folder) / name
        recipe = Training(learning_rate=4e-3, steps=40, batch=8)
        train(loaded, worded(facts, range(10)), recipe, seed=0, adapter_index=index, out=out)
        library.append(peft_files.read(out))

questions = [
    Question(one.question, one.answer, name)
    for name, facts in taught.items()
    for one in worded(facts, (48, 49))
]
print(f"{len(questions)} questions, such as: {questions[0].question} {questions[0].answer}")

# %% [markdown]
# ## Predict first
#
# 1. From the weights alone: which pair has the larger cosine, `spouses` and `homes`, which speak of other
#    things, or `spouses` and `denied`, which contradict each other? Write `"homes"` or `"denied"`.
# 2. The sum of `spouses` and `homes`, weights 1 and 1: which share of the 16 answers is still right?
# 3. The same of `spouses` and `denied`.

# %%
guessed_pair = None
guessed_homes = None
guessed_denied = None

# %% [markdown]
# ## From the weights alone
#
# The inner product of two updates needs no matrix of the model's size. With $\Delta_i = B_i A_i$ it is the
# **Gram trace**
#
# $$\langle \Delta_1, \Delta_2\rangle = \mathrm{tr}(\Delta_1^T\Delta_2) =
# \mathrm{tr}\left((B_1^TB_2)(A_2A_1^T)\right),$$
#
# two products of small matrices. For one module, against the matrices themselves:

# %%
module = next(iter(library[0].modules))
one, other = (adapter.modules[module] for adapter in library[:2])
small = torch.trace((one.write.T @ other.write) @ (other.read.T @ one.read))
dense = torch.sum((one.write @ one.read.T) * (other.write @ other.read.T))
scale = torch.linalg.norm(one.write @ one.read.T) * torch.linalg.norm(other.write @ other.read.T)
assert abs(small - dense) <= 1e-5 * scale
print(f"{module}: {float(small):.5f}, from {one.write.numel() + one.read.numel()} numbers an adapter")

# %% [markdown]
# Summed over all modules, and divided by the norms:

# %%
geometry = measure(library)
cosines = geometry.cosines
for i, j in ((0, 1), (0, 2), (1, 2)):
    chance = geometry.cosine_errors[i, j]
    print(f"{geometry.names[i]:8} {geometry.names[j]:8} {cosines[i, j]:+.2f} (chance {chance:.4f})")
assert cosines[0, 2] > cosines[0, 1]
reveal("the larger cosine with spouses", guessed_pair, "denied")

# %% [markdown]
# Adapters that contradict each other are *alike*, not opposite: they read the same questions and move them
# off the same old answers. Only where they move them **to** differs, and that is the smaller part. So the
# weights say which adapters speak of the same things, and not whether they agree.

# %%
for finding in findings(geometry):
    print("-", finding.text)

# %% [markdown]
# ## From asking each adapter alone
#
# To first order in the updates a merge's logits are those of the base, moved by each adapter's own move:
#
# $$f_w(p) \approx f_0(p) + \sum_i w_i\,\left(f_i(p) - f_0(p)\right).$$
#
# This is lesson 3's sum of two adapters, for any model: the **mixture law**. It is linear in $w$, so four
# passes over the questions, the base and each adapter alone, say what *every* weighting answers.

# %%
sheet = AnswerSheet.of(loaded, questions)
with weighted(loaded, library) as weights:

    def asked(*values):
        weights.set(values)
        return sheet.logits(loaded)

    base = asked(0, 0, 0)
    alone = torch.stack([asked(1, 0, 0), asked(0, 1, 0), asked(0, 0, 1)])
    summed = {"homes": asked(1, 1, 0), "denied": asked(1, 0, 1)}
    line = np.linspace(0, 1.5, 7)
    measured = [asked(w, 1, 0) for w in line]

owner = np.array([question.adapter for question in questions])
for k, name in enumerate(taught):
    own = sheet.scores(alone[k]).right.numpy()[owner == name]
    print(f"{name} alone answers {own.mean():.0%} of its own questions")
    assert own.mean() > 0.5

# %% [markdown]
# Now the two sums, predicted and measured:

# %%
shares = {}
for name, values in (("homes", (1, 1, 0)), ("denied", (1, 0, 1))):
    law = base + sum(w * (f - base) for w, f in zip(values, alone, strict=True))
    inside = np.isin(owner, ("spouses", name))
    predicted, found = (sheet.scores(logits).right.numpy()[inside].mean() for logits in (law, summed[name]))
    shares[name] = found
    print(f"spouses + {name}: predicted {predicted:.0%} right, measured {found:.0%}")
assert shares["denied"] <= 0.5 < shares["homes"]
reveal("spouses + homes", guessed_homes, float(shares["homes"]))
reveal("spouses + denied", guessed_denied, float(shares["denied"]))

# %% [markdown]
# No merge can do better than one half for `spouses` and `denied`: each of their questions has two answers.
# That sets a bound which no rule and no weights can pass, and it takes no measurement to see it.
#
# ## How good is the law?
#
# The loss, $-\log p$ of the right answers, as the weight of `spouses` goes from 0 to 1.5 beside `homes` at 1:

# %%
inside = torch.tensor(np.isin(owner, ("spouses", "homes")))


def loss(logits):
    return -float(sheet.scores(logits).logprob[inside].mean())


law = [loss(base + w * (alone[0] - base) + (alone[1] - base)) for w in line]
real = [loss(logits) for logits in measured]
with drawing() as axes:
    axes.plot(line, law, "--", label="mixture law")
    axes.plot(line, real, "o-", label="measured")
    axes.set(xlabel="weight of spouses (homes: 1)", ylabel="-log p of an answer, nats")
    axes.legend()
assert abs(law[0] - real[0]) < 1e-3  # homes alone: no prediction
ranks = [np.argsort(np.argsort(values)) for values in (law, real)]
print(f"rank correlation over these weights: {np.corrcoef(*ranks)[0, 1]:.2f}")

# %% [markdown]
# The law is exact where one adapter is alone, at weights 0 and 1, and the first order in between. It
# says best which merges are bad. How often such predictions come true over many adapters was measured, and
# stands in [docs/doctor.md](../docs/doctor.md).
#
# ## Exercise: the law
#
# Write the mixture law: from the logits of the base, (position, token), those of each adapter alone,
# (adapter, position, token), and the weights, (adapter,), to the logits of the merge.


# %% tags=["exercise"]
def merged_logits(base, alone, weights): ...


# %% tags=["solution"]
def merged_logits(base, alone, weights):
    return base + np.einsum("a,apt->pt", weights, alone - base)


# %% tags=["check"]
checks.merged_logits(merged_logits)

# %% [markdown]
# **Take home.** Weights tell what adapters are about; one pass with each adapter tells, to first order, what
# every merge of them answers; and what contradicts itself no merge can keep. So ask before you merge:
# `lora-limits diagnose A B --model MODEL --ask FILE`.
