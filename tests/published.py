"""A chat template with the rules of the published one, in other words, to test against.

Kept are its blocks, their order, and its faults: a system block without tools is never closed,
tools are printed as Python prints dicts, `tool_calls` and reasoning in the history are passed over,
an empty thought is put even in front of another one, and contents in parts are dropped.
"""

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
