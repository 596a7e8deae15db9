"""Ctrl-C: once to stop after the block, twice to stop at once."""

from __future__ import annotations

import signal
import threading
from types import SimpleNamespace

import pytest

from fvlight.training import StopOnInterrupt


def trainer() -> SimpleNamespace:
    return SimpleNamespace(should_stop=False)


def test_nothing_happens_without_ctrl_c() -> None:
    callback, loop, before = StopOnInterrupt(), trainer(), signal.getsignal(signal.SIGINT)
    callback.on_fit_start(loop, None)  # type: ignore[arg-type]
    assert signal.getsignal(signal.SIGINT) != before
    callback.on_train_batch_end(loop)  # type: ignore[arg-type]
    assert not loop.should_stop
    assert not callback.requested
    callback.teardown(loop, None, "fit")  # type: ignore[arg-type]
    assert signal.getsignal(signal.SIGINT) == before


def test_the_first_stops_after_the_block(capsys: pytest.CaptureFixture[str]) -> None:
    callback, loop = StopOnInterrupt(), trainer()
    callback.on_fit_start(loop, None)  # type: ignore[arg-type]
    signal.raise_signal(signal.SIGINT)
    assert callback.requested
    assert not loop.should_stop  # the block goes on to its end
    callback.on_train_batch_end(loop)  # type: ignore[arg-type]
    assert loop.should_stop
    assert "Ctrl-C again" in capsys.readouterr().err
    callback.teardown(loop, None, "fit")  # type: ignore[arg-type]


def test_the_second_stops_at_once() -> None:
    callback, loop = StopOnInterrupt(), trainer()
    callback.on_fit_start(loop, None)  # type: ignore[arg-type]
    signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    callback.restore()
    with pytest.raises(KeyboardInterrupt):  # Python's own handler again
        signal.raise_signal(signal.SIGINT)


def test_the_handler_that_was_there_comes_back() -> None:
    seen: list[int] = []
    own = signal.signal(signal.SIGINT, lambda number, _: seen.append(number))
    try:
        callback, loop = StopOnInterrupt(), trainer()
        callback.on_fit_start(loop, None)  # type: ignore[arg-type]
        callback.teardown(loop, None, "fit")  # type: ignore[arg-type]
        callback.teardown(loop, None, "fit")  # type: ignore[arg-type]  # a second time changes nothing
        signal.raise_signal(signal.SIGINT)
        assert seen == [signal.SIGINT]
    finally:
        signal.signal(signal.SIGINT, own)


def test_a_run_in_another_thread_sets_no_handler() -> None:
    callback, before, failures = StopOnInterrupt(), signal.getsignal(signal.SIGINT), []

    def work() -> None:
        try:
            callback.on_fit_start(trainer(), None)  # type: ignore[arg-type]
            callback.teardown(trainer(), None, "fit")  # type: ignore[arg-type]
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert failures == []
    assert signal.getsignal(signal.SIGINT) == before
