"""Ctrl-C: ends a command as the system does, except where a file is being written.

Python's own way, an exception wherever the program happens to be, fails while libraries are imported: NumPy,
JAX and torch swallow it or raise ImportError in its place. Entry points import this module first, before
anything that takes time; what is left is Python's own start.
"""

from __future__ import annotations

import _signal as signal  # what Python has loaded already; `signal` imports enum, which takes a while


def end_at_once() -> None:
    """From now on Ctrl-C ends the process, without a traceback and without Python: for entry points alone.

    A job in the background, which ignores Ctrl-C, goes on doing so.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def again_at_once() -> None:
    """After an import that took SIGINT for itself, as Polars does: what end_at_once() said holds again."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:  # for all that Python knows
        signal.signal(signal.SIGINT, signal.SIG_DFL)


class held:
    """A block in which Ctrl-C waits, in the processes begun there too, until they call `begin_worker`."""

    def __enter__(self) -> None:
        self.before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})

    def __exit__(self, *exception: object) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self.before)


def begin_worker() -> None:
    """First thing in a process begun in a block of `held`: it ends at Ctrl-C, and when its parent does."""
    import multiprocessing
    import os
    import threading
    from multiprocessing.connection import wait

    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # one that came before, too
    if parent := multiprocessing.parent_process():

        def follow() -> None:
            wait([parent.sentinel])
            os._exit(1)

        threading.Thread(target=follow, daemon=True).start()


class heard:
    """A block in which Ctrl-C is KeyboardInterrupt again, so that what it leaves behind is cleaned up.

    It must import nothing. No change outside the main thread, or where end_at_once() was not called.
    """

    def __enter__(self) -> None:
        self.changed = signal.getsignal(signal.SIGINT) == signal.SIG_DFL
        if self.changed:
            try:
                signal.signal(signal.SIGINT, signal.default_int_handler)
            except ValueError:  # not the main thread
                self.changed = False

    def __exit__(self, *exception: object) -> None:
        if self.changed:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
