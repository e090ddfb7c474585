"""The VM that is moved: 64 MiB of RAM and 8 KiB more, a 64 MiB disk, a vTPM, the probe guest that writes to all."""

from __future__ import annotations

import dataclasses
import shutil
from dataclasses import dataclass
from pathlib import Path

from haulier.definition import read_proxmox
from haulier.hypervisor.command_line import MachineSpec
from haulier.hypervisor.facts import machines
from probe.build import build

NAME = "bench"
DISK_BYTES = 64 << 20
TOOLS = ("qemu-system-x86_64", "qemu-img", "qemu-storage-daemon", "swtpm", "swtpm_setup", "gcc")
_MEMORY_MIB = 64
# Without KVM, QEMU before 9.0 loses dirty pages when the RAM is a multiple of 256 KiB; the product adds the same.
_ODD_KIB = 8
USUAL = "tick_us=1000"


@dataclass(frozen=True, slots=True)
class Guest:
    """The compiled probe with its options (see probe/README.md)."""

    image: Path
    options: str = USUAL

    @property
    def conf(self) -> str:
        """The VM's file, in the form of Proxmox VE."""
        return "\n".join([
            f"name: {NAME}", f"memory: {_MEMORY_MIB}", "machine: q35", "cpu: qemu64", "serial0: socket",
            f"virtio0: local:{NAME}/disk.raw,size={DISK_BYTES >> 20}M",
            f"tpmstate0: local:{NAME}/tpm.raw,size=4M,version=v2.0",
            f'args: -kernel {self.image} -append "{self.options}"', "",
        ])  # fmt: skip

    def machine(self, program: str) -> MachineSpec:
        """The same VM for a QEMU that is started by hand."""
        definition = read_proxmox(self.conf, source=NAME)
        return MachineSpec(
            definition=dataclasses.replace(definition, machine=machines(program)["q35"]),
            program=program,
            accel="tcg",
            ram_kib=_MEMORY_MIB * 1024 + _ODD_KIB,
            uuid="6f1d3b52-5a1e-4b0e-9d7e-0d2f8f6a1c11",
            run_dir=Path(),
            log_dir=Path(),
            drives=(),
        )


def make_guest(folder: Path) -> Guest:
    """Compile the probe. Raises SystemExit with one line when a tool is missing."""
    if missing := [tool for tool in TOOLS if shutil.which(tool) is None]:
        raise SystemExit(f"the bench needs {', '.join(missing)}: install them (see README.md)")
    return Guest(build(folder))
