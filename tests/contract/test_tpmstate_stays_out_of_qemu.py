"""A TPM's state can reach neither a mirror nor an export of the VM's own QEMU, asked for as a real one would be."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from haulier.errors import Refused
from haulier.hypervisor.disks import Mirror, serve_disks, start_mirror
from haulier.hypervisor.layout import listening_socket
from haulier.hypervisor.monitor import open_monitor
from haulier.hypervisor.nbd import NbdServer

pytestmark = pytest.mark.real

# Nobody listens there: whatever got past the refusal would be an error of another kind.
NOWHERE = NbdServer("127.0.0.1", 9)


@pytest.fixture
def monitor_path() -> Iterator[Path]:
    """A QEMU that holds a disk and, against every rule, a node with a TPM's state."""
    with TemporaryDirectory(prefix="ha-qemu-", dir="/tmp") as folder:
        path = Path(folder) / "qmp"
        nodes = [f"driver=null-co,node-name=drive-{device}" for device in ("virtio0", "tpmstate0")]
        with listening_socket(path) as listener:
            argv = ["qemu-system-x86_64", "-accel", "tcg", "-nodefaults", "-display", "none", "-S", "-m", "16"]
            argv += [word for node in nodes for word in ("-blockdev", node)]
            argv += [
                "-chardev",
                f"socket,id=m,fd={listener.fileno()},server=on,wait=off",
                "-mon",
                "chardev=m,mode=control",
            ]
            process = subprocess.Popen(argv, pass_fds=[listener.fileno()])
        try:
            yield path
        finally:
            process.kill()
            process.wait()


def test_mirror_refuses_a_tpmstate(monitor_path: Path) -> None:
    async def scenario() -> None:
        async with open_monitor(monitor_path) as monitor:
            with pytest.raises(Refused, match="tpmstate_never_mirrored"):
                await start_mirror(monitor, Mirror("tpmstate0", "tpmstate", NOWHERE, False))
            assert await monitor.execute("query-block-jobs") == []
            names = {node["node-name"] for node in await monitor.execute("query-named-block-nodes")}
            assert names == {"drive-virtio0", "drive-tpmstate0"}

    asyncio.run(scenario())


def test_export_refuses_a_tpmstate_and_serves_nothing(monitor_path: Path) -> None:
    async def scenario() -> None:
        async with open_monitor(monitor_path) as monitor:
            disks = [("virtio0", "disk"), ("tpmstate0", "tpmstate")]
            server = NbdServer("127.0.0.1", 61999)
            with pytest.raises(Refused, match="tpmstate_never_mirrored"):
                await serve_disks(monitor, disks, server=server, tls=False)
            assert await monitor.execute("query-block-exports") == []
            # No server was started either: starting one now works.
            await serve_disks(monitor, disks[:1], server=server, tls=False)
            exports = await monitor.execute("query-block-exports")
            assert [export["node-name"] for export in exports] == ["drive-virtio0"]
            with suppress(Refused):
                await monitor.execute("nbd-server-stop")

    asyncio.run(scenario())
