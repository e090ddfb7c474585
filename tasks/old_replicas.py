"""Files that are no replica's any more are removed: found by their rows, so that none is forgotten whoever dies."""

from __future__ import annotations

from pathlib import Path

from haulier.errors import NeedsOperator
from haulier.hypervisor.images import destroy_image, remove_image
from haulier.hypervisor.volume_paths import innermost, require_inside
from haulier.services.allocations import storage_folders
from haulier.services.ledger import TpmCopy, drop_reserved, is_recorded
from haulier.services.replicas import old_files, record_gone
from tasks.runner import StepRun


def remove_old_replicas(work: StepRun) -> None:
    """Remove them from the target; a TPM's state is overwritten first. Safe to call twice.

    Raises NeedsOperator for a path that leads out of its storage; nothing more was removed then.
    """
    folders = storage_folders(work.context, work.view.target.id)
    for path in old_files(work.context, work.view):
        require_inside(path, innermost(path, folders), error=NeedsOperator)
        _remove(work, path)


def _remove(work: StepRun, path: Path) -> None:
    view = work.view
    copy = TpmCopy(view.vm_id, view.target.id, path)
    if is_recorded(work.context, copy):
        destroy_image(path)
        drop_reserved(work.context, copy)
    else:
        remove_image(path)
    record_gone(work.context, view, path)
