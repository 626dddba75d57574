"""Rebuild the exact SmolLM3 tokenizer from a public list of byte strings, with no hub.

SmolLM3 took Llama 3's 128,000 byte strings. The PyPI package `llama-models` carries them; the file
is read, the package never imported. What is not in the file - the merges, the control tokens, the
split - is derived here, and a checksum says that it is the published file, byte for byte.
"""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

from smollm3.chat import default_template
from smollm3.errors import UserError
from smollm3.files import packaged_file
from smollm3.tokenizer.bpe import CONTROL, SPLIT
from smollm3.tokenizer.tokenizer import Tokenizer

PACKAGE, RANKS = "llama_models", "llama3/tokenizer.model"
MEND = "pip install --no-deps --force-reinstall llama-models==0.3.0"
# tokenizer.json of HuggingFaceTB/SmolLM3-3B: 17,208,819 bytes.
SHA256 = "7b6a500b662a34eb3f0374db856ba4ad7de4c81040571d78dc0d357238930005"
PIECES = 128_000
CONTROL_TOKENS = 256  # ids 128000 to 128255


def build(out: str | Path, template: str | None = None) -> Tokenizer:
    """Write SmolLM3's tokenizer.json (sha256 `SHA256`), its settings and a chat template to `out`.

    template: Jinja source; ours with no identity if None. Files of `out` with other names stay.
    Raises UserError where the ranks are missing, damaged or of another vocabulary.
    """
    path = packaged_file(PACKAGE, RANKS)
    source = tokenizer_json(read_ranks(path))
    found = hashlib.sha256(source.encode()).hexdigest()
    if found != SHA256:
        raise UserError(f"{path}: gives another tokenizer (sha256 {found[:12]}...); {MEND}")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": "<|im_end|>",
        # The id that the published config.json pads with. The published tokenizer_config.json says
        # <|im_end|>, and whoever masks padding in a loss then masks the ends of answers too.
        "pad_token": "<|finetune_right_pad_id|>",
        "model_max_length": 131072,
        "clean_up_tokenization_spaces": False,
    }
    tokenizer = Tokenizer(source, config, default_template() if template is None else template)
    tokenizer.save(out)
    return tokenizer


def read_ranks(path: Path) -> list[bytes]:
    """The byte strings of a file of lines `base64 rank`, in the order of their ranks."""
    pieces: list[bytes] = []
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                piece, rank = line.split()
                pieces.append(base64.b64decode(piece, validate=True))
                ordered = int(rank) == number - 1
            except ValueError:
                ordered = False
            if not ordered or number > PIECES:
                raise UserError(
                    f"{path}: line {number}: not the base64 of rank {number - 1}; {MEND}"
                )
    return pieces


def tokenizer_json(pieces: list[bytes]) -> str:
    """The text of SmolLM3's tokenizer.json for these byte strings (rank = id)."""
    spelled = {piece: _spell(piece) for piece in pieces}
    byte_level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True}
    first, second = ({"Sequence": {"id": part, "type_id": i}} for i, part in enumerate("AB"))
    content: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": len(pieces) + i,
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": CONTROL.get(token, True),
            }
            for i, token in enumerate(_control_tokens())
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {
                    "type": "Split",
                    "pattern": {"Regex": SPLIT},
                    "behavior": "Isolated",
                    "invert": False,
                },
                byte_level | {"add_prefix_space": False, "use_regex": False},
            ],
        },
        "post_processor": {  # nothing goes before a text: SmolLM3 has no BOS
            "type": "TemplateProcessing",
            "single": [first],
            "pair": [first, second],
            "special_tokens": {},
        },
        "decoder": byte_level | {"use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,
            "vocab": {spelled[piece]: rank for rank, piece in enumerate(pieces)},
            "merges": [[spelled[left], spelled[right]] for left, right in _merges(pieces)],
        },
    }
    return json.dumps(content, indent=2, ensure_ascii=False)


def _merges(pieces: list[bytes]) -> list[tuple[bytes, bytes]]:
    """Every way to join two pieces into a third, by rank of the result, then of the parts.

    Ranks alone say what Llama 3 merges: the pair whose union ranks lowest. A list of pairs in
    this order says the same; 128,000 ranks give 280,147 pairs.
    """
    rank = {piece: i for i, piece in enumerate(pieces)}
    merges: list[tuple[bytes, bytes]] = []
    for piece in pieces:
        halves = [(piece[:i], piece[i:]) for i in range(1, len(piece))]
        known = [(left, right) for left, right in halves if left in rank and right in rank]
        merges += sorted(known, key=lambda pair: (rank[pair[0]], rank[pair[1]]))
    return merges


def _control_tokens() -> list[str]:
    """SmolLM3 renamed some of Llama 3's reserved tokens; those left keep their Llama numbers."""
    named = list(CONTROL)
    before, after = named[:5], named[5:]
    tokens = [*before, "<|reserved_special_token_2|>", *after]
    return tokens + [
        f"<|reserved_special_token_{i - 8}|>" for i in range(len(tokens), CONTROL_TOKENS)
    ]


def _byte_alphabet() -> dict[int, str]:
    """GPT-2's visible character for each byte: itself where Latin-1 prints it, else from U+0100."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in visible]
    return {b: chr(b) for b in visible} | {b: chr(0x100 + i) for i, b in enumerate(hidden)}


_ALPHABET = _byte_alphabet()


def _spell(piece: bytes) -> str:
    return piece.decode("latin-1").translate(_ALPHABET)
