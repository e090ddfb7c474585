"""The page docs/reliability.md: what the fault matrix has shown. `make matrix` plays it and calls this.

`python -m scripts.reliability RESULTS` takes the lines that the cells wrote and keeps them in docs/reliability.json, of
which scripts/docs.py makes the tables.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from haulier.hypervisor.facts import qemu_version
from haulier.hypervisor.swtpm import swtpm_facts
from scripts.tables import table
from tests.matrix.cells import POINTS
from tests.matrix.faults import FAULTS

KEPT = Path(__file__).parent.parent / "docs" / "reliability.json"
# How each end of a migration is drawn.
_SIGNS = {"done": "→", "undone": "↩", "refused": "∅", "cancelled": "↩"}


def cells() -> str:
    """A row for each fault, a column for each point."""
    found = {(cell["fault"], cell["point"]): cell for cell in _kept()["cells"]}
    rows = []
    for fault in FAULTS:
        rows.append((fault.does, *(_drawn(found.get((fault.name, point))) for point in POINTS)))
    return table(("", *(f"`{point}`" for point in POINTS)), rows)


def _drawn(cell: Mapping[str, Any] | None) -> str:
    if cell is None:
        return "**failed**"
    sign = _SIGNS[cell["migration"]] + ("†" if cell["vm"] == "lost" else "")
    return f"{sign} {cell['seconds']:.1f}"


def summary() -> str:
    """For each fault the slowest cell and the longest pause, and the same for all of them."""
    kept = _kept()["cells"]
    rows = [(fault.does, *_worst([cell for cell in kept if cell["fault"] == fault.name])) for fault in FAULTS]
    rows.append(("**all**", *_worst(kept)))
    return table(("fault", "right", "slowest to heal", "there", "longest pause of the guest", "there"), rows)


def _worst(found: list[dict[str, Any]]) -> tuple[str, str, str, str, str]:
    if not found:
        return ("0", "–", "–", "–", "–")
    slowest = max(found, key=lambda cell: float(cell["seconds"]))
    paused = max(found, key=lambda cell: float(cell["pause_ms"] or 0))
    return (
        str(len(found)),
        f"{slowest['seconds']:.1f} s",
        f"`{slowest['point']}`",
        f"{(paused['pause_ms'] or 0) / 1000:.1f} s",
        f"`{paused['point']}`",
    )


def origin() -> str:
    """When, and with what, the matrix was played."""
    kept = _kept()
    wanted = len(FAULTS) * len(POINTS)
    right = "all of them right" if len(kept["cells"]) == wanted else f"**{wanted - len(kept['cells'])} not right**"
    return f"{wanted} cells, {right}; played on {kept['date']} with QEMU {kept['qemu']} and swtpm {kept['swtpm']}.\n"


def _kept() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(KEPT.read_text())
    return found


def keep(lines: Iterable[str]) -> None:
    """Keep what the cells wrote; the newest of a cell that was played twice."""
    order = {(fault.name, point): n for n, (fault, point) in enumerate((f, p) for f in FAULTS for p in POINTS)}
    newest = {(cell["fault"], cell["point"]): cell for cell in map(json.loads, lines)}
    found = [newest[key] for key in sorted(newest, key=order.__getitem__)]
    versions = {"qemu": qemu_version("qemu-system-x86_64"), "swtpm": swtpm_facts("swtpm").version}
    document = {"date": datetime.now(UTC).date().isoformat(), **versions, "cells": found}
    KEPT.write_text(json.dumps(document, indent=1) + "\n")


def main() -> None:
    """Keep a run's results. A cell without one has failed, and is shown so."""
    parser = argparse.ArgumentParser(description="Keeps what the fault matrix has shown.")
    parser.add_argument("results", type=Path, help="the lines that the cells wrote")
    keep(parser.parse_args().results.read_text().splitlines())


if __name__ == "__main__":
    main()
