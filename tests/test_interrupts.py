"""Ctrl-C: real processes of every kind of command, interrupted at any moment, also while libraries load."""

import contextlib
import gzip
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from llm_experiments.adapters import peft_files
from results.files import FILES
from toytransformer.adapters import LoRA
from toytransformer.compositions.io import replace_file

ROOT = Path(__file__).parents[1]
PYTHON = [sys.executable, "-m"]
#: What the installed command does.
INSTALLED = "import sys; sys.argv[0] = 'bin/lora-limits'; from lora_limits import main; main()"
SCRIPT = [sys.executable, "-c", INSTALLED]
COMMANDS = {
    "toytransformer": ("list", "predict two-hop --facts 2", "verify"),
    "llm_experiments": ("list", "run quick --out run", "check adapter", "merge adapter adapter --out new",
                        "table kept", "status kept", "export data", "pretrain --out model"),
    "figures": ("survival --out drawings", "all --out drawings"),
    "benchmarks": ("dense --small", "arrow --small"),
}  # fmt: skip
LINES = [
    *([*PYTHON, package, *line.split()] for package, lines in COMMANDS.items() for line in lines),
    *([*PYTHON, "lora_limits", *line.split()] for line in ("predict two-hop", "check adapter", "--help")),
    *([*SCRIPT, *line.split()] for line in ("predict two-hop", "run quick --out run", "figures survival")),
]
NAMES = [" ".join(line[2:])[-50:] for line in LINES]
#: Seconds after the command's first line, Python's own start being over.
TIMES = (0, 0.02, 0.05, 0.1, 0.2, 0.4, 0.7, 1, 1.5, 2, 3, 4)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    lora = LoRA(torch.ones(5, 2), torch.ones(7, 2))
    peft_files.write(folder / "adapter", "one", {"layer.a": lora}, "base")
    (folder / "kept").symlink_to(ROOT / "llm_experiments" / "data" / "embedded")
    return folder


def begun(process: subprocess.Popen) -> None:
    """Wait until Python's start is over: it hears SIGINT from early on, and then no longer."""
    heard, end = False, time.monotonic() + 5
    while process.poll() is None and time.monotonic() < end:
        with contextlib.suppress(OSError, IndexError):  # there is no /proc, or the process has ended
            caught = Path(f"/proc/{process.pid}/status").read_text().split("SigCgt:")[1].split()[0]
            catches = bool(int(caught, 16) >> (signal.SIGINT - 1) & 1)
            if heard and not catches:
                return
            heard = heard or catches
        time.sleep(0.001)


def interrupted(line: list[str], seconds: float, folder: Path) -> tuple[int, str, str] | None:
    """Status, output and errors of a command interrupted so long after its start; None where it was over."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(line, cwd=folder, env=environment, start_new_session=True, **pipes) as process:
        begun(process)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=seconds)
            assert process.returncode in (0, 1)  # `status` of what is no run's folder
            return None
        begin = time.monotonic()
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        try:
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
        # A second, and one more for every process that waits for a core.
        assert time.monotonic() - begin < 1 + os.getloadavg()[0], "it took long"
    return process.returncode, out, err


def ends_quietly(line: list[str], seconds: float, folder: Path) -> bool:
    """Whether it was interrupted; as it should be, if so."""
    if (ended := interrupted(line, seconds, folder)) is None:
        return False
    status, _, err = ended
    assert status in (-signal.SIGINT, 128 + signal.SIGINT), (seconds, status, err)
    assert not any(word in err for word in ("Traceback", "Error", "KeyboardInterrupt")), (seconds, err)
    hidden = [path for path in folder.rglob(".*") if path.is_file()]
    assert not hidden, "a part of a file was left"
    return True


@pytest.mark.parametrize("line, times", [(LINES[1], (0, 0.3)), (LINES[4], (0.1, 2)), (LINES[-1], (0, 1))])
def test_it_ends_a_command_at_once_while_libraries_load(place, line, times):
    assert any([ends_quietly(line, seconds, place) for seconds in times])


@pytest.mark.slow
@pytest.mark.parametrize("line", LINES, ids=NAMES)
def test_it_ends_every_command_at_once(place, tmp_path, line):
    for entry in place.iterdir():
        (tmp_path / entry.name).symlink_to(entry)
    assert any([ends_quietly(line, seconds, tmp_path) for seconds in TIMES])


@pytest.mark.slow
def test_a_run_interrupted_at_any_moment_goes_on_to_the_same_rows(tmp_path):
    rows, seconds = {}, [0, 0.3, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 15, 20, 30, 45]
    for name, pauses in (("whole", []), ("interrupted", seconds)):
        line = [*SCRIPT, "run", "edits", "--seeds", "0", "--out", name]
        for pause in pauses:
            ends_quietly(line, pause, tmp_path)
        done = subprocess.run(line, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)})
        assert done.returncode == 0
        rows[name] = {
            file: gzip.decompress(path.read_bytes())
            for file in FILES
            if (path := tmp_path / name / f"{file}.jsonl.gz").exists()
        }
        assert not list((tmp_path / name / "partial").iterdir())
    assert rows["whole"] and rows["whole"] == rows["interrupted"]


WRITING = """
import sys, time
from pathlib import Path
from toytransformer import interrupts
interrupts.end_at_once()
from toytransformer.compositions.io import replace_file
def lines():
    print("begun", flush=True)
    while True:
        yield "a line\\n"
        time.sleep(0.01)
try:
    replace_file(Path("file"), lines())
except KeyboardInterrupt:
    sys.exit(130)
"""


def test_a_file_that_was_being_written_stays_as_it_was(tmp_path):
    replace_file(tmp_path / "file", ["old\n"])
    line = [sys.executable, "-c", WRITING]
    with subprocess.Popen(line, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "old\n"


def test_a_job_in_the_background_goes_on_ignoring_it():
    code = "from toytransformer import interrupts as i; i.end_at_once(); import signal; "
    code += "print(signal.getsignal(signal.SIGINT) is signal.SIG_IGN)"
    command = ["sh", "-c", 'trap "" INT; exec "$@"', "sh", sys.executable, "-c", code]
    assert subprocess.run(command, capture_output=True, text=True, cwd=ROOT).stdout == "True\n"
