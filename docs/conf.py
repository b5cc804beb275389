"""Settings of the documentation site, which `make docs` builds into out/docs.

Sphinx starts at the root of the repository and a page of the site is a file of it, so that links between
files are links between pages. What is not Markdown becomes a page in pages.py; contents.md is the sidebar.
"""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]

project = html_title = "lora-limits"
root_doc = "README"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.viewcode", "sphinx_click", "pages"]

include_patterns = [
    *("README.md", "docs/*.md", "benchmarks/README.md", "llm_experiments/embedded/**.md"),
    *("notebooks/README.md", "notebooks/0*.py", "notebooks/checks.py"),
    *("proofs/README.md", "proofs/headlines.txt", "proofs/check.py", "proofs/theories/*.v"),
    *("lora_limits.py", "toytransformer/**.py", "results/**.py", "llm_experiments/**.py", "figures/**.py"),
]
exclude_patterns = [".*", "out", "docs/contents.md", "**/__main__.py"]  # lora-limits has all commands
source_suffix = dict.fromkeys((".md", ".py", ".v", ".txt"), "myst-nb")

# Lessons come with their outputs; pages.py writes every .py file as a notebook.
nb_custom_formats = {".py": ["nbformat.reads", {"as_version": 4}]}
nb_execution_mode = "off"
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
highlight_language = "text"
smartquotes = False  # x' is x prime, -- begins an option

autodoc_default_options = {"members": True, "member-order": "bysource", "ignore-module-all": True}
autodoc_typehints_format = "short"
autodoc_mock_imports = ["inspect_ai"]  # an extra
add_module_names = False
python_use_unqualified_type_names = True
maximum_signature_line_length = 80
default_role = "py:obj"
viewcode_follow_imported_members = False  # or an alias such as dict[str, Fact] is looked for in builtins

# Two modules may have a class of one name; a signature that means one of them then leads nowhere.
suppress_warnings = ["ref.python"]

# Nothing is fetched when a page is read: furo brings its fonts, formulas are MathML.
html_theme = "furo"
html_math_renderer = "mathml"
html_static_path = ["style.css"]
html_css_files = ["style.css"]
templates_path = ["."]
html_additional_pages = {"index": "index.html"}  # leads to README.html
html_copy_source = False
html_show_copyright = False
