"""Which rank has what: every row and column once, and one clear line for what cannot be shared."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smollm3.errors import UserError
from smollm3.model import ModelConfig, nope_pattern
from smollm3.train.layout import Layout
from smollm3.train.spec import Parallel, TrainStage

CONFIG = ModelConfig(64, 4, 32, 8, 4, 4, 48, nope_pattern(4, 4), 1e4, 64)
SIZES = st.sampled_from([1, 2, 3, 4])


def stage(**changes) -> TrainStage:
    wanted = {"kind": "train", "mixture": {"a": 1}, "context": 64, "batch": 12, "steps": 1}
    return TrainStage.model_validate(wanted | {"lr": {"peak": 1e-3}} | changes)


@given(SIZES, SIZES, SIZES, SIZES)
def test_every_token_of_a_batch_is_on_exactly_tp_ranks(replicate, shard, cp, tp):
    layout = Layout(replicate, shard, cp, tp)
    width, seen = 2 * cp * 6, {}
    for rank in range(layout.size):
        for first, last in layout.columns(rank, width) or [(0, width)]:
            for column in range(first, last):
                place = (layout.row_rank(rank), column)
                seen[place] = seen.get(place, 0) + 1
    assert seen == {(row, c): tp for row in range(replicate * shard) for c in range(width)}


@pytest.mark.parametrize("cp", [2, 4])
def test_context_parallel_ranks_have_the_same_work(cp):
    """Scores of a causal row: column i sees i + 1 keys."""
    layout = Layout(cp=cp)
    work = {
        sum(i + 1 for first, last in layout.columns(rank, 64) or [] for i in range(first, last))
        for rank in range(cp)
    }
    assert len(work) == 1


def test_what_is_left_of_the_processes_replicates():
    assert Layout.of(Parallel(shard=2, tp=2), 16) == Layout(4, 2, 1, 2)
    assert Layout.of(Parallel(), 3) == Layout(3)
    assert str(Layout(2, 4, 1, 1)) == "replicate 2 x shard 4"
    assert str(Layout()) == "1 process"


@pytest.mark.parametrize(
    ("parallel", "processes", "says"),
    [
        (Parallel(shard=4), 2, "shard 4 are 4 processes, but there are 2; start 4"),
        (Parallel(replicate=2, shard=2), 8, "replicate 2 x shard 2 are 4 processes.*8"),
        (Parallel(tp=2), 3, "tp 2 are 2 processes, but there are 3"),
    ],
)
def test_another_number_of_processes_is_one_line(parallel, processes, says):
    with pytest.raises(UserError, match=says):
        Layout.of(parallel, processes)


@pytest.mark.parametrize(
    ("layout", "changes", "says"),
    [
        (Layout(tp=8), {}, "tp 8 does not divide the model's 4 key/value heads"),
        (Layout(cp=3), {}, "cut a row into 6 equal parts, which context: 64"),
        (Layout(shard=5), {}, r"12 rows do not divide over 5.*batch of 15 would, or 4 groups"),
        (Layout(384), {"batch": 36}, r"36 rows do not divide over 384.*or 36 groups"),
        (Layout(tp=2), {"compile": True}, "tp 2 shares products, which compiled blocks cannot"),
        (Layout(tp=2), {"precision": "float8"}, "tp 2 shares products that float8 has whole"),
    ],
)
def test_what_does_not_divide_is_one_line_with_the_fix(layout, changes, says):
    with pytest.raises(UserError, match=f"parallel: .*{says}"):
        layout.check(CONFIG, stage(**changes))


def test_what_divides_is_taken():
    Layout(2, 2, 2, 4).check(CONFIG, stage(batch=8))
