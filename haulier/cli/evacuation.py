"""`haulier evacuate`, `restore` and `evacuation …`."""

from __future__ import annotations

from typing import Annotated, Any

from cyclopts import App, Parameter

from haulier.cli.around import context
from haulier.cli.moments import deadline_of, interval, interval_of
from haulier.cli.output import show, show_text, size, table
from haulier.cli.progress import follow
from haulier.services import consent as consents
from haulier.services import evacuation_view, evacuations
from haulier.services.context import Context
from haulier.services.evacuation_wishes import Wishes

app = App(name="evacuation", help="Show, pause, resume and cancel what empties and fills nodes.")
_MOVES = {"vm": "vm", "target": "target", "state": "state", "now on": "now_on"}
_ENDS = frozenset({"drained", "blocked", "cancelled", "restored", "paused"})
_YES = Parameter(negative=())


def evacuate(
    node: str,
    /,
    *,
    plan: Annotated[bool, _YES] = False,
    wait: Annotated[bool, _YES] = False,
    deadline: str | None = None,
    hold: str | None = None,
    spare: Annotated[bool, _YES] = False,
) -> int:
    """Move all VMs off a node, each where the planner finds the best place. The node takes none until it is restored.

    Asked twice, it goes on with the evacuation that there is.

    Parameters
    ----------
    node
        The node.
    plan
        Only say what would be done, and touch nothing.
    wait
        Return when the node is empty, or something cannot leave.
    deadline
        By when it must be done, a moment such as 2026-12-01T04:00:00Z, or 2h: refused if it would take longer.
    hold
        Bring all back by itself so long after the node is empty, for example 30m.
    spare
        Refuse if afterwards there is a node that may not fail, because its VMs would find no RAM on the others.
    """
    hold_s = None if hold is None else interval_of(hold)
    wishes = Wishes(spare=spare, deadline=deadline_of(deadline) if deadline else None, hold_s=hold_s)
    around = context()
    if plan:
        return _show_plan(evacuations.plan_evacuation(around, node, wishes))
    return _begun(around, evacuations.evacuate(around, node, wishes), wait=wait, wanted="drained")


def _show_plan(document: dict[str, Any]) -> int:
    number = len(document["plan"])
    count = f"{number} VM{'' if number == 1 else 's'} would leave {document['node']}"
    takes = "" if document["eta_s"] is None else f", in about {interval(document['eta_s'])}"
    show(document, f"{count}{takes}")
    for problem in document["refusals"]:
        show_text(f"would be refused: {_words(problem)}")
    if rows := [{**each, "bytes": size(each["bytes"]), "in": _in(each)} for each in document["plan"]]:
        columns = {"vm": "vm", "target": "target", "bytes": "bytes", "done in": "in", "why there": "reason"}
        show_text(table(rows, columns))
    _show_blocked(document)
    _show_left(document)
    show_text(table([_load(each) for each in document["loads"]], _LOADS))
    for problem in document["spare"]:
        show_text(f"note: {_words(problem)}")
    if document["cut_short"]:
        show_text("note: the search was cut short (HAULIER_PLACEMENT_TIME_S); asked again it may find better places")
    return 0


_LOADS = {"node": "host", "its RAM before": "before", "after": "after", "of": "of", "CPUs before": "cpus_before",
          "CPUs after": "cpus_after"}  # fmt: skip


def _load(load: dict[str, Any]) -> dict[str, Any]:
    ram = {"before": load["ram_before_bytes"], "after": load["ram_after_bytes"], "of": load["ram_bytes"]}
    cpus = {name: f"{load[name]:g}" for name in ("cpus_before", "cpus_after")}
    return {**load, **{name: size(value) for name, value in ram.items()}, **cpus}


def _show_blocked(document: dict[str, Any]) -> None:
    for each in document["blocked"]:
        where = f" on {each['now_on']}" if "now_on" in each else ""
        show_text(f"stays{where}: {each['vm']}: {_words(each)}")


def _words(problem: dict[str, Any]) -> str:
    """A reason in one line."""
    return f"{problem['message']} ({problem['hint']})" if problem["hint"] else str(problem["message"])


def _show_left(document: dict[str, Any]) -> None:
    if document["left"]:
        show_text(f"left there: {', '.join(document['left'])} (stopped, and by policy moved only while it runs)")


def _awaited(around: Context, document: dict[str, Any]) -> dict[str, Any]:
    """The same when its state changes by itself no more."""
    number = document["id"]
    return follow(
        around,
        f"evacuation.{number}",
        document,
        goes_on=lambda document: not _is_over(document),
        look=lambda: evacuation_view.show_evacuation(around, number),
        tell=lambda document: f"{document['state']}: {_counts(document)}",
    )


def _begun(around: Context, document: dict[str, Any], *, wait: bool, wanted: str) -> int:
    """Show it now, or when it is over; the exit status says whether it came to what was wanted."""
    if wait:
        document = _awaited(around, document)
    _show(document)
    return 3 if _is_over(document) and (document["state"] != wanted or document["blocked"]) else 0


def _is_over(document: dict[str, Any]) -> bool:
    """Whether it changes by itself no more: what needs an operator does not."""
    waits = any(document["counts"].get(state) for state in ("queued", "running"))
    return document["state"] in _ENDS or (bool(document["counts"].get("needs_operator")) and not waits)


def _show(document: dict[str, Any]) -> None:
    left = f"; about {interval(document['eta_s'])} left" if document["eta_s"] else ""
    by = f" by {document['cause']}" if document["cause"] else ""
    head = f"evacuation {document['id']} of {document['node']}{by}"
    show(document, f"{head}: {document['state']}; {_counts(document)}{left}")
    show_text(f"waits for: {document['waiting_for']}")
    if rows := [{**each, "in": _in(each)} for each in document["plan"]]:
        goes_on = {"done in": "in"} if any(each["in"] for each in rows) else {}
        show_text(table(rows, {**_MOVES, **goes_on, "why there": "reason"}))
    _show_blocked(document)
    _show_left(document)


def _in(move: dict[str, Any]) -> str | None:
    return None if move["eta_s"] is None else interval(move["eta_s"])


def _counts(document: dict[str, Any]) -> str:
    return ", ".join(f"{number} {state}" for state, number in sorted(document["counts"].items())) or "nothing moved"


def restore(node: str, /, *, wait: Annotated[bool, _YES] = False) -> int:
    """Bring back what was on a node before it was emptied, as far as it fits there now.

    Parameters
    ----------
    node
        The node.
    wait
        Return when all is back that can be.
    """
    around = context()
    return _begun(around, evacuations.restore(around, node), wait=wait, wanted="restored")


@app.command(name="show")
def show_one(evacuation_id: int, /) -> None:
    """One evacuation: where its VMs went and why, who stays and why, and what it waits for."""
    _show(evacuation_view.show_evacuation(context(), evacuation_id))


@app.command(name="list")
def list_() -> None:
    """The newest evacuations."""
    documents = evacuation_view.list_evacuations(context())
    rows = [{**each, "moves": _counts(each), "by": each["cause"] or "hand"} for each in documents]
    columns = {"id": "id", "node": "node", "state": "state", "by": "by", "begun": "created_at", "moves": "moves"}
    show(documents, table(rows, columns))


@app.command
def pause(evacuation_id: int, /) -> None:
    """Begin no more of its moves; those at work go on."""
    _show(evacuations.pause(context(), evacuation_id))


@app.command
def resume(evacuation_id: int, /) -> None:
    """Let it go on that was paused or blocked; what has failed is tried again."""
    _show(evacuations.resume(context(), evacuation_id))


@app.command
def cancel(evacuation_id: int, /, *, undo: Annotated[bool, _YES] = False) -> None:
    """End what waits of it. What is at work finishes, what has left stays where it is, and the node takes VMs again.

    Parameters
    ----------
    evacuation_id
        The evacuation.
    undo
        Undo what is at work too, as far as its guest was not handed over.
    """
    _show(evacuations.cancel(context(), evacuation_id, undo=undo))


@app.command
def consent(evacuation_id: int, vm: str, /) -> None:
    """Let a VM of the policy stop_by_consent, which could not move while it runs, be stopped for its move. It is
    started again where it is then, also if it could not move at all.

    Parameters
    ----------
    evacuation_id
        The evacuation.
    vm
        The VM.
    """
    _show(consents.consent(context(), evacuation_id, vm))
