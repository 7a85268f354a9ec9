"""Meters, the iteration logger and its JSON lines."""

import json
import logging
import math

import pytest
import torch

from dinov2.logging import MetricLogger, SmoothedValue


def test_the_window_forgets_and_the_global_average_does_not():
    value = SmoothedValue(window_size=2)
    for number in (10.0, 1.0, 3.0):
        value.update(number)
    assert (value.avg, value.max, value.value, value.global_avg) == (2.0, 3.0, 3.0, 14 / 3)


def test_the_median_of_an_even_window_is_the_lower_one_as_in_torch():
    value = SmoothedValue()
    numbers = [4.0, 1.0, 3.0, 2.0]
    for number in numbers:
        value.update(number)
    assert value.median == torch.tensor(numbers).median().item() == 2.0


def test_a_value_counts_as_often_as_it_says():
    value = SmoothedValue()
    value.update(1.0, num=3)
    value.update(5.0)
    assert (value.count, value.global_avg) == (4, 2.0)


def test_an_empty_meter_is_nan_and_can_be_printed():
    value = SmoothedValue()
    assert all(math.isnan(v) for v in (value.median, value.avg, value.global_avg, value.max, value.value))
    assert str(value) == "nan (nan)"


def test_a_meter_prints_median_and_global_average():
    value = SmoothedValue(window_size=1)
    value.update(1)
    value.update(2)
    assert str(value) == "2.0000 (1.5000)"


def test_meters_are_read_as_attributes():
    meters = MetricLogger(delimiter="; ")
    meters.update(loss=torch.tensor(2.0), lr=1)
    assert meters.loss.value == 2.0
    assert str(meters) == "loss: 2.0000 (2.0000); lr: 1.0000 (1.0000)"
    with pytest.raises(AttributeError, match="accuracy"):
        _ = meters.accuracy


def test_every_step_is_yielded_and_every_few_are_logged(caplog):
    caplog.set_level(logging.INFO, logger="dinov2")
    assert list(MetricLogger().log_every(range(7), 3, "Training")) == list(range(7))
    lines = [record.getMessage() for record in caplog.records]
    assert [line.split("\t")[0] for line in lines[:-1]] == [f"Training [{i}/7]" for i in (0, 3, 6)]
    assert lines[-1].startswith("Training Total time: 0:00:0")


def test_an_endless_iterable_stops_at_the_given_index():
    def endless():
        while True:
            yield "batch"

    assert len(list(MetricLogger().log_every(endless(), 10, n_iterations=8, start_iteration=5))) == 3


@pytest.mark.parametrize("start", [8, 9])
def test_a_finished_run_does_no_further_step(start):
    assert list(MetricLogger().log_every(range(99), 10, n_iterations=8, start_iteration=start)) == []


def test_json_lines_hold_the_median_of_each_meter(tmp_path):
    path = tmp_path / "training_metrics.json"
    meters = MetricLogger(output_file=path)
    for step in meters.log_every(range(5), 2):
        meters.update(loss=step)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["iteration"], line["loss"]) for line in lines] == [(0, 0.0), (2, 1.0), (4, 2.0)]
    assert all(list(line)[:3] == ["iteration", "iter_time", "data_time"] for line in lines)
