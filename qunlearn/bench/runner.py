"""Run a grid: networks, tuning, cells; resumable, over several processes."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from qunlearn.bench.cell import Bench
from qunlearn.bench.draw import check
from qunlearn.bench.grid import Grid
from qunlearn.bench.networks import Key, load_dataset, network
from qunlearn.bench.plan import Job, choose, described, report_jobs, tuning_jobs
from qunlearn.bench.scene import ORIGINAL, RETRAINED, ROWS, Spot, keys_of
from qunlearn.bench.store import Store
from qunlearn.errors import ConfigError, InvariantError
from qunlearn_export.files import write_atomic

CHOSEN, GRID = "chosen.json", "grid.json"
Say = Callable[[str], None]
Task = tuple[str, Any]


def _compute(bench: Bench, task: Task) -> Iterator[dict[str, Any]]:
    """The cells of one task; a network task yields none."""
    kind, value = task
    if kind == "network":
        network(bench.grid, bench.dataset, value, bench.work)
        return
    for job in value:
        if job.method in ROWS:
            found = bench.row(job.spot, job.method)
        else:
            found = bench.run(job.spot, job.method, job.config, tuning=job.tuning)
        of = {"of": bench.grid.base(job.method)} if job.method in bench.grid.variants else {}
        yield _finite({
            "id": job.id(bench.grid), **asdict(job.spot), "method": job.method, "config": dict(job.config),
            "tuning": job.tuning, **of, **found,
        })  # fmt: skip


def _finite(value: Any) -> Any:
    """NaN and infinity become None: JSON has neither."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _end_with_parent() -> None:
    """A killed parent cannot stop its workers: they watch it, and end at once."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _worker(grid: Grid, work: Path, data_dir: Path | None, tasks: Any, results: Any) -> None:
    import torch

    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    bench = Bench(grid, load_dataset(grid, data_dir), work)
    while True:
        task = tasks.get()
        if task is None:
            return
        for cell in _compute(bench, task):
            results.put(("cell", cell))
        results.put(("done", None))


class Runner:
    """Computes tasks in this process, or in ``processes`` others with one thread each."""

    def __init__(self, grid: Grid, work: Path, data_dir: Path | None, processes: int, store: Store, say: Say) -> None:
        self.grid, self.work, self.data_dir, self.processes = grid, work, data_dir, processes
        self.store, self.say = store, say
        self.dataset = load_dataset(grid, data_dir)

    def __call__(self, label: str, tasks: Sequence[Task]) -> None:
        """All tasks; every finished cell is stored at once."""
        total = sum(len(v) if kind == "cells" else 1 for kind, v in tasks)
        if not total:
            return
        self.say(f"{label}: {total} to do")
        count = 0
        if self.processes == 1:
            bench = Bench(self.grid, self.dataset, self.work)
            for task in tasks:
                for cell in _compute(bench, task):
                    count += 1
                    self._keep(label, cell, count, total)
            return
        context = multiprocessing.get_context("spawn")
        todo, results = context.Queue(), context.Queue()
        for item in [*tasks, *[None] * self.processes]:
            todo.put(item)
        arguments = (self.grid, self.work, self.data_dir, todo, results)
        workers = [context.Process(target=_worker, args=arguments, daemon=True) for _ in range(self.processes)]
        for w in workers:
            w.start()
        done = 0
        try:
            while done < len(tasks):
                try:
                    kind, cell = results.get(timeout=5)
                except queue.Empty:
                    if any(w.exitcode not in (None, 0) for w in workers):
                        raise InvariantError(
                            "a worker process ended before its work was done.",
                            remedy="Run again with --processes 1 to see why; finished cells are kept.",
                        ) from None
                    continue
                if kind == "done":
                    done += 1
                else:
                    count += 1
                    self._keep(label, cell, count, total)
        finally:
            for w in workers:
                w.terminate()
                w.join()

    def _keep(self, label: str, cell: dict[str, Any], count: int, total: int) -> None:
        self.store.add(cell)
        what = cell.get("error") or (f"gap {100 * cell['gap']:.1f}" if cell.get("gap") is not None else "done")
        self.say(f"{label} {count}/{total}: {cell['method']} {cell['request']} seed {cell['seed']}: {what}")


def _by_spot(jobs: Iterable[Job]) -> list[Task]:
    groups: dict[Spot, list[Job]] = {}
    for job in jobs:
        groups.setdefault(job.spot, []).append(job)
    return [("cells", own) for own in groups.values()]


def _networks(jobs: Iterable[Job], work: Path) -> list[Task]:
    """The networks that these jobs read and ``work`` lacks."""
    keys: dict[Key, None] = {}
    for job in jobs:
        of = keys_of(job.spot)
        keys |= dict.fromkeys(of[row] for row in dict.fromkeys([ORIGINAL, RETRAINED, job.method]) if row in of)
    return [("network", key) for key in keys if not (work / "networks" / key.folder / "bench.json").exists()]


def run(
    grid: Grid, *, work: Path, out: Path, processes: int = 1, data_dir: Path | None = None, say: Say = print
) -> Store:
    """Everything that is missing: networks into ``work``, cells into ``out``. Returns the store.

    Tuning first, then seed by seed, each with the networks that its missing cells read: stopped after any seed, the
    tables hold the seeds before it.

    A folder that holds another grid is a ConfigError; the same grid goes on where it stopped.
    """
    if processes < 1:
        raise ConfigError("processes must be at least 1.", remedy="Give --processes 2.")
    check(grid)
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(grid.to_json(), indent=2, sort_keys=True) + "\n"
    known = out / GRID
    if known.exists() and known.read_text() != text:
        raise ConfigError(f"{out} holds the results of another grid.", remedy="Use another output folder.")
    write_atomic(known, text.encode())
    store = Store(out)
    runner = Runner(grid, work, data_dir, processes, store, say)
    dataset = runner.dataset

    def stage(label: str, jobs: Iterable[Job]) -> None:
        missing = [job for job in jobs if job.id(grid) not in store]
        runner(f"{label}: networks", _networks(missing, work))
        runner(label, _by_spot(missing))

    stage("tuning", tuning_jobs(grid, dataset))
    choices = choose(grid, dataset, store.cells)
    write_atomic(out / CHOSEN, (json.dumps([described(c) for c in choices], indent=2, sort_keys=True) + "\n").encode())
    jobs = list(report_jobs(grid, dataset, choices))
    for seed in grid.seeds:
        stage(f"seed {seed}", [job for job in jobs if job.spot.seed == seed])
    return store
