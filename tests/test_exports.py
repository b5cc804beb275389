"""Questions for other harnesses: what is written, that our scorer reads it, and that answers there are ours.

Those that need lm-eval or inspect-ai are skipped where it is not installed: pip install '.[lm-eval,inspect]'.
"""

from __future__ import annotations

import json

import pytest
import yaml
from click.testing import CliRunner

from llm_experiments.__main__ import cli
from llm_experiments.asking import evaluation
from llm_experiments.domains.task import TaskError
from llm_experiments.exports import asked
from llm_experiments.models.load import load
from llm_experiments.models.sources import EMBEDDED
from llm_experiments.scoring import SCORERS
from results.rows import Item

EXPERIMENTS = ("quick", "math-ladder", "code-own", "places-own")
#: Of the first experiment, directly: 2 hops and both, of which 20 are asked.
DIRECT = "lora_limits_two_hop_setup_0_r_direct"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the embedded model would be asked, by the command."""
    out = tmp_path_factory.mktemp("exported") / "new"
    result = CliRunner().invoke(cli, ["export", "lm-eval", str(out), *EXPERIMENTS])
    assert result.exit_code == 0, result.output
    return out


@pytest.fixture(scope="module")
def names(folder):
    return [path.stem for path in sorted(folder.glob("*.jsonl"))]


def test_every_domain_is_written_and_every_target_is_right_by_our_scorer(folder, names):
    domains = ("two_hop", "math", "code", "geography")
    assert all(any(name.startswith(f"lora_limits_{domain}_") for name in names) for domain in domains)
    for name in names:
        lines = asked.read(folder, name)
        assert len({line["id"] for line in lines}) == len(lines) > 0
        assert len({line["cluster"] for line in lines}) > 1
        for line in lines[:3]:
            results = asked.results(line, [f" {line['target']}\n"])
            assert results == {o: float(o == "correct") for o in SCORERS[line["scorer"]].outcomes}, name
            assert asked.results(line, [""])["correct"] == 0


def test_the_files_say_the_task_and_where_its_questions_are(folder, names):
    yaml.SafeLoader.add_constructor("!function", lambda loader, node: node.value)
    for name in names:
        task = yaml.safe_load((folder / f"{name}.yaml").read_text())
        (line, *_) = asked.read(folder, name)
        assert task["task"] == name and task["process_results"] == asked.SCORING
        assert task["dataset_kwargs"]["data_files"]["test"] == str(folder / f"{name}.jsonl")
        assert [metric["metric"] for metric in task["metric_list"]] == list(SCORERS[line["scorer"]].outcomes)
        assert task["generation_kwargs"]["max_gen_toks"] == asked.tokens([line]) > 8
        assert "with --apply_chat_template" in (folder / f"{name}.yaml").read_text()


def test_what_cannot_be_written_or_read_is_one_line(folder, tmp_path):
    run = CliRunner().invoke
    with pytest.raises(TaskError, match="no questions called 'other': there are lora_limits_"):
        asked.read(folder, "other")
    assert isinstance(run(cli, ["export", "lm-eval", str(folder), "places-own"]).exception, TaskError)
    unknown = run(cli, ["export", "lm-eval", str(tmp_path / "new"), "nothing"])
    assert unknown.exit_code == 2 and "there is no experiment 'nothing'" in unknown.output
    with pytest.raises(TaskError, match="name experiments that ask some"):
        asked.write(tmp_path / "none", [])


def test_lm_eval_asks_and_scores_as_we_do(folder):
    """Twenty questions, by lm-eval's own model and task: the same texts, so the same outcomes.

    The tokenizer is given: AutoTokenizer reads that of a model like Qwen2 in Qwen2's way, not as
    its file says.
    """
    reason = "lm-eval is not installed: pip install 'lora-limits[lm-eval]'"
    lm_eval = pytest.importorskip("lm_eval", reason=reason)
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    loaded = load(str(EMBEDDED))
    model = HFLM(
        pretrained=str(EMBEDDED), tokenizer=loaded.tokenizer, dtype="float32", device="cpu", batch_size=4
    )
    for name in (DIRECT, DIRECT.replace("direct", "steps")):
        found = lm_eval.simple_evaluate(
            model=model,
            tasks=[name],
            task_manager=TaskManager(include_path=str(folder)),
            apply_chat_template=True,
            limit=20,
            bootstrap_iters=0,
        )
        there = {sample["doc"]["id"]: sample["resps"][0][0].strip() for sample in found["samples"][name]}
        lines = {line["id"]: line for line in asked.read(folder, name)}
        items = [Item(**json.loads(lines[item]["item"])) for item in there]
        tokens = asked.tokens([*lines.values()])
        ours = evaluation.texts(loaded, items, max_new_tokens=tokens)
        assert len(there) == 20 and list(there.values()) == ours
        right = sum(asked.score(lines[item], text).outcome == "correct" for item, text in there.items())
        assert found["results"][name]["correct,none"] == pytest.approx(right / 20)


@pytest.mark.parametrize("domain", ["two_hop", "math", "code", "geography"])
def test_inspect_asks_every_domain_and_scores_as_we_do(folder, names, domain, tmp_path):
    """On the embedded model, as inspect-ai loads it: whatever it writes is what our scorer says it is."""
    inspect_ai = pytest.importorskip(
        "inspect_ai", reason="inspect-ai is not installed: pip install 'lora-limits[inspect]'"
    )
    from inspect_ai.model import get_model

    from llm_experiments.exports.inspect_tasks import asked as task

    name = next(name for name in names if name.startswith(f"lora_limits_{domain}_"))
    lines = {line["id"]: line for line in asked.read(folder, name)}
    model = get_model("hf/embedded", model_path=str(EMBEDDED), tokenizer_path=str(EMBEDDED), device="cpu")
    (log,) = inspect_ai.eval(
        task(str(folder), name), model=model, limit=2, log_dir=str(tmp_path), display="none"
    )
    assert log.status == "success", log.error
    for sample in log.samples:
        said, there = asked.score(lines[sample.id], sample.output.completion), sample.scores["ours"]
        assert there.explanation == said.outcome and sample.output.completion is not None
        assert there.value == ("C" if said.outcome == "correct" else "I")
