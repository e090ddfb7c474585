"""`haulier batch …`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter
from rich.table import Table

from haulier.cli.around import context
from haulier.cli.moments import interval
from haulier.cli.output import show, show_text, table
from haulier.definition.batch_file import AUTO, read_batch
from haulier.definition.files import read_text
from haulier.errors import Refused
from haulier.services import batch_filing, batches

app = App(name="batch", help="File many migrations at once; show, pause, resume and cancel them.")
_FORMS = {".toml": "toml", ".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl"}
_FORMS_HINT = "give a .toml, .csv or .jsonl file"
_COLUMNS = {"id": "id", "vm": "vm", "source": "source", "target": "target", "priority": "priority"}
# Shown where one of them has any.
_MAY_BE = ("label", "deadline")


@Parameter(name="*")
@dataclass(frozen=True)
class Chosen:
    """The VMs of a batch that is no file.

    Parameters
    ----------
    node
        All VMs on this node, instead of a file.
    tag
        All VMs with this tag, instead of a file.
    to
        Their target; `auto` chooses one for each.
    """

    node: str | None = None
    tag: str | None = None
    to: str = AUTO


@app.command
def submit(
    file: Path | None = None,
    /,
    *,
    chosen: Chosen = Chosen(),
    key: str | None = None,
    policy: str | None = None,
    tries: int = batch_filing.USUAL_TRIES,
    label: str | None = None,
) -> None:
    """File the migrations of a file, or of all VMs on a node or with a tag. All is checked before the first moves.

    Parameters
    ----------
    file
        A .toml, .csv or .jsonl file: vm, and if wanted target, priority, after, deadline, label.
    key
        What the batch is known by; the same key again is the same batch. Not given: what the file says.
    policy
        all_or_nothing_checks (nothing is filed if one is refused), go_on, or `stop_after: 3` failures.
    tries
        How often each is begun at most, if it fails by something that may pass.
    label
        A word for those that have none of their own, by which they may be held: haulier queue pause LABEL.
    """
    around, node, tag, to = context(), chosen.node, chosen.tag, chosen.to
    if (file is None) == (node is None and tag is None):
        raise Refused("bad_batch", "a batch is a file, or --node, or --tag", "haulier batch submit --help")
    if file is not None and to != AUTO:
        raise Refused("bad_batch", "--to is for --node and --tag", "In a file each migration has its own target.")
    if file is not None:
        form = _FORMS.get(file.suffix.lower())
        if form is None:
            raise Refused("bad_batch", f"{file} does not end in .toml, .csv or .jsonl", "By that its form is known.")
        wanted = read_batch(read_text(file, what="batch", most_mib=16, hint=_FORMS_HINT), form=form)
    else:
        wanted = batch_filing.select_entries(around, node=node, tag=tag, target=to)
    document = batch_filing.submit(around, wanted, key=key, policy=policy, tries=tries, label=label)
    again = " is there already (with --key it would be another one)" if document["again"] else ""
    show(document, f"batch {document['id']}{again}: {_counts(document)}")


def _counts(document: dict[str, Any]) -> str:
    return ", ".join(f"{number} {state}" for state, number in sorted(document["counts"].items())) or "empty"


@app.command(name="show")
def show_one(batch_id: int, /) -> None:
    """One batch with its migrations."""
    document = batches.show_batch(context(), batch_id)
    named = f" ({document['name']})" if document["name"] else ""
    show(document, f"batch {batch_id}{named}: {standing(document)}")
    show_text(migrations_table(document))


def standing(document: dict[str, Any]) -> str:
    """How a batch stands, in one line."""
    left = f"; about {interval(document['eta_s'])} left" if document["eta_s"] else ""
    return f"{document['state']}; {_counts(document)}{left}"


def migrations_table(document: dict[str, Any]) -> Table | str:
    """The migrations of a batch."""
    rows = [{**each, "why": _why(each)} for each in document["migrations"]]
    more = [name for name in _MAY_BE if any(row[name] for row in rows)]
    return table(rows, {**_COLUMNS, **{name: name for name in (*more, "state", "why")}})


def _why(migration: dict[str, Any]) -> str:
    """What holds one that waits, or why one failed."""
    if migration["waiting_for"]:
        return str(migration["waiting_for"]["text"])
    return str(migration["error"]["message"]) if migration["error"] else ""


@app.command(name="list")
def list_() -> None:
    """The newest batches."""
    documents = batches.list_batches(context())
    rows = [{**document, "migrations": _counts(document)} for document in documents]
    show(documents, table(rows, {"id": "id", "name": "name", "state": "state", "migrations": "migrations"}))


@app.command
def pause(batch_id: int, /) -> None:
    """Begin none of its migrations any more; those at work go on."""
    _changed(batches.pause(context(), batch_id))


@app.command
def resume(batch_id: int, /) -> None:
    """Let a batch go on that was paused, or that stopped after too many failures."""
    _changed(batches.resume(context(), batch_id))


@app.command
def cancel(batch_id: int, /, *, undo: Annotated[bool, Parameter(negative=())] = False) -> None:
    """End what waits. What is at work finishes.

    Parameters
    ----------
    batch_id
        The batch.
    undo
        Undo what is at work too, as far as its guest was not handed over.
    """
    _changed(batches.cancel(context(), batch_id, undo=undo))


def _changed(document: dict[str, Any]) -> None:
    show(document, f"batch {document['id']}: {document['state']}; {_counts(document)}")
