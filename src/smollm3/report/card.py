"""README.md of an exported model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def model_card(name: str, lineage: Sequence[dict[str, Any]]) -> str:
    """How to use the model, and the stages that it was made by.

    lineage: {"stage", "digest"} from the first ancestor to the model itself.
    """
    stages = "\n".join(f"| {step['stage']} | `{step['digest'][:12]}` |" for step in lineage)
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags: [smollm3]
---
# {name}

A SmolLM3-shaped language model, made by the recipe `{name}` of the `smollm3` package.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("PATH")
model = AutoModelForCausalLM.from_pretrained("PATH")
messages = [{{"role": "user", "content": "Hello"}}]
ids = tokenizer.apply_chat_template(
    messages,
    add_generation_prompt=True,
    enable_thinking=False,
    return_tensors="pt",
    return_dict=True,
)
print(tokenizer.decode(model.generate(**ids)[0]))
```

## Made by

| stage | checksum |
| --- | --- |
{stages}
"""
