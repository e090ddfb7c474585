"""What a wheel puts into site-packages: `haulier` alone, with the other packages in it and found by it."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("haulier", "tasks", "models", "migrations")

# The checkout stands on the path too (the editable install); without it the wheel must do alone.
IMPORT = """
import sys
wheel, root = sys.argv[1:]
sys.path = [wheel, *(entry for entry in sys.path if entry != root)]
import haulier, migrations, models, tasks
print(*(module.__file__ for module in (haulier, migrations, models, tasks)), sep="\\n")
"""


def run(*arguments: str | Path) -> str:
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, unpacked as an installer would."""
    folder = tmp_path_factory.mktemp("wheel")
    run("-m", "hatchling", "build", "-t", "wheel", "-d", folder)
    (archive,) = folder.glob("*.whl")
    zipfile.ZipFile(archive).extractall(folder / "site-packages")
    return folder / "site-packages"


def test_wheel_brings_only_haulier(wheel: Path) -> None:
    assert sorted(entry.name.partition("-")[0] for entry in wheel.iterdir()) == ["haulier", "haulier"]
    assert {entry.name for entry in (wheel / "haulier/_app").iterdir()} == {"migrations", "models", "tasks"}


def test_wheel_has_every_file_of_its_packages(wheel: Path) -> None:
    files = (file.relative_to(ROOT) for package in PACKAGES for file in (ROOT / package).rglob("*") if file.is_file())
    missing = [
        file
        for file in files
        if "__pycache__" not in file.parts
        and not (wheel / ("." if file.parts[0] == "haulier" else "haulier/_app") / file).is_file()
    ]
    assert missing == []


def test_packages_are_found_inside_the_wheel(wheel: Path) -> None:
    files = run("-I", "-c", IMPORT, wheel, ROOT).splitlines()
    assert [str(Path(file).parent.relative_to(wheel)) for file in files] == [
        "haulier",
        "haulier/_app/migrations",
        "haulier/_app/models",
        "haulier/_app/tasks",
    ]
