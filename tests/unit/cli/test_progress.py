"""What a person sees of a migration that goes on."""

from __future__ import annotations

from typing import Any

import pytest
from rich.console import Console

from haulier.cli.progress import draw

PHASE: dict[str, Any] = {
    "name": "reserve",
    "state": "running",
    "side": "target",
    "node": "beta",
    "seconds": 2.0,
    "progress": {},
}
PHASE |= {"share_bytes_per_s": None}
DOCUMENT: dict[str, Any] = {
    "id": 7, "vm": "web1", "source": "alpha", "target": "beta", "state": "running", "phases": [PHASE],
    "waiting_for": None,
    "volumes": [{"device": "scsi0", "method": "delta", "bytes": 0, "bytes_total": 1 << 20}],
}  # fmt: skip


def drawn(progress: dict[str, Any], *, state: str = "running") -> str:
    console = Console(width=100)
    with console.capture() as captured:
        console.print(draw({**DOCUMENT, "phases": [{**PHASE, "state": state, "progress": progress}]}))
    return captured.get()


def test_disk_that_is_compared_has_a_bar_of_its_own() -> None:
    shown = drawn({"scsi0.compared": {"bytes": 3 << 20, "bytes_total": 4 << 20}})
    assert "compare" in shown
    assert "3.0 MiB of 4.0 MiB" in shown


@pytest.mark.parametrize("state", ["done", "undoing"])
def test_it_goes_with_its_phase(state: str) -> None:
    assert "compare" not in drawn({"scsi0.compared": {"bytes": 3 << 20, "bytes_total": 4 << 20}}, state=state)


def test_other_progress_is_none_of_it() -> None:
    assert "compare" not in drawn(
        {"scsi0.digests": {"bytes": 1, "bytes_total": 2}, "ram": {"bytes": 1, "bytes_total": 2}}
    )


def test_what_a_phase_may_use_is_told() -> None:
    console = Console(width=100)
    with console.capture() as captured:
        console.print(draw({**DOCUMENT, "phases": [{**PHASE, "share_bytes_per_s": 5 << 20}]}))
    assert "2.00 s, at most 5.0 MiB/s" in captured.get()
