"""What every use-case is given: settings, the database, the nudges, and a way to send a message after the commit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from sqlalchemy.orm import Session

from haulier.clock import now
from haulier.services.sightings import Sightings
from haulier.settings import Settings
from haulier.signals import Signals
from models import Database, Event


@dataclass(frozen=True, slots=True)
class Message:
    """A nudge to a worker: which task, on which queue, about which row. The row says everything else."""

    task: str
    queue: str
    row: int


# The queue of the worker that belongs to no node.
CONTROL_QUEUE = "control"

Send = Callable[[Message], None]


@dataclass(slots=True)
class Unit:
    """One transaction with its outbox: `session` to work with, messages and topics that go out once it is committed."""

    session: Session
    context: Context = field(repr=False)
    messages: list[Message] = field(default_factory=list)
    topics: set[str] = field(default_factory=set)

    def send(self, *messages: Message) -> None:
        """Send these after the commit. A message that is lost is no error: the row says what is to be done."""
        self.messages.extend(messages)

    def ring(self, *topics: str) -> None:
        """Wake up those who wait for these topics, after the commit."""
        self.topics.update(topics)

    def note(
        self, kind: str, *, vm: str | None = None, node: str | None = None, migration: int | None = None, **data: object
    ) -> None:
        """Write an event in the same transaction as what it tells of. Never put a secret into `data`."""
        self.session.add(Event(at=now(), kind=kind, vm=vm, node=node, migration=migration, data=data))
        self.ring("events")


@dataclass(frozen=True, slots=True)
class Context:
    """The surroundings of a use-case; `sightings` is what this process has seen of others."""

    settings: Settings
    database: Database
    signals: Signals
    dispatch: Send
    sightings: Sightings = field(default_factory=Sightings)

    @contextmanager
    def unit(self) -> Iterator[Unit]:
        """A writing transaction; its messages are published after the commit and never before."""
        with self.database.write() as session:
            unit = Unit(session, self)
            yield unit
        for message in unit.messages:
            self.dispatch(message)
        for topic in unit.topics:
            self.signals.ring(topic)
