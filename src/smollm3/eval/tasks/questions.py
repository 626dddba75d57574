"""Functions that the YAML files here name: the harness finds them only beside those."""

from smollm3.eval.questions import (
    answerable,
    chrf,
    hotpotqa,
    hotpotqa_scores,
    letter,
    musique,
    musique_scores,
    passage,
    passage_scores,
    with_index,
)

__all__ = [
    "answerable",
    "chrf",
    "hotpotqa",
    "hotpotqa_scores",
    "letter",
    "musique",
    "musique_scores",
    "passage",
    "passage_scores",
    "with_index",
]
