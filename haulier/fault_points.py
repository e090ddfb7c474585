"""Named places in the code at which a test holds a worker, to kill somebody there. They cost nothing when not armed.

A test sets HAULIER_FAULT_POINTS to a folder and makes a named pipe there that is called as a point. Whoever comes there
leaves its pid in `<name>.reached` and waits, with its lease renewed, until something is written into the pipe.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

_FOLDER = os.environ.get("HAULIER_FAULT_POINTS")


async def fault_point(name: str) -> None:
    """Wait here if a test wants that."""
    if _FOLDER is None:
        return
    try:
        pipe = os.open(Path(_FOLDER) / name, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        return
    loop, released = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(pipe, released.set)
    try:
        (Path(_FOLDER) / f"{name}.reached").write_text(str(os.getpid()))
        await released.wait()
    finally:
        loop.remove_reader(pipe)
        os.close(pipe)
