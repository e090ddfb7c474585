"""`haulier roll GROUP` and `haulier roll …`."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any

from cyclopts import App, Parameter

from haulier.cli.around import context
from haulier.cli.moments import deadline_of, interval, interval_of
from haulier.cli.output import show, show_text, table
from haulier.cli.progress import follow
from haulier.services import roll_view, rolls
from haulier.services.context import Context

app = App(name="roll", help="Empty and fill the nodes of a group in turn.")
_ENDS = frozenset({"done", "cancelled", "paused"})
_NODES = {"place": "place", "node": "node", "state": "state", "evacuation": "evacuation", "why": "why"}
_PLANNED = {"place": "place", "node": "node", "VMs": "vms", "to": "targets", "in": "takes", "why not now": "why"}
_YES = Parameter(negative=())


@app.default
def roll(
    group: str,
    /,
    *,
    hold: str | None = None,
    deadline: str | None = None,
    plan: Annotated[bool, _YES] = False,
    wait: Annotated[bool, _YES] = False,
) -> int:
    """Empty each node of a group and fill it again, in the order of their names, as many at once as the group allows.

    Asked twice, it goes on with the roll that there is. `haulier roll show ID` says what it waits for.

    Parameters
    ----------
    group
        The group.
    hold
        How long each node stays empty, for example 30m. Without it a node is filled again by `haulier restore NODE`.
    deadline
        What cannot be emptied and stay so by then is left out: a moment such as 2026-12-01T04:00:00Z, or 2h.
    plan
        Only say what would be done, and touch nothing.
    wait
        Return when the roll is over, or paused.
    """
    hold_s = None if hold is None else interval_of(hold)
    wishes = rolls.RollWishes(hold_s, deadline_of(deadline) if deadline else None)
    around = context()
    if plan:
        _show_plan(rolls.plan_roll(around, group, wishes))
        return 0
    document = rolls.begin_roll(around, group, wishes)
    if wait:
        document = _awaited(around, document)
    _show(document)
    return 3 if document["state"] in _ENDS and not _is_whole(document) else 0


def _is_whole(document: dict[str, Any]) -> bool:
    """Whether each node had its turn, and all is back."""
    nodes = document["nodes"]
    return document["state"] == "done" and all(each["state"] == "done" and not each["problem"] for each in nodes)


def _awaited(around: Context, document: dict[str, Any]) -> dict[str, Any]:
    """The same when it is over or paused. What it waits for is told each time that a node is in another state."""
    number = document["id"]
    return follow(
        around,
        f"roll.{number}",
        document,
        goes_on=lambda document: document["state"] not in _ENDS,
        look=lambda: roll_view.show_roll(around, number),
        tell=lambda document: f"waits for: {document['waiting_for']}",
    )


def _show_plan(document: dict[str, Any]) -> None:
    number, at_once = len(document["nodes"]), document["at_once"]
    count = f"{number} node{'' if number == 1 else 's'} of {document['group']}"
    show(document, f"{count} would be emptied in this order, {at_once} at once")
    show_text(table([_planned(each) for each in document["nodes"]], _PLANNED))
    if document["roll"] is not None:
        show_text(f"note: roll {document['roll']} of {document['group']} is not over")


def _planned(each: dict[str, Any]) -> dict[str, Any]:
    targets = Counter(move["target"] for move in each["plan"])
    problems = [*([each["problem"]] if each["problem"] else []), *each["refusals"]]
    stay = [f"{held['vm']} stays: {held['message']}" for held in each["blocked"]]
    return {
        **each,
        "vms": len(each["plan"]) + len(each["blocked"]),
        "targets": ", ".join(f"{count} {target}" for target, count in sorted(targets.items())) or "-",
        "takes": None if each["eta_s"] is None else interval(each["eta_s"]),
        "why": "; ".join([*(problem["message"] for problem in problems), *stay]),
    }


def _show(document: dict[str, Any]) -> None:
    show(document, f"roll {document['id']} of {document['group']}: {document['state']}; {_counts(document)}")
    show_text(f"waits for: {document['waiting_for']}")
    rows = [{**each, "state": _word(each["state"]), "why": _why(each["problem"])} for each in document["nodes"]]
    show_text(table(rows, _NODES))


def _counts(document: dict[str, Any]) -> str:
    return ", ".join(f"{number} {_word(state)}" for state, number in sorted(document["counts"].items()))


def _word(state: str) -> str:
    return state.replace("_", " ")


def _why(problem: dict[str, str] | None) -> str:
    return problem["message"] if problem else ""


@app.command(name="show")
def show_one(roll_id: int, /) -> None:
    """One roll: where each node is, and what all waits for."""
    _show(roll_view.show_roll(context(), roll_id))


@app.command(name="list")
def list_() -> None:
    """The newest rolls."""
    documents = roll_view.list_rolls(context())
    rows = [{**each, "nodes": _counts(each)} for each in documents]
    columns = {"id": "id", "group": "group", "state": "state", "begun": "created_at", "nodes": "nodes"}
    show(documents, table(rows, columns))


@app.command
def pause(roll_id: int, /) -> None:
    """Begin no more of its nodes; those that are out go on."""
    _show(rolls.pause(context(), roll_id))


@app.command
def resume(roll_id: int, /) -> None:
    """Let it go on that was paused; what was refused or cancelled is tried again."""
    _show(rolls.resume(context(), roll_id))


@app.command
def cancel(roll_id: int, /) -> None:
    """Begin no more of its nodes, for good. Those that are out go on as evacuations of their own."""
    _show(rolls.cancel(context(), roll_id))
