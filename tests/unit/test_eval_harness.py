"""Tasks of lm-evaluation-harness on an engine of ours, offline, interrupted and gone on with."""

import json
import random

import pytest
from tests.support.eval_data import (
    Saying,
    Watching,
    data_folder,
    fake_engine,
    fake_target,
    rows_hellaswag,
    write,
)

from smollm3.errors import UserError
from smollm3.eval.harness import Wanted, run_tasks
from smollm3.eval.journal import Journal, key_of
from smollm3.eval.local import DataFolder, table
from smollm3.eval.remote import until
from smollm3.eval.results import ITEMS, RESULTS, measures, read_results, write_results
from smollm3.eval.suites import names, suite_of
from smollm3.eval.target import EngineTarget, Prompt, Settings
from smollm3.infer import SamplingParams
from smollm3.infer.blocks import STEP


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return data_folder(tmp_path_factory.mktemp("data"))


def evaluated(target, wanted, out, view=None, settings=None):
    settings = settings or Settings()
    with Journal(
        out / ITEMS, {"model": target.origin(), "settings": settings.to_dict()}
    ) as journal:
        found = run_tasks(target, wanted, settings, journal, view or Watching())
        write_results(out, found, {"model": target.name}, {})
    return found


@pytest.fixture(scope="module")
def whole(tokenizer, data, tmp_path_factory):
    """An evaluation that nobody disturbed: its folder and what was found."""
    out = tmp_path_factory.mktemp("whole")
    wanted = Wanted(["hellaswag", "piqa"], data=data)
    return out, evaluated(fake_target(tokenizer), wanted, out)


def test_a_score_is_what_the_engine_says(whole, tokenizer):
    """Sample by sample: each option's log-probability is the engine's own score of the text."""
    _, found = whole
    engine = fake_engine(tokenizer)
    for sample in found["samples"]["hellaswag"]:
        sums = []
        for (context, continuation), ((said, greedy),) in zip(
            sample["arguments"], sample["resps"], strict=True
        ):
            ids, first = tokenizer.encode(context + continuation), len(tokenizer.encode(context))
            assert said == pytest.approx(sum(engine.score(ids, first)), abs=1e-5)
            assert not greedy or said > -100
            sums.append(said)
        best = max(range(4), key=sums.__getitem__)
        assert sample["acc"] == float(best == sample["target"])
    assert found["n-samples"]["hellaswag"]["effective"] == 5


def test_results_have_the_harness_form_and_intervals(whole):
    out, found = whole
    kept = json.loads((out / RESULTS).read_text())
    assert {"results", "configs", "versions", "n-shot", "n-samples", "config"} <= kept.keys()
    assert kept["results"]["piqa"]["acc,none"] == found["results"]["piqa"]["acc,none"]
    interval = kept["smollm3"]["intervals"]["hellaswag"]["acc,none"]
    assert interval["low"] <= interval["value"] <= interval["high"]
    assert interval["n"] == 5
    lines = (out / "samples_piqa.jsonl").read_text().splitlines()
    assert len(lines) == 4
    assert read_results(out).measure("piqa", "acc").n == 4


@pytest.mark.parametrize("seed", range(3))
def test_killed_and_gone_on_with_gives_the_same_bytes(whole, tokenizer, data, tmp_path, seed):
    """Twice, at random places, once with a line that the kill cut off."""
    out, _ = whole
    rng = random.Random(seed)
    wanted = Wanted(["hellaswag", "piqa"], data=data)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            evaluated(fake_target(tokenizer), wanted, tmp_path, Watching(rng.randint(1, 9)))
        with (tmp_path / ITEMS).open("ab") as file:
            file.write(b'{"key": "00')
    view = Watching()
    evaluated(fake_target(tokenizer), wanted, tmp_path, view)
    assert 0 < view.seen[-1][3] < 28 - 1  # some had been kept
    for name in (RESULTS, "samples_hellaswag.jsonl", "samples_piqa.jsonl"):
        assert (tmp_path / name).read_bytes() == (out / name).read_bytes()


def test_nothing_is_made_twice(whole, tokenizer, data):
    out, _ = whole
    view = Watching()
    evaluated(fake_target(tokenizer), Wanted(["hellaswag", "piqa"], data=data), out, view)
    assert all(fresh == 0 for *_, fresh in view.seen)


def test_another_model_or_other_settings_are_refused(whole, tmp_path):
    out, _ = whole
    (tmp_path / ITEMS).write_bytes((out / ITEMS).read_bytes())
    with pytest.raises(UserError, match=r"was made with model .*choose another --out"):
        Journal(tmp_path / ITEMS, {"model": "another", "settings": Settings().to_dict()})
    settings = {**Settings().to_dict(), "seed": 3}
    with pytest.raises(UserError, match=r"was made with settings\.seed 0, now it is 3; choose"):
        origin = json.loads((out / ITEMS).read_text().split("\n")[0])["origin"]
        Journal(tmp_path / ITEMS, {**origin, "settings": settings})
    (tmp_path / "x").write_text("{}\n")
    with pytest.raises(UserError, match="x:1: not of an evaluation"):
        Journal(tmp_path / "x", {})
    (tmp_path / "y").write_bytes((out / ITEMS).read_bytes() + b"[]\n")
    with pytest.raises(UserError, match=r"y:\d+: not of"):
        origin = json.loads((out / ITEMS).read_text().split("\n")[0])["origin"]
        Journal(tmp_path / "y", origin)


def test_a_run_that_made_nothing_binds_nobody(tmp_path):
    """As one that named a task which does not exist."""
    for model in ("one", "another"):
        with Journal(tmp_path / ITEMS, {"model": model}) as journal:
            assert not len(journal)
    with Journal(tmp_path / ITEMS, {"model": "another"}) as journal:
        journal.add("a", 1)
    with pytest.raises(UserError, match="was made with model 'another', now it is 'one'"):
        Journal(tmp_path / ITEMS, {"model": "one"})


def test_options_share_the_context(tokenizer, tmp_path):
    """The question is computed once for its four endings, but for its last few tokens."""
    target = fake_target(tokenizer)
    rows = rows_hellaswag(words=12)
    write(tmp_path / "hellaswag/validation.jsonl.gz", rows)
    evaluated(target, Wanted(["hellaswag"], data=tmp_path), tmp_path)
    saved = total = 0
    for row in rows:
        context = f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}"
        options = set(row["endings"])  # equal ones are one request
        total += sum(len(tokenizer.encode(f"{context} {option}")) - 1 for option in options)
        saved += (len(options) - 1) * ((len(tokenizer.encode(context)) - 1) // STEP) * STEP
    assert 0 < target.engine.stats().prefill_tokens <= total - saved < total


def test_a_generated_answer_ends_at_the_tasks_stops(tokenizer, data, tmp_path):
    wanted = Wanted(["gsm8k"], data=data, few_shot=0, limit=3)
    settings = Settings(max_tokens=20)
    target = fake_target(tokenizer, settings)
    found = evaluated(target, wanted, tmp_path, settings=settings)
    assert found["smollm3"]["answers"] == 3
    for sample in found["samples"]["gsm8k"]:
        prompt = f"Question: {sample['doc']['question']}\nAnswer:"
        expected = target.engine.generate([prompt], SamplingParams(temperature=0, max_tokens=20))
        assert sample["resps"][0][0] == until(expected[0].text, ["Question:", "</s>", "<|im_end|>"])


def test_examples_that_are_not_there_are_an_error(tokenizer, data, tmp_path):
    with pytest.raises(UserError, match=r"has not the train split of openai/gsm8k.*5 examples"):
        evaluated(fake_target(tokenizer), Wanted(["gsm8k"], data=data), tmp_path)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (
            "winogrande",
            r"winogrande/validation\.jsonl: no such file; .*datasets/allenai/winogrande",
        ),
        ("hellaswagg", "hellaswagg: no such task; did you mean hellaswag"),
        ("humaneval", "would run the model's code.*humaneval_plus_sandbox"),
        ("bfcl", "bfcl: is of chats.*--chat"),
        ("ruler_vt", "ruler vt: 64 tokens are too few"),
    ],
)
def test_what_cannot_run_is_one_line(tokenizer, data, tmp_path, task, message):
    with pytest.raises(UserError, match=message):
        evaluated(fake_target(tokenizer), Wanted([task], data=data, lengths=[64]), tmp_path)


def test_ifeval_without_the_words_of_nltk_is_one_line_before_anything_is_asked(
    tokenizer, tmp_path, monkeypatch
):
    import nltk

    def nowhere(*_):
        raise LookupError

    monkeypatch.setattr(nltk.data, "find", nowhere)
    monkeypatch.setattr(nltk, "download", lambda *_: False)
    row = {
        "key": 1,
        "prompt": "the",
        "instruction_id_list": ["punctuation:no_comma"],
        "kwargs": [{}],
    }
    write(tmp_path / "ifeval/input_data.jsonl", [row])
    with pytest.raises(UserError, match=r"ifeval: needs punkt_tab of nltk; .*nltk.downloader"):
        evaluated(fake_target(tokenizer), Wanted(["ifeval"], data=tmp_path), tmp_path)
    assert len((tmp_path / ITEMS).read_text().splitlines()) == 1  # no item


def test_ruler_runs_in_the_harness(tokenizer, tmp_path):
    """Its prompts are longer than a small model's context: asked of one that says it is longer."""

    class Long(EngineTarget):
        context = 4096

    target = Long(fake_engine(tokenizer), "fake", Settings())
    wanted = Wanted(["ruler_niah_multikey_2"], limit=2, lengths=[700])
    found = evaluated(target, wanted, tmp_path)
    name = "ruler_niah_multikey_2_700"
    assert found["results"][name]["score,none"] == 0.0
    assert all(0.97 * 700 <= s["doc"]["tokens"] <= 700 for s in found["samples"][name])
    assert (tmp_path / f"samples_{name}.jsonl").read_text().count("\n") == 2


def test_data_that_is_damaged_names_file_and_line(tmp_path):
    folder = DataFolder(tmp_path)
    write(tmp_path / "piqa/validation.jsonl.gz", [{"goal": "a\u2028b"}])
    assert folder.load("baber/piqa", None) == {"validation": [{"goal": "a\u2028b"}]}
    assert folder.load("who/knows", None) is None
    for content, said in (
        (b'{"a": 1}\n{"a"', r"validation\.jsonl:2: not valid JSON"),
        (b"[]\n", r"validation\.jsonl:1: must be a JSON object"),
        (b"\xff\n", "not UTF-8"),
    ):
        other = tmp_path / said[-8:]
        (other / "winogrande").mkdir(parents=True)
        (other / "winogrande/validation.jsonl").write_bytes(content)
        with pytest.raises(UserError, match=said):
            DataFolder(other).load("allenai/winogrande", "winogrande_xl")
    (tmp_path / "hellaswag").mkdir()
    (tmp_path / "hellaswag/validation.jsonl.gz").write_bytes(b"no gzip")
    with pytest.raises(UserError, match="cannot be read"):
        folder.load("Rowan/hellaswag", None)


def test_other_forms_of_data(tmp_path):
    (tmp_path / "mgsm").mkdir()
    (tmp_path / "mgsm/mgsm_de.tsv").write_text('Wie "viele"?\t1,234\n')
    rows = DataFolder(tmp_path).load("juletxara/mgsm", "de")["test"]
    assert rows[0]["question"] == 'Wie "viele"?'
    assert rows[0]["answer_number"] == 1234
    article = {
        "paragraphs": [
            {
                "context": "c",
                "qas": [
                    {"id": "1", "question": "q", "answers": [{"text": "a", "answer_start": 0}]}
                ],
            }
        ]
    }
    write(tmp_path / "xquad/xquad.de.json.gz", [{"data": [article]}])
    rows = DataFolder(tmp_path).load("google/xquad", "xquad.de")["validation"]
    assert rows[0]["answers"] == {"text": ["a"], "answer_start": [0]}
    write(tmp_path / "mmlu/test.jsonl.gz", [{"subject": s, "question": s} for s in ("law", "art")])
    folder = DataFolder(tmp_path)
    assert [r["subject"] for r in folder.load("cais/mmlu", "art")["test"]] == ["art"]
    assert len(folder.load("cais/mmlu", "all")["test"]) == 2


def test_a_pair_is_cut_as_the_harness_cuts_it(tokenizer):
    from lm_eval.api.model import TemplateLM

    class Theirs(TemplateLM):
        eot_token_id = tokenizer.end_of_text_id

        def tok_encode(self, string, add_special_tokens=None, **_):
            return tokenizer.encode(string)

        _loglikelihood_tokens = loglikelihood_rolling = generate_until = None

    theirs, target = Theirs(), fake_target(tokenizer)
    for context, continuation in (
        ("the model", " answers"),
        ("the  ", "that"),
        ("été\n", "日本"),
        ("a", "nswers"),
    ):
        assert target.pair(Prompt(context), continuation) == theirs._encode_pair(
            context, continuation
        )
    end = tokenizer.encode_markup(tokenizer.named["eos_token"])
    assert target.pair(Prompt(""), "the") == (end, tokenizer.encode("the"))


def test_in_a_chat_the_blanks_before_an_option_are_scored_with_it(tokenizer):
    """The template ends with a line's end, which the harness takes off the context."""
    target = fake_target(tokenizer, Settings(chat=True))
    prompt = Prompt(messages=({"role": "user", "content": "the"},))
    context, rest = target.pair(prompt, "model")
    whole = target.conversation(prompt).ids(tokenizer)
    assert [*context, *tokenizer.encode("\n")] == whole
    assert rest == tokenizer.encode("\nmodel")


def test_a_suite_may_put_a_blank_before_the_options_of_a_chat(tokenizer, data, tmp_path):
    """As lighteval does, and with it the cards of SmolLM2; normalised by the option without it."""
    settings = Settings(chat=True, option_prefix=" ")
    target = fake_target(tokenizer, settings)
    wanted = Wanted(["piqa"], few_shot=0, data=data)
    found = evaluated(target, wanted, tmp_path, settings=settings)
    for sample in found["samples"]["piqa"]:
        sums = []
        for (said, option), ((score, _),) in zip(sample["arguments"], sample["resps"], strict=True):
            prompt = Prompt(messages=tuple(json.loads(said)["messages"]))
            assert score == target.score(prompt, f" {option}").result()[0]
            assert score != target.score(prompt, option).result()[0]
            sums.append(score / len(option))
        best = max(range(2), key=sums.__getitem__)
        assert sample["acc_norm"] == float(best == sample["target"])
    assert suite_of("smollm2-card").settings == settings


def test_a_column_that_some_rows_have_is_null_in_the_others(tokenizer, tmp_path):
    options = {f"option_{letter}": letter for letter in "abcd"}
    rows = [{"id": "1", "instruction": "the", "answer": "A", **options}]
    rows.append({**rows[0], "option_e": "e", "answer": "E"})
    write(tmp_path / "okapi/m_arc_de_test.jsonl.gz", rows)
    found = evaluated(fake_target(tokenizer), Wanted(["arc_de"], data=tmp_path), tmp_path)
    samples = found["samples"]["arc_de"]
    assert [(len(s["arguments"]), s["target"]) for s in samples] == [(4, 0), (5, 4)]


def test_a_long_text_is_read_in_windows_that_take_each_token_once(tokenizer):
    target = fake_target(tokenizer)
    text = "the model that answers the question " * 50
    ids = [tokenizer.stop_ids[0], *tokenizer.encode(text)]
    context = target.engine.config.context
    assert len(ids) > 2 * context
    expected = 0.0
    for start in range(0, len(ids) - 1, context):
        part = ids[start + 1 : start + context + 1]
        before = ids[: start + 1][-(context + 1 - len(part)) :]
        expected += sum(target.engine.score([*before, *part], len(before)))
    assert target.score_all(text).result() == pytest.approx(expected, abs=1e-3)


def test_too_long_prompts_lose_their_beginning_and_are_counted(tokenizer):
    target = fake_target(tokenizer)
    context = target.engine.config.context
    long = ("the model answers " * context).rstrip()
    said, _ = target.score(Prompt(long), " the question").result()
    ids = tokenizer.encode(long + " the question")[-context - 1 :]  # the last is not read
    rest = len(tokenizer.encode(" the question"))
    assert said == pytest.approx(sum(target.engine.score(ids, len(ids) - rest)), abs=1e-4)
    assert target.cut == 1


def test_settings_of_chats_need_a_chat():
    for wrong in ({"think": True}, {"system": "x"}, {"thinking_budget": 3}):
        with pytest.raises(UserError, match="--chat"):
            Settings(**wrong)


def test_suites_name_tasks_that_exist():
    from smollm3.eval.apart import NAMES
    from smollm3.eval.harness import all_names
    from smollm3.eval.ruler.harness import is_ruler

    there = set(all_names())
    for name in names():
        for row in suite_of(name).rows:
            assert row.task in there or is_ruler(row.task) or row.task in NAMES, row
            assert row.same or row.why
    with pytest.raises(UserError, match="not one of base, instruct"):
        suite_of("bas")
    assert all(len(entry) >= 1 for entry in table().values())


def test_intervals_of_means_and_of_what_is_no_mean():
    found = {
        "results": {
            "t": {"acc,none": 0.5, "f1,none": 0.25, "bleu,none": 7.0, "bleu_stderr,none": 1.0}
        },
        "samples": {
            "t": [{"filter": "none", "acc": a, "f1": f} for a, f in ((1.0, 0.5), (0.0, 0.0))]
        },
    }
    found = measures(found)["t"]
    assert found["acc,none"].low > 0
    assert found["acc,none"].n == 2
    assert found["f1,none"].value == 0.25
    assert found["bleu,none"].high == pytest.approx(8.96, abs=0.01)


def test_keys_tell_items_apart():
    assert key_of("score", "a", "b") != key_of("score", "ab", "") != key_of("answer", "a", "b")


PASSAGES = [{"title": t, "paragraph_text": f"{t} was a model."} for t in ("Ann", "Bob")]
MADE = {
    "global_mmlu/fr.jsonl.gz": [
        {"question": "q ", "option_a": "a", "option_b": "b", "option_c": "c", "option_d": "d",
         "answer": letter}
        for letter in "BD"
    ],
    "flores/dev.jsonl.gz": [
        {"sentence_eng_Latn": f"the model {i}", "sentence_zho_Hans": f"日本 {i}"} for i in range(6)
    ],
    "flores/devtest.jsonl.gz": [{"sentence_eng_Latn": "the", "sentence_zho_Hans": "日本"}],
    "hotpotqa/dev_distractor_first100.jsonl.gz": [
        {"question": "Who?", "answer": "yes",
         "context": {"title": ["Ann", "Bob"], "sentences": [["Ann", " was."], ["Bob."]]}}
    ],
    "musique/validation.jsonl.gz": [
        {"question": "Who?", "answer": "Bob", "answer_aliases": ["Robert"], "paragraphs": PASSAGES,
         "answerable": answerable}
        for answerable in (True, False)
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("task", "metric", "right", "prompt"),
    [
        ("flores_en-zh", "chrf", " 日本", "model 3\nChinese sentence:"),
        ("hotpotqa_distractor", "f1", " The yes.", "Ann\nAnn was.\n\nBob\nBob.\n\nAnswer"),
        ("musique_answerable", "f1", " robert", "Bob\nBob was a model.\n\nAnswer the"),
    ],
)
def test_questions_and_translations(tokenizer, tmp_path, task, metric, right, prompt):
    """An oracle has all, who says nothing has none."""
    for name, rows in MADE.items():
        write(tmp_path / name, rows)
    for said, score in ((right, 1.0), ("", 0.0)):
        target = Saying(fake_engine(tokenizer), "fake", Settings(), lambda _, said=said: said)
        found = evaluated(target, Wanted([task], data=tmp_path), tmp_path / f"{score}")
        assert found["results"][task][f"{metric},none"] == pytest.approx(score)
        (sample,) = found["samples"][task]
        assert prompt in sample["arguments"][0][0]
        assert measures(found)[task][f"{metric},none"].n == 1


def test_global_mmlu_by_its_options(tokenizer, tmp_path):
    for name, rows in MADE.items():
        write(tmp_path / name, rows)
    found = evaluated(
        fake_target(tokenizer), Wanted(["global_mmlu_cloze_fr"], data=tmp_path), tmp_path
    )
    samples = found["samples"]["global_mmlu_cloze_fr"]
    assert [s["target"] for s in samples] == [1, 3]
    assert [a for a, *_ in samples[0]["arguments"]] == ["Question : q\nRéponse :"] * 4
    assert [a[1] for a in samples[0]["arguments"]] == [" a", " b", " c", " d"]
