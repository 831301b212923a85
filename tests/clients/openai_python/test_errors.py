"""Refusals: the client's typed exceptions, and the field at fault by name."""

import json
import urllib.error
import urllib.request

import pytest
from conftest import KEY, MODEL, PROMPT, URL, options
from openai import APIStatusError, AuthenticationError, BadRequestError, NotFoundError, OpenAI

OUT_OF_RANGE = [
    ("temperature", [-0.1, 2.1, "warm", True]),
    ("top_p", [0, -1, 1.1]),
    ("min_p", [-0.1, 1.1]),
    ("top_k", [-2, 1.5]),
    ("presence_penalty", [-2.1, 2.1]),
    ("frequency_penalty", [-2.1, 2.1]),
    ("repetition_penalty", [0, -1]),
    ("logit_bias", [{"5": 101}, {"5": -101}, {"9999999": 1}, {"x": 1}, [1]]),
    ("n", [0, -1, 129, 1.5, "2"]),
    ("seed", ["x", 1.5]),
    ("stop", ["", [""], 5]),
    ("stop_token_ids", [[-1], [99999], "x"]),
    ("min_tokens", [-1, 500]),
    ("bad_words", [[""], "x"]),
    ("allowed_token_ids", [[], [99999]]),
    ("prompt_logprobs", [-1, 100000]),
    ("ignore_eos", ["yes", 1]),
    ("priority", ["high", 0.5]),
    ("cache_salt", ["", 5]),
    ("stream", ["yes"]),
    ("stream_options", [{"include_usage": True}, True]),
    ("max_tokens", [-1, "x", 1.5, 100_000]),
    ("bogus", [1]),
]
CASES = [(name, value) for name, values in OUT_OF_RANGE for value in values]


def refusal(ask, path, body):
    status, _, answer = ask(path, body)
    assert status == 400, (status, answer)
    error = answer["error"]
    assert error.keys() >= {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error" and error["message"]
    return error


def names(error, field):
    """Whether the error is about the field, or a part of it: `stop[0]`, `logit_bias.5`."""
    param = error["param"] or ""
    return param == field or param.startswith((f"{field}[", f"{field}."))


@pytest.mark.parametrize("name, value", CASES)
def test_completions_name_the_field(ask, name, value):
    error = refusal(ask, "/v1/completions", {"prompt": PROMPT, "model": MODEL, name: value})
    assert names(error, name) or name == "max_tokens" and names(error, "prompt"), error


@pytest.mark.parametrize("name, value", CASES)
def test_chats_name_the_field(ask, name, value):
    body = {"messages": [{"role": "user", "content": "Hi"}], "model": MODEL, name: value}
    error = refusal(ask, "/v1/chat/completions", body)
    assert names(error, name) or name == "max_tokens" and names(error, "messages"), error


@pytest.mark.parametrize("prompt", [[], [[]], "missing", 5, [99999], ["a", 1], {"a": 1}])
def test_prompts_that_are_none(ask, prompt):
    body = {"model": MODEL} | ({} if prompt == "missing" else {"prompt": prompt})
    assert names(refusal(ask, "/v1/completions", body), "prompt")


@pytest.mark.parametrize(
    "messages",
    [
        [],
        "Hi",
        [{"content": "Hi"}],
        [{"role": "wizard", "content": "Hi"}],
        [{"role": "user"}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
        [{"role": "user", "content": "Hi", "bogus": 1}],
        [{"role": "assistant"}],
        [{"role": "tool", "content": "Hi"}],
    ],
)
def test_messages_that_are_none(ask, messages):
    body = {"model": MODEL, "messages": messages}
    assert names(refusal(ask, "/v1/chat/completions", body), "messages")


def test_top_logprobs_need_logprobs(ask):
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "top_logprobs": 1}
    assert names(refusal(ask, "/v1/chat/completions", body), "top_logprobs")
    error = refusal(ask, "/v1/chat/completions", body | {"logprobs": True, "top_logprobs": 99})
    assert names(error, "top_logprobs")


def test_prompts_that_are_too_long(ask):
    for body in [
        {"prompt": [5] * 513, "max_tokens": 1},
        {"prompt": [5] * 512, "max_tokens": 1},
        {"prompt": [5] * 500, "max_tokens": 13},
    ]:
        error = refusal(ask, "/v1/completions", {"model": MODEL} | body)
        assert error["param"] in ["prompt", "max_tokens"]
        assert error["code"] == "context_length_exceeded"
    assert ask("/v1/completions", {"prompt": [5] * 500, "max_tokens": 12})[0] == 200


def test_a_bad_request_has_its_type(complete):
    with pytest.raises(BadRequestError) as refused:
        complete(temperature=3)
    assert (refused.value.status_code, refused.value.param) == (400, "temperature")


def test_a_wrong_key_has_its_type():
    with pytest.raises(AuthenticationError) as refused:
        OpenAI(**options(key="wrong")).models.list()
    assert refused.value.code == "invalid_api_key"


def test_an_unknown_model_has_its_type(client):
    fields = dict(model="nobody")
    messages = [{"role": "user", "content": "Hi"}]
    for call in [
        lambda: client.completions.create(prompt=PROMPT, **fields),
        lambda: client.chat.completions.create(messages=messages, **fields),
        lambda: client.models.retrieve("nobody"),
    ]:
        with pytest.raises(NotFoundError) as refused:
            call()
        assert refused.value.code == "model_not_found"


def test_an_unknown_route_has_its_type(client):
    with pytest.raises(NotFoundError):
        client.files.list()
    with pytest.raises(NotFoundError):
        client.responses.create(model=MODEL, input="Hi")


@pytest.mark.parametrize("text", ["", "{", "[]", "5", "null", '{"prompt": "a",}', "[" * 100_000])
def test_bodies_that_are_no_json_objects(text):
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
    request = urllib.request.Request(f"{URL}/v1/completions", text.encode(), headers)
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request)
    with refused.value as answer:
        assert answer.code == 400
        assert json.load(answer)["error"]["message"]


def test_bodies_that_are_too_long(client):
    with pytest.raises(APIStatusError) as refused:
        client.completions.create(model=MODEL, prompt="a" * (40 << 20))
    assert refused.value.status_code in [400, 413]
    assert refused.value.body["message"]


def test_an_error_within_a_stream_comes_before_it(complete):
    with pytest.raises(BadRequestError):
        complete(stream=True, temperature=3)
