"""What stands for the rest of the world in the model test: a database that goes away, wake-up calls, the time.

`in_place` puts these and the fake hosts where the product's modules look for the real ones.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from types import SimpleNamespace

import pytest
import structlog
from sqlalchemy import StaticPool, create_engine
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

import haulier.clock
import models.session
from haulier.fakes.calls import CALLS
from haulier.fakes.effects import effect, look, played_by
from haulier.fakes.places import places_of
from haulier.hypervisor.swtpm import SwtpmFacts
from haulier.services.context import Context
from haulier.signals import Signals
from models import Database
from tasks import runner, surroundings
from tasks.surroundings import ThisNode
from tests.model.strands import Clock, Strand, on_effect, run

AWAY = "the database is away"
_KNOW_THE_FAKES = ("haulier.", "tasks.", "tests.unit.services.world", "tests.model.world", "tests.contract.")


class ToldDatabase(Database):
    """SQLite in memory, away when it is told to be. Nothing may be done to a host inside a transaction."""

    def __init__(self) -> None:
        one_connection = partial(create_engine, poolclass=StaticPool)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(models.session, "create_engine", one_connection)
            super().__init__("sqlite://")
        with self.engine.connect() as connection:
            self.raw: sqlite3.Connection = connection.connection.driver_connection  # type: ignore[assignment]
        self.is_away = False
        self.is_open = False

    @contextmanager
    def write(self) -> Iterator[Session]:
        effect()
        with self._session(super().write()) as session:
            yield session

    @contextmanager
    def read(self) -> Iterator[Session]:
        look()
        with self._session(super().read()) as session:
            yield session

    @contextmanager
    def _session(self, opened: AbstractContextManager[Session]) -> Iterator[Session]:
        if self.is_away and Strand.current is not None:
            raise OperationalError("BEGIN", {}, Exception(AWAY))
        assert not self.is_open, "a transaction inside another one"
        self.is_open = True
        try:
            with opened as session:
                yield session
        finally:
            self.is_open = False


class Nudges(Signals):
    """Wake-up calls inside this process; all of them are lost while `are_lost`."""

    def __init__(self) -> None:
        self.bells: list[Nudge] = []
        self.are_lost = False

    def ring(self, topic: str) -> None:
        for bell in self.bells:
            if bell.topic == topic and not self.are_lost and not bell.rung.done():
                bell.rung.set_result(None)

    def listen_async(self, topic: str) -> Nudge:  # type: ignore[override]  # a context manager of its own
        return Nudge(self, topic)


@dataclass(eq=False)
class Nudge:
    """A bell."""

    nudges: Nudges
    topic: str

    async def __aenter__(self) -> Nudge:
        self.rung = asyncio.get_running_loop().create_future()
        self.nudges.bells.append(self)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.nudges.bells.remove(self)

    async def wait(self, seconds: float) -> None:
        await asyncio.wait({self.rung}, timeout=seconds)
        self.rung = asyncio.get_running_loop().create_future()


@dataclass(eq=False)
class Process:
    """What tasks/ holds for a worker's process."""

    context: Context
    node: ThisNode | None
    at_work: set[int] = field(default_factory=set)
    """The attempts whose turn is taken."""


def _process() -> Process:
    """That in whose strand we are."""
    assert Strand.current is not None and isinstance(Strand.current.owner, Process)
    return Strand.current.owner


class _Turns(runner.Turns):
    """Those of tasks/runner.py, for every process its own."""

    @contextmanager
    def taken(self, attempt_id: int, *, patience_s: float) -> Iterator[bool]:
        at_work, strand = _process().at_work, Strand.current
        assert strand is not None
        clock, gives_up_at = strand.clock, strand.clock.time + patience_s
        if attempt_id in at_work:
            strand.pause(until=lambda: attempt_id not in at_work or clock.time >= gives_up_at)
        if attempt_id in at_work:
            yield False
            return
        at_work.add(attempt_id)
        try:
            yield True
        finally:
            at_work.discard(attempt_id)


@contextmanager
def in_place(clock: Clock) -> Iterator[None]:
    """Inside the block the product's modules know the fakes, the told time, and the worker in whose strand they run."""
    stands_for: dict[object, object] = {
        **CALLS,
        haulier.clock.now: lambda: datetime.fromtimestamp(clock.time, UTC),
        haulier.clock.steady_s: clock.read,
        time: SimpleNamespace(time=clock.read, monotonic=clock.read),
        surroundings.context: lambda: _process().context,
        surroundings.this_node: lambda: _process().node,
        surroundings.this_swtpm: lambda: SwtpmFacts("swtpm", "0.7.1", "0.9.2", frozenset()),
        runner._turns: _Turns(),
    }
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    with pytest.MonkeyPatch.context() as patch, played_by(on_effect):
        patch.setattr(asyncio, "run", run)
        for module, name, stand_in in places_of(stands_for, _KNOW_THE_FAKES):
            patch.setattr(module, name, stand_in)
        yield
    structlog.reset_defaults()
