"""A VM with the probe guest in it: defined and started as a user would, heard and judged by its serial logs."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from probe.lines import Line, read_lines
from probe.verify import Verdict, VolumeVerdict, verify_logs, verify_volume
from tests.acceptance.commands import Answer, Command
from tests.acceptance.processes import Process, ask
from tests.acceptance.stack import Stack
from tests.acceptance.waiting import wait_until

# Without KVM a tick costs more than what is done at it. At this pace a guest takes a seventh of a core, at the probe's
# usual one a third; it writes to its TPM twenty times a second, to its disk twenty-five times, and says ten lines.
PACE = "tick_us=4000 line_every=25 disk_every=10 tpm_every=12"
TICKS_PER_S = 250
DISK = "virtio0: local:{name}/disk0.raw,size=64M"
# For a stack of `Faults`: dirties faster than the stream is let, and stays in move_memory until somebody ends that.
RESTLESS = "dirty_mib_s=32 dirty_mib=40"
# Takes some seconds there.
SLOW = "dirty_mib_s=12 dirty_mib=24"
TPM = "tpmstate0: local:{name}/tpm.raw,size=4M,version=v2.0"
_FULL_BYTES = 32 << 20
_FULL = f"virtio1: local:{{name}}/full.raw,size={_FULL_BYTES >> 20}M"


@dataclass
class Guest:
    """One VM. `conf` are the lines of its file that tell of volumes and cards, `{name}` being the VM's.

    `tpm_may_fail`: its swtpm was killed, so that some of its TPM's answers were errors; what it was told was written
    must be there all the same.
    """

    stack: Stack
    name: str
    boot: str
    conf: tuple[str, ...] = (DISK, TPM)
    memory_mib: int = 64
    tpm_may_fail: bool = field(default=False, init=False)

    def define(self, node: str = "alpha", *words: str) -> Any:
        """Write its file and have it taken over."""
        return self.stack.haulier("vm", "define", str(self.write_conf()), "--node", node, *words).done()

    def write_conf(self) -> Path:
        """Write the file that describes it, in the form of Proxmox VE."""
        lines = [f"name: {self.name}", f"memory: {self.memory_mib}", "cores: 1", "machine: q35", "serial0: socket"]
        # `conf` may end in sections of its own.
        lines += [f"args: {self.boot}", *(line.format(name=self.name) for line in self.conf)]
        path = self.stack.state / f"{self.name}.conf"
        path.write_text("\n".join([*lines, ""]))
        return path

    def start(self) -> Any:
        """Start it and wait until the guest has ticked."""
        document = self.stack.haulier("vm", "start", self.name).done()
        self.wait_ticks()
        return document

    def stop(self, *words: str) -> Any:
        """Stop it at once, or as `words` say."""
        return self.stack.haulier("vm", "stop", self.name, *(words or ("--now",))).done()

    def migrate(self, target: str, *words: str) -> Answer:
        """Migrate it and wait for the end."""
        return self.stack.haulier("migrate", self.name, "--to", target, "--wait", *words)

    def begin_migrate(self, target: str, *words: str) -> Command:
        """Migrate it beside the test."""
        return self.stack.begin("migrate", self.name, "--to", target, "--wait", *words)

    def move(self, target: str) -> Any:
        """Migrate it, insist that it worked and that the guest goes on there; give the migration's document."""
        document = self.migrate(target).done()
        assert document["state"] == "done", document
        assert self.row()["node"] == target
        self.wait_ticks()
        return document

    def row(self) -> dict[str, Any]:
        """Its row, with the node's name as `node`."""
        (row,) = self.stack.table("vm", name=self.name)
        (node,) = self.stack.table("node", id=row["node_id"])
        return {**row, "node": node["name"]}

    def volumes(self) -> dict[str, Path]:
        """Where its volumes are, by device."""
        storages = {row["id"]: Path(row["path"]) for row in self.stack.table("storage")}
        rows = self.stack.table("volume", vm_id=self.row()["id"])
        return {row["device"]: storages[row["storage_id"]] / row["name"] for row in rows}

    def logs(self) -> list[Path]:
        """Its serial logs on all nodes that it has been on."""
        return sorted(self.stack.state.glob(f"nodes/*/vms/{self.name}/serial0.log"))

    def lines(self) -> list[Line]:
        """All that the guest has said, oldest boot and tick first."""
        found, _torn = read_lines([log.read_text(encoding="ascii", errors="replace") for log in self.logs()])
        return sorted(found, key=lambda line: (line.boot[:8], line.order))

    def last(self) -> Line | None:
        """The newest that the guest has said."""
        return next(reversed(self.lines()), None)

    def wait_ticks(self, count: int = 50) -> Line:
        """Wait until the guest is `count` ticks further than its newest line, or its first."""
        first = wait_until(f"{self.name}: first line", self.last)

        def look() -> Line | None:
            last = self.last()
            return last if last and (last.boot != first.boot or last.tick >= first.tick + count) else None

        return wait_until(f"{self.name}: tick {first.tick + count}", look)

    def wait_phase(self, phase: str, state: str) -> None:
        """Wait until a phase of its newest migration is in a state."""

        wait_until(f"{self.name}: {phase} {state}", lambda: self.step(phase).get("state") == state, every_s=0.02)

    def step(self, phase: str) -> dict[str, Any]:
        """The newest row of this phase; empty as long as there is none."""
        migrations = self.stack.table("migration", vm_id=self.row()["id"])
        attempts = migrations and self.stack.table("attempt", migration_id=migrations[-1]["id"])
        steps = self.stack.table("step", attempt_id=attempts[-1]["id"], phase=phase) if attempts else []
        return steps[-1] if steps else {}

    def wait_stream(self) -> None:
        """Wait until some of the RAM has crossed."""
        wait_until(
            f"{self.name}: stream", lambda: self.ask("query-migrate").get("ram", {}).get("transferred", 0) > 1 << 20
        )

    def cancel(self, command: Command) -> Answer:
        """Cancel the migration that `command` waits for."""
        migration = self.stack.table("migration", vm_id=self.row()["id"])[-1]
        self.stack.haulier("migration", "cancel", str(migration["id"])).done()
        answer = command.finish()
        assert (answer.status, answer.document["state"]) == (1, "cancelled"), answer
        return answer

    def qemus(self) -> dict[str, Process]:
        """Its QEMU processes by node."""
        found = {}
        for node in self.stack.nodes:
            for process in self.stack.processes("qemu-system-x86_64", node=node, vm=self.name):
                found[node] = process
        return found

    def ask(self, command: str, **arguments: object) -> Any:
        """Run a QMP command in its QEMU on the node that it is on."""
        return ask(self.stack.qmp(self.row()["node"], self.name), command, **arguments)

    def verdict(self) -> Verdict:
        """What its logs say."""
        return verify_logs(self.logs())

    def volume_verdicts(self) -> dict[str, VolumeVerdict]:
        """What its disks say. The guest must not be running: a QEMU that is stopped has flushed them."""
        return {
            device: _judge(path) for device, path in self.volumes().items() if device.startswith(("virtio", "scsi"))
        }


def _judge(volume: Path) -> VolumeVerdict:
    """The verdict on a volume that a stopped QEMU may have open."""
    with tempfile.TemporaryDirectory(prefix="ha-volume-") as folder:
        copy = Path(folder) / "raw"
        subprocess.run(["qemu-img", "convert", "-U", "-O", "raw", volume, copy], check=True, capture_output=True)
        return verify_volume(copy)


def make_full(make_guest: Callable[..., Guest]) -> Guest:
    """A guest with a disk that has something in it, so that its mirror takes a while: zeroes cost nothing."""
    guest = make_guest(DISK, TPM, _FULL, start=False)
    with guest.volumes()["virtio1"].open("r+b") as volume:
        # The guest's own place is in front.
        volume.seek(_FULL_BYTES // 4)
        volume.write(os.urandom(_FULL_BYTES * 3 // 4))
    guest.start()
    return guest
