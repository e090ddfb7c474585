"""`haulier up`, `down`, `doctor`. Loaded only for these: their libraries take longer to load than most commands run."""

from __future__ import annotations

from typing import Annotated, Any

from cyclopts import Parameter

from haulier.cli.around import bare_context
from haulier.cli.output import show, table
from haulier.stack import local
from haulier.stack.doctor import examine


def up(*, nodes: str | None = None) -> None:
    """Start the local stack in the background and return when all of it answers.

    Parameters
    ----------
    nodes
        Names of this machine's nodes, separated by commas. Not given: those of the last time, alpha and beta at first.
    """
    around = bare_context()
    names = local.last_nodes(around.settings) if nodes is None else nodes.split(",")
    document = local.up(around, [name.strip() for name in names if name.strip()])
    went_on = _open(document, "was left open and goes on, or is undone")
    words = f"up: nodes {', '.join(document['nodes'])}; API at {document['web']}; state in {around.settings.state}"
    show(document, f"{words}{went_on}")


def down(*, vms: Annotated[bool, Parameter(negative=())] = False) -> None:
    """Stop the local stack.

    Parameters
    ----------
    vms
        End the VMs too, at once, like pulling the plug; without it they run on.
    """
    document = local.down(bare_context(), vms=vms)
    ended = f"ended {', '.join(document['vms'])}" if document["vms"] else ""
    words = "; ".join(filter(None, ("down" if document["stopped"] else "", ended))) or "nothing was running"
    show(document, f"{words}{_open(document, 'is open: a guest may stand still, until the next `haulier up`')}")


def _open(document: dict[str, Any], words: str) -> str:
    return "".join(f"\nmigration {migration} {words}" for migration in document["open"])


def doctor() -> int:
    """Look whether this machine has all that is needed. Exit status 1 if not."""
    document = examine(bare_context().settings)
    rows = [{**check, "ok": "ok" if check["ok"] else "MISSING"} for check in document["checks"]]
    show(document, table(rows, {"check": "name", "": "ok", "found": "found", "needed": "needed", "hint": "hint"}))
    return 0 if document["ok"] else 1
