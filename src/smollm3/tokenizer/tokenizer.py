"""Byte-level BPE with control tokens: train, load, save; text and conversations to ids and back.

Two ways to encode are kept apart. Text is only text: `<|im_end|>` spelled in a document is eleven
characters. Markup is what our own code wrote: there it is one control token.
"""

from __future__ import annotations

import json
import os
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, Unpack

import tokenizers
from tokenizers import models

from smollm3.chat import Message, Renderer, Rendering, RenderOptions, parse
from smollm3.chat.render import Piece, any_of
from smollm3.chat.tags import THINK
from smollm3.errors import UserError
from smollm3.files import read_object, read_text, sha256_json, write_atomic, write_json
from smollm3.tokenizer.bpe import train_bpe
from smollm3.tokenizer.library import (
    byte_letters,
    check_parts,
    encode,
    encodings,
    reraise_unless_library,
)

# The library's threads do not survive a fork and gain nothing beside one process a core.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

_NAMED = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
_Encoded = tuple[list[int], list[Piece]]  # ids, and the pieces of text that they come from


@dataclass(frozen=True)
class Rendered:
    """A conversation as ids with its loss masks, one entry per token, True = trained on.

    published: the template's `{% generation %}` blocks, as trl masks them: the whole assistant
        turn, header included.
    generated: only what the model itself must write, from the end of the generation prompt to its
        stop token; all False for a rendering that ends in a generation prompt. A UserError where
        the template does not allow it.
    problem: why there is no `generated`, if so.
    """

    ids: list[int]
    published: list[bool]
    _generated: list[bool]
    problem: str | None

    @property
    def generated(self) -> list[bool]:
        if self.problem:
            raise UserError(self.problem)
        return self._generated


class Tokenizer:
    """A tokenizer.json with its chat template.

    vocab_size: entries, control tokens included.
    named: spelling of eos_token, pad_token and the like.
    bos: id that goes before every text, None for SmolLM3.
    stop_ids: tokens that end an answer.  end_of_text_id: ends a document in pretraining.
    """

    def __init__(
        self,
        source: str | tokenizers.Tokenizer,
        config: dict[str, Any],
        template: str,
        stop_ids: Sequence[int] = (),
    ) -> None:
        """source: the text of tokenizer.json, or what the library makes of it. config: the content
        of tokenizer_config.json. stop_ids: those that
        generation_config.json and config.json add."""
        self._source = source
        if isinstance(source, str):
            check_parts(source)
        try:
            self._markup = (
                tokenizers.Tokenizer.from_str(source) if isinstance(source, str) else source
            )
            self._markup.no_truncation()  # some files keep settings of the program that wrote them
            self._markup.no_padding()
            before = self._markup.encode("").ids  # what the post-processor puts before every text
        except BaseException as e:
            reraise_unless_library(e)
            raise UserError(f"tokenizer.json: not a tokenizer ({e})") from None
        self._config = config
        self.template = template
        self.named = {key: _spelling(key, config[key]) for key in _NAMED if config.get(key)}
        added = self._markup.get_added_tokens_decoder()
        # Runs of blanks that some vocabularies add are text, whatever list they stand in.
        self._control = {
            token.content: token.special
            for token in added.values()
            if token.special or token.content.strip()
        }
        self._control_ids = {
            token.content: index for index, token in added.items() if token.content in self._control
        }
        self._control_split = re.compile(f"({any_of(self._control).pattern})")
        self.vocab_size: int = self._markup.get_vocab_size(with_added_tokens=True)

        eos = self._named_id("eos_token")
        turn_end = self._control_ids.get("<|im_end|>") if "<|im_end|>" in template else None
        ends = [index for index in (turn_end, eos, *stop_ids) if index is not None]
        if not ends:
            raise UserError("tokenizer_config.json: no eos_token; name the token that ends a text")
        text_ends = [self._control_ids.get(t) for t in ("<|end_of_text|>", "<|endoftext|>")]
        self.end_of_text_id: int = next(i for i in (*text_ends, eos, *ends) if i is not None)
        # Nothing sensible follows the end of a document, whatever the model was trained for.
        self.stop_ids: tuple[int, ...] = tuple(dict.fromkeys([*ends, self.end_of_text_id]))
        pad = self._named_id("pad_token")
        self.pad_id: int = self.end_of_text_id if pad is None else pad
        bos = self._named_id("bos_token")
        self.bos: int | None = bos if bos in before else None

        if not all(0 <= index < 1 << 32 for index in self.stop_ids):
            raise UserError(f"generation_config.json: eos_token_id: no ids: {self.stop_ids!r:.80}")
        stops = [self._markup.id_to_token(index) for index in self.stop_ids]
        self._renderer = Renderer(template, self._control, filter(None, stops), self.named)

    @property
    def tags(self) -> dict[str, int]:
        """Control tokens that are not special, such as those around reasoning and calls."""
        return {token: i for token, i in self._control_ids.items() if not self._control[token]}

    @property
    def special_ids(self) -> frozenset[int]:
        """Control tokens that are no part of a text, such as those around turns."""
        return frozenset(i for token, i in self._control_ids.items() if self._control[token])

    def numbers_like(self, other: Tokenizer) -> bool:
        """Whether ids mean the same tokens to both."""
        ours: dict[str, int] = self._markup.get_vocab(with_added_tokens=True)
        theirs: dict[str, int] = other._markup.get_vocab(with_added_tokens=True)
        return ours == theirs

    def _named_id(self, key: str) -> int | None:
        if key not in self.named:
            return None
        index: int | None = self._markup.token_to_id(self.named[key])
        if index is None:
            raise UserError(
                f"tokenizer_config.json: {key} {self.named[key]!r} is not in the vocabulary"
            )
        return index

    # files

    @classmethod
    def train(cls, texts: Iterable[str], vocab: int, template: str) -> Tokenizer:
        """A byte-level BPE of at most `vocab` entries, control tokens included; the same texts
        give the same tokenizer."""
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": None,
            "eos_token": "<|im_end|>",
            "pad_token": "<|finetune_right_pad_id|>",
            "clean_up_tokenization_spaces": False,
        }
        return cls(train_bpe(texts, vocab), config, template)

    @classmethod
    def load(cls, folder: str | Path) -> Tokenizer:
        """From a Hugging Face folder; a missing or damaged file is a UserError that names it."""
        folder = Path(folder)
        source = read_text(folder / "tokenizer.json")
        config = read_object(folder / "tokenizer_config.json")
        stop_ids: list[Any] = []
        for file in (folder / "generation_config.json", folder / "config.json"):
            ends = read_object(file).get("eos_token_id") if file.exists() else None
            stop_ids += ends if isinstance(ends, list) else [ends]
        try:
            return cls(
                source,
                {key: value for key, value in config.items() if key != "chat_template"},
                _read_template(folder, config.get("chat_template")),
                [index for index in stop_ids if type(index) is int],
            )
        except UserError as e:
            raise UserError(f"{folder}: {e}") from None

    def with_template(self, template: str) -> Tokenizer:
        """The same tokenizer with another chat template."""
        return Tokenizer(self._source, self._config, template, self.stop_ids)

    def save(self, folder: str | Path) -> None:
        """Write tokenizer.json, tokenizer_config.json, special_tokens_map.json and the template."""
        folder = Path(folder)
        write_atomic(folder / "tokenizer.json", self.source)
        write_json(folder / "tokenizer_config.json", self._config)
        write_json(folder / "special_tokens_map.json", self.named)
        if self.template:
            write_atomic(folder / "chat_template.jinja", self.template)

    @cached_property
    def source(self) -> str:
        """The text of tokenizer.json."""
        source = self._source
        return source if isinstance(source, str) else str(source.to_str(pretty=True))

    @cached_property
    def digest(self) -> str:
        """sha256 over everything that decides ids, masks and stops."""
        return sha256_json([self.source, self.named, self.stop_ids, self.template])

    # text

    @cached_property
    def _text(self) -> tokenizers.Tokenizer:
        """The tokenizer without control tokens: no text can become one."""
        model = self._markup.model
        added = self._markup.get_added_tokens_decoder().values()
        runs = [token for token in added if token.content not in self._control]
        if (
            isinstance(model, models.BPE)
            and model.unk_token not in self._control
            and all(model.token_to_id(token) is None for token in self._control)
            and all(model.token_to_id(token.content) is not None for token in runs)
        ):
            text = tokenizers.Tokenizer(model)  # shared: to build it again takes a second
            text.normalizer = self._markup.normalizer
            text.pre_tokenizer = self._markup.pre_tokenizer
            text.add_tokens(runs)
            return text
        return self._text_apart()

    def _text_apart(self) -> tokenizers.Tokenizer:
        """`_text` with a vocabulary of its own."""
        parts = json.loads(self.source)
        kept = [t for t in parts["added_tokens"] if t["content"] not in self._control]
        parts["added_tokens"] = kept
        parts["post_processor"] = parts["truncation"] = parts["padding"] = None
        model = parts["model"]
        if model.get("type") == "BPE":
            # Some vocabularies list control tokens among the pieces, where `ignore_merges` finds
            # whole words. Added tokens outside the vocabulary would be numbered anew.
            model["vocab"] = {t: i for t, i in model["vocab"].items() if t not in self._control}
            model["vocab"] |= {token["content"]: token["id"] for token in kept}
            if model.get("unk_token") in self._control:
                model["unk_token"] = None
        try:
            return tokenizers.Tokenizer.from_str(json.dumps(parts, ensure_ascii=False))
        except BaseException as e:
            reraise_unless_library(e)
            raise UserError(f"tokenizer.json: its pieces need its control tokens ({e})") from None

    def encode(self, text: str) -> list[int]:
        """Ids of a text; a control token spelled in it is ordinary text."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return encode(self._text, texts)

    def encode_markup(self, text: str) -> list[int]:
        """Ids of a text whose control tokens are meant: never for text from outside."""
        return encode(self._markup, [text])[0]

    def decode(self, ids: Sequence[int], skip_special: bool = False) -> str:
        """The text of ids; `skip_special` leaves out turn ends, padding and the like, not the tags
        around reasoning and calls."""
        text: str = self._markup.decode(list(ids), skip_special_tokens=skip_special)
        return text

    def token_bytes(self, index: int) -> bytes:
        """What a token adds to a text: perhaps a part of a character. b"" for an unused id."""
        piece: str | None = self._markup.id_to_token(index)
        if piece is None:
            return b""
        letters = byte_letters()
        if piece in self._control or any(letter not in letters for letter in piece):
            return piece.encode()
        return bytes(letters[letter] for letter in piece)

    @cached_property
    def longest(self) -> int:
        """Bytes of the longest token: a text has no fewer tokens than its length by this."""
        return max(len(self.token_bytes(index)) for index in range(self.vocab_size))

    # conversations

    def render(
        self, messages: Sequence[Mapping[str, Any] | Message], **options: Unpack[RenderOptions]
    ) -> Rendered:
        """Ids and loss masks of a conversation; training sets `add_generation_prompt=False`.

        messages: {"role", "content", optional "reasoning_content", "tool_calls"} or Message.
        Contents never become control tokens, and each answer is encoded apart from its prompt, as
        at inference. With `exact` the whole text is encoded as markup, as transformers does it.
        """
        rendering = self._renderer.render(messages, **options)
        exact = options.get("exact", False)
        ids: list[int] = []
        published: list[bool] = []
        generated: list[bool] = []
        for part, pieces in (
            self._encode_whole(rendering) if exact else self._encode_pieces(rendering)
        ):
            ids += part
            published += [any(piece.published for piece in pieces)] * len(part)
            generated += [any(piece.generated for piece in pieces)] * len(part)
        return Rendered(ids, published, generated, rendering.problem)

    def _encode_whole(self, rendering: Rendering) -> Iterator[_Encoded]:
        """Each token of the text in one, with the pieces that it touches."""
        pieces = rendering.pieces
        [encoding] = encodings(self._markup.encode_batch, ["".join(p.text for p in pieces)])
        ends = list(accumulate(len(piece.text) for piece in pieces))
        for index, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            yield [index], pieces[bisect_right(ends, start) : bisect_left(ends, end) + 1]

    @property
    def template_variables(self) -> frozenset[str]:
        """What the chat template reads beside what `render` has names for."""
        return self._renderer.variables

    @property
    def knows_thinking(self) -> bool:
        """Whether the chat template does."""
        return THINK in self.template

    @cached_property
    def shows_tools(self) -> bool:
        """Whether the chat template says which tools there are."""
        asked = [{"role": "user", "content": "?"}]
        tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
        return self.render_text(asked, tools=[tool]) != self.render_text(asked)

    def render_text(
        self, messages: Sequence[Mapping[str, Any] | Message], **options: Unpack[RenderOptions]
    ) -> str:
        """The text of `render`: to be read, not encoded, as contents may forge tokens in it."""
        return self._renderer.render(messages, **options).text

    def _encode_pieces(self, rendering: Rendering) -> Iterator[_Encoded]:
        """Each piece by itself, with control tokens only where they are spelled without
        stand-ins."""
        pieces, restore = rendering.pieces, rendering.restore
        texts = [piece.text for piece in pieces]
        restored = [text.translate(restore) for text in texts]
        if restored == texts:  # no content has even the first character of a control token
            encoded = encode(self._markup, texts)
            return zip(encoded, ([piece] for piece in pieces), strict=True)
        return self._encode_guarded(pieces, restore)

    def _encode_guarded(self, pieces: list[Piece], restore: dict[int, str]) -> Iterator[_Encoded]:
        # text, token, text, ..., token, text
        parts = [self._control_split.split(piece.text) for piece in pieces]
        texts = [text.translate(restore) for part in parts for text in part[::2]]
        encoded = iter(self.encode_batch(texts))
        for piece, part in zip(pieces, parts, strict=True):
            ids = list(next(encoded))
            for token in part[1::2]:
                ids += [self._control_ids[token], *next(encoded)]
            yield ids, [piece]

    def parse(
        self, output: str | Sequence[int], *, tools: bool = True, python_tools: bool = False
    ) -> Message:
        """The message in what the model wrote after a generation prompt, text or ids.

        tools, python_tools: which styles of calls were offered.
        """
        if not isinstance(output, str):
            end = next((i for i, token in enumerate(output) if token in self.stop_ids), len(output))
            output = self.decode(output[:end], skip_special=True)
        return parse(output, xml=tools, python=python_tools)


def _spelling(key: str, token: Any) -> str:
    """Configs name a token by its spelling or as a serialised AddedToken."""
    spelling = token.get("content") if isinstance(token, dict) else token
    if not isinstance(spelling, str):
        raise UserError(f"tokenizer_config.json: {key}: {token!r:.80} is not a token")
    return spelling


def _read_template(folder: Path, configured: Any) -> str:
    """chat_template.jinja, or where older folders keep it; "" if there is none."""
    file = folder / "chat_template.jinja"
    if file.exists():
        return read_text(file)
    if isinstance(configured, list):
        named = [entry for entry in configured if isinstance(entry, dict)]
        default = [entry for entry in named if entry.get("name") == "default"]
        configured = default[0].get("template") if default else None
    return configured if isinstance(configured, str) else ""
