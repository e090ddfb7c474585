"""TPM states that were handed over: kept for a set time, attached to nothing, then destroyed."""

from __future__ import annotations

from pathlib import Path

import structlog

from haulier.hypervisor.images import destroy_image
from haulier.hypervisor.volume_paths import problem_of_path
from haulier.services.context import Context
from haulier.services.ledger import expired_copies, record_destroyed

log = structlog.get_logger()


def destroy_expired(context: Context, node_id: int, *, quarantine: Path) -> None:
    """Destroy what has been kept long enough in this node's `quarantine`. Safe to call twice: the row goes after the
    file.

    A row that names a file anywhere else is told of in the log, again and again, and nothing is touched for it.
    """
    for row_id, path in expired_copies(context, node_id):
        if problem := problem_of_path(path, quarantine):
            log.error("tpm.not_destroyed", code=problem.code, message=problem.message, row=row_id)
            continue
        destroy_image(path)
        record_destroyed(context, row_id)
