"""`haulier explain`, `migrate`, and `haulier migration …`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from cyclopts import App, Parameter

from haulier.cli.around import context
from haulier.cli.output import complain, show, show_text, size, table
from haulier.cli.progress import live_migration, share
from haulier.errors import Problem
from haulier.services import migrations, queue
from haulier.services.filing import USUAL_PRIORITY, Terms
from haulier.services.transfers import read_storage_map

app = App(name="migration", help="Show, list, cancel and retry migrations.")
Flag = Annotated[bool, Parameter(negative=())]
StorageMap = Annotated[tuple[str, ...], Parameter(negative=(), show_default=False)]


def explain(name: str, /, *, to: str, storage_map: StorageMap = ()) -> int:
    """How each volume of a VM would cross now, live or offline, and what would be refused. Touches nothing.

    Parameters
    ----------
    name
        The VM.
    to
        The target node.
    storage_map
        As for migrate.
    """
    document = migrations.explain(context(), name, target=to, storage_map=read_storage_map(storage_map))
    for refusal in document["refusals"]:
        complain(Problem(**refusal))
    rows = table(document["volumes"], {"device": "device", "role": "role", "method": "method", "because": "reason"})
    show(document, rows)
    for volume in document["volumes"]:
        if volume["storage"] != volume["target_storage"]:
            show_text(f"{volume['device']} goes from the storage {volume['storage']} onto {volume['target_storage']}")
    if not document["refusals"]:
        show_text(f"phases: {' → '.join(document['phases'])}; about {document['estimate_s']} s")
    return 2 if document["refusals"] else 0


@Parameter(name="*")
@dataclass(frozen=True)
class Wishes:
    """How it is to be done.

    Parameters
    ----------
    offline
        Move a VM that does not run; it does not run on the target either.
    storage_map
        SOURCE:TARGET puts the volumes of a storage onto another one; may be given more than once. Without it, each goes
        to the storage of the same name.
    timeout_s
        Undo it when the guest was not handed over after so many seconds; 0: however long it takes.
    stall_timeout_s
        Undo it when a phase shows no progress for so many seconds; 0: never.
    priority
        Of two that wait for room, the higher one goes first; a point of it is worth a minute of waiting.
    tries
        How often it is begun at most, if it fails by something that may pass.
    label
        A word by which those that have it may be held: haulier queue pause LABEL.
    may_pause
        Let a guest that does not settle stand still for as long as the rest of its RAM takes, where 8 s are not enough.
    """

    offline: Flag = False
    storage_map: StorageMap = ()
    timeout_s: float | None = None
    stall_timeout_s: float | None = None
    priority: int = USUAL_PRIORITY
    tries: int = 1
    label: str | None = None
    may_pause: Flag = False


def migrate(name: str, /, *, to: str, wait: Flag = False, wishes: Wishes = Wishes()) -> int:
    """Migrate a VM. Without --wait the command returns when everything that could be refused has been checked, or when
    the migration waits for its turn (`haulier queue`).

    Parameters
    ----------
    name
        The VM.
    to
        The target node.
    wait
        Return when it is over, and show how it goes.
    """
    around = context()
    terms = Terms(
        offline=wishes.offline,
        storage_map=read_storage_map(wishes.storage_map),
        timeout_s=wishes.timeout_s,
        stall_s=wishes.stall_timeout_s,
        priority=wishes.priority,
        tries=wishes.tries,
        label=wishes.label,
        may_pause=wishes.may_pause,
    )
    migration_id = migrations.file_migration(around, name, target=to, terms=terms)
    until = migrations.is_over if wait else migrations.is_past_check
    with live_migration(wanted=wait) as look:
        document = migrations.await_migration(around, migration_id, until=until, look=look)
    return _end(document)


def _end(document: dict[str, Any]) -> int:
    """Print a migration's document and give the exit status of its state; one that is under way is no failure."""
    show(document, _text(document))
    _complain(document)
    return migrations.exit_status_of(document["state"]) if document["state"] in migrations.ENDED else 0


def _text(document: dict[str, Any]) -> str:
    lines = [f"{_head(document)}: {document['state']}"]
    if document["waiting_for"]:
        lines.append(f"  waits: {document['waiting_for']['text']}  (haulier queue)")
    if document["downtime_ms"] is not None:
        pause = ", ".join(f"{name} {at:.1f}" for name, at in document["pause"].items())
        lines.append(f"  pause {document['downtime_ms']:.1f} ms ({pause})")
    if document["state"] == "done":
        ram = f", RAM {size(document['ram_bytes'])} sent" if document["ram_bytes"] is not None else ""
        lines.append(f"  total {document['total_s']:.1f} s{ram}")
    tpm = document["tpm"]
    if document["state"] == "done" and tpm and tpm["digest_target"]:
        same = "same" if tpm["digest_source"] == tpm["digest_target"] else "DIFFERENT"
        lines.append(f"  TPM state {tpm['digest_source'][:16]}… on both sides: {same}")
    return "\n".join(lines)


def _head(document: dict[str, Any]) -> str:
    if document["kind"] == "migration":
        return f"migration {document['id']}: {document['vm']} {document['source']} → {document['target']}"
    generation = document["generation"] or "?"
    return f"sync {document['id']}: generation {generation} of {document['vm']} to its replica on {document['target']}"


def _complain(document: dict[str, Any]) -> None:
    """What was given up by somebody's wish ended in some error, which is none of its own."""
    for problem in document["errors"] if document["state"] != "cancelled" else ():
        complain(Problem(**problem))


@app.command(name="show")
def show_one(migration_id: int, /) -> None:
    """One migration with its phases and volumes."""
    document = migrations.show_migration(context(), migration_id)
    show(document, _text(document))
    phases = [
        {**phase, "state": f"{phase['state']}{share(phase)}", "seconds": _took(phase["seconds"])}
        for phase in document["phases"]
    ]
    if phases:
        show_text(table(phases, {"phase": "name", "node": "node", "state": "state", "seconds": "seconds"}))
    volumes = [
        {**volume, "bytes": size(volume["bytes"]), "seconds": _took(volume["seconds"])}
        for volume in document["volumes"]
    ]
    if volumes:
        show_text(table(volumes, {name: name for name in ("device", "role", "method", "bytes", "seconds")}))
    _complain(document)


def _took(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.3f}"


@app.command(name="list")
def list_() -> None:
    """The newest migrations."""
    documents = migrations.list_migrations(context())
    columns = {"id": "id", "vm": "vm", "source": "source", "target": "target", "state": "state", "seconds": "total_s"}
    show(documents, table(documents, columns))


@app.command
def cancel(migration_id: int, /) -> None:
    """End a migration that waits, or have one that is at work undone; possible until the guest has been handed over."""
    document = migrations.cancel_migration(context(), migration_id)
    words = "is cancelled; it had not begun" if document["state"] == "cancelled" else "is being undone"
    show(document, f"migration {migration_id} {words}")


@app.command(name="set")
def set_(migration_id: int, /, *, priority: int) -> None:
    """Change the place of a migration that waits.

    Parameters
    ----------
    migration_id
        The migration.
    priority
        As for migrate.
    """
    document = queue.set_priority(context(), migration_id, priority)
    waits = document["position"] is not None
    place = f"place {document['position']} of those that wait to {document['gate']}" if waits else "it waits no more"
    show(document, f"migration {migration_id}: priority {priority}, {place}")


@app.command
def retry(migration_id: int, /, *, wait: Flag = False) -> int:
    """File a failed migration again.

    Parameters
    ----------
    migration_id
        The migration that failed.
    wait
        Return when the new one is over.
    """
    around = context()
    fresh = migrations.retry_migration(around, migration_id)
    until = migrations.is_over if wait else migrations.is_past_check
    with live_migration(wanted=wait) as look:
        return _end(migrations.await_migration(around, fresh, until=until, look=look))
