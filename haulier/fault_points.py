"""Named places in the code at which a test holds a worker, to kill somebody there. They cost nothing when not armed.

A test sets HAULIER_FAULT_POINTS to a folder and puts a file with a point's name into it. Whoever comes there leaves its
pid in `<name>.reached` and waits, with its lease renewed, until the file is gone.
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
    armed = Path(_FOLDER) / name
    if armed.exists():
        (armed.parent / f"{name}.reached").write_text(str(os.getpid()))
        while armed.exists():  # noqa: ASYNC110 - what ends the wait is another process
            await asyncio.sleep(0.02)
