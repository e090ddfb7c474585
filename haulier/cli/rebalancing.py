"""`haulier rebalance`."""

from __future__ import annotations

from typing import Annotated, Any

from cyclopts import Parameter

from haulier.cli.around import context
from haulier.cli.batch import migrations_table, standing
from haulier.cli.moments import interval
from haulier.cli.output import show, show_text, size, table
from haulier.cli.progress import follow
from haulier.services import batches, rebalancing
from haulier.services.context import Context

_MOVES = {"vm": "vm", "source": "source", "target": "target", "bytes": "bytes", "gain": "gain", "why": "reason"}
_LOADS = {"node": "host", "RAM before": "before", "after": "after", "of": "of", "full before": "full_before",
          "full after": "full_after"}  # fmt: skip
_YES = Parameter(negative=())


def rebalance(
    *,
    moves: int = rebalancing.USUAL_MOVES,
    plan: Annotated[bool, _YES] = False,
    wait: Annotated[bool, _YES] = False,
) -> int:
    """Move few VMs, so that rules are kept and nodes are equally full: each move the best one after those before.

    Parameters
    ----------
    moves
        So many at most.
    plan
        Only say what would be done, and touch nothing.
    wait
        Return when the moves are over.
    """
    around = context()
    if plan:
        return _show(rebalancing.plan_rebalance(around, moves=moves))
    document = rebalancing.rebalance(around, moves=moves)
    if not wait or document["batch"] is None:
        return _show(document)
    document = _awaited(around, document)
    _show(document)
    return _status(document)


def _show(document: dict[str, Any]) -> int:
    show(document, _head(document))
    if document["migrations"]:
        show_text(migrations_table(document))
    if document["plan"]:
        rows = [{**each, "bytes": size(each["bytes"]), "gain": f"{each['gain']:.1%}"} for each in document["plan"]]
        show_text(table(rows, _MOVES))
        show_text(table([_load(each) for each in document["loads"]], _LOADS))
        show_text(f"gain is of the imbalance that can be removed; {document['left']:.1%} of it is left then")
    for rule in document["broken_rules"]:
        show_text(f"note: rule {rule} stays broken (haulier rule show {rule})")
    for each in document["closed"]:
        show_text(f"note: {each['node']} takes nothing: {each['message']}")
    for each in document["refused"]:
        show_text(f"note: to move {each['vm']} would pay, and was refused: {each['message']}")
    return 0


def _head(document: dict[str, Any]) -> str:
    number = len(document["plan"])
    if not number:
        return f"nothing is to be gained: no{' other' if document['refused'] else ''} move pays"
    if document["batch"] is not None:
        return f"batch {document['batch']} (rebalance): {standing(document)}"
    takes = "" if document["eta_s"] is None else f", in about {interval(document['eta_s'])}"
    return f"{number} VM{'' if number == 1 else 's'} would move{takes}"


def _load(load: dict[str, Any]) -> dict[str, Any]:
    ram = {"before": load["ram_before_bytes"], "after": load["ram_after_bytes"], "of": load["ram_bytes"]}
    part = {f"full_{when}": f"{ram[when] / max(ram['of'], 1):.1%}" for when in ("before", "after")}
    return {**load, **{name: size(value) for name, value in ram.items()}, **part}


def _awaited(around: Context, document: dict[str, Any]) -> dict[str, Any]:
    """The same when its batch changes by itself no more."""
    plan = document

    def look() -> dict[str, Any]:
        batch = batches.show_batch(around, plan["batch"])
        return plan | {name: batch[name] for name in ("state", "counts", "eta_s", "migrations")}

    return follow(around, "events", document, goes_on=_goes_on, look=look, tell=standing)


def _goes_on(document: dict[str, Any]) -> bool:
    waits, works = (document["counts"].get(state) for state in ("queued", "running"))
    return bool(works or (waits and document["state"] == "open"))


def _status(document: dict[str, Any]) -> int:
    """3 if a person should look, 1 if something was not moved."""
    if document["counts"].get("needs_operator"):
        return 3
    return 0 if set(document["counts"]) <= {"done"} else 1
