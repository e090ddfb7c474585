"""`haulier queue`: who waits, in which order, for what; and the limits of the cluster."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from cyclopts import App, Parameter

from haulier.cli.around import context
from haulier.cli.limits import read_limits, read_pairs, read_rates
from haulier.cli.moments import interval
from haulier.cli.output import rate, show, table
from haulier.errors import Refused
from haulier.planner.labels import Rate
from haulier.services import labels, limits, queue
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
        **({"label": "label"} if any(document["label"] for document in documents) else {}),
        "waits": "waits", "begins": "begins", "for": "for",
    }  # fmt: skip
    show(documents, table(rows, columns) if rows else "nothing waits")


def _row(document: dict[str, Any]) -> dict[str, Any]:
    waits, begins = interval(document["waited_s"]), _begins(document["starts_in_s"])
    shown = {"waits": waits, "begins": begins, "label": document["label"] or "", "for": document["waiting_for"]["text"]}
    return {**document, **shown}


def _begins(seconds: float | None) -> str:
    return "" if seconds is None else f"in {interval(seconds)}"


@app.command(name="limits")
def limits_() -> None:
    """All limits: the cluster's, the usual ones, and those that nodes, pairs and labels have of their own."""
    document = limits.show_limits(context())
    show(document, _text(document))


@app.command(name="set")
def set_(
    *,
    max_running: str | None = None,
    max_moves: str | None = None,
    pair: Annotated[tuple[str, ...], Parameter(negative=(), show_default=False)] = (),
    bandwidth: str | None = None,
    link: Annotated[tuple[str, ...], Parameter(negative=(), show_default=False)] = (),
    rate: Annotated[tuple[str, ...], Parameter(negative=(), show_default=False)] = (),
) -> None:
    """Change how many may be at work at once, how many of a label are begun in a time, and the bandwidth that they
    share. What is at work goes on.

    Parameters
    ----------
    max_running
        Migrations in the whole cluster: a number, 0 to begin none, or `usual` for that of the settings.
    max_moves
        Those of them whose guests' RAM is moved.
    pair
        SOURCE:TARGET=N, migrations from one node to another; may be given more than once.
    bandwidth
        What all that crosses in the cluster shares, in bytes per second, for example 2G, or `usual`.
    link
        SOURCE:TARGET=BANDWIDTH, the same of what goes from one node to another; may be given more than once.
    rate
        LABEL=N/TIME, for example nightly=6/h or nightly=1/10m: so many with this label are begun in any such time; or
        LABEL=usual; may be given more than once.
    """
    cluster = (
        (Gate.PREPARE, LimitScope.CLUSTER, max_running),
        (Gate.MOVE, LimitScope.CLUSTER, max_moves),
        (Gate.BANDWIDTH, LimitScope.CLUSTER, bandwidth),
    )
    changes = [*read_limits(cluster), *read_pairs(pair), *read_pairs(link, Gate.BANDWIDTH)]
    rates = read_rates(rate)
    if not changes and not rates:
        hint = (
            "--max-running, --max-moves, --pair SOURCE:TARGET=N, --bandwidth, --link SOURCE:TARGET=BANDWIDTH, --rate."
        )
        raise Refused("nothing_to_set", "no limit is named", hint)
    document = limits.set_limits(context(), changes, rates=rates)
    show(document, _text(document))


def _text(document: dict[str, Any]) -> str:
    parts = [
        _lines("at work, at once", document[Gate.PREPARE], str),
        _lines("moving RAM, at once", document[Gate.MOVE], str),
        _lines("bandwidth, shared by all that crosses", document[Gate.BANDWIDTH], rate),
    ]
    if document["labels"]:
        parts.append(["by label:", *(f"  {_label(each)}" for each in document["labels"])])
    return "\n\n".join("\n".join(lines) for lines in parts)


def _label(document: dict[str, Any]) -> str:
    rate, wait = document["rate"], document["waiting"]
    said = [
        *(["paused"] if document["paused"] else []),
        *([f"{rate['allowed']} in {Rate(**rate).period}"] if rate else []),
        f"{wait or 'none'} {'wait' if wait > 1 else 'waits'}",
    ]
    return f"{document['label']}: {', '.join(said)}"


@app.command
def pause(label: str, /, *others: str) -> None:
    """Begin none of those that were filed with these labels, until `haulier queue resume`. What is at work goes on."""
    _show_labels(labels.pause_labels(context(), (label, *others), paused=True))


@app.command
def resume(label: str, /, *others: str) -> None:
    """Let those with these labels begin again that were paused by `haulier queue pause`."""
    _show_labels(labels.pause_labels(context(), (label, *others), paused=False))


def _show_labels(documents: list[dict[str, Any]]) -> None:
    show(documents, "\n".join(map(_label, documents)))


def _lines(what: str, limits: dict[str, Any], shown: Callable[[int], str]) -> list[str]:
    def word(allowed: int | None) -> str:
        return "no limit" if allowed is None else shown(allowed)

    usual = limits["usual"]
    return [
        f"{what}:",
        f"  in the cluster     {word(limits['cluster'])}",
        f"  out of a node      {word(usual['out'])}",
        *(f"    out of {node}: {word(allowed)}" for node, allowed in sorted(limits["out"].items())),
        f"  into a node        {word(usual['in'])}",
        *(f"    into {node}: {word(allowed)}" for node, allowed in sorted(limits["in"].items())),
        f"  between two nodes  {word(usual['pair'])}",
        *(f"    {each['source']} → {each['target']}: {word(each['max'])}" for each in limits["pair"]),
    ]
