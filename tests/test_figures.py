"""Drawings come from rows alone, rows can be computed again, and what the drawings say holds in the rows."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from matplotlib.image import imread

from figures import registry, store, style, theory
from figures.__main__ import main
from figures.drawings.theory import outcomes
from figures.theory import gauge

ROOT = Path(__file__).parents[1]
ROWS = store.read(store.COMMITTED)
THEORY = {name: figure for name, figure in registry.figures().items() if not figure.measured}
#: Draws from rows where neither JAX nor a prediction can be had.
DRAW_ALONE = """
import sys
from pathlib import Path
computing = ("jax", "toytransformer.prediction", "toytransformer.regimes")
for absent in (*computing, "figures.theory"):
    sys.modules[absent] = None
from figures import registry, store
rows = store.read(store.COMMITTED)
for name, figure in registry.figures().items():
    own = [row for row in rows if row["figure"] == name]
    if not figure.measured:
        figure.save(registry.Data(theory={name: own}), Path(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn")
    subprocess.run([sys.executable, "-c", DRAW_ALONE, str(folder)], cwd=ROOT, check=True)
    return folder


def of(figure: str, **wanted) -> list[dict]:
    return [row for row in ROWS if row["figure"] == figure and all(row[key] == wanted[key] for key in wanted)]


def test_every_row_says_where_it_comes_from():
    for row in ROWS:
        assert {"figure", "facts", "regime", "seeds", "draws"} <= row.keys(), row
        assert {"git", "packages"} <= row["provenance"].keys()
    assert {row["figure"] for row in ROWS} == set(THEORY)


def test_committed_rows_were_computed_by_committed_code():
    origin = ROWS[0]["provenance"]
    assert re.fullmatch("[0-9a-f]{40}", origin["git"])
    assert origin["modified"] is False


def _cheap(figure: str, job) -> bool:
    case = job.args
    match figure:
        case "outcomes":
            return case[2] in ("sum", "linear-peft") and case[3] in (2, 1_000_000)
        case "convergence":
            return case == ("width", 256)
        case "survival":
            return case[1] == 10
        case "leak":
            return case[0] == "strict"
        case "kinds":
            return case[0] in (2, "exact")
        case "recycled":
            return case[0] in ("recycled", "relevant")
        case _:
            return False


def test_committed_rows_are_what_is_computed_now():
    """A cheap part of them, draws included; six digits are stored."""
    found = theory.compute((name, job) for name in THEORY for job in theory.jobs(name) if _cheap(name, job))
    assert len(found) > 25
    identity = ("figure", "group", "composition", "rule", "facts", "known", "varies", "size", "coefficient")
    identity += ("mask", "prompt", "kind", "base", "relation_length", "updates")
    stored = {tuple(row.get(key) for key in identity): row for row in ROWS if row["figure"] != "gauge"}
    for row in found:
        old = stored[tuple(row.get(key) for key in identity)]
        plain = json.loads(json.dumps(row))
        for key, value in plain.items():
            number = isinstance(value, float | dict | list) and key not in ("regime", "outcomes")
            wanted = pytest.approx(old[key], rel=2e-5, abs=1e-8) if number else old[key]
            assert value == wanted, (row["figure"], key)


def test_the_named_gauges_are_what_is_computed_now():
    found = gauge.row("named", True, {"aligned": ("facts", "facts"), "SVD": ("svd", "svd")})
    (old,) = of("gauge", kind="named", known=True)
    assert found["margins"] == [pytest.approx(pair, rel=2e-5) for pair in old["margins"][:2]]


def test_all_figures_are_drawn_from_rows_without_predictions(drawn):
    for name in THEORY:
        width, height = imread(drawn / f"{name}.png").shape[1::-1]
        assert width == style.PAGE * 300 and height > 900
        assert (drawn / f"{name}.svg").read_text().count("<path") > 50


def test_another_process_draws_the_same_bytes(drawn, tmp_path):
    for name, figure in THEORY.items():
        (path,) = figure.save(registry.Data(theory={name: of(name)}), tmp_path, ("svg",))
        assert path.read_bytes() == (drawn / path.name).read_bytes(), path.name


@pytest.mark.parametrize("name", ["outcomes", "kinds", "recycled"])
def test_the_drawing_in_the_docs_is_up_to_date(drawn, name):
    """Compared by what is drawn and not by bytes, which may depend on the version of matplotlib."""
    committed, fresh = ((folder / f"{name}.svg").read_text() for folder in (ROOT / "docs", drawn))
    for element in ("<path", "<use"):
        assert committed.count(element) == fresh.count(element), "run `make figures`"
    assert (ROOT / "docs" / f"{name}.png").stat().st_size > 50_000


def test_title_and_subtitle_of_the_outcome_map_hold_in_its_rows():
    assert "old answer stays" in outcomes.SUBTITLE
    assert all(row["shares"] == {"old": 1.0} for row in of("outcomes", group="pair", known=True))
    fresh = [row for row in of("outcomes", group="pair", known=False) if row["facts"] >= 2]
    assert all(row["shares"].get("correct", 0.0) <= 0.5 for row in fresh)  # an exact tie of two, at most
    for rule in ("sum", "mean"):
        assert all(row["shares"] == {"bridge": 1.0} for row in fresh if row["rule"] == rule)
    assert all(row["shares"] == {"correct": 1.0} for row in of("outcomes", composition="oracle-only"))


def test_exact_edges_of_survival():
    known, fresh = (of("survival", rule="sum", facts=1, known=known)[0] for known in (True, False))
    half = known["alphas"].index(0.5)
    assert known["margins"][half] == 0.0 and known["outcomes"][half] == "tie"
    assert known["margins"][half + 1] > 0 and fresh["margins"][half] > 0


def test_predictions_with_kinds_change_where_the_closed_form_says():
    for row in of("kinds", kind="lead"):
        for t, lead, bridge, right in zip(
            row["ts"], row["leads"], row["bridge"], row["correct"], strict=True
        ):
            assert (lead > 0) == (t > row["threshold"])
            assert (bridge, right) == pytest.approx((0, 1 / row["facts"]) if lead > 0 else (1, 0), rel=1e-5)


def test_recycled_updates_explain_as_much_as_their_number_says():
    for row in of("recycled", kind="share"):
        rounding = 1e-5  # six digits are stored
        if row["updates"] == "recycled, as they are":
            pairs = zip(row["mean"], row["formula"], strict=True)
            assert all(mean <= formula + rounding for mean, formula in pairs)
        else:
            assert row["mean"] == pytest.approx(row["formula"], abs=rounding)
    for row in of("recycled", kind="gain"):
        assert row["gains"] == pytest.approx(row["overlaps"], abs=1e-5)


def test_the_same_updates_answer_everything_or_nothing_by_gauge():
    (named,) = of("gauge", kind="named", known=True)
    (plain,) = of("gauge", kind="sum", known=True)
    worst = {name: min(pair) for name, pair in zip(named["gauges"], named["margins"], strict=True)}
    assert worst["aligned"] > 0 > worst["signs flipped"]
    assert min(plain["margins"][0]) < 0


def test_commands_refuse_what_they_cannot_draw(tmp_path):
    def run(*arguments: str):
        return CliRunner().invoke(main, ["theory", "--out", str(tmp_path / "out"), *arguments])

    missing = run("--rows", str(tmp_path / "none.json"))
    assert missing.exit_code == 2 and "--fresh" in missing.output
    broken = tmp_path / "broken.json"
    broken.write_text('{"rows": [{"figure": "leak"}], "provenance": {"git": "unknown"}}')
    assert run("--rows", str(broken)).exit_code == 2
    unknown = run("--format", "gif")
    assert unknown.exit_code == 2 and "gif" in unknown.output
    assert not (tmp_path / "out").exists()


def test_rows_survive_the_file(tmp_path):
    store.write(tmp_path / "rows.json", [{"figure": "leak", "limit": 0.25}])
    (row,) = store.read(tmp_path / "rows.json")
    assert row["limit"] == 0.25 and "git" in row["provenance"]
    with pytest.raises(ValueError):
        store.write(tmp_path / "rows.json", [{"limit": float("nan")}])
    assert len(store.read(tmp_path / "rows.json")) == 1


@pytest.mark.parametrize("command", ["all", "theory", "report", "first-look"])
def test_blas_has_one_thread_before_numpy_is_imported(command):
    """Its number is read at the import; predictions of several threads differ where singular values tie."""
    code = f"""
import os, sys
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "numpy" and "numpy" not in sys.modules:
            print("threads", os.environ.get("OPENBLAS_NUM_THREADS"))
            sys.exit(0)
sys.meta_path.insert(0, Watch())
from figures.__main__ import main
main(["{command}", "--format", "png", "--out", os.devnull], standalone_mode=False)
"""
    environment = {k: v for k, v in os.environ.items() if k != "OPENBLAS_NUM_THREADS"}
    if command == "report":
        code = code.replace('"--format", "png"', f'"--ledger", {str(store.COMMITTED)!r}')
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert "threads 1" in done.stdout.splitlines(), done.stderr
