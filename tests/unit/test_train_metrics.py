"""metrics.jsonl of long stages, and after a resume."""

import json

import pytest

from smollm3.train.metrics import EVERY_ROW_UP_TO, ROWS, MetricsLog, keeps


def row(step, skipped=False):
    return {"step": step, "loss": 1.0, "skipped": skipped}


def steps_in(path):
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


@pytest.mark.parametrize("steps", [1, 9, EVERY_ROW_UP_TO + 5, ROWS, ROWS + 1, 3_450_000, 4_720_000])
def test_rows_of_a_stage_stay_under_a_hundred_megabytes(steps):
    kept = sum(keeps(step, steps) for step in range(1, steps + 1))
    assert kept == steps if steps <= ROWS else ROWS / 2 < kept <= ROWS + EVERY_ROW_UP_TO + 1
    assert kept * 400 < 100e6  # a row of APO, the longest, has less
    assert keeps(steps, steps)


def test_skipped_updates_always_have_a_row(tmp_path):
    with MetricsLog(tmp_path / "m.jsonl", 0, 10 * ROWS) as log:
        for step in range(20_001, 20_100):
            log.write(row(step, skipped=step == 20_055))
    multiples = [*range(20_010, 20_100, 10)]
    assert steps_in(tmp_path / "m.jsonl") == sorted([*multiples, 20_055])


@pytest.mark.parametrize("half", [b"", b'{"step": 20_11', b'{"step": 30000, "loss": 1.0}'])
def test_a_resume_cuts_by_the_step_not_by_the_row(tmp_path, half):
    path = tmp_path / "m.jsonl"
    with MetricsLog(path, 0, 10 * ROWS) as log:
        for step in range(9_990, 20_101):
            log.write(row(step))
        log.sync()
    path.write_bytes(path.read_bytes() + half)
    with MetricsLog(path, 20_050, 10 * ROWS) as log:
        log.write(row(20_060))
    assert steps_in(path) == [*range(9_990, 10_001), *range(10_010, 20_051, 10), 20_060]
