"""Files that appear whole, and where a result comes from."""

import errno
import json
import os
import platform
import stat
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from toytransformer.interrupts import heard

#: This package.
HERE = Path(__file__).parents[1]
#: Distributions that its results depend on.
PACKAGES = ("lora-limits", "numpy", "scipy", "jax", "jaxlib", "flax", "optax")


def read_plain(path: str | os.PathLike) -> bytes:
    """The bytes of a regular file. Errors: OSError on all else: a pipe would be waited at for ever."""
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    with open(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "it is no regular file", str(path))
        return file.read()


def read_json(path: str | os.PathLike) -> Any:
    """The value in a file. Errors: OSError, and ValueError on what is no JSON, or is nested too deeply."""
    try:
        return json.loads(read_plain(path))
    except RecursionError:
        raise ValueError(f"{path} is nested too deeply") from None


def replace_file(path: str | os.PathLike, lines: Iterable[str]) -> None:
    """Write the lines to a file that appears under its name only once it is complete.

    Where a link stands, the file it leads to is replaced; a device or a pipe is written to, once somebody
    reads the pipe.
    """
    path = Path(os.path.realpath(path))
    if path.is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    if path.exists() and not stat.S_ISREG(path.stat().st_mode) and not path.is_dir():
        with path.open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(lines)
        return
    with replacing(path) as partial, partial.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(lines)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """The name of a hidden file beside `path`, to be written in the block; the end of it gives it that name.

    After an exception, Ctrl-C included, nothing of it is left.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with heard():
        try:
            yield partial
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


def require_writable(path: str | os.PathLike) -> None:
    """Raise OSError if `replace_file` could not write there: to be called before the work, not after it."""
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    special = target.exists() and not target.is_file()  # a device or a pipe is written to itself
    where = target if special else target.parent
    if not os.access(where, os.W_OK) or not (special or where.is_dir()):
        raise OSError(
            f"{str(path)!r} cannot be written: {str(where)!r} is missing or not writable; give another file"
        )


def provenance(paths: Sequence[Path] = (), packages: Sequence[str] = PACKAGES) -> dict[str, object]:
    """Where a result comes from: git commit, whether the code differs from it, Python, package versions.

    paths: folders of the code that made it, in one work tree; none: of this package. packages: distributions
    whose versions matter, where they are installed. git is "unknown" and modified None where git does not
    track the first path.
    """
    paths = paths or (HERE,)
    inside = Path(paths[0])
    tracked = _git(inside, "ls-files", "--error-unmatch", "__init__.py") is not None
    commit = _git(inside, "rev-parse", "HEAD") if tracked else None
    code = (str(path.resolve() / "*.py") for path in paths)
    changes = _git(inside, "status", "--porcelain", "--", *code) if commit else None
    return {
        "git": commit or "unknown",
        "modified": None if changes is None else bool(changes),
        "python": platform.python_version(),
        "packages": {name: version for name in packages if (version := _version(name))},
    }


def _git(folder: Path, *arguments: str) -> str | None:
    """What git says about a folder, None when it fails or is not there."""
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
