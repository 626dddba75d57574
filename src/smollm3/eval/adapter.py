"""lm-evaluation-harness's view of a target. Imports the harness: only for who has the extra."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from smollm3.errors import UserError
from smollm3.eval.journal import Journal, key_of
from smollm3.eval.target import Ask, Prompt, Settings, Target, Work

POLL_SECONDS = (0.001, 0.05)  # between two looks at what is on its way, at first and at most
MAX_TOKENS = 256  # where a task names no limit, as the harness's own backends have it


class View(Protocol):
    """Who watches: `done` of `total` items of a kind; `fresh` of them made in this run."""

    def progress(self, what: str, done: int, total: int, fresh: int) -> None: ...


class Adapter(LM):  # type: ignore[misc]
    """Answers the harness's requests from the journal, and from the target what is not there.

    The base class is LM and not TemplateLM, whose methods are about token ids, since a URL has
    none; `EngineTarget.pair` cuts context and continuation as TemplateLM does.
    """

    def __init__(self, target: Target, journal: Journal, settings: Settings, view: View) -> None:
        super().__init__()
        self.target = target
        self.journal = journal
        self.settings = settings
        self.view = view
        self.at_limit = 0  # answers that ended because of their limit of tokens
        self.answers = 0

    # what the harness calls

    @property
    def tokenizer_name(self) -> str:
        return self.target.name

    def chat_template(self, chat_template: bool | str = False) -> str:
        return "the model's own" if self.settings.chat else ""

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """A conversation as JSON: what it becomes is the target's business."""
        messages = list(chat_history)
        prefill = "" if add_generation_prompt else messages.pop()["content"]
        return json.dumps({"messages": messages, "prefill": prefill}, ensure_ascii=False)

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        prefix = self.settings.option_prefix if self.settings.chat else ""
        asked = [(context, f"{prefix}{option}") for context, option in (r.args for r in requests)]

        def start(args: tuple[Any, ...]) -> Work:
            return self.target.score(self._prompt(args[0]), args[1])

        keys = [key_of("score", *args) for args in asked]
        return [(v[0], v[1]) for v in self._values("options scored", keys, asked, start)]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        asked = [tuple(request.args) for request in requests]
        keys = [key_of("score all", *args) for args in asked]
        return self._values("texts", keys, asked, lambda args: self.target.score_all(args[0]))

    def generate_until(self, requests: list[Instance]) -> list[str]:
        repeats: Counter[int] = Counter()
        asked = []
        for request in requests:
            asked.append(self._ask(request.args[0], request.args[1], repeats[id(request)]))
            repeats[id(request)] += 1
        return [value["text"] for value in self.answered(asked)]

    def judged(self, judge: Target, asked: Sequence[Ask]) -> list[dict[str, Any]]:
        """What another model says, kept as the target's own answers are."""
        keys = [key_of("judgement", judge.origin(), repr(ask)) for ask in asked]
        return self._values("judgements", keys, asked, judge.answer, judge.at_once)

    def answered(self, asked: Sequence[Ask]) -> list[dict[str, Any]]:
        """`Written`, as a dict, of each."""
        keys = [key_of("answer", repr(ask)) for ask in asked]
        values = self._values("answers", keys, asked, self.target.answer)
        self.answers += len(values)
        self.at_limit += sum(value["finish"] == "length" for value in values)
        return values

    # how it is done

    def _prompt(self, context: str) -> Prompt:
        if not self.settings.chat:
            return Prompt(context)
        said = json.loads(context)
        return Prompt(messages=tuple(said["messages"]), prefill=said["prefill"])

    def _ask(self, context: str, given: dict[str, Any], repeat: int) -> Ask:
        stop = given.get("until") or ()
        settings = self.settings
        sampled = bool(given.get("do_sample"))
        return Ask(
            self._prompt(context),
            stop=tuple([stop] if isinstance(stop, str) else [s for s in stop if s]),
            max_tokens=settings.max_tokens
            or int(given.get("max_gen_toks") or given.get("max_new_tokens") or MAX_TOKENS),
            temperature=None
            if settings.sample
            else float(given.get("temperature") or 0.0)
            if sampled
            else 0.0,
            top_p=None if settings.sample else given.get("top_p") or 1.0,
            top_k=None if settings.sample else given.get("top_k") or 0,
            seed=settings.seed + repeat,
        )

    def _values(
        self,
        what: str,
        keys: Sequence[str],
        asked: Sequence[Any],
        start: Callable[[Any], Work],
        at_once: int | None = None,
    ) -> list[Any]:
        """The value of each, in order; those that are not in the journal are started in turn."""
        most = at_once or self.target.at_once
        missing = {k: a for k, a in zip(keys, asked, strict=True) if k not in self.journal}
        known = len(set(keys)) - len(missing)
        self.view.progress(what, known, known + len(missing), 0)
        for fresh, (key, value) in enumerate(self._finished(missing.items(), start, most), 1):
            self.journal.add(key, value)
            self.view.progress(what, known + fresh, known + len(missing), fresh)
        return [self.journal[key] for key in keys]

    def _finished(
        self, asked: Iterable[tuple[str, Any]], start: Callable[[Any], Work], at_once: int
    ) -> Iterable[tuple[str, Any]]:
        """What is done, as it is done, with `at_once` on their way. Where one fails no other is
        begun, and what is on its way comes before the error."""
        waiting = iter(asked)
        running: dict[str, Work] = {}
        failed: UserError | None = None
        more, pause = True, POLL_SECONDS[0]
        while more or running:
            while more and len(running) < at_once:
                entry = next(waiting, None)
                more = entry is not None
                if entry is not None:
                    running[entry[0]] = start(entry[1])
            finished = [key for key, work in running.items() if work.done()]
            for key in finished:
                try:
                    value = running.pop(key).result()
                except UserError as e:
                    failed, more = failed or e, False
                    continue
                yield key, value
            if finished or not running:
                pause = POLL_SECONDS[0]
            else:  # a look costs time of the processor too
                time.sleep(pause)
                pause = min(2 * pause, POLL_SECONDS[1])
        if failed is not None:
            raise failed
