"""Event files: TensorBoard reads them back, a resumed run replaces what it does again, and nothing names the machine."""

import os
import socket
import time
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator as PluginEventAccumulator
from tensorboard.util import tensor_util

from dinov2 import distributed
from dinov2.logging import MetricLogger
from dinov2.logging.tensorboard import TensorBoardWriter


def read_back(folder: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    return accumulator


def points(folder: Path, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in read_back(folder).Scalars(tag)]


def test_scalars_come_back_with_their_steps_and_values(tmp_path):
    with TensorBoardWriter(tmp_path / "new" / "folder") as writer:
        writer.add_scalars(0, {"total_loss": 2.5, "lr": 0.25})
        writer.add_scalars(10, {"total_loss": 1.5})
    assert points(tmp_path / "new" / "folder", "total_loss") == [(0, 2.5), (10, 1.5)]
    assert points(tmp_path / "new" / "folder", "lr") == [(0, 0.25)]


def test_a_text_comes_back(tmp_path):
    with TensorBoardWriter(tmp_path) as writer:
        writer.add_text("routing", "every crop with every crop")
    (event,) = read_back(tmp_path).Tensors("routing")
    assert event.tensor_proto.string_val[0].decode() == "every crop with every crop"


def test_values_can_be_read_before_the_writer_is_closed(tmp_path):
    writer = TensorBoardWriter(tmp_path)
    writer.add_scalars(3, {"total_loss": 1.0})
    assert points(tmp_path, "total_loss") == [(3, 1.0)]
    writer.close()


def test_steps_that_a_resumed_run_does_again_stand_once(tmp_path):
    with TensorBoardWriter(tmp_path) as killed:
        for step in range(5):
            killed.add_scalars(step, {"total_loss": float(step), "probe/rankme": 1.0})
    with TensorBoardWriter(tmp_path, start_iteration=3) as resumed:
        resumed.add_scalars(3, {"total_loss": 30.0})
        resumed.add_scalars(4, {"total_loss": 40.0})
    expected = [(0, 0.0), (1, 1.0), (2, 2.0), (3, 30.0), (4, 40.0)]
    assert points(tmp_path, "total_loss") == expected
    assert [step for step, _ in points(tmp_path, "probe/rankme")] == [0, 1, 2]
    page = PluginEventAccumulator(str(tmp_path))  # what TensorBoard's pages read, with rules of its own for restarts
    page.Reload()
    shown = [(event.step, float(tensor_util.make_ndarray(event.tensor_proto))) for event in page.Tensors("total_loss")]
    assert shown == expected


def test_a_run_that_starts_anew_in_the_folder_replaces_all_of_the_old_one(tmp_path):
    with TensorBoardWriter(tmp_path) as old:
        old.add_scalars(7, {"total_loss": 7.0})
    with TensorBoardWriter(tmp_path) as new:
        new.add_scalars(0, {"total_loss": 0.5})
    assert points(tmp_path, "total_loss") == [(0, 0.5)]


def test_a_clock_that_was_set_back_does_not_change_the_order_of_the_files(tmp_path, monkeypatch):
    TensorBoardWriter(tmp_path).close()
    (first,) = tmp_path.iterdir()
    monkeypatch.setattr(time, "time", lambda: 1.0)
    TensorBoardWriter(tmp_path, start_iteration=1).close()
    assert min(path.name for path in tmp_path.iterdir()) == first.name


def test_neither_name_nor_content_tell_the_machine_or_the_process(tmp_path, monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "ward-7-workstation")
    monkeypatch.setattr(os, "getpid", lambda: 4711471)
    with TensorBoardWriter(tmp_path) as writer:
        writer.add_scalars(0, {"total_loss": 2.5})
        writer.add_text("note", "text")
    (path,) = tmp_path.iterdir()
    for text in (path.name.encode(), path.read_bytes()):
        assert b"ward-7" not in text
        assert b"4711471" not in text
    prefix, stamp, count = path.name.rsplit(".", 2)
    assert prefix == "events.out.tfevents"
    assert stamp.isdigit()
    assert count == "000000"


def test_only_the_main_process_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "is_main_process", lambda: False)
    with TensorBoardWriter(tmp_path / "run") as writer:
        writer.add_scalars(0, {"total_loss": 2.5})
        writer.add_text("note", "text")
    assert not (tmp_path / "run").exists()


def test_a_closed_writer_takes_values_without_an_error(tmp_path):
    writer = TensorBoardWriter(tmp_path)
    writer.close()
    writer.add_scalars(0, {"total_loss": 2.5})
    writer.close()
    assert read_back(tmp_path).Tags()["scalars"] == []


@pytest.mark.parametrize("output_file", [None, "metrics.json"])
def test_the_metric_logger_gives_each_line_to_its_sink_with_what_was_measured_after_the_step(tmp_path, output_file):
    lines = []
    metrics = MetricLogger(
        output_file=tmp_path / output_file if output_file else None,
        after_step=lambda iteration, step_s, wait_s: {"number": 10 * iteration, "in_order": step_s >= wait_s >= 0},
        sink=lambda iteration, values: lines.append((iteration, dict(values))),
    )
    for item in metrics.log_every("abc", print_freq=2, n_iterations=3):
        metrics.update(code=ord(item))
    assert [iteration for iteration, _ in lines] == [0, 2]
    assert lines[-1][1].keys() == {"iter_time", "data_time", "code", "number", "in_order"}
    assert (lines[-1][1]["code"], lines[-1][1]["number"], lines[-1][1]["in_order"]) == (98.0, 10.0, 1.0)
