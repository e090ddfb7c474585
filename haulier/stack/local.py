"""`up` and `down`: the local stack begins and ends here. Both may be called twice."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from haulier.clock import steady_s
from haulier.errors import HaulierError, Refused, StepFailed
from haulier.hypervisor.carrier import stop_carrier
from haulier.hypervisor.layout import NodeLayout, short_name
from haulier.hypervisor.machine import stop_now
from haulier.hypervisor.processes import last_words
from haulier.hypervisor.reader import stop_reader
from haulier.hypervisor.swtpm import stop_swtpm
from haulier.services.context import Context
from haulier.services.migrations import await_migration, cancel_migration, is_over, open_migrations
from haulier.services.nodes import list_nodes
from haulier.services.vm_rows import record_ended
from haulier.services.vms import list_vms, stop_vm
from haulier.settings import NAME, Settings
from haulier.stack.supervisor import find_supervisor, run_programs, stop_programs
from haulier.stack.web import listen, url_file, web_url
from migrations.chain import upgrade
from tasks.surroundings import control_answers

# Some interpreters begin at once, on a host that may be busy with its guests.
_READY_S = 180.0
_FIRST_NODES = ("alpha", "beta")
# A migration that nobody undoes in this time has lost a worker; its processes are ended all the same.
_UNDO_S = 30.0


def prepare(settings: Settings) -> None:
    """Make the state folder, the cluster secret and the database, where they are missing. Safe to call twice."""
    for folder in (settings.state, settings.sockets, settings.state / "logs", settings.state / "broker"):
        _make(folder)
    if settings.sockets.stat().st_uid != os.getuid():
        raise Refused("sockets_taken", f"{settings.sockets} belongs to somebody else", "Set HAULIER_STATE.")
    secret = settings.secret_file or settings.state / "secret"
    if not secret.exists():
        handle = os.open(secret, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w") as file:
            file.write(secrets.token_hex(32) + "\n")
    upgrade(settings.database)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise Refused("no_state_folder", f"{folder} cannot be made: {error.strerror}", "Set HAULIER_STATE.") from error


def up(context: Context, nodes: Sequence[str]) -> dict[str, Any]:
    """Start the stack with these nodes and return when all of it answers. What runs already is left as it is.

    Raises Refused for bad names, StepFailed with the end of a log when a part does not come up.
    """
    settings = context.settings
    if not nodes or len(set(nodes)) != len(nodes):
        words = "a node is named twice" if nodes else "no node is named"
        raise Refused("bad_nodes", words, "haulier up --nodes alpha,beta")
    for node in nodes:
        if not NAME.fullmatch(node):
            hint = "At most 63 letters, digits, dots, dashes and underscores."
            raise Refused("bad_name", f"{node!r} is no name for a node", hint)
    is_down = find_supervisor(settings) is None
    if is_down:
        # What cannot be listened on is said at once, and not by a program that begins again and again.
        listen(settings).close()
    prepare(settings)
    if is_down:
        # Of the stack before, and perhaps somebody else's by now.
        url_file(settings).unlink(missing_ok=True)
    found = _left_open(context) if is_down else []
    names = sorted({*nodes, *_nodes_of(settings)})
    (settings.state / "nodes.list").write_text("\n".join(names) + "\n")
    run_programs(settings, names)
    url = _wait_until_ready(context, names)
    return {"web": url, "nodes": names, "open": found}


def last_nodes(settings: Settings) -> list[str]:
    """The nodes that the stack had the last time, and at first those of the examples."""
    try:
        return (settings.state / "nodes.list").read_text().split() or list(_FIRST_NODES)
    except FileNotFoundError:
        return list(_FIRST_NODES)


def _nodes_of(settings: Settings) -> list[str]:
    """The nodes that the running stack has; a stack that is down begins anew."""
    if find_supervisor(settings) is None:
        return []
    return (settings.state / "nodes.list").read_text().split()


def _wait_until_ready(context: Context, names: Sequence[str]) -> str:
    """Wait for a heartbeat of each node, a control worker that answers and the API. Returns the URL of that."""
    deadline = steady_s() + _READY_S
    with context.signals.listen("nodes") as bell:
        while True:
            alive = {node["name"] for node in list_nodes(context) if node["worker"] == "alive"}
            missing = [f"node-{name}" for name in names if name not in alive]
            if not missing and not control_answers():
                missing = ["control"]
            if not missing and (url := web_url(context.settings)) is None:
                missing = ["web"]
            if not missing:
                return str(url)
            if steady_s() > deadline:
                log = context.settings.state / "logs" / f"{missing[0]}.log"
                words = last_words(log) or "its log is empty"
                raise StepFailed("stack_not_ready", f"{missing[0]} does not answer: {words}", f"See {log}.")
            bell.wait(0.2)


def down(context: Context, *, vms: bool) -> dict[str, Any]:
    """Stop the stack, VMs included with `vms`; without it they run on and are found again by the next `up`.

    With `vms` open migrations are undone first, so that each VM is stopped by the node that it is on.
    """
    settings = context.settings
    stopped: list[str] = []
    if not _has_database(settings):
        vms = False
    supervisor = find_supervisor(settings)
    if vms:
        # Without the database the processes are ended all the same, below.
        with suppress(SQLAlchemyError):
            if supervisor is not None:
                _undo_migrations(context)
            stopped = _stop_vms(context)
    if supervisor is not None:
        stop_programs(settings, supervisor)
    if vms:
        ended = set(_end_processes(settings))
        with suppress(SQLAlchemyError):
            names = [vm["name"] for vm in list_vms(context) if _folders_of(vm) in ended]
            stopped += record_ended(context, names)
    return {"stopped": supervisor is not None, "vms": stopped, "open": _left_open(context)}


def _left_open(context: Context) -> list[int]:
    """The migrations that nobody works at as long as the stack is down."""
    with suppress(SQLAlchemyError):
        return open_migrations(context, waiting=False) if _has_database(context.settings) else []
    return []


def _has_database(settings: Settings) -> bool:
    """Whether there is one; to look into one of SQLite that is not there would make it."""
    return not settings.database.startswith("sqlite") or (settings.state / "haulier.db").exists()


def _undo_migrations(context: Context) -> None:
    """Ask the open migrations to be undone, and wait for those that can; a guest that was handed over stays there."""
    deadline = steady_s() + _UNDO_S
    asked = open_migrations(context)
    for migration in asked:
        with suppress(Refused):
            cancel_migration(context, migration)
    for migration in asked:
        await_migration(context, migration, until=lambda it: is_over(it) or steady_s() > deadline, look=lambda it: None)


def _stop_vms(context: Context) -> list[str]:
    stopped = []
    for vm in list_vms(context):
        if vm["state"] in ("running", "paused"):
            try:
                stop_vm(context, vm["name"], now_=True, grace_s=0)
            except HaulierError:
                # Its worker is dead or a migration has it; the processes are ended below.
                continue
            stopped.append(vm["name"])
    return stopped


def _folders_of(vm: dict[str, Any]) -> tuple[str, str]:
    return short_name(vm["node"]), short_name(vm["name"])


def _end_processes(settings: Settings) -> Iterator[tuple[str, str]]:
    """End what no worker could end any more, on every node of this machine.

    Gives the folders of those whose QEMU that was: the node's and the VM's, which may be short forms of long names.
    """
    for sockets in settings.sockets.iterdir() if settings.sockets.is_dir() else ():
        if not sockets.is_dir():
            continue
        layout = NodeLayout(settings.state / "nodes" / sockets.name, sockets)
        for run in sockets.iterdir():
            place = layout.vm(run.name)
            ran = place.qemu.pid() is not None
            stop_now(place)
            stop_swtpm(place)
            stop_carrier(place)
            stop_reader(place)
            if ran:
                yield sockets.name, run.name
