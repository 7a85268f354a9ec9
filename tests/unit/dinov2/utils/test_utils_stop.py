"""Signals that ask a run to leave: taken down, until the run has saved."""

import signal
import threading
from collections.abc import Iterator

import pytest

from dinov2.utils.stop import StopRequested, stop_requests, warning_signal


@pytest.fixture(autouse=True)
def warned_by_usr2() -> Iterator[None]:
    """As the job of a run would have it, where nobody takes the signal down."""
    before = signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGUSR2, before)


def test_without_a_signal_nobody_asks_for_a_stop():
    with stop_requests() as stop:
        assert stop.number == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR2])
def test_a_signal_is_taken_down_and_the_run_goes_on(number):
    with stop_requests() as stop:
        signal.raise_signal(number)
        assert stop.number == number


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_a_scheduler_that_repeats_itself_does_not_break_off_the_saving(number):
    with stop_requests() as stop:
        for _ in range(3):
            signal.raise_signal(number)
        assert stop.number == number


def test_a_second_ctrl_c_acts_at_once():
    with stop_requests():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_afterwards_signals_act_as_before():
    before = signal.getsignal(signal.SIGTERM)
    with stop_requests():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_outside_of_the_main_thread_nothing_changes():
    handlers = []

    def run() -> None:
        with stop_requests():
            handlers.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert handlers == [signal.getsignal(signal.SIGTERM)]


def test_a_cluster_may_warn_by_another_signal(monkeypatch):
    assert warning_signal() == signal.SIGUSR2
    monkeypatch.setattr("submitit.core.job_environment.JobEnvironment.USR_SIG", "USR1")
    assert warning_signal() == signal.SIGUSR1


def test_a_request_to_stop_is_no_error():
    assert not issubclass(StopRequested, Exception)
    assert str(StopRequested(signal.SIGUSR2)) == "stopped by SIGUSR2"
