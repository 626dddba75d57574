"""The thirteen tasks with the parameters and prompts of NVIDIA/RULER (Apache-2.0).

The prompts are the benchmark, so they are kept to the letter, their slips included ("assgined").
Parameters: scripts/synthetic.yaml; prompts: scripts/data/synthetic/constants.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["niah", "vt", "cwe", "fwe", "qa"]
Haystack = Literal["noise", "essay", "needle", "squad", "hotpotqa"]

NIAH = (
    "Some special magic {type} are hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the {type} afterwards.\n{context}\n"
    "What are all the special magic {type} for {query} mentioned in the provided text?"
)
NIAH_PREFIX = " The special magic {type} for {query} mentioned in the provided text are"
NEEDLE = "One of the special magic {type} for {key} is: {value}."
NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
VT = (
    "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n"
    "{context}\nQuestion: Find all variables that are assigned the value {query} in the text above."
)
VT_PREFIX = (
    " Answer: According to the chain(s) of variable assignment in the text above, {count} "
    "variables are assgined the value {query}, they are: "
)
CWE = (
    "Below is a numbered list of words. In these words, some appear more often than others. "
    "Memorize the ones that appear most often.\n{context}\n"
    "Question: What are the 10 most common words in the above list?"
)
CWE_PREFIX = " Answer: The top 10 words that appear most often in the list are:"
FWE = (
    "Read the following coded text and track the frequency of each coded word. Find the three most "
    "frequently appeared coded words. {context}\nQuestion: Do not provide any explanation. Please "
    "ignore the dots '....'. What are the three most frequently appeared words in the above coded "
    "text?"
)
FWE_PREFIX = (
    " Answer: According to the coded text above, the three most frequently appeared words are:"
)
QA = (
    "Answer the question based on the given documents. Only give me the answer and do not output "
    "any other words.\n\nThe following are given documents.\n\n{context}\n\nAnswer the question "
    "based on the given documents. Only give me the answer and do not output any other words."
    "\n\nQuestion: {query}"
)
QA_PREFIX = " Answer:"


@dataclass(frozen=True)
class RulerTask:
    """tokens: of the answer. keys, values, queried: needles of a needle task, by key and value."""

    name: str
    kind: Kind
    haystack: Haystack
    tokens: int
    key: Literal["words", "uuids"] = "words"
    value: Literal["numbers", "uuids"] = "numbers"
    keys: int = 1
    values: int = 1
    queried: int = 1

    @property
    def any_of(self) -> bool:
        """Whether one reference is enough; else the share of them counts that is found."""
        return self.kind == "qa"


TASKS = {
    task.name: task
    for task in (
        RulerTask("niah_single_1", "niah", "noise", 128),
        RulerTask("niah_single_2", "niah", "essay", 128),
        RulerTask("niah_single_3", "niah", "essay", 128, value="uuids"),
        RulerTask("niah_multikey_1", "niah", "essay", 128, keys=4),
        RulerTask("niah_multikey_2", "niah", "needle", 128),
        RulerTask("niah_multikey_3", "niah", "needle", 128, key="uuids", value="uuids"),
        RulerTask("niah_multivalue", "niah", "essay", 128, values=4),
        RulerTask("niah_multiquery", "niah", "essay", 128, keys=4, queried=4),
        RulerTask("vt", "vt", "noise", 30),
        RulerTask("cwe", "cwe", "noise", 120),
        RulerTask("fwe", "fwe", "noise", 50),
        RulerTask("qa_1", "qa", "squad", 32),
        RulerTask("qa_2", "qa", "hotpotqa", 32),
    )
}
OFFLINE = tuple(t.name for t in TASKS.values() if t.haystack in ("noise", "needle"))
DEPTHS = 40  # places for needles in essays, evenly from 0 to 100%
EFFECTIVE = 0.856  # Llama-2-7B at 4,096: below it RULER calls a length no longer effective
