"""Conversations of BFCL: our judge in the sandbox beside the package's own, on its own data."""

import json
import random

import pytest

from smollm3.eval import bfcl_turns
from smollm3.eval.bfcl_turns import CATEGORIES, FILES, Services, questions

pytest.importorskip("bfcl_eval.eval_checker.multi_turn_eval.multi_turn_checker")
ITEMS = 200  # of each category, each with three changes


def theirs(question, turns):
    """The verdict of the package's own checker, in this process."""
    from bfcl_eval.eval_checker.multi_turn_eval import multi_turn_checker as checker
    from bfcl_eval.eval_checker.multi_turn_eval import multi_turn_utils as utils

    kept = set(vars(utils))
    entry = {
        "id": question.id,
        "initial_config": question.item["config"],
        "involved_classes": question.item["classes"],
    }
    spelled = [[[spell(c) for c in step] for step in steps] for steps in turns]
    right = [[spell(call) for call in calls] for calls in question.right]
    found = checker.multi_turn_checker(spelled, right, entry, "", "model")
    for name in set(vars(utils)) - kept:  # its services are kept as globals
        delattr(utils, name)
    return found["valid"]


def spell(call):
    name, by_place, by_name = call
    words = [*map(repr, by_place), *(f"{key}={value!r}" for key, value in by_name.items())]
    return f"{name}({', '.join(words)})"


def changed(question, rng):
    """The right calls, one by one, with something wrong with them, or not."""
    turns = [[[call] for call in calls] for calls in question.right]
    full = [i for i, steps in enumerate(turns) if steps]
    turn = rng.choice(full)
    step = rng.randrange(len(turns[turn]))
    match rng.randrange(5):
        case 0:
            del turns[turn][step]
        case 1:
            turns[turn].insert(step, turns[turn][step])
        case 2:
            turns[turn] = [[call for one in turns[turn] for call in one]]
        case 3:
            turns[turn][step] = [("nothing_of_this_name", [], {})]
        case 4:
            name, by_place, by_name = turns[turn][step][0]
            other = {k: v + "x" if isinstance(v, str) else v for k, v in by_name.items()}
            turns[turn][step] = [(name, by_place, other)]
    return turns


@pytest.mark.slow
@pytest.mark.parametrize("category", CATEGORIES)
def test_the_same_verdicts_as_the_packages(category):
    rng = random.Random(category)
    agreed = right = 0
    with Services() as services:
        for question in questions(category)[:ITEMS]:
            told = [[[call] for call in calls] for calls in question.right]
            assert services.fault(question, told) == "", question.id
            assert theirs(question, told)
            for _ in range(3):
                turns = changed(question, rng)
                ours = services.fault(question, turns)
                assert (not ours) == theirs(question, turns), (question.id, turns, ours)
                agreed += 1
                right += not ours
    assert 0 < right < agreed
    print(f"{category}: {agreed} changed conversations, {right} right")


def test_what_is_told_is_what_theirs_is(monkeypatch):
    from bfcl_eval.eval_checker.multi_turn_eval.multi_turn_utils import execute_multi_turn_func_call

    with Services() as services:
        for question in questions("multi_turn_base")[::20]:
            steps = [calls for calls in question.right if calls]
            for n in range(1, len(steps) + 1):
                spelled = [spell(call) for call in steps[n - 1]]
                found, _ = execute_multi_turn_func_call(
                    spelled,
                    question.item["config"],
                    question.item["classes"],
                    "told",
                    question.id,
                )
                assert services.told(question, steps[:n]) == found


def test_the_package_has_the_services_that_we_name():
    from bfcl_eval.constants.executable_backend_config import CLASS_FILE_PATH_MAPPING

    for name, file in FILES.items():
        assert CLASS_FILE_PATH_MAPPING[name].endswith(f".{file}")
    every = {name for c in CATEGORIES for q in questions(c) for name in q.item["classes"]}
    assert every <= set(FILES)
    assert json.dumps(bfcl_turns.call_of("f(1, a=[2])")) == '["f", [1], {"a": [2]}]'
