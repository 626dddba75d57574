"""Implementations behind HTTP: any OpenAI-compatible server, and llama.cpp's, started here."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from smollm3.chat import ToolCall
from smollm3.conformance.cases import Case
from smollm3.conformance.kit import CONFIG, Weights
from smollm3.conformance.target import Broken, ChatAnswer, Ids, Target, TargetTokens, Unsupported
from smollm3.errors import UserError
from smollm3.tokenizer import Tokenizer

TIMEOUT = 60  # seconds for one request
# As many of the likeliest tokens as a server will tell: llama.cpp all, vLLM 20, OpenAI 5.
TOPS = (CONFIG.vocab_size, 20, 5)
ROUNDED = 0.25  # servers compute in bfloat16, which with the kit's weights is off by up to 0.2
NO_THINK = {"chat_template_kwargs": {"enable_thinking": False}}
Json = dict[str, Any]


class ServedToken(NamedTuple):
    """A new token and log-probabilities of the likeliest; None: a text that names no token."""

    chosen: int | None
    logprobs: dict[int | None, float]


class HttpTarget(Target):
    """An OpenAI-compatible server that serves the kit's `plain` folder, asked at `url` (with or
    without /v1). OPENAI_API_KEY is sent where it is set."""

    def __init__(self, url: str, tokenizer: Tokenizer, tolerance: float = ROUNDED) -> None:
        self.name = url
        self.tolerance = tolerance
        self._url = url.rstrip("/").removesuffix("/v1")
        self._tokenizer = tokenizer
        self._tops: tuple[int, ...] = TOPS
        spelled = [tokenizer.decode([i]) for i in range(tokenizer.vocab_size)]
        self._ids = {text: i for i, text in enumerate(spelled) if spelled.count(text) == 1}
        try:
            models = self._request("/v1/models")
        except Unsupported:
            models = {}
        names = [m.get("id") for m in models.get("data") or [] if isinstance(m, dict)]
        self._model = names[0] if names else "kit"

    # HTTP

    def _open(self, path: str, body: Json | None = None) -> http.client.HTTPResponse:
        key = os.environ.get("OPENAI_API_KEY")
        request = urllib.request.Request(
            self._url + path,
            None if body is None else json.dumps({"model": self._model, **body}).encode(),
            {
                "Content-Type": "application/json",
                **({"Authorization": f"Bearer {key}"} if key else {}),
            },
        )
        try:
            response: http.client.HTTPResponse = urllib.request.urlopen(request, timeout=TIMEOUT)
        except urllib.error.HTTPError as e:
            with e:
                said = e.read(300).decode(errors="replace").replace("\n", " ")
            if e.code < 500 or e.code == 501:
                raise Unsupported(f"{path}: HTTP {e.code} {said}") from None
            raise Broken(f"{path}: HTTP {e.code} {said}") from None
        except (OSError, http.client.HTTPException) as e:
            raise UserError(
                f"{self._url}: no server answers ({e}); start it on the folder `plain` that "
                "`smollm3 conformance --make FOLDER` writes"
            ) from None
        return response

    def _request(self, path: str, body: Json | None = None) -> Json:
        with self._open(path, body) as response:
            return _object(path, response.read())

    def _events(self, path: str, body: Json) -> Iterator[Json]:
        """The objects of a stream, which must end with [DONE]."""
        with self._open(path, {**body, "stream": True}) as response:
            for line in response:
                if not line.startswith(b"data:"):
                    continue
                data = line.removeprefix(b"data:").strip()
                if data == b"[DONE]":
                    return
                yield _object(path, data)
        raise Broken(f"{path}: the stream does not end with [DONE]")

    # Numbers

    def _complete(self, ids: Ids, n: int) -> list[ServedToken]:
        """The steps of a greedy completion, with as many log-probabilities as the server tells."""
        body = {"prompt": ids, "max_tokens": n, "temperature": 0}
        refusal = Unsupported()
        for top in self._tops:
            try:
                told = self._request("/v1/completions", {**body, "logprobs": top})
            except Unsupported as e:
                refusal = e
            else:
                self._tops = (top,)
                return self._steps(_choice(told))
        raise refusal

    def _steps(self, choice: Json) -> list[ServedToken]:
        """Two forms are common: OpenAI's for completions, with texts, and that for chats, to
        which llama.cpp adds ids. Texts of several tokens (parts of characters) are left out."""
        told = choice.get("logprobs")
        if not told:
            raise Unsupported("/v1/completions: tells no logprobs")
        try:
            if "content" in told:
                return [
                    ServedToken(
                        self._id(step),
                        {self._id(top): top["logprob"] for top in (step, *step["top_logprobs"])},
                    )
                    for step in told["content"]
                ]
            return [
                ServedToken(
                    self._ids.get(text),
                    {self._ids.get(t): p for t, p in {**(tops or {}), text: own}.items()},
                )
                for text, own, tops in zip(
                    told["tokens"], told["token_logprobs"], told["top_logprobs"], strict=True
                )
            ]
        except (KeyError, TypeError, ValueError, AttributeError) as e:
            raise Broken(f"/v1/completions: logprobs in no known form ({e!r})") from None

    def _id(self, told: Json) -> int | None:
        found: int | None = told.get("id", self._ids.get(told["token"]))
        return found

    def logprobs(self, weights: Weights, ids: Ids) -> Tensor:
        if weights != "plain":
            raise Unsupported("a server has one model, the plain one")
        told_1V = torch.full((1, CONFIG.vocab_size), float("nan"))
        for step in self._complete(ids, 1)[:1]:
            for token, logprob in step.logprobs.items():
                if token is not None:
                    told_1V[0, token] = logprob
        return told_1V

    def greedy(self, prompts: Sequence[Ids], n: int) -> list[Ids]:
        with ThreadPoolExecutor(len(prompts)) as pool:
            rows = pool.map(lambda ids: [s.chosen for s in self._complete(ids, n)], prompts)
        return [[token for token in row if token is not None] for row in rows]

    # Texts

    def encode(self, text: str) -> TargetTokens:
        with suppress(Unsupported, KeyError):  # llama.cpp says content, vLLM prompt
            body = {"content": text, "prompt": text, "add_special": True}
            return TargetTokens(self._request("/tokenize", body)["tokens"])
        told = self._request("/v1/completions", {"prompt": text, "max_tokens": 1})
        return TargetTokens(count=_prompt_tokens(told))

    def render(self, case: Case) -> TargetTokens:
        body = self._chat_body(case)
        text = None
        with suppress(Unsupported, KeyError):
            text = self._request("/apply-template", body)["prompt"]
        told = self._request("/v1/chat/completions", {**body, "max_tokens": 1})
        return TargetTokens(text=text, count=_prompt_tokens(told))

    def _chat_body(self, case: Case) -> Json:
        return {
            "messages": list(case.messages),
            **({"tools": list(case.tools)} if case.tools else {}),
            **({} if case.enable_thinking else NO_THINK),
            "temperature": 0,
        }

    def chat(self, case: Case, stream: bool) -> ChatAnswer:
        body = {**self._chat_body(case), "max_tokens": 64}
        path = "/v1/chat/completions"
        if stream:
            message, reason = _joined(self._events(path, body))
        else:
            choice = _choice(self._request(path, body))
            message, reason = choice.get("message") or {}, choice.get("finish_reason")
        try:
            calls = tuple(
                ToolCall(c["function"]["name"], json.loads(c["function"]["arguments"]))
                for c in message.get("tool_calls") or []
            )
        except (KeyError, TypeError, ValueError):
            raise Broken(f"tool calls in no known form: {message['tool_calls']}") from None
        reasoning = message.get("reasoning_content") or message.get("reasoning")
        return ChatAnswer(message.get("content") or "", reasoning, calls, reason)


class LlamaCpp(Target):
    """llama.cpp through the package xllamacpp, on the kit's float32 GGUF files.

    Each server is a process: the library's threads do not end well inside another program.
    """

    name = "llama.cpp"
    tolerance = 1e-3

    def __init__(self, kit: Path) -> None:
        import importlib.util

        if importlib.util.find_spec("xllamacpp") is None:
            raise UserError("this target needs the package xllamacpp; pip install xllamacpp")
        self._kit = kit
        self._tokenizer = Tokenizer.load(kit / "plain")
        self._processes: list[subprocess.Popen[str]] = []
        self._servers: dict[Weights, HttpTarget] = {}

    def _server(self, weights: Weights) -> HttpTarget:
        if weights not in self._servers:
            process = subprocess.Popen(
                [sys.executable, "-c", _SERVE, str(self._kit / f"{weights}.gguf")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            self._processes.append(process)
            assert process.stdout is not None
            # The library writes its own lines too.
            url = next(
                (line.split()[1] for line in process.stdout if line.startswith("URL ")), None
            )
            if url is None:
                raise Broken("llama.cpp does not load the GGUF file")
            self._servers[weights] = HttpTarget(url, self._tokenizer, self.tolerance)
        return self._servers[weights]

    def logprobs(self, weights: Weights, ids: Ids) -> Tensor:
        return self._server(weights).logprobs("plain", ids)

    def greedy(self, prompts: Sequence[Ids], n: int) -> list[Ids]:
        return self._server("plain").greedy(prompts, n)

    def encode(self, text: str) -> TargetTokens:
        return self._server("plain").encode(text)

    def render(self, case: Case) -> TargetTokens:
        return self._server("plain").render(case)

    def chat(self, case: Case, stream: bool) -> ChatAnswer:
        return self._server("plain").chat(case, stream)

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.communicate()


_SERVE = """
import os, sys, xllamacpp
p = xllamacpp.CommonParams()
p.model.path = sys.argv[1]
p.n_ctx, p.n_parallel, p.cpuparams.n_threads, p.use_jinja = 4096, 4, 1, True
# Flash attention and the usual cache round to float16: off by 1e-2 here, 1e-5 without.
p.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
p.cache_type_k = p.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
server = xllamacpp.Server(p)
print("URL", server.listening_address, flush=True)
sys.stdin.read()
os._exit(0)
"""


def _object(path: str, data: bytes) -> Json:
    try:
        value = json.loads(data)
    except ValueError:
        raise Broken(f"{path}: not JSON: {data[:80]!r}") from None
    if not isinstance(value, dict):
        raise Broken(f"{path}: not a JSON object: {data[:80]!r}")
    return value


def _choice(told: Json) -> Json:
    try:
        choice: Json = told["choices"][0]
    except (KeyError, IndexError, TypeError):
        raise Broken(f"no choices in {str(told)[:80]}") from None
    return choice


def _prompt_tokens(told: Json) -> int:
    try:
        return int(told["usage"]["prompt_tokens"])
    except (KeyError, TypeError, ValueError):
        raise Unsupported("tells no usage.prompt_tokens") from None


def _joined(events: Iterator[Json]) -> tuple[Json, str | None]:
    """The message whose pieces came as a stream, and its finish reason."""
    message: Json = {"content": "", "reasoning_content": "", "tool_calls": []}
    calls: dict[int, Json] = {}
    reason = None
    for event in events:
        if not event.get("choices"):
            continue  # usage, at the end
        choice = _choice(event)
        reason = choice.get("finish_reason") or reason
        delta = choice.get("delta") or {}
        message["content"] += delta.get("content") or ""
        message["reasoning_content"] += (
            delta.get("reasoning_content") or delta.get("reasoning") or ""
        )
        for part in delta.get("tool_calls") or []:
            call = calls.setdefault(part.get("index", 0), {"name": "", "arguments": ""})
            for key in call:
                call[key] += (part.get("function") or {}).get(key) or ""
    message["tool_calls"] = [{"function": calls[index]} for index in sorted(calls)]
    return message, reason
