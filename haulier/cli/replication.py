"""`haulier replicate`, and `haulier replication …`."""

from __future__ import annotations

from typing import Annotated, Any

from cyclopts import App, Parameter

from haulier.cli.around import context
from haulier.cli.moments import interval, interval_of
from haulier.cli.output import complain, show, show_text, size, table
from haulier.cli.progress import live_migration
from haulier.errors import Problem
from haulier.services import migrations, replications

app = App(name="replication", help="List and end replications.")
Flag = Annotated[bool, Parameter(negative=())]


def replicate(name: str, /, *, to: str, every: str | None = None, wait: Flag = False) -> int:
    """Keep a replica of a VM on another node. A first sync, or one more, begins at once.

    Parameters
    ----------
    name
        The VM.
    to
        The node that the replica is kept on.
    every
        How often it is brought up to date: 90s, 15m, 2h, 1d. Without it, now, and as often as was said before.
    wait
        Return when this sync is over, and show how it goes.
    """
    around = context()
    every_s = None if every is None else interval_of(every)
    sync = replications.replicate(around, name, target=to, every_s=every_s)
    until = migrations.is_over if wait else migrations.is_past_check
    with live_migration(wanted=wait) as look:
        ended = migrations.await_migration(around, sync, until=until, look=look)
    document = replications.show_replication(around, name, target=to)
    show(document, _text(document))
    for problem in ended["errors"]:
        complain(Problem(**problem))
    return migrations.exit_status_of(ended["state"]) if migrations.is_over(ended) else 0


def _text(document: dict[str, Any]) -> str:
    words = f"{document['vm']} {document['source']} → {document['target']}: {document['state']}"
    if document["synced_at"]:
        words += f", generation {document['generation']}, {interval(document['lag_s'])} old"
    return words


@app.command(name="list")
def list_() -> None:
    """All replications, with the age of what they hold."""
    documents = replications.list_replications(context())
    columns = {name: name for name in ("vm", "source", "target", "state", "generation", "age", "sent", "every", "sync")}
    show(documents, table([{**document, **_cells(document)} for document in documents], columns))
    for document in documents:
        if document["state"] in ("failed", "needs_operator") and (error := document["error"]):
            show_text(f"  {document['vm']} → {document['target']}: {error['code']}: {error['message']}")


def _cells(document: dict[str, Any]) -> dict[str, Any]:
    return {
        "sent": size(document["bytes"]),
        **{
            cell: None if document[key] is None else interval(document[key])
            for cell, key in (("age", "lag_s"), ("every", "every_s"))
        },
    }


@app.command
def end(name: str, /, *, to: str) -> None:
    """Keep a replica no longer, and remove it.

    Parameters
    ----------
    name
        The VM.
    to
        The node that the replica is on.
    """
    replications.end_replication(context(), name, target=to)
    show({"vm": name, "target": to}, f"{name} is not replicated to {to} any more")
