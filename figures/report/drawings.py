"""The drawings on the page: in which order, under which title, and embedded as images."""

import base64
from pathlib import Path

MEDIA = {".svg": "image/svg+xml", ".png": "image/png"}  # in order of preference
#: Title and caption of each drawing, in the order of the page; others follow by name.
CAPTIONS = {
    "outcomes": (
        "What the merged model answers",
        "A line is a merge rule or a library of adapters, a column the number of facts in each adapter. "
        "Colour and word say which answer the two-hop question gets; a split cell shows shares.",
    ),
    "answers": (
        "What is answered, toy against language model",
        "The same libraries and merge rules, predicted and measured. The theory takes for granted that the "
        "base answers two-hop questions about known facts; the controls show whether this language model "
        "does.",
    ),
    "agreement": (
        "Predicted against measured",
        "A dot is one library, merge and way of asking. To the right of the line the toy answers rightly; "
        "a rank correlation of one would mean that it orders all of them as measured.",
    ),
    "survival": (
        "Whether a single hop survives the merge",
        "Above zero, the edited one-hop answer still wins. Answering in two steps needs this of both hops.",
    ),
    "weights": (
        "Survival of a single hop, toy against language model",
        "How often the edited answer is given as its adapter's share of the merge grows. The dashed step "
        "is the toy's edge.",
    ),
    "mixture": (
        "The two-hop answer inside the mixture",
        "How the right answer, the bridge entity and the base's answer gain and lose as the second "
        "adapter is scaled.",
    ),
    "layers": (
        "The theory's coefficients inside a language model",
        "How much of an edit at one question shows at another, in the features of each MLP. If nothing "
        "singles out the right second hop, both curves of the middle panel are one.",
    ),
    "bridges": (
        "Bridge training, setup by setup",
        "A two-hop question is answered step by step only where both of its hops survive the merge.",
    ),
    "gauge": (
        "The same updates, written in other factors",
        "Rules that merge factors (here linear) answer differently when an adapter's factors are turned, "
        "though its update stays the same. Rules that merge updates (here sum) do not.",
    ),
    "factors": (
        "The same updates in other factors, measured",
        "Each rule on the very same updates of a language model, written in several gauges and trained "
        "from one or from several initial factors.",
    ),
    "tables": (
        "The paper's tables, predicted and measured",
        "The paper's range over its models, the toy's prediction and our small models, line by line.",
    ),
    "leak": (
        "Where else an edit shows",
        "How much of an edit's change of output appears on prompts that share its entity, its relation or "
        "nothing.",
    ),
    "convergence": (
        "Finite networks approach the limit",
        "How far the coefficients of single sampled networks are from the limit, by width and by "
        "dimension, over the spread that the theory derives.",
    ),
}


def embed(folder: Path) -> list[dict[str, str]]:
    """Each drawing of the folder once, as a data URI, in the order of CAPTIONS and then by name."""
    chosen: dict[str, Path] = {}
    for suffix in MEDIA:
        for path in sorted(folder.glob(f"*{suffix}")):
            chosen.setdefault(path.stem, path)
    order = [stem for stem in CAPTIONS if stem in chosen]
    order += sorted(chosen.keys() - CAPTIONS.keys())
    drawings = []
    for stem in order:
        title, caption = CAPTIONS.get(stem, (stem.replace("_", " ").replace("-", " "), ""))
        data = base64.b64encode(chosen[stem].read_bytes()).decode()
        uri = f"data:{MEDIA[chosen[stem].suffix]};base64,{data}"
        drawings.append({"name": title, "caption": caption, "uri": uri})
    return drawings
