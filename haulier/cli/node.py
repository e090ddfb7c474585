"""`haulier node …`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, ArgumentCollection, Group, Parameter

from haulier.cli.around import context
from haulier.cli.limits import read_limits
from haulier.cli.moments import interval
from haulier.cli.output import rate, show, show_text, size, table
from haulier.services import lost_nodes, nodes
from haulier.services.limits import LimitChange
from models import Gate, LimitScope

app = App(name="node", help="Show and change nodes.")
_COLUMNS = {
    "node": "name", "state": "seen_as", "vms": "vms", "address": "address",
    "qemu": "qemu_version", "accel": "accel", "swtpm": "swtpm_version", "RAM free": "ram_free",
}  # fmt: skip


def _at_least_one(options: ArgumentCollection) -> None:
    if not any(option.has_tokens for option in options):
        raise ValueError(f"Give {' or '.join(option.name for option in options)}")


_CHANGES = Group("Changes", validator=_at_least_one)


@app.command(name="list")
def list_() -> None:
    """All nodes."""
    documents = nodes.list_nodes(context())
    show(documents, table([_row(document) for document in documents], _COLUMNS))


def _row(document: dict[str, Any]) -> dict[str, Any]:
    return {**document, "seen_as": _seen_as(document), "ram_free": size(document["ram_free_bytes"])}


def _seen_as(document: dict[str, Any]) -> str:
    """A node whose worker is silent is not to be called online."""
    age = document["heartbeat_age_s"]
    if document["worker"] == "alive":
        return str(document["state"])
    if age is not None and age < 0:
        silent = f"its clock is {-age:.0f} s ahead"
    else:
        silent = "silent" if age is None else f"silent for {age:.0f} s"
    return silent if document["state"] == "online" else f"{document['state']}, {silent}"


@app.command(name="show")
def show_one(name: str, /) -> None:
    """One node."""
    document = nodes.show_node(context(), name)
    show(document, _text(document))


def _text(document: dict[str, Any]) -> str:
    shown = {**document, "state": _seen_as(document)}
    for key in ("ram_bytes", "ram_free_bytes"):
        shown[key.removesuffix("_bytes")] = size(shown.pop(key))
    for key in ("bandwidth_out_bytes_per_s", "bandwidth_in_bytes_per_s"):
        shown[key.removesuffix("_bytes_per_s")] = "no limit" if shown[key] is None else rate(shown[key])
        del shown[key]
    shown["storages"] = ", ".join(f"{each['name']} ({each['path']})" for each in document["storages"])
    hidden = ("worker", "heartbeat_age_s")
    return "\n".join(
        f"{key.replace('_', ' '):17}{'-' if value is None else value}"
        for key, value in shown.items()
        if key not in hidden
    )


_Limit = Annotated[str | None, Parameter(group=_CHANGES)]


@Parameter(name="*")
@dataclass(frozen=True)
class NodeLimits:
    """How many migrations it takes part in at once: a number, 0 to begin none, or `usual` for that of the settings;
    and the bandwidth of its link.

    Parameters
    ----------
    max_out
        How many migrations may leave it at once: a number, 0 to begin none, or `usual` for that of the settings.
    max_in
        How many may go to it at once.
    max_moves_out
        Of how many guests the RAM may be moved out of it at once; the others wait, prepared.
    max_moves_in
        Of how many it may be moved into it at once.
    bandwidth_out
        What all that leaves it shares, in bytes per second, for example 1G, or `usual` for that of the settings.
    bandwidth_in
        What all that goes to it shares.
    """

    max_out: _Limit = None
    max_in: _Limit = None
    max_moves_out: _Limit = None
    max_moves_in: _Limit = None
    bandwidth_out: _Limit = None
    bandwidth_in: _Limit = None

    def changes(self, node: str) -> tuple[LimitChange, ...]:
        """What is to be changed of the limits of this node."""
        given = (
            (Gate.PREPARE, LimitScope.OUT, self.max_out),
            (Gate.PREPARE, LimitScope.IN, self.max_in),
            (Gate.MOVE, LimitScope.OUT, self.max_moves_out),
            (Gate.MOVE, LimitScope.IN, self.max_moves_in),
            (Gate.BANDWIDTH, LimitScope.OUT, self.bandwidth_out),
            (Gate.BANDWIDTH, LimitScope.IN, self.bandwidth_in),
        )
        return tuple(read_limits(given, node))


@app.command(name="set")
def set_(
    name: str,
    /,
    *,
    address: Annotated[str | None, Parameter(group=_CHANGES)] = None,
    storages: Annotated[Path | None, Parameter(group=_CHANGES)] = None,
    limits: NodeLimits = NodeLimits(),
) -> None:
    """Change a node.

    Parameters
    ----------
    name
        The node.
    address
        What other nodes connect to.
    storages
        A Proxmox VE storage.cfg: those of its storages that are for this node become its own.
    """
    change = nodes.NodeChange(address=address, storages=storages, limits=limits.changes(name))
    document = nodes.change_node(context(), name, change)
    left_out = f"; left out: {', '.join(document['left_out'])}" if document["left_out"] else ""
    names = ", ".join(each["name"] for each in document["storages"])
    at_once = [f"{key.replace('_', ' ')} {document[key]}" for key in document if key.startswith("max_")]
    budgets = [
        f"bandwidth {way} {rate(allowed)}"
        for way in ("out", "in")
        if (allowed := document[f"bandwidth_{way}_bytes_per_s"]) is not None
    ]
    show(document, f"changed {name}; its storages: {names}{left_out}; {', '.join([*at_once, *budgets])}")


@app.command
def maintenance(name: str, state: Literal["on", "off"], /) -> None:
    """Take a node out of use as a target, or back into use.

    Parameters
    ----------
    name
        The node.
    state
        on or off.
    """
    document = nodes.change_node(context(), name, nodes.NodeChange(maintenance=state == "on"))
    show(document, f"{name}: {document['state']}")


@app.command
def lost(name: str, /, *, yes_it_is_off: Annotated[bool, Parameter(negative=())] = False) -> None:
    """Declare that a node's host is off. Its VMs can be recovered from their replicas then.

    Parameters
    ----------
    name
        The node.
    yes_it_is_off
        Your word that nothing runs there any more; a guest that did would run twice.
    """
    document = lost_nodes.declare_lost(context(), name, is_off=yes_it_is_off)
    show(document, f"{name} is lost; what waited for it goes on without")
    for each in document["lost_vms"]:
        for on in each["replicas_on"]:
            age = f"  # as it was {interval(each['lag_s'][on])} ago" if on in each["lag_s"] else ""
            show_text(f"  {each['vm']}: haulier recover {each['vm']} --on {on}{age}")
        if not each["replicas_on"]:
            show_text(f"  {each['vm']}: there is no replica of it")
