"""Volumes as logical volumes of LVM, thick or in a thin pool, by LVM's own programs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from haulier.errors import Problem, StepFailed
from haulier.hypervisor.images import VOLUME_EXISTS
from haulier.hypervisor.storage.devices import DeviceDriver, whole_sectors

# LVM 2.03.31 puts errors into the report unless it is told not to.
_REPORT = ("--config", "log/report_command_log=0", "--reportformat", "json", "--units", "b", "--nosuffix")
# By what an administrator tells our volumes from others, in `lvs -o +lv_tags`.
_TAG = "haulier"


class LvmDriver(DeviceDriver):
    """LVM rounds sizes up to whole extents, and keeps its own record: the device is there only while it is active."""

    @property
    def _group(self) -> str:
        return self.place.folder.name

    def problem(self) -> Problem | None:
        found = self._run(["vgs", *_REPORT, "-o", "vg_name", self._group])
        if found.status != 0:
            return Problem("storage_missing", f"volume group {self._group}: {found.words}", "See `vgs` on this node.")
        return self._problem_of_pool(self.place.pool) if self.place.pool else None

    def _problem_of_pool(self, name: str) -> Problem | None:
        pool = self._find(name)
        if pool is None:
            words = f"volume group {self._group} has no pool {name}"
            return Problem("storage_missing", words, "See `lvs` on this node.")
        if pool["zero"] != "zero":
            words = f"the pool {self._group}/{name} does not zero what it gives out"
            return Problem("pool_not_zeroed", words, f"lvchange --zero y {self._group}/{name}")
        return None

    def problem_of_new(self, path: Path, *, size_bytes: int) -> Problem | None:
        del size_bytes
        if self._find(path.name) is None:
            return None
        return Problem(VOLUME_EXISTS, f"{path} is there already", "Nothing is overwritten; see `lvs` on this node.")

    def exists(self, path: Path) -> bool:
        found = self._find(path.name)
        if found is not None and found["lv_active"] != "active":
            # Without -K one that is to be left out at a boot is left out here too.
            self._must("volume_not_opened", "lvchange", "--activate", "y", "--ignoreactivationskip", self._lv(path))
        return found is not None

    def make(self, path: Path, *, format: str, size_bytes: int) -> None:
        del format
        if problem := self.problem_of_new(path, size_bytes=size_bytes):
            raise StepFailed(problem.code, problem.message, problem.hint)
        words = ["lvcreate", "--yes", "--addtag", _TAG, "--name", path.name]
        # LVM takes whole sectors alone.
        size = f"{whole_sectors(size_bytes)}b"
        if self.place.pool:
            words += ["--virtualsize", size, "--thinpool", self.place.pool]
        else:
            # Or it asks whether what an older volume has left may go.
            words += ["--wipesignatures", "y", "--size", size]
        self._must("volume_not_made", *words, self._group)

    def remove(self, path: Path) -> None:
        if self._find(path.name) is not None:
            self._must("volume_not_removed", "lvremove", "--yes", self._lv(path))

    def destroy(self, path: Path) -> None:
        if self.exists(path) and (found := self._find(path.name)):
            self._zero_secrets(path, there=int(found["lv_size"]))
            self.remove(path)

    def put_away(self, path: Path, away: Path) -> None:
        if self._find(path.name) is not None:
            self._must("volume_not_renamed", "lvrename", self._group, path.name, away.name)

    def free_bytes(self) -> int | None:
        if self.place.pool is None:
            done = self._must("storage_missing", "vgs", *_REPORT, "-o", "vg_free", self._group)
            return int(_rows(done, "vg")[0]["vg_free"])
        pool = self._find(self.place.pool)
        if pool is None:
            return 0
        return int(int(pool["lv_size"]) * (1 - float(pool["data_percent"] or 0) / 100))

    def identity(self, path: Path) -> str:
        found = self._find(path.name)
        if found is None:
            raise StepFailed("volume_missing", f"{path} is not there", "See `lvs` on this node.")
        return str(found["lv_uuid"])

    def _find(self, name: str) -> dict[str, Any] | None:
        """What LVM knows of a volume; None if there is none."""
        # Asked of the whole group: then a missing one is no error.
        columns = "lv_name,lv_size,lv_uuid,lv_active,data_percent,zero"
        done = self._must("storage_missing", "lvs", *_REPORT, "-o", columns, self._group)
        return next((row for row in _rows(done, "lv") if row["lv_name"] == name), None)

    def _lv(self, path: Path) -> str:
        return f"{self._group}/{path.name}"

    def _must(self, code: str, *words: str) -> str:
        done = self._run(words)
        if done.status != 0:
            raise StepFailed(code, f"{words[0]}: {done.words}", "LVM's own words.")
        return done.stdout


def _rows(report: str, kind: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(report)["report"][0][kind]
    return found
