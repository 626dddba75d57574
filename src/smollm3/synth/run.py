"""From prompts to kept conversations: ask what has no answer yet, check, keep, write.

Every answer is a line of `answers.jsonl` as soon as it comes. All else is made from these lines, so
that a run which was killed goes on and ends in the same files.
"""

from __future__ import annotations

import datetime
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from smollm3.data import places, readers
from smollm3.data.order import permutation
from smollm3.data.places import Span
from smollm3.data.sources import hash64
from smollm3.errors import UserError
from smollm3.files import disk_errors, folder_lock, sha256_json, write_atomic, write_json
from smollm3.synth.checks import CHECKS, NearDuplicates, agreed, final_answer, value
from smollm3.synth.prompts import messages_of, usable_prompts
from smollm3.synth.spec import Asking, Mode, Role, Synthesis, Target, Teacher
from smollm3.synth.teacher import Answerer, Client, Refused, Silent

Row = dict[str, Any]
MAX_SILENT = 20  # lost requests without an answer between them: the teacher is away
ANSWERS = "answers.jsonl"


@dataclass(frozen=True)
class Question:
    """One request: which prompt, in which mode, the how-manieth sample, of whom.

    key: a checksum of all that the answer depends on, so that after a change of the recipe only
    what is new is asked.
    """

    prompt: int
    mode: Mode
    role: Role
    key: str


@dataclass(frozen=True)
class Outcome:
    """What a run has made: rows in SmolTalk2's columns, the reasons against the others, requests
    that found no answer, what the teachers have cost, and the targets with what is kept of each."""

    rows: list[Row]
    dropped: dict[str, int]
    unanswered: int
    ledger: dict[str, Any]
    targets: list[dict[str, Any]]

    def record(self) -> dict[str, Any]:
        return {
            "kept": len(self.rows),
            "dropped": self.dropped,
            "by_mode": dict(Counter(map(_mode, self.rows))),
            "cost": self.ledger,
            "targets": self.targets,
        }

    def write(self, path: Path) -> None:
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in self.rows)
        write_atomic(path, "".join(lines))


def synthesise(spec: Synthesis, out: Path, tell: Callable[[str], None]) -> Outcome:
    """Ask what a recipe of `smollm3 synth` says and write <out>/<name>.jsonl and synth.json."""
    with folder_lock(out), disk_errors(out):
        files = enumerate(places.find(spec.prompts))
        reads = (read for n, (file, _) in files for read in readers.rows(Span(file, n)))

        def progress(done: int, of: int) -> None:
            if done % 100 == 0:
                tell(f"{done} of {of} answers")

        outcome = Run(spec, usable_prompts(reads, tell), spec.seed, out, progress).execute()
        outcome.write(out / f"{spec.name}.jsonl")
        record = {"synthesis": spec.model_dump(mode="json"), **outcome.record()}
        write_json(out / "synth.json", record)
    return outcome


class Run:
    """Asks what <folder>/answers.jsonl does not answer yet, and judges all answers."""

    def __init__(
        self,
        spec: Asking,
        prompts: list[Row],
        seed: int,
        folder: Path,
        progress: Callable[[int, int], None],
        models: Mapping[str, Path] | None = None,
    ) -> None:
        """progress: called with the answers of this round and how many it asks for. models: where
        those lie that are asked here, by their names; what is missing is looked for."""
        self.spec, self.prompts, self.seed, self.folder = spec, prompts, seed, folder
        self.progress = progress
        here = {teacher.model for teacher in spec.teachers().values() if teacher.url is None}
        self.models = {name: (models or {}).get(name) or _located(name) for name in here}
        self.answers: dict[str, Row] = {}
        self.verdicts: dict[str, str | None] = {}
        self.unanswered = 0

    def execute(self) -> Outcome:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / ANSWERS
        self.answers = _read_answers(path)
        with path.open("ab") as log, ExitStack() as open_:
            asked: dict[Role, Answerer] = {}
            while missing := self._missing():
                for role in {question.role for question in missing} - asked.keys():
                    asked[role] = open_.enter_context(closing(self._answerer(role)))
                self._ask(missing, asked, log)
                if any(question.key not in self.answers for question in missing):
                    break
        dropped: Counter[str] = Counter()
        kept = list(self._kept(dropped))
        return Outcome(
            [self._row(*made) for made in kept],
            dict(sorted(dropped.items())),
            self.unanswered,
            self._ledger(),
            [
                {**target.model_dump(exclude_none=True), "kept": self._count(target, kept)}
                for target in self.spec.targets
            ],
        )

    # What is still to be asked

    @cached_property
    def _asked(self) -> list[list[Question]]:
        """The questions of each prompt, the weak one's behind the teacher's."""
        weights = {name: _digest(path) for name, path in self.models.items()}
        policies = {
            role: [role, self.seed, *_policy(teacher, weights)]
            for role, teacher in self.spec.teachers().items()
        }
        return [
            [
                Question(prompt, mode, role, sha256_json([messages, mode, sample, *policy]))
                for mode in self.spec.modes
                for sample in range(self.spec.samples)
                for role, policy in policies.items()
            ]
            for prompt, messages in enumerate(map(messages_of, self.prompts))
        ]

    def _missing(self) -> list[Question]:
        """Questions without an answer: of all prompts; with targets, of as many prompts as could
        fill what is still lacking, in a seeded order."""
        order = permutation(len(self.prompts), f"{self.seed}/prompts").tolist()
        if not self.spec.targets:
            wanted = [q for prompt in order for q in self._asked[prompt]]
            return [question for question in wanted if question.key not in self.answers]
        missing: dict[Question, None] = {}
        kept = list(self._kept())
        for target in self.spec.targets:
            gap = target.rows - self._count(target, kept)
            for prompt in order:
                if gap <= 0:
                    break
                mine = [
                    question
                    for question in self._asked[prompt]
                    if _fits(target, self.prompts[prompt], question.mode)
                    and question.key not in self.answers
                ]
                missing |= dict.fromkeys(mine)
                gap -= len({question.mode for question in mine})
        return list(missing)

    @staticmethod
    def _count(target: Target, kept: list[tuple[Row, Mode, Row]]) -> int:
        return sum(_fits(target, row, mode) for row, mode, _ in kept)

    def _answerer(self, role: Role) -> Answerer:
        teacher = self.spec.teachers()[role]
        if teacher.url is not None:
            return Client(teacher, teacher.url)
        from smollm3.synth.local import Local  # PyTorch and the engine

        return Local(teacher, self.models[teacher.model], self._date)

    @cached_property
    def _date(self) -> datetime.date:
        """What a model that is asked here is told is today: the day of the first answer, so that
        those of a later day are as they would have been."""
        first = next((a["date"] for a in self.answers.values() if "date" in a), None)
        return datetime.date.fromisoformat(first) if first else datetime.date.today()

    def _ask(self, questions: list[Question], asked: Mapping[Role, Answerer], log: Any) -> None:
        """Ask, many at a time; each answer is on the disk before it counts."""
        workers = sum(teacher.requests for teacher in self.spec.teachers().values())
        todo = iter(questions)
        silent = answered = 0
        with ThreadPoolExecutor(workers) as pool:
            pending: dict[Future[Row], Question] = {}
            try:
                while True:
                    while len(pending) < workers and (question := next(todo, None)):
                        pending[pool.submit(self._one, asked[question.role], question)] = question
                    if not pending:
                        return
                    done, _ = wait(pending, return_when=FIRST_COMPLETED)
                    for future in done:
                        question = pending.pop(future)
                        try:
                            answer = future.result()
                        except Silent as e:
                            self.unanswered += 1
                            silent += 1
                            if silent >= MAX_SILENT or silent >= len(questions):
                                raise UserError(
                                    f"{asked[question.role].name}: {e}; what was answered is "
                                    "kept, run again to go on"
                                ) from None
                            continue
                        silent = 0
                        line = {"key": question.key, "role": question.role, **answer}
                        log.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
                        log.flush()
                        self.answers[question.key] = line
                        answered += 1
                        self.progress(answered, len(questions))
            finally:
                if pending:
                    for answerer in asked.values():
                        answerer.close()
                pool.shutdown(cancel_futures=True)

    def _one(self, answerer: Answerer, question: Question) -> Row:
        seed = hash64(question.key) % 2**31
        try:
            return answerer.ask(messages_of(self.prompts[question.prompt]), question.mode, seed)
        except Refused as e:
            return {"refused": str(e), "input": 0, "output": 0}

    # What is kept

    def _verdict(self, question: Question) -> str | None:
        """Why an answer is not kept, None if it is; found out once."""
        if question.key not in self.verdicts:
            self.verdicts[question.key] = self._judge(question)
        return self.verdicts[question.key]

    def _judge(self, question: Question) -> str | None:
        answer, row = self.answers[question.key], self.prompts[question.prompt]
        if "refused" in answer:
            return f"refused ({answer['refused']})"
        if answer["finish"] == "length":
            return "cut off"
        if not answer["content"].strip():
            return "empty"
        if question.mode == "think" and not answer["reasoning"]:
            return "without reasoning"
        for name in self.spec.checks:
            if name in CHECKS and (reason := CHECKS[name](row, answer["content"])):
                return reason
        return self._disagreement(question) if "agreement" in self.spec.checks else None

    def _disagreement(self, question: Question) -> str | None:
        others = [
            self.answers.get(other.key, {}).get("content")
            for other in self._asked[question.prompt]
            if (other.mode, other.role) == (question.mode, question.role)
        ]
        answers = [final_answer(content) if content else None for content in others]
        common = agreed(answers, self.spec.agree)
        mine = final_answer(self.answers[question.key]["content"])
        if common is None:
            return "samples disagree"
        return None if mine is not None and value(mine) == common else "not what samples agree on"

    def _kept(self, dropped: Counter[str] | None = None) -> Iterator[tuple[Row, Mode, Row]]:
        """(prompt, mode, answer or pair), in the order of the prompts whatever came first."""
        dropped = Counter() if dropped is None else dropped
        seen = NearDuplicates() if "duplicates" in self.spec.checks else None
        for prompt, row in enumerate(self.prompts):
            for question in self._asked[prompt]:
                if question.role != "teacher" or question.key not in self.answers:
                    continue
                reason = self._verdict(question)
                answer = self.answers[question.key]
                made: Row | None = answer
                if reason is None and self.spec.pairs:
                    made, reason = self._pair(question)
                if reason is None and seen is not None and not seen.add(answer["content"]):
                    reason = "near duplicate"
                if reason is not None or made is None:
                    dropped[reason or "unanswered"] += 1
                    continue
                yield row, question.mode, made

    def _pair(self, question: Question) -> tuple[Row | None, str | None]:
        """Both answers of a pair whose second is worse, or why there is none."""
        assert self.spec.pairs is not None
        mine = self._asked[question.prompt]
        other = mine[mine.index(question) + 1]  # the weak one's
        if other.key not in self.answers:
            return None, "no rejected answer"
        good, bad = self.answers[question.key], self.answers[other.key]
        if not bad.get("content"):
            return None, "no rejected answer"
        if good["content"] == bad["content"]:
            return None, "identical answers"
        checked = [name for name in self.spec.checks if name in CHECKS]
        applies = any(
            self.prompts[question.prompt].get(_NEEDS[name]) is not None for name in checked
        )
        if applies and self._verdict(other) is None:
            return None, "both right"
        long, short = sorted((len(good["content"]), len(bad["content"])), reverse=True)
        if long > self.spec.pairs.longest * max(1, short):
            return None, "lengths too different"
        return {"chosen": good, "rejected": bad}, None

    def _row(self, prompt: Row, mode: Mode, made: Row) -> Row:
        """In SmolTalk2's columns."""
        before = messages_of(prompt)
        kwargs = {
            "custom_instructions": prompt.get("custom_instructions"),
            "enable_thinking": mode == "think",
            "python_tools": None,
            "xml_tools": None,
        }
        if self.spec.pairs is None:
            return {"messages": [*before, _assistant(made)], "chat_template_kwargs": kwargs}
        sides = {side: [*before, _assistant(made[side])] for side in ("chosen", "rejected")}
        text = next(m["content"] for m in reversed(before) if m["role"] == "user")
        return {"prompt": text, **sides, "chat_template_kwargs": kwargs}

    def _ledger(self) -> dict[str, Any]:
        """Requests, tokens and money of each teacher."""
        ledger: dict[str, Any] = {}
        for role, teacher in self.spec.teachers().items():
            mine = [a for a in self.answers.values() if a["role"] == role]
            read, written = (sum(a[key] for a in mine) for key in ("input", "output"))
            money = (read * teacher.input_price + written * teacher.output_price) / 1e6
            ledger[role] = {"answers": len(mine), "input": read, "output": written, "money": money}
        return ledger


def _located(model: str) -> Path:
    from smollm3.checkpoint import locate  # PyTorch, which a teacher elsewhere does not need

    return locate(model)


def _digest(path: Path) -> str:
    from smollm3.checkpoint import digest

    return digest(path)


def _policy(teacher: Teacher, weights: Mapping[str, str]) -> list[Any]:
    """What of a teacher its answers depend on. weights: checksums of those that are asked here."""
    model = teacher.model if teacher.url is not None else weights[teacher.model]
    return [model, teacher.temperature, teacher.top_p, teacher.max_tokens]


_NEEDS = {
    "answer": "answer",
    "code": "tests",
    "instructions": "constraints",
    "language": "language",
}


def _read_answers(path: Path) -> dict[str, Row]:
    """What earlier runs were answered. A line that a kill has cut off is cut off the file too."""
    if not path.exists():
        return {}
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        with path.open("r+b") as f:
            f.truncate(whole)
    found: dict[str, Row] = {}
    for number, line in enumerate(data[:whole].splitlines(), 1):
        try:
            answer = json.loads(line)
            found.setdefault(answer["key"], answer | {"role": answer["role"]})
        except (ValueError, KeyError, TypeError):
            raise UserError(
                f"{path}:{number}: not an answer; delete the line to have it asked again"
            ) from None
    return found


def _assistant(answer: Row) -> Row:
    message = {"role": "assistant", "content": answer["content"]}
    return {**message, "reasoning_content": answer["reasoning"]} if answer["reasoning"] else message


def _fits(target: Target, row: Row, mode: Mode) -> bool:
    wanted: Iterable[tuple[Any, Any]] = (
        (target.domain, row.get("domain")),
        (target.language, row.get("language")),
        (target.mode, mode),
    )
    return all(asked is None or asked == has for asked, has in wanted)


def _mode(row: Row) -> str:
    return "think" if row["chat_template_kwargs"]["enable_thinking"] else "no_think"
