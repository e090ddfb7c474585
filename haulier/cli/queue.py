"""`haulier queue`: who waits, in which order, for what; and the limits of the cluster."""

from __future__ import annotations

from typing import Annotated, Any

from cyclopts import App, Parameter

from haulier.cli.around import context
from haulier.cli.limits import read_limit, read_pairs
from haulier.cli.moments import interval
from haulier.cli.output import show, table
from haulier.errors import Refused
from haulier.services import limits, queue
from models import LimitScope

app = App(name="queue", help="Show what waits, and why; show and set the limits.")


@app.default
def list_() -> None:
    """The migrations that wait, in the order in which they will begin, each with what holds it."""
    documents = queue.list_queue(context())
    rows = [{**document, "waits": interval(document["waited_s"]), "for": document["waiting_for"]["text"]}
            for document in documents]  # fmt: skip
    columns = {
        "place": "position", "id": "id", "vm": "vm", "source": "source", "target": "target", "priority": "priority",
        "waits": "waits", "for": "for",
    }  # fmt: skip
    show(documents, table(rows, columns) if rows else "nothing waits")


@app.command(name="limits")
def limits_() -> None:
    """All limits: the cluster's, the usual ones, and those that nodes and pairs have of their own."""
    document = limits.show_limits(context())
    show(document, _text(document))


@app.command(name="set")
def set_(
    *, max_running: str | None = None, pair: Annotated[tuple[str, ...], Parameter(negative=(), show_default=False)] = ()
) -> None:
    """Change how many migrations may be at work at once. What is at work goes on.

    Parameters
    ----------
    max_running
        In the whole cluster: a number, 0 to begin none, or `usual` for that of the settings.
    pair
        SOURCE:TARGET=N from one node to another; may be given more than once.
    """
    changes = read_pairs(pair)
    if max_running is not None:
        changes.append(limits.LimitChange(LimitScope.CLUSTER, (), read_limit(max_running)))
    if not changes:
        raise Refused("nothing_to_set", "no limit is named", "--max-running N, or --pair SOURCE:TARGET=N.")
    document = limits.set_limits(context(), changes)
    show(document, _text(document))


def _text(document: dict[str, Any]) -> str:
    usual = document["usual"]
    lines = [
        f"in the cluster   {document['max_running']}",
        f"out of a node    {usual['max_out']}",
        *(f"  out of {node}: {allowed}" for node, allowed in sorted(document["out"].items())),
        f"into a node      {usual['max_in']}",
        *(f"  into {node}: {allowed}" for node, allowed in sorted(document["in"].items())),
        f"of a pair        {usual['max_pair']}",
        *(f"  {each['source']} → {each['target']}: {each['max']}" for each in document["pair"]),
    ]
    return "\n".join(lines)
