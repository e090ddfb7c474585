"""The shell around every phase."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from models import Phase
from tasks import runner
from tasks.runner import Notes, StepRun
from tests.unit.services.world import World

WAIT_S = 20.0


class Turn:
    """A lock that says when somebody found it taken."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.found_taken = threading.Event()

    def acquire(self, *, blocking: bool) -> bool:
        got = self._lock.acquire(blocking=blocking)
        if not got:
            self.found_taken.set()
        return got

    def release(self) -> None:
        self._lock.release()


def test_undo_waits_for_a_step_that_does_not_know_that_it_lost_its_lease(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its thread is in code that awaits nothing; what it makes after that is what the undo is there for."""
    turn, begun, go_on, happened = Turn(), threading.Event(), threading.Event(), list[str]()
    monkeypatch.setattr(runner, "context", lambda: world.context)
    monkeypatch.setattr(runner._turns, "of", lambda _: turn)

    async def run(_: StepRun) -> Notes | None:
        begun.set()
        assert go_on.wait(WAIT_S)
        happened.append("made")
        return None

    async def undo(_: StepRun) -> Notes | None:
        happened.append("undone")
        return None

    def execute() -> None:
        (message,) = [message for message in world.sent if message.task == f"haulier.{Phase.COPY_COLD}"]
        world.sent.clear()
        runner.execute(message.row, run=run, undo=undo)

    world.file()
    world.complete(world.go(Phase.SYNC_TPM))
    with ThreadPoolExecutor() as pool:
        step = pool.submit(execute)
        assert begun.wait(WAIT_S)
        world.let_lease_end_of(Phase.COPY_COLD)
        world.sweep()
        undone = pool.submit(execute)
        try:
            assert turn.found_taken.wait(WAIT_S)
        finally:
            go_on.set()
        step.result(WAIT_S)
        undone.result(WAIT_S)
    assert happened == ["made", "undone"]


def test_attempts_have_a_turn_each() -> None:
    one, other = runner._turns.of(1), runner._turns.of(2)
    assert one is runner._turns.of(1)
    assert one is not other
