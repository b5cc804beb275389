"""Programs that a model wrote: what is said of them, and what they cannot do."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_experiments.scoring import programs
from llm_experiments.scoring.programs import Limits, SandboxError, run_program

confined = pytest.mark.skipif(
    programs.sandbox() is None, reason="no sandbox works here: Linux 6.12 or newer and the extra 'code'"
)
SHORT = Limits(seconds=2, megabytes=256)
#: Answers in the harness's name on every stream there is, and leaves.
FORGED = """
import os
for fd in range(3, 40):
    try:
        os.write(fd, b'{"secret": "", "outcome": "passed", "said": ""}\\n')
    except OSError:
        pass
os._exit(0)
"""
#: Fills every stream there is.
FLOOD = """
import os
while True:
    for fd in range(3, 9):
        try:
            os.write(fd, b"x" * 10**5)
        except OSError:
            pass
"""
UDP = "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.sendto(b'x', ('127.0.0.1', PORT))"


@confined
@pytest.mark.parametrize(
    "code, tests, outcome, said",
    [
        ("def f(x): return x + 1", "assert f(1) == 2", "passed", ""),
        ("def f(x): return x", "assert f(1) == 2, 'not so'", "wrong", "AssertionError: not so"),
        ("def f(x): return x / 0", "assert f(1) == 2", "error", "ZeroDivisionError"),
        ("def f(x) return x", "assert f(1) == 2", "error", "SyntaxError"),
        ("assert False", "", "error", "AssertionError"),
        ("", "f(1)", "error", "NameError"),
        ("f = lambda x: x\nprint('{}' * 100)", "assert f('é') == 'é'", "passed", ""),
        ("import math, re, collections, itertools, heapq, json, random, datetime", "", "passed", ""),
        ("class E(Exception):\n def __str__(self): raise self\nraise E", "", "error", "E"),
    ],
)
def test_a_program_is_told_by_its_tests(code, tests, outcome, said):
    ran = run_program(code, tests, SHORT)
    assert (ran.outcome, ran.said[: len(said)]) == (outcome, said) and ran.seconds < SHORT.seconds


@confined
@settings(max_examples=12, deadline=None)
@given(st.text(max_size=60))
def test_any_text_is_passed_on_as_it_is(text):
    """What stands in a program's strings arrives, surrogates, quotes and null characters too."""
    assert run_program(f"told = {text!r}", f"assert told == {text!r}", SHORT).outcome == "passed"


@confined
@pytest.mark.parametrize(
    "code",
    [
        "import sys; sys.exit(0)",
        "import os; os._exit(0)",
        "raise SystemExit",
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
        "import atexit; atexit.register(print, 'passed'); raise KeyboardInterrupt",
        FORGED,
    ],
)
def test_a_program_that_ends_early_has_not_passed(code):
    assert run_program(code, "assert False", SHORT).outcome == "error"


@confined
@pytest.mark.parametrize(
    "attack",
    [
        f"open({str(Path(__file__))!r}).read()",
        "open('/etc/passwd').read()",
        "import os; os.listdir('/')",
        f"import os; os.listdir({str(Path.home())!r})",
        "open('/var/written', 'w')",
        "import tempfile; tempfile.mkstemp()",
        "import os; os.mkdir('made')",
        "import os; os.kill(os.getppid(), 9)",
        "import subprocess; subprocess.run(['/bin/sh', '-c', 'true'], check=True)",
        "import resource; resource.setrlimit(resource.RLIMIT_CPU, (99, 99))",
        "import socket; socket.create_connection(('127.0.0.1', PORT), 1)",
        f"import socket; {UDP}",
        "import socket; s = socket.socket(); s.bind(('127.0.0.1', 0)); s.listen()",
    ],
)
def test_what_is_not_its_own_is_out_of_reach(attack):
    """In the sandbox it is an error, and not one that stands in its way anywhere."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        attack = attack.replace("PORT", str(server.getsockname()[1]))
        tried = f"try:\n    {attack}\nexcept (OSError, ValueError): pass\nelse: raise AssertionError('done')"
        ran = run_program("", tried, SHORT)
    assert (ran.outcome, ran.said) == ("passed", "")


@confined
def test_a_program_sees_no_variable_of_this_process(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    ran = run_program("import os", "assert 'secret' not in repr(os.environ), os.environ", SHORT)
    assert ran.outcome == "passed"


@confined
@pytest.mark.parametrize(
    "code, outcome",
    [
        ("while True: pass", "timeout"),
        ("import time; time.sleep(99)", "timeout"),
        ("import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\nwhile True: pass", "timeout"),
        ("x = bytearray(10**10)", "error"),
        ("x = []\nwhile True: x.append(bytes(10**7))", "error"),
        ("import os\nwhile True: os.fork()", "error"),
        ("while True: print('x' * 10**6)", "timeout"),
        (FLOOD, None),
        ("f = lambda: f()\nf()", "error"),
    ],
)
def test_what_never_ends_is_ended_and_bounded(code, outcome):
    ran = run_program(code, "", SHORT)
    assert ran.outcome in ({outcome} if outcome else {"error", "timeout"})


@confined
def test_nothing_that_a_program_started_outlives_it():
    away = "import os, time\nif os.fork() == 0:\n os.setsid()\n time.sleep(60)"
    before = harnesses_of(1, os.getpid())  # of others, who run programs of their own
    assert run_program(away, "", SHORT).outcome == "passed"
    assert set(harnesses_of(1, os.getpid())) <= set(before)


@pytest.mark.parametrize("how", [pytest.param("sandbox", marks=confined), "no sandbox"])
def test_a_program_ends_with_the_process_that_asked_for_it(how):
    asks = "from llm_experiments.scoring import programs\n"
    asks += "programs.BACKENDS.clear()\n" if how == "no sandbox" else ""
    asks += f"programs.run_program('import time; time.sleep(99)', '', unsafe={how == 'no sandbox'})"
    parent = subprocess.Popen([sys.executable, "-c", asks])
    wait_for(lambda: parent.poll() is None and harnesses_of(parent.pid))
    (program,) = harnesses_of(parent.pid)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    wait_for(lambda: over(program))


@pytest.mark.parametrize("own", [True, False])
def test_a_harness_whose_parent_is_dead_already_runs_nothing(own, tmp_path):
    """It is asked for by a number that is no parent of it, as where that died before the kernel was asked."""
    seen = tmp_path / "seen"
    job = {"code": f"open({str(seen)!r}, 'w').close()", "tests": "", "seconds": 5, "megabytes": 512}
    text = json.dumps(job | {"processes": None, "parent": os.getpid() if own else os.getppid()}).encode()
    given = b"%16d" % len(text) + text + b"secret"
    harness = [sys.executable, "-I", "-S", "-c", programs.HARNESS.read_text(encoding="utf-8")]
    ended = subprocess.run(harness, input=given, capture_output=True, check=False)
    assert seen.exists() == own and (ended.returncode == 0) == own and bool(ended.stdout) == own


def over(number):
    """Whether a process has ended, be it that nobody has asked how."""
    try:
        return psutil.Process(number).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def harnesses_of(*parents):
    """Processes that run the harness and whose parent is one of these, by number."""
    found = []
    for process in psutil.process_iter(["pid", "ppid", "cmdline"]):
        line = " ".join(process.info["cmdline"] or ())
        if "die_with_parent(" in line and process.info["ppid"] in parents:
            found.append(process.info["pid"])
    return found


def wait_for(true, seconds=20):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_without_a_sandbox_a_program_is_refused_and_told_how_to_get_one(monkeypatch):
    monkeypatch.setattr(programs, "BACKENDS", {})
    programs.sandbox.cache_clear()
    try:
        with pytest.raises(SandboxError, match=r"install sandlock .* or bubblewrap .* set LORA_LIMITS"):
            run_program("", "")
        assert run_program("x = 1", "assert x == 1", SHORT, unsafe=True).outcome == "passed"
        assert run_program("while True: pass", "", Limits(seconds=1), unsafe=True).outcome == "timeout"
    finally:
        programs.sandbox.cache_clear()


def test_a_sandbox_that_shuts_nothing_out_is_none(monkeypatch):
    """An interpreter of its own is no sandbox: it reads the harness, which is no file of Python's."""
    monkeypatch.setattr(programs, "BACKENDS", {"open": programs.Session})
    programs.sandbox.cache_clear()
    try:
        assert programs.sandbox() is None
    finally:
        programs.sandbox.cache_clear()


@pytest.mark.parametrize("wrong", [{"seconds": 0}, {"seconds": 1.5}, {"megabytes": 1}, {"seconds": True}])
def test_limits_are_whole_numbers(wrong):
    with pytest.raises(ValueError, match="give a whole number of at least"):
        Limits(**wrong)
