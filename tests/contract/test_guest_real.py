"""A guest's QEMU, started by what `vm start` and `open_target` have in common."""

from __future__ import annotations

import pytest

from haulier.errors import StepFailed
from haulier.hypervisor.layout import VmPlace
from tasks.guest import launch_guest
from tests.contract.real import run, spec

pytestmark = pytest.mark.real


def test_note_of_an_earlier_qemu_is_not_the_next_one_s(place: VmPlace) -> None:
    """A worker that dies before it has given the guest to the new one must not make it look as if it had."""
    place.note_epoch(3)
    with pytest.raises(StepFailed, match="qemu_not_started"):
        run(launch_guest(place, spec(place, program="false"), tpm=None, swtpm=None))
    assert place.epoch() is None
