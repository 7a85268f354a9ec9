"""Where log lines go, and that setting up twice neither doubles them nor leaves files open."""

import logging
import re
import warnings

import pytest

from dinov2 import distributed
from dinov2.logging import setup_logging

NAME = "dinov2.test_logging"


@pytest.fixture
def log():
    logger = logging.getLogger(NAME)
    yield logger
    setup_logging(name=NAME, capture_warnings=False)  # closes files
    logger.handlers.clear()


def test_lines_go_to_the_terminal_and_to_the_log_file_in_the_official_layout(log, tmp_path, capsys):
    setup_logging(output=tmp_path, name=NAME)
    log.info("näher")
    line = (tmp_path / "logs" / "log.txt").read_text(encoding="utf-8")
    layout = rf"I\d{{8}} \d\d:\d\d:\d\d \d+ {NAME} test_logging_setup\.py:\d+\] näher\n"
    assert re.fullmatch(layout, line)
    assert capsys.readouterr().out == line


@pytest.mark.parametrize("name", ["run.txt", "run.log"])
def test_the_output_may_be_a_file(log, tmp_path, name):
    setup_logging(output=tmp_path / name, name=NAME)
    log.info("here")
    assert "here" in (tmp_path / name).read_text()


def test_setting_up_again_writes_once_and_to_the_new_place_only(log, tmp_path):
    setup_logging(output=tmp_path / "first", name=NAME)
    (old_file,) = [h for h in log.handlers if isinstance(h, logging.FileHandler)]
    setup_logging(output=tmp_path / "second", name=NAME)
    log.info("once")
    assert (tmp_path / "second/logs/log.txt").read_text().count("once") == 1
    assert "once" not in (tmp_path / "first/logs/log.txt").read_text()
    assert old_file.stream is None


def test_handlers_of_others_stay(log):
    foreign = logging.NullHandler()
    log.addHandler(foreign)
    setup_logging(name=NAME)
    before = len(log.handlers)
    setup_logging(name=NAME)
    assert foreign in log.handlers
    assert len(log.handlers) == before


def test_other_ranks_write_a_file_of_their_own_and_nothing_to_the_terminal(log, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(distributed, "get_global_rank", lambda: 3)
    setup_logging(output=tmp_path, name=NAME)
    log.info("third")
    assert "third" in (tmp_path / "logs/log.txt.rank3").read_text()
    assert capsys.readouterr().out == ""


def test_the_level_is_respected(log, capsys):
    setup_logging(name=NAME, level=logging.WARNING)
    log.info("quiet")
    log.warning("loud")
    out = capsys.readouterr().out
    assert "loud" in out
    assert "quiet" not in out


def test_warnings_are_logged_while_capturing(log, caplog):
    setup_logging(name=NAME, capture_warnings=True)
    with warnings.catch_warnings():  # pytest watches warnings itself; capturing replaces how they are shown
        warnings.simplefilter("always")
        logging.captureWarnings(False)
        logging.captureWarnings(True)
        warnings.warn("a hint", UserWarning, stacklevel=1)
    assert "a hint" in caplog.text
