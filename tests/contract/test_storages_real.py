"""Every kind of storage does what the others do: on real folders and devices, on LVM as it was recorded (in a guest,
`make recordings`), and on the LVM of haulier/fakes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from haulier.definition.storage import StorageKind, StoragePlace
from haulier.errors import HaulierError, StepFailed
from haulier.fakes.lvm import FakeLvm
from haulier.hypervisor.processes import holders
from haulier.hypervisor.storage import driver_at, driver_of
from haulier.hypervisor.storage.driver import StorageDriver
from haulier.hypervisor.storage.lvm import LvmDriver
from haulier.hypervisor.tools import Run, run_tool
from tests.recordings.transcript import Player, Recorder

pytestmark = pytest.mark.real

MIB = 1 << 20
RECORDINGS = Path(__file__).parents[1] / "recordings" / "lvm"
GROUP_BYTES, POOL_BYTES = 256 * MIB, 96 * MIB
KINDS = ("folder", "block", "lvm", "lvmthin", "fake lvm", "fake lvmthin")
MADE = [kind for kind in KINDS if kind != "block"]
# Of the recorded guest, and of nothing on this host.
RECORDED_GROUP = "pve"


@dataclass
class Bench:
    """A storage and what can be seen of it from outside; `provide` makes the device that a kind does not make."""

    driver: StorageDriver
    run: Run
    devices: Path | None = None

    @property
    def makes(self) -> bool:
        return self.devices is None

    def path(self, name: str, *, size_bytes: int = 8 * MIB) -> Path:
        """Where a volume of that name is to be."""
        if self.devices is not None:
            self._provide(name, size_bytes)
        return self.driver.place.folder / name

    def _provide(self, name: str, size_bytes: int) -> None:
        assert self.devices
        image = self.devices / name
        image.write_bytes(bytes(MIB) + b"x" * (size_bytes - MIB))
        (self.driver.place.folder / name).symlink_to(attach(image))

    def is_zero(self, path: Path, length: int) -> bool:
        """Whether a volume's front reads as zeroes."""
        return self.run(["cmp", "-s", "-n", str(length), str(path), "/dev/zero"]).status == 0

    def write(self, path: Path) -> None:
        """Put something at a volume's front: more than what LVM wipes of a new one."""
        script = "head -c 8192 /dev/zero | tr '\\0' x | dd of=\"$1\" bs=8192 iflag=fullblock conv=notrunc,fsync"
        done = self.run(["sh", "-c", script, "sh", str(path)])
        assert done.status == 0, done


def attach(image: Path) -> str:
    done = subprocess.run(["losetup", "--find", "--show", image], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture(params=KINDS)
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    kind = request.param
    if kind == "folder":
        yield Bench(driver_of(StoragePlace(StorageKind.FOLDER, tmp_path / "images")), run_tool)
    elif kind == "block":
        yield from _devices(tmp_path)
    elif kind.startswith("fake"):
        yield from _fake(kind.removeprefix("fake "), tmp_path)
    else:
        yield from _recorded(kind, request)


def _devices(folder: Path) -> Iterator[Bench]:
    (folder / "links").mkdir()
    (folder / "backing").mkdir()
    yield Bench(driver_of(StoragePlace(StorageKind.BLOCK, folder / "links")), run_tool, folder / "backing")
    for link in (folder / "links").iterdir():
        if link.is_block_device():
            subprocess.run(["losetup", "--detach", link.resolve()], check=True)


def _fake(kind: str, folder: Path) -> Iterator[Bench]:
    lvm, group = FakeLvm(folder / "lvm"), f"haulier-test-{os.getpid()}"
    lvm.add_group(group, size_bytes=GROUP_BYTES, pool="data", pool_bytes=POOL_BYTES)
    try:
        yield _lvm_bench(kind, Path("/dev") / group, lvm.run)
    finally:
        lvm.remove_all()


def _recorded(kind: str, request: pytest.FixtureRequest) -> Iterator[Bench]:
    path = RECORDINGS / f"{request.node.originalname}-{kind}.json"
    folder = Path("/dev") / RECORDED_GROUP
    if "HAULIER_RECORD" in os.environ:
        recorder = Recorder(request.getfixturevalue("lvm_guest"))
        yield _lvm_bench(kind, folder, recorder)
        recorder.write(path)
        _clear(recorder.run)
    else:
        player = Player(path)
        yield _lvm_bench(kind, folder, player)
        player.require_end()


def _clear(run: Run) -> None:
    """What a test has left must not be in the next one's transcript."""
    for name in run(["lvs", "--noheadings", "-o", "lv_name", RECORDED_GROUP]).stdout.split():
        if name != "data":
            run(["lvremove", "--yes", f"{RECORDED_GROUP}/{name}"])


def _lvm_bench(kind: str, folder: Path, run: Run) -> Bench:
    place = StoragePlace(StorageKind(kind), folder, "data" if kind == "lvmthin" else None)
    return Bench(LvmDriver(place, run=run), run)


@pytest.fixture(scope="session")
def lvm_guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Real LVM, in a Linux guest."""
    from scripts.lvm_guest import LvmGuest  # noqa: PLC0415 - for recording alone

    with LvmGuest.start(tmp_path_factory.mktemp("lvm")) as guest:
        yield guest.run


def test_made_once_and_removed_twice(bench: Bench) -> None:
    driver, path = bench.driver, bench.path("vm-101-disk-0")
    assert driver.problem() is None
    assert driver.exists(path) is not bench.makes
    assert driver.problem_of_new(path, size_bytes=MIB) is None
    driver.make(path, format="raw", size_bytes=MIB)
    assert driver.exists(path)
    if bench.makes:
        problem = driver.problem_of_new(path, size_bytes=MIB)
        assert problem
        assert problem.code == "volume_exists"
        with pytest.raises(StepFailed, match="volume_exists"):
            driver.make(path, format="raw", size_bytes=MIB)
    for _ in range(2):
        driver.remove(path)
    assert driver.exists(path) is not bench.makes


# Prepared devices are there before, or not at all.
@pytest.mark.parametrize("bench", MADE, indirect=True)
def test_new_one_reads_as_zeroes_when_it_is_to(bench: Bench) -> None:
    driver, path = bench.driver, bench.path("vm-101-disk-0")
    # What it leaves is where the next one will be.
    driver.make(path, format="raw", size_bytes=4 * MIB)
    bench.write(path)
    driver.remove(path)
    driver.make(path, format="raw", size_bytes=4 * MIB)
    assert bench.is_zero(path, 4 * MIB) is driver.place.facts.is_zeroed
    driver.remove(path)
    driver.make_blank(path, format="raw", size_bytes=4 * MIB)
    assert bench.is_zero(path, 4 * MIB)
    with pytest.raises(StepFailed, match="volume_exists"):
        driver.make_blank(path, format="raw", size_bytes=4 * MIB)
    driver.remove(path)


@pytest.mark.parametrize("bench", ["lvm", "lvmthin", "fake lvm", "fake lvmthin"], indirect=True)
def test_new_one_that_somebody_died_over(bench: Bench) -> None:
    """Nothing of that name is there, and what is there under another goes with the next try."""
    driver, path = bench.driver, bench.path("vm-101-disk-0")
    unfinished = path.with_name(f"unfinished-{path.name}")
    driver.make(unfinished, format="raw", size_bytes=MIB)
    assert not driver.exists(path)
    driver.make_blank(path, format="raw", size_bytes=MIB)
    assert driver.exists(path)
    assert not driver.exists(unfinished)
    driver.remove(path)


class Killed(BaseException):
    """The worker is not there any more."""


@pytest.mark.parametrize("bench", ["folder", "fake lvm", "fake lvmthin"], indirect=True)
def test_new_one_with_something_at_its_front(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever dies before it is there leaves none of that name."""
    driver, path, content = bench.driver, bench.path("vm-101-efi"), tmp_path / "variables"
    content.write_bytes(b"v" * 4096)

    def die(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("haulier.hypervisor.storage.driver.fill_image", die)
        with pytest.raises(Killed):
            driver.make_blank(path, format="raw", size_bytes=MIB, content=content)
    assert not driver.exists(path)
    driver.make_blank(path, format="raw", size_bytes=MIB, content=content)
    assert path.read_bytes()[:MIB] == content.read_bytes().ljust(MIB, b"\0")
    assert not driver.exists(path.with_name(f"unfinished-{path.name}"))
    driver.remove(path)


def test_what_was_secret_is_overwritten(bench: Bench) -> None:
    driver, path = bench.driver, bench.path("vm-101-tpm")
    driver.make(path, format="raw", size_bytes=4 * MIB)
    bench.write(path)
    assert not bench.is_zero(path, 64)
    for _ in range(2):
        driver.destroy(path)
    if bench.makes:
        assert not driver.exists(path)
    else:
        assert bench.is_zero(path, 8 * MIB), "all that may hold a secret"


@pytest.mark.parametrize("bench", MADE, indirect=True)
def test_odd_size(bench: Bench) -> None:
    driver, path = bench.driver, bench.path("vm-101-cloudinit")
    driver.make_blank(path, format="raw", size_bytes=MIB + 1)
    assert bench.is_zero(path, MIB + 1)
    driver.remove(path)


# In the others what is not written takes no room.
@pytest.mark.parametrize("bench", ["block", "lvm", "fake lvm"], indirect=True)
def test_more_than_there_is(bench: Bench) -> None:
    driver, path = bench.driver, bench.path("vm-101-disk-0")
    with pytest.raises(StepFailed, match=r"volume_not_made|device_too_small"):
        driver.make(path, format="raw", size_bytes=1 << 40)
    assert driver.exists(path) is not bench.makes


def test_put_away(bench: Bench) -> None:
    driver, path = bench.driver, bench.path("vm-101-disk-0")
    away = path.with_name("orphan-7-vm-101-disk-0")
    driver.make(path, format="raw", size_bytes=MIB)
    for _ in range(2):
        driver.put_away(path, away)
    assert driver.exists(away) is bench.makes
    assert driver.exists(path) is not bench.makes
    driver.destroy(away)
    driver.destroy(path)
    assert not driver.exists(away)


def test_room(bench: Bench) -> None:
    driver, path = bench.driver, bench.path("vm-101-disk-0")
    before = driver.free_bytes()
    driver.make(path, format="raw", size_bytes=MIB)
    after = driver.free_bytes()
    driver.remove(path)
    if driver.place.kind is StorageKind.LVM:
        assert (before, after) == (driver.free_bytes(), (before or 0) - 4 * MIB), "in whole extents"
    elif driver.place.kind is StorageKind.LVMTHIN:
        assert before == after == POOL_BYTES
    else:
        assert (before is None) is not bench.makes


def test_identity(bench: Bench) -> None:
    driver, paths = bench.driver, [bench.path(name) for name in ("vm-101-disk-0", "vm-101-disk-1")]
    for path in paths:
        driver.make(path, format="raw", size_bytes=MIB)
    first, second = (driver.identity(path) for path in paths)
    assert first == driver.identity(paths[0]) != second
    for path in paths:
        driver.remove(path)


def test_one_that_is_switched_off(bench: Bench) -> None:
    """As after a boot; LVM alone knows that."""
    driver, path = bench.driver, bench.path("vm-101-disk-0")
    driver.make(path, format="raw", size_bytes=MIB)
    bench.write(path)
    if isinstance(driver, LvmDriver):
        off = bench.run(["lvchange", "--activate", "n", f"{driver.place.folder.name}/{path.name}"])
        assert off.status == 0
        assert bench.run(["test", "-e", str(path)]).status != 0
    assert driver.exists(path)
    assert not bench.is_zero(path, 64)
    driver.destroy(path)


def test_paths_that_are_none_of_its(bench: Bench) -> None:
    driver, folder = bench.driver, bench.driver.place.folder
    outside = [folder / ".." / "sda", Path("/etc/passwd"), folder, folder.with_name(f"{folder.name}2") / "x"]
    outside += [] if driver.place.facts.has_files else [folder / "deeper" / "x", folder / ".."]
    for path in outside:
        problem = driver.problem_of(path)
        assert problem, path
        assert problem.code == "volume_path_outside_storage"
    assert driver.problem_of(folder / "vm-101-disk-0") is None


# A folder is made when something is put there.
@pytest.mark.parametrize("bench", [kind for kind in KINDS if kind != "folder"], indirect=True)
def test_storage_that_is_not_there(bench: Bench) -> None:
    place, driver = bench.driver.place, bench.driver
    missing = StoragePlace(place.kind, place.folder.with_name("haulier-not-there"), place.pool)
    other = LvmDriver(missing, run=bench.run) if isinstance(driver, LvmDriver) else driver_of(missing)
    problem = other.problem()
    assert problem
    assert problem.code == "storage_missing"
    with pytest.raises(HaulierError, match=r"storage_missing|device_missing"):
        other.make(missing.folder / "x", format="raw", size_bytes=MIB)


@pytest.mark.parametrize("bench", ["lvmthin", "fake lvmthin"], indirect=True)
def test_pool_that_is_not_there(bench: Bench) -> None:
    place = bench.driver.place
    other = LvmDriver(StoragePlace(place.kind, place.folder, "nothing"), run=bench.run)
    problem = other.problem()
    assert problem
    assert problem.code == "storage_missing"
    with pytest.raises(StepFailed, match="volume_not_made"):
        other.make(place.folder / "x", format="raw", size_bytes=MIB)
    assert other.free_bytes() == 0


@pytest.fixture
def prepared(tmp_path: Path) -> Iterator[Bench]:
    yield from _devices(tmp_path)


def test_device_that_the_host_uses(prepared: Bench) -> None:
    """What is mounted or part of something else is neither taken nor overwritten, whatever the rows say."""
    driver, path = prepared.driver, prepared.path("disk")
    driver.require_unused(path)
    before = path.read_bytes()
    # The kernel gives out a device for one such use at a time.
    held = os.open(path, os.O_RDONLY | os.O_EXCL)
    try:
        problem = driver.problem_of_new(path, size_bytes=MIB)
        assert problem
        assert problem.code == "device_in_use"
        for act in (driver.remove, driver.destroy, driver.require_unused):
            with pytest.raises(HaulierError, match="device_in_use"):
                act(path)
        with pytest.raises(StepFailed, match="device_in_use"):
            driver.make(path, format="raw", size_bytes=MIB)
    finally:
        os.close(held)
    assert path.read_bytes() == before


def test_device_that_is_not_empty(prepared: Bench) -> None:
    """It may be a VM's of another node that sees the same device: nobody takes it, and so nobody gives it back."""
    driver, path = prepared.driver, prepared.path("disk")
    with path.open("r+b") as device:
        device.seek(MIB - 1)
        device.write(b"x")
    with pytest.raises(StepFailed, match="device_not_empty"):
        driver.make(path, format="raw", size_bytes=MIB)
    driver.remove(path)
    driver.make(path, format="raw", size_bytes=MIB)


def test_who_has_a_device_open(prepared: Bench) -> None:
    """Whatever name it was opened by."""
    path = prepared.path("disk")
    assert holders(path) == []
    with path.resolve().open("rb"):
        assert holders(path) == [os.getpid()]


def test_lvm_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert shutil.which("lvs") is None
    with pytest.raises(StepFailed, match=r"tool_missing.*lvs"):
        driver_of(StoragePlace(StorageKind.LVM, Path("/dev/pve"))).exists(Path("/dev/pve/x"))


def test_driver_of_a_path(tmp_path: Path) -> None:
    """The innermost storage has the word; one of none is nobody's."""
    places = [
        StoragePlace(StorageKind.FOLDER, tmp_path),
        StoragePlace(StorageKind.LVM, tmp_path / "vg"),
        StoragePlace(StorageKind.FOLDER, Path("/")),
    ]
    assert driver_at(tmp_path / "vg" / "x", places).place.kind is StorageKind.LVM
    assert driver_at(tmp_path / "x", places).place.folder == tmp_path
    nobody = driver_at(Path("/srv/x"), places[:2])
    problem = nobody.problem_of(Path("/srv/x"))
    assert problem
    assert problem.code == "volume_path_outside_storage"
