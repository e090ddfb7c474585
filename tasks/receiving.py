"""What a carrier has received is on the disk before the rows say so."""

from __future__ import annotations

from haulier.hypervisor.carrier import RemoteExport, close_carrier, flush_export, require_carrier
from haulier.hypervisor.images import flush
from haulier.hypervisor.nbd import NbdServer
from models import Phase, Side
from tasks.runner import StepRun


def write_all(work: StepRun) -> None:
    """Have the carrier write what it has in memory, and end; then flush what its storage has. It may take long.

    Raises StepFailed when it is not there any more: what it had in memory is lost then.
    """
    view, port = work.view, work.view.notes[Phase.RESERVE, Side.TARGET]["carrier_port"]
    require_carrier(work.place)
    for volume in view.crossing:
        flush_export(RemoteExport(NbdServer(view.target.address, port), volume.export, work.keys()))
    close_carrier(work.place)
    for volume in view.crossing:
        flush(volume.target_path)
        flush(volume.final_path)
