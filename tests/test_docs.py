"""Links between the pages lead somewhere, and the documentation site has all that is documented."""

import re
import runpy
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import jupytext
import pytest
from markdown_it import MarkdownIt
from test_project import tracked_files

pytest.importorskip("myst_nb", reason="the extra 'docs' is not installed")
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.project import Project

ROOT = Path(__file__).parents[1]
CONF = runpy.run_path(str(ROOT / "docs" / "conf.py"))
PAGES = runpy.run_path(str(ROOT / "docs" / "pages.py"))


def links_and_anchors(path: Path) -> tuple[list[str], set[str]]:
    """Where a Markdown file links to, and the anchors that its headings are."""
    tokens = MarkdownIt().enable("table").parse(path.read_text())
    inside = [child for token in tokens for child in token.children or ()]
    found = [str(token.attrs[key]) for token in inside for key in ("href", "src") if key in token.attrs]
    titles = [after.content for token, after in pairwise(tokens) if token.type == "heading_open"]
    return found, {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_links_of_markdown_files_lead_somewhere():
    pages = [path for path in tracked_files() if path.suffix == ".md"]
    assert len(pages) >= 10
    broken = []
    for page in pages:
        for link in links_and_anchors(page)[0]:
            file, _, anchor = link.partition("#")
            target = page.parent / file if file else page
            if "://" in link:
                continue
            if not target.exists() or (anchor and anchor not in links_and_anchors(target)[1]):
                broken.append(f"{page.relative_to(ROOT)}: {link}")
    assert broken == []


def test_every_module_and_every_text_is_a_page():
    found = Project(ROOT, CONF["source_suffix"]).discover(
        (*CONF["exclude_patterns"],), CONF["include_patterns"]
    )
    wanted = [path for path in tracked_files() if path.suffix in (".md", ".v")]
    modules = (path for package in PAGES["PACKAGES"] for path in (ROOT / package).rglob("*.py"))
    wanted += [path for path in modules if path.stem != "__main__"]
    assert len(wanted) > 100
    names = {path.relative_to(ROOT).with_suffix("").as_posix() for path in wanted}
    assert names - {"docs/contents"} - found == set()


def test_formulas_of_the_lessons_can_be_shown():
    formulas = [
        "".join(pair)
        for path in ROOT.glob("notebooks/0*.py")
        for cell in jupytext.read(path).cells
        if cell.cell_type == "markdown"
        for pair in re.findall(r"\$\$(.+?)\$\$|\$(.+?)\$", cell.source, flags=re.DOTALL)
    ]
    assert len(formulas) > 50
    for formula in formulas:
        tex2mathml(formula)  # MathError for a command that it does not know


@pytest.mark.parametrize(
    "written, shown",
    [
        ("|x| is x_i * 2, *not* x.", r"\|x\| is x\_i \* 2, *not* x."),
        ("See `merge` and `a | b`.", "See `merge` and `a | b`."),
        ("With\n\n    D* = |x|\n\n    y\n\nit holds.", "With\n\n\n\n::\n\n      D* = |x|\n  \n      y\n"),
        ("Keys:\n  share: a\n  low: b\nErrors: none", "Keys:\n\n\n::\n\n    share: a\n    low: b\n"),
        ("Two:\n\n- a_b\n  goes on", "Two:\n\n- a\\_b\n  goes on"),
    ],
)
def test_docstrings_are_shown_as_they_are_written(written, shown):
    lines = written.split("\n")
    PAGES["docstring"](None, "function", "f", None, None, lines)
    assert "\n".join(lines).startswith(shown)


def test_signatures_name_no_objects():
    arguments = "(x: ~jaxtyping.Float[Any, 'prompt'], log: Callable = <function f.<lambda>>, n: int = 2)"
    result = "~jaxtyping.Float[~typing.Any, 'answer']"
    shown = PAGES["signature"](None, "function", "f", None, None, arguments, result)
    assert shown[0] == "(x: ~jaxtyping.Float[Array, 'prompt'], log: Callable = ..., n: int = 2)"
    assert shown[1] == "~jaxtyping.Float[Array, 'answer']"
    shown = PAGES["signature"](None, "function", "f", None, None, "(file: Path = PosixPath('/a'), n=1)", None)
    assert shown == ("(file: Path = ..., n=1)", None)


@pytest.mark.slow
def test_site_is_built_without_a_warning(tmp_path):
    """With the lessons as they are: they are run by the tests of the notebooks."""
    site = tmp_path / "site"
    options = ["-W", "--keep-going", "-q", "-E", "-D", "suppress_warnings=lesson.missing,ref.python"]
    command = [sys.executable, "-m", "sphinx", *options, "-c", "docs", "-d", str(tmp_path / "cache")]
    done = subprocess.run([*command, ".", str(site)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    elsewhere = re.compile(r"<(?:script|link|img)\b[^>]*(?:src|href)=\"(?:https?:)?//[^>]*")
    assert [tag for page in site.rglob("*.html") for tag in elsewhere.findall(page.read_text())] == []
    assert [page.name for page in site.rglob("*.html") if str(ROOT) in page.read_text()] == []
    modules = {path.stem for path in (ROOT / "toytransformer").glob("[a-z]*.py")}
    assert modules <= {path.stem for path in (site / "toytransformer").glob("*.html")}
    assert "<math" in (site / "notebooks" / "01_rank_one_update.html").read_text()
