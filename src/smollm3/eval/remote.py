"""An OpenAI-compatible server as a target."""

from __future__ import annotations

import json
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import asdict
from functools import cached_property
from typing import Any

from smollm3.chat.parse import parse
from smollm3.errors import UserError
from smollm3.eval.target import Ask, Prompt, Settings, Work, Written

AT_ONCE = 16
TRIES = 4  # the first and three more, a second and then twice as long apart
TIMEOUT = 3600.0  # an answer of 32,768 tokens at ten tokens a second
_AGAIN = frozenset((408, 429, 500, 502, 503, 504))


class UrlTarget:
    """Somebody else's server. Its key, if it wants one, is in OPENAI_API_KEY. The server renders
    conversations itself. url: URL or URL#MODEL, else the first model that it offers. says_mode:
    whether the model shall think is told, by `chat_template_kwargs`, which OpenAI's own refuses."""

    at_once = AT_ONCE

    def __init__(
        self, url: str, settings: Settings, pause: float = 1.0, says_mode: bool = True
    ) -> None:
        place, _, self._named = url.partition("#")
        self.url = place.rstrip("/")
        self.name = url
        self.settings = settings
        self._pause = pause
        self._says_mode = says_mode

    @cached_property
    def model(self) -> str:
        """The named one, or else the first that the server offers."""
        if self._named:
            return self._named
        offered = self._ask("models", None)
        try:
            return str(offered["data"][0]["id"])
        except (KeyError, IndexError, TypeError):
            raise UserError(f"{self.url}/models: names no model") from None

    @property
    def context(self) -> int:
        raise UserError(
            f"{self.name}: RULER measures prompts by the model's tokenizer, which a server does "
            "not give; evaluate the model itself"
        )

    def count(self, text: str) -> int:
        return self.context

    def origin(self) -> str:
        return f"{self.url} {self.model}"

    def score(self, prompt: Prompt, continuation: str) -> Work:
        if prompt.is_chat:
            raise UserError(
                "options cannot be scored in a chat over HTTP, where nothing tells the probability "
                "of a given answer; use --no-chat, or evaluate the model itself"
            )
        return self._later(lambda: self._score(prompt.text, continuation))

    def score_all(self, text: str) -> Work:
        return self._later(lambda: self._score("", text)[0])

    def answer(self, ask: Ask) -> Work:
        return self._later(lambda: self._answer(ask))

    def _later(self, work: Callable[[], Any]) -> Work:
        self.model  # noqa: B018  asked for once, before the threads
        future: Future[Any] = Future()

        def run() -> None:
            try:
                future.set_result(work())
            except BaseException as e:
                future.set_exception(e)

        # Not of a pool, for whose threads Python waits at its end: an answer can take an hour.
        threading.Thread(target=run, daemon=True).start()
        return future

    def _score(self, context: str, continuation: str) -> list[Any]:
        """By the older API, which can tell the probabilities of the prompt itself."""
        body = {
            "model": self.model,
            "prompt": context + continuation,
            "max_tokens": 1,
            "temperature": 0,
            "logprobs": 1,
            "echo": True,
        }
        try:
            found = self._ask("completions", body)["choices"][0]["logprobs"]
            end = len(context) + len(continuation)
            chosen = [
                (logprob, max(top.values()))
                for logprob, top, offset in zip(
                    found["token_logprobs"],
                    found["top_logprobs"],
                    found["text_offset"],
                    strict=True,
                )
                if len(context) <= offset < end and logprob is not None
            ]
        except (KeyError, TypeError, ValueError, IndexError, AttributeError):
            chosen = []
        if not chosen:
            raise UserError(
                f"{self.url}: does not tell log-probabilities of a prompt (echo with logprobs), "
                "which this task needs; evaluate the model itself, or tasks that generate"
            )
        return [sum(c for c, _ in chosen), all(c >= best for c, best in chosen)]

    def _answer(self, ask: Ask) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.model,
            "max_tokens": ask.max_tokens,
            "seed": ask.seed,
            "temperature": ask.temperature,
            "top_p": ask.top_p,
        }
        thinking = ask.prompt.is_chat and self.settings.think
        if ask.stop and not thinking:
            body["stop"] = list(ask.stop[:4])  # as many as OpenAI's API takes
        body = {key: value for key, value in body.items() if value is not None}
        if not ask.prompt.is_chat:
            choice = self._choice("completions", {**body, "prompt": ask.prompt.text})
            text, calls = choice["text"], []
        else:
            choice = self._choice("chat/completions", {**body, **self._conversation(ask.prompt)})
            message = choice["message"]
            said = parse(message.get("content") or "", xml=bool(ask.prompt.tools))
            text = said.content  # a server may leave the reasoning in the text
            calls = [_call(call) for call in message.get("tool_calls") or ()]
        return asdict(Written(until(text, ask.stop), choice["finish"], choice["tokens"], calls))

    def _conversation(self, prompt: Prompt) -> dict[str, Any]:
        messages: list[dict[str, Any]] = list(prompt.messages)
        if self.settings.system is not None and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": self.settings.system})
        if prompt.prefill:
            messages.append({"role": "assistant", "content": prompt.prefill})
        body: dict[str, Any] = {"messages": messages}
        if self._says_mode:
            body["chat_template_kwargs"] = {"enable_thinking": self.settings.think}
        if prompt.prefill:
            body |= {"add_generation_prompt": False, "continue_final_message": True}
        if prompt.tools:
            body["tools"] = list(prompt.tools)
        return body

    def _choice(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        found = self._ask(path, body)
        try:
            choice = dict(found["choices"][0])
            finish = "length" if choice.get("finish_reason") == "length" else "stop"
            tokens = (found.get("usage") or {}).get("completion_tokens", 0)
            if "text" not in choice and "message" not in choice:
                raise KeyError
            return {**choice, "finish": finish, "tokens": tokens}
        except (KeyError, IndexError, TypeError):
            raise UserError(f"{self.url}/{path}: not an answer of OpenAI's API") from None

    def _ask(self, path: str, body: dict[str, Any] | None) -> Any:
        """The JSON that the server answers; again after a while where that may help."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get("OPENAI_API_KEY"):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(f"{self.url}/{path}", data, headers)
        problem = ""
        for attempt in range(TRIES):
            if attempt:
                time.sleep(self._pause * 2 ** (attempt - 1))
            try:
                with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
                    return json.load(answer)
            except urllib.error.HTTPError as e:
                problem = f"{e.code} {e.reason}: {e.read(300).decode('utf-8', 'replace')}"
                if e.code not in _AGAIN:
                    break
            except (urllib.error.URLError, OSError, ValueError) as e:
                problem = str(getattr(e, "reason", e))
        raise UserError(
            f"{self.url}/{path}: {problem}; what is finished is kept, run the same command to go on"
        )


def _call(call: dict[str, Any]) -> dict[str, Any]:
    function = call.get("function") or {}
    try:
        arguments = json.loads(function.get("arguments") or "{}")
    except ValueError:
        arguments = {}
    return {"name": str(function.get("name")), "arguments": arguments}


def until(text: str, stops: Sequence[str]) -> str:
    """The text up to the first of `stops` in it: a server takes four of them, and none with a
    conversation that reasons."""
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    return text[: min(places, default=len(text))]
