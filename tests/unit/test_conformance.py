"""The conformance kit: its checkpoint, the mistakes it names, what it makes of answers."""

import json
from dataclasses import replace

import pytest
import torch

from smollm3.chat import ToolCall
from smollm3.conformance import (
    Broken,
    ChatAnswer,
    Report,
    ResultRow,
    Target,
    TargetTokens,
    Unsupported,
    check,
    make_kit,
    run,
)
from smollm3.conformance.cases import CASES
from smollm3.conformance.kit import ANSWER, CONFIG, EXPECTED, TOOL, WEIGHTS, reshaped
from smollm3.conformance.mistakes import BOS, MISTAKES, YARN_MISTAKES
from smollm3.conformance.probes import run_probes
from smollm3.conformance.reference import Measured, Reference
from smollm3.conformance.result import STYLES
from smollm3.conformance.server import HttpTarget
from smollm3.errors import UserError
from smollm3.infer import Engine, SamplingParams, TorchBackend
from smollm3.model import Transformer, nope_pattern

ALL = [("plain", m) for m in MISTAKES] + [("yarn", m) for m in YARN_MISTAKES]


@pytest.fixture(scope="module")
def kit():
    return make_kit()


@pytest.fixture(scope="module")
def reference(kit):
    return Reference(kit)


def rows_of(target, reference):
    return {row.probe: row for row in run_probes(target, reference)}


# The checkpoint


def test_the_same_kit_every_time(kit, tmp_path):
    kit.write(tmp_path / "a")
    make_kit().write(tmp_path / "b")
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*.*"))
    assert len(files) >= 10
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_weights_are_exact_in_bfloat16_and_tied(kit):
    model = kit.models["plain"]
    for name, weight in model.named_parameters():
        assert torch.equal(weight.bfloat16().float(), weight), name
    for weights in WEIGHTS:
        assert kit.models[weights].unembed.weight is kit.models[weights].embed.weight


def test_scripted_answer_in_every_precision(kit):
    prompt = kit.tokenizer.render([{"role": "user", "content": "Rain?"}], tools=[TOOL]).ids
    exact = kit.models["plain"]
    rounded = Transformer(exact.config)
    rounded.load_state_dict(exact.state_dict())
    # Even a port that is all wrong must give it: chat rows do not depend on the rest.
    no_rope = reshaped(exact, replace(CONFIG, uses_rope=(False,) * CONFIG.layers))
    for model in (exact, rounded.bfloat16(), no_rope):
        ids = list(prompt)
        for _ in ANSWER:
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
        new = ids[len(prompt) :]
        assert kit.tokenizer.decode(new) == "".join(ANSWER)
        assert kit.tokenizer.parse(new) == EXPECTED


def test_scripted_answer_is_the_normal_form(kit):
    """What parsers learn from the template must be what the model writes."""
    chat = [{"role": "user", "content": "Rain?"}]
    whole = kit.tokenizer.render_text([*chat, EXPECTED], tools=[TOOL], add_generation_prompt=False)
    prompt = kit.tokenizer.render_text(chat, tools=[TOOL])
    assert whole.removeprefix(prompt) == "".join(ANSWER) + "\n"


def test_prompts_survive_as_text(kit):
    """Servers that take no ids see the same prompt."""
    for ids in (*kit.short, *kit.long):
        assert kit.tokenizer.encode(kit.tokenizer.decode(ids)) == ids
    assert max(map(len, kit.short)) < 64 < kit.models["yarn"].config.yarn.original_context
    assert all(512 < len(ids) < CONFIG.context for ids in kit.long)
    assert kit.tokenizer.decode([BOS]) == "<|begin_of_text|>"


# Mistakes


@pytest.mark.parametrize(("weights", "mistake"), ALL, ids=lambda x: getattr(x, "name", x))
def test_each_mistake_is_named(reference, weights, mistake):
    prompts = reference.kit.short[:3]
    measured = [Measured(ids, reference.logprobs(weights, ids, mistake)) for ids in prompts]
    assert reference.distance(weights, measured) > 0.2
    found = reference.diagnose(weights, measured, 1e-4)
    assert found.startswith(f"{mistake.name} (off")
    assert mistake.fix in found


def test_named_from_a_few_rounded_numbers(reference, kit):
    """A bfloat16 server that tells the five likeliest tokens after each prompt."""
    rounded = Transformer(CONFIG)
    rounded.load_state_dict(kit.models["plain"].state_dict())
    rounded.bfloat16()

    def told(mistake):
        for ids in kit.short:
            with torch.inference_mode():
                logits = mistake.logits(rounded, torch.tensor([ids]))[0, -1:].float()
            logprobs = logits.log_softmax(-1)
            few = torch.full_like(logprobs, float("nan"))
            few.scatter_(1, logprobs.topk(5).indices, logprobs.topk(5).values)
            yield Measured(ids, few)

    for mistake in MISTAKES[:6]:
        measured = list(told(mistake))
        assert reference.distance("plain", measured) > 0.25
        assert mistake.name in reference.diagnose("plain", measured, 0.25)


def test_another_output_matrix_is_named(reference, kit):
    torch.manual_seed(0)
    head = torch.randn_like(kit.models["plain"].embed.weight)
    untied = reshaped(kit.models["plain"], replace(CONFIG, tied=False), {"unembed.weight": head})
    with torch.inference_mode():
        measured = [
            Measured(ids, untied(torch.tensor([ids]))[0].log_softmax(-1)) for ids in kit.long
        ]
    assert "output matrix" in reference.diagnose("plain", measured, 1e-4)
    noise = [Measured(m.ids, torch.randn_like(m.logprobs)) for m in measured]
    assert reference.diagnose("plain", noise, 1e-4).startswith("none of")


def test_untold_and_broken_numbers_are_infinitely_far(reference, kit):
    ids = kit.short[0]
    nothing = torch.full((1, CONFIG.vocab_size), float("nan"))
    assert reference.distance("plain", [Measured(ids, nothing)]) == float("inf")
    infinite = reference.logprobs("plain", ids).clone()
    infinite[0, 0] = float("inf")
    assert reference.distance("plain", [Measured(ids, infinite)]) == float("inf")


# Targets


class Faithful(Target):
    """Our own model and tokenizer, with places to go wrong."""

    name = "faithful"
    tolerance = 1e-4

    def __init__(self, kit):
        self.kit = kit
        self.closed = False
        self.model = kit.models["plain"]

    def logprobs(self, weights, ids):
        model = self.model if weights == "plain" else self.kit.models["yarn"]
        with torch.inference_mode():
            return model(torch.tensor([ids]))[0].log_softmax(-1)

    def greedy(self, prompts, n):
        engine = Engine(TorchBackend(self.model), self.kit.tokenizer)
        return [c.ids for c in engine.generate(prompts, SamplingParams(0, max_tokens=n))]

    def encode(self, text):
        return TargetTokens(self.kit.tokenizer.encode(text))

    def render(self, case):
        return TargetTokens(self.kit.tokenizer.render(case.messages, **case.options).ids)

    def chat(self, case, stream):
        return ChatAnswer(EXPECTED.content, EXPECTED.reasoning, EXPECTED.tool_calls, "tool_calls")

    def close(self):
        self.closed = True


def test_a_faithful_target_passes(kit):
    seen = []
    target = Faithful(kit)
    report = check(target, kit, seen.append)
    assert {row.status for row in report.rows} == {"pass"}
    assert report.exit_code == 0
    assert seen == report.rows
    assert len({row.probe for row in seen}) == len(seen)
    assert target.closed


def test_a_target_that_does_everything_wrong(kit, reference):
    class Wrong(Faithful):
        def __init__(self, kit):
            super().__init__(kit)
            inverted = tuple(not flag for flag in nope_pattern(8, 4))
            self.model = reshaped(kit.models["plain"], replace(CONFIG, uses_rope=inverted))

        def greedy(self, prompts, n):
            return [[7] * n for _ in prompts]

        def encode(self, text):
            return TargetTokens([BOS, *self.kit.tokenizer.encode(text)])

        def render(self, case):
            text = self.kit.tokenizer.render_text(case.messages, **case.options)
            return TargetTokens(self.kit.tokenizer.encode_markup(text))

        def chat(self, case, stream):
            if stream:
                raise Broken("the stream never ends")
            return ChatAnswer("<tool_call>{}</tool_call>", None, (), "stop")

    rows = rows_of(Wrong(kit), reference)
    for length in ("short", "long"):
        row = rows[f"log-probs: plain, {length} prompts"]
        assert row.status == "fail"
        assert row.measured > 1
        assert row.note.startswith("NoPE pattern inverted")
        assert rows[f"log-probs: yarn, {length} prompts"].status == "pass"
    assert "not the likeliest" in rows["greedy: one at a time"].note
    assert "padding" in rows["greedy: together"].note
    for probe, row in rows.items():
        if probe.startswith("tokenizer"):
            assert "no BOS" in row.note
        if probe.startswith("template"):
            assert row.status == "pass"
        if probe.startswith("forged"):
            assert row.note.startswith("forgeable")
    assert "get_weather" in rows["chat: tool call"].note
    assert rows["chat: content"].note == "<tool_call>, </tool_call> left in it"
    assert rows["chat: finish reason"].note == "'stop' instead of 'tool_calls'"
    assert rows["stream: answer"].note == "the stream never ends"


def test_a_target_that_offers_little_or_raises(kit, reference):
    class Little(Target):
        name = "little"
        tolerance = 1.0

        def render(self, case):
            return TargetTokens(
                count=len(kit.tokenizer.render(case.messages, **case.options).ids) + 1
            )

        def encode(self, text):
            raise RuntimeError("out of ink\nsecond line")

    rows = rows_of(Little(), reference)
    assert rows["log-probs: plain, short prompts"] == ResultRow(
        "log-probs: plain, short prompts", "skip", note="tells no log-probabilities"
    )
    assert rows["template: think"].note.endswith("one too many: a BOS?")
    assert {row.note for probe, row in rows.items() if probe.startswith("tokenizer")} == {
        "raised RuntimeError: out of ink"
    }


@pytest.mark.parametrize(
    ("wrong", "note"),
    [
        (lambda t: t[:, :-1], "511 entries"),
        (lambda t: t[0], "of shape [512]"),
        (lambda t: t[:0], "of shape [0, 512]"),
    ],
)
def test_log_probs_of_a_wrong_shape(kit, reference, wrong, note):
    class Misshapen(Faithful):
        def logprobs(self, weights, ids):
            return wrong(super().logprobs(weights, ids))

        def greedy(self, prompts, n):
            return [[1]] * len(prompts)

    rows = rows_of(Misshapen(kit), reference)
    assert note in rows["log-probs: plain, short prompts"].note
    assert rows["greedy: together"].note == "1 tokens came after 6, not 24"


def test_a_stream_that_differs_is_caught(kit, reference):
    class Halting(Faithful):
        def chat(self, case, stream):
            whole = super().chat(case, stream)
            cut = (ToolCall("get_weather", {}),)
            return replace(whole, tool_calls=cut) if stream else whole

    rows = rows_of(Halting(kit), reference)
    assert rows["chat: tool call"].status == "pass"
    assert rows["stream: tool call"].status == "fail"
    assert rows["stream: equals the whole"].status == "fail"


def test_text_of_a_template_is_compared(kit, reference):
    class Unclosed(Faithful):
        def render(self, case):
            text = kit.tokenizer.render_text(case.messages, **case.options)
            return TargetTokens(text=text.replace("<|im_end|>\n", "\n", 1))

    rows = rows_of(Unclosed(kit), reference)
    assert rows["template: think"].note.startswith("reads '\\n<|im_start|>user")


# Servers


class Scripted(HttpTarget):
    """Answers /v1/completions and /v1/chat/completions with what it is given."""

    def __init__(self, tokenizer, *answers):
        self.answers = list(answers)
        self.asked = []
        super().__init__("http://nowhere/v1", tokenizer)

    def _request(self, path, body=None):
        if path not in ("/v1/completions", "/v1/chat/completions"):
            raise Unsupported(f"{path}: HTTP 404")
        self.asked.append(body)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def told(logprobs):
    return {"choices": [{"logprobs": logprobs}]}


def test_log_probs_in_both_forms_of_servers(kit):
    decode, V = kit.tokenizer.decode, CONFIG.vocab_size
    a, b = kit.short[0][:2]
    texts = {
        "tokens": [decode([a])],
        "token_logprobs": [-0.5],
        "top_logprobs": [{decode([b]): -1.5, "no token": -2.0}],
    }
    ids = {
        "content": [
            {
                "token": "?",
                "id": a,
                "logprob": -0.5,
                "top_logprobs": [{"token": decode([b]), "logprob": -1.5}],
            }
        ]
    }
    for form in (texts, ids):
        server = Scripted(kit.tokenizer, Unsupported("at most 20"), told(form), told(form))
        logprobs = server.logprobs("plain", [1, 2])
        assert logprobs.shape == (1, V)
        assert (logprobs[0, a], logprobs[0, b]) == (-0.5, -1.5)
        assert int(logprobs.isnan().sum()) == V - 2
        assert server.greedy([[1, 2]], 1) == [[a]]
        # What was refused once is not asked again.
        assert [body["logprobs"] for body in server.asked] == [V, 20, 20]


def test_what_servers_do_not_offer(kit):
    refusing = Scripted(kit.tokenizer, *[Unsupported("HTTP 404")] * 3)
    with pytest.raises(Unsupported, match="HTTP 404"):
        refusing.logprobs("plain", [1])
    with pytest.raises(Unsupported, match="one model"):
        refusing.logprobs("yarn", [1])
    with pytest.raises(Unsupported, match="tells no logprobs"):
        Scripted(kit.tokenizer, told(None)).logprobs("plain", [1])
    with pytest.raises(Unsupported, match="prompt_tokens"):
        Scripted(kit.tokenizer, {"choices": []}).encode("text")


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ({}, "no choices"),
        (told({"tokens": ["a"]}), "no known form"),
        (told({"content": [{"id": 3}]}), "no known form"),
        (told({"tokens": ["a"], "token_logprobs": [], "top_logprobs": []}), "no known form"),
    ],
)
def test_answers_in_no_known_form(kit, answer, problem):
    with pytest.raises(Broken, match=problem):
        Scripted(kit.tokenizer, answer).logprobs("plain", [1])


def test_modes_are_asked_for_as_servers_expect(kit):
    server = Scripted(
        kit.tokenizer, {"usage": {"prompt_tokens": 7}}, {"usage": {"prompt_tokens": 7}}
    )
    think, no_think = CASES[:2]
    assert server.render(think) == server.render(no_think) == TargetTokens(count=7)
    assert "chat_template_kwargs" not in server.asked[0]
    assert server.asked[1]["chat_template_kwargs"] == {"enable_thinking": False}


# Reports and names


def test_report():
    rows = [ResultRow("a", "pass", 1e-6, 1e-4), ResultRow("b", "skip", note="not offered")]
    good, bad = Report("x", rows), Report("x", [*rows, ResultRow("c", "fail", note="[bold]")])
    assert (good.exit_code, bad.exit_code) == (0, 1)
    assert Report("x", rows[1:]).exit_code == 1  # nothing was checked
    told = json.loads(json.dumps(bad.to_json()))
    assert [told[status] for status in STYLES] == [1, 1, 1]
    assert told["rows"][0] == {
        "probe": "a",
        "status": "pass",
        "measured": 1e-6,
        "tolerance": 1e-4,
        "note": "",
    }
    assert bad.table().row_count == 3


def test_names_of_mistakes_are_unique():
    for names in ([m.name for m in MISTAKES], [m.name for m in YARN_MISTAKES]):
        assert len(set(names)) == len(names)
    assert {case.enable_thinking for case in CASES} == {True, False}
    assert sum(case.forged for case in CASES) == 4


def test_bad_input_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"lama\.cpp: not a target; give one of ours, .* or a URL"):
        run("lama.cpp")
    with pytest.raises(UserError, match="no server answers"):
        run("http://127.0.0.1:9")
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="holds other files"):
        run("ours", keep=tmp_path)
    with pytest.raises(UserError, match="is a file"):
        run("ours", keep=tmp_path / "thesis.txt")
    assert (tmp_path / "thesis.txt").read_text() == "precious"
