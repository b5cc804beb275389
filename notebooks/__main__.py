"""Build the lessons: `python -m notebooks [--out DIR] [NAME ...]`.

Each is executed from top to bottom in a kernel of its own and written twice: DIR/NAME.ipynb to hand out,
without the solution and with no output where the reader has to work, and DIR/solutions/NAME.ipynb complete.
"""

from __future__ import annotations

import copy
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from traitlets.config import Config

from toytransformer.compositions import replace_file

HERE = Path(__file__).parent
#: The lessons by name, in order.
LESSONS = {path.stem: path for path in sorted(HERE.glob("[0-9]*.py"))}
#: Seconds that one cell may take on a busy machine.
PATIENCE = 300


def executed(name: str) -> nbformat.NotebookNode:
    """The lesson with its outputs, solution included. Errors: CellExecutionError for a cell that raises."""
    notebook = jupytext.read(LESSONS[name])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    where = {"metadata": {"path": str(HERE.parent)}}
    with TemporaryDirectory() as folder:
        # Through socket files, not ports: nothing else on the machine or the network can listen.
        sockets = {"transport": "ipc", "ip": str(Path(folder) / "kernel")}
        config = Config({"ConnectionFileMixin": sockets})
        NotebookClient(notebook, config=config, timeout=PATIENCE, resources=where).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times of day: the same source gives the same file
    return notebook


def handed_out(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The same without cells tagged "solution", and without the outputs of exercises and checks."""
    copied = copy.deepcopy(notebook)
    copied.cells = [cell for cell in copied.cells if "solution" not in tags(cell)]
    for cell in copied.cells:
        if tags(cell) & {"exercise", "check"}:
            cell.outputs, cell.execution_count = [], None
    return copied


def tags(cell: nbformat.NotebookNode) -> set[str]:
    return set(cell.metadata.get("tags", ()))


@click.command(help=__doc__.splitlines()[0])
@click.argument("names", nargs=-1, type=click.Choice(list(LESSONS)), metavar="[NAME]...")
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/notebooks"), show_default=True)
def main(names: tuple[str, ...], out: Path) -> None:
    (out / "solutions").mkdir(parents=True, exist_ok=True)
    for name in names or LESSONS:
        start = time.monotonic()
        try:
            notebook = executed(name)
        except CellExecutionError as error:
            print(error, file=sys.stderr)
            sys.exit(f"{name}: a cell failed; nothing of it was written")
        for path, content in (
            (out / f"{name}.ipynb", handed_out(notebook)),
            (out / "solutions" / f"{name}.ipynb", notebook),
        ):
            replace_file(path, [nbformat.writes(content), "\n"])
        print(f"{name}: {time.monotonic() - start:.0f} s, {out / name}.ipynb")


if __name__ == "__main__":
    main()
