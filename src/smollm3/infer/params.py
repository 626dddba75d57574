"""How a request wants its tokens chosen."""

from __future__ import annotations

import hashlib
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from smollm3.errors import UserError
from smollm3.files import read_json
from smollm3.option import Option

MAX_TOP_LOGPROBS = 1000  # each is an entry of every step
MAX_CHOICES = 1000
MAX_STOPS = 100
OWN = "the model's own"


@dataclass(frozen=True)
class SamplingParams:
    """temperature 0 is greedy. top_k: of the k likeliest (0: all). top_p: of the likeliest whose
    probabilities first reach p. min_p: of those at least p times as likely as the likeliest.
    repetition_penalty: divides the positive logits, and multiplies the negative ones, of tokens
    that the prompt or the answer has. None takes the model's own setting.

    max_tokens: at most so many new tokens. seed: with the token's place it fixes the random number
    that picks it. presence_penalty, frequency_penalty: taken from the logits of the answer's own
    tokens, once or for each time. logit_bias: id -> what is added to its logit.
    stop: texts that end the answer and are not part of it. stop_token_ids: tokens that end it,
    beside the model's own. ignore_eos: the model's own stop tokens do not (for benchmarks).
    min_tokens: no such token comes before so many others, unless a constraint leaves nothing else.
    n: answers to each prompt. logprobs: so many likeliest tokens are told at each place.
    """

    temperature: Annotated[
        float | None, Option("Temperature of sampling; 0 takes the likeliest token.", default=OWN)
    ] = None
    top_k: Annotated[
        int | None,
        Option("Sample among the K likeliest tokens; 0: all.", metavar="K", default=OWN),
    ] = None
    top_p: Annotated[
        float | None,
        Option(
            "Sample among the likeliest tokens whose probabilities together reach P.",
            metavar="P",
            default=OWN,
        ),
    ] = None
    min_p: Annotated[
        float | None,
        Option(
            "Sample among tokens at least P times as likely as the likeliest.",
            metavar="P",
            default=OWN,
        ),
    ] = None
    max_tokens: Annotated[
        int,
        Option("Maximum number of new tokens in an answer.", default="256; 8192 in a chat"),
    ] = 256
    seed: Annotated[int, Option("Seed of the random numbers.")] = 0
    repetition_penalty: Annotated[
        float | None,
        Option(
            "Divide the logits of tokens that the prompt or the answer has by X; 1 is off.",
            metavar="X",
            default=OWN,
        ),
    ] = None
    presence_penalty: Annotated[
        float, Option("Subtract X from the logits of tokens that the answer has.", metavar="X")
    ] = 0.0
    frequency_penalty: Annotated[
        float, Option("Subtract X for each time that the answer has a token.", metavar="X")
    ] = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)
    stop: Annotated[
        str | Sequence[str],
        Option("Text that ends the answer; repeatable.", metavar="TEXT", repeated=True),
    ] = ()
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    min_tokens: int = 0
    n: int = 1
    logprobs: int = 0

    def __post_init__(self) -> None:
        _check_number("temperature", self.temperature, 0.0, math.inf, optional=True)
        _check_number("top_p", self.top_p, 0.0, 1.0, optional=True)
        if self.top_p == 0:
            raise UserError("top_p: 0.0 leaves no token; for the likeliest use temperature 0")
        _check_number("min_p", self.min_p, 0.0, 1.0, optional=True)
        _check_number("repetition_penalty", self.repetition_penalty, 1e-3, 1e3, optional=True)
        _check_number("presence_penalty", self.presence_penalty, -100.0, 100.0)
        _check_number("frequency_penalty", self.frequency_penalty, -100.0, 100.0)
        _check_whole("top_k", self.top_k, 0, optional=True)
        _check_whole("max_tokens", self.max_tokens, 1)
        _check_whole("min_tokens", self.min_tokens, 0)
        _check_whole("seed", self.seed)
        _check_whole("n", self.n, 1, MAX_CHOICES)
        _check_whole("logprobs", self.logprobs, 0, MAX_TOP_LOGPROBS)
        if not isinstance(self.ignore_eos, bool):
            raise UserError(f"ignore_eos: must be true or false, not {self.ignore_eos!r}")
        if not isinstance(self.logit_bias, Mapping):
            raise UserError(f"logit_bias: must map token ids to numbers, not {self.logit_bias!r}")
        for token, bias in self.logit_bias.items():
            _check_whole("logit_bias", token, 0)
            _check_number("logit_bias", bias, -math.inf, math.inf)
        object.__setattr__(self, "stop", _stops(self.stop))
        object.__setattr__(self, "stop_token_ids", _stop_token_ids(self.stop_token_ids))

    def over(self, model: SamplingParams) -> SamplingParams:
        """These settings, and the model's own where they are None."""
        names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
        return replace(self, **{n: getattr(model, n) for n in names if getattr(self, n) is None})

    def choices(self) -> list[SamplingParams]:
        """One for each of the n answers: the first keeps the seed, the others' follow from it."""
        seeds = [self.seed, *(_derived(self.seed, i) for i in range(1, self.n))]
        return [replace(self, n=1, seed=seed) for seed in seeds]


def _derived(seed: int, choice: int) -> int:
    digest = hashlib.blake2b(f"{seed}/choice {choice}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _check_number(name: str, value: Any, low: float, high: float, optional: bool = False) -> None:
    if optional and value is None:
        return
    number = isinstance(value, int | float) and not isinstance(value, bool)
    largest = sys.float_info.max
    if not number or not max(low, -largest) <= value <= min(high, largest):
        limits = f" from {low:g} to {high:g}" if high < math.inf else f" of at least {low:g}"
        raise UserError(f"{name}: must be a number{limits * (low > -math.inf)}, not {value!r}")


def _check_whole(
    name: str, value: Any, least: int | None = None, most: int | None = None, optional: bool = False
) -> None:
    if optional and value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise UserError(f"{name}: must be a whole number, not {value!r}")
    if least is not None and value < least:
        raise UserError(f"{name}: must be at least {least}, not {value}")
    if most is not None and value > most:
        raise UserError(f"{name}: must be at most {most}, not {value}")


def _stops(stop: Any) -> tuple[str, ...]:
    texts = (stop,) if isinstance(stop, str) else stop
    if not isinstance(texts, Sequence) or not all(isinstance(text, str) for text in texts):
        raise UserError(f"stop: must be a text or a list of texts, not {stop!r}")
    if not all(texts):
        raise UserError("stop: an empty text would end every answer; leave it out")
    if len(texts) > MAX_STOPS:
        raise UserError(f"stop: at most {MAX_STOPS} texts, not {len(texts)}")
    return tuple(texts)


def _stop_token_ids(ids: Any) -> tuple[int, ...]:
    if not isinstance(ids, Sequence) or isinstance(ids, str):
        raise UserError(f"stop_token_ids: must be a list of token ids, not {ids!r}")
    for index in ids:
        _check_whole("stop_token_ids", index, 0)
    return tuple(ids)


# As SmolLM3 was published; for a folder that says nothing.
PUBLISHED = SamplingParams(temperature=0.6, top_k=0, top_p=0.95, min_p=0.0, repetition_penalty=1.0)


def model_params(folder: Path) -> SamplingParams:
    """The model's own settings, from its generation_config.json."""
    file = folder / "generation_config.json"
    if not file.exists():
        return PUBLISHED
    values = read_json(file)
    if not isinstance(values, dict):
        raise UserError(f"{file}: the file is not a JSON object")
    off = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}
    chosen: dict[str, Any] = {n: v if values.get(n) is None else values[n] for n, v in off.items()}
    if not values.get("do_sample"):
        chosen["temperature"] = 0.0
    try:
        return SamplingParams(**chosen)
    except UserError as e:
        raise UserError(f"{file}: {e}") from None
