"""Time and memory of one computation, measured in a process of its own."""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.case import Work
from toytransformer import interrupts


@dataclass(frozen=True)
class Measurement:
    """What a computation returned and what it took.

    first: seconds of the first call, compilation included. seconds, processor: of every later call, on the
    clock and summed over processors; the first call's where there was no other. peak: the most memory the
    process ever held, in bytes, Python and libraries included.
    """

    value: np.ndarray
    first: float
    seconds: tuple[float, ...]
    processor: tuple[float, ...]
    peak: int

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def to_dict(self) -> dict:
        return {
            "first_s": self.first,
            "median_s": self.median,
            "processor_s": statistics.median(self.processor),
            "calls_after_first": len(self.seconds),
            "peak_bytes": self.peak,
        }


def measure(
    prepare: Callable[..., Callable[[], np.ndarray]], *arguments: object, repeats: int
) -> Measurement:
    """Time `work()` in a fresh process, where `work = prepare(*arguments)` has made its imports and inputs.

    `prepare` is a function of a module and imports what it needs itself, so that its memory is its own.
    """
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, fresh, interrupts.begin_worker) as pool:
        with interrupts.held():  # the process begins here
            measured = pool.submit(_measure, prepare, arguments, repeats)
        return measured.result()


def _measure(prepare: Callable[..., Work], arguments: tuple[object, ...], repeats: int) -> Measurement:
    work = prepare(*arguments)
    clock, used = [], []
    for _ in range(1 + repeats):
        start, start_used = time.perf_counter(), time.process_time()
        value = work()
        clock.append(time.perf_counter() - start)
        used.append(time.process_time() - start_used)
    later = slice(1, None) if repeats else slice(None)
    return Measurement(np.asarray(value, float), clock[0], tuple(clock[later]), tuple(used[later]), _peak())


def _peak() -> int:
    """Peak resident memory of this process in bytes.

    Linux's getrusage starts from the parent's peak, so the process's own high-water mark is read instead.
    """
    status = Path("/proc/self/status")
    if status.exists():
        return 1024 * int(status.read_text().split("VmHWM:")[1].split()[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
