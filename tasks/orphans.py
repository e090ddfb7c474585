"""Volumes that an attempt left although it is over: put away first, freed when they have been kept long enough.

Never one that a row names or a program has open; such a one is told of in the log, and nothing is touched.
"""

from __future__ import annotations

import structlog

from haulier.hypervisor.images import destroy_image
from haulier.hypervisor.processes import holders
from haulier.hypervisor.volume_paths import innermost, problem_of_path
from haulier.services.allocations import paths_in_use, storage_folders
from haulier.services.context import Context
from haulier.services.orphans import Orphan, find_orphans, give_back_promises, record_freed, record_quarantined

log = structlog.get_logger()


def collect_orphans(context: Context, node_id: int) -> None:
    """Put away, or free, what is this node's. Safe to call twice, and after having died at any place in it."""
    give_back_promises(context, node_id)
    orphans = find_orphans(context, node_id)
    if not orphans:
        return
    in_use, folders = paths_in_use(context, node_id), storage_folders(context, node_id)
    for orphan in orphans:
        if orphan.path in in_use:
            log.error("orphan.left", path=str(orphan.path), reason="a row names it")
        elif pids := holders(orphan.path):
            log.error("orphan.left", path=str(orphan.path), reason="it is open", pids=pids)
        elif problem := problem_of_path(orphan.path, innermost(orphan.path, folders)):
            log.error("orphan.left", path=str(orphan.path), reason=problem.message)
        else:
            _collect(context, orphan)


def _collect(context: Context, orphan: Orphan) -> None:
    if orphan.quarantined:
        # It may be a TPM's state.
        destroy_image(orphan.path)
        record_freed(context, orphan)
        return
    if orphan.path.exists():
        orphan.path.rename(orphan.away)
    if orphan.away.exists():
        record_quarantined(context, orphan)
    else:
        record_freed(context, orphan)
