"""llguidance, bounded: grammars compiled, and the masks that they make."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from smollm3.errors import UserError

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

Mask = NDArray[np.int32]

# Of one grammar, against hostile ones: symbols, states of its lexer (1-2 kB each), readings of a
# text that are open at one place (an ambiguous grammar has ever more, and steps take their square
# or worse), and work to build it and in each step (the library counts 50,000 and 14,000 a ms).
LIMITS = {
    "max_grammar_size": 100_000,
    "max_lexer_states": 50_000,
    "max_items_in_row": 500,
    "initial_lexer_fuel": 1_000_000,
    "step_lexer_fuel": 200_000,
    "verbose_errors": False,
}


def library() -> Any:
    try:
        import llguidance
    except ImportError:
        raise UserError("constraints need llguidance: pip install 'smollm3[structured]'") from None
    return llguidance


@cache
def bytes_vocabulary() -> LLTokenizer:
    """One token for each byte, whose id it is."""
    made: LLTokenizer = library().LLTokenizer("byte")
    return made


def compiled(where: str, vocabulary: LLTokenizer, grammar: str, **limits: int) -> LLMatcher:
    """The matcher of a grammar in the library's form. limits: instead of those of `LIMITS`. Raises
    UserError that begins with `where`."""
    bounds = library().LLParserLimits(**{**LIMITS, **limits})
    matcher: LLMatcher = library().LLMatcher(vocabulary, grammar, log_level=0, limits=bounds)
    if matcher.is_error():
        raise UserError(f"{where}: {line_of(matcher.get_error())}")
    return matcher


def mask_of(matcher: LLMatcher, words: int) -> Mask:
    """[words] bits of the tokens that may come next."""
    mask = np.zeros(words, np.int32)
    matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
    if matcher.is_error():
        raise UserError(f"the grammar cannot go on: {line_of(matcher.get_error())}")
    return mask


def line_of(message: str) -> str:
    """What the library says, without the pictures of it."""
    return " ".join(message.partition("<state>")[0].split())
