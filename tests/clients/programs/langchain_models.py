"""langchain's models."""

import sys

from langchain_anthropic import ChatAnthropic
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from trying import (
    AGAIN,
    AGAIN_SAID,
    HELLO,
    HELLO_SAID,
    PLACE,
    PLACE_SAID,
    THOUGHT,
    WEATHER,
    WEATHER_SAID,
    Place,
    run,
    same,
    weather,
)

BASE, API = sys.argv[1:3]
tool_of_weather = tool(weather)


def model(**options):
    if API == "anthropic":
        return ChatAnthropic(
            model="tiny", base_url=BASE, api_key="none", max_retries=0, max_tokens=2000, **options
        )
    return ChatOpenAI(
        model="tiny",
        base_url=f"{BASE}/v1",
        api_key="none",
        max_retries=0,
        use_responses_api=API == "responses",
        **options,
    )


def thinking():
    if API == "anthropic":
        return model(thinking={"type": "enabled", "budget_tokens": 1024})
    if API == "responses":
        return model(reasoning={"effort": "high", "summary": "auto"})
    return model(reasoning_effort="high")


def text_of(message):
    return message.text if isinstance(message.text, str) else message.text()


def added(chunks):
    first, *rest = chunks
    for chunk in rest:
        first += chunk
    return first


def chat():
    same(text_of(model().invoke(HELLO)), HELLO_SAID)


def streamed():
    same(text_of(added(model().stream(HELLO))), HELLO_SAID)


def check_tools(ask):
    bound = model().bind_tools([tool_of_weather])
    first = ask(bound, [HumanMessage(WEATHER)])
    [call] = first.tool_calls
    result = ToolMessage(tool_of_weather.invoke(call["args"]), tool_call_id=call["id"])
    same(text_of(ask(bound, [HumanMessage(WEATHER), first, result])), WEATHER_SAID)


def tools():
    check_tools(lambda bound, messages: bound.invoke(messages))


def streamed_tools():
    check_tools(lambda bound, messages: added(bound.stream(messages)))


def structured():
    methods = {"anthropic": ("function_calling", "json_schema")}
    for method in methods.get(API, ("function_calling", "json_schema", "json_mode")):
        found = model().with_structured_output(Place, method=method).invoke(PLACE)
        same(found, PLACE_SAID)


def reasoning():
    answer = thinking().invoke(HELLO)
    same(text_of(answer), HELLO_SAID)
    if API != "chat":  # where the library drops it
        assert THOUGHT in answer.model_dump_json()


def sent_back():
    first = thinking().invoke(HELLO)
    last = thinking().invoke([HumanMessage(HELLO), first, HumanMessage(AGAIN)])
    same(text_of(last), AGAIN_SAID)


def overflow():
    try:
        model().invoke("word " * 400_000)
    except Exception as e:
        names = [kind.__name__ for kind in type(e).__mro__]
        assert "ContextOverflowError" in names, names
        return
    raise AssertionError("no error")


def embeddings():
    found = OpenAIEmbeddings(
        model="tiny", base_url=f"{BASE}/v1", api_key="none", check_embedding_ctx_length=False
    )
    same(len(found.embed_documents([HELLO, PLACE])), 2)


run(globals())
