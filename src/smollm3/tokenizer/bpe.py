"""SmolLM3's control tokens and split, and the training of a byte-level BPE with them."""

from __future__ import annotations

import re
from collections.abc import Iterable

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers

from smollm3.chat.tags import CALL, CODE, END_CALL, END_CODE, END_THINK, THINK
from smollm3.errors import UserError

# Llama 3's split: contractions, words with one sign before them, up to three digits, signs with
# the line ends after them, line ends, blanks.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# SmolLM3's control tokens in the order of their ids; the tags of reasoning, tools and code are not
# `special`, so they survive decoding without special tokens and text parsers see them.
CONTROL = {
    "<|begin_of_text|>": True,
    "<|end_of_text|>": True,
    THINK: False,
    END_THINK: False,
    "<|finetune_right_pad_id|>": True,
    "<|start_header_id|>": True,
    "<|end_header_id|>": True,
    "<|eom_id|>": True,
    "<|eot_id|>": True,
    "<|python_tag|>": True,
    "<|im_start|>": True,
    "<|im_end|>": True,
    "<tool_response>": False,
    "</tool_response>": False,
    CALL: False,
    END_CALL: False,
    CODE: False,
    END_CODE: False,
}
CONTROL_SPLIT = re.compile("|".join(map(re.escape, CONTROL)))


def train_bpe(texts: Iterable[str], vocab: int) -> str:
    """The text of tokenizer.json of at most `vocab` entries, control tokens included; the same
    texts give the same text."""
    least = len(CONTROL) + 256
    if vocab < least:
        raise UserError(f"vocab: {vocab} is too small; 256 bytes and control tokens need {least}")
    bpe = tokenizers.Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab - len(CONTROL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    for token, special in CONTROL.items():  # one by one: the order gives the ids
        bpe.add_tokens([AddedToken(token, special=special, normalized=False)])
    return str(bpe.to_str(pretty=True))
