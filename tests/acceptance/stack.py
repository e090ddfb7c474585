"""A local stack as a user has it: started by `haulier up`, asked by `haulier ... --json`, looked into by its rows."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any
from xmlrpc.client import ServerProxy

import httpx2
from sqlalchemy import MetaData, select
from supervisor.xmlrpc import SupervisorTransport

from models import Base, Database
from tests.acceptance.commands import Answer, Command
from tests.acceptance.processes import VM_PROGRAMS, Process, processes_of
from tests.acceptance.waiting import wait_until

ROOT = Path(__file__).parents[2]
# Beyond the range that other stacks of this machine use by default, and another one for each of pytest-xdist's workers.
_FIRST_PORT = 62000 + 100 * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
PORTS = range(_FIRST_PORT, _FIRST_PORT + 100)
# What a worker's heartbeat changes by itself.
_BEATING = {"node": ("heartbeat_at", "facts")}
# What is left of a migration that was filed and refused by its first phase: the record of the wish.
FILED = ("migration", "attempt", "step", "volume_transfer", "event")


class Stack:
    """One stack with its state folder. `settings` are environment variables beside the tests' usual ones."""

    def __init__(self, nodes: tuple[str, ...], settings: dict[str, str]) -> None:
        self.nodes = nodes
        # Directly under /tmp: sockets have room for 107 bytes of path.
        self.state = Path(tempfile.mkdtemp(prefix="ha-", dir="/tmp"))
        self._commands: list[Command] = []
        clean = {name: value for name, value in os.environ.items() if not name.startswith("HAULIER_")}
        self.environment = {
            **clean,
            "PYTHONPATH": str(ROOT),
            "HAULIER_STATE": str(self.state),
            "HAULIER_ACCEL": "tcg",
            "HAULIER_PORTS": f"{PORTS[0]}-{PORTS[-1]}",
            **settings,
        }

    def begin(self, *words: str) -> Command:
        """Run a command beside the test."""
        command = Command(words, self.environment)
        self._commands.append(command)
        return command

    def haulier(self, *words: str) -> Answer:
        """Run a command to its end."""
        return self.begin(*words).finish()

    def up(self) -> Any:
        """Start it, or find that it runs; by the program itself, as a person does."""
        words = [sys.executable, "-m", "haulier.cli.main", "up", "--nodes", ",".join(self.nodes), "--json"]
        done = subprocess.run(words, cwd=ROOT, env=self.environment, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr.decode()
        return json.loads(done.stdout)

    def call(self, path: str, body: Any = None, *, token: str = "") -> tuple[int, Any]:
        """Call the HTTP API, with a body to POST; the status and the document that come back."""
        url = (self.state / "web.url").read_text().strip() + path
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        method = "GET" if body is None else "POST"
        answer = httpx2.request(method, url, json=body, headers=headers, timeout=60)
        return answer.status_code, answer.json()

    def remove(self) -> list[Process]:
        """Stop everything and remove the folder, however bad things stand; give what `down` had left running."""
        for command in self._commands:
            # A test that failed has left its commands alone.
            command.end()
        try:
            self.haulier("down", "--vms")
            left = processes_of(self.state)
        finally:
            self._kill_all()
            self.database.close()
            shutil.rmtree(self.state, ignore_errors=True)
        return left

    def _kill_all(self) -> None:
        for process in processes_of(self.state):
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)

    @cached_property
    def database(self) -> Database:
        """The stack's own database."""
        return Database(self.environment.get("HAULIER_DATABASE_URL") or f"sqlite:///{self.state / 'haulier.db'}")

    def images(self, node: str) -> Path:
        """The folder of a node's own images."""
        return self.state / "nodes" / node / "images"

    def run_folder(self, node: str, vm: str) -> Path:
        """Where sockets and pid files of a VM are."""
        return self.state / "run" / node / vm

    def qmp(self, node: str, vm: str) -> Path:
        """The monitor for people and tools."""
        return self.run_folder(node, vm) / "qmp.sock"

    def processes(self, *programs: str, node: str = "", vm: str = "") -> list[Process]:
        """The processes of VMs that run these programs (all of `VM_PROGRAMS` unless given), on a node, of a VM."""
        token = f"{self.state}/run/{node}/{vm}/" if vm else f"{self.state}/"
        return [
            process
            for process in processes_of(self.state)
            if process.program in (programs or VM_PROGRAMS) and any(token in word for word in process.argv)
        ]

    def supervisor(self, method: str, *arguments: str) -> Any:
        """Call what holds the workers: a method of supervisord's XML-RPC."""
        socket = self.state / "run" / "supervisor.sock"
        transport = SupervisorTransport(None, None, f"unix://{socket}")
        try:
            return getattr(ServerProxy("http://localhost", transport=transport).supervisor, method)(*arguments)
        finally:
            transport.close()

    def kill(self, program: str) -> None:
        """End one of the stack's programs as `kill -9` does, and wait until the supervisor has begun it anew."""
        pid = int(self.supervisor("getProcessInfo", program)["pid"])
        os.kill(pid, signal.SIGKILL)
        wait_until(f"a new {program}", lambda: self.supervisor("getProcessInfo", program)["pid"] not in (0, pid))

    def guardian_pid(self, node: str) -> int:
        """The process that the supervisor has for a node's worker; 0 while there is none."""
        return int(self.supervisor("getProcessInfo", f"node-{node}")["pid"])

    def worker_pid(self, node: str) -> int:
        """The one that works, its child; 0 while there is none."""
        guardian = self.guardian_pid(node)
        with suppress(OSError):
            children = Path(f"/proc/{guardian}/task/{guardian}/children").read_text().split()
            return int(children[0]) if children else 0
        return 0

    def restart_worker(self, node: str) -> None:
        """End a node's worker in good order, start it again, and wait until it beats."""
        self.supervisor("stopProcess", f"node-{node}")
        self.start_worker(node)

    def start_worker(self, node: str) -> None:
        """Start a node's worker that was stopped, and wait until it beats."""
        self.supervisor("startProcess", f"node-{node}")
        wait_until(f"worker of {node}", lambda: self.beats(node))

    def beats(self, node: str) -> bool:
        """Whether the node's worker was heard just now."""
        now = datetime.now(UTC)
        heard = [row["heartbeat_at"] for row in self.table("node", name=node)]
        return any(at is not None and abs(now - at) < timedelta(seconds=3) for at in heard)

    def table(self, name: str, /, **wanted: object) -> list[dict[str, Any]]:
        """All rows of a table that have these values, in the order of their keys."""
        columns = Base.metadata.tables[name]
        query = select(columns).filter_by(**wanted).order_by(*columns.primary_key.columns)
        with self.database.read() as session:
            return [dict(row) for row in session.execute(query).mappings()]

    def snapshot(self, *, without: tuple[str, ...] = ()) -> dict[str, Any]:
        """Rows, files and processes: what must be the same before and after a command that touches nothing."""
        metadata: MetaData = Base.metadata
        rows = {name: self._still(name) for name in metadata.tables if name not in without}
        nodes = self.state / "nodes"
        files = sorted(
            (str(path.relative_to(nodes)), _size(path)) for path in nodes.rglob("*") if "vms" not in path.parts
        )
        return {"rows": rows, "files": files, "processes": sorted(str(process) for process in self.processes())}

    def _still(self, name: str) -> list[dict[str, Any]]:
        beating = _BEATING.get(name, ())
        return [{key: value for key, value in row.items() if key not in beating} for row in self.table(name)]

    def log_tails(self, *, lines: int = 40) -> str:
        """The ends of all logs, for the report of a test that failed."""
        patterns = ("logs/*.log", "nodes/*/vms/*/qemu.log", "nodes/*/vms/*/swtpm.log")
        logs = [log for pattern in patterns for log in sorted(self.state.glob(pattern))]
        parts = []
        for log in logs:
            tail = log.read_text(errors="replace").splitlines()[-lines:]
            parts.append("\n".join([f"--- {log.relative_to(self.state)}", *tail]))
        return "\n".join(parts)


def _size(path: Path) -> int | None:
    # A running guest's qcow2 grows and swtpm rewrites its state: a raw disk alone keeps its size.
    return path.stat().st_size if path.suffix == ".raw" and "tpm" not in path.name else None
