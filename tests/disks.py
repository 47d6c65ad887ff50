"""A separate file system for a test."""

import subprocess
from contextlib import contextmanager

import pytest


@contextmanager
def small_disk(where):
    """Two megabytes, mounted at a new directory ``where``; the test is skipped if mounting is not possible."""
    where.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", where], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"no file system of its own: mount says {made.stderr.strip()}")
    try:
        yield where
    finally:
        subprocess.run(["umount", "-l", where], check=True)
