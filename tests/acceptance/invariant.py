"""What must hold after every scenario: exactly one side runs each guest, nothing is lost, nothing is left over."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from tests.acceptance.guest import Guest
from tests.acceptance.processes import ask
from tests.acceptance.stack import Stack
from tests.acceptance.waiting import wait_until

OURS = "haulier-"
# A worker looks at its guests every two seconds.
FOLLOWS_S = 10.0
_CLOSED_STEPS = ("waiting", "done", "failed", "undone")
_CLOSED_MIGRATIONS = ("done", "undone", "refused", "cancelled")


def assert_all_is_well(stack: Stack, *guests: Guest) -> None:
    """Look at rows, processes, files, every running QEMU, and what the guests themselves say."""
    problems = [*_rows(stack), *_processes(stack), *_files(stack), *_monitors(stack)]
    for guest in guests:
        problems += _losses(guest)
    assert not problems, "\n".join(["this must not be:", *problems])


def _rows(stack: Stack) -> Iterator[str]:
    yield from (f"open allocation: {row}" for row in stack.table("allocation") if row["freed_at"] is None)
    yield from (f"open step: {row}" for row in stack.table("step") if row["state"] not in _CLOSED_STEPS)
    yield from (f"open migration: {row}" for row in stack.table("migration") if row["state"] not in _CLOSED_MIGRATIONS)
    yield from (f"open operation: {row}" for row in stack.table("operation") if row["state"] in ("ready", "running"))
    for vm in stack.table("vm"):
        active = stack.table("tpm_ledger", vm_id=vm["id"], role="active")
        tpm = [row for row in stack.table("volume", vm_id=vm["id"]) if row["role"] == "tpmstate"]
        if len(active) != (1 if tpm and vm["pinned"] else 0):
            yield f"{vm['name']}: {len(active)} active rows in the ledger"
        yield from _ledger(stack, vm, active)
    replicas = {str(path) for path in _replicas(stack)}
    for row in stack.table("tpm_ledger", role="reserved"):
        if row["path"] not in replicas:
            yield f"reserved for nobody: {row}"
    yield from _generations(stack)


def _replicas(stack: Stack) -> Iterator[Path]:
    """The files of all replicas."""
    storages = {row["id"]: Path(row["path"]) for row in stack.table("storage")}
    for row in stack.table("replica"):
        yield from (storages[row["storage_id"]] / name for name in (row["name"], row["overlay"]) if name)


def _generations(stack: Stack) -> Iterator[str]:
    """A replica is one generation, of all volumes, with nothing left to be merged."""
    for replication in stack.table("replication"):
        rows = stack.table("replica", replication_id=replication["id"])
        if rows and {row["generation"] for row in rows} != {replication["generation"]}:
            yield f"more than one generation: {replication} {rows}"
        yield from (f"not merged: {row}" for row in rows if row["overlay"])


def _ledger(stack: Stack, vm: dict[str, object], active: list[dict[str, object]]) -> Iterator[str]:
    storages = {row["id"]: Path(row["path"]) for row in stack.table("storage")}
    for row in active:
        (volume,) = stack.table("volume", vm_id=vm["id"], role="tpmstate")
        path = storages[volume["storage_id"]] / volume["name"]
        if (row["node_id"], row["path"], row["epoch"]) != (vm["node_id"], str(path), vm["epoch"]):
            yield f"{vm['name']}: the ledger's active row is of another place or epoch: {row}"


def _processes(stack: Stack) -> Iterator[str]:
    """One QEMU, and one swtpm if there is a TPM, on the VM's own node; nothing anywhere else."""
    expected = set()
    nodes = {row["id"]: row["name"] for row in stack.table("node")}
    for vm in stack.table("vm"):
        node, runs = nodes[vm["node_id"]], vm["state"] in ("running", "paused")
        has_tpm = bool(stack.table("volume", vm_id=vm["id"], role="tpmstate"))
        for program, wanted in (("qemu-system-x86_64", runs), ("swtpm", runs and has_tpm)):
            found = stack.processes(program, node=node, vm=vm["name"])
            expected |= {process.pid for process in found}
            if len(found) != wanted:
                yield f"{vm['name']} is {vm['state']} on {node} with {len(found)} {program}"
            if program != "swtpm" and runs and [process.pid for process in found] != [vm["pid"]]:
                yield f"{vm['name']}: its row speaks of pid {vm['pid']}, there is {[str(each) for each in found]}"
    yield from (f"left running: {process}" for process in stack.processes() if process.pid not in expected)


def _files(stack: Stack) -> Iterator[str]:
    storages = {row["id"]: row for row in stack.table("storage")}
    owned = set()
    for row in (*stack.table("volume"), *stack.table("replica")):
        path = Path(storages[row["storage_id"]]["path"]) / row["name"]
        owned.add(path)
        if not path.exists():
            yield f"missing: {path}"
    ledger = stack.table("tpm_ledger")
    quarantined = {Path(row["path"]) for row in ledger if row["role"] == "quarantined"}
    yield from (f"missing from the quarantine: {path}" for path in quarantined if not path.exists())
    for node in stack.nodes:
        folder = stack.state / "nodes" / node
        there = {path for part in ("images", "quarantine") for path in (folder / part).rglob("*") if path.is_file()}
        yield from (f"left over: {path}; the ledger has {ledger}" for path in there - owned - quarantined)
    yield from (f"left over digests: {path}" for path in (stack.state / "nodes").glob("*/vms/*/*.digests"))
    yield from (f"left over key: {path}" for path in (stack.state / "run").glob("**/keys-*"))
    running = {(row["node_id"], row["name"]) for row in stack.table("vm") if row["state"] in ("running", "paused")}
    numbers = {row["name"]: row["id"] for row in stack.table("node")}
    for folder in (stack.state / "run").glob("*/*"):
        if (numbers[folder.parent.name], folder.name) not in running:
            yield f"left over: {folder} with {sorted(path.name for path in folder.iterdir())}"


def _monitors(stack: Stack) -> Iterator[str]:
    """Every running QEMU does what its VM's row says, and holds nothing of ours."""
    nodes = {row["id"]: row["name"] for row in stack.table("node")}
    for vm in stack.table("vm"):
        if vm["state"] not in ("running", "paused"):
            continue
        socket = stack.qmp(nodes[vm["node_id"]], vm["name"])
        yield from _states(stack, vm["name"], socket)
        if vm["qmp"] != str(socket):
            yield f"{vm['name']}: its row speaks of {vm['qmp']}"
        names = [node["node-name"] for node in ask(socket, "query-named-block-nodes", flat=True)]
        names += [item["name"] for item in ask(socket, "qom-list", path="/objects")]
        yield from (f"{vm['name']}: left in QEMU: {name}" for name in names if name.startswith(OURS))
        for command in ("query-block-exports", "query-block-jobs"):
            yield from (f"{vm['name']}: left in QEMU: {item}" for item in ask(socket, command))


def _states(stack: Stack, vm: str, socket: Path) -> Iterator[str]:
    """Row and QEMU agree; the row of a guest that was paused or continued by hand follows at the next heartbeat."""

    def look() -> tuple[str, str]:
        (row,) = stack.table("vm", name=vm)
        return str(row["state"]), str(ask(socket, "query-status")["status"])

    with suppress(TimeoutError):
        wait_until("row and QEMU agree", lambda: len(set(look())) == 1, deadline_s=FOLLOWS_S, every_s=0.2)
        return
    yield f"{vm} is {' in its row, '.join(look())} in QEMU"


def _losses(guest: Guest) -> Iterator[str]:
    """What the guest lost by its own account, and what its disks lack. The guest stands still meanwhile."""
    row = guest.row()
    runs = row["state"] == "running" and guest.ask("query-status")["status"] == "running"
    if runs:
        guest.ask("stop")
    try:
        verdict = guest.verdict()
        borne = ": tpm_err=" if guest.tpm_may_fail else None
        yield from (f"{guest.name}: {problem}" for problem in verdict.problems if not borne or borne not in problem)
        for device, volume in guest.volume_verdicts().items():
            yield from (f"{guest.name}: {device}: {problem}" for problem in volume.problems)
            if volume.sequence < verdict.disk[volume.index]:
                yield f"{guest.name}: {device} ends at {volume.sequence}, the guest wrote {verdict.disk[volume.index]}"
    finally:
        if runs:
            guest.ask("cont")
