"""Results of steps: content-addressed, written atomically, in one folder that several processes may share.

    DIR/run.json                             what was run: experiment, model, seeds, profile and its steps
        rows.jsonl.gz (and other *.jsonl.gz) the rows of all finished steps, in the order of run.json
        inputs/<hash>.jsonl                  texts that steps name by the hash of these bytes
        specs/<hash>.json                    compositions that steps name by their spec hash
        steps/<kind>-<key>/                  a finished step: spec.json, its files and, last, seal.json
        partial/<kind>-<key>.<pid>.<random>/ a step being computed; renamed into steps/ when it is complete
        locks/<kind>-<key>.lock              held while a step is computed; a process that dies lets go of it
        locks/<kind>-<key>.lease             the same for workers, on one host or several: engine.leases
        failures/<kind>-<key>.txt            the traceback of a step that failed
        rejected/                            what was found damaged or foreign: set aside, never read again

Whatever else lies there, a pipe or a folder in a file's place, a link, JSON without end, problems() names it,
and it is set aside where it is in the way; nothing waits for it and nothing of it is read. Seals, and names
that are hashes, detect accidents, not forgers, who can seal what they like.
"""

from __future__ import annotations

import errno
import gzip
import os
import re
import secrets
import shutil
import time
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from filelock import BaseFileLock, FileLock, Timeout

from llm_experiments.engine import assembly, seals
from llm_experiments.engine.addresses import ADDRESS, Address, Ref
from llm_experiments.engine.assembly import CELLS, ROWS
from llm_experiments.engine.leases import SECONDS, Leases
from llm_experiments.engine.runs import RUN, Listed, Run, read_runs, signed_runs, with_run
from llm_experiments.engine.sealing import StoreError, canonical, clear_errors, read_plain, sync, write_synced
from llm_experiments.engine.seals import SPEC, Problem, Seal

PARTIAL = re.compile(r"(?P<of>.+)\.\d+\.[0-9a-f]{8}")
FOLDERS = ("steps", "inputs", "specs", "partial", "locks", "failures", "rejected")
#: What a file system without file locks says.
NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)
#: Ending of the files of gathered rows.
FILE = ".jsonl" + assembly.ENDING
#: Files named after their bytes: ending by folder.
TEXTS = {"inputs": ".jsonl", "specs": ".json"}


class Addressed(Protocol):
    """What the store has to know of a step: its address <kind>-<key>, and the document that is hashed."""

    @property
    def address(self) -> Address: ...

    @property
    def document(self) -> Mapping[str, object]: ...


class Store:
    """The finished steps of a folder.

    folder: made if it is missing; with write=False it must be there and nothing in it is ever changed.
    lease: for workers, seconds without a heartbeat after which others take a step over; None: this process
    takes no leases, and leaves to workers what they hold.
    Errors: StoreError on a file, on a folder of other things, on one that may not be written.
    """

    def __init__(self, folder: str | os.PathLike[str], *, write: bool = True, lease: float | None = None):
        self.folder = Path(folder)
        self.write = write
        self.worker = lease is not None
        self.leases = Leases(self.folder / "locks", self._partial, SECONDS if lease is None else lease)
        self._hashed: set[str] = set()
        if os.path.lexists(self.folder) and not self.folder.is_dir():
            raise StoreError(f"'{folder}' is a file: results go into a folder, give the name of one")
        if not write:
            if not self.folder.is_dir():
                raise StoreError(f"'{folder}' is not there: give a folder that `run --out` wrote")
            return
        with clear_errors(self.folder, "the folder"):
            self.folder.mkdir(parents=True, exist_ok=True)
            others = {entry.name for entry in self.folder.iterdir() if entry.name[0] != "."} - {"lost+found"}
            if others and not others & {"steps", RUN}:
                raise StoreError(
                    f"'{folder}' holds other things ({', '.join(sorted(others)[:3])}) and no results: "
                    "give a new or an empty folder"
                )
            self._make_folders()
            (probe := self._partial("probe")).touch()  # a folder of an earlier run may be read-only by now
            probe.unlink()
            self.clean()

    def _make_folders(self) -> None:
        """The folders, steps/ first, by which results are known; what stands for one is set aside."""
        paths = [self.folder / name for name in FOLDERS]
        taken = [path for path in paths if os.path.lexists(path) and not path.is_dir()]
        if (rejected := self.folder / "rejected") in taken:
            os.rename(rejected, self.folder / f"rejected.{secrets.token_hex(4)}")
            taken.remove(rejected)
        if taken:
            rejected.mkdir(exist_ok=True)
        for path in taken:
            os.rename(path, self._reject(path.name))
        for path in paths:
            path.mkdir(exist_ok=True)

    # ---- finished steps ----

    def path(self, name: str) -> Path:
        """Where the step's folder is, once it is finished."""
        return self.folder / "steps" / name

    def finished(self, name: str) -> bool:
        """Whether the step is there and sound: by sizes, at the first look of this process by hashes too."""
        return self.path(name).exists() and not any(problem.fatal for problem in self.inspect(name))

    def sound(self, name: str) -> bool:
        """Whether the step is finished and nothing foreign lies among its files."""
        return self.path(name).exists() and not self.inspect(name)

    def results(self, name: str) -> Path:
        """The folder of a finished step. Errors: StoreError if it is missing or damaged."""
        if not self.path(name).exists():
            raise StoreError(f"step {name} is not finished in '{self.folder}': run it first")
        if fatal := [problem for problem in self.inspect(name) if problem.fatal]:
            raise StoreError(f"{fatal[0]}; run again to compute it anew")
        return self.path(name)

    def seal(self, name: str) -> Seal:
        """The seal of a step: its `files` (size, sha256) and `meta` (seconds, ..). Errors: StoreError."""
        return seals.read_seal(self.path(name))

    def seconds(self, name: str) -> float | None:
        """How long the step took; None if it is not finished or does not say."""
        try:
            return float(self.seal(name)["meta"]["seconds"])
        except (StoreError, KeyError, ValueError):
            return None

    def inspect(self, name: str, *, hashes: bool = False) -> list[Problem]:
        """What is wrong with a step's folder; nothing if the list is empty.

        hashes: read every byte even if this process has done so before.
        """
        hashes = hashes or name not in self._hashed
        problems = seals.inspect(self.path(name), f"steps/{name}", name, hashes=hashes)
        if not any(problem.fatal for problem in problems):
            self._hashed.add(name)
        return problems

    # ---- texts that steps name ----

    def input(self, ref: Ref) -> bytes:
        """The bytes of an input. Errors: StoreError if it is missing or damaged."""
        return self._text("inputs", ref)

    def spec(self, ref: Ref) -> bytes:
        """The JSON of a composition by its spec hash. Errors: StoreError if it is missing or damaged."""
        return self._text("specs", ref)

    def _text(self, folder: str, ref: str) -> bytes:
        where = f"{folder}/{ref}{TEXTS[folder]}"
        try:
            content = read_plain(self.folder / where)
        except StoreError as error:
            raise StoreError(f"'{self.folder}/{where}' {error}: run again to write it anew") from error
        if Ref.of(content) != ref:
            raise StoreError(f"'{self.folder}/{where}' was changed: run again to write it anew")
        return content

    def add_inputs(self, inputs: Mapping[Ref, bytes], specs: Mapping[Ref, bytes]) -> list[Problem]:
        """Write what a plan's steps name, where it is not there yet; what was damaged, which is set aside."""
        problems = []
        with self.lock("inputs", wait=True):
            for folder, texts in (("inputs", inputs), ("specs", specs)):
                for ref, content in texts.items():
                    where = f"{folder}/{ref}{TEXTS[folder]}"
                    if os.path.lexists(self.folder / where):
                        if not (problem := self._text_problem(where, ref)):
                            continue
                        problems.append(problem)
                        self._set_aside(where)
                    self._replace(where, content, lock="inputs")
        return problems

    def _text_problem(self, where: str, ref: str) -> Problem | None:
        """What is wrong with a file that is named after its bytes."""
        try:
            if Ref.of(read_plain(self.folder / where)) != ref:
                return Problem(where, "was changed: its bytes are not those that it is named after")
        except StoreError as error:
            return Problem(where, str(error))
        return None

    # ---- what is not trusted ----

    def problems(self, *, hashes: bool = True) -> list[Problem]:
        """Everything in the folder that is damaged or foreign, and therefore not trusted."""
        problems = []
        for entry in sorted(self.folder.iterdir()):
            if entry.name in FOLDERS:
                if not entry.is_dir():
                    problems.append(Problem(entry.name, "is not a folder: run again to set it aside"))
            elif entry.name != RUN and not entry.name.endswith(FILE):
                problems.append(Problem(entry.name, "is foreign: nothing of it is read", fatal=False))
        for entry in self._entries("steps"):
            if ADDRESS.fullmatch(entry.name):
                problems += self.inspect(entry.name, hashes=hashes)
            else:
                problems.append(Problem(f"steps/{entry.name}", "is foreign: it is no step", fatal=False))
        for folder, ending in TEXTS.items():
            for entry in self._entries(folder):
                where = f"{folder}/{entry.name}"
                if entry.suffix != ending:
                    problems.append(Problem(where, "is foreign: no step names it", fatal=False))
                elif problem := self._text_problem(where, entry.stem):
                    problems.append(problem)
        for entry in self._entries("partial"):
            if not PARTIAL.fullmatch(entry.name):
                problems.append(
                    Problem(f"partial/{entry.name}", "is foreign: no step is computed there", False)
                )
        if problem := self._run_list()[1]:
            return [*problems, problem]
        return problems + self._file_problems()

    def _file_problems(self) -> list[Problem]:
        """Which of the gathered files are not what the finished steps hold."""
        steps, again = self.listed(), "run again to write it anew"
        there = {entry.name for entry in self.folder.glob(f"*{FILE}")}
        problems = []
        for name in sorted(there | {file + assembly.ENDING for file in assembly.files(self, steps)}):
            try:
                written = gzip.decompress(read_plain(self.folder / name))
                if written != b"".join(assembly.lines(self, name.removesuffix(assembly.ENDING), steps)):
                    reason = f"is not what the finished steps hold: {again}"
                    problems.append(Problem(name, reason, fatal=False))
            except StoreError as error:
                problems.append(Problem(name, f"{error}: {again}", fatal=False))
            except (OSError, EOFError, zlib.error) as error:
                problems.append(Problem(name, f"is damaged ({error}): {again}"))
        return problems + [
            Problem(CELLS + assembly.ENDING, reason, fatal=False) for reason in assembly.missing(self, steps)
        ]

    def rejected(self) -> list[str]:
        """Names of what was set aside in earlier runs."""
        return [entry.name for entry in self._entries("rejected")]

    def _entries(self, folder: str) -> list[Path]:
        path = self.folder / folder
        return sorted(path.iterdir()) if path.is_dir() else []

    def set_aside(self, name: str) -> list[Problem]:
        """Move what is damaged or foreign at a step's place to rejected/, and say what; the caller locks it.

        A damaged step goes as a whole; a sound one loses only the files it did not write.
        """
        if not os.path.lexists(self.path(name)):
            return []
        problems = self.inspect(name)
        if any(problem.fatal for problem in problems):
            self._hashed.discard(name)
            self._set_aside(f"steps/{name}")
        else:
            for problem in problems:
                self._set_aside(problem.path, f"{name}.{Path(problem.path).name}")
        return problems

    def _set_aside(self, where: str, name: str | None = None) -> None:
        """Move what is there, if anything is, to rejected/, called `name` and a random ending."""
        target = self._reject(name or Path(where).name)
        with clear_errors(self.folder, f"rejected/{target.name}"), suppress(FileNotFoundError):
            os.rename(self.folder / where, target)

    # ---- computing ----

    @contextmanager
    def lock(self, name: str, *, wait: bool = False) -> Iterator[bool]:
        """Hold the step's lock, if no other process does: says whether. With wait, until it is free."""
        path = self.folder / "locks" / f"{name}.lock"
        if os.path.lexists(path) and (path.is_symlink() or not path.is_file()):
            self._set_aside(f"locks/{name}.lock")
        # Where locks are missing workers have their leases; a soft lock would outlive a host that died.
        lock = FileLock(path, fallback_to_soft=not self.worker)
        with clear_errors(self.folder, f"the lock of {name}"):
            while not (mine := self._take(name, lock)) and wait:
                time.sleep(0.02)
        try:
            yield mine
        finally:
            self.leases.release(name)
            lock.release()

    def _take(self, name: str, lock: BaseFileLock) -> bool:
        """Take the step's lock and, as a worker, its lease: both, or neither."""
        locked = True
        try:
            lock.acquire(blocking=False)
        except Timeout:
            # A host that died, or sleeps, may keep its lock on the server long after its lease is over.
            if os.path.lexists(self.folder / "locks" / f"{name}.lease") and self.leases.broken(name, False):
                Path(lock.lock_file).unlink(missing_ok=True)
            return False
        except OSError as error:
            if not self.worker or error.errno not in NO_LOCKS:
                raise
            locked = False
        taken = False
        try:
            taken = (self.leases.take if self.worker else self.leases.vacant)(name, locked)
        finally:
            if not taken:
                lock.release()
        if taken:
            with os.scandir(self.folder / "steps"):
                pass  # NFS: look anew, before it is believed that a step is not there
        return taken

    def lost(self, name: str) -> bool:
        """Whether another worker took over the step that this process holds: it was asleep, or cut off."""
        return self.leases.lost(name)

    @contextmanager
    def computing(self, step: Addressed, meta: Mapping[str, str | float] | None = None) -> Iterator[Path]:
        """A folder to compute the step in; leaving the block seals it and makes it the step's result.

        The caller holds the step's lock. After an exception nothing of it is left.
        meta: a mapping that is written into the seal (with the seconds it took); may be filled in the block.
        Errors: DiskFullError, StoreError when the result cannot be written.
        """
        start = time.perf_counter()
        with clear_errors(self.folder, f"step {step.address}"):
            self._clear(step.address)
            folder = self._partial(step.address)
            folder.mkdir()
        try:
            yield folder
            with clear_errors(self.folder, f"step {step.address}"):
                (folder / SPEC).write_text(canonical(step.document) + "\n", encoding="utf-8")
                seconds = {"seconds": round(time.perf_counter() - start, 3)}
                seals.write_seal(folder, step.address, {**(meta or {}), **seconds})
                try:
                    os.rename(folder, self.path(step.address))
                except OSError as error:
                    # Only where locks do not work can another process have finished the same step meanwhile.
                    if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or not self.finished(step.address):
                        raise
                sync(self.folder / "steps")
        finally:
            shutil.rmtree(folder, ignore_errors=True)  # gone already if it became the result

    def clean(self) -> None:
        """Remove what dead processes were computing: those partial folders whose lock nobody holds."""
        for entry in self._entries("partial"):
            if match := PARTIAL.fullmatch(entry.name):
                with self.lock(match["of"]) as mine:
                    if mine:
                        self._clear(match["of"])

    def _clear(self, name: str) -> None:
        """Remove all partial results of that name; the caller holds its lock, so nobody works on them."""
        for entry in self._entries("partial"):
            if (match := PARTIAL.fullmatch(entry.name)) and match["of"] == name:
                if entry.is_dir() and not entry.is_symlink():
                    with suppress(RecursionError):  # folders in folders: they stay, and are in nobody's way
                        shutil.rmtree(entry, ignore_errors=True)
                else:
                    entry.unlink(missing_ok=True)

    def note_failure(self, name: str, text: str | None) -> None:
        """Keep the traceback of a step that failed; None forgets it. A full disk keeps none."""
        path = self.folder / "failures" / f"{name}.txt"
        with suppress(OSError, StoreError):
            if text is None:
                path.unlink(missing_ok=True)
            else:
                self._replace(f"failures/{name}.txt", text.encode(errors="backslashreplace"), lock=name)

    # ---- runs and their rows ----

    def runs(self) -> list[Run]:
        """What was run into this folder, oldest first. Errors: StoreError if run.json is damaged.

        Each has experiment, model, digest, seeds, profile, and steps: {"address", "label"}, in order.
        """
        runs, problem = self._run_list()
        if problem:
            raise StoreError(f"'{self.folder}': {problem}; run into it again to write it anew")
        return runs

    def _run_list(self) -> tuple[list[Run], Problem | None]:
        """The runs, or none of them and what is wrong with run.json."""
        if not os.path.lexists(path := self.folder / RUN):
            return [], None
        try:
            return read_runs(path), None
        except StoreError as error:
            return [], Problem(RUN, str(error))

    def add_run(self, about: Mapping[str, object], steps: Sequence[Listed]) -> list[Problem]:
        """Enter a run and its steps into run.json; the same run (all but its steps equal) is entered once.

        Returns what was wrong with a run.json that had to be set aside.
        """
        with self.lock(RUN, wait=True):
            runs, problem = self._run_list()
            if problem:
                self._set_aside(RUN)
            if (entered := with_run(runs, about, steps)) != runs:
                self._replace(RUN, signed_runs(entered))
        return [problem] if problem else []

    def listed(self) -> list[str]:
        """The finished steps of all runs, in the order of run.json."""
        addresses = dict.fromkeys(step["address"] for run in self.runs() for step in run["steps"])
        return [name for name in addresses if self.finished(name)]

    def rows(self, file: str = ROWS, only: Collection[str] | None = None) -> Iterator[bytes]:
        """The lines of one kind of rows, of all runs' finished steps in their order, each step once.

        only: of these steps.
        """
        steps = [name for name in self.listed() if only is None or name in only]
        yield from assembly.lines(self, file, steps)

    def row_files(self) -> list[str]:
        """The kinds of rows there are, as assembly.files() says."""
        return assembly.files(self, self.listed())

    def assemble(self) -> list[Problem]:
        """Write rows.jsonl.gz, and its like, from the finished steps: equal rows give equal bytes.

        Returns what stood in their place and had to be set aside.
        """
        problems, steps = [], self.listed()
        kinds = assembly.files(self, steps) or [ROWS]
        there = {path.name.removesuffix(assembly.ENDING) for path in self.folder.glob(f"*{FILE}")}
        for file in sorted(there.difference(kinds)):
            reason = "is foreign: no finished step holds such rows"
            problems.append(Problem(file + assembly.ENDING, reason, fatal=False))
            self._set_aside(file + assembly.ENDING)
        for file in kinds:
            with self.lock(name := file + assembly.ENDING, wait=True):
                path = self.folder / name
                if os.path.lexists(path) and (path.is_symlink() or not path.is_file()):
                    problems.append(Problem(name, "is not a plain file", fatal=False))
                    self._set_aside(name)
                self._replace(name, assembly.packed(assembly.lines(self, file, steps)))
        return problems

    # ---- files ----

    def _partial(self, name: str) -> Path:
        return self.folder / "partial" / f"{name}.{os.getpid()}.{secrets.token_hex(4)}"

    def _reject(self, name: str) -> Path:
        short = os.fsdecode(os.fsencode(name)[:200])  # with its ending no longer than names may be
        return self.folder / "rejected" / f"{short}.{secrets.token_hex(4)}"

    def _replace(self, name: str, content: bytes, lock: str | None = None) -> None:
        """Write DIR/name, all or nothing; the caller holds the lock of that name, or of `lock`."""
        with clear_errors(self.folder, name):
            partial = self._partial(lock or name)
            try:
                write_synced(partial, content)
                os.replace(partial, path := self.folder / name)
                sync(path.parent)
            finally:
                partial.unlink(missing_ok=True)
