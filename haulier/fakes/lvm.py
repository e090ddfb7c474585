"""LVM without device-mapper: a volume is a file behind a loop device, and the answers are those of LVM's programs.

Only what haulier/hypervisor/storage/lvm.py asks for; other programs are run as they are. Needs root, as LVM does. What
an older volume would have left is in each thick one. As programs: `python -m haulier.fakes.lvm FOLDER lvs ...`.
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import json
import subprocess
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from haulier.hypervisor.processes import wait_until_released
from haulier.hypervisor.tools import Done, run_tool

EXTENT = 4 << 20
# Of a new volume LVM overwrites that much, and no more.
_WIPED = 4096
_PATIENCE_S = 5.0


@dataclass
class FakeVolume:
    """One volume; a pool has none behind it. `pool` is the one that it is thin in."""

    bytes: int
    uuid: str
    pool: str = ""
    is_pool: bool = False
    active: bool = True


@dataclass
class FakeGroup:
    """One volume group."""

    bytes: int
    volumes: dict[str, FakeVolume] = field(default_factory=dict)

    @property
    def free(self) -> int:
        return self.bytes - sum(each.bytes for each in self.volumes.values() if not each.pool)


class LvmError(Exception):
    """What LVM would say on its error output, and its exit status."""

    def __init__(self, words: str, *, status: int = 5) -> None:
        super().__init__(words)
        self.status = status


class _Arguments(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise LvmError(message, status=3)


class FakeLvm:
    """The volume groups whose state is in a folder; every call reads and writes it, under a lock."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._groups: dict[str, FakeGroup] = {}

    def add_group(self, name: str, *, size_bytes: int, pool: str | None = None, pool_bytes: int = 0) -> None:
        """Make a volume group, with a thin pool in it if one is named."""
        with self._state():
            group = self._groups[name] = FakeGroup(size_bytes)
            if pool:
                group.volumes[pool] = FakeVolume(pool_bytes, str(uuid.uuid4()), is_pool=True)

    def volumes(self, group: str) -> set[str]:
        """The names of all volumes of a group, pools too."""
        with self._state():
            return set(self._groups[group].volumes)

    def remove_all(self) -> None:
        """Let go of every device."""
        with self._state():
            for name, group in self._groups.items():
                for volume in list(group.volumes):
                    self._detach(name, volume)
            self._groups.clear()

    def run(self, words: Sequence[str]) -> Done:
        """What `run_tool` does, with LVM's programs replaced."""
        program, *rest = words
        command = getattr(self, f"_{program}", None)
        if command is None:
            return run_tool(words)
        try:
            with self._state():
                return Done(0, command(rest) or "", "")
        except LvmError as error:
            return Done(error.status, "", f"  {error}\n")

    @contextmanager
    def _state(self) -> Iterator[None]:
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / "state.json").open("a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            self._groups = {
                name: FakeGroup(group["bytes"], {key: FakeVolume(**each) for key, each in group["volumes"].items()})
                for name, group in json.loads(file.read() or "{}").items()
            }
            yield
            file.truncate(0)
            json.dump({name: asdict(group) for name, group in self._groups.items()}, file)

    # -- the programs --------------------------------------------------------------------------------------------------

    def _vgs(self, rest: Sequence[str]) -> str:
        options = _reporting().parse_args(rest)
        found = {"vg_name": options.group, "vg_free": str(self._group(options.group).free)}
        return _report("vg", [found], options.columns)

    def _lvs(self, rest: Sequence[str]) -> str:
        options = _reporting().parse_args(rest)
        volumes = self._group(options.group).volumes
        return _report("lv", [_row(name, volumes[name]) for name in sorted(volumes)], options.columns)

    def _lvcreate(self, rest: Sequence[str]) -> str:
        options = _creating().parse_args(rest)
        group = self._group(options.group)
        if options.name in group.volumes:
            raise LvmError(f'Logical Volume "{options.name}" already exists in volume group "{options.group}"')
        pool = options.thinpool or ""
        if pool and not (pool in group.volumes and group.volumes[pool].is_pool):
            raise LvmError(f"Pool {pool} not found in Volume group {options.group}.")
        extents = -(-int((options.virtualsize or options.size).removesuffix("b")) // EXTENT)
        if not pool and extents * EXTENT > group.free:
            free = group.free // EXTENT
            words = f'Volume group "{options.group}" has insufficient free space ({free} extents): {extents} required.'
            raise LvmError(words)
        group.volumes[options.name] = FakeVolume(extents * EXTENT, str(uuid.uuid4()), pool)
        self._fill(options.group, options.name)
        self._attach(options.group, options.name)
        return f'  Logical volume "{options.name}" created.\n'

    def _lvchange(self, rest: Sequence[str]) -> None:
        parser = _Arguments()
        parser.add_argument("--activate", choices=("y", "n"))
        parser.add_argument("--ignoreactivationskip", action="store_true")
        parser.add_argument("volume")
        options = parser.parse_args(rest)
        group, name, volume = self._find(options.volume)
        if (options.activate == "y") != volume.active:
            volume.active = not volume.active
            (self._attach if volume.active else self._detach)(group, name)

    def _lvremove(self, rest: Sequence[str]) -> str:
        parser = _Arguments()
        parser.add_argument("--yes", action="store_true")
        parser.add_argument("volume")
        group, name, _ = self._find(parser.parse_args(rest).volume)
        if _is_held(_link(group, name)):
            raise LvmError(f"Logical volume {group}/{name} in use.")
        self._detach(group, name)
        self._file(group, name).unlink()
        del self._groups[group].volumes[name]
        return f'  Logical volume "{name}" successfully removed.\n'

    def _lvrename(self, rest: Sequence[str]) -> str:
        group, old, new = rest
        volume = self._find(f"{group}/{old}")[2]
        self._file(group, old).rename(self._file(group, new))
        if volume.active:
            _link(group, old).rename(_link(group, new))
        self._groups[group].volumes[new] = self._groups[group].volumes.pop(old)
        return f'  Renamed "{old}" to "{new}" in volume group "{group}"\n'

    # -- what is behind them -------------------------------------------------------------------------------------------

    def _group(self, name: str) -> FakeGroup:
        if name not in self._groups:
            raise LvmError(f'Volume group "{name}" not found\n  Cannot process volume group {name}')
        return self._groups[name]

    def _find(self, place: str) -> tuple[str, str, FakeVolume]:
        group, _, name = place.partition("/")
        if name not in self._group(group).volumes:
            raise LvmError(f'Failed to find logical volume "{place}"')
        return group, name, self._groups[group].volumes[name]

    def _file(self, group: str, name: str) -> Path:
        return self._folder / f"{group}-{name}.img"

    def _fill(self, group: str, name: str) -> None:
        volume = self._groups[group].volumes[name]
        with self._file(group, name).open("wb") as file:
            if not volume.pool:
                file.seek(_WIPED)
                for _ in range(volume.bytes // EXTENT):
                    file.write(b"x" * EXTENT)
            file.truncate(volume.bytes)

    def _attach(self, group: str, name: str) -> None:
        done = subprocess.run(
            ["losetup", "--find", "--show", self._file(group, name)], capture_output=True, text=True, check=True
        )
        link = _link(group, name)
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(done.stdout.strip())

    def _detach(self, group: str, name: str) -> None:
        link = _link(group, name)
        if link.is_symlink():
            subprocess.run(["losetup", "--detach", link.resolve()], check=True)
            link.unlink()
            if not any(link.parent.iterdir()):
                link.parent.rmdir()


def _link(group: str, name: str) -> Path:
    return Path("/dev") / group / name


def _is_held(link: Path) -> bool:
    """LVM tries for some seconds, too: whoever looks for a free loop device opens each for a moment."""
    if not link.exists():
        return False
    try:
        asyncio.run(asyncio.wait_for(wait_until_released(link), _PATIENCE_S))
    except TimeoutError:
        return True
    return False


def _reporting() -> argparse.ArgumentParser:
    parser = _Arguments()
    parser.add_argument("--config", choices=("log/report_command_log=0",), required=True)
    parser.add_argument("--reportformat", choices=("json",), required=True)
    parser.add_argument("--units", choices=("b",), required=True)
    parser.add_argument("--nosuffix", action="store_true", required=True)
    parser.add_argument("-o", dest="columns", type=lambda text: text.split(","))
    parser.add_argument("group")
    return parser


def _creating() -> argparse.ArgumentParser:
    parser = _Arguments()
    parser.add_argument("--yes", action="store_true", required=True)
    parser.add_argument("--addtag")
    parser.add_argument("--name", required=True)
    parser.add_argument("--wipesignatures", choices=("y",))
    size = parser.add_mutually_exclusive_group(required=True)
    size.add_argument("--size")
    size.add_argument("--virtualsize")
    parser.add_argument("--thinpool")
    parser.add_argument("group")
    return parser


def _row(name: str, volume: FakeVolume) -> dict[str, str]:
    return {
        "lv_name": name,
        "lv_size": str(volume.bytes),
        "lv_uuid": volume.uuid,
        "lv_active": "active" if volume.active else "",
        "zero": "zero" if volume.is_pool else "",
        "data_percent": "0.00" if volume.is_pool or (volume.pool and volume.active) else "",
    }


def _report(kind: str, rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> str:
    chosen = [{column: row[column] for column in columns} for row in rows]
    return json.dumps({"report": [{kind: chosen}]}) + "\n"


def main(arguments: Sequence[str]) -> int:
    """Do what the program would, with its two outputs and its exit status."""
    folder, *words = arguments
    done = FakeLvm(Path(folder)).run(words)
    sys.stdout.write(done.stdout)
    sys.stderr.write(done.stderr)
    return done.status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
