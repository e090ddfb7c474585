"""The guardian begins anew what was killed, and ends with what ended by itself. With processes: it is about them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from haulier.hypervisor.processes import Daemon, wait_for_end

# The one that works says its pid, and ends with the number that it is told, or on SIGTERM with 5: waited for, because a
# handler would not be called for one that comes just before a read.
_PROGRAM = """
import os, signal, sys, threading
from tasks import guardian
guardian._AT_LEAST_S = {at_least_s}
guardian.begin_working()
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
threading.Thread(target=lambda: os._exit(int(sys.stdin.readline())), daemon=True).start()
print(os.getpid(), flush=True)
signal.sigwait([signal.SIGTERM])
os._exit(5)
"""


@contextmanager
def guarded(*, at_least_s: float = 0.0) -> Iterator[subprocess.Popen[str]]:
    words = [sys.executable, "-c", _PROGRAM.format(at_least_s=at_least_s)]
    root = str(Path(__file__).parents[3])
    guardian = subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": root}
    )
    try:
        yield guardian
    finally:
        guardian.kill()
        guardian.communicate()


def begun(guardian: subprocess.Popen[str]) -> int:
    """The pid of the next one that works. The guardian's own log comes between."""
    assert guardian.stdout
    return next(int(line) for line in guardian.stdout if line.strip().isdigit())


def test_one_that_was_killed_is_begun_anew() -> None:
    with guarded() as guardian:
        first = begun(guardian)
        os.kill(first, signal.SIGKILL)
        second = begun(guardian)
        assert len({first, second, guardian.pid}) == 3
        assert guardian.poll() is None


def test_one_that_does_not_live_is_left_to_the_supervisor() -> None:
    with guarded(at_least_s=3600.0) as guardian:
        os.kill(begun(guardian), signal.SIGKILL)
        assert guardian.wait(20) == 128 + signal.SIGKILL


@pytest.mark.parametrize("status", [0, 2])
def test_end_is_passed_on(status: int) -> None:
    with guarded() as guardian:
        begun(guardian)
        assert guardian.stdin
        guardian.stdin.write(f"{status}\n")
        guardian.stdin.flush()
        assert guardian.wait(20) == status


def test_signals_are_passed_on_once() -> None:
    with guarded() as guardian:
        worker = begun(guardian)
        assert os.getpgid(worker) == worker, "a terminal's Ctrl-C would come by two ways"
        guardian.send_signal(signal.SIGTERM)
        assert guardian.wait(20) == 5


def test_nobody_works_without_a_guardian(tmp_path: Path) -> None:
    with guarded() as guardian:
        worker = begun(guardian)
        pid_file = tmp_path / "pid"
        pid_file.write_text(f"{worker}\n")
        guardian.kill()
        assert wait_for_end(Daemon(pid_file, "guardian", tmp_path / "log"), seconds=20)
