"""An append-only file that loses no data when the disk is full."""

from __future__ import annotations

import logging
import os
from pathlib import Path

log = logging.getLogger("jaxtrain")
LIMIT = 16 * 2**20
"""Largest number of bytes that may wait for disk space."""
SYNC = 2**20
"""Largest number of bytes that may be in the file but not yet synced to disk."""


class Appender:
    """Appends bytes to a file, in order and each once.

    Bytes that the system does not accept (an OSError: no space, a failing disk) are buffered, with one warning, and
    retried at every ``flush``. Bytes that a failed fsync leaves uncertain are buffered and written again, because the
    system may have dropped them and would report the next fsync as successful.

    ``waiting`` holds the bytes that are not in the file, and ``unsynced`` all bytes that may not be on disk.

    Raises:
        OSError: The file cannot be opened, or at ``close`` if bytes are still waiting.
        RuntimeError: In ``write``, if more than LIMIT bytes would wait. An OSError would mean that the caller may
            retry.
    """

    def __init__(self, path: Path):
        self.path, self.waiting = path, bytearray()
        self._file: int | None = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        self._safe = os.lseek(self._file, 0, os.SEEK_END)  # bytes before this offset are on disk or predate this object
        self._unsafe = bytearray()  # bytes in the file after that offset
        self._warned: str | None = None

    @property
    def unsynced(self) -> bytes:
        """The bytes that may not be on disk. They begin where a ``write`` began."""
        return bytes(self._unsafe + self.waiting)

    def write(self, data: bytes) -> None:
        """Buffer ``data`` for the next flush. Raises RuntimeError if more than LIMIT bytes would wait."""
        if self._warned is not None and len(self.waiting) + len(data) > LIMIT:
            raise RuntimeError(f"{self.path}: {self._warned}, and more than {LIMIT >> 20} MiB wait to be written")
        self.waiting += data

    def flush(self, sync: bool = False) -> bool:
        """Write buffered bytes to the file, and sync it if ``sync`` is True or after a failure.

        Returns:
            Whether everything is in the file, and on disk if it was synced.
        """
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
                log.warning("%s: %s; writes are buffered and will be retried", self.path, error.strerror)
            self._warned = error.strerror or str(error)
            return False
        if self._warned is not None:
            log.info("%s: can be written again; nothing was lost", self.path)
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
        """Flush and close the file. Raises OSError if bytes are still waiting."""
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
