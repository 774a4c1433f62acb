import logging
import time

from monai_jsm.data import with_progress


def test_short_work_is_quiet_and_keeps_its_order(caplog):
    with caplog.at_level(logging.INFO):
        assert list(with_progress([3, 1, 2], "counting")) == [3, 1, 2]
    assert caplog.records == []


def test_long_work_without_a_terminal_logs_a_line_every_ten_seconds(caplog, monkeypatch):
    seconds = iter([0.0, 1.0, 3.0, 3.0, 9.0, 14.0, 14.0])  # a line after 3 s and one after 14 s
    monkeypatch.setattr(time, "monotonic", lambda: next(seconds))
    with caplog.at_level(logging.INFO):
        assert list(with_progress("abcd", "counting")) == ["a", "b", "c", "d"]
    assert caplog.messages == ["counting: 1 of 4", "counting: 3 of 4"]
