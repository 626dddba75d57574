"""The tags that SmolLM3 writes around its reasoning and its calls of tools.

They are single tokens in SmolLM3's vocabulary and ordinary text in others.
"""

THINK, END_THINK = "<think>", "</think>"
CALL, END_CALL = "<tool_call>", "</tool_call>"
CODE, END_CODE = "<code>", "</code>"
PYTHON = "python"  # the tool that code between <code> and </code> is a call of
# What ends a turn in the templates of common models.
END_MARKS = (
    "<|im_end|>",
    "<|end_of_text|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<end_of_turn>",
    "</s>",
)
