"""Chat templates: ours, and the environment in which any checkpoint's template is rendered."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from importlib import resources
from typing import Any

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.nodes
import jinja2.parser
import jinja2.runtime
import jinja2.sandbox

from smollm3.errors import UserError

MAX_CHARACTERS = 64_000_000  # in one rendering; a million tokens are about 4e6 characters
# Code points for marks and stand-ins: variation selectors. Unlike private-use code points they
# survive repr(), with which the published template prints tools.
SPARE = range(0xE0100, 0xE01F0)
_HEADER = re.compile(r'(\{% set (name|maker|cutoff) = (none|"([^"\\]|\\.)*") %\}\n){3}', re.DOTALL)
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
    return "".join(lines) + _body()


@cache
def _body() -> str:
    return resources.files(__package__).joinpath("template.jinja").read_text(encoding="utf-8")


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
    except Exception as e:  # nested too deeply for Python, say
        raise UserError(f"chat template: {str(e) or type(e).__name__}") from None


@lru_cache(maxsize=32)
def variables_of(source: str) -> frozenset[str]:
    """The names that a template reads and does not set; none of one that cannot be read."""
    try:
        return frozenset(jinja2.meta.find_undeclared_variables(_environment().parse(source)))
    except Exception:  # as a template is a program, whatever may be wrong with it
        return frozenset()


def is_ours(source: str) -> bool:
    """Whether this is a `default_template`."""
    header = _HEADER.match(source)
    return header is not None and source[header.end() :] == _body()


def render_views(
    source: str,
    *,
    date: str | None,
    marks: Sequence[str],
    variables: dict[str, Any],
    views: Sequence[tuple[int, bool]],
) -> list[str]:
    """The texts of the template for the first n of variables["messages"], with or without a
    generation prompt, for each of the views; `marks` stand around its generation blocks.

    A template sees what `transformers` would give it. date: ISO; what `strftime_now` formats
    (today if None) and, where given, the variable `date` of our template.
    """
    template = _compile(source)
    now = datetime.datetime.fromisoformat(date) if date else datetime.datetime.now()
    variables = {**variables, "strftime_now": now.strftime, "generation_marks": tuple(marks)}
    if date:
        variables["date"] = now.strftime("%d %B %Y")
    left = MAX_CHARACTERS
    texts = []
    for upto, prompt in views:
        chunks = []
        view = {"messages": variables["messages"][:upto], "add_generation_prompt": prompt}
        try:
            for chunk in template.generate(**(variables | view)):
                chunks.append(chunk)
                left -= len(chunk)
                if left < 0:
                    raise jinja2.TemplateError(f"more than {MAX_CHARACTERS:,} characters")
            texts.append("".join(chunks))
        except MemoryError:
            raise
        except Exception as e:  # a template is a program: it can raise anything
            raise UserError(f"chat template: {str(e) or type(e).__name__}") from None
    return texts
