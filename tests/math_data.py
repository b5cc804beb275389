"""Files in the layout of the published sets of word problems, made of templates of our own."""

from __future__ import annotations

import json
import re
from pathlib import Path

from llm_experiments.domains.math.data import VARIABLE
from llm_experiments.domains.math.ladder import LEVELS, ladder

#: Our levels under the names of the published ones, and of their folders of templates.
NAMES = {"p0": ("main", "symbolic"), "p1": ("p1", "p1"), "p2": ("p2", "p2")}


def write(
    folder: Path, *, families: int = 2, each: int = 14, rows: bool = True, templates: bool = True
) -> dict:
    """Write GSM-Symbolic and GSM8K; the variables of the environment that name them."""
    eight_k = []
    for level in LEVELS:
        name, sources = NAMES[level]
        lines = []
        for number, one in enumerate(ladder()[level][:families]):
            drawn = one.problems(each, "test data")
            told = [{"question": problem.question, "answer": problem.solution} for problem in drawn]
            lines += [{"id": number, "instance": place, **row} for place, row in enumerate(told)]
            more = "<<>>" * (level == "p2" and number == 0)  # four steps, as GSM8K counts them
            eight_k += [
                {**row, "answer": more + re.sub(r"= (?=\S*\d)", "= <<>>", row["answer"])} for row in told
            ]
            if templates:
                annotated = {"question_annotated": _slots(one), "answer_annotated": one.solution}
                file = folder / sources / f"{number:04d}.json"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(json.dumps(annotated))
        if rows:
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "gsm8k.jsonl").write_text("".join(json.dumps(line) + "\n" for line in eight_k))
    return {VARIABLE["gsm-symbolic"]: str(folder), VARIABLE["gsm8k"]: str(folder / "gsm8k.jsonl")}


def _slots(one) -> str:
    """A template's annotated question, written anew from what was read."""
    drawn = "".join(f"- {', '.join(names)} = {source.source}\n" for names, source in one.drawn)
    conditions = "".join(f"- {condition.source}\n" for condition in one.conditions)
    return f"{one.text}\n\n#init:\n{drawn}\n#conditions:\n{conditions}\n#answer: {one.answer.source}"
