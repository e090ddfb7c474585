"""What a migration may have left behind on this machine's nodes: processes, files, block nodes, jobs, exports,
objects, keys, rows.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from haulier.hypervisor.monitor import Monitor, open_monitor
from models import Allocation, Database, LedgerRole, TpmLedger


def processes_of(state: Path) -> dict[int, str]:
    """The processes whose command line names this state folder, without ourselves: pid and program."""
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            try:
                words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue
            if any(str(state) in word for word in words):
                found[int(folder.name)] = Path(words[0]).name
    return found


def leftovers_of(state: Path, vms: Sequence[dict[str, Any]]) -> list[str]:
    """Everything under a state folder that no VM's row accounts for, in words; empty is how it should be."""
    return [
        *_strange_processes(state, vms),
        *_strange_files(state, vms),
        *(thing for vm in vms if vm["qmp"] for thing in asyncio.run(_in_qemu(Path(vm["qmp"])))),
        *_open_allocations(state),
    ]


def _strange_processes(state: Path, vms: Sequence[dict[str, Any]]) -> Iterator[str]:
    running = [vm for vm in vms if vm["pid"]]
    programs = list(processes_of(state).values())
    allowed = {
        "qemu-system-x86_64": len(running),
        "swtpm": sum(1 for vm in running if vm["tpm"]),
        "qemu-storage-daemon": 0,
    }
    for program, number in allowed.items():
        found = sum(1 for each in programs if each == program)
        if found != number:
            yield f"{found} processes {program} instead of {number}"


def _strange_files(state: Path, vms: Sequence[dict[str, Any]]) -> Iterator[str]:
    owned = {Path(volume["path"]) for vm in vms for volume in vm["volumes"]} | _quarantined(state)
    for folder in (state / "nodes").glob("*"):
        for place in ("images", "quarantine"):
            yield from (str(path) for path in (folder / place).rglob("*") if path.is_file() and path not in owned)
    yield from (str(path) for path in state.rglob("keys-*"))


def _quarantined(state: Path) -> set[Path]:
    """TPM states that were handed over; they are kept for a set time."""
    with _reading(state) as session:
        paths = session.scalars(select(TpmLedger.path).where(TpmLedger.role == LedgerRole.QUARANTINED))
        return {Path(path) for path in paths}


async def _in_qemu(path: Path) -> list[str]:
    async with open_monitor(path) as monitor:
        return [f"{thing} in QEMU" for thing in [name async for name in _haulier_things(monitor)]]


async def _haulier_things(monitor: Monitor) -> Any:  # noqa: ANN401 - an async generator of names
    for node in await monitor.execute("query-named-block-nodes", flat=True):
        if node["node-name"].startswith("haulier-"):
            yield f"block node {node['node-name']}"
        for bitmap in node.get("dirty-bitmaps", ()):
            yield f"bitmap {bitmap.get('name')}"
    for job in await monitor.execute("query-jobs"):
        yield f"job {job['id']}"
    for export in await monitor.execute("query-block-exports"):
        yield f"export {export['id']}"
    for item in await monitor.execute("qom-list", path="/objects"):
        if item["name"].startswith("haulier-"):
            yield f"object {item['name']}"


def _open_allocations(state: Path) -> Iterator[str]:
    with _reading(state) as session:
        rows = session.scalar(select(func.count()).select_from(Allocation).where(Allocation.freed_at.is_(None)))
    if rows:
        yield f"{rows} open allocations"


@contextmanager
def _reading(state: Path) -> Iterator[Session]:
    database = Database(f"sqlite:///{state / 'haulier.db'}")
    try:
        with database.read() as session:
            yield session
    finally:
        database.close()
