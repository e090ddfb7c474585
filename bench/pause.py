"""How long the guest stands still: the product against the floor, by turns in the same run."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.floor import Pause, Shuttle
from bench.product import product
from bench.report import machine_facts, median, spread, table
from bench.vm import DISK_BYTES, Guest

# Long enough for the guest to be past its boot and at its usual load.
_SETTLE_S = 1.0


def measure(guest: Guest, *, rounds: int) -> str:
    """Move the VM there and back in each round, first by hand, then by the product. Returns a text for the page."""
    floor: list[Pause] = []
    moved: list[dict[str, Any]] = []
    with product(guest) as stack, tempfile.TemporaryDirectory(prefix="haulier-floor-") as scratch:
        for number in range(rounds):
            folder = Path(scratch) / str(number)
            folder.mkdir()
            floor += asyncio.run(there_and_back(Shuttle(folder, guest.machine("qemu-system-x86_64"), DISK_BYTES)))
            with stack.running():
                moved += [stack.move(), stack.move()]
            print(f"{number + 1}/{rounds}: {_line(floor, moved)}", flush=True)
    return _text(floor, moved)


async def there_and_back(shuttle: Shuttle) -> list[Pause]:
    """Start the VM, move it there and back, end it."""
    async with shuttle.running():
        pauses = []
        for _ in range(2):
            await asyncio.sleep(_SETTLE_S)
            pauses.append(await shuttle.move())
        return pauses


def _line(floor: Sequence[Pause], moved: Sequence[dict[str, Any]]) -> str:
    by_hand = median([each.total for each in floor])
    by_product = median([each["downtime_ms"] for each in moved])
    return f"floor {by_hand:.1f} ms, haulier {by_product:.1f} ms, difference {by_product - by_hand:+.1f} ms (medians)"


def _text(floor: Sequence[Pause], moved: Sequence[dict[str, Any]]) -> str:
    totals = [each.total for each in floor], [each["downtime_ms"] for each in moved]
    by_hand, by_product = map(median, totals)
    difference = f"**{by_product - by_hand:+.1f}**"
    ahead = [
        ("guest stopped → mirrors finished", [each.to_pre_switchover + each.to_mirrors_finished for each in floor],
         _between(moved, None, "mirrors_finished")),
        ("→ target has loaded", [each.to_loaded for each in floor], _between(moved, "mirrors_finished", "loaded")),
        ("→ proved", [], _between(moved, "loaded", "proved")),
        ("→ committed", [], _between(moved, "proved", "committed")),
        ("→ guest runs", [each.to_resumed for each in floor], _between(moved, "committed", "resumed")),
    ]  # fmt: skip
    rows = [["pause", f"{by_hand:.1f} ({spread(totals[0])})", f"{by_product:.1f} ({spread(totals[1])})", difference]]
    rows += [[name, _figure(first), _figure(second), ""] for name, first, second in ahead]
    head = ("", "floor (middle half)", "haulier (middle half)", "difference")
    return f"{machine_facts(len(floor))}\n\n{table(head, rows)}"


def _between(moved: Sequence[dict[str, Any]], first: str | None, last: str) -> list[float]:
    marks = [each["pause"] for each in moved if last in each["pause"] and (first is None or first in each["pause"])]
    return [each[last] - (each[first] if first else 0.0) for each in marks]


def _figure(values: Sequence[float]) -> str:
    return f"{median(values):.1f}" if values else "–"
