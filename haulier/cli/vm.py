"""`haulier vm …`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from haulier.cli.around import context
from haulier.cli.moments import interval
from haulier.cli.output import show, size, stderr, table
from haulier.services import vms
from haulier.services.recover import recover_vm
from haulier.services.replications import list_replications
from models import EvacuationPolicy

app = App(name="vm", help="Define, start, stop and show VMs.")
_COLUMNS = {"vm": "name", "node": "node", "state": "state", "epoch": "epoch", "pid": "pid"}


@app.command
def define(file: Path, /, *, node: str, name: str | None = None, storages: Path | None = None) -> None:
    """Take over a VM from its file; volumes that are missing are made.

    Parameters
    ----------
    file
        A Proxmox VE .conf, or a TOML file (see docs/vm-files.md).
    node
        The node it belongs to.
    name
        Its name, if not the one in the file.
    storages
        A Proxmox VE storage.cfg that says where other storages than `local` are.
    """
    # Whoever can run this can read the cluster's secret: that is the host's administrator.
    document = vms.define_vm(context(), file, node=node, name=name, storages=storages, host_access=True)
    for key, value in document["ignored"].items():
        stderr.print(f"note: {key}: {value} is kept, and has no effect here", markup=False)
    show(document, f"defined {document['name']} on {document['node']}")


@app.command
def start(name: str, /) -> None:
    """Start a VM on its node and wait until it runs."""
    document = vms.start_vm(context(), name)
    show(document, f"{name} runs on {document['node']} (pid {document['pid']})")


@app.command
def stop(name: str, /, *, now: Annotated[bool, Parameter(negative=())] = False, grace_s: float = 30.0) -> None:
    """Ask the guest to power off; end it if it has not done so in time.

    Parameters
    ----------
    name
        The VM.
    now
        End it at once, like pulling the plug.
    grace_s
        How many seconds the guest gets before it is ended.
    """
    document = vms.stop_vm(context(), name, now_=now, grace_s=grace_s)
    show(document, f"{name} is stopped")


@app.command(name="list")
def list_() -> None:
    """All VMs."""
    documents = vms.list_vms(context())
    show(documents, table([{**document, "state": _state(document)} for document in documents], _COLUMNS))


def _state(document: dict[str, Any]) -> str:
    """A guest that nobody paused stands still for a reason, and QEMU has a word for it. Of a silent node it is what
    was heard last.
    """
    word, state = document["run_state"], document["state"]
    shown = state if word in (None, "paused") else f"{state} ({word})"
    is_hearsay = document["worker"] == "silent" and state in ("running", "paused")
    return f"{shown}, node is silent" if is_hearsay else shown


@app.command(name="set")
def set_(name: str, /, *, evacuation: EvacuationPolicy) -> None:
    """Change what may happen to a VM.

    Parameters
    ----------
    name
        The VM.
    evacuation
        When its node is emptied: `live` moves it if it runs, `offline_if_stopped` (the usual one) also if it does not;
        `live_or_pause` lets it stand still for as long as its RAM takes, if it does not settle; `stop_by_consent` has
        you asked whether it may be stopped, if it cannot move otherwise; `stay` leaves it where it is.
    """
    document = vms.set_policy(context(), name, evacuation)
    show(document, f"{name}: {document['evacuation']}")


@app.command(name="show")
def show_one(name: str, /) -> None:
    """One VM with its volumes and its TPM."""
    document = vms.show_vm(context(), name)
    show(document, _text(document))


def _text(document: dict[str, Any]) -> str:
    tpm = document["tpm"]
    lines = [
        f"{document['name']}: {_state(document)} on {document['node']}, epoch {document['epoch']}"
        + (f", pid {document['pid']}" if document["pid"] else ""),
        *(
            f"  {each['device']:10}{each['role']:10}{each['format']:6}{size(each['size_bytes']):>11}  {each['path']}"
            for each in document["volumes"]
        ),
        *([f"  tpm {tpm['identity'][:16]}…, state {(tpm['digest'] or '-')[:16]}…"] if tpm and tpm["identity"] else []),
        f"  qmp {document['qmp'] or '-'}",
        f"  when its node is emptied: {document['evacuation']}",
    ]
    return "\n".join(lines)


def recover(name: str, /, *, on: str) -> None:
    """Start a VM from its replica, when its own node has been declared lost.

    Parameters
    ----------
    name
        The VM.
    on
        The node that has the replica.
    """
    known = [each for each in list_replications(context()) if (each["vm"], each["target"]) == (name, on)]
    document = recover_vm(context(), name, on=on)
    as_of = "".join(f" at generation {each['generation']}, {interval(each['lag_s'])} ago" for each in known)
    show(document, f"{name} runs on {document['node']} (pid {document['pid']}), as its replica was{as_of}")
