"""`haulier queue`: who waits, in which order, for what; and the limits of the cluster."""

from __future__ import annotations

from typing import Annotated, Any

from cyclopts import App, Parameter

from haulier.cli.around import context
from haulier.cli.limits import read_limits, read_pairs
from haulier.cli.moments import interval
from haulier.cli.output import show, table
from haulier.errors import Refused
from haulier.services import limits, queue
from models import Gate, LimitScope

app = App(name="queue", help="Show what waits, and why; show and set the limits.")


@app.default
def list_() -> None:
    """The migrations that wait, in their order, each with what holds it: before they begin (prepare), and of those that
    are prepared, before their guests' RAM is moved (move).
    """
    documents = queue.list_queue(context())
    rows = [_row(document) for document in documents]
    columns = {
        "before": "gate", "place": "position", "id": "id", "vm": "vm", "source": "source", "target": "target",
        "priority": "priority",
        "waits": "waits", "begins": "begins", "for": "for",
    }  # fmt: skip
    show(documents, table(rows, columns) if rows else "nothing waits")


def _row(document: dict[str, Any]) -> dict[str, Any]:
    waits, begins = interval(document["waited_s"]), _begins(document["starts_in_s"])
    return {**document, "waits": waits, "begins": begins, "for": document["waiting_for"]["text"]}


def _begins(seconds: float | None) -> str:
    return "" if seconds is None else f"in {interval(seconds)}"


@app.command(name="limits")
def limits_() -> None:
    """All limits: the cluster's, the usual ones, and those that nodes and pairs have of their own."""
    document = limits.show_limits(context())
    show(document, _text(document))


@app.command(name="set")
def set_(
    *,
    max_running: str | None = None,
    max_moves: str | None = None,
    pair: Annotated[tuple[str, ...], Parameter(negative=(), show_default=False)] = (),
) -> None:
    """Change how many may be at work at once. What is at work goes on.

    Parameters
    ----------
    max_running
        Migrations in the whole cluster: a number, 0 to begin none, or `usual` for that of the settings.
    max_moves
        Those of them whose guests' RAM is moved.
    pair
        SOURCE:TARGET=N, migrations from one node to another; may be given more than once.
    """
    cluster = ((Gate.PREPARE, LimitScope.CLUSTER, max_running), (Gate.MOVE, LimitScope.CLUSTER, max_moves))
    changes = [*read_limits(cluster), *read_pairs(pair)]
    if not changes:
        raise Refused("nothing_to_set", "no limit is named", "--max-running, --max-moves, or --pair SOURCE:TARGET=N.")
    document = limits.set_limits(context(), changes)
    show(document, _text(document))


def _text(document: dict[str, Any]) -> str:
    return "\n".join([*_lines("at work", document["prepare"]), "", *_lines("moving RAM", document["move"])])


def _lines(what: str, limits: dict[str, Any]) -> list[str]:
    usual = {place: "no limit" if allowed is None else allowed for place, allowed in limits["usual"].items()}
    return [
        f"{what}, at once:",
        f"  in the cluster     {limits['cluster']}",
        f"  out of a node      {usual['out']}",
        *(f"    out of {node}: {allowed}" for node, allowed in sorted(limits["out"].items())),
        f"  into a node        {usual['in']}",
        *(f"    into {node}: {allowed}" for node, allowed in sorted(limits["in"].items())),
        f"  between two nodes  {usual['pair']}",
        *(f"    {each['source']} → {each['target']}: {each['max']}" for each in limits["pair"]),
    ]
