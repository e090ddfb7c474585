"""The shell around every phase."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext

import pytest

from models import Phase, StepState
from tasks import runner
from tasks.runner import Notes, StepRun
from tests.unit.services.world import World

WAIT_S = 20.0


class Turns(runner.Turns):
    """Says when somebody who came has to wait."""

    def __init__(self) -> None:
        super().__init__()
        self.at_work = threading.Lock()
        self.waits = threading.Event()

    @contextmanager
    def taken(self, attempt_id: int, *, patience_s: float) -> Iterator[bool]:
        if self.at_work.locked():
            self.waits.set()
        with super().taken(attempt_id, patience_s=patience_s) as ours, self.at_work if ours else nullcontext():
            yield ours


def come_together(world: World, monkeypatch: pytest.MonkeyPatch, *, patience_s: float) -> list[str]:
    """A step that is in code that awaits nothing loses its lease, and its undo is called; what happens, in order."""
    turns, begun, go_on, happened = Turns(), threading.Event(), threading.Event(), list[str]()
    world.context.settings.reconcile_s = patience_s
    monkeypatch.setattr(runner, "context", lambda: world.context)
    monkeypatch.setattr(runner, "_turns", turns)

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
        happened.append("gone")

    world.file()
    world.complete(world.go(Phase.SYNC_TPM))
    with ThreadPoolExecutor() as pool:
        step = pool.submit(execute)
        assert begun.wait(WAIT_S)
        world.let_lease_end_of(Phase.COPY_COLD)
        world.sweep()
        undone = pool.submit(execute)
        try:
            assert turns.waits.wait(WAIT_S)
            if patience_s < WAIT_S:
                undone.result(WAIT_S)
        finally:
            go_on.set()
        step.result(WAIT_S)
        undone.result(WAIT_S)
    return happened


def test_undo_waits_for_a_step_that_does_not_know_that_it_lost_its_lease(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it makes after that is what the undo is there for."""
    assert come_together(world, monkeypatch, patience_s=WAIT_S) == ["made", "gone", "undone", "gone"]


def test_who_waited_in_vain_has_taken_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    assert come_together(world, monkeypatch, patience_s=0.1) == ["gone", "made", "gone"]
    assert world.step(Phase.COPY_COLD).state is StepState.UNDO_READY, "`sweep` sends it again"


def test_attempts_do_not_wait_for_each_other() -> None:
    turns = runner.Turns()
    with turns.taken(1, patience_s=0.0) as one, turns.taken(2, patience_s=0.0) as other:
        assert one and other
        with turns.taken(1, patience_s=0.0) as again:
            assert not again
    with turns.taken(1, patience_s=0.0) as later:
        assert later
