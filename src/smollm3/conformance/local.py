"""Implementations that are Python packages: ours, transformers, mlx-lm."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from smollm3.conformance.cases import Case
from smollm3.conformance.kit import Weights
from smollm3.conformance.target import ChatAnswer, Ids, Target, TargetTokens, Unsupported
from smollm3.errors import UserError
from smollm3.infer import Engine, SamplingParams, load_engine
from smollm3.turn import Request


class Ours(Target):
    """This package's engine on the kit's folder."""

    name = "smollm3"
    tolerance = 1e-4

    def __init__(self, kit: Path) -> None:
        self._engines: dict[Weights, Engine] = {
            weights: load_engine(kit / weights, device="cpu") for weights in ("plain", "yarn")
        }
        self._engine = self._engines["plain"]
        self._tokenizer = self._engine.tokenizer

    def logprobs(self, weights: Weights, ids: Ids) -> Tensor:
        return self._engines[weights].logprobs(ids)

    def greedy(self, prompts: Sequence[Ids], n: int) -> list[Ids]:
        params = SamplingParams(temperature=0, max_tokens=n)
        return [completion.ids for completion in self._engine.generate(prompts, params)]

    def encode(self, text: str) -> TargetTokens:
        return TargetTokens(self._tokenizer.encode(text))

    def render(self, case: Case) -> TargetTokens:
        ids = self._tokenizer.render(case.messages, **case.options).ids
        return TargetTokens(ids, self._tokenizer.render_text(case.messages, **case.options))

    def chat(self, case: Case, stream: bool) -> ChatAnswer:
        params = SamplingParams(temperature=0, max_tokens=64)
        reply = Request(case.messages, params=params, **case.options).submit(self._engine)
        if stream:
            list(reply)
        message = reply.result()
        return ChatAnswer(message.content, message.reasoning, message.tool_calls, None)


class Transformers(Target):
    """Hugging Face transformers, in float32 with its own attention."""

    name = "transformers"
    tolerance = 1e-4

    def __init__(self, kit: Path) -> None:
        transformers = _package("transformers")
        transformers.utils.logging.disable_progress_bar()

        @cache
        def load(weights: Weights) -> Any:
            return transformers.AutoModelForCausalLM.from_pretrained(
                kit / weights, dtype=torch.float32
            ).eval()

        self._load = load
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(kit / "plain")

    def logprobs(self, weights: Weights, ids: Ids) -> Tensor:
        with torch.inference_mode():
            logits_TV: Tensor = self._load(weights)(torch.tensor([ids])).logits[0]
        return logits_TV.log_softmax(-1)

    def greedy(self, prompts: Sequence[Ids], n: int) -> list[Ids]:
        model = self._load("plain")
        longest = max(map(len, prompts))
        padded = [[self._tokenizer.pad_token_id] * (longest - len(p)) + p for p in prompts]
        mask = [[0] * (longest - len(p)) + [1] * len(p) for p in prompts]
        out = model.generate(
            torch.tensor(padded),
            attention_mask=torch.tensor(mask),
            do_sample=False,
            temperature=None,
            top_p=None,
            min_new_tokens=n,
            max_new_tokens=n,
        )
        ids: list[Ids] = out[:, longest:].tolist()
        return ids

    def encode(self, text: str) -> TargetTokens:
        return TargetTokens(list(self._tokenizer(text).input_ids))

    def render(self, case: Case) -> TargetTokens:
        text = self._tokenizer.apply_chat_template(
            list(case.messages), tokenize=False, add_generation_prompt=True, **case.options
        )
        ids = self._tokenizer.apply_chat_template(
            list(case.messages), add_generation_prompt=True, return_dict=False, **case.options
        )
        return TargetTokens(list(ids), text)


class Mlx(Target):
    """mlx-lm's SmolLM3; on other machines than Macs with the package mlx-cpu."""

    name = "mlx-lm"
    tolerance = 1e-3

    def __init__(self, kit: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the bindings it is built with
            self._mx = _package("mlx.core")
            utils = _package("mlx_lm.utils")
            self._cache = _package("mlx_lm.models.cache")

        @cache
        def load(weights: Weights) -> Any:
            return utils.load_model(kit / weights)[0]

        self._load = load

    def logprobs(self, weights: Weights, ids: Ids) -> Tensor:
        logits = self._load(weights)(self._mx.array([ids]))[0].astype(self._mx.float32)
        return torch.tensor(logits.tolist()).log_softmax(-1)

    def greedy(self, prompts: Sequence[Ids], n: int) -> list[Ids]:
        if len(prompts) > 1:
            raise Unsupported("asked one prompt at a time")
        model = self._load("plain")
        cache, ids, new = self._cache.make_prompt_cache(model), prompts[0], []
        for _ in range(n):
            logits = model(self._mx.array([ids]), cache=cache)[0, -1]
            ids = [int(self._mx.argmax(logits).item())]
            new += ids
        return [new]


def _package(name: str) -> ModuleType:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as e:
        package = name.split(".", maxsplit=1)[0].replace("_", "-")
        raise UserError(
            f"this target needs the package {package} ({e}); pip install {package}"
        ) from e
