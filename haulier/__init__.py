"""Haulier: the migration queue for QEMU/KVM hosts.

In a checkout `tasks`, `models` and `migrations` are top-level packages beside this one. A wheel carries them in `_app`
below this folder, so that nothing but `haulier` lands in site-packages; then that folder goes on the path.
"""

import sys
from pathlib import Path

_app = Path(__file__).parent / "_app"
if _app.is_dir() and str(_app) not in sys.path:
    sys.path.append(str(_app))

__version__ = "0.1.0"
