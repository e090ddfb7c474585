"""Compiles the probe guest. Knows gcc and nothing else; `python -m probe.build [folder]` does it by hand."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

__all__ = ["BuildError", "build", "compile_guest", "is_fresh", "run_tool", "sources_of"]

SOURCE_FOLDER = Path(__file__).parent / "guest"
PLATFORM_FOLDER = SOURCE_FOLDER / "bare"
DEFAULT_FOLDER = Path(".build/probe")
IMAGE_NAME = "probe.elf"

# 32-bit code by a 64-bit gcc without multilib: no libc, no libgcc, only the headers of gcc itself.
# -mgeneral-regs-only, as nobody enables the FPU; -fno-pic, as nobody relocates the image.
FLAGS = (
    "-m32",
    "-march=i686",
    "-ffreestanding",
    "-nostdlib",
    "-fno-strict-aliasing",
    "-static",
    "-Os",
    "-std=gnu11",
    "-fno-pic",
    "-no-pie",
    "-fno-stack-protector",
    "-fno-asynchronous-unwind-tables",
    "-mgeneral-regs-only",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wl,--build-id=none",
    "-Wl,-m,elf_i386",
)


class BuildError(RuntimeError):
    """The guest could not be built; the text says what is missing or what the compiler said."""


def build(folder: Path) -> Path:
    """Compile the guest into `folder` and return the image; an image newer than all sources is re-used.

    The image appears by an atomic rename, so two builds side by side do no harm.

    Raises:
        BuildError: gcc is missing, or it refused the source. An older image stays as it was.
    """
    image = folder / IMAGE_NAME
    flags = [*FLAGS, f"-Wl,-T,{PLATFORM_FOLDER / 'link.ld'}"]
    if not is_fresh(image, [*sources_of(PLATFORM_FOLDER), Path(__file__)]):
        compile_guest(PLATFORM_FOLDER, image, flags=flags)
    return image


def sources_of(platform: Path) -> list[Path]:
    """Return every file that the guest on this platform is made of."""
    return [path for folder in (SOURCE_FOLDER, platform) for path in sorted(folder.iterdir()) if path.is_file()]


def is_fresh(product: Path, inputs: Iterable[Path]) -> bool:
    """Say whether `product` is there and not older than any of `inputs`."""
    return product.exists() and product.stat().st_mtime >= max(path.stat().st_mtime for path in inputs)


def compile_guest(platform: Path, product: Path, *, flags: Sequence[str]) -> None:
    """Compile the shared sources and those of one platform into `product`, which appears by a rename.

    Raises:
        BuildError: gcc is missing, or it refused the source. An older product stays as it was.
    """
    compiler = shutil.which(os.environ.get("CC", "gcc"))
    if compiler is None:
        raise BuildError("the probe guest needs gcc: install it (Debian: apt-get install gcc) or set CC")
    product.parent.mkdir(parents=True, exist_ok=True)
    sources = [str(path) for path in sources_of(platform) if path.suffix in {".c", ".S"}]
    with tempfile.TemporaryDirectory(dir=product.parent, prefix=".build-") as scratch:
        fresh = Path(scratch) / product.name
        run_tool([compiler, *flags, "-o", str(fresh), *sources])
        fresh.replace(product)


def run_tool(command: Sequence[str], *, folder: Path | None = None) -> str:
    """Run a tool to its end and return what it printed.

    Raises:
        BuildError: it is missing or it failed; the text holds its own message.
    """
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    except FileNotFoundError as error:
        raise BuildError(f"building a guest needs {command[0]}, which is not installed") from error
    if result.returncode != 0:
        raise BuildError(f"{command[0]} failed while building a guest:\n{result.stderr.strip()}")
    return result.stdout


def main(arguments: list[str]) -> int:
    """Build into the folder named on the command line and print where the image is."""
    try:
        print(build(Path(arguments[0]) if arguments else DEFAULT_FOLDER))
    except (BuildError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
