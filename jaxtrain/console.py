"""What jaxtrain says to the person at the terminal: the logger ``"jaxtrain"``, written around a progress bar."""

from __future__ import annotations

import logging
import sys

log = logging.getLogger("jaxtrain")


class _Console(logging.Handler):
    """Plain lines on stdout, warnings on stderr, without tearing a tqdm bar; silent where the program that embeds
    jaxtrain has set up logging of its own."""

    def emit(self, record: logging.LogRecord) -> None:
        if logging.getLogger().handlers:
            return
        warning = record.levelno >= logging.WARNING
        text = f"{record.levelname.lower()}: {self.format(record)}" if warning else self.format(record)
        stream = sys.stderr if warning else sys.stdout
        tqdm = sys.modules.get("tqdm")
        if tqdm is None:
            print(text, file=stream, flush=True)
        else:
            tqdm.tqdm.write(text, file=stream)
            stream.flush()


if not log.handlers:
    log.addHandler(_Console())
    log.setLevel(logging.INFO)
