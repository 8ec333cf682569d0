"""Work in threads, with the results in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from typing import TypeVar

J = TypeVar("J")
R = TypeVar("R")


def in_order(
    work: Callable[[str, J], R], jobs: Iterable[tuple[str, J]], workers: int
) -> Iterator[tuple[str, J, R]]:  # fmt: skip
    """Run jobs in threads and yield each with its result, in the order of the jobs, a few ahead of the caller.

    Args:
        work: Called with the two parts of each job.
        jobs: The jobs: a name and what it is for.
        workers: Threads.

    Yields:
        Each job's two parts and the result of `work`.
    """
    pool = ThreadPoolExecutor(workers)
    waiting: deque[tuple[tuple[str, J], Future[R]]] = deque()
    try:
        for job in chain(jobs, [None] * (workers + 1)):
            if job is not None:
                waiting.append((job, pool.submit(work, *job)))
            if waiting and (job is None or len(waiting) > workers + 1):
                first, future = waiting.popleft()
                yield *first, future.result()
    finally:  # after an error or Ctrl-C, do not begin those that wait
        pool.shutdown(cancel_futures=True)
