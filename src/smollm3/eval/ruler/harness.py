"""RULER's tasks in the harness's form, one for each length: ruler_vt_4096."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from smollm3.errors import UserError
from smollm3.eval.ruler.generate import Count, Files, generate
from smollm3.eval.ruler.tasks import EFFECTIVE, OFFLINE, TASKS, RulerTask

GROUPS = {"ruler": tuple(TASKS), "ruler_offline": OFFLINE}
SAMPLES = 500  # of each task and length
_CONTROL = re.compile(r"[\x00-\x1f]")


def is_ruler(name: str) -> bool:
    return name in GROUPS or (name.startswith("ruler_") and name[6:] in TASKS)


def configs(
    name: str, lengths: Sequence[int], samples: int | None, count: Count, files: Files, chat: bool
) -> list[dict[str, Any]]:
    """Task configurations of a name that `is_ruler`. chat: the answer's beginning is put into the
    model's turn."""
    tasks = GROUPS.get(name, (name.removeprefix("ruler_"),))
    return [
        _config(TASKS[task], length, samples or SAMPLES, count, files, chat)
        for length in lengths
        for task in tasks
    ]


def _config(
    task: RulerTask, length: int, samples: int, count: Count, files: Files, chat: bool
) -> dict[str, Any]:
    beginning: dict[str, Any] = (
        {"doc_to_text": "{{prompt}}", "gen_prefix": "{{prefix}}"}
        if chat
        else {"doc_to_text": "{{prompt}}{{prefix}}"}
    )
    return {
        "task": f"ruler_{task.name}_{length}",
        "custom_dataset": _DataSet(task, length, samples, count, files),
        "output_type": "generate_until",
        "test_split": "test",
        "doc_to_target": "{{outputs}}",
        "target_delimiter": "",
        "process_results": _Score(task.any_of),
        "metric_list": [{"metric": "score", "aggregation": "mean", "higher_is_better": True}],
        "generation_kwargs": {"until": [], "max_gen_toks": task.tokens, "do_sample": False},
        "num_fewshot": 0,
        "metadata": {"version": 1.0},
        **beginning,
    }


class _DataSet:
    """No dataclass and never copied: the harness copies a task's configuration, into dataclasses
    too, and no engine can be copied."""

    def __init__(self, *given: Any) -> None:
        self._given = given

    def __call__(self, **_: Any) -> Any:
        import datasets

        items = generate(*self._given)
        return {"test": datasets.Dataset.from_list([vars(item) for item in items])}

    def __deepcopy__(self, _: Any) -> _DataSet:
        return self


class _Score:
    def __init__(self, any_of: bool) -> None:
        self.any_of = any_of

    def __call__(self, doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
        return score(self.any_of, doc, results)


def score(any_of: bool, doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """The share of references that the answer holds, in any case of letters; or whether it holds
    one of them. As NVIDIA/RULER's string_match_all and string_match_part."""
    answer = _CONTROL.sub("\n", results[0]).strip().lower()
    hits = [reference.lower() in answer for reference in doc["outputs"]]
    return {"score": float(any(hits)) if any_of else sum(hits) / len(hits)}


def by_length(results: Mapping[str, Mapping[str, Any]]) -> dict[int, dict[str, float]]:
    """length -> task -> score, of a results.json's "results"."""
    found: dict[int, dict[str, float]] = defaultdict(dict)
    for name, values in results.items():
        match = re.fullmatch(r"ruler_(\w+?)_(\d+)", name)
        if match and match[1] in TASKS and "score,none" in values:
            found[int(match[2])][match[1]] = float(values["score,none"])
    return dict(sorted(found.items()))


def effective_length(means: Mapping[int, float]) -> int | None:
    """The longest length at which the mean is still that of RULER's bar, and at all below it."""
    longest = None
    for length, mean in sorted(means.items()):
        if mean < EFFECTIVE:
            break
        longest = length
    return longest


def depths(samples: Sequence[Mapping[str, Any]]) -> dict[tuple[int, int], float]:
    """(length, depth in tenths) -> mean score, of the samples of single needles."""
    cells: dict[tuple[int, int], list[float]] = defaultdict(list)
    for sample in samples:
        depth = sample.get("doc", {}).get("depth")
        if depth is not None:
            cells[sample["doc"]["length"], min(int(depth * 10), 9)].append(sample["score"])
    return {cell: sum(scores) / len(scores) for cell, scores in sorted(cells.items())}


def need_known(lengths: Sequence[int], context: int) -> None:
    """UserError for a length that a model cannot read."""
    too_long = [length for length in lengths if length > context]
    if too_long:
        raise UserError(
            f"--lengths {too_long[0]}: the model's context is {context}; a longer one, by YaRN, is "
            f"--context {too_long[0]}"
        )
