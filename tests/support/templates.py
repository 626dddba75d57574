"""Chat templates to test against: those inside trl, and a double of the published one."""

import json
import re
from importlib import resources

from smollm3.chat import default_template
from smollm3.tokenizer import CONTROL, Tokenizer

# The rules of the published template in other words. Kept are its blocks, their order, and its
# faults: a system block without tools is never closed, tools are printed as Python prints dicts,
# `tool_calls` and reasoning in the history are passed over, an empty thought is put even in front
# of another one, and contents in parts are dropped.
PUBLISHED = """\
{%- set mode = '/think' if enable_thinking is not defined or enable_thinking else '/no_think' -%}
{%- set custom = custom_instructions | default('', true) -%}
{%- if messages and messages[0].role == 'system' -%}
    {%- set system = messages[0].content -%}
    {%- if '/no_think' in system -%}
        {%- set mode = '/no_think' -%}
    {%- elif '/think' in system -%}
        {%- set mode = '/think' -%}
    {%- endif -%}
    {%- set custom = system.replace('/no_think', '').replace('/think', '').rstrip() -%}
{%- endif -%}
{{- '<|im_start|>system\\n' -}}
{%- if '/system_override' in custom -%}
    {{- custom.replace('/system_override', '').rstrip() ~ '<|im_end|>\\n' -}}
{%- else -%}
    {{- '## Metadata\\n\\nKnowledge Cutoff Date: June 2025\\n' -}}
    {{- 'Today Date: ' ~ strftime_now('%d %B %Y') ~ '\\nReasoning Mode: ' ~ mode ~ '\\n\\n' -}}
    {{- '## Custom Instructions\\n\\n' ~ (custom or 'The text that names the model.') ~ '\\n\\n' -}}
    {%- set json_tools = tools or xml_tools -%}
    {%- if json_tools or python_tools -%}
        {{- '### Tools\\n\\n' -}}
        {%- if json_tools -%}
            {{- 'Functions:\\n<tools>\\n' -}}
            {%- for tool in json_tools[:] -%}
                {{- tool | string ~ '\\n' -}}
            {%- endfor -%}
            {{- '</tools>\\nCall one like this:\\n<tool_call>\\n{...}\\n</tool_call>' -}}
        {%- endif -%}
        {%- if python_tools -%}
            {{- 'Python between <code> and </code>, with:\\n<tools>\\n' -}}
            {%- for tool in python_tools[:] -%}
                {{- tool | string ~ '\\n' -}}
            {%- endfor -%}
            {{- '</tools>' -}}
        {%- endif -%}
        {{- '\\n\\n<|im_end|>\\n' -}}
    {%- endif -%}
{%- endif -%}
{%- for message in messages -%}
    {%- set content = message.content if message.content is string else '' -%}
    {%- if message.role in ['user', 'tool'] -%}
        {{- '<|im_start|>user\\n' ~ content ~ '<|im_end|>\\n' -}}
    {%- elif message.role == 'assistant' -%}
        {%- generation -%}
        {{- '<|im_start|>assistant\\n' -}}
        {{- '<think>\\n\\n</think>\\n' if mode == '/no_think' -}}
        {{- content.lstrip('\\n') ~ '<|im_end|>\\n' -}}
        {%- endgeneration -%}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\\n' ~ ('<think>\\n\\n</think>\\n' if mode == '/no_think' else '') -}}
{%- endif -%}
"""


def trl_templates() -> dict[str, str]:
    folder = resources.files("trl").joinpath("chat_templates")
    files = sorted(folder.iterdir(), key=lambda file: file.name)
    return {file.name: file.read_text() for file in files if file.name.endswith(".jinja")}


def tokenizer_for(templates: list[str]) -> Tokenizer:
    """A tokenizer for which all that looks like a control token in the templates is one."""
    plain = Tokenizer.train(["the user and the assistant\n"] * 9, 320, default_template("Nano"))
    tags = re.compile(
        r"<\|?[\w\"]{2,30}\|>|<\|\w{2,30}>|<｜[^<>\s]{1,40}｜>|</?[a-z_]{2,30}>|\[/?INST\]"
    )
    spelled = sorted({tag for text in templates for tag in tags.findall(text)} - CONTROL.keys())
    parts = json.loads(plain.source)
    for index, tag in enumerate(spelled, plain.vocab_size):
        special = re.fullmatch("</?[a-z_]+>", tag) is None
        token = {**parts["added_tokens"][0], "id": index, "content": tag, "special": special}
        parts["added_tokens"].append(token)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|begin_of_text|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|finetune_right_pad_id|>",
        "clean_up_tokenization_spaces": False,
    }
    return Tokenizer(json.dumps(parts), config, plain.template)
