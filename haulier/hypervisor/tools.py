"""The one place where programs for devices are run, which a transcript of such runs can stand in for."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from haulier.errors import OutcomeUnknown, StepFailed

# Zeroes for a whole device may take as long as the device is large.
_PATIENCE_S = 3600.0


@dataclass(frozen=True, slots=True)
class Done:
    """How a program ended, and its two outputs."""

    status: int
    stdout: str
    stderr: str

    @property
    def words(self) -> str:
        """What it said about its failure, on one line."""
        return " ".join((self.stderr or self.stdout).split())[-300:]


Run = Callable[[Sequence[str]], Done]


def run_tool(words: Sequence[str]) -> Done:
    """Run a program to its end. Raises StepFailed (`tool_missing`), OutcomeUnknown where it does not end."""
    # Messages are compared with what is known of them.
    environment = {**os.environ, "LC_ALL": "C"}
    try:
        done = subprocess.run(
            words, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False,
            timeout=_PATIENCE_S, env=environment,
        )  # fmt: skip
    except FileNotFoundError as error:
        raise StepFailed("tool_missing", f"there is no program {words[0]}", "Install it on this node.") from error
    except subprocess.TimeoutExpired as error:
        raise OutcomeUnknown("tool_silent", f"{words[0]} did not end") from error
    return Done(done.returncode, done.stdout, done.stderr)
