"""The kit's own tiny SmolLM3: a checkpoint in which every mistake shows and every answer is known.

Two things are built into the weights.

*Everything matters.* Weights are large, norms are not one, epsilon and theta are unusual, so that
a wrong detail anywhere moves log-probabilities by tenths, not by rounding.

*One answer is scripted.* Some channels of the residual stream are kept free for a chain of
tokens: the last feed-forward block turns the channel of one into the channel of the next. So after
any generation prompt the greedy answer is a thought and a tool call, whatever the precision, and
servers can be checked for what they make of it.

All weights are small integers times a power of two: the same on every machine, and exact in
bfloat16 too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from smollm3.chat import Message, ToolCall, default_template
from smollm3.checkpoint import save_model
from smollm3.files import new_folder
from smollm3.model import ModelConfig, Transformer, Yarn, nope_pattern
from smollm3.model.transformer import Block
from smollm3.tokenizer import CONTROL, Tokenizer

Weights = Literal["plain", "yarn"]
WEIGHTS: tuple[Weights, ...] = get_args(Weights)

CONFIG = ModelConfig(
    vocab_size=512,
    layers=8,
    hidden=128,
    heads=4,
    kv_heads=2,
    head_dim=32,
    ffn=256,
    uses_rope=nope_pattern(8, 4),
    rope_theta=50_000.0,  # neither 10,000 nor the classes' 2,000,000
    context=1024,
    norm_eps=0.015625,  # against mean squares near 0.07; who writes 1e-6 into code is found out
)
# The same weights, read as a model of half the context that YaRN stretches.
YARN = replace(CONFIG, yarn=Yarn(factor=2.0, original_context=512))

TEXT = """\
The ferry leaves at seven in the morning and comes back when the market has closed. Nobody on the
island owns a car, so everything travels by cart: flour, letters, a piano once, and twice a week the
doctor. In winter the harbour freezes and the children walk across to school.
A queue keeps what came first in front; a stack keeps what came last on top. Both can be made from
a list, and a list from nothing but pairs. To sort a list, split it, sort the halves and merge them.
Le boulanger ouvre à six heures et vend tout avant midi. Die Katze schläft auf dem warmen Dach.
El tren llega tarde cuando llueve en la sierra. Il vento porta via le foglie e le lettere.
O barco volta ao porto antes da noite. 水は低い所へ流れる。
def area(width: float, height: float) -> float: return width * height
for name, price in sorted(prices.items()): total += price * 1.19
"""
# The scripted answer, each part a token of its own. Those that are no control tokens are entries
# of the vocabulary that no text is cut into, so each can say what comes next.
ANSWER = (
    *("<think>", "\nLook", " outside", " first.\n", "</think>", "\nA", " moment", ".\n"),
    *(
        "<tool_call>",
        '\n{"name',
        '": "get',
        '_weather",',
        ' "arguments',
        '": {"day',
        '": 3',
        "}}\n",
    ),
    *("</tool_call>", "<|im_end|>"),
)
EXPECTED = Message(
    "assistant", "A moment.", "Look outside first.", (ToolCall("get_weather", {"day": 3}),)
)
# In SmolLM3's chat protocol a generation prompt ends with a line end.
CHAIN = ("\n", *ANSWER)
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a day.",
        "parameters": {
            "type": "object",
            "properties": {"day": {"type": "integer", "description": "1 is Monday"}},
            "required": ["day"],
        },
    },
}

# Greatest integer and power of two of each kind of weight. Attention weighs more than the
# feed-forward blocks. Larger queries and keys tell mistakes further apart, but rounding too: here
# bfloat16 is off by 0.2 at most, RoPE on the last layer alone, the least mistake, by 0.7.
SCALES = {
    "embed": (64, -7),
    "attention.q": (20, -7),
    "attention.k": (20, -7),
    "attention.v": (48, -8),
    "attention.o": (80, -8),
    "ffn.gate": (48, -8),
    "ffn.up": (48, -8),
    "ffn.down": (16, -8),
}
FREE = len(CHAIN)  # channels of the residual stream, the first ones


@dataclass(frozen=True)
class Kit:
    """The checkpoint in both readings, its tokenizer, and texts to ask about."""

    models: dict[Weights, Transformer]
    tokenizer: Tokenizer

    @cached_property
    def short(self) -> list[list[int]]:
        """Prompts of 6 to 40 tokens."""
        lengths = (6, 40, 13, 27, 19, 34, 9, 23)
        return [self._ids[17 * i : 17 * i + length] for i, length in enumerate(lengths)]

    @cached_property
    def long(self) -> list[list[int]]:
        """A prompt beyond the 512 tokens that YaRN starts from."""
        return [self._ids[55:755]]

    @cached_property
    def _ids(self) -> list[int]:
        return self.tokenizer.encode(TEXT.replace("\n", " ")) * 4

    def write(self, folder: Path, gguf: bool = False) -> None:
        """`plain/` and `yarn/` as Hugging Face folders, with `gguf` also `plain.gguf`, `yarn.gguf`.

        The same bytes every time; an existing `folder` is replaced.
        """
        with new_folder(folder) as temporary:
            for name, model in self.models.items():
                save_model(model, self.tokenizer, temporary / name)
                if gguf:
                    from smollm3.checkpoint.gguf import export_gguf

                    export_gguf(model, self.tokenizer, temporary / f"{name}.gguf", "f32")


def make_kit() -> Kit:
    tokenizer = _tokenizer()
    plain = _model(tokenizer)
    yarn = reshaped(plain, YARN)
    return Kit({"plain": plain, "yarn": yarn}, tokenizer)


def reshaped(
    model: Transformer, config: ModelConfig, changed: dict[str, Tensor] | None = None
) -> Transformer:
    """A model of another configuration on the same weights, but for those `changed`."""
    with torch.device("meta"):
        other = Transformer(config)
    other.load_state_dict({**model.state_dict(), **(changed or {})}, assign=True)
    if config.tied:
        other.unembed.weight = other.embed.weight
    return other.requires_grad_(False)


def _tokenizer() -> Tokenizer:
    parts_of_answer = [part for part in ANSWER if part not in CONTROL]
    template = default_template("the conformance kit")
    size = CONFIG.vocab_size - len(parts_of_answer)
    trained = Tokenizer.train(TEXT.splitlines(), size, template)
    source = json.loads(trained.source)
    vocab = source["model"]["vocab"]
    for part in parts_of_answer:
        vocab[part.replace(" ", "Ġ").replace("\n", "Ċ")] = len(vocab)  # as byte-level BPE spells
    for i, token in enumerate(source["added_tokens"]):
        token["id"] = len(vocab) + i
    config = {
        **trained.named,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
    }
    return Tokenizer(json.dumps(source, ensure_ascii=False), config, template)


@torch.no_grad()
def _model(tokenizer: Tokenizer) -> Transformer:
    model = Transformer(CONFIG)
    for name, weight in model.named_parameters():
        weight.copy_(_draw(name, weight.shape))
    _keep_free(model)
    # Tokens that are no readable text (servers tell tokens by their text) and those of the chain
    # get logits near 0, so that no other answer holds them.
    spelled = [tokenizer.decode([i]) for i in range(CONFIG.vocab_size)]
    model.embed.weight[[text in CHAIN or not _readable(text) for text in spelled]] /= 8
    _write_chain(model, [spelled.index(text) for text in CHAIN])
    return model.requires_grad_(False)


def _readable(text: str) -> bool:
    return text.isprintable() and "\ufffd" not in text and text not in CONTROL


def _draw(name: str, shape: Sequence[int]) -> Tensor:
    digest = hashlib.sha256(name.encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:4], "little"))
    if len(shape) == 1:  # a norm: from 0.5 to 1.5
        return torch.randint(64, 193, tuple(shape), generator=generator) / 128
    [(n, power)] = [v for part, v in SCALES.items() if part in name]
    return torch.randint(-n, n + 1, tuple(shape), generator=generator) * 2.0**power


def _keep_free(model: Transformer) -> None:
    """No block reads or writes the first FREE channels."""
    model.embed.weight[:, :FREE] = 0
    for name, weight in model.blocks.named_parameters():
        if weight.ndim == 1:
            weight[:FREE] = 1
        elif name.endswith((".o.weight", ".down.weight")):
            weight[:FREE] = 0
        else:
            weight[:, :FREE] = 0
    model.norm.weight[:FREE] = 1


def _write_chain(model: Transformer, ids: Sequence[int]) -> None:
    """Token i of the chain has channel i; neuron i of the last block answers to it (gate and up
    read the same, so the sign is lost but the size squared) and fills channel i + 1."""
    last = model.blocks[-1]
    assert isinstance(last, Block)
    model.embed.weight[list(ids), range(len(ids))] = 8
    for i in range(len(ids) - 1):
        for part in (last.ffn.gate, last.ffn.up):
            part.weight[i] = 0
            part.weight[i, i] = 2
        last.ffn.down.weight[:, i] = 0
        last.ffn.down.weight[i + 1, i] = 32
