"""LlamaIndex with a server like OpenAI's."""

import sys

from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.llms.openai_like import OpenAILike
from trying import (
    AGAIN,
    AGAIN_SAID,
    HELLO,
    HELLO_SAID,
    PLACE,
    PLACE_SAID,
    WEATHER,
    WEATHER_SAID,
    Place,
    run,
    same,
    weather,
)

BASE = f"{sys.argv[1]}/v1"
model = OpenAILike(
    "tiny",
    api_base=BASE,
    api_key="none",
    is_chat_model=True,
    is_function_calling_model=True,
    max_retries=0,
    context_window=8192,
    max_tokens=2000,
)
tool = FunctionTool.from_defaults(weather)


def user(text):
    return ChatMessage(role="user", content=text)


def chat():
    same(model.chat([user(HELLO)]).message.content, HELLO_SAID)


def streamed():
    same("".join(part.delta or "" for part in model.stream_chat([user(HELLO)])), HELLO_SAID)


def after(response):
    [call] = model.get_tool_calls_from_response(response)
    told = {"tool_call_id": call.tool_id, "name": call.tool_name}
    result = ChatMessage(role="tool", content=weather(**call.tool_kwargs), additional_kwargs=told)
    return [user(WEATHER), response.message, result]


def tools():
    first = model.chat_with_tools([tool], chat_history=[user(WEATHER)])
    last = model.chat_with_tools([tool], chat_history=after(first))
    same(last.message.content, WEATHER_SAID)


def streamed_tools():
    *_, first = model.stream_chat_with_tools([tool], chat_history=[user(WEATHER)])
    last = model.chat_with_tools([tool], chat_history=after(first))
    same(last.message.content, WEATHER_SAID)


def structured():
    same(model.as_structured_llm(Place).chat([user(PLACE)]).raw, PLACE_SAID)


def sent_back():
    first = model.chat([user(HELLO)]).message
    same(model.chat([user(HELLO), first, user(AGAIN)]).message.content, AGAIN_SAID)


def embeddings():
    found = OpenAILikeEmbedding("tiny", api_base=BASE, api_key="none")
    same(len(found.get_text_embedding_batch([HELLO, PLACE])), 2)


run(globals())
