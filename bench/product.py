"""The product as a user has it: a stack of its own in a folder that goes, driven by the `haulier` command."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.vm import NAME, Guest

_NODES = ("alpha", "beta")
_COMMAND_S = 300


@dataclass(slots=True)
class Product:
    """A running stack with one VM."""

    state: Path
    _at: int = 0

    def haulier(self, *words: str) -> Any:  # noqa: ANN401 - a command's JSON document
        """Run one command. Raises CalledProcessError with what it said."""
        mine = {name: value for name, value in os.environ.items() if not name.startswith("HAULIER_")}
        mine |= {"HAULIER_STATE": str(self.state), "HAULIER_ACCEL": "tcg"}
        done = subprocess.run(
            [sys.executable, "-m", "haulier.cli.main", *words, "--json"],
            env=mine,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            timeout=_COMMAND_S,
            check=True,
        )
        return json.loads(done.stdout)

    @contextlib.contextmanager
    def running(self) -> Iterator[Product]:
        """The guest runs inside the block."""
        self.haulier("vm", "start", NAME)
        try:
            yield self
        finally:
            self.haulier("vm", "stop", NAME, "--now")

    def move(self) -> dict[str, Any]:
        """Move the VM to the other node. Returns the migration's document."""
        self._at = 1 - self._at
        document: dict[str, Any] = self.haulier("migrate", NAME, "--to", _NODES[self._at], "--wait")
        return document


@contextlib.contextmanager
def product(guest: Guest) -> Iterator[Product]:
    """A stack with the VM defined; it is down and its folder gone afterwards, whatever happened."""
    stack = Product(Path(tempfile.mkdtemp(prefix="haulier-bench-")))
    try:
        stack.haulier("up", "--nodes", ",".join(_NODES))
        file = stack.state / f"{NAME}.conf"
        file.write_text(guest.conf)
        stack.haulier("vm", "define", str(file), "--node", _NODES[0])
        yield stack
    finally:
        try:
            stack.haulier("down", "--vms")
        finally:
            shutil.rmtree(stack.state, ignore_errors=True)
