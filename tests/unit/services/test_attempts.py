"""What a phase reads of its attempt, and what it writes down while it works."""

from __future__ import annotations

import dataclasses

import pytest

from haulier.errors import StepFailed
from haulier.services import attempts
from haulier.services.attempts import AttemptView
from haulier.services.claims import Claim
from models import Phase, Side, Step, TransferMethod, VolumeTransfer
from tests.unit.services.world import IDENTITY, Halves, World


@pytest.fixture
def view(world: World) -> AttemptView:
    world.file()
    return world.view()


def test_view(world: World, view: AttemptView) -> None:
    assert (view.vm, view.epoch, view.number, view.key, view.tpm_identity) == ("web", 0, 1, "1-1", IDENTITY)
    assert (view.source.name, view.target.name, view.target.ports) == ("alpha", "beta", (62000, 62999))
    assert {each.device: each.method for each in view.transfers} == {
        "scsi0": TransferMethod.MIRROR,
        "ide2": TransferMethod.COPY,
        "tpmstate0": TransferMethod.TPM_SYNC,
    }
    assert view.tpm is not None
    assert view.tpm.device == "tpmstate0"
    assert [each.device for each in view.by_method(TransferMethod.MIRROR, TransferMethod.COPY)] == ["scsi0", "ide2"]
    assert view.definition.name == "web"
    assert attempts.require_tpm_transfer(view) == view.tpm


def test_attempt_without_tpm(view: AttemptView) -> None:
    bare = dataclasses.replace(view, transfers=())
    assert bare.tpm is None
    with pytest.raises(StepFailed, match="tpm_missing"):
        attempts.require_tpm_transfer(bare)


def test_notes_of_earlier_steps_are_there(world: World, view: AttemptView) -> None:
    held = world.take()
    attempts.note_on_step(world.context, held, a=1)
    attempts.note_on_step(world.context, held, b=2)
    assert world.view().notes[Phase.CHECK, Side.CONTROL] == {"a": 1, "b": 2}


def test_progress_of_a_transfer(world: World, view: AttemptView) -> None:
    attempts.update_transfer(world.context, view.transfers[0].id, bytes=7, seconds=1.5)
    with world.context.database.read() as session:
        row = session.get_one(VolumeTransfer, view.transfers[0].id)
    assert (row.bytes, row.seconds) == (7, 1.5)


# -- the source's word ------------------------------------------------------------------------------------------------


def test_target_sees_the_sources_word_once_it_is_given(world: World, halves: Halves) -> None:
    move, _ = halves
    assert attempts.source_note(world.context, 1) is None
    assert attempts.note_source_done(world.context, move, {"digest": None, "was_running": True}, {"paused": 1.5})
    assert attempts.source_note(world.context, 1) == attempts.SourceNote(None, True, 1.5)


def test_word_of_an_outdated_source_is_never_seen(world: World, halves: Halves) -> None:
    """Its QEMU may have been told to go on meanwhile."""
    move, _ = halves
    world.let_lease_end(move)
    world.sweep()
    assert not attempts.note_source_done(world.context, move, {"digest": "d", "was_running": True}, {})
    assert attempts.source_note(world.context, 1) is None


def test_word_of_a_source_that_was_replaced_changes_nothing(world: World, halves: Halves) -> None:
    """The step runs again, under another number: what the first worker still has to say is not the second's."""
    move, hand = halves
    world.commit(hand)
    world.let_lease_end(move)
    world.sweep()
    again = world.take()
    assert again.step_id == move.step_id
    assert not attempts.note_source_done(world.context, move, {"digest": "d", "was_running": True}, {})
    assert attempts.source_note(world.context, 1) is None
    assert attempts.note_source_done(world.context, again, {"digest": "e", "was_running": True}, {})


def test_word_survives_the_end_of_the_step(world: World, halves: Halves) -> None:
    move, _ = halves
    attempts.note_source_done(world.context, move, {"digest": "d", "was_running": False}, {"paused": 1.5})
    world.complete(move)
    note = attempts.source_note(world.context, 1)
    assert note == attempts.SourceNote("d", False, 1.5)


def test_notes_are_kept_when_a_step_is_done(world: World, view: AttemptView) -> None:
    held: Claim = world.take()
    attempts.note_on_step(world.context, held, port=1)
    world.complete(held)
    with world.context.database.read() as session:
        assert session.get_one(Step, held.step_id).notes == {"port": 1}
