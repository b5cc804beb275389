"""The recipes of arXiv 2602.12323, The Appeal and Reality of Recycling LoRAs with Adaptive Merging.

Read from its code (r-three/realistic-adaptive-merging): a rule, how it is fitted, and how many adapters. Its
own method starts with all coefficients at zero, so from the base; the control that it sets beside it, random
adapters of the pool's sizes, is `controls.drawn_like`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from llm_experiments.adapters.recipe import Training
from llm_experiments.merges.fitters import Fitting
from toytransformer.compositions.spec import Merge

#: How many adapters are selected, by accuracy on the examples, and how many examples there are.
SELECTED, EXAMPLES = 30, 100
#: One coefficient an adapter and module, by AdamW without decay, the best of every 10 steps on a fifth.
_TUNED = Fitting(
    steps=100, batch=8, learning_rate=0.05, schedule="cosine", warmup=0.1, validation=0.2, every=10
)


@dataclass(frozen=True)
class Recipe:
    """A method of the paper. training: of a new adapter, where one is trained.

    selected: how many adapters are merged, the first ones by `selector`.
    """

    merge: Merge
    fitting: Fitting = field(default_factory=Fitting)
    training: Training | None = None
    selected: int = SELECTED
    selector: str = "accuracy"


#: Its own: f = leaky ReLU, from zero.
ADAPTIVE = Recipe(Merge("adaptive", options={"f": "leaky-relu"}), replace(_TUNED, start="zero"))
#: AdaMerging on the labels, as 2602.12323 has it; and the original (arXiv 2310.02575), which needs none.
ADAMERGING = Recipe(Merge("adaptive"), replace(_TUNED, start="root"))
ADAMERGING_UNLABELLED = Recipe(Merge("adaptive"), replace(_TUNED, start="root", objective="entropy"))
#: Pi-tuning (arXiv 2304.14381): the adapters most alike to the target's by quasi-Fisher, their factors and a
#: softmax of weights trained. The Delta_i are added up; the original interpolates the parameters themselves.
PI_TUNING = Recipe(
    Merge("adaptive", options={"f": "softmax"}),
    replace(_TUNED, start="equal", factors=True),
    selected=20,
    selector="quasi-fisher",
)
LORAHUB = Recipe(Merge("lorahub", options={"penalty": 0.05}), Fitting(evaluations=100), selected=20)
#: A LoRA on the same examples, in attention and MLP.
NEW_ADAPTER = Recipe(
    Merge("new-adapter"),
    training=Training(rank=64, alpha=16, dropout=0.1, learning_rate=3e-4, batch=8, steps=400, layers="both"),
    selected=0,
)
