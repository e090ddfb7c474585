"""Where the fakes are put: in every module of the product that knows what they stand for, under whatever name."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType

from haulier.fakes.files import FakePath

# These work with files of hosts, and never with others.
_ROOMS_WITH_PATHS = ("haulier.services", "tasks.")


def places_of(
    stands_for: Mapping[object, object], rooms: tuple[str, ...] = ("haulier.", "tasks.")
) -> Iterator[tuple[ModuleType, str, object]]:
    """Each module that is loaded, the name that it has for something real, and what is to stand there instead.

    Whoever uses this sets them, and puts them back if the process is to go on.
    """
    for name, module in list(sys.modules.items()):
        if name.startswith(rooms) and not name.startswith("haulier.fakes"):
            yield from _found_in(module, stands_for)
        if name.startswith(_ROOMS_WITH_PATHS):
            yield from _found_in(module, {Path: FakePath})


def _found_in(module: ModuleType, stands_for: Mapping[object, object]) -> Iterator[tuple[ModuleType, str, object]]:
    for name, value in list(vars(module).items()):
        try:
            found = stands_for.get(value)
        except TypeError:  # cannot be a key, so it is none
            continue
        if found is not None:
            yield module, name, found
