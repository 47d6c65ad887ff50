"""Signals that end a run, as a flag that the loop polls, with the old handlers put back."""

import signal
import threading
from types import FrameType
from typing import Any, Self

ALWAYS = (signal.SIGTERM, signal.SIGINT)
UNLESS_TAKEN = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)
"""What a terminal that closes and batch systems send before the end; a program may have a use of its own for them."""
ENDING = (*ALWAYS, *UNLESS_TAKEN)


def exit_code(name: str) -> int:
    """What a shell says of a process that a signal ended: 143 of "SIGTERM"."""
    return 128 + signal.Signals[name]


class Signals:
    """Context manager in which the first SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGUSR2 or SIGXCPU only sets `received`.

    The first SIGTERM or SIGINT also puts the old handler for it back, so a second one acts at once (SIGTERM ends the
    process, SIGINT raises KeyboardInterrupt). The other signals come more than once by themselves: a closing terminal
    sends SIGHUP twice, and SIGXCPU comes every second; repeats change nothing.

    Outside the main thread, where Python allows no handlers, it does nothing. A signal that the process was told to
    ignore (`nohup`, a job in the background) stays ignored, and one of the last four for which the program has set a
    handler stays with that. A run within a callback passes on what it receives.

    Example:
        with Signals() as signals:
            while step < steps and signals.received is None:
                step += 1
    """

    received: str | None = None  # "SIGTERM" | "SIGINT" | ... | None: the first one

    def __init__(self) -> None:
        self._old: dict[int, Any] = {}

    @property
    def exit_code(self) -> int:
        """143 after SIGTERM, 130 after SIGINT, and so on; else 0."""
        return 0 if self.received is None else exit_code(self.received)

    def __enter__(self) -> Self:
        self.received = None
        if threading.current_thread() is threading.main_thread():
            for number in ENDING:
                old = signal.getsignal(number)
                free = number in ALWAYS or old is signal.SIG_DFL or _outer(old) is not None
                if free and old is not signal.SIG_IGN:
                    # None: set by C code, which Python cannot put back.
                    self._old[number] = signal.SIG_DFL if old is None else old
                    signal.signal(number, self._handle)
        return self

    def __exit__(self, *exc: object) -> None:
        for number in list(self._old):
            self._restore(number)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        # Nothing but flags in here: a handler runs between any two instructions of the main thread.
        if self.received is None:
            self.received = signal.Signals(number).name
        outer = _outer(self._old.get(number))
        if number in ALWAYS:
            self._restore(number)
        if outer is not None:
            outer._handle(number, frame)

    def _restore(self, number: int) -> None:
        old = self._old.pop(number, None)
        # Somebody may have set a handler of their own meanwhile: that one stays.
        if old is not None and signal.getsignal(number) == self._handle:
            signal.signal(number, old)


def _outer(handler: Any) -> Signals | None:
    """The run that this handler belongs to, where this one was started by a callback."""
    owner = getattr(handler, "__self__", None)
    return owner if isinstance(owner, Signals) else None
