"""The stream of RAM and device state between two QEMUs, by QMP's migration commands.

`return-path` lets the source learn whether the target could load: without it a target that dies while loading leaves
the source `completed`. `pause-before-switchover` gives the moment in which mirrors are finished. `late-block-activate`
keeps the target from opening the disks for writing while they are still exported (QEMU 7.2: "Permission conflict on
node").
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from haulier.errors import StepFailed
from haulier.hypervisor import greeting
from haulier.hypervisor.monitor import Event, Monitor
from haulier.hypervisor.nbd import NbdServer
from haulier.hypervisor.sockets import connect_to, hand_to_qemu
from haulier.hypervisor.tls import OBJECT_ID, KeyFolder

_CONNECTION = "haulier-stream"
# 0 in the settings means "as fast as it goes"; QEMU wants a number, and its default is 128 MiB/s (1 Gbit/s).
UNLIMITED_BYTES_PER_S = 1 << 40
_OUTGOING = ("events", "return-path", "pause-before-switchover")
_INCOMING = ("events", "return-path", "late-block-activate")


@dataclass(frozen=True, slots=True)
class StreamInfo:
    """How far the stream is, RAM in bytes."""

    status: str
    transferred: int
    remaining: int
    total: int
    dirty_bytes_per_s: int
    passes: int
    error: str | None


async def _set_capabilities(monitor: Monitor, wanted: tuple[str, ...]) -> None:
    """Switch on what is wanted and off what an earlier migration may have left on."""
    names = {*_OUTGOING, *_INCOMING}
    await monitor.execute(
        "migrate-set-capabilities",
        capabilities=[{"capability": name, "state": name in wanted} for name in sorted(names)],
    )


async def ensure_key(monitor: Monitor, keys: KeyFolder, *, server: bool) -> None:
    """Give QEMU the migration's key, in place of an older one. Safe to call twice."""
    await drop_key(monitor)
    await monitor.execute_raw("object-add", keys.as_properties(server=server))


async def drop_key(monitor: Monitor) -> None:
    """Take the key away again. Safe to call twice."""
    objects = await monitor.execute("qom-list", path="/objects")
    if any(item["name"] == OBJECT_ID for item in objects):
        await monitor.execute("object-del", id=OBJECT_ID)


def _tls(key: bytes | None) -> dict[str, str]:
    return {"tls_creds": OBJECT_ID if key else "", "tls_hostname": "haulier" if key else ""}


async def receive(monitor: Monitor, listener: socket.socket, *, key: bytes | None) -> None:
    """On the target: wait for the source to come to `listener`, and let QEMU load what it sends. `key` is that of the
    greeting; without one there is no TLS either.

    QEMU gets the connection and never the listener: it must not meet a stranger (greeting.py).
    """
    await _set_capabilities(monitor, _INCOMING)
    await monitor.execute("migrate-set-parameters", **_tls(key))
    await hand_to_qemu(monitor, await greeting.accept(listener, key), _CONNECTION)
    await monitor.execute("migrate-incoming", uri=f"fd:{_CONNECTION}")


async def send(
    monitor: Monitor, *, server: NbdServer, key: bytes | None, max_bandwidth_bytes_per_s: int, downtime_limit_ms: int
) -> None:
    """On the source: begin to send RAM; the guest runs on. Raises StepFailed when the target does not prove itself."""
    await _set_capabilities(monitor, _OUTGOING)
    await monitor.execute(
        "migrate-set-parameters",
        **_tls(key),
        max_bandwidth=max_bandwidth_bytes_per_s or UNLIMITED_BYTES_PER_S,
        downtime_limit=downtime_limit_ms,
    )
    with await connect_to(server) as connection:
        if key:
            await greeting.greet(connection, key)
        await hand_to_qemu(monitor, connection, _CONNECTION)
    await monitor.execute("migrate", uri=f"fd:{_CONNECTION}")


async def set_pace(monitor: Monitor, *, bytes_per_s: int, downtime_limit_ms: int) -> None:
    """Change how fast RAM is sent and how long a pause is allowed, while the stream runs."""
    await monitor.execute("migrate-set-parameters", max_bandwidth=bytes_per_s, downtime_limit=downtime_limit_ms)


async def go_on(monitor: Monitor) -> None:
    """On the source, in the pause: send the rest and the devices."""
    await monitor.execute("migrate-continue", state="pre-switchover")


async def wait_for_status(
    monitor: Monitor, wanted: str, *, on_event: Callable[[Event], Awaitable[None]] | None = None
) -> Event:
    """Wait for the stream to reach a status; every event on the way is shown to `on_event`.

    Raises StepFailed with QEMU's words when it fails or is cancelled, MonitorLost when QEMU ends.
    """
    while True:
        event = await monitor.next_event()
        if on_event is not None:
            await on_event(event)
        if event.name != "MIGRATION":
            continue
        status = event.data["status"]
        if status == wanted:
            return event
        if status in ("failed", "cancelled", "completed"):
            info = await read_stream(monitor)
            words = info.error or "the other side closed the connection"
            raise StepFailed("stream_failed", f"the stream is {status}: {words}", "The target's log says more.")


async def cancel_stream(monitor: Monitor) -> None:
    """On the source: stop sending, and wait until QEMU has let go. Safe to call twice and when nothing is under way."""
    info = await read_stream(monitor)
    if info.status in ("setup", "active", "pre-switchover", "device", "cancelling", "wait-unplug", "postcopy-paused"):
        await monitor.execute("migrate_cancel")
        while (await read_stream(monitor)).status not in ("cancelled", "failed", "completed", "none"):
            await monitor.wait_for(lambda event: event.name == "MIGRATION")


async def read_stream(monitor: Monitor) -> StreamInfo:
    """Ask how far the stream is."""
    found: dict[str, Any] = await monitor.execute("query-migrate")
    ram = found.get("ram", {})
    return StreamInfo(
        status=found.get("status", "none"),
        transferred=ram.get("transferred", 0),
        remaining=ram.get("remaining", 0),
        total=ram.get("total", 0),
        passes=ram.get("dirty-sync-count", 0),
        dirty_bytes_per_s=ram.get("dirty-pages-rate", 0) * ram.get("page-size", 4096),
        error=found.get("error-desc"),
    )
