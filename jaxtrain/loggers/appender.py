"""A file that only grows, and that loses nothing to a full disk."""

from __future__ import annotations

import logging
import os
from pathlib import Path

log = logging.getLogger("jaxtrain")
LIMIT = 16 * 2**20
"""Bytes that may wait for space."""
SYNC = 2**20
"""Bytes that may be in the file and not on the disk."""


class Appender:
    """Bytes reach the file in order, each once. What the system does not take (an OSError: no space, a disk that fails)
    waits, with one warning, and is tried again at every ``flush``. What a failed fsync leaves open waits, too, and is
    written again: the system may have let go of it, and would call the next fsync a success.

    ``waiting``: the bytes that are not in the file. Raises OSError where the file cannot be opened, and at ``close``
    where bytes still wait. ``write`` raises RuntimeError where more than LIMIT bytes would wait: an OSError would say
    that these may be offered again.
    """

    def __init__(self, path: Path):
        self.path, self.waiting = path, bytearray()
        self._file: int | None = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        self._safe = os.lseek(self._file, 0, os.SEEK_END)  # all before it is on the disk, or was there at the start
        self._unsafe = bytearray()  # what is in the file behind it
        self._warned: str | None = None

    @property
    def on_disk(self) -> bool:
        """Whether all that was written is on the disk."""
        return not self.waiting and not self._unsafe

    def write(self, data: bytes) -> None:
        """For the next flush."""
        if self._warned is not None and len(self.waiting) + len(data) > LIMIT:
            raise RuntimeError(f"{self.path}: {self._warned}, and more than {LIMIT >> 20} MiB wait: no more is taken")
        self.waiting += data

    def flush(self, sync: bool = False) -> bool:
        """Whether all that was written is in the file; with ``sync``, and after a failure, on the disk, too."""
        assert self._file is not None
        try:
            while self.waiting:
                n = os.write(self._file, self.waiting)
                self._unsafe += self.waiting[:n]
                del self.waiting[:n]
            if sync or self._warned is not None or len(self._unsafe) > SYNC:
                self._sync(self._file)
        except OSError as error:
            if self._warned is None:
                log.warning("%s: %s; what is to be written waits, and is tried again", self.path, error.strerror)
            self._warned = error.strerror or str(error)
            return False
        if self._warned is not None:
            log.info("%s: can be written again, and nothing is missing", self.path)
            self._warned = None
        return True

    def _sync(self, file: int) -> None:
        try:
            os.fsync(file)
        except OSError:
            os.lseek(file, self._safe, os.SEEK_SET)
            self.waiting, self._unsafe = self._unsafe + self.waiting, bytearray()
            raise
        self._safe += len(self._unsafe)
        self._unsafe = bytearray()

    def close(self) -> None:
        """Flush, and raise OSError for what still waits."""
        if self._file is None:
            return
        try:
            self.flush(sync=True)
            if self.waiting:
                lost = f"{len(self.waiting)} bytes are not written ({self._warned})"
                raise OSError(None, lost, str(self.path))
        finally:
            os.close(self._file)
            self._file = None
