"""Makes an installation small and quick to start: for images, run by the very Python that the image has (Dockerfile).

Removes what nobody imports: the sources of compiled modules, type stubs, tests, and the debugging symbols inside of
compiled modules, which are three quarters of them. Then writes the bytecode of what is left below PYTHONPYCACHEPREFIX,
and of whatever part of the standard library it imports: official images of Python bring none, and where the root is
read-only each start would compile it again.
"""

from __future__ import annotations

import compileall
import importlib
import pkgutil
import shutil
import struct
import sys
import sysconfig
from pathlib import Path

# Imported by a gateway only when it is asked or configured to; of `edgegw` itself every module is.
LIBRARIES = ("asyncpg", "click", "hiredis", "httptools", "msgspec", "orjson", "uvloop", "yaml")
ASIDE = {"edgegw.__main__"}  # would run
UNUSED_FOLDERS = {"tests", "testing", "__pycache__"}
UNUSED_SUFFIXES = {".c", ".h", ".pxd", ".pxi", ".pyi", ".pyx"}

_ELF_64_LITTLE = b"\x7fELF\x02\x01"
_SECTIONS_OFFSET_AT = 0x28  # e_shoff, 8 bytes
_SECTION_COUNTS_AT = 0x3C  # e_shnum and e_shstrndx, 2 bytes each
_HEADER_BYTES = 64


def remove_unused(packages: Path) -> None:
    for path in sorted(packages.rglob("*"), reverse=True):
        if path.is_dir() and path.name in UNUSED_FOLDERS:
            shutil.rmtree(path)
        elif path.suffix in UNUSED_SUFFIXES and path.is_file():
            path.unlink()


def stripped(library: bytes) -> bytes:
    """A shared library without what only linkers and debuggers read: it is loaded by its segments, and they come first.
    What is no such file is left as it is."""
    if not library.startswith(_ELF_64_LITTLE) or len(library) < _HEADER_BYTES:
        return library
    (table,) = struct.unpack_from("<Q", library, 0x20)
    size, count = struct.unpack_from("<HH", library, 0x36)
    end = max(_HEADER_BYTES, table + size * count)
    for number in range(count):
        offset, _, _, length = struct.unpack_from("<QQQQ", library, table + size * number + 8)
        end = max(end, offset + length)
    short = bytearray(library[:end])
    struct.pack_into("<Q", short, _SECTIONS_OFFSET_AT, 0)
    struct.pack_into("<HH", short, _SECTION_COUNTS_AT, 0, 0)
    return bytes(short)


def strip_libraries(packages: Path) -> None:
    for path in packages.rglob("*.so*"):
        if path.is_file() and not path.is_symlink():
            path.write_bytes(stripped(path.read_bytes()))


def write_bytecode(packages: Path) -> bool:
    """By compiling what is installed, and by importing what a gateway imports: which proves that it can be, too."""
    if not compileall.compile_dir(packages, quiet=1):
        return False
    ours = pkgutil.walk_packages(importlib.import_module("edgegw").__path__, "edgegw.")
    for name in (*LIBRARIES, *(module.name for module in ours)):
        if name not in ASIDE:
            _import(name)
    return True


def _import(name: str) -> None:
    """A module may be missing that belongs to an extra which is not installed, such as grpc."""
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        needed = (error.name or "").partition(".")[0]
        if needed in ("", "edgegw", *LIBRARIES):
            raise
        print(f"{name} is left out: there is no {needed}")


def main() -> int:
    packages = Path(sysconfig.get_path("purelib"))
    remove_unused(packages)
    strip_libraries(packages)
    return 0 if write_bytecode(packages) else 1


if __name__ == "__main__":
    sys.exit(main())
