"""A teacher that is loaded here: asked through `turn`, as everybody who answers conversations."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

from smollm3.errors import UserError
from smollm3.infer import SamplingParams, load_engine
from smollm3.infer.errors import EngineClosed, RequestFailed
from smollm3.synth.spec import Mode, Teacher
from smollm3.synth.teacher import Refused, Silent
from smollm3.turn import Request


class Local:
    """A model that answers here what `ask` is given, from many threads at once in one batch.

    Without draft tokens, which cost more than they save where many answers run.
    """

    def __init__(self, teacher: Teacher, path: Path, date: datetime.date) -> None:
        """date: that the model is told is today."""
        self.teacher = teacher
        self.name = f"teacher.model: {teacher.model}"
        self._date = date
        self._engine = load_engine(path, speculation=False)

    def ask(self, messages: list[dict[str, Any]], mode: Mode, seed: int) -> dict[str, Any]:
        """As Answerer."""
        teacher = self.teacher
        params = SamplingParams(
            temperature=teacher.temperature,
            top_p=teacher.top_p,
            max_tokens=teacher.max_tokens,
            seed=seed,
        )
        request = Request(
            messages, enable_thinking=mode == "think", date=self._date, params=params, fit=True
        )
        try:
            reply = request.submit(self._engine)
            message = reply.result()
        except (EngineClosed, RequestFailed) as e:
            raise Silent(str(e)) from None
        except UserError as e:
            raise Refused(str(e)) from None
        return {
            "reasoning": (message.reasoning or "").strip("\n"),
            "content": message.content.strip("\n"),
            "finish": reply.reason,
            "input": reply.usage.prompt,
            "output": reply.usage.completion,
            "date": self._date.isoformat(),
        }

    def close(self) -> None:
        """As Answerer."""
        self._engine.close()
