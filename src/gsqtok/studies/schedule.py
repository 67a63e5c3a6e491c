"""Sharing out runs to devices: each has one or several worker processes, each works through runs one by one."""

from __future__ import annotations

import multiprocessing
import queue
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from gsqtok.data.workers import processors
from gsqtok.studies.work import Job, Outcome, start, work

Report = Callable[[Job, "Outcome | None", str], None]


def do_all(jobs: Sequence[Job], devices: Sequence[int | None], per_device: int, report: Report) -> None:
    """Do every job; one that fails does not stop the others.

    Those that time a model come last, one at a time on the first device: a small model's time is the processor's, and
    whatever else the machine does would be part of it.

    Args:
        jobs: done in this order, as workers become free.
        devices: GPUs by number; None is the CPU.
        per_device: jobs that share a device; a small model alone does not fill a GPU.
        report: called with each job's outcome, or with None and why it failed; never by two threads at once.
    """
    _share_out([job for job in jobs if job.batch is None], [d for _ in range(per_device) for d in devices], report)
    _share_out([job for job in jobs if job.batch is not None], devices[:1], report)


def _share_out(jobs: Iterable[Job], slots: Sequence[int | None], report: Report) -> None:
    waiting: queue.SimpleQueue[Job] = queue.SimpleQueue()
    for job in jobs:
        waiting.put(job)
    one_at_a_time = threading.Lock()
    stopped = threading.Event()

    def serve(device: int | None) -> None:
        worker = None
        try:
            while not stopped.is_set():
                try:
                    job = waiting.get_nowait()
                except queue.Empty:
                    return
                worker = worker or _worker(device, len(slots))
                outcome, problem = None, ""
                try:
                    outcome = worker.submit(work, job).result()
                except BrokenProcessPool:
                    if stopped.is_set():
                        return
                    problem = "its process was killed (out of memory?)"
                    worker = None
                except KeyboardInterrupt:  # of the worker, whose process Ctrl-C reaches as well
                    return
                except Exception as error:  # whatever a run may raise, the next one may do better
                    problem = " ".join(f"{type(error).__name__}: {error}".split())
                with one_at_a_time:
                    report(job, outcome, problem)
        finally:
            if worker is not None:
                worker.shutdown(wait=False)

    threads = [threading.Thread(target=serve, args=(device,), daemon=True) for device in slots[: waiting.qsize()]]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            while thread.is_alive():
                thread.join(0.2)  # a join without end would not let Ctrl-C through
    except BaseException:
        stopped.set()
        for process in multiprocessing.active_children():  # they would first finish their runs
            process.terminate()
        raise


def _worker(device: int | None, slots: int) -> ProcessPoolExecutor:
    """A pool of one process, so that a run which takes its process down takes no other with it."""
    threads = max(1, processors() // slots) if device is None else None
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(1, mp_context=context, initializer=start, initargs=(device, threads))
