"""Files in the layout of the published sets of code and of questions about places, made here."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

HEAD = 'from typing import List\n\n\ndef top(values: List[int]) -> int:\n    """ The largest. """\n'
BODY = "    return max(values)"


def write(folder: Path, *, programs: int = 374, sentences: int = 600) -> dict[str, str]:
    """Write all of them; the variables of the environment that name them."""
    code = [
        {
            "task_id": n,
            "text": f"Return {n}.",
            "code": f"def f():\r\n\treturn {n}",
            "test_list": [f"assert f() == {n}"],
        }
        for n in (1, *range(601, 601 + programs))
    ]
    pairs = [{"translation": {"en": f"{n} cats", "es": f"{n} gatos"}} for n in range(sentences)]
    function = {"task_id": "python/0", "prompt": HEAD, "entry_point": "top", "canonical_solution": BODY}
    function["test"] = "def check(candidate):\n    assert candidate([1, 2]) == 2\n"
    asked = [
        {"question": "Where is the parliament of Germany?", "answer": "Berlin"},
        {"question": "Which country is Nairobi in?", "answer": "Kenya", "continent": "Africa"},
    ]
    for language in ("English", "Spanish"):
        _lines(folder / "python" / f"{language}.jsonl", [function])
    return {
        "LORA_LIMITS_MBPP": _lines(folder / "mbpp.jsonl", code),
        "LORA_LIMITS_EN_ES": _lines(folder / "en_es.jsonl", pairs),
        "LORA_LIMITS_HUMANEVAL_XL": str(folder),
        "LORA_LIMITS_HOTPOTQA": _lines(folder / "hotpotqa.jsonl", asked),
    }


def _lines(file: Path, rows: Iterable[dict]) -> str:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)
