"""The probes: each asks a target one thing and yields rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import date

from smollm3.conformance.cases import CASES, TEXTS, Case
from smollm3.conformance.kit import ANSWER, EXPECTED, TOOL, WEIGHTS, Kit, Weights
from smollm3.conformance.reference import Measured, Reference
from smollm3.conformance.result import ResultRow
from smollm3.conformance.target import Broken, ChatAnswer, Ids, Target, TargetTokens, Unsupported
from smollm3.tokenizer import Tokenizer

Probe = Callable[[Target, Reference], Iterator[ResultRow]]
NEW_TOKENS = 24


def run_probes(target: Target, reference: Reference) -> Iterator[ResultRow]:
    """Rows of all probes, as they come."""
    for weights in WEIGHTS:
        for length in ("short", "long"):
            yield _logprobs(target, reference, weights, length)
    yield _greedy(target, reference, "one at a time", batch=False)
    yield _greedy(target, reference, "together", batch=True)
    for text in TEXTS:
        yield _encode(target, reference.kit, text)
    for case in CASES:
        yield _render(target, reference.kit, case)
    yield from _chat(target)


def _row(probe: str, check: Callable[[], ResultRow]) -> ResultRow:
    """The row of a check; what the target raises becomes one too."""
    try:
        return check()
    except Unsupported as e:
        return ResultRow(probe, "skip", note=str(e))
    except Broken as e:
        return ResultRow(probe, "fail", note=str(e))
    except Exception as e:  # the target is someone else's program
        reason = (str(e).strip() or "no message").splitlines()[0]
        return ResultRow(probe, "fail", note=f"raised {type(e).__name__}: {reason}")


def _equal(probe: str, problem: str) -> ResultRow:
    return ResultRow(probe, "fail" if problem else "pass", note=problem)


# Numbers


def _logprobs(target: Target, reference: Reference, weights: Weights, length: str) -> ResultRow:
    probe = f"log-probs: {weights}, {length} prompts"
    prompts = reference.kit.short if length == "short" else reference.kit.long

    def check() -> ResultRow:
        measured = [Measured(ids, target.logprobs(weights, ids)) for ids in prompts]
        for m in measured:
            expected = reference.logprobs(weights, m.ids)
            if m.logprobs.ndim != 2 or not 0 < len(m.logprobs) <= len(m.ids):
                raise Broken(f"log-probabilities of shape {list(m.logprobs.shape)}")
            if m.logprobs.shape[1] != expected.shape[1]:
                raise Broken(
                    f"{m.logprobs.shape[1]} entries, the vocabulary has {expected.shape[1]}"
                )
        off = reference.distance(weights, measured)
        right = off <= target.tolerance
        note = "" if right else reference.diagnose(weights, measured, target.tolerance)
        return ResultRow(probe, "pass" if right else "fail", off, target.tolerance, note)

    return _row(probe, check)


def _greedy(target: Target, reference: Reference, how: str, batch: bool) -> ResultRow:
    """Tokens of a decode with a cache: each must be the likeliest after those before it, or as
    good as it."""
    probe = f"greedy: {how}"
    prompts = reference.kit.short

    def check() -> ResultRow:
        rows = (
            target.greedy(prompts, NEW_TOKENS)
            if batch
            else [target.greedy([ids], NEW_TOKENS)[0] for ids in prompts]
        )
        worst, place = 0.0, ""
        for ids, new in zip(prompts, rows, strict=True):
            if len(new) != NEW_TOKENS:
                raise Broken(f"{len(new)} tokens came after {len(ids)}, not {NEW_TOKENS}")
            expected = reference.logprobs("plain", [*ids, *new])
            for i, token in enumerate(new):
                after = expected[len(ids) - 1 + i]
                behind = float(after.max() - after[token])
                if behind > worst:
                    worst, place = behind, f"token {i + 1} after a prompt of {len(ids)}"
        if worst <= target.tolerance:
            return ResultRow(probe, "pass", worst, target.tolerance)
        note = f"{place} is not the likeliest; if the log-probs are right: keys in the cache, or "
        note += "their positions" + (", or padding" if batch else "")
        return ResultRow(probe, "fail", worst, target.tolerance, note)

    return _row(probe, check)


# Tokens


def _encode(target: Target, kit: Kit, text: str) -> ResultRow:
    probe = f"tokenizer: {text[:24]!r}"

    def check() -> ResultRow:
        expected = kit.tokenizer.encode(text)
        return _equal(probe, _compare(target.encode(text), expected, kit.tokenizer))

    return _row(probe, check)


def _compare(got: TargetTokens, expected: Ids, tokenizer: Tokenizer) -> str:
    """What is wrong with the ids (or, where that is all that is told, with their number)."""
    if got.ids is not None:
        if got.ids == expected:
            return ""
        if got.ids[1:] == expected:
            return f"{tokenizer.decode(got.ids[:1])!r} put before it; SmolLM3 has no BOS"
        place = _first_difference(got.ids, expected)
        return (
            f"token {place} is {tokenizer.decode(got.ids[place : place + 1])!r}, "
            f"not {tokenizer.decode(expected[place : place + 1])!r}"
        )
    if got.count == len(expected) + 1:
        return f"{got.count} tokens, one too many: a BOS?"
    return "" if got.count == len(expected) else f"{got.count} tokens, not {len(expected)}"


def _first_difference(a: Sequence[object], b: Sequence[object]) -> int:
    pairs = enumerate(zip(a, b, strict=False))
    return next((i for i, (x, y) in pairs if x != y), min(len(a), len(b)))


def _render(target: Target, kit: Kit, case: Case) -> ResultRow:
    probe = f"{'forged control tokens' if case.forged else 'template'}: {case.name}"

    def check() -> ResultRow:
        got = target.render(case)
        # Our template tells no date unless given one; a server may give today's.
        problems = [_render_problem(got, kit.tokenizer, case, day) for day in (None, date.today())]
        return _equal(probe, "" if "" in problems else problems[0])

    return _row(probe, check)


def _render_problem(got: TargetTokens, tokenizer: Tokenizer, case: Case, day: date | None) -> str:
    text = tokenizer.render_text(case.messages, **case.options, date=day)
    if got.text is not None and got.text != text:
        place = _first_difference(got.text, text)
        return f"reads {got.text[place : place + 40]!r}, not {text[place : place + 40]!r}"
    if got.ids is None and got.count is None:
        return ""
    expected = tokenizer.render(case.messages, **case.options, date=day).ids
    naive = tokenizer.encode_markup(text)
    if case.forged and (got.ids == naive or (got.ids is None and got.count == len(naive))):
        return "forgeable: what someone wrote became control tokens; encode contents as text"
    return _compare(got, expected, tokenizer)


# Answers


def _chat(target: Target) -> Iterator[ResultRow]:
    """The scripted answer: is it understood, and is the stream the same?"""
    case = Case("", ({"role": "user", "content": "Will it rain?"},), (TOOL,))
    names = ("tool call", "reasoning", "content", "finish reason")
    answers: dict[str, ChatAnswer] = {}
    for how in ("chat", "stream"):

        def ask(how: str = how) -> ResultRow:
            answers[how] = target.chat(case, stream=how == "stream")
            return ResultRow(how, "pass")

        asked = _row(how, ask)
        if how not in answers:
            yield replace(asked, probe=f"{how}: answer")
            continue
        for name, problem in zip(names, _answer_problems(answers[how]), strict=True):
            probe = f"{how}: {name}"
            if problem is None:
                yield ResultRow(probe, "skip", note="not told")
            else:
                yield _equal(probe, problem)
    if len(answers) == 2:
        same = answers["chat"] == answers["stream"]
        yield _equal("stream: equals the whole", "" if same else "pieces add up to another answer")


def _answer_problems(answer: ChatAnswer) -> Sequence[str | None]:
    """Of tool call, reasoning, content and finish reason; None is untold."""
    tags = [tag for tag in ANSWER if tag.startswith("<") and tag in answer.content]
    calls, expected = (
        [(call.name, call.arguments) for call in tool_calls]
        for tool_calls in (answer.tool_calls, EXPECTED.tool_calls)
    )
    return (
        _instead(calls, expected),
        _instead((answer.reasoning or "").strip(), EXPECTED.reasoning),
        f"{', '.join(tags)} left in it"
        if tags
        else _instead(answer.content.strip(), EXPECTED.content),
        answer.finish_reason and _instead(answer.finish_reason, "tool_calls"),
    )


def _instead(got: object, expected: object) -> str:
    return "" if got == expected else f"{got!r} instead of {expected!r}"
