"""A conversation on the terminal: answers stream, reasoning is dimmed and folds on a key."""

from __future__ import annotations

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

from smollm3.chat import Message
from smollm3.console.terminal import LineReader, Painter, is_terminal, keys
from smollm3.errors import UserError
from smollm3.files import write_atomic, write_json
from smollm3.infer.engine import Engine
from smollm3.infer.errors import RequestFailed
from smollm3.infer.generation import Generation, Step
from smollm3.infer.params import SamplingParams
from smollm3.turn import Reply, Request

FOLD_KEYS = "\t\x12"  # Tab, Ctrl-R
TICK_SECONDS = 0.05
PATIENCE_SECONDS = 0.5  # before a wait for the first token is explained
HELP = """\
/think, /no_think   reason before answering, or not
/new                start over
/system TEXT        what the model is told first; without TEXT, nothing
/retry              another answer to the last question
/save FILE          the conversation: .md to read, .jsonl to train on, .json
/help, /exit
Tab or Ctrl-R shows or folds reasoning, Ctrl-C stops an answer, \\ at the end continues a line"""


class ShownReply:
    """An answer as it is shown: reasoning, how long it took, content, a note."""

    def __init__(self, painter: Painter, folded: bool, reply: Reply) -> None:
        self.painter = painter
        self.folded = folded
        self.reply = reply
        self.note = ""
        self._painted = [0, 0, 0, 0]  # characters of each part
        self._started = time.monotonic()
        self._seconds = 0.0  # of reasoning
        painter.begin()

    @property
    def reasoning(self) -> str:
        return self.reply.blocks.text("reasoning")

    @property
    def content(self) -> str:
        return self.reply.blocks.text("content")

    def grown(self) -> None:
        """There is more of it."""
        if not self.content:
            self._seconds = time.monotonic() - self._started
        self._paint()

    def finish(self, note: str) -> None:
        self.note = note
        self._paint()

    def tick(self) -> None:
        """Time has passed."""
        seconds, tokens = time.monotonic() - self._started, self.reply.usage.reasoning
        if self.reasoning and self.folded and not self.content:
            self.painter.status(f"thinking for {seconds:.0f} s, {tokens} tokens (Tab shows)")
        elif not self.reply.steps and seconds > PATIENCE_SECONDS:
            self.painter.status(f"reading for {seconds:.0f} s")

    def fold(self) -> None:
        """Show the reasoning if it is hidden, else hide it."""
        self.folded = not self.folded
        self.painter.erase()
        self._painted = [0, 0, 0, 0]
        self._paint()

    def _parts(self) -> Iterator[tuple[str, bool]]:
        """Texts, each only ever longer than before, and whether they are dimmed."""
        yield "" if self.folded else self.reasoning, True
        thought = f"thought for {self._seconds:.0f} s, {self.reply.usage.reasoning} tokens\n"
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
        self._last: ShownReply | None = None  # as long as it is what stands above the prompt
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

    def request(self) -> Request:
        """What asks for the next message."""
        return Request(
            self.prompt(),
            enable_thinking=self.think,
            params=replace(self.params, seed=self.params.seed + self._retries),
            thinking_budget=self.budget,
        )

    def turn(self) -> None:
        """Add what follows the last message."""
        self.messages.append(self.answer(self.request()).message.to_dict())

    def answer(self, request: Request) -> Reply:
        """The complete reply, shown as it comes."""
        reply = request.submit(self.engine)
        if self.interactive:
            self._show(reply)
        else:
            for text in reply.texts():
                click.echo(text, nl=False)
            click.echo()
        return reply

    def _answer(self) -> None:
        """Answer the last message, which is taken back if that cannot be."""
        asked = len(self.messages) - 1
        try:
            self.turn()
        except (UserError, RequestFailed):
            self.painter.end_line()
            del self.messages[asked:]
            raise

    def _show(self, reply: Reply) -> None:
        shown = ShownReply(self.painter, self.folded, reply)
        times = [time.monotonic()]
        self.typed = ""
        with keys(sys.stdin) as pressed, _interrupting(reply.cancel):
            for step in _ticking(reply.generation):
                if step is None:
                    shown.tick()
                elif not reply.ended:
                    times.append(time.monotonic())
                    reply.feed(step)
                    shown.grown()
                for key in pressed():
                    if key in FOLD_KEYS:
                        shown.fold()
                        shown.tick()
                    elif key.isprintable():
                        self.typed += key
        reply.finish()
        shown.finish(self._note(reply, times))
        self.folded = shown.folded
        self._last = shown

    def _note(self, reply: Reply, times: list[float]) -> str:
        """Speed and size of an answer, whose request and tokens came at `times`."""
        started, *came = times
        ending = {"cancelled": "stopped; ", "length": "cut at max_tokens; "}.get(reply.reason, "")
        speed = ""
        if len(came) > 1:
            rate = (len(came) - 1) / max(came[-1] - came[0], 1e-9)
            speed = f"{rate:.0f} tokens/s, first after {came[0] - started:.1f} s; "
        used, context = reply.usage.prompt + len(came), self.engine.config.context
        return (
            f"{ending}{speed}{used:,} of {context:,} tokens of context, "
            f"{reply.usage.cached:,} cached"
        )

    def tell(self, text: str) -> None:
        """Tell the person something that is no part of the answers."""
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
    """Read lines until their end or /exit, and have this conversation answer each."""
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
        except (UserError, RequestFailed) as e:  # the engine's own faults end one answer only
            click.echo(click.style(f"error: {UserError(str(e))}", fg="red"), err=True)
        reader.typed, chat.typed = chat.typed, ""
