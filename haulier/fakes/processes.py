"""What runs on fake hosts and outlives whoever started it, and the connections between them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from haulier.fakes.bell import FakeBell
from haulier.fakes.files import STRANGER, FakePath, FakeVolume


@dataclass(eq=False, slots=True)
class FakeProcess:
    """Something that runs until it is ended. It is found by its pid file, whose path is its token."""

    pid: int
    token: str
    alive: bool = field(default=True, init=False)

    @property
    def host(self) -> str:
        return FakePath(self.token).parts[1]

    @property
    def volumes(self) -> tuple[FakeVolume, ...]:
        """What it has open."""
        return ()

    def kill(self) -> None:
        """End it, as SIGKILL does: its pid file stays."""
        self.alive = False


@dataclass(eq=False, slots=True)
class FakeSwtpm(FakeProcess):
    """The TPM's process. A blank volume becomes a new TPM, and nobody is told."""

    volume: FakeVolume

    def __post_init__(self) -> None:
        if self.volume.identity is None:
            self.volume.identity = STRANGER

    @property
    def volumes(self) -> tuple[FakeVolume, ...]:
        return (self.volume,)


@dataclass(eq=False, slots=True)
class FakeCarrier(FakeProcess):
    """The storage daemon that receives volumes which no QEMU has open."""

    port: int
    exports: dict[str, FakeVolume]

    @property
    def volumes(self) -> tuple[FakeVolume, ...]:
        return tuple(self.exports.values())


@dataclass(eq=False, slots=True)
class FakeConnection:
    """A TCP connection from the source to the target. Whoever has it has one end; who closes it, closes both."""

    whole: bool = True
    taken: bool = False
    handed: bool = False
    changed: FakeBell = field(default_factory=FakeBell)

    def take(self) -> FakeConnection:
        """The other side accepts it."""
        self.taken = True
        self.changed.ring()
        return self

    def cut(self) -> None:
        """It breaks, for both sides."""
        self.whole = False
        self.changed.ring()

    def close(self) -> None:
        if not self.handed:
            self.cut()

    def __enter__(self) -> FakeConnection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(eq=False, slots=True)
class FakeListener:
    """A listening socket, of the process that it was handed to, or else of a worker: then it ends with `loop`."""

    port: int
    loop: asyncio.AbstractEventLoop | None = None
    owner: FakeProcess | None = None
    closed: bool = False
    waiting: list[FakeConnection] = field(default_factory=list)
    arrived: FakeBell = field(default_factory=FakeBell)

    @property
    def is_open(self) -> bool:
        held = self.owner.alive if self.owner is not None else self.loop is not None and not self.loop.is_closed()
        return held and not self.closed

    def connect(self) -> FakeConnection:
        made = FakeConnection()
        self.waiting.append(made)
        self.arrived.ring()
        return made

    async def accept(self) -> FakeConnection:
        """The next that comes and is still there."""
        await self.arrived.until(lambda: self.waiting)
        return self.waiting.pop(0).take()

    def __enter__(self) -> FakeListener:
        return self

    def __exit__(self, *_: object) -> None:
        if self.owner is None:
            self.closed, self.loop = True, None
            for connection in self.waiting:
                connection.close()
