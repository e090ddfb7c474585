"""Does a volume's path stay inside its storage's folder? Asked by the node, which alone can see links.

A storage's folder is the administrator's word, and may itself be a link to anywhere. What lies in it is named by a
definition, by rows, or by the other node: none of them may lead out of it. Everything that makes, opens or removes a
volume asks here first. Who may write in the folder between the question and the deed is the node's own user.
"""

from __future__ import annotations

import re
from pathlib import Path

from haulier.errors import Problem

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def problem_of_path(path: Path, folder: Path) -> Problem | None:
    """What is wrong with a volume's path in its storage's `folder`; None if it leads to a place below it.

    Links are followed as far as they lead, the path's own too; neither need exist.
    """
    if not _CONTROL.search(str(path)) and _is_below(path, folder):
        return None
    return Problem(
        "volume_path_outside_storage",
        f"{str(path)!r} leads out of its storage's folder {folder}",
        "Put the file itself there, not a link; a link in the place of the whole folder is fine.",
    )


def _is_below(path: Path, folder: Path) -> bool:
    try:
        real, root = path.resolve(), folder.resolve()
    except (OSError, RuntimeError):  # links that lead in a circle; Python 3.13 says nothing of them, and open() does
        return False
    return real != root and real.is_relative_to(root)
