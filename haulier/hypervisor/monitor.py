"""A conversation with one QEMU over QMP, by the `qemu.qmp` library: commands, and events that are never missed.

What an error means is said by its type: QEMU said no (`StepFailed`, nothing ran), or the answer never came
(`OutcomeUnknown`: the command may have run; ask again what is true before doing anything).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qemu.qmp import EventListener, ExecuteError, QMPClient, QMPError
from qemu.qmp.protocol import Runstate
from qemu.qmp.qmp_client import NegotiationError
from tenacity import retry, retry_if_exception

from haulier.errors import OutcomeUnknown, StepFailed

CONNECT_S = 20.0
ANSWER_S = 30.0


@dataclass(frozen=True, slots=True)
class Event:
    """One QMP event; `at` in seconds since 1970 by the clock of QEMU's host."""

    name: str
    data: dict[str, Any]
    at: float


class MonitorLost(OutcomeUnknown):
    """QEMU closed the conversation: it has ended, or was killed."""

    def __init__(self, path: Path) -> None:
        super().__init__("qemu_gone", f"QEMU behind {path} is gone", "See its log; haulier vm show NAME")


class Monitor:
    """An open conversation. Made by `open_monitor`."""

    def __init__(self, client: QMPClient, path: Path) -> None:
        self._client = client
        self._path = path
        self._listener = EventListener()
        client.register_listener(self._listener)

    async def execute(self, command: str, /, **arguments: Any) -> Any:  # noqa: ANN401 - QMP answers have every shape
        """Run one command and return its answer. Dashes in argument names are written as underscores.

        Raises StepFailed with QEMU's own words if it refused, OutcomeUnknown if the answer never came.
        """
        call = {name.replace("_", "-"): value for name, value in arguments.items() if value is not None}
        return await self.execute_raw(command, call)

    async def execute_raw(self, command: str, arguments: dict[str, Any], *, urgent: bool = False) -> Any:  # noqa: ANN401
        """The same with the arguments as QMP spells them (block node options have underscores of their own).

        An `urgent` one is run out of band: QEMU obeys while its main loop stands still. Few commands can be.
        """
        try:
            async with asyncio.timeout(ANSWER_S):
                return await self._client.execute(command, arguments or None, oob=urgent)
        except ExecuteError as error:
            raise StepFailed(
                "qmp_refused", f"QEMU refused {command}: {error.error.error.desc}", "QEMU's own words; see its log."
            ) from error
        except TimeoutError as error:
            raise OutcomeUnknown("qmp_silent", f"QEMU did not answer {command} in {ANSWER_S:.0f} s") from error
        except (QMPError, EOFError, OSError, asyncio.CancelledError) as error:
            if isinstance(error, asyncio.CancelledError) and self._cancelled_from_outside():
                raise
            raise MonitorLost(self._path) from error

    def _cancelled_from_outside(self) -> bool:
        """Whether our own task was told to end; the library cancels what waits for a QEMU that is gone, too."""
        task = asyncio.current_task()
        return self._client.runstate is Runstate.RUNNING or (task is not None and task.cancelling() > 0)

    async def pass_fd(self, fd: int, name: str) -> None:
        """Hand an open file to QEMU under `name`; ours stays open. Raises as `execute` does."""
        try:
            self._client.send_fd_scm(fd)
        except (QMPError, OSError) as error:
            raise MonitorLost(self._path) from error
        await self.execute("getfd", fdname=name)

    async def next_event(self) -> Event:
        """The next event in QEMU's order, kept since the conversation began. Raises MonitorLost when QEMU ends."""
        getting = asyncio.ensure_future(self._listener.get())
        try:
            while not getting.done():
                # The library does not wake a listener when the peer goes, so its state is watched beside it.
                moving = asyncio.ensure_future(self._client.runstate_changed())
                if self._listener.empty() and self._client.runstate is not Runstate.RUNNING:
                    moving.cancel()
                    raise MonitorLost(self._path)
                await asyncio.wait({getting, moving}, return_when=asyncio.FIRST_COMPLETED)
                moving.cancel()
        finally:
            getting.cancel()
        message: dict[str, Any] = dict(getting.result())
        stamp = message["timestamp"]
        return Event(
            name=str(message["event"]),
            data=dict(message.get("data") or {}),
            at=stamp["seconds"] + stamp["microseconds"] / 1e6,
        )

    async def wait_for(self, wanted: Callable[[Event], bool]) -> Event:
        """Read events until one is wanted; the ones before it are gone."""
        while True:
            event = await self.next_event()
            if wanted(event):
                return event


@asynccontextmanager
async def open_monitor(path: Path) -> AsyncIterator[Monitor]:
    """Talk to the QEMU that listens on `path`; the conversation ends with the block, QEMU goes on.

    Raises StepFailed when nobody answers there.
    """
    try:
        async with asyncio.timeout(CONNECT_S):
            client, monitor = await _connect(path)
    except (QMPError, OSError, EOFError, TimeoutError) as error:
        raise StepFailed(
            "qemu_not_there", f"no QEMU answers on {path}: {error or type(error).__name__}", "Does the VM run?"
        ) from error
    try:
        yield monitor
    finally:
        # A QEMU that ended before us is no news to whoever ended it.
        with suppress(QMPError, EOFError, OSError):
            await client.disconnect()


def _event_came_first(error: BaseException) -> bool:
    """While RAM moves, QEMU may send an event before its answer to qmp_capabilities; qemu.qmp 0.0.6 gives up then."""
    negotiation = error.__cause__
    return isinstance(negotiation, NegotiationError) and isinstance(negotiation.__cause__, AssertionError)


@retry(retry=retry_if_exception(_event_came_first), reraise=True)
async def _connect(path: Path) -> tuple[QMPClient, Monitor]:
    client = QMPClient(path.name)
    monitor = Monitor(client, path)
    try:
        await client.connect(str(path))
    except BaseException:
        with suppress(QMPError, OSError, EOFError):
            await client.disconnect()
        raise
    return client, monitor
