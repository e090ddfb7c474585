"""`down --vms` ends every kind of program that a worker may have left."""

from __future__ import annotations

import shutil
from pathlib import Path

from haulier.hypervisor.layout import NodeLayout
from haulier.hypervisor.processes import end, spawn
from haulier.settings import Settings
from haulier.stack import local


def test_all_programs_of_a_vm_are_ended(tmp_path: Path) -> None:
    """Each by its pid file and token; `tail` stands for it."""
    settings = Settings(state=tmp_path)
    layout = NodeLayout(tmp_path / "nodes" / "alpha", settings.sockets / "alpha")
    layout.prepare()
    place = layout.vm("web")
    place.prepare()
    daemons = (place.qemu, place.swtpm, place.carrier, place.reader)
    try:
        for daemon in daemons:
            daemon.pid_file.touch()
            spawn(daemon, ["tail", "-f", daemon.token])
        assert all(daemon.pid() is not None for daemon in daemons)
        assert list(local._end_processes(settings)) == [("alpha", "web")]
        assert [daemon.pid() for daemon in daemons] == [None] * 4
    finally:
        for daemon in daemons:
            end(daemon, patience_s=0.0)
        # Where the state folder's path is long they lie beside it.
        shutil.rmtree(settings.sockets, ignore_errors=True)
