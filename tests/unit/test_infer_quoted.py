"""Grammars of texts inside of JSON strings: what is spelled there is what the grammar means."""

import json
import random
import re

import pytest

from smollm3.errors import UserError
from smollm3.infer.constrain.library import bytes_vocabulary, compiled
from smollm3.infer.constrain.quoted import quoted, quoted_pattern
from smollm3.infer.constrain.quoted_patterns import Questions

PATCH = r"""
start: begin_patch hunk+ end_patch
begin_patch: "*** Begin Patch" LF
end_patch: "*** End Patch" LF?
hunk: "*** Update File: " filename LF change?
filename: /(.+)/
change: (change_context | change_line)+ eof_line?
change_context: ("@@" | "@@ " /(.+)/) LF
change_line: ("+" | "-" | " ") /(.*)/ LF  // "a comment
eof_line: "*** End of File" LF -> end
%import common.LF
"""
PATCHES = (
    r"\*\*\* Begin Patch\n(\*\*\* Update File: .+\n(((@@|@@ .+)\n|[-+ ].*\n)+(\*\*\* End of File\n)?)?)+"
    r"\*\*\* End Patch\n?"
)
PATCHED = '*** Begin Patch\n*** Update File: a "b"\\c\n@@ \\\n-\told\n+\x01é "/"\n*** End Patch\n'
SQL = r"""
%ignore WS
%import common.WS -> WS
%import common (ESCAPED_STRING, SIGNED_NUMBER)
start: "select"i value ("," value)* ["where" NAME "=" value]
?value: NAME | SIGNED_NUMBER | ESCAPED_STRING
NAME: LETTER (LETTER | "0".."9")*
LETTER: "a".."f"
"""
# A grammar, the pattern in Python's syntax that means the same, and texts that keep to it.
CASES = {
    "patch": (PATCH, PATCHES, [PATCHED]),
    "lines": ("start: (line LF)+\nline: /[^\\n]*/\nLF: \"\\n\"", r"([^\n]*\n)+", ['"\\\n\n\t\n']),
    "several ends": (
        'start: TEXT ENDS "a"\nTEXT: /.*/\nENDS: "\\n"+', r".*\n+a", ['x"\n\na', "\na"],
    ),
    "strings": (
        'start: s (GAP s)*\ns: "\\"" /[^"]*/ "\\""\nGAP: (" " | "\\n")+',
        r'"[^"]*"([ \n]+"[^"]*")*', ['"a\\" \n"\n"'],
    ),
    "any text": ("start: /(.|\\n)*/", r"[\s\S]*", ['\x00\x1f"\\\n\r\té😀']),
    "everything": ("start: /(?s:.)+/", r"[\s\S]+", ["\n\x7f"]),
    "comment": ('start: "a" c "b"\nc: /--[^\\n]*/ "\\n"', r"a--[^\n]*\nb", ['a--"\\\nb']),
    "no letter": (r'start: /[^\W"]\s\D/', r'[^\W"][ \t-\r]\D', ["é\n\\", "_\v\""]),
    "controls": (r"start: /[\x00-\x1f]x\u0009\x{22}?/", r"[\x00-\x1f]x\t\"?", ["\x1fx\t\""]),
    "no case": ('start: "a\\n\\"É"i /(?i)b(?-i)c/', r'(?i:a\n"Éb)c', ['A\n"éBc']),
    "range": ('start: " ".."~" /a|b$/', r"[ -~][ab]", ['"a', "\\b"]),
    "classes": (r"start: /[a\]\\[:digit:]&&[^3]]{1,3}/ /[]\"]/", r"[a\]\\0-24-9]{1,3}[\]\"]", ['a\\9"']),
    "times": ('start: X~2..3 Y{2} [ "]" ]\nX: "\\n"\nY: /\\//', r"\n{2,3}//\]?", ["\n\n//]"]),
    "sql": (
        SQL,
        r"(?i:select)_(V)_(,_(V)_)*(where_[a-f][a-f0-9]*_=_(V)_)?".replace("_", r"[ \t\f\r\n]*").replace(
            "V", r'[a-f][a-f0-9]*|[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?|"([^"\\]|\\.)*"'
        ),
        ['SELECT "a\\"b",\n-1.5e3 , a1 where b = "\t"'],
    ),
    "no character": ('start: /x|"[a&&b]/', r"x", ["x"]),
    "recursive": ('start: "(" start ")" | "\\""', None, ['(("))']),
    "named groups": (r'start: /(?P<a>x)?(?<b>["y]+)/', r'x?["y]+', ['xy""y']),
}  # fmt: skip


def accepts(grammar, text):
    """Whether the text is one of the grammar, in which a byte is a token."""
    told = json.dumps({"grammars": [{"lark_grammar": grammar}]})
    matcher, ids = compiled("grammar", bytes_vocabulary(), told), list(text.encode())
    return matcher.validate_tokens(ids) == len(ids) and (
        matcher.consume_tokens(ids) and matcher.is_accepting()
    )


def spelled(text):
    return json.dumps(text, ensure_ascii=False)[1:-1]


def changed(rng, text):
    """A letter more, less, twice or another one."""
    letters = [*text]
    place = rng.randrange(len(letters) + 1)
    letters[place : place + rng.randrange(3)] = rng.choice(["", '"', "\\", "\n", "a", "\x01", " "])
    return "".join(letters)


@pytest.mark.parametrize("case", CASES)
def test_what_is_spelled_is_what_the_grammar_means(case):
    """And a text that is no spelling, such as a quote by itself, is none of the grammar."""
    grammar, pattern, good = CASES[case]
    told, rng = quoted("grammar", grammar, Questions()), random.Random(case)
    texts = {changed(rng, text) for text in good for _ in range(60)}
    for text in good:
        assert accepts(told, spelled(text)), text
        assert text == spelled(text) or not accepts(told, text), text
    for text in texts if pattern else ():
        assert accepts(told, spelled(text)) == bool(re.fullmatch(pattern, text)), text


@pytest.mark.parametrize(
    ("pattern", "good", "bad"),
    [
        (r'^"(?P<what>[^"]|\\")+"\n?$', ['"a\\"', '"\n"\n'], ['"', '"\n"\n\n']),
        (r".*\n.*end", ['"\n end', "\nendend"], ["\n\nend", "end"]),
        (r"(?:[a\n]|b){1,3}[]\"]?c?", ['a\nb"c'], ["]]"]),
        (r"[^/]+/", ["a\n/"], ["a", "//"]),
    ],
)
def test_a_pattern_is_one_terminal(pattern, good, bad):
    """Whatever is in it, since only the closing quote follows."""
    told = quoted_pattern("pattern", pattern, Questions())
    for text in good:
        assert accepts(told, spelled(text)), text
    for text in bad:
        assert not accepts(told, spelled(text)), text


@pytest.mark.parametrize(
    ("grammar", "what"),
    [
        ('start: X "\\n"\nX: /.*b/', "cannot be told from what follows it"),
        ("start: /a/\n%ignore /#[^\\n]*/", "%ignore: "),
        ("start: A\nA: /a/ & /[a\\n]/", "line 2: '& "),
        ("start: A\nA: ~/a/", "line 2: '~/a/'"),
        ('start: "a"\n| %json {}', "line 2: '%json {}'"),
        ("start: @other", "unknown grammar @other"),
        ("start: <eos>", "<eos>"),
        ('start[stop="b"]: /a/', "="),
        ("start: /(?x)a/", "the flag 'x'"),
        ("start: /(?=a)/", "look-around"),
        ("start: /a", "lexer"),
        ("start: b", "b"),
        ("", "text"),
        ("start: A\n" + "".join(f"A{i or ''}: A{i + 1} A{i + 1}\n" for i in range(17)) + 'A17: "a"', "65536"),
        ("start: a\na: " + " | ".join(f"/[^{chr(0x100 + i)}]b{i}/" for i in range(250)), "too many patterns"),
        ("start: /" + "(" * 70 + '"' + ")" * 70 + "/", "deeper than 64"),
        ("start: /" + "".join(rf"[^\x{{{i:x}}}]" for i in range(0x100, 0x500)) + "/", "too big"),
    ],
)  # fmt: skip
def test_what_cannot_be_held_to_is_one_line(grammar, what):
    with pytest.raises(UserError) as raised:
        quoted("tools: add: format", grammar, Questions())
    assert str(raised.value).startswith("tools: add: format: ")
    assert what in str(raised.value)
    assert "\n" not in str(raised.value)
