"""`haulier rule …`."""

from __future__ import annotations

from typing import Annotated, Any

from cyclopts import App, Parameter

from haulier.cli.around import context
from haulier.cli.output import show, table
from haulier.services import rules
from models import RuleKind

app = App(name="rule", help="Say which VMs are to be beside each other, and on which nodes.")
_COLUMNS = {"rule": "name", "kind": "kind", "": "strength", "VMs": "vms", "nodes": "nodes"}


@app.command
def add(
    name: str,
    kind: RuleKind,
    /,
    *vms: str,
    node: Annotated[tuple[str, ...], Parameter(negative=())] = (),
    soft: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Make a rule that is kept whenever a place is chosen for its VMs.

    Parameters
    ----------
    name
        The rule's name.
    kind
        together: one node for all; apart: a node for each; only_on and not_on: some nodes, or others than some.
    vms
        Its VMs.
    node
        A node of an only_on or not_on; may be given more than once.
    soft
        It gives way where there is no other place.
    """
    document = rules.add_rule(context(), name, kind, vms=vms, nodes=node, hard=not soft)
    show(document, _text(document))


def _text(document: dict[str, Any]) -> str:
    nodes = f" {', '.join(document['nodes'])}" if document["nodes"] else ""
    strength = "" if document["hard"] else " (if it can be)"
    return f"{document['name']}: {', '.join(document['vms'])} {document['kind']}{nodes}{strength}"


@app.command(name="show")
def show_one(name: str, /) -> None:
    """One rule."""
    document = rules.show_rule(context(), name)
    show(document, _text(document))


@app.command(name="list")
def list_() -> None:
    """All rules."""
    documents = rules.list_rules(context())
    rows = [
        {
            **each,
            "strength": "hard" if each["hard"] else "soft",
            "vms": " ".join(each["vms"]),
            "nodes": " ".join(each["nodes"]),
        }
        for each in documents
    ]
    show(documents, table(rows, _COLUMNS))


@app.command
def remove(name: str, /) -> None:
    """Take a rule away."""
    document = rules.remove_rule(context(), name)
    show(document, f"removed {name}")
