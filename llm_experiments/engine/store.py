"""Results of steps: content-addressed, written atomically, in one folder that several processes may share.

    DIR/run.json                             what was run: experiment, model, seeds, profile and its steps
        rows.jsonl.gz (and other *.jsonl.gz) the rows of all finished steps, in the order of run.json
        inputs/<hash>.jsonl                  texts that steps name by the hash of these bytes
        specs/<hash>.json                    compositions that steps name by their spec hash
        steps/<kind>-<key>/                  a finished step: spec.json, its files and, last, seal.json
        partial/<kind>-<key>.<pid>.<random>/ a step being computed; renamed into steps/ when it is complete
        locks/<kind>-<key>.lock              held while a step is computed; a process that dies lets go of it
        failures/<kind>-<key>.txt            the traceback of a step that failed
        rejected/                            what was found damaged or foreign: set aside, never read again

seal.json lists size and SHA-256 of every file and is itself signed; a folder without one is no result.
"""

from __future__ import annotations

import errno
import gzip
import io
import json
import os
import re
import secrets
import shutil
import time
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock, Timeout

from llm_experiments.engine.addresses import ADDRESS, Address, Ref, content_key
from llm_experiments.engine.sealing import (
    StoreError,
    canonical,
    digest,
    read_signed,
    signed,
    sync,
    told_clearly,
    write_synced,
)

PARTIAL = re.compile(r"(?P<of>.+)\.\d+\.[0-9a-f]{8}")
SPEC, SEAL, ROWS, RUN = "spec.json", "seal.json", "rows.jsonl", "run.json"
#: Kinds of rows that several steps write alike: what is asked, and what predicts it.
SHARED = ("items.jsonl", "specs.jsonl")
FOLDERS = ("steps", "inputs", "specs", "partial", "locks", "failures", "rejected")


class Addressed(Protocol):
    """What the store has to know of a step: its address <kind>-<key>, and the document that is hashed."""

    @property
    def address(self) -> Address: ...

    @property
    def document(self) -> Mapping[str, Any]: ...


@dataclass(frozen=True)
class Problem:
    """A file or folder that is not trusted: where (in DIR), why, and whether its step is lost by it."""

    path: str
    reason: str
    fatal: bool = True

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class Store:
    """The finished steps of a folder.

    folder: made if it is missing; with write=False it must be there and nothing in it is ever changed.
    Errors: StoreError on a file, on a folder of other things, on one that may not be written.
    """

    def __init__(self, folder: str | os.PathLike, *, write: bool = True):
        self.folder = Path(folder)
        self.write = write
        self._hashed: set[str] = set()
        if self.folder.exists() and not self.folder.is_dir():
            raise StoreError(f"'{folder}' is a file: results go into a folder, give the name of one")
        if not write:
            if not self.folder.is_dir():
                raise StoreError(f"'{folder}' is not there: give a folder that `run --out` wrote")
            return
        with told_clearly(self.folder, "the folder"):
            self.folder.mkdir(parents=True, exist_ok=True)
            others = {entry.name for entry in self.folder.iterdir() if entry.name[0] != "."} - {"lost+found"}
            if others and not others & {"steps", RUN}:
                raise StoreError(
                    f"'{folder}' holds other things ({', '.join(sorted(others)[:3])}) and no results: "
                    "give a new or an empty folder"
                )
            for name in FOLDERS:
                (self.folder / name).mkdir(exist_ok=True)
            (probe := self._partial("probe")).touch()  # a folder of an earlier run may be read-only by now
            probe.unlink()
            self.clean()

    # ---- reading ----

    def path(self, name: str) -> Path:
        """Where the step's folder is, once it is finished."""
        return self.folder / "steps" / name

    def finished(self, name: str) -> bool:
        """Whether the step is there and sound: by sizes, at the first look of this process by hashes too."""
        return self.path(name).exists() and not any(problem.fatal for problem in self.inspect(name))

    def results(self, name: str) -> Path:
        """The folder of a finished step. Errors: StoreError if it is missing or damaged."""
        if not self.path(name).exists():
            raise StoreError(f"step {name} is not finished in '{self.folder}': run it first")
        if fatal := [problem for problem in self.inspect(name) if problem.fatal]:
            raise StoreError(f"{fatal[0]}; run again to compute it anew")
        return self.path(name)

    def sound(self, name: str) -> bool:
        """Whether the step is finished and nothing foreign lies among its files."""
        return self.path(name).exists() and not self.inspect(name)

    def seconds(self, name: str) -> float | None:
        """How long the step took; None if it is not finished or does not say."""
        try:
            return float(self.seal(name)["meta"]["seconds"])
        except (StoreError, KeyError, ValueError, TypeError):
            return None

    def input(self, ref: Ref) -> bytes:
        """The bytes of an input. Errors: StoreError if it is missing or damaged."""
        return self._content(f"inputs/{ref}.jsonl", ref)

    def spec(self, ref: Ref) -> bytes:
        """The JSON of a composition by its spec hash. Errors: StoreError if it is missing or damaged."""
        return self._content(f"specs/{ref}.json", ref)

    def _content(self, where: str, ref: Ref) -> bytes:
        if problem := self._inspect_content(where, ref):
            raise StoreError(f"{problem} in '{self.folder}'; run again to write it anew")
        return (self.folder / where).read_bytes()

    def _inspect_content(self, where: str, ref: str) -> Problem | None:
        """What is wrong with a file that is named after its bytes."""
        path = self.folder / where
        try:
            if path.is_symlink() or not path.is_file():
                return Problem(where, "is not a plain file" if path.exists() else "is missing")
            if Ref.of(path.read_bytes()) != ref:
                return Problem(where, "was changed: its bytes are not those that it is named after")
        except OSError as error:
            return Problem(where, f"cannot be read ({error.strerror})")
        return None

    def seal(self, name: str) -> dict[str, Any]:
        """The seal of a step: its `files` (size, sha256) and `meta` (seconds, ..). Errors: StoreError."""
        return read_signed(self.path(name) / SEAL, "files", "meta")

    def inspect(self, name: str, *, hashes: bool = False) -> list[Problem]:
        """What is wrong with a step's folder; nothing if the list is empty.

        hashes: read every byte even if this process has done so before.
        """
        folder, where = self.path(name), f"steps/{name}"
        if folder.is_symlink() or not folder.is_dir():
            return [Problem(where, "is not a folder")]
        hashes = hashes or name not in self._hashed
        try:
            seal = read_signed(folder / SEAL, "name", "files")
            entries = {entry.relative_to(folder).as_posix(): entry for entry in folder.rglob("*")}
            found = (self._damage(where, file, sealed, hashes) for file, sealed in seal["files"].items())
            problems = [problem for problem in found if problem]
            if not problems and (seal["name"] != name or not self._belongs(folder / SPEC, name)):
                problems = [Problem(where, f"holds the results of another step ({seal['name']})")]
        except StoreError as error:
            return [Problem(f"{where}/{SEAL}", str(error))]
        except OSError as error:
            return [Problem(where, f"cannot be read ({error.strerror})")]
        ours = {SEAL, *seal["files"]}
        ours |= {parent.as_posix() for file in seal["files"] for parent in Path(file).parents}
        if not problems:
            self._hashed.add(name)
        return problems + [
            Problem(f"{where}/{file}", "is foreign: the step did not write it", fatal=False)
            for file, entry in sorted(entries.items())
            if file not in ours
        ]

    def problems(self, *, hashes: bool = True) -> list[Problem]:
        """Everything in the folder that is damaged or foreign, and therefore not trusted."""
        found = []
        for entry in sorted(self.folder.iterdir()):
            if entry.name not in (*FOLDERS, RUN) and not entry.name.endswith(".jsonl.gz"):
                found.append(Problem(entry.name, "is foreign: nothing of it is read", fatal=False))
        for entry in self._entries("steps"):
            if ADDRESS.fullmatch(entry.name):
                found += self.inspect(entry.name, hashes=hashes)
            else:
                found.append(Problem(f"steps/{entry.name}", "is foreign: it is no step", fatal=False))
        for folder, ending in (("inputs", ".jsonl"), ("specs", ".json")):
            for entry in self._entries(folder):
                where = f"{folder}/{entry.name}"
                if entry.suffix != ending:
                    found.append(Problem(where, "is foreign: no step names it", fatal=False))
                elif problem := self._inspect_content(where, entry.stem):
                    found.append(problem)
        for entry in self._entries("partial"):
            if not PARTIAL.fullmatch(entry.name):
                found.append(Problem(f"partial/{entry.name}", "is foreign: no step is computed there", False))
        if problem := self._run_list()[1]:
            return [*found, problem]
        for path in sorted(self.folder.glob("*.jsonl.gz")):
            try:
                with gzip.open(path) as file:
                    whole = file.read() == b"".join(self.rows(path.stem))
            except (OSError, EOFError, ValueError, zlib.error) as error:
                found.append(Problem(path.name, f"is damaged ({error}): run again, or use the steps"))
            else:
                if not whole:
                    reason = "is not what the finished steps hold: run again to write it anew"
                    found.append(Problem(path.name, reason, fatal=False))
        return found

    def rejected(self) -> list[str]:
        """Names of what was set aside in earlier runs."""
        return [entry.name for entry in self._entries("rejected")]

    def _damage(self, where: str, file: str, sealed: Mapping[str, Any], hashes: bool) -> Problem | None:
        """What is wrong with one file that the seal names."""
        path, where = self.folder / where / file, f"{where}/{file}"
        if path.is_symlink() or not path.is_file():
            return Problem(where, "is not a plain file" if path.exists() else "is missing")
        if (size := path.stat().st_size) != sealed["size"]:
            return Problem(where, f"has {size} bytes, its seal says {sealed['size']}")
        if hashes and digest(path) != sealed["sha256"]:
            return Problem(where, "was changed: its bytes are not those that were sealed")
        return None

    def _belongs(self, spec: Path, name: str) -> bool:
        """Whether the step's own description has the key that its folder is named after."""
        document = json.loads(spec.read_text(encoding="utf-8"))
        return name == f"{document['kind']}-{content_key(document)}"

    def _entries(self, folder: str) -> list[Path]:
        path = self.folder / folder
        return sorted(path.iterdir()) if path.is_dir() else []

    # ---- writing ----

    @contextmanager
    def lock(self, name: str, *, wait: bool = False) -> Iterator[bool]:
        """Hold the step's lock, if no other process does: says whether. With wait, until it is free."""
        lock = FileLock(self.folder / "locks" / f"{name}.lock")
        with told_clearly(self.folder, f"the lock of {name}"), suppress(Timeout):
            lock.acquire(blocking=wait, poll_interval=0.02)
        try:
            yield lock.is_locked
        finally:
            lock.release()

    @contextmanager
    def computing(self, step: Addressed, meta: Mapping[str, Any] | None = None) -> Iterator[Path]:
        """A folder to compute the step in; leaving the block seals it and makes it the step's result.

        The caller holds the step's lock. After an exception nothing of it is left.
        meta: a mapping that is written into the seal (with the seconds it took); may be filled in the block.
        Errors: DiskFullError, StoreError when the result cannot be written.
        """
        start = time.perf_counter()
        with told_clearly(self.folder, f"step {step.address}"):
            self._clear(step.address)
            folder = self._partial(step.address)
            folder.mkdir()
        try:
            yield folder
            with told_clearly(self.folder, f"step {step.address}"):
                (folder / SPEC).write_text(canonical(step.document) + "\n", encoding="utf-8")
                seconds = {"seconds": round(time.perf_counter() - start, 3)}
                self._seal(folder, step.address, {**(meta or {}), **seconds})
                try:
                    os.rename(folder, self.path(step.address))
                except OSError as error:
                    # Only where locks do not work can another process have finished the same step meanwhile.
                    if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or not self.finished(step.address):
                        raise
                sync(self.folder / "steps")
        finally:
            shutil.rmtree(folder, ignore_errors=True)  # gone already if it became the result

    def _seal(self, folder: Path, name: str, meta: Mapping[str, Any]) -> None:
        files, folders = {}, [folder]
        for entry in sorted(folder.rglob("*")):
            if entry.is_symlink() or not (entry.is_dir() or entry.is_file()):
                raise StoreError(
                    f"step {name} wrote '{entry.name}', which is no plain file: write files only"
                )
            if entry.is_dir():
                folders.append(entry)
                continue
            sync(entry)
            files[entry.relative_to(folder).as_posix()] = {
                "size": entry.stat().st_size,
                "sha256": digest(entry),
            }
        write_synced(folder / SEAL, signed({"name": name, "files": files, "meta": dict(meta)}))
        for entry in reversed(folders):
            sync(entry)

    def set_aside(self, name: str) -> list[Problem]:
        """Move what is damaged or foreign at a step's place to rejected/, and say what; the caller locks it.

        A damaged step goes as a whole; a sound one loses only the files it did not write.
        """
        if not self.path(name).exists() and not self.path(name).is_symlink():
            return []
        problems = self.inspect(name)
        with told_clearly(self.folder, f"rejected/{name}"):
            if any(problem.fatal for problem in problems):
                self._hashed.discard(name)
                os.rename(self.path(name), self._reject(name))
            else:
                for problem in problems:
                    if (entry := self.folder / problem.path).exists() or entry.is_symlink():
                        os.rename(entry, self._reject(f"{name}.{entry.name}"))
        return problems

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
                    shutil.rmtree(entry, ignore_errors=True)
                else:
                    entry.unlink(missing_ok=True)

    def note_failure(self, name: str, text: str | None) -> None:
        """Keep the traceback of a step that failed; None forgets it. A full disk keeps none."""
        path = self.folder / "failures" / f"{name}.txt"
        try:
            if text is None:
                path.unlink(missing_ok=True)
            else:
                path.write_text(text, encoding="utf-8")
        except OSError:
            return

    # ---- inputs ----

    def add_inputs(self, inputs: Mapping[Ref, bytes], specs: Mapping[Ref, bytes]) -> list[Problem]:
        """Write what a plan's steps name, where it is not there yet; what was damaged, which is set aside."""
        contents = {f"inputs/{ref}.jsonl": (ref, content) for ref, content in inputs.items()}
        contents |= {f"specs/{ref}.json": (ref, content) for ref, content in specs.items()}
        problems = []
        with self.lock("inputs", wait=True):
            for where, (ref, content) in contents.items():
                path = self.folder / where
                if path.exists() or path.is_symlink():
                    if not (problem := self._inspect_content(where, ref)):
                        continue
                    problems.append(problem)
                    with told_clearly(self.folder, f"rejected/{path.name}"):
                        os.rename(path, self._reject(path.name))
                self._replace(where, content, "inputs")
        return problems

    # ---- runs and their rows ----

    def runs(self) -> list[dict[str, Any]]:
        """What was run into this folder, oldest first. Errors: StoreError if run.json is damaged.

        Each has experiment, model, digest, seeds, profile, and steps: {"address", "label"}, in order.
        """
        runs, problem = self._run_list()
        if problem:
            raise StoreError(f"'{self.folder}': {problem}; run into it again to write it anew")
        return runs

    def _run_list(self) -> tuple[list[dict[str, Any]], Problem | None]:
        """The runs, or none of them and what is wrong with run.json."""
        if not (path := self.folder / RUN).exists():
            return [], None
        try:
            return read_signed(path, "runs")["runs"], None
        except StoreError as error:
            return [], Problem(RUN, str(error))

    def add_run(self, run: Mapping[str, Any], steps: Sequence[Mapping[str, str]]) -> list[Problem]:
        """Enter a run and its steps into run.json; the same run (all but its steps equal) is entered once.

        Returns what was wrong with a run.json that had to be set aside.
        """
        problems, entry = [], {**run, "steps": [dict(step) for step in steps]}
        canonical(entry)
        with self.lock(RUN, wait=True):
            runs, problem = self._run_list()
            if problem:
                problems = [problem]
                with told_clearly(self.folder, f"rejected/{RUN}"):
                    os.rename(self.folder / RUN, self._reject(RUN))
            entry = json.loads(canonical(entry))
            same = [{**old, "steps": None} == {**entry, "steps": None} for old in runs]
            if entry not in runs:
                runs = [entry if at else old for at, old in zip(same, runs, strict=True)]
                self._replace(RUN, signed({"runs": runs if any(same) else [*runs, entry]}))
        return problems

    def rows(self, file: str = ROWS, only: Collection[str] | None = None) -> Iterator[bytes]:
        """The lines of one kind of rows, of all runs' finished steps in their order, each step once.

        only: of these steps. Of SHARED files every line once.
        """
        seen: set[bytes] = set()
        for name in self._listed():
            if (only is None or name in only) and file in self.seal(name)["files"]:
                with (self.path(name) / file).open("rb") as lines:
                    for line in lines:
                        if line not in seen:
                            yield line
                        if file in SHARED:
                            seen.add(line)

    def row_files(self) -> list[str]:
        """The kinds of rows there are: names of *.jsonl directly in the folders of finished steps."""
        files = {file for name in self._listed() for file in self.seal(name)["files"]}
        return sorted(file for file in files if file.endswith(".jsonl") and "/" not in file)

    def _listed(self) -> list[str]:
        """The finished steps of all runs, in the order of run.json."""
        listed = dict.fromkeys(step["address"] for run in self.runs() for step in run["steps"])
        return [name for name in listed if self.finished(name)]

    def assemble(self) -> None:
        """Write rows.jsonl.gz, and its like, from the finished steps: equal rows give equal bytes."""
        for name in self.row_files() or [ROWS]:
            with self.lock(f"{name}.gz", wait=True):
                buffer = io.BytesIO()
                with gzip.GzipFile(filename="", fileobj=buffer, mode="wb", mtime=0) as file:
                    file.writelines(self.rows(name))
                self._replace(f"{name}.gz", buffer.getvalue())

    # ---- files ----

    def _partial(self, name: str) -> Path:
        return self.folder / "partial" / f"{name}.{os.getpid()}.{secrets.token_hex(4)}"

    def _reject(self, name: str) -> Path:
        return self.folder / "rejected" / f"{name}.{secrets.token_hex(4)}"

    def _replace(self, name: str, content: bytes, lock: str | None = None) -> None:
        """Write DIR/name, all or nothing; the caller holds the lock of that name, or of `lock`."""
        with told_clearly(self.folder, name):
            partial = self._partial(lock or name)
            try:
                write_synced(partial, content)
                os.replace(partial, path := self.folder / name)
                sync(path.parent)
            finally:
                partial.unlink(missing_ok=True)
