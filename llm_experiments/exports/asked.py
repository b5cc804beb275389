"""What an experiment asks, as files: a JSON line a question, with all that our scorer needs to read an
answer.

    write(folder, sets)      NAME.jsonl and NAME.yaml of each set: tasks of lm-eval, `--include_path FOLDER`
    read(folder, name)       the lines of a set, for whoever asks them otherwise (inspect_tasks)
    score(line, text)        what our scorer says of an answer

A line holds the question as it is asked, the target, and as JSON texts the item, the scorer's context. What
is not in it: what the base model answers, so that no answer counts as the base's old one (outcome "old");
right answers are the same without. Programs are run in the sandbox, as everywhere.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_experiments.domains.task import TaskError, read_items
from llm_experiments.engine.addresses import Ref
from llm_experiments.engine.steps import Plan
from llm_experiments.scoring import SCORERS, Score
from llm_experiments.steps.asking import Ask
from results.cells import RIGHT
from results.rows import Item

Line = dict[str, Any]
#: Of the module that lm-eval finds the scorer in.
SCORING = "llm_experiments.exports.asked.results"


@dataclass(frozen=True)
class Asked:
    """Items that are asked alike and end after as many tokens.

    context: what the scorer is made from. form: how a question is put, with {question}, where no chat
    template does it; None where one does. tokens: the most that are written.
    """

    name: str
    about: str
    scorer: str
    context: Mapping[str, Any]
    items: Sequence[Item]
    form: str | None
    tokens: int

    @property
    def lines(self) -> list[Line]:
        """A line for each item."""
        return [
            {
                "id": item.id,
                "question": item.question if self.form is None else self.form.format(question=item.question),
                "target": item.target or "",
                "cluster": item.cluster,
                "group": item.group,
                "tokens": self.tokens,
                "scorer": self.scorer,
                "context": json.dumps(self.context),
                "item": json.dumps(item.to_dict()),
            }
            for item in self.items
        ]

    @property
    def yaml(self) -> str:
        """The task's file, without the line that says where its questions are."""
        metrics = "".join(
            f"  - metric: {name}\n    aggregation: mean\n    higher_is_better: {str(name == RIGHT).lower()}\n"
            for name in SCORERS[self.scorer].outcomes
        )
        put = "with --apply_chat_template" if self.form is None else "as they are, without a chat template"
        return (
            f"# {self.about}\n# Scored as in this project; questions are put {put}.\n"
            f"task: {self.name}\ndataset_path: json\ntest_split: test\noutput_type: generate_until\n"
            'doc_to_text: "{{question}}"\ndoc_to_target: "{{target}}"\nnum_fewshot: 0\n'
            f"generation_kwargs:\n  until: []\n  do_sample: false\n  max_gen_toks: {self.tokens}\n"
            f"process_results: !function {SCORING}\nmetric_list:\n{metrics}metadata:\n  version: 1\n"
        )


def sets(plan: Plan, form: str | None, budget: Callable[[Iterable[str | None]], int]) -> list[Asked]:
    """What the steps of a plan ask, each once; of each way of asking a set.

    budget: how many tokens answers with these targets may have.
    """
    found: dict[tuple[Ref, str, Ref | None, str], Asked] = {}
    names: dict[str, int] = {}
    for address in plan.wanted:
        step = plan.steps[address]
        if not isinstance(step, Ask):
            continue
        reading, about = step.reading, step.about
        items = read_items(plan, reading.items)
        context: Mapping[str, Any] = {} if reading.context is None else plan.input(reading.context)[0]
        for ask in dict.fromkeys(item.ask for item in items):
            key = (reading.items, reading.scorer, reading.context, ask)
            if key in found:
                continue
            own = [item for item in items if item.ask == ask]
            said = "_".join(filter(None, ("lora_limits", about.domain, about.task, about.dataset, ask)))
            name = re.sub(r"[^a-z0-9]+", "_", said.lower())
            names[name] = names.get(name, 0) + 1
            name += f"_{names[name]}" * (names[name] > 1)
            text = (
                f"{about.domain}: {about.task}{f' on {about.dataset}' if about.dataset else ''}, asked {ask}"
            )
            found[key] = Asked(
                name, text, reading.scorer, context, own, form, budget(item.target for item in own)
            )
    return list(found.values())


def write(folder: Path, several: Sequence[Asked]) -> list[Path]:
    """Write the sets into a new or empty folder. Errors: TaskError where it holds something, and without a
    set.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise TaskError(f"{folder} is not an empty folder: name a new one")
    if not several:
        raise TaskError("no questions: name experiments that ask some")
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for one in several:
        lines = folder / f"{one.name}.jsonl"
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in one.lines)
        lines.write_text(text, encoding="utf-8", newline="\n")
        where = f"dataset_kwargs:\n  data_files:\n    test: {json.dumps(str(lines.resolve()))}\n"
        task = folder / f"{one.name}.yaml"
        task.write_text(one.yaml + where, encoding="utf-8", newline="\n")
        paths += [lines, task]
    return paths


def read(folder: Path, name: str) -> list[Line]:
    """The lines of a set. Errors: TaskError where there is none, naming those that are there."""
    file = folder / f"{name}.jsonl"
    if not file.is_file():
        there = ", ".join(path.stem for path in sorted(folder.glob("*.jsonl"))) or "none"
        raise TaskError(f"{folder} has no questions called {name!r}: there are {there}")
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]


def tokens(lines: Sequence[Line]) -> int:
    """The most that an answer to these lines has."""
    return max(int(line["tokens"]) for line in lines)


def score(line: Mapping[str, Any], text: str) -> Score:
    """What our scorer says of an answer to a line."""
    scorer = SCORERS[line["scorer"]].build(json.loads(line["context"]))
    return scorer.score(Item(**json.loads(line["item"])), text.strip(), None)


def results(doc: Mapping[str, Any], written: Sequence[str]) -> dict[str, float]:
    """lm-eval's process_results: a 1 for the outcome of the answer, 0 for every other one."""
    outcome = score(doc, written[0]).outcome
    return {name: float(name == outcome) for name in SCORERS[doc["scorer"]].outcomes}
