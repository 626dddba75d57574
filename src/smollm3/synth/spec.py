"""What a synthesis recipe says."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from smollm3.config import StrictModel

CHECKS = ("answer", "code", "instructions", "language", "agreement", "duplicates")
Check = Literal["answer", "code", "instructions", "language", "agreement", "duplicates"]
Mode = Literal["think", "no_think"]
Role = Literal["teacher", "weak"]
# Of a teacher: how it is reached, which changes no answer.
MANNER = frozenset(
    {"url", "key_env", "requests", "per_minute", "timeout", "attempts"}
    | {"input_price", "output_price"}
)


class Teacher(StrictModel):
    """A model behind an OpenAI-compatible URL (up to /v1); without `url`, one that is loaded here.

    model: as the URL names it; without `url`, a folder, GGUF file, Hub id, short name or, in a
    recipe, a stage. key_env: environment variable that holds its key. requests: under way at a
    time. per_minute: started in a minute at most. timeout: seconds until a request counts as lost.
    input_price, output_price: money for a million tokens, for the cost ledger.
    """

    url: str | None = None
    model: str
    key_env: str = "OPENAI_API_KEY"
    requests: int = Field(default=64, gt=0)
    per_minute: float | None = Field(default=None, gt=0)
    timeout: float = Field(default=600.0, gt=0)
    attempts: int = Field(default=8, gt=0)
    temperature: float = Field(default=0.6, ge=0)
    top_p: float = Field(default=0.95, gt=0, le=1)
    max_tokens: int = Field(default=8192, gt=0)
    input_price: float = Field(default=0.0, ge=0)
    output_price: float = Field(default=0.0, ge=0)


class Target(StrictModel):
    """So many kept conversations of a kind; what is not named is any."""

    rows: int = Field(gt=0)
    domain: str | None = None
    language: str | None = None
    mode: Mode | None = None


class Pairs(StrictModel):
    """Preference pairs: chosen from the teacher, rejected from `weak`.

    longest: the longer answer has at most so many times the characters of the shorter, so that
    length alone does not tell them apart.
    """

    weak: Teacher
    longest: float = Field(default=3.0, ge=1)


class Asking(StrictModel):
    """Whom to ask, how often, and what to keep.

    samples: answers to each prompt in each mode. agree: share of the samples that must give the
    same final answer, for the check `agreement`.
    """

    teacher: Teacher
    modes: list[Mode] = Field(default=["no_think"], min_length=1)
    samples: int = Field(default=1, gt=0)
    checks: list[Check] = Field(default_factory=list)
    agree: float = Field(default=0.5, gt=0, le=1)
    targets: list[Target] = Field(default_factory=list)
    pairs: Pairs | None = None

    def teachers(self) -> dict[Role, Teacher]:
        """All that are asked."""
        weak: dict[Role, Teacher] = {"weak": self.pairs.weak} if self.pairs else {}
        return {"teacher": self.teacher, **weak}

    @model_validator(mode="after")
    def _consistent(self) -> Asking:
        if "agreement" in self.checks and self.samples < 2:
            raise ValueError("the check agreement needs samples: 2 or more")
        return self


class Synthesis(Asking):
    """A recipe of `smollm3 synth`.

    prompts: files whose rows have `prompt` (a text) or `messages`, and what the checks need:
    `answer`, `tests` (Python), `constraints`, `language`; `domain` for targets.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    seed: int = Field(default=0, ge=0)
    prompts: list[str] = Field(min_length=1)


class SynthStage(Asking):
    """A stage that asks a teacher. prompts: sources of the recipe, whose rows are as Synthesis has
    them; of a conversation, all up to the user's last turn is asked."""

    kind: Literal["synth"]
    prompts: list[str] = Field(min_length=1)
