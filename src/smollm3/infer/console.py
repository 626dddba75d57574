"""A conversation on the terminal: answers stream, reasoning is dimmed and folds on a key."""

from __future__ import annotations

import datetime
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from smollm3.chat import ContentDelta, Message, ReasoningDelta, StreamParser
from smollm3.errors import UserError
from smollm3.files import write_atomic, write_json
from smollm3.infer.engine import Engine
from smollm3.infer.generation import FinishReason, Generation, Step
from smollm3.infer.params import SamplingParams
from smollm3.infer.terminal import LineReader, Painter, is_terminal, keys

FOLD_KEYS = "\t\x12"  # Tab, Ctrl-R
TICK_SECONDS = 0.05
PATIENCE_SECONDS = 0.5  # before a wait for the first token is explained
END = "</think>"
HELP = """\
/think, /no_think   reason before answering, or not
/new                start over
/system TEXT        what the model is told first; without TEXT, nothing
/retry              another answer to the last question
/save FILE          the conversation: .md to read, .jsonl to train on, .json
/help, /exit
Tab or Ctrl-R shows or folds reasoning, Ctrl-C stops an answer, \\ at the end continues a line"""


class Answer:
    """One answer as it is shown: reasoning, how long it took, content, a note."""

    def __init__(self, painter: Painter, folded: bool, parser: StreamParser) -> None:
        self.painter = painter
        self.folded = folded
        self.reasoning = self.content = self.note = ""
        self._parser = parser
        self._painted = [0, 0, 0, 0]  # characters of each part
        self._started = time.monotonic()
        self._thinking = True
        self._tail = ""
        self._seconds = 0.0
        self._tokens = 0
        painter.begin()

    @property
    def message(self) -> Message:
        return self._parser.message

    def step(self, step: Step) -> None:
        if self._thinking:
            self._tokens += 1
            self._seconds = time.monotonic() - self._started
            self._tail = (self._tail + step.text)[-len(END) - len(step.text) :]
            self._thinking = END not in self._tail
        self._read(self._parser.feed(step.text))

    def finish(self, note: str) -> None:
        self._read(self._parser.finish())
        self.note = note
        self._paint()

    def tick(self) -> None:
        """Time has passed."""
        seconds = time.monotonic() - self._started
        if self.reasoning and self.folded and not self.content:
            self.painter.status(f"thinking for {seconds:.0f} s, {self._tokens} tokens (Tab shows)")
        elif not self._tokens and seconds > PATIENCE_SECONDS:
            self.painter.status(f"reading for {seconds:.0f} s")

    def fold(self) -> None:
        """Show the reasoning if it is hidden, else hide it."""
        self.folded = not self.folded
        self.painter.erase()
        self._painted = [0, 0, 0, 0]
        self._paint()

    def _read(self, events: list[Any]) -> None:
        for event in events:
            match event:
                case ReasoningDelta(text):
                    self.reasoning += text
                case ContentDelta(text):
                    self.content += text
        self._paint()

    def _parts(self) -> Iterator[tuple[str, bool]]:
        """Texts, each only ever longer than before, and whether they are dimmed."""
        yield "" if self.folded else self.reasoning, True
        thought = f"thought for {self._seconds:.0f} s, {self._tokens} tokens\n"
        over = self.reasoning and (self.content or self.note)
        yield ("" if self.folded else "\n") + thought if over else "", True
        yield self.content, False
        yield "\n" * bool(self.content) + self.note + "\n" if self.note else "", True

    def _paint(self) -> None:
        for i, (text, dim) in enumerate(self._parts()):
            if len(text) > self._painted[i]:
                self.painter.write(text[self._painted[i] :], dim)
                self._painted[i] = len(text)


class Chat:
    """A conversation and how it goes on. budget: tokens of reasoning, None for any number.
    interactive: a person watches."""

    def __init__(
        self,
        engine: Engine,
        params: SamplingParams,
        think: bool,
        system: str | None,
        budget: int | None,
        interactive: bool,
    ) -> None:
        self.engine = engine
        self.params = params
        self.think = think
        self.system = system
        self.budget = budget
        self.interactive = interactive
        self.messages: list[dict[str, Any]] = []
        self.folded = False
        self.painter = Painter(sys.stdout)
        self._last: Answer | None = None  # as long as it is what stands above the prompt
        self.typed = ""  # while the last answer came
        self._retries = 0
        self._saved: set[Path] = set()
        self.commands: dict[str, Callable[[str], None]] = {
            "/think": lambda _: self._set_think(True),
            "/no_think": lambda _: self._set_think(False),
            "/new": lambda _: self.new(),
            "/system": self._set_system,
            "/retry": lambda _: self._retry(),
            "/save": self._save,
            "/help": lambda _: self.tell(HELP),
        }

    def say(self, line: str) -> None:
        """Do a command, or answer a question; UserError where it cannot be done."""
        self._last = None
        command, _, rest = line.strip().partition(" ")
        if not line.strip():
            return
        if line.startswith("/") and command[1:].replace("_", "").isalpha():
            if command not in self.commands:
                raise UserError(f"{command}: no such command; /help lists them")
            self.commands[command](rest.strip())
            return
        self._retries = 0
        self.messages.append(Message("user", line.strip()).to_dict())
        self._answer()

    def fold_last(self) -> bool:
        """Fold or show the reasoning of the answer above the prompt; whether there is any."""
        if self._last is None or not self._last.reasoning:
            return False
        self._last.fold()
        self.folded = self._last.folded
        return True

    def prompt(self) -> list[dict[str, Any]]:
        system = [Message("system", self.system).to_dict()] if self.system else []
        return [*system, *self.messages]

    def parser(self) -> StreamParser:
        """Reads an answer."""
        return StreamParser(xml=False)

    def submit(self, params: SamplingParams) -> Generation:
        """Ask for the next message."""
        ids = self.engine.tokenizer.render(
            self.prompt(), enable_thinking=self.think, date=datetime.date.today()
        ).ids
        return self.engine.submit(ids, params, thinking_budget=self.budget)

    def turn(self) -> None:
        """Add what follows the last message."""
        self.messages.append(self.next_message()[0].to_dict())

    def next_message(self) -> tuple[Message, FinishReason]:
        """The model's next message, shown as it comes, and why it ended."""
        generation = self.submit(replace(self.params, seed=self.params.seed + self._retries))
        message = self._shown(generation) if self.interactive else self._printed(generation)
        return message, generation.result().finish_reason

    def _answer(self) -> None:
        """Answer the last message, which is taken back if that cannot be."""
        asked = len(self.messages) - 1
        try:
            self.turn()
        except (UserError, RuntimeError):
            self.painter.end_line()
            del self.messages[asked:]
            raise

    def _printed(self, generation: Generation) -> Message:
        parser = self.parser()
        for step in generation:
            click.echo(step.text, nl=False)
            parser.feed(step.text)
        click.echo()
        parser.finish()
        return parser.message

    def _shown(self, generation: Generation) -> Message:
        answer = Answer(self.painter, self.folded, self.parser())
        times = [time.monotonic()]
        self.typed = ""
        with keys(sys.stdin) as pressed, _interrupting(generation.cancel):
            for step in _ticking(generation):
                if step is None:
                    answer.tick()
                else:
                    times.append(time.monotonic())
                    answer.step(step)
                for key in pressed():
                    if key in FOLD_KEYS:
                        answer.fold()
                        answer.tick()
                    elif key.isprintable():
                        self.typed += key
        answer.finish(self._note(generation, times))
        self.folded = answer.folded
        self._last = answer
        return answer.message

    def _note(self, generation: Generation, times: list[float]) -> str:
        """Speed and size of an answer, whose request and tokens came at `times`."""
        started, *came = times
        reason = generation.result().finish_reason
        ending = {"cancelled": "stopped; ", "length": "cut at its greatest length; "}.get(
            reason, ""
        )
        speed = ""
        if len(came) > 1:
            rate = (len(came) - 1) / max(came[-1] - came[0], 1e-9)
            speed = f"{rate:.0f} tokens/s, first after {came[0] - started:.1f} s; "
        used, context = generation.prompt_tokens + len(came), self.engine.config.context
        return (
            f"{ending}{speed}{used:,} of {context:,} tokens of context, "
            f"{generation.cached_tokens:,} cached"
        )

    def tell(self, text: str) -> None:
        """To the person, not into the answers."""
        click.echo(click.style(text, dim=True), err=not self.interactive)

    def _set_think(self, think: bool) -> None:
        self.think = think
        self.tell("reasons before answering" if think else "answers at once")

    def new(self) -> None:
        self.messages = []
        self.tell("a new conversation")

    def _set_system(self, text: str) -> None:
        self.system = text or None
        self.tell(f"system prompt: {text}" if text else "no system prompt")

    def _retry(self) -> None:
        if not self.messages:
            raise UserError("/retry: nothing was asked yet")
        while self.messages[-1]["role"] != "user":
            self.messages.pop()
        self._retries += 1
        self._answer()

    def _save(self, name: str) -> None:
        if not name:
            raise UserError("/save: name a FILE (.md, .jsonl or .json)")
        path = Path(name).expanduser()
        if path.exists() and path not in self._saved:
            raise UserError(f"{path}: exists already; choose another name")
        save(path, self.prompt(), self.think)
        self._saved.add(path)
        self.tell(f"saved: {path}")


def save(path: Path, messages: list[dict[str, Any]], think: bool) -> None:
    """A conversation as the suffix says; .json and .jsonl have the columns that training reads."""
    row = {"messages": messages, "chat_template_kwargs": {"enable_thinking": think}}
    match path.suffix:
        case ".md":
            write_atomic(path, "\n".join(map(_markdown, messages)))
        case ".jsonl":
            import json

            write_atomic(path, json.dumps(row, ensure_ascii=False) + "\n")
        case ".json":
            write_json(path, row)
        case other:
            raise UserError(f"{path}: ends in {other or 'nothing'!r}; .md, .jsonl or .json")


def _markdown(message: dict[str, Any]) -> str:
    reasoning = message.get("reasoning_content")
    quoted = "".join(f"> {line}\n" for line in reasoning.splitlines()) if reasoning else ""
    calls = "\n".join(
        f"- `{call['function']['name']}` {call['function']['arguments']}"
        for call in message.get("tool_calls", ())
    )
    parts = (f"**{message['role']}**", quoted, message["content"], calls)
    return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"


def _ticking(generation: Generation) -> Iterator[Step | None]:
    """The steps, and None where none came for a while."""
    steps: queue.SimpleQueue[Step | BaseException | None] = queue.SimpleQueue()

    def pump() -> None:
        try:
            for step in generation:
                steps.put(step)
            steps.put(None)
        except BaseException as e:
            steps.put(e)

    threading.Thread(target=pump, daemon=True).start()
    while True:
        try:
            step = steps.get(timeout=TICK_SECONDS)
        except queue.Empty:
            yield None
            continue
        if step is None:
            return
        if isinstance(step, BaseException):
            raise step
        yield step


@contextmanager
def _interrupting(stop: Callable[[], None]) -> Iterator[None]:
    """While it lasts, Ctrl-C calls `stop`."""
    before = signal.signal(signal.SIGINT, lambda *_: stop())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def chat_on_console(
    engine: Engine,
    params: SamplingParams,
    think: bool = True,
    system: str | None = None,
    budget: int | None = None,
) -> None:
    """Read lines until their end or /exit, and answer each."""
    converse(Chat(engine, params, think, system, budget, is_terminal()))


def converse(chat: Chat) -> None:
    """The same in this conversation."""
    if chat.interactive:
        _at_terminal(chat)
        return
    for number, line in enumerate(sys.stdin.buffer, 1):
        try:
            text = line.decode().rstrip()
        except UnicodeDecodeError as e:
            raise UserError(f"standard input:{number}: not UTF-8 ({e.reason})") from None
        if text == "/exit":
            return
        chat.say(text)


def _at_terminal(chat: Chat) -> None:
    def on_tab() -> None:
        if chat.fold_last():
            sys.stdout.write(click.style("> ", bold=True))
            sys.stdout.flush()

    reader = LineReader([*chat.commands, "/exit"], on_tab)
    click.echo(click.style("/help for help, Ctrl-D to leave", dim=True))
    while True:
        try:
            line = reader.read("> ")
        except EOFError:
            click.echo()
            return
        except KeyboardInterrupt:
            click.echo()
            continue
        if line.strip() == "/exit":
            return
        try:
            chat.say(line)
        except (UserError, RuntimeError) as e:  # the engine's own faults end one answer only
            click.echo(click.style(f"error: {UserError(str(e))}", fg="red"), err=True)
        reader.typed, chat.typed = chat.typed, ""
