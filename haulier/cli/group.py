"""`haulier group …`."""

from __future__ import annotations

from typing import Annotated, Any

from cyclopts import App, Parameter

from haulier.cli.around import context
from haulier.cli.output import show, table
from haulier.services import groups

app = App(name="group", help="Say of which nodes only few may be out at once.")
_COLUMNS = {"group": "name", "at once": "at_once", "nodes": "all", "out": "out", "roll": "roll"}
_NODES = {"node": "node", "state": "state", "out": "out"}
_MORE = Parameter(negative=(), show_default=False)


@app.command
def add(name: str, /, *nodes: str, at_once: int = 1) -> None:
    """Make a group of nodes. Of those in a group no more are emptied at once, whoever asks.

    Parameters
    ----------
    name
        The group's name.
    nodes
        Its nodes.
    at_once
        How many of them may be out: draining, drained, in maintenance, lost, or not yet filled again.
    """
    document = groups.add_group(context(), name, nodes, at_once=at_once)
    show(document, _text(document))


def _text(document: dict[str, Any]) -> str:
    names = ", ".join(each["node"] for each in document["nodes"])
    return f"{document['name']}: {names}; {document['at_once']} at once"


@app.command(name="list")
def list_() -> None:
    """All groups."""
    documents = groups.list_groups(context())
    show(documents, table([_row(document) for document in documents], _COLUMNS))


def _row(document: dict[str, Any]) -> dict[str, Any]:
    nodes = document["nodes"]
    out = [each["node"] for each in nodes if each["out"]]
    return {**document, "all": " ".join(each["node"] for each in nodes), "out": " ".join(out) or "none"}


@app.command(name="show")
def show_one(name: str, /) -> None:
    """One group: which of its nodes are out, and why."""
    document = groups.show_group(context(), name)
    rows = [{**each, "out": each["out"] or "no"} for each in document["nodes"]]
    show(document, table(rows, _NODES))


@app.command(name="set")
def set_(
    name: str,
    /,
    *,
    at_once: int | None = None,
    add: Annotated[tuple[str, ...], _MORE] = (),
    remove: Annotated[tuple[str, ...], _MORE] = (),
) -> None:
    """Change a group. What is under way goes on; a roll leaves out a node that is taken out before its turn.

    Parameters
    ----------
    name
        The group.
    at_once
        How many of its nodes may be out.
    add
        A node that comes in; may be given more than once.
    remove
        A node that goes out; may be given more than once.
    """
    document = groups.change_group(context(), name, groups.GroupChange(at_once, add, remove))
    show(document, _text(document))


@app.command(name="remove")
def remove_(name: str, /) -> None:
    """Take a group away; its nodes stay as they are."""
    document = groups.remove_group(context(), name)
    show(document, f"removed {name}")
