"""What is free on storages is looked at beside the heartbeat: one that hangs silences no node."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from haulier.definition.storage import StorageKind, StoragePlace
from haulier.errors import Problem
from tasks import storage_rooms
from tasks.storage_rooms import StorageRooms
from tests.unit.services.world import World

WAIT_S = 20.0


class Driver:
    """A storage that answers when it may."""

    def __init__(self, free: int | None, *, problem: Problem | None = None) -> None:
        self.free, self.found, self.may = free, problem, threading.Event()

    def problem(self) -> Problem | None:
        assert self.may.wait(WAIT_S)
        return self.found

    def free_bytes(self) -> int | None:
        return self.free


def rooms_of(monkeypatch: pytest.MonkeyPatch, world: World, drivers: dict[str, Any]) -> StorageRooms:
    places = {name: StoragePlace(StorageKind.FOLDER, Path("/", name)) for name in drivers}
    monkeypatch.setattr(storage_rooms, "storage_places", lambda *_: places)
    monkeypatch.setattr(storage_rooms, "driver_of", lambda place: drivers[place.folder.name])
    return StorageRooms(world.context, 1)


def test_storage_that_hangs_is_waited_for_by_nobody(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(7)
    rooms = rooms_of(monkeypatch, world, {"local": driver})
    assert (rooms.now(), rooms.now()) == ({}, {})
    driver.may.set()
    rooms._looking.join(WAIT_S)
    assert rooms.now() == {"local": 7}


def test_one_that_cannot_be_used_has_none_and_one_that_does_not_say_is_left_out(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    drivers = {"away": Driver(9, problem=Problem("away", "it is")), "links": Driver(None), "local": Driver(3)}
    rooms = rooms_of(monkeypatch, world, drivers)
    for driver in drivers.values():
        driver.may.set()
    rooms.now()
    rooms._looking.join(WAIT_S)
    assert rooms.now() == {"away": 0, "local": 3}
