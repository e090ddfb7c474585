"""Two nodes as two hosts would be: a network each, PostgreSQL, a broker that forgets, every part to be killed.

A supervisor starts again what ended, as systemd would on a real host; PostgreSQL is started again by the test.
"""

from __future__ import annotations

import configparser
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from haulier.settings import Settings
from haulier.stack.local import prepare
from haulier.stack.programs import supervisor_config
from tests.acceptance.faults import FaultPoints
from tests.acceptance.processes import Process
from tests.acceptance.stack import ROOT, Stack
from tests.acceptance.waiting import wait_until
from tests.fixtures.postgres import Server
from tests.matrix.network import Host, two_hosts

SOURCE, TARGET = "alpha", "beta"
_IMAGES_BYTES = 256 << 20


class Cluster(Stack):
    """A stack whose nodes have a host each, with the fault points armed as `points` says."""

    def __init__(self, folder: Path) -> None:
        self.points = FaultPoints(folder)
        self._parts = ExitStack()
        self.server = self._parts.enter_context(Server.running(synchronous_commit="on"))
        super().__init__(
            (SOURCE, TARGET),
            {
                **self.points.settings,
                "HAULIER_DATABASE_URL": self.server.cluster.url(self.server.cluster.create_database()),
                "HAULIER_NETWORK": "isolated",
                # Nobody wants to watch two minutes of nothing.
                "HAULIER_STALL_TIMEOUT_S": "10",
            },
        )
        self.hosts: Mapping[str, Host] = dict(zip(self.nodes, self._parts.enter_context(two_hosts()), strict=True))
        # Small, so that it can be filled.
        images = self.images(TARGET)
        images.mkdir(parents=True, mode=0o700)
        _mount(images)
        self._parts.callback(_unmount, images)

    def up(self) -> Any:
        """Start it; for the commands of users it looks like any other."""
        self.environment["HAULIER_BROKER_URL"] = f"redis+socket://{self.state / 'run' / 'broker.sock'}"
        settings = Settings(
            state=self.state,
            database_url=self.environment["HAULIER_DATABASE_URL"],
            broker_url=self.environment["HAULIER_BROKER_URL"],
        )
        prepare(settings)
        file = self.state / "supervisord.conf"
        file.write_text(self._config(settings))
        (self.state / "nodes.list").write_text("\n".join(self.nodes))
        words = [sys.executable, "-m", "supervisor.supervisord", "-c", str(file)]
        subprocess.run(words, env=self.environment, cwd=ROOT, check=True, capture_output=True)
        for node in self.nodes:
            self.wait_for_worker(node)

    def _config(self, settings: Settings) -> str:
        config = configparser.RawConfigParser()
        config.read_string(supervisor_config(settings, self.nodes, with_broker=True))
        for name, host in self.hosts.items():
            program = config[f"program:node-{name}"]
            program["command"] = " ".join([*host.prefix, program["command"]])
            program["environment"] += f',HAULIER_ADDRESS="{host.address}"'
        broker = config["program:broker"]
        # What it forgets when it is killed is all that it knows.
        broker["command"] = broker["command"].replace("--appendonly yes", "--appendonly no")
        return "".join(
            f"[{section}]\n" + "".join(f"{key} = {value}\n" for key, value in config.items(section)) + "\n"
            for section in config.sections()
        )

    def wait_for_worker(self, node: str) -> None:
        """Wait until a node's worker is heard."""
        wait_until(f"worker of {node}", lambda: self.beats(node))

    def pid_of(self, program: str) -> int:
        """The pid of what the supervisor has: `control`, `beat`, `broker`, `node-<name>`; 0 while it is down."""
        return int(self.supervisor("getProcessInfo", program)["pid"])

    def vm_process(self, program: str, node: str, vm: str) -> Process | None:
        """QEMU or swtpm of a VM on a node."""
        return next(iter(self.processes(program, node=node, vm=vm)), None)

    def empty_volumes(self) -> None:
        """Make the room of all volumes on the target free, for the next cell: none of these VMs starts again."""
        for path in self.images(TARGET).glob("*/*"):
            size = path.stat().st_size
            os.truncate(path, 0)
            os.truncate(path, size)

    def remove(self) -> list[Process]:
        """Stop everything and remove the folder."""
        for host in self.hosts.values():
            host.repair()
        for node in self.nodes:
            with suppress(Exception):
                os.kill(self.worker_pid(node), signal.SIGCONT)
        try:
            return super().remove()
        finally:
            self._parts.close()
            shutil.rmtree(self.state, ignore_errors=True)


def _mount(folder: Path) -> None:
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={_IMAGES_BYTES},mode=0700", "haulier-test", str(folder)],
        check=True,
        capture_output=True,
    )


def _unmount(folder: Path) -> None:
    subprocess.run(["umount", "--lazy", str(folder)], check=False, capture_output=True)
