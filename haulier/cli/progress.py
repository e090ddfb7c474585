"""A migration as it goes on: its phases, and a bar per volume and for the RAM. Drawn on standard error."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from haulier.cli.output import Mode, rate, size, stderr
from haulier.services.context import Context

_SIGNS = {
    "waiting": ("·", "dim"),
    "ready": ("·", "dim"),
    "running": ("▶", "bold cyan"),
    "done": ("✔", "green"),
    "failed": ("✘", "bold red"),
    "undo_ready": ("↶", "yellow"),
    "undoing": ("↶", "yellow"),
    "undone": ("↶", "yellow"),
}


def follow(
    around: Context,
    event: str,
    document: dict[str, Any],
    *,
    goes_on: Callable[[dict[str, Any]], bool],
    look: Callable[[], dict[str, Any]],
    tell: Callable[[dict[str, Any]], str],
) -> dict[str, Any]:
    """What something has come to when it goes on no more. People are told each time that its counts are others."""
    told = None
    with around.signals.listen(event) as bell:
        while goes_on(document):
            if document["counts"] != told and not Mode.json:
                stderr.print(tell(document), soft_wrap=True, markup=False)
            told = document["counts"]
            bell.wait(0.5)
            document = look()
    return document


@contextlib.contextmanager
def live_migration(*, wanted: bool = True) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Give a function that is shown each new look at the migration.

    On a terminal it redraws, elsewhere it tells each change.
    """
    if Mode.json or not wanted:
        yield lambda _document: None
    elif stderr.is_terminal:
        with Live(console=stderr, refresh_per_second=8) as live:
            yield lambda document: live.update(draw(document))
    else:
        seen: set[tuple[str, str, str]] = set()
        yield lambda document: _tell(document, seen)


def _tell(document: dict[str, Any], seen: set[tuple[str, str, str]]) -> None:
    hold = document["waiting_for"]
    if hold and ("queue", hold["limit"], hold["text"]) not in seen:
        seen.add(("queue", hold["limit"], hold["text"]))
        stderr.print(f"  waits: {hold['text']}")
    for phase in document["phases"]:
        key = (phase["name"], phase["side"], phase["state"])
        if phase["state"] not in ("waiting", "ready", "running", "undo_ready", "undoing") and key not in seen:
            seen.add(key)
            took = f"{phase['seconds']:6.2f} s" if phase["seconds"] is not None else ""
            where = phase["node"] or "control"
            stderr.print(f"  {phase['name']:16}{where:10}{phase['state']:8}{took}")


def share(phase: dict[str, Any]) -> str:
    """What a phase may use of the bandwidth, if that is limited."""
    bytes_per_s = phase["share_bytes_per_s"]
    return "" if bytes_per_s is None else f", at most {rate(bytes_per_s)}"


def draw(document: dict[str, Any]) -> RenderableType:
    """The whole migration as one picture."""
    phases = Table.grid(padding=(0, 1))
    for phase in document["phases"]:
        sign, style = _SIGNS[phase["state"]]
        took = f"{phase['seconds']:.2f} s" if phase["seconds"] is not None and phase["state"] != "waiting" else ""
        where = Text(phase["node"] or "control", "dim")
        phases.add_row(Text(sign, style), Text(phase["name"], style), where, Text(f"{took}{share(phase)}", "dim"))
    volumes = Table.grid(padding=(0, 1))
    for volume in document["volumes"]:
        bar = _bar(volume["device"], volume["method"], volume["bytes"], volume["bytes_total"])
        volumes.add_row(*bar)
    for name, done in _compared(document["phases"]):
        volumes.add_row(*_bar(name, "compare", done["bytes"], done["bytes_total"]))
    ram = next((phase["progress"].get("ram") for phase in document["phases"] if phase["name"] == "move_memory"), None)
    if ram:
        volumes.add_row(*_bar("RAM", "stream", ram["bytes"], ram["bytes_total"]))
    head = Text.assemble(
        ("migration ", "dim"), (f"{document['id']}", "bold"), f"  {document['vm']}  ",
        (f"{document['source']} → {document['target']}", "bold"), f"  {document['state']}",
    )  # fmt: skip
    hold = document["waiting_for"]
    waits = [Text(f"waits: {hold['text']}", "yellow")] if hold else []
    return Group(head, *waits, phases, volumes)


def _compared(phases: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, int]]]:
    """The disks that are being read to be compared with their replicas."""
    for phase in phases:
        if phase["state"] == "running":
            for key, done in phase["progress"].items():
                device, _, what = key.partition(".")
                if what == "compared":
                    yield device, done


def _bar(name: str, method: str, done: int, total: int) -> tuple[RenderableType, ...]:
    bar = ProgressBar(total=max(total, 1), completed=done, width=24)
    return Text(f"  {name}"), Text(method, "dim"), bar, Text(f"{size(done)} of {size(total)}", "dim")
