"""What each cure of the pause is worth: the floor with and without it, also for a guest that is busier."""

from __future__ import annotations

import asyncio
import tempfile
from dataclasses import replace
from pathlib import Path

from bench.floor import Knobs, Pause, Shuttle
from bench.pause import there_and_back
from bench.report import machine_facts, median, spread, table
from bench.vm import DISK_BYTES, USUAL, Guest

_FLOOD = Knobs(max_bandwidth_bytes_per_s=1 << 40, downtime_limit_ms=300)
_PLAIN = replace(_FLOOD, nbd_nodelay=False, stream_nodelay=False)
_BUSY = f"{USUAL} dirty_mib=32 dirty_mib_s=40"
_QUIET = f"{USUAL} dirty_mib_s=0 disk_every=0 tpm_every=0"

VARIANTS: tuple[tuple[str, Knobs, str], ...] = (
    ("by hand, with QEMU's own sockets, at full speed", _PLAIN, USUAL),
    ("no Nagle's delay for the mirror's answers", replace(_PLAIN, nbd_nodelay=True), USUAL),
    ("nor for the stream", _FLOOD, USUAL),
    ("and the stream paced: the floor", Knobs(), USUAL),
    ("the floor, each write waits for both sides", Knobs(blocking_writes=True), USUAL),
    ("the floor without a mirror", Knobs(mirror=False), USUAL),
    ("the floor, the guest writes nothing", Knobs(), _QUIET),
    ("the guest dirties 40 MiB/s: at full speed", _FLOOD, _BUSY),
    ("the guest dirties 40 MiB/s: paced", Knobs(), _BUSY),
)


def measure(guest: Guest, *, rounds: int) -> str:
    """Move the VM there and back with each variant in each round. Returns a text for the page."""
    found: dict[str, list[Pause]] = {name: [] for name, _, _ in VARIANTS}
    for number in range(rounds):
        for name, knobs, options in VARIANTS:
            with tempfile.TemporaryDirectory(prefix="haulier-cures-") as scratch:
                machine = replace(guest, options=options).machine("qemu-system-x86_64")
                found[name] += asyncio.run(there_and_back(Shuttle(Path(scratch), machine, DISK_BYTES, knobs)))
        print(f"{number + 1}/{rounds}", flush=True)
    rows = [[name, *_cells(pauses)] for name, pauses in found.items()]
    head = ("", "pause (middle half)", "→ disks quiet", "→ mirrors finished", "→ loaded", "→ runs")
    return f"{machine_facts(rounds * 2)}\n\n{table(head, rows)}"


def _cells(pauses: list[Pause]) -> list[str]:
    totals = [pause.total for pause in pauses]
    parts = [
        [pause.to_pre_switchover for pause in pauses],
        [pause.to_mirrors_finished for pause in pauses],
        [pause.to_loaded for pause in pauses],
        [pause.to_resumed for pause in pauses],
    ]
    return [f"{median(totals):.1f} ({spread(totals)})", *(f"{median(part):.1f}" for part in parts)]
