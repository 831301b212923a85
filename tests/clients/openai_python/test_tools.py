"""Calls of tools. The model knows of none, so that only a grammar makes it call."""

import json

import jsonschema
import pytest
from conftest import EOS, TERSE
from openai import BadRequestError


def tool(name, **properties):
    schema = {"type": "object", "properties": properties, "additionalProperties": False}
    schema["required"] = list(properties)
    return {"type": "function", "function": {"name": name, "parameters": schema}}


WEATHER = tool("weather", city={"enum": ["Oslo", "Rome"]}, days={"enum": [1, 7]})
CLOCK = tool("clock", zone={"enum": ["UTC", "CET"]})
NAMED = {"type": "function", "function": {"name": "weather"}}
FIELDS = dict(tools=[WEATHER, CLOCK], max_completion_tokens=100, temperature=1, logit_bias=TERSE)
SCHEMAS = {t["function"]["name"]: t["function"]["parameters"] for t in [WEATHER, CLOCK]}


def check(calls):
    for call in calls:
        assert call.type == "function" and call.id
        jsonschema.validate(json.loads(call.function.arguments), SCHEMAS[call.function.name])
    assert len({call.id for call in calls}) == len(calls)


def streamed(stream):
    """Calls put together from deltas, as `(id, name, arguments)` by index, and the last reason."""
    calls, reason = {}, None
    for chunk in stream:
        (choice,) = chunk.choices
        reason = choice.finish_reason or reason
        assert not choice.delta.content
        for part in choice.delta.tool_calls or []:
            id, name, arguments = calls.get(part.index, ("", "", ""))
            new = part.function
            id, name = id + (part.id or ""), name + (new.name or "")
            calls[part.index] = (id, name, arguments + (new.arguments or ""))
    return calls, reason


@pytest.mark.parametrize("seed", range(3))
def test_a_named_tool_is_called(chat, seed):
    fields = FIELDS | dict(tool_choice=NAMED, parallel_tool_calls=False, seed=seed)
    (choice,) = chat(**fields).choices
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    (call,) = choice.message.tool_calls
    assert call.function.name == "weather"
    check([call])


@pytest.mark.parametrize("seed", range(3))
def test_a_required_call_is_made(chat, seed):
    fields = FIELDS | dict(tool_choice="required", parallel_tool_calls=False, seed=seed)
    (choice,) = chat(**fields).choices
    assert choice.finish_reason == "tool_calls"
    (call,) = choice.message.tool_calls
    check([call])


def test_several_calls_may_come_at_once(chat):
    # A line break goes on with a call, the end of the sequence does not.
    bias = TERSE | {"200": -2, str(EOS): -4}
    fields = dict(tools=[CLOCK], tool_choice="required", logit_bias=bias, temperature=1, seed=3)
    for is_parallel in [True, False]:
        counts = set()
        extra = dict(parallel_tool_calls=is_parallel, n=6, max_completion_tokens=250)
        for choice in chat(**fields, **extra).choices:
            calls = choice.message.tool_calls
            check(calls if choice.finish_reason == "tool_calls" else calls[:-1])
            counts.add(len(calls))
        assert max(counts) > 1 if is_parallel else counts == {1}


@pytest.mark.parametrize("choice", [NAMED, "required"])
def test_calls_stream(chat, choice):
    fields = FIELDS | dict(tool_choice=choice, parallel_tool_calls=False, seed=1)
    calls, reason = streamed(chat(stream=True, **fields))
    assert reason == "tool_calls"
    (want,) = chat(**fields).choices[0].message.tool_calls
    ((id, name, arguments),) = calls.values()
    assert id and (name, arguments) == (want.function.name, want.function.arguments)


def test_auto_leaves_the_choice_to_the_model(chat):
    for choice in [{}, {"tool_choice": "auto"}]:
        (answer,) = chat(**FIELDS, **choice).choices
        assert answer.message.content and not answer.message.tool_calls
        assert answer.finish_reason in ["stop", "length"]


def test_none_hides_the_tools(chat):
    extra = {"return_token_ids": True}
    bare = chat(extra_body=extra)
    hidden = chat(tools=[WEATHER], tool_choice="none", extra_body=extra)
    told = chat(tools=[WEATHER], extra_body=extra)
    assert hidden.prompt_token_ids == bare.prompt_token_ids != told.prompt_token_ids


def test_the_template_tells_tools_calls_and_results(client, detokenize):
    call = {"name": "clock", "arguments": '{"zone": "UTC"}'}
    messages = [
        {"role": "user", "content": "What time is it?"},
        {"role": "assistant", "tool_calls": [{"id": "1", "type": "function", "function": call}]},
        {"role": "tool", "tool_call_id": "1", "content": "half past nine"},
    ]
    answer = client.chat.completions.create(
        model="stories",
        messages=messages,
        tools=[CLOCK],
        max_completion_tokens=1,
        extra_body={"return_token_ids": True},
    )
    prompt = detokenize(answer.prompt_token_ids)
    head, _, rest = prompt.partition("</tools>")
    assert '"name": "clock"' in head
    made = '<tool_call>\n{"name": "clock", "arguments": {"zone": "UTC"}}\n</tool_call>'
    assert made in rest
    assert "<|im_start|>tool\nhalf past nine<|im_end|>" in rest


@pytest.mark.parametrize(
    "fields, param",
    [
        (dict(tool_choice="required"), "tool_choice"),
        (dict(tools=[WEATHER], tool_choice="perhaps"), "tool_choice"),
        (dict(tools=[CLOCK], tool_choice=NAMED), "tool_choice"),
        (dict(tools=[CLOCK, CLOCK]), "tools[1].function.name"),
        (dict(tools=[{"type": "function", "function": {}}]), "tools[0].function.name"),
        (dict(tools=[{"type": "custom"}]), "tools[0].type"),
        (dict(functions=[CLOCK["function"]]), "functions"),
    ],
)
def test_what_cannot_be_called_is_refused_by_name(chat, fields, param):
    with pytest.raises(BadRequestError) as refused:
        chat(**fields)
    assert refused.value.param == param
