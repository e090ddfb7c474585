"""A conversation with a real QEMU: answers, refusals, events in order, and a QEMU that ends in the middle."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path

import pytest

from haulier.definition import VmDefinition
from haulier.errors import OutcomeUnknown, StepFailed
from haulier.hypervisor import machine
from haulier.hypervisor.layout import VmPlace
from haulier.hypervisor.monitor import MonitorLost, open_monitor
from haulier.hypervisor.processes import wait_for_end
from tests.contract.real import (
    qemu,
    run,
    spec,
)

pytestmark = pytest.mark.real


def test_answers_and_refusals(place: VmPlace) -> None:
    async def work() -> None:
        async with qemu(place) as monitor:
            assert await machine.status(monitor) == "prelaunch"
            assert await machine.machine_type(monitor) == "pc-i440fx-7.2"
            with pytest.raises(StepFailed, match="qmp_refused: QEMU refused device_add: 'wibble' is not a valid"):
                await monitor.execute("device_add", driver="wibble")
            with pytest.raises(StepFailed, match="QEMU refused no-such-command: The command no-such-command"):
                await monitor.execute("no-such-command")
            assert await machine.status(monitor) == "prelaunch", "a refused command must leave the conversation whole"

    run(work())


def test_events_in_order_and_none_missed(place: VmPlace) -> None:
    """They are kept while nobody waits for them, and their stamps never go back."""

    async def work() -> None:
        async with qemu(place) as monitor:
            for _ in range(20):
                await monitor.execute("cont")
                await monitor.execute("stop")
            events = [await monitor.next_event() for _ in range(40)]
        assert [event.name for event in events] == ["RESUME", "STOP"] * 20
        assert [event.at for event in events] == sorted(event.at for event in events)

    run(work())


def test_wait_passes_by_what_is_not_wanted(place: VmPlace) -> None:
    async def work() -> None:
        async with qemu(place) as monitor:
            await machine.resume(monitor)
            await machine.resume(monitor)
            await monitor.execute("stop")
            assert (await monitor.wait_for(lambda event: event.name == "STOP")).data == {}
            assert await machine.status(monitor) == "paused"

    run(work())


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_qemu_that_ends_while_an_event_is_awaited(place: VmPlace, how: signal.Signals) -> None:
    async def work() -> None:
        async with qemu(place) as monitor:
            waiting = asyncio.ensure_future(monitor.wait_for(lambda event: event.name == "NEVER"))
            await monitor.execute("query-status")
            os.kill(place.qemu.pid() or 0, how)
            with pytest.raises(MonitorLost) as lost:
                await waiting
            assert isinstance(lost.value, OutcomeUnknown)
            with pytest.raises(MonitorLost):
                await monitor.execute("query-status")

    run(work())


def test_events_before_the_end_are_still_told(place: VmPlace) -> None:
    async def work() -> None:
        async with qemu(place) as monitor:
            await monitor.execute("cont")
            await monitor.execute("quit")
            assert (await monitor.next_event()).name == "RESUME"
            with pytest.raises(MonitorLost):
                await monitor.wait_for(lambda event: event.name == "NEVER")
        assert wait_for_end(place.qemu, seconds=10)

    run(work())


def test_nobody_behind_the_socket(place: VmPlace) -> None:
    async def work() -> None:
        async with open_monitor(place.control):
            pass

    with pytest.raises(StepFailed, match="qemu_not_there"):
        run(work())


def test_second_conversation_after_the_first(place: VmPlace) -> None:
    async def work() -> None:
        async with qemu(place) as monitor:
            await monitor.execute("cont")
        async with open_monitor(place.control) as again:
            assert await machine.status(again) == "running"

    run(work())


def test_qemu_that_does_not_start_says_why(place: VmPlace) -> None:
    """QEMU's own words, of this start and not of an earlier one."""
    place.qemu.log.write_text("words of yesterday\n")
    with pytest.raises(StepFailed, match=r"qemu_not_started: .*unsupported machine type") as caught:
        run(machine.launch(place, spec(place, definition=VmDefinition(name="vm", machine="pc-q35-99.9", cpu="qemu64"))))
    assert "yesterday" not in caught.value.problem.message
    assert place.qemu.pid() is None


def test_shut_down_and_stop(place: VmPlace) -> None:
    async def work() -> None:
        async with qemu(place):
            pass
        assert await machine.shut_down(place, grace_s=0.0)
        assert not await machine.shut_down(place, grace_s=5.0)
        assert not machine.stop_now(place)

    run(work())


def test_shut_down_is_hurried(place: VmPlace) -> None:
    """A guest that hears nothing of its power button has an hour, until somebody cannot wait any longer."""
    looks = iter((False, False, True))

    async def work() -> None:
        async with qemu(place) as monitor:
            await machine.resume(monitor)
        assert await machine.shut_down(place, grace_s=3600.0, hurried=lambda: next(looks))
        assert place.qemu.pid() is None

    run(work())
    assert next(looks, None) is None


def test_event_before_the_answer_to_the_greeting(tmp_path: Path) -> None:
    """QEMU's migration thread sends its events when it likes; that was taken for a QEMU that is not there."""
    asked: list[str] = []

    async def early(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'{"QMP": {"version": {}, "capabilities": []}}\n')
        asked.append(json.loads(await reader.read(1024))["execute"])
        if len(asked) <= 3:
            writer.write(b'{"event": "MIGRATION_PASS", "data": {}, "timestamp": {"seconds": 1, "microseconds": 0}}\n')
        writer.write(b'{"return": {}}\n')
        await reader.read()
        writer.close()

    async def work() -> None:
        path = tmp_path / "qmp.sock"
        async with await asyncio.start_unix_server(early, path), open_monitor(path):
            assert asked == ["qmp_capabilities"] * 4

    run(work())
