"""`haulier node …`."""

from __future__ import annotations

from typing import Any, Literal

from cyclopts import App

from haulier.cli.around import context
from haulier.cli.output import show, size, table
from haulier.services import nodes

app = App(name="node", help="Show and change nodes.")
_COLUMNS = {
    "node": "name", "state": "state", "worker": "worker", "vms": "vms", "address": "address",
    "qemu": "qemu_version", "accel": "accel", "swtpm": "swtpm_version", "RAM free": "ram_free",
}  # fmt: skip


@app.command(name="list")
def list_() -> None:
    """All nodes."""
    documents = nodes.list_nodes(context())
    show(documents, table([_row(document) for document in documents], _COLUMNS))


def _row(document: dict[str, Any]) -> dict[str, Any]:
    return {**document, "ram_free": size(document["ram_free_bytes"])}


@app.command(name="show")
def show_one(name: str) -> None:
    """One node."""
    document = nodes.show_node(context(), name)
    show(document, "\n".join(f"{key:17}{value}" for key, value in document.items()))


@app.command(name="set")
def set_(name: str, *, address: str | None = None) -> None:
    """Change a node.

    Parameters
    ----------
    name
        The node.
    address
        What other nodes connect to.
    """
    document = nodes.change_node(context(), name, nodes.NodeChange(address=address))
    show(document, f"changed {name}")


@app.command
def maintenance(name: str, state: Literal["on", "off"]) -> None:
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
