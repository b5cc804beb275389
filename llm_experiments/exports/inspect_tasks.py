"""The same questions as a task of inspect-ai: `pip install 'lora-limits[inspect]'`, then

    lora-limits export lm-eval FOLDER code-own
    inspect eval lora_limits/asked -T folder=FOLDER -T name=NAME --model hf/..

NAME is that of a file of the folder. Errors of the mean are over clusters, as ours are. inspect-ai frames
questions by the model's own chat template.
"""

from __future__ import annotations

from pathlib import Path

from inspect_ai import Task, task
from inspect_ai.dataset import Sample
from inspect_ai.model import GenerateConfig
from inspect_ai.scorer import CORRECT, INCORRECT, Score, Scorer, Target, accuracy, scorer, stderr
from inspect_ai.solver import TaskState, generate

from llm_experiments.exports import asked as exported
from results.cells import RIGHT


@task
def asked(folder: str, name: str) -> Task:
    """The questions of one file of an exported folder, answered greedily and read by our scorer."""
    lines = exported.read(Path(folder), name)
    return Task(
        dataset=[
            Sample(input=line["question"], target=line["target"], id=line["id"], metadata=line)
            for line in lines
        ],
        solver=generate(),
        scorer=ours(),
        config=GenerateConfig(top_k=1, max_tokens=exported.tokens(lines)),
        name=name,
    )


@scorer(metrics=[accuracy(), stderr(cluster="cluster")])
def ours() -> Scorer:
    """Right is what our scorer calls right; the outcome stands beside it."""

    async def score(state: TaskState, target: Target) -> Score:
        said = exported.score(state.metadata, state.output.completion)
        return Score(
            value=CORRECT if said.outcome == RIGHT else INCORRECT,
            answer=said.answer,
            explanation=said.outcome,
            metadata={"outcome": said.outcome, **said.marks},
        )

    return score
