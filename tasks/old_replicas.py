"""Files that are no replica's any more are removed: found by their rows, so that none is forgotten whoever dies."""

from __future__ import annotations

from haulier.services.ledger import TpmCopy, drop_reserved, is_recorded
from haulier.services.replicas import old_files, record_gone
from tasks.freeing import Freeing
from tasks.runner import StepRun


def remove_old_replicas(work: StepRun) -> None:
    """Remove them from the target; a TPM's state is overwritten first. Safe to call twice.

    Raises NeedsOperator for a file that is not to be removed; nothing more was then.
    """
    view = work.view
    freeing = Freeing(work.context, view.target.id, attempt_id=view.attempt_id)
    for path in old_files(work.context, view):
        copy = TpmCopy(view.vm_id, view.target.id, path)
        freeing.free(path, is_secret=is_recorded(work.context, copy))
        drop_reserved(work.context, copy)
        record_gone(work.context, view, path)
