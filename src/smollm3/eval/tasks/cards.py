"""Texts as the SmolLM2 cards' evaluation cleans them (lighteval 0.6's prompts)."""

import re
from typing import Any


def _clean(text: str) -> str:
    """HellaSwag's leftovers of its sources: [title] ends a sentence, other marks go."""
    return re.sub(r"\[.*?\]", "", text.replace(" [title]", ". ")).replace("  ", " ")


def hellaswag_text(doc: dict[str, Any]) -> str:
    return _clean(f"{doc['activity_label']}: {doc['ctx_a']} {doc['ctx_b'].capitalize()} ")


def hellaswag_choices(doc: dict[str, Any]) -> list[str]:
    return [_clean(ending) for ending in doc["endings"]]


def subject(doc: dict[str, Any]) -> str:
    question = doc["question"].strip()
    name = doc["subject"].replace("_", " ")
    return f"The following are questions about {name}.\nQuestion: {question}\nAnswer:"


def category(doc: dict[str, Any]) -> str:
    question = doc["question"].strip()
    return f"The following are questions about {doc['category']}.\nQuestion: {question}\nAnswer:"


def category_with_options(doc: dict[str, Any]) -> str:
    options = zip(letters(doc), doc["options"], strict=True)
    question, answer = category(doc).rsplit("\n", 1)
    return "\n".join([question, *(f"{letter}. {option}" for letter, option in options), answer])


def letters(doc: dict[str, Any]) -> list[str]:
    """A, B, ...: up to ten options."""
    return [chr(ord("A") + i) for i in range(len(doc["options"]))]


def winogrande_text(doc: dict[str, Any]) -> str:
    return str(doc["sentence"]).split("_")[0].strip()


def winogrande_choices(doc: dict[str, Any]) -> list[str]:
    rest = doc["sentence"].split("_")[1]
    return [f"{doc['option1']}{rest}", f"{doc['option2']}{rest}"]
