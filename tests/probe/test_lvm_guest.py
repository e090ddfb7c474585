"""The LVM guest: a command's words and its output arrive as they are, and LVM keeps its volumes over a power cut."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from probe.build import BuildError
from scripts.lvm_guest import POOL, VOLUME_GROUP, LvmGuest, LvmGuestError
from scripts.lvm_image import build_lvm_image

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]

IMAGE_FOLDER = Path(__file__).parents[2] / ".build" / "lvm"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the guest's disks are. Without the packages the tests skip here and fail in CI."""
    try:
        build_lvm_image(IMAGE_FOLDER)
    except BuildError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
    if not os.environ.get("CI") and shutil.which("qemu-system-x86_64") is None:
        pytest.skip("not installed: qemu-system-x86_64")
    return tmp_path_factory.mktemp("lvm")


@pytest.fixture(scope="module")
def guest(folder: Path) -> Iterator[LvmGuest]:
    with LvmGuest.start(folder, image_folder=IMAGE_FOLDER) as started:
        yield started


def test_words_and_output_arrive_as_they_are(guest: LvmGuest) -> None:
    words = ["two words", "", "'\"$HOME`\\", "line\nline\n", "ä\udcff", "*", "-n"]
    assert guest.run(["printf", "%s|", *words]).stdout == "".join(f"{word}|" for word in words)
    done = guest.run(["sh", "-c", "echo out; echo err >&2; exit 7"])
    assert (done.status, done.stdout, done.stderr) == (7, "out\n", "err\n")


def test_a_program_that_is_not_there_has_its_status(guest: LvmGuest) -> None:
    assert guest.run(["no-such-program"]).status == 127


def test_a_volume_that_is_open_is_not_removed(guest: LvmGuest) -> None:
    assert guest.run(["lvcreate", "--yes", "--size", "4m", "--name", "held", VOLUME_GROUP]).status == 0
    removal = ["lvremove", "--yes", f"{VOLUME_GROUP}/held"]
    with guest.held_open(f"/dev/{VOLUME_GROUP}/held"):
        refused = guest.run(removal)
    assert (refused.status, refused.stderr) == (5, f"  Logical volume {VOLUME_GROUP}/held in use.\n")
    assert guest.run(removal).status == 0


def test_volumes_are_there_after_a_power_cut(folder: Path, guest: LvmGuest) -> None:
    thin = ["lvcreate", "--yes", "--virtualsize", "8m", "--name", "kept", "--thinpool", POOL, VOLUME_GROUP]
    assert guest.run(thin).status == 0
    after = folder / "after"
    after.mkdir()
    for disk in folder.glob("*.raw"):
        shutil.copy(disk, after)
    with LvmGuest.start(after, image_folder=IMAGE_FOLDER) as again:
        report = again.run(["lvs", "--reportformat", "json", "-o", "lv_active", f"{VOLUME_GROUP}/kept"])
        assert json.loads(report.stdout)["report"][0]["lv"] == [{"lv_active": "active"}]
        with pytest.raises(LvmGuestError, match="does not answer to: sleep 60"):
            again.run(["sleep", "60"], deadline_s=0.5)
