"""Chat templates: ours, and the sandbox in which any checkpoint's template runs."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Callable
from functools import lru_cache
from importlib import resources
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.runtime
import jinja2.sandbox

from smollm3.errors import UserError

# A template is someone else's code. A million tokens are about 4e6 characters.
MAX_CHARACTERS = 64_000_000
MAX_ITERATIONS = 1_000_000  # of all range() in one rendering together
# Code points for marks and stand-ins: variation selectors. Unlike private-use code points they
# survive repr(), with which the published template prints tools.
SPARE = range(0xE0100, 0xE01F0)
_NOT_ASCII = re.compile(f"[^\x00-\x7f{chr(SPARE[0])}-{chr(SPARE[-1])}]")


def default_template(
    name: str = "an assistant", maker: str | None = None, cutoff: str | None = None
) -> str:
    """Our chat template for a model that says it is `name`, made by `maker`, whose knowledge ends
    at `cutoff`; what is None is not mentioned."""
    identity = {"name": name, "maker": maker, "cutoff": cutoff}
    # Jinja strings read JSON's escapes except surrogate pairs, so other alphabets stay as they are.
    lines = [
        f"{{% set {key} = {'none' if text is None else json.dumps(text, ensure_ascii=False)} %}}\n"
        for key, text in identity.items()
    ]
    body = resources.files(__package__).joinpath("template.jinja").read_text(encoding="utf-8")
    return "".join(lines) + body


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` puts a mark before and after what the model is trained to write.

    The marks are code points chosen for each rendering, found in the variable `generation_marks`.
    """

    tags = {"generation"}  # noqa: RUF012 (jinja2's own declaration)

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("_mark", [jinja2.nodes.ContextReference()])
        return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _mark(self, context: jinja2.runtime.Context, caller: Callable[[], str]) -> str:
        start, end = context["generation_marks"]
        return f"{start}{caller()}{end}"


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter escapes for HTML; chat templates mean plain JSON."""
    text = json.dumps(
        value, ensure_ascii=False, indent=indent, separators=separators, sort_keys=sort_keys
    )
    return _NOT_ASCII.sub(lambda m: json.dumps(m[0])[1:-1], text) if ensure_ascii else text


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    return environment


@lru_cache(maxsize=32)
def _compile(source: str) -> jinja2.Template:
    try:
        return _environment().from_string(source)
    except jinja2.TemplateSyntaxError as e:
        raise UserError(f"chat template, line {e.lineno}: {e.message}") from None


def _bounded_range() -> Callable[..., range]:
    left = MAX_ITERATIONS

    def bounded(*arguments: int) -> range:
        nonlocal left
        result = range(*arguments)
        left -= len(result)
        if left < 0:
            raise jinja2.TemplateError(f"more than {MAX_ITERATIONS:,} iterations")
        return result

    return bounded


def render_template(
    source: str, *, date: datetime.date | None, marks: tuple[str, str], variables: dict[str, Any]
) -> str:
    """The text of the template with these variables, `marks` around its generation blocks.

    A template sees what `transformers` would give it. `date` is what `strftime_now` formats (today
    if None) and, where given, the variable `date` of our template.
    """
    template = _compile(source)
    now = date or datetime.datetime.now()
    if date is not None:
        variables = {**variables, "date": date.strftime("%d %B %Y")}
    chunks, size = [], 0
    try:
        for chunk in template.generate(
            **variables,
            strftime_now=now.strftime,
            range=_bounded_range(),
            generation_marks=marks,
        ):
            chunks.append(chunk)
            size += len(chunk)
            if size > MAX_CHARACTERS:
                raise jinja2.TemplateError(f"more than {MAX_CHARACTERS:,} characters")
    except Exception as e:  # a template is a program: it can raise anything
        raise UserError(f"chat template: {e or type(e).__name__}") from None
    return "".join(chunks)
