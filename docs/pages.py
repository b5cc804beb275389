"""Sphinx extension: how files that are not Markdown become pages, and how docstrings and names are read."""

import re
from pathlib import Path

import jupytext
import nbformat
from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.addnodes import desc_annotation, pending_xref
from sphinx.util.logging import getLogger

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("toytransformer", "results", "llm_experiments", "figures")
#: The page of the command line.
COMMANDS = """# The command line

`python -m toytransformer`, `python -m llm_experiments` and `python -m figures` take the commands of one
package each; `lora-limits experiments` is `python -m llm_experiments list` there.

```{eval-rst}
.. click:: lora_limits:cli
   :prog: lora-limits
   :nested: full
```
"""
LANGUAGES = {".v": "coq", ".py": "python", ".txt": "text"}
#: Pages whose links lead to the pages below them in the sidebar.
PARENTS = ("notebooks/README", "proofs/README")


def page(app, docname, source):
    """Turns the text of a file into Markdown, or into a notebook if it is Python."""
    path, text = Path(app.env.doc2path(docname)), source[0]
    if docname == "README":
        text += (ROOT / "docs" / "contents.md").read_text(encoding="utf-8")
    elif docname in PARENTS:
        text += below(re.findall(r"\]\(([^):#]+)\)", text))
    elif docname.startswith("notebooks/0"):
        text = nbformat.writes(lesson(path))
    elif path.suffix != ".md":
        if docname == "lora_limits":
            text = COMMANDS
        elif docname.startswith(PACKAGES):
            text = module(path)
        else:
            text = f"# {path.name}\n\n~~~~~~{LANGUAGES[path.suffix]}\n{text}\n~~~~~~\n"
        if path.suffix == ".py":
            cell = nbformat.v4.new_markdown_cell(text)
            text = nbformat.writes(nbformat.v4.new_notebook(cells=[cell]))
    source[0] = text


def below(pages, option="hidden"):
    """Puts pages below this one in the sidebar; shows them on this page, too, unless they are hidden."""
    return f"\n\n```{{toctree}}\n:{option}:\n\n" + "\n".join(pages) + "\n```\n"


def lesson(path):
    """As `make notebooks` wrote it to hand out. Without outputs, and with a warning, where it did not."""
    built = ROOT / "out" / "notebooks" / f"{path.stem}.ipynb"
    if not built.exists():
        getLogger(__name__).warning("no %s: make notebooks", built.name, type="lesson", subtype="missing")
        notebook = jupytext.read(path)
        notebook.metadata["language_info"] = {"name": "python", "pygments_lexer": "python"}
        return notebook
    notebook = nbformat.read(built, as_version=4)
    link = f"{{download}}`This lesson as a notebook <../out/notebooks/{built.name}>`, to work through."
    notebook.cells.append(nbformat.v4.new_markdown_cell(link))
    return notebook


def module(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    name = ".".join(parts).removesuffix(".__init__")
    text = f"# {name}\n\n```{{eval-rst}}\n.. automodule:: {name}\n```\n"
    if path.stem != "__init__":
        return text
    files = [file for file in path.parent.glob("*.py") if file.stem[:2] != "__"]
    found = {file.stem: file.name for file in files}
    found |= {file.parent.name: f"{file.parent.name}/__init__" for file in path.parent.glob("*/__init__.py")}
    return text + below((f"{name} <{file}>" for name, file in sorted(found.items())), "titlesonly")


#: A list item, or an indented block: formulas, tables and examples.
INDENTED = re.compile(r"(^- .*\n(?:  .*\n)*|(?:^ .*\n(?:\n+(?= ))?)+)", flags=re.MULTILINE)
#: What reStructuredText gives a meaning, but docstrings mean literally.
MARKUP = re.compile(r"(`[^`]+`|(?<!\S)\*\w+\*)|[\\*|_`]")


def docstring(app, what, name, obj, options, lines):
    """Docstrings are plain text: an indented block stays as it is, `names` are marked, nothing else is."""
    pieces = []
    for piece in INDENTED.split("\n".join([*lines, ""])):
        if piece.startswith(" "):
            pieces.append("\n\n::\n\n" + re.sub("^", "  ", piece, flags=re.MULTILINE) + "\n")
        else:
            pieces.append(MARKUP.sub(lambda found: found[1] or "\\" + found[0], piece))
    lines[:] = "".join(pieces).split("\n")


#: A default that is a function or a path of this machine, not a literal.
OBJECT = re.compile(r"= (?:<(?:[^<>]|<[^<>]*>)*>|\w+Path\([^)]*\))")


def signature(app, what, name, obj, options, arguments, result):
    """As the source has it: `Array` may be any library's; defaults that are objects are not printed."""
    return tuple(
        text and OBJECT.sub("= ...", re.sub(r"(~typing\.)?\bAny, '", "Array, '", text))
        for text in (arguments, result)
    )


def constants(app, doctree):
    """Leaves out what a constant is if that is no short literal, and says paths as they are typed."""
    for annotation in list(doctree.findall(desc_annotation)):
        value = annotation.astext()
        if value.lstrip().startswith("=") and (len(value) > 100 or "<" in value or "Path(" in value):
            annotation.parent.remove(annotation)
    for literal in doctree.findall(nodes.literal):
        if path := re.fullmatch(r"\w+Path\('(.*)'\)", literal.astext()):
            literal[:] = [nodes.Text(path[1])]


def names(app, doctree):
    """Makes `package.function`, `File.theorem` and `package/file.py` links; long names may break."""
    here, wbr = app.env.current_document.docname, nodes.raw("", "<wbr>", format="html")
    for literal in list(doctree.findall(nodes.literal)):
        name = literal.astext()
        if len(name) > 20:
            parts = re.split(r"(?<=[._:/])(?=\w)", name)
            literal[:] = [node for part in parts for node in (nodes.Text(part), wbr.deepcopy())]
        if isinstance(literal.parent, (nodes.reference, pending_xref)):
            continue
        module = re.sub(r"/$", "/__init__", name.removesuffix(".py"))
        files = (f"proofs/theories/{name.partition('.')[0]}", module)
        if file := next((file for file in files if file in app.env.found_docs), None):
            address = app.builder.get_relative_uri(here, file)
            literal.replace_self(nodes.reference("", "", literal.deepcopy(), internal=True, refuri=address))
        elif name.startswith(PACKAGES):
            wanted = {"refdomain": "py", "reftype": "obj", "reftarget": name, "refdoc": here}
            literal.replace_self(pending_xref("", literal.deepcopy(), **wanted))


#: |v| is no infix operator: browsers would set space around it.
BAR = re.compile(r"<mo(?=[^>]*>\|<)")


def mathml(as_block):
    def visit(writer, node):
        try:
            formula = tex2mathml(node.astext(), as_block=as_block)
            writer.body.append(BAR.sub(r'\g<0> lspace="0" rspace="0"', formula))
        except MathError as error:
            getLogger(__name__).warning("%s: %s", error, node.astext(), location=node)
        raise nodes.SkipNode

    return visit, None


def setup(app):
    app.connect("source-read", page)
    app.connect("autodoc-process-docstring", docstring)
    app.connect("autodoc-process-signature", signature)
    app.connect("doctree-read", constants)
    app.connect("doctree-read", names)
    app.add_html_math_renderer("mathml", mathml(False), mathml(True))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
