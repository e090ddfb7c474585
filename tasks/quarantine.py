"""TPM states that were handed over: kept for a set time, attached to nothing, then destroyed."""

from __future__ import annotations

from haulier.hypervisor.images import destroy_image
from haulier.services.context import Context
from haulier.services.ledger import expired_copies, record_destroyed


def destroy_expired(context: Context, node_id: int) -> None:
    """Destroy what has been kept long enough on this node. Safe to call twice: the row goes after the file."""
    for row_id, path in expired_copies(context, node_id):
        destroy_image(path)
        record_destroyed(context, row_id)
