"""The nano suite: what a model of any size can be asked in seconds.

Metrics, all on data that training never saw:
  loss/SOURCE           nats per trained-on token of held-out documents
  accuracy/TASK/MODE    share of procedural questions answered exactly, greedily
  adherence/MODE        share of answers that end by themselves and have (think) or have not
                        (no_think) any reasoning, over all tasks
  obeys/MODE            share of answers that begin with reasoning (think) or without (no_think),
                        over all tasks; their first tokens decide it
  tool_json             share of tool questions, in both modes, answered by valid calls of
                        declared tools
  tool_json/MODE        the same in one mode
  tool_right            share of them answered by exactly the right call
  preference/margin     nats by which the chosen answer of a held-out pair is likelier than the
                        rejected, in the mean; longer answers are less likely, so only the
                        difference of two models says something
  preference/accuracy   share of held-out pairs whose chosen answer is likelier
"""

from __future__ import annotations

import datetime
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import islice
from typing import Any

import numpy as np

from smollm3.chat import Message
from smollm3.data.shards import GENERATED, Shard
from smollm3.data.synthetic import TASKS, Item, items
from smollm3.errors import UserError
from smollm3.eval.measure import Measure, ratio, share
from smollm3.eval.spec import EvalStage
from smollm3.infer import Engine, SamplingParams
from smollm3.turn import Reply, Request, wait_all

MODES = ("think", "no_think")
PREFERENCE = ("preference/margin", "preference/accuracy")
OPENING = 8  # tokens of an answer that show whether it begins with reasoning
DATE = datetime.date(2025, 7, 8)  # told to the model; fixed, so that a score is too
# Ids, and which of them are trained on.
Document = tuple[list[int], np.ndarray[Any, np.dtype[np.bool_]]]


def known_metrics(formats: Mapping[str, str]) -> list[str]:
    """Every metric there is, given the format of each source."""
    return [
        *(f"loss/{source}" for source, format in formats.items() if format != "preference"),
        *(f"accuracy/{task}/{mode}" for task in TASKS for mode in MODES),
        *(f"{kind}/{mode}" for kind in ("adherence", "obeys", "tool_json") for mode in MODES),
        "tool_json",
        "tool_right",
        *(PREFERENCE if "preference" in formats.values() else []),
    ]


@dataclass(frozen=True)
class Answer:
    """What a model made of an item. text: as written; ended: by itself, not at the limit."""

    item: Item
    mode: str
    text: str
    message: Message
    ended: bool

    @property
    def right(self) -> bool:
        """Exactly the expected content, or exactly the expected call."""
        if self.item.tool_call is None:
            return self.message.content.strip() == self.item.answer
        calls = [{"name": c.name, "arguments": c.arguments} for c in self.message.tool_calls]
        return calls == [self.item.tool_call]

    @property
    def adheres(self) -> bool:
        return self.ended and self.obeys

    @property
    def obeys(self) -> bool:
        return (self.message.reasoning is not None) == (self.mode == "think")

    @property
    def calls_declared(self) -> bool:
        declared = {_tool_name(tool) for tool in self.item.tools}
        called = {call.name for call in self.message.tool_calls}
        return bool(called) and called <= declared


class Suite:
    """Measures one model.

    window: tokens of a document that count; the same for all models of a score card, so that
    a longer context alone lowers no loss.
    """

    def __init__(
        self,
        engine: Engine,
        stage: EvalStage,
        heldout: Mapping[str, Shard],
        seed: int,
        window: int,
    ) -> None:
        self.engine = engine
        self.stage = stage
        self.heldout = heldout
        self.seed = seed
        self.window = window
        self.answers = cache(self._answers)

    def measure(self, metric: str) -> Measure:
        """One of `known_metrics`."""
        match metric.split("/"):
            case ["loss", source]:
                return self._loss(self.heldout[source])
            case ["accuracy", task, mode]:
                return share([a.right for a in self.answers(task, mode, self.stage.items)])
            case ["adherence", mode]:
                return share([a.adheres for a in self._of_all_tasks(mode)])
            case ["obeys", mode]:
                return share([a.obeys for a in self._of_all_tasks(mode, OPENING)])
            case ["tool_json"]:
                return share([a.calls_declared for a in self._tool_answers()])
            case ["tool_json", mode]:
                asked = self.answers("tool", mode, self.stage.items)
                return share([a.calls_declared for a in asked])
            case ["tool_right"]:
                return share([a.right for a in self._tool_answers()])
            case ["preference", "margin"]:
                return ratio(self._margins, [1] * len(self._margins))
            case _:
                return share([margin > 0 for margin in self._margins])

    def chance(self, metric: str) -> float | None:
        """What no knowledge reaches: the loss of a uniform guess over the vocabulary, the share of
        the commonest answer among a task's, one pair in two, 0 for what must be written right.
        None for a margin, which depends on the answers' lengths."""
        match metric.split("/"):
            case ["loss", _]:
                return math.log(self.engine.config.vocab_size)
            case ["accuracy", task, _]:
                asked = items(task, self.stage.items, self.seed, held_out=True)
                expected = Counter(item.answer or _spelled(item) for item in asked)
                return max(expected.values()) / len(asked)
            case ["preference", "margin"]:
                return None
            case ["preference", _]:
                return 0.5
            case _:
                return 0.0

    def samples(self) -> list[dict[str, Any]]:
        """The first answers in both modes, tasks in turn, for people to read."""
        if not self.stage.samples:
            return []
        each = math.ceil(self.stage.samples / len(TASKS))
        by_task = [
            list(zip(*(self.answers(task, mode, each) for mode in MODES), strict=True))
            for task in TASKS
        ]
        in_turn = [both for row in zip(*by_task, strict=True) for both in row]
        return [_sample(a) for both in in_turn[: self.stage.samples] for a in both]

    def held_out_answers(self) -> list[dict[str, str]]:
        """How the model ends the first held-out conversations of each source, greedily: the text
        before its last answer, the data's answer and its own."""
        tokenizer = self.engine.tokenizer
        params = SamplingParams(temperature=0, max_tokens=self.stage.max_tokens)
        ends = [
            end
            for shard in self.heldout.values()
            if shard.format == "chat"
            for end in islice(_last_answers(shard, self.window), self.stage.answers)
        ]
        with self.engine.together():
            replies = [
                Request([], prompt=prompt, params=params, fit=True).submit(self.engine)
                for prompt, _ in ends
            ]
        wait_all(replies)
        return [
            {
                "prompt": tokenizer.decode(prompt),
                "expected": tokenizer.decode(expected, skip_special=True).strip(),
                "answer": reply.result().content.strip(),
            }
            for (prompt, expected), reply in zip(ends, replies, strict=True)
        ]

    def _of_all_tasks(self, mode: str, *tokens: int) -> list[Answer]:
        """About `items` answers in all, as many of each task; tokens: at most so many of each."""
        each = math.ceil(self.stage.items / len(TASKS))
        return [a for task in TASKS for a in self.answers(task, mode, each, *tokens)]

    def _tool_answers(self) -> list[Answer]:
        return [a for mode in MODES for a in self.answers("tool", mode, self.stage.items)]

    def _answers(self, task: str, mode: str, n: int, tokens: int | None = None) -> list[Answer]:
        asked = items(task, n, self.seed, held_out=True)
        params = SamplingParams(temperature=0, max_tokens=tokens or self.stage.max_tokens)
        with self.engine.together():
            replies = [self._reply(item, mode == "think", params) for item in asked]
        wait_all([reply for reply in replies if reply is not None])
        return [_answer(*pair, mode) for pair in zip(asked, replies, strict=True)]

    def _reply(self, item: Item, think: bool, params: SamplingParams) -> Reply | None:
        """None: the question leaves the model no room to answer."""
        request = Request(
            [{"role": "user", "content": item.question}],
            tools=item.tools,
            enable_thinking=think,
            date=DATE,
            params=params,
        )
        ids = request.ids(self.engine.tokenizer)
        return request.submit(self.engine) if len(ids) < self.engine.config.context else None

    def _loss(self, shard: Shard) -> Measure:
        """Mean negative log-likelihood of the trained-on tokens; of a conversation, those that
        the model itself must write."""
        documents = [
            (ids, mask)
            for ids, mask in _documents(shard, self.stage.documents, self.window)
            if mask[1:].any()
        ]
        if len(documents) < 2:
            raise UserError(
                f"sources.{shard.name}: fewer than 2 held-out documents; raise its holdout"
            )
        losses = [-logp for logp in self._log_probs(documents)]
        return ratio(losses, [int(mask[1:].sum()) for _, mask in documents])

    def _log_probs(self, documents: list[Document]) -> list[float]:
        """Of the trained-on tokens of each, summed; the others before them need no logits, and what
        two sides of a pair begin with is computed once."""
        firsts = [max(1, int(mask.argmax())) for _, mask in documents]
        rows = self.engine.score_batch([ids for ids, _ in documents], firsts)
        return [
            float(np.asarray(row)[mask[first:]].sum())
            for row, (_, mask), first in zip(rows, documents, firsts, strict=True)
        ]

    @cached_property
    def _margins(self) -> list[float]:
        """Of each held-out pair, log p(chosen) - log p(rejected) in nats; of both metrics."""
        margins: list[float] = []
        for shard in self.heldout.values():
            if shard.format != "preference":
                continue
            documents = list(_documents(shard, 2 * self.stage.documents, self.window + 1))
            pairs = [
                pair
                for pair in zip(documents[::2], documents[1::2], strict=True)
                if all(len(ids) <= self.window for ids, _ in pair)  # a cut answer is another one
            ]
            logps = self._log_probs([side for pair in pairs for side in pair])
            margins += [c - r for c, r in zip(logps[::2], logps[1::2], strict=True)]
        if len(margins) < 2:
            raise UserError(
                f"preference: fewer than 2 held-out pairs of at most {self.window} tokens; "
                "raise the holdout of the preference sources"
            )
        return margins


def _answer(item: Item, reply: Reply | None, mode: str) -> Answer:
    if reply is None:
        return Answer(item, mode, "", Message("assistant"), ended=False)
    message = reply.result()
    return Answer(item, mode, reply.text, message, ended=reply.reason != "length")


def _documents(shard: Shard, most: int, window: int) -> Iterator[Document]:
    """The first documents, each cut to `window` tokens."""
    for index in range(min(most, shard.documents)):
        place = shard.document(index)
        span = slice(place.start, min(place.stop, place.start + window))
        ids = shard.tokens[span].tolist()
        mask = (
            np.ones(len(ids), dtype=np.bool_)
            if shard.masks is None
            else (np.asarray(shard.masks[span]) & GENERATED).astype(np.bool_)
        )
        yield ids, mask


def _last_answers(shard: Shard, window: int) -> Iterator[tuple[list[int], list[int]]]:
    """(prompt, last answer) of each conversation that fits into `window` tokens."""
    for ids, mask in _documents(shard, shard.documents, window + 1):
        written = np.flatnonzero(mask)
        if len(ids) > window or not len(written):
            continue
        gaps = np.flatnonzero(np.diff(written) > 1)
        first = int(written[gaps[-1] + 1 if len(gaps) else 0])
        if first:
            yield ids[:first], ids[first : int(written[-1]) + 1]


def _tool_name(tool: Mapping[str, Any]) -> str:
    """A tool's name, in OpenAI's wrapping or without."""
    return str(tool.get("function", tool)["name"])


def _sample(answer: Answer) -> dict[str, Any]:
    message = answer.message
    expected = answer.item.answer if answer.item.tool_call is None else _spelled(answer.item)
    return {
        "question": answer.item.question,
        "mode": answer.mode,
        "answer": answer.text,
        "reasoning": message.reasoning,
        "content": message.content,
        "tool_calls": [{"name": c.name, "arguments": c.arguments} for c in message.tool_calls],
        "expected": expected,
        "right": answer.right,
    }


def _spelled(item: Item) -> str:
    """A call as one reads it: add(a=12, b=30)."""
    assert item.tool_call is not None
    arguments = ", ".join(f"{k}={v!r}" for k, v in item.tool_call["arguments"].items())
    return f"{item.tool_call['name']}({arguments})"
