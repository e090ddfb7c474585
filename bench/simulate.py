"""What the control plane carries: the real one, with real rows and a real broker, and fake hosts in its workers.

Before the migrations, the same workers pass as many empty tasks along chains as the migrations have steps: what Celery
and the broker allow for on this machine.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from sqlalchemy import Row, func, select

from bench.crowd import FACTS, all_moves, populate
from bench.figures import Mark, Result, course, page
from bench.simulated import SHARDS, dispatch, hop
from haulier.definition.batch_file import BatchEntry, BatchFile
from haulier.services.batch_filing import submit
from haulier.services.context import Context
from haulier.services.limits import LimitChange, set_limits
from haulier.services.nodes import beat
from haulier.settings import Settings
from haulier.signals import Signals
from haulier.stack.local import prepare
from haulier.stack.programs import CONTROL_THREADS, NODE_THREADS, broker_program, worker_program
from models import LIVE_CHAIN, Batch, Database, LimitScope, Migration, Step, StepState
from models.transitions import OPEN_MIGRATION
from tests.fixtures.postgres import Server

NODES = 1_000
SIZES = (100, 1_000, 10_000)
# Of so many the figures are; the others stand in the queue behind them.
MEASURED = 200
_MARKS = (0.1, 0.25, 0.5, 0.75, 1.0)
# As safe as a server that is meant to keep what it is told.
_SAFE = {"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on", "autovacuum": "on", "timezone": "UTC"}
ALONE = 20
_CHAINS = 64
_STEPS = len(LIVE_CHAIN)


@dataclass(slots=True)
class Stage:
    """A control plane at work: its context, its processes by their names, where its workers count."""

    context: Context
    processes: dict[str, subprocess.Popen[bytes]]
    counts: Path
    server: Server | None

    def mark(self, ended: int) -> Mark:
        """What there is now."""
        counts: Counter[str] = Counter()
        for file in self.counts.glob("*.json"):
            counts.update(json.loads(file.read_text()))
        pids = {name: [process.pid] for name, process in self.processes.items() if name != "beat"}
        if self.server is not None:
            root = self.server.pid
            pids["database"] = [root, *map(int, Path(f"/proc/{root}/task/{root}/children").read_text().split())]
        cpu_s = {name: sum(map(_cpu_s, found)) for name, found in pids.items()}
        return Mark(
            time.monotonic(), ended, counts, cpu_s, {name: sum(map(_pss_mib, found)) for name, found in pids.items()}
        )

    def require_alive(self) -> None:
        """Raises SystemExit when one of the processes has ended."""
        for name, process in self.processes.items():
            if process.poll() is not None:
                raise SystemExit(f"{name} has ended with {process.returncode}")


def _cpu_s(pid: int) -> float:
    """What a process has taken of a core. What is shared with its parent is its own."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _pss_mib(pid: int) -> float:
    """The RAM that a process has for itself, and its part of what it shares."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


@contextmanager
def stage(*, postgresql: bool) -> Iterator[Stage]:
    """Start everything, and end it by its pids."""
    with ExitStack() as ending:
        folder = Path(ending.enter_context(tempfile.TemporaryDirectory(prefix="haulier-simulated-")))
        server = ending.enter_context(Server.running(None, **_SAFE)) if postgresql else None
        counts = folder / "counts"
        counts.mkdir()
        environment = {
            **os.environ,
            "HAULIER_STATE": str(folder),
            "HAULIER_SIMULATED_COUNTS": str(counts),
            **({"HAULIER_DATABASE_URL": server.cluster.url(server.cluster.create_database())} if server else {}),
        }
        os.environ.update({name: value for name, value in environment.items() if name.startswith("HAULIER_")})
        os.environ.pop("HAULIER_SIMULATED_COUNTS")
        settings = Settings()
        prepare(settings)
        commands = {
            "broker": broker_program(settings),
            "control": _worker("control", "control", CONTROL_THREADS),
            **{f"nodes.{shard}": _worker(f"nodes.{shard}", f"nodes{shard}", NODE_THREADS) for shard in range(SHARDS)},
            "beat": [sys.executable, "-m", "celery", "-A", "tasks", "beat", "--loglevel", "WARNING", "--pidfile="],
        }
        processes = {}
        for name, command in commands.items():
            log = ending.enter_context((folder / f"{name}.log").open("wb"))
            more = {"HAULIER_SIMULATED_BEATS": "1"} if name == "nodes.0" else {}
            process = subprocess.Popen(command, env=environment | more, stdout=log, stderr=log)
            ending.callback(_end, process)
            processes[name] = process
            if name == "broker":
                _wait_for(settings.sockets / "broker.sock", process)
        context = Context(settings, Database(settings.database), Signals(settings.broker), dispatch)
        ending.callback(context.database.close)
        yield Stage(context, processes, counts, server)


def _worker(queue: str, name: str, threads: int) -> list[str]:
    words = worker_program(queue, name=name, threads=threads)
    return [{"tasks": "bench.simulated", f"{name}@%%h": f"{name}@%h"}.get(word, word) for word in words]


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(30)


def _wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    while not path.exists() and process.poll() is None:
        time.sleep(0.02)


def measure_empty(stage: Stage, steps: int) -> float:
    """So many empty tasks, in chains that run side by side; tasks per second."""
    each = max(1, steps // _CHAINS)
    with stage.context.signals.listen("bench.chain") as bell:
        begun = time.monotonic()
        for number in range(_CHAINS):
            hop.apply_async((each - 1, number), queue=f"nodes.{number % SHARDS}")
        for _ in range(_CHAINS):
            bell.wait(600.0)
        return each * _CHAINS / (time.monotonic() - begun)


def run(vms: int, *, measured: int, postgresql: bool, say: Callable[[str], None]) -> Result:
    """One size, in a control plane of its own, until so many have ended."""
    result = Result(vms)
    with stage(postgresql=postgresql) as here:
        context = here.context
        populate(context, nodes=NODES, vms=vms + ALONE)
        say(f"{vms}: {NODES} nodes, {vms} VMs are there")
        measure_empty(here, 20 * _CHAINS)
        result.empty_rate = measure_empty(here, min(vms, 1000) * _STEPS)
        moves = all_moves(nodes=NODES, vms=vms + ALONE).entries
        set_limits(context, [LimitChange(LimitScope.CLUSTER, (), 1)])
        _submit(context, moves[vms:])
        _wait_until_over(here, ALONE, Result(vms), say, of=ALONE)
        result.alone_ms, result.hop_alone = _alone(context)
        set_limits(context, [LimitChange(LimitScope.CLUSTER, (), 0)])
        result.filing_ms = _submit(context, moves[:vms]) / vms
        set_limits(context, [LimitChange(LimitScope.CLUSTER, (), None)])
        _wait_until_over(here, min(vms, measured), result, say, of=vms)
        _read_rows(context, result)
        result.heartbeat_ms = _heartbeat_ms(context)
    return result


def _submit(context: Context, moves: Sequence[BatchEntry]) -> float:
    """File these as a batch; in milliseconds."""
    begun = time.monotonic()
    submit(context, BatchFile(tuple(moves)))
    return (time.monotonic() - begun) * 1000


def _open(context: Context) -> int:
    with context.database.read() as session:
        query = select(func.count()).select_from(Migration).where(Migration.state.in_(OPEN_MIGRATION))
        return session.scalar(query) or 0


def _wait_until_over(here: Stage, wanted: int, result: Result, say: Callable[[str], None], *, of: int) -> None:
    """Wait until so many of those that were filed have ended, and mark how it goes."""
    marks, said = [math.ceil(part * wanted) for part in _MARKS], time.monotonic()
    while marks:
        here.require_alive()
        ended = of - _open(here.context)
        while marks and ended >= marks[0]:
            marks.pop(0)
            result.marks.append(here.mark(ended))
        if time.monotonic() - said > 15:
            say(f"{result.vms}: {ended} of {wanted} have ended")
            said = time.monotonic()
        time.sleep(1.0)


def _alone(context: Context) -> tuple[float, float]:
    """Milliseconds of one migration that has everything for itself, and of a hop of it."""
    with context.database.read() as session:
        took = session.execute(select(Migration.started_at, Migration.finished_at)).all()
        hops = session.execute(select(Step.ready_at, Step.started_at).where(Step.state == StepState.DONE)).all()
    return statistics.median(_ms(row) for row in took), statistics.median(_ms(row) for row in hops)


def _ms(moments: Row[Any, Any]) -> float:
    """The milliseconds between two moments of a row."""
    return float((moments[1] - moments[0]).total_seconds() * 1000)


def _read_rows(context: Context, result: Result) -> None:
    """What the rows of the batch say, of the time between the tenth and the ninetieth of a hundred ends."""
    with context.database.read() as session:
        batch = session.scalar(select(func.max(Batch.id)))
        mine = Migration.batch_id == batch
        over = (mine, Migration.finished_at.is_not(None))
        states = select(Migration.state, func.count()).where(*over).group_by(Migration.state)
        result.states = {str(state): number for state, number in session.execute(states)}
        ends = [each for each in session.scalars(select(Migration.finished_at).where(mine)) if each is not None]
        begin, *_, end = statistics.quantiles([each.timestamp() for each in ends], n=10)
        inside = Step.finished_at.between(datetime.fromtimestamp(begin, UTC), datetime.fromtimestamp(end, UTC))
        result.step_rate = (session.scalar(select(func.count()).select_from(Step).where(inside)) or 0) / (end - begin)
        result.migration_rate = len(ends) * 0.8 / (end - begin)
        hops = select(Step.ready_at, Step.started_at).where(inside, Step.state == StepState.DONE)
        result.hops = [_ms(row) for row in session.execute(hops)]


def _heartbeat_ms(context: Context) -> float:
    begun = time.monotonic()
    for _ in range(200):
        beat(context, 1, FACTS)
    return (time.monotonic() - begun) * 1000 / 200


def measure(*, sizes: Sequence[int] = SIZES, postgresql: bool = True) -> str:
    """The table of docs/performance.md. Takes ten minutes."""
    results = [_apart(vms, measured=MEASURED, postgresql=postgresql) for vms in sizes]
    return page(results, "PostgreSQL" if postgresql else "SQLite", nodes=NODES)


def measure_whole(*, vms: int = SIZES[-1]) -> str:
    """The table of a queue that is worked off to its end. Takes an hour."""
    return course(_apart(vms, measured=vms, postgresql=True))


def _apart(vms: int, *, measured: int, postgresql: bool) -> Result:
    """One size in a process of its own: Celery's app speaks to one broker."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        say = partial(print, flush=True)
        return pool.submit(run, vms, measured=measured, postgresql=postgresql, say=say).result()
