import os
import signal
import subprocess
import sys
import threading

import pytest

from jaxtrain.training.signals import ENDING, Signals, exit_code


@pytest.fixture(autouse=True)
def handlers_as_before():
    before = {number: signal.getsignal(number) for number in ENDING}
    yield
    after = {number: signal.getsignal(number) for number in before}
    for number, handler in before.items():
        signal.signal(number, handler)
    assert after == before


@pytest.mark.parametrize("name, code", [("SIGTERM", 143), ("SIGINT", 130)])
def test_first_signal_is_only_a_flag(name, code):
    with Signals() as signals:
        assert signals.received is None
        os.kill(os.getpid(), getattr(signal, name))
        assert signals.received == name and exit_code(name) == code
    assert signals.received == name and exit_code(name) == code


def test_second_signal_reaches_the_old_handler():
    seen = []
    old = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    try:
        with Signals() as signals:
            os.kill(os.getpid(), signal.SIGTERM)
            assert seen == []
            os.kill(os.getpid(), signal.SIGTERM)
            assert seen == [signal.SIGTERM]
            assert signals.received == "SIGTERM"
    finally:
        signal.signal(signal.SIGTERM, old)


def test_second_interrupt_raises():
    with Signals() as signals:
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.received == "SIGINT"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            signal.pause()


def test_the_first_of_two_kinds_is_kept():
    with Signals() as signals:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.received == "SIGTERM"


def test_second_sigterm_kills_the_process():
    code = (
        "import os, signal, time\n"
        "from jaxtrain.training.signals import Signals\n"
        "with Signals() as s:\n"
        "    os.kill(os.getpid(), signal.SIGTERM); print(s.received, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGTERM); time.sleep(20)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.returncode) == ("SIGTERM\n", -signal.SIGTERM), done.stderr


def test_old_handlers_come_back_after_an_exception():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(RuntimeError), Signals():
        assert signal.getsignal(signal.SIGTERM) != before
        raise RuntimeError
    assert signal.getsignal(signal.SIGTERM) == before


def test_inert_outside_the_main_thread():
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def work():
        with Signals() as signals:
            seen.append((signals.received, signal.getsignal(signal.SIGTERM) == before))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(None, True)]


def test_an_ignored_signal_stays_ignored():
    old = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Signals() as signals:
            os.kill(os.getpid(), signal.SIGINT)
            assert signals.received is None
    finally:
        signal.signal(signal.SIGINT, old)


def test_a_handler_set_meanwhile_stays():
    def theirs(number, frame):
        pass

    old = signal.getsignal(signal.SIGTERM)
    try:
        with Signals():
            signal.signal(signal.SIGTERM, theirs)
        assert signal.getsignal(signal.SIGTERM) is theirs
    finally:
        signal.signal(signal.SIGTERM, old)


def test_handler_unknown_to_python_becomes_the_default(monkeypatch):
    real = signal.getsignal
    monkeypatch.setattr(signal, "getsignal", lambda number: None)
    signals = Signals()
    old = {number: real(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        signals.__enter__()
        monkeypatch.undo()
        signals.__exit__(None, None, None)
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def test_can_be_entered_again():
    signals = Signals()
    with signals:
        os.kill(os.getpid(), signal.SIGTERM)
    with signals:
        assert signals.received is None
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.received == "SIGTERM"


OTHERS = [("SIGHUP", 129), ("SIGUSR1", 138), ("SIGUSR2", 140), ("SIGXCPU", 152)]


@pytest.mark.parametrize("name, code", OTHERS)
def test_what_batch_systems_send_is_a_flag_too(name, code):
    number = getattr(signal, name)
    assert signal.getsignal(number) is signal.SIG_DFL
    with Signals() as signals:
        os.kill(os.getpid(), number)
        assert signals.received == name and exit_code(name) == code
        os.kill(os.getpid(), number)  # a closing terminal sends SIGHUP twice, and SIGXCPU comes every second
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.received == name and exit_code(name) == code
    assert signal.getsignal(number) is signal.SIG_DFL


@pytest.mark.parametrize("name", [name for name, _ in OTHERS])
@pytest.mark.parametrize("handler", ["ignored", "a program's own"])
def test_a_signal_that_the_program_has_a_use_for_is_left_to_it(name, handler):
    number, seen = getattr(signal, name), []
    old = signal.signal(number, signal.SIG_IGN if handler == "ignored" else lambda *_: seen.append(name))
    try:
        with Signals() as signals:
            os.kill(os.getpid(), number)
            assert signals.received is None
        assert seen == [name] * (handler != "ignored")
    finally:
        signal.signal(number, old)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_a_run_within_a_run_passes_on_what_it_receives(name):
    with Signals() as outer:
        with Signals() as inner:
            os.kill(os.getpid(), getattr(signal, name))
            assert inner.received == outer.received == name
        with Signals() as later:
            assert later.received is None
