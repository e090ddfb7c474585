"""Volumes that an attempt left although it is over: put away first, freed when they have been kept long enough.

Never one that a row names or a program has open; such a one is told of in the log, and nothing is touched.
"""

from __future__ import annotations

import structlog

from haulier.hypervisor.processes import holders
from haulier.hypervisor.storage import StorageDriver, driver_at
from haulier.services.allocations import paths_in_use, storage_places
from haulier.services.context import Context
from haulier.services.orphans import Orphan, find_orphans, give_back_promises, record_freed, record_quarantined

log = structlog.get_logger()


def collect_orphans(context: Context, node_id: int) -> None:
    """Put away, or free, what is this node's. Safe to call twice, and after having died at any place in it."""
    give_back_promises(context, node_id)
    orphans = find_orphans(context, node_id)
    if not orphans:
        return
    in_use, places = paths_in_use(context, node_id), storage_places(context, node_id)
    for orphan in orphans:
        driver = driver_at(orphan.path, places)
        if orphan.path in in_use:
            log.error("orphan.left", path=str(orphan.path), reason="a row names it")
        elif pids := holders(orphan.path):
            log.error("orphan.left", path=str(orphan.path), reason="it is open", pids=pids)
        elif problem := driver.problem_of(orphan.path):
            log.error("orphan.left", path=str(orphan.path), reason=problem.message)
        else:
            _collect(context, orphan, driver)


def _collect(context: Context, orphan: Orphan, driver: StorageDriver) -> None:
    if driver.has_other_name(orphan.path):
        # It is a replica's file, too (reserve.py), and to overwrite it would be to overwrite that one.
        driver.remove(orphan.path)
        record_freed(context, orphan)
        return
    if orphan.quarantined:
        # It may be a TPM's state.
        driver.destroy(orphan.path)
        record_freed(context, orphan)
        return
    driver.put_away(orphan.path, orphan.away)
    if driver.exists(orphan.away):
        record_quarantined(context, orphan)
    else:
        record_freed(context, orphan)
