"""JAX's persistent compilation cache. Recipes use it by default, so a second start of a run compiles nothing."""

from __future__ import annotations

import os
import re
import stat
import sys
import warnings
from pathlib import Path

VARIABLE = "JAX_COMPILATION_CACHE_DIR"
SETTINGS = {
    VARIABLE: ("jax_compilation_cache_dir", str),
    # Cache every program: a start compiles many small ones in addition to the large ones.
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": ("jax_persistent_cache_min_compile_time_secs", float),
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": ("jax_persistent_cache_min_entry_size_bytes", int),
}
"""Environment variables, each with the option of JAX that it sets and the option's type."""
UNREADABLE = re.compile(r"Error reading persistent compilation cache entry for '([^']+)'")


def use_compilation_cache() -> Path | None:
    """Enable JAX's compilation cache in ``$JAX_COMPILATION_CACHE_DIR`` (default: the user's cache directory).

    An empty ``$JAX_COMPILATION_CACHE_DIR`` turns it off. Cached programs are executed as code, so a default directory
    that others could write to is refused with a warning.

    Returns:
        The directory, or None if the cache is off.
    """
    given = os.environ.get(VARIABLE)
    if given == "" or os.environ.get("JAX_ENABLE_COMPILATION_CACHE", "").lower() in ("0", "false", "off"):
        return None
    directory = Path(given).expanduser() if given else _private_directory()
    if directory is None:
        return None
    for variable, (option, kind) in SETTINGS.items():
        value = os.environ.setdefault(variable, str(directory) if variable == VARIABLE else "0")
        if "jax" in sys.modules:  # JAX has already read its environment
            import jax

            jax.config.update(option, kind(value))
    _replace_damaged_entries(directory)
    return directory


def _private_directory() -> Path | None:
    """The default directory, created if missing; None, with a warning, if it cannot be used."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    directory, problem = Path(root) / "jaxtrain" / "xla", None
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        status = directory.stat()
        if status.st_uid != os.getuid() or stat.S_IMODE(status.st_mode) & 0o077:
            problem = f"others can access {directory}, and its content is executed as code; `chmod 700` it if yours"
    except OSError as error:
        problem = f"{directory}: {error.strerror}"
    if problem is None:
        return directory
    warnings.warn(f"the compilation cache is off: {problem}; set {VARIABLE} to use another directory", stacklevel=3)
    return None


def _replace_damaged_entries(directory: Path) -> None:
    """Delete damaged cache entries when JAX warns about them.

    JAX writes entries in place and never overwrites one, so a program with an incomplete entry would be compiled at
    every start. The warning names the program but not the entry, so all entries of the program are deleted; JAX writes
    the needed one next.
    """
    if getattr(warnings.showwarning, "of_compilation_cache", False):
        return
    show = warnings.showwarning

    def showwarning(message, category, filename, lineno, file=None, line=None):
        match = UNREADABLE.search(str(message))
        if match is None:
            return show(message, category, filename, lineno, file, line)
        program = match[1]
        for entry in directory.glob(f"{program}-*"):
            entry.unlink(missing_ok=True)
        print(f"a damaged entry of the compilation cache is replaced: {program} in {directory}", file=sys.stderr)

    showwarning.of_compilation_cache = True  # type: ignore[attr-defined]
    warnings.showwarning = showwarning
