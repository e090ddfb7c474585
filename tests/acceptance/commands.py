"""Runs `haulier ... --json` in processes of their own, forked from one that has imported all of it.

Starting Python costs more than most commands do, and hundreds are run here. What is forked is the entry point itself,
with files as its outputs, the environment it is given, and an exit status.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_COMMAND_S = 170.0
_FORKS = multiprocessing.get_context("forkserver")
_ROOMS = ("main", "vm", "migration", "node", "stack")
# pytest, as multiprocessing imports our own main module there.
_FORKS.set_forkserver_preload(["pytest", "tests.acceptance.commands", *(f"haulier.cli.{room}" for room in _ROOMS)])


@dataclass(frozen=True)
class Answer:
    """What one command left behind: exit status and both outputs."""

    words: tuple[str, ...]
    status: int
    output: str
    errors: str

    @property
    def document(self) -> Any:
        """The one JSON document on standard output."""
        return json.loads(self.output)

    def done(self) -> Any:
        """The document of a command that must have succeeded."""
        assert self.status == 0, f"haulier {' '.join(self.words)}: status {self.status}\n{self.output}\n{self.errors}"
        return self.document


class Command:
    """A command that runs beside the test."""

    def __init__(self, words: tuple[str, ...], environment: Mapping[str, str]) -> None:
        self._words = words
        self._outputs = tempfile.TemporaryDirectory(prefix="ha-command-")
        arguments = (words, dict(environment), self._outputs.name)
        self._process = _FORKS.Process(target=_run, args=arguments, daemon=True)
        self._process.start()
        self._has_ended = False

    def finish(self) -> Answer:
        """Wait for its end."""
        self._process.join(_COMMAND_S)
        status = self._process.exitcode
        answer = Answer(self._words, -1 if status is None else status, self._read("output"), self._read("errors"))
        self.end()
        assert status is not None, f"haulier {' '.join(self._words)} does not end\n{answer.output}\n{answer.errors}"
        return answer

    def abandon(self) -> Answer:
        """Stop waiting for it, as a person does with Ctrl-C."""
        assert self._process.pid is not None
        os.kill(self._process.pid, signal.SIGINT)
        return self.finish()

    def end(self) -> None:
        """Kill it if it still runs, and forget it, with what it holds of this process. Safe to call twice."""
        if self._has_ended:
            return
        self._has_ended = True
        self._process.kill()
        self._process.join()
        self._process.close()
        self._outputs.cleanup()

    def _read(self, name: str) -> str:
        return Path(self._outputs.name, name).read_text()


def _run(words: tuple[str, ...], environment: Mapping[str, str], outputs: str) -> None:
    """In the forked process: become the command."""
    for number, name in enumerate(("output", "errors"), start=1):
        file = os.open(Path(outputs, name), os.O_WRONLY | os.O_CREAT)
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(environment)
    # The process that is forked has no use for Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.modules["haulier.cli.main"].main([*words, "--json"])
