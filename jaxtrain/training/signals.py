"""Signals that end a run: a flag that the loop polls. The previous handlers are restored."""

import signal
import threading
from types import FrameType
from typing import Any, Self

ALWAYS = (signal.SIGTERM, signal.SIGINT)
UNLESS_TAKEN = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)
"""Sent by a closing terminal, and by batch systems before they end a job. A program may handle them itself."""
ENDING = (*ALWAYS, *UNLESS_TAKEN)


def exit_code(name: str) -> int:
    """The exit code that a shell reports for a process ended by this signal: 143 for "SIGTERM"."""
    return 128 + signal.Signals[name]


class Signals:
    """Context manager in which the first SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGUSR2 or SIGXCPU only sets `received`.

    The first SIGTERM or SIGINT also restores the previous handler, so a second one takes effect at once (SIGTERM ends
    the process, SIGINT raises KeyboardInterrupt). Repetitions of the other signals have no effect: a closing terminal
    sends SIGHUP twice, and SIGXCPU is sent every second.

    Outside the main thread it does nothing, because Python does not allow handlers there. A signal that the process
    ignores (`nohup`, a background job) stays ignored. If the program has a handler for one of the last four signals,
    that handler stays. A run within a callback of another run passes signals on to the outer run.

    Example:
        with Signals() as signals:
            while step < steps and signals.received is None:
                step += 1
    """

    received: str | None = None
    """Name of the first signal received, for example "SIGTERM", or None."""

    def __init__(self) -> None:
        self._old: dict[int, Any] = {}

    def __enter__(self) -> Self:
        self.received = None
        if threading.current_thread() is threading.main_thread():
            for number in ENDING:
                old = signal.getsignal(number)
                free = number in ALWAYS or old is signal.SIG_DFL or _outer(old) is not None
                if free and old is not signal.SIG_IGN:
                    # None: the handler was set by C code, and Python cannot restore it.
                    self._old[number] = signal.SIG_DFL if old is None else old
                    signal.signal(number, self._handle)
        return self

    def __exit__(self, *exc: object) -> None:
        for number in list(self._old):
            self._restore(number)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        # Only flags are set here: a handler runs between any two instructions of the main thread.
        if self.received is None:
            self.received = signal.Signals(number).name
        outer = _outer(self._old.get(number))
        if number in ALWAYS:
            self._restore(number)
        if outer is not None:
            outer._handle(number, frame)

    def _restore(self, number: int) -> None:
        old = self._old.pop(number, None)
        # If another handler has been set meanwhile, it stays.
        if old is not None and signal.getsignal(number) == self._handle:
            signal.signal(number, old)


def _outer(handler: Any) -> Signals | None:
    """The Signals of the outer run that installed this handler, or None."""
    owner = getattr(handler, "__self__", None)
    return owner if isinstance(owner, Signals) else None
