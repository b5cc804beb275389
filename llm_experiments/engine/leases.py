"""Leases: a file for each step that is computed, whose count grows while its holder lives.

    DIR/locks/<kind>-<key>.lease     "<count> <token> <kernel, or ->", 16 digits first, rewritten in place

Hosts that share a folder need not share a clock, nor locks. No time is written or compared here: a holder is
dead when whoever waits has seen the same bytes for `seconds` of its own monotonic clock. A lease is made by
link(2), which fails where there is one, also on NFS; it is taken over by rename(2), which one process alone
can do. A holder writes through the handle it opened, so that one that was only asleep never writes into its
successor's lease. It may still compute what the successor computes too: Store.computing() publishes one.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from llm_experiments.engine.sealing import StoreError, read_plain

#: Seconds without a beat after which a step is taken over.
SECONDS = 60.0
#: Beats in that time: several may be late, by a slow disk or a busy processor.
BEATS = 20


@dataclass
class _Held:
    """A lease of this process: its open file, and how often it has beaten."""

    handle: int
    count: int = 0


class Leases:
    """The leases of a folder, as one process takes, keeps and looks at them.

    folder: where they lie. partial: a new path in the same file system for a file of that name, which whoever
    takes the lease next may remove. seconds: without a beat after which a holder is taken to be dead.
    """

    def __init__(self, folder: Path, partial: Callable[[str], Path], seconds: float = SECONDS):
        if not seconds > 0:
            raise StoreError(f"a lease of {seconds} seconds would be over at once: give more than 0")
        self.seconds = seconds
        self._folder, self._partial = folder, partial
        self._kernel = _kernel()
        self._held: dict[str, _Held] = {}
        self._seen: dict[str, tuple[bytes, float]] = {}
        self._guard = threading.Lock()
        self._beating: threading.Thread | None = None

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.lease"

    def vacant(self, name: str, locked: bool) -> bool:
        """Whether no living process holds the lease; what a dead one left is removed.

        locked: the caller has the step's file lock, so that a holder on this kernel that had it is dead.
        """
        return not os.path.lexists(self._path(name)) or self.broken(name, locked)

    def broken(self, name: str, locked: bool) -> bool:
        """Remove the lease if its holder is dead: says whether. `locked` as in vacant()."""
        try:
            content = read_plain(self._path(name))
        except StoreError:
            content = b""  # gone meanwhile, or nothing that could beat
        now = time.monotonic()
        if name not in self._seen or self._seen[name][0] != content:
            self._seen[name] = (content, now)
        here = locked and content.split()[2:] == [self._kernel]
        if not here and now - self._seen[name][1] < self.seconds:
            return False
        del self._seen[name]
        try:
            os.rename(self._path(name), aside := self._partial(name))
        except FileNotFoundError:
            return False
        try:
            if aside.is_file() and aside.read_bytes() == content:
                return True
            with suppress(FileExistsError):  # another was faster, and holds it
                os.link(aside, self._path(name))
            return False
        except OSError:
            return not os.path.lexists(self._path(name))
        finally:
            with suppress(OSError):
                aside.unlink()

    def take(self, name: str, locked: bool) -> bool:
        """Take the lease if no living process holds it: says whether. `locked` as in vacant()."""
        if not self.vacant(name, locked):
            return False
        kernel = self._kernel if locked else b"-"
        draft = self._partial(name)
        handle = os.open(draft, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
        try:
            os.write(handle, b"%016d %s %s\n" % (0, secrets.token_hex(8).encode(), kernel))
            os.fsync(handle)
            try:
                os.link(draft, self._path(name))
                mine = True
            except FileExistsError:
                # NFS repeats a request whose first answer was lost; two names say that it was granted.
                mine = os.fstat(handle).st_nlink == 2
            except FileNotFoundError:  # whoever took the lease meanwhile removed the draft
                mine = False
        except BaseException:
            os.close(handle)
            raise
        finally:
            draft.unlink(missing_ok=True)
        if not mine:
            os.close(handle)
            return False
        with self._guard:
            self._held[name] = _Held(handle)
        if self._beating is None or not self._beating.is_alive():
            self._beating = threading.Thread(target=self._beat, daemon=True, name="leases")
            self._beating.start()
        return True

    def lost(self, name: str) -> bool:
        """Whether this process had the lease and another took it over."""
        with self._guard:
            return name in self._held and not self._mine(name)

    def release(self, name: str) -> None:
        """Let go of the lease, if this process has it."""
        with self._guard:
            if name not in self._held:
                return
            mine = self._mine(name)
            os.close(self._held.pop(name).handle)
            if mine:
                with suppress(OSError):
                    self._path(name).unlink()

    def _mine(self, name: str) -> bool:
        """Whether the file of that name is the one that this process opened."""
        try:
            return os.path.samestat(os.fstat(self._held[name].handle), os.lstat(self._path(name)))
        except OSError:  # gone, also from under the handle (NFS: ESTALE)
            return False

    def _beat(self) -> None:
        """Count on in all leases of this process, as long as it lives."""
        while True:
            with self._guard:
                for held in self._held.values():
                    held.count += 1
                    with suppress(OSError):  # taken over and removed, or no room: lost() says the first
                        os.pwrite(held.handle, b"%016d" % held.count, 0)
                        os.fsync(held.handle)
            time.sleep(self.seconds / BEATS)


def _kernel() -> bytes:
    """The boot of this kernel: file locks of its processes are let go of when they die. b"?" if unknown."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_bytes().strip()
    except OSError:
        return b"?" + secrets.token_hex(8).encode()  # another for each process: nothing is concluded
