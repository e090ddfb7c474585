"""One image in the options of QEMU's programs. Pure."""

from __future__ import annotations

import json
from typing import Any

from haulier.definition.storage import Image


def protocol(image: Image) -> dict[str, Any]:
    """The block node that opens it."""
    return {"driver": "file" if image.device_bytes is None else "host_device", "filename": str(image.path)}


def layer(image: Image) -> dict[str, Any]:
    """The one above that, which understands its format."""
    # A device may be larger than the volume, and firmware, for one, takes no other size than its own.
    size = {} if image.device_bytes is None else {"size": image.device_bytes}
    return {"driver": image.format, **size}


def as_name(image: Image) -> str:
    """Both in one word, where a program takes a file's name."""
    return f"json:{json.dumps({**layer(image), 'file': protocol(image)})}"
