"""Programs are run here: those for devices by `run_tool`, which a transcript of such runs can stand in for."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from haulier.errors import OutcomeUnknown, StepFailed

# Zeroes for a whole device may take as long as the device is large.
_PATIENCE_S = 3600.0
_WATCH_S = 0.5


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
    try:
        done = subprocess.run(
            words, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False,
            timeout=_PATIENCE_S, env=_environment(),
        )  # fmt: skip
    except FileNotFoundError as error:
        raise _missing(words) from error
    except subprocess.TimeoutExpired as error:
        raise OutcomeUnknown("tool_silent", f"{words[0]} did not end") from error
    return Done(done.returncode, done.stdout, done.stderr)


async def run_beside(words: Sequence[str], *, told: str = "", watch: Callable[[int], None] | None = None) -> Done:
    """Run a program to its end while others go on; it is killed if we are told to end before.

    `told` is what it reads; `watch` is called now and then with its pid. Raises StepFailed (`tool_missing`).
    """
    pipe = subprocess.PIPE
    try:
        process = await asyncio.create_subprocess_exec(*words, stdin=pipe, stdout=pipe, stderr=pipe, env=_environment())
    except FileNotFoundError as error:
        raise _missing(words) from error
    talking = asyncio.ensure_future(process.communicate(told.encode()))
    try:
        while not talking.done():
            await asyncio.wait({talking}, timeout=_WATCH_S if watch else None)
            if watch and not talking.done():
                watch(process.pid)
        stdout, stderr = (said.decode(errors="replace") for said in talking.result())
    finally:
        if process.returncode is None:
            process.kill()
        with suppress(asyncio.CancelledError):
            await talking
    return Done(await process.wait(), stdout, stderr)


def _environment() -> dict[str, str]:
    # Messages are compared with what is known of them.
    return {**os.environ, "LC_ALL": "C"}


def _missing(words: Sequence[str]) -> StepFailed:
    return StepFailed("tool_missing", f"there is no program {words[0]}", "Install it on this node.")
