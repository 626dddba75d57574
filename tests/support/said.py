"""Generations whose text a test has written."""

from smollm3.infer.generation import Channel, Generation, Step


def said(pieces, reason="stop", prompt_tokens=0):
    """A finished generation of one token for each piece of text."""
    channel = Channel(prompt_tokens)
    for i, piece in enumerate(pieces, 1):
        channel.push(Step(i, piece, -0.1), reason if i == len(pieces) else None)
    if not pieces:
        channel.finish_reason = reason
    return Generation(channel, None, lambda: None)
