"""Answers that must follow a schema, an expression, a choice or a grammar."""

import json
import re
from typing import Literal

import jsonschema
import pytest
from conftest import TERSE
from openai import BadRequestError
from pydantic import BaseModel

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "role": {"enum": ["king", "queen", "fool"]},
        "alive": {"type": "boolean"},
        "friends": {"type": "array", "items": {"enum": ["fox", "crow"]}, "maxItems": 3},
    },
    "required": ["name", "age", "role", "alive", "friends"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}}
SAMPLED = dict(temperature=1.5, max_completion_tokens=200, logit_bias=TERSE)


class Person(BaseModel):
    age: Literal[7, 70]
    role: Literal["king", "queen"]


@pytest.mark.parametrize("seed", range(4))
def test_a_schema_is_followed(chat, seed):
    (choice,) = chat(response_format=FORMAT, seed=seed, **SAMPLED).choices
    assert choice.finish_reason == "stop"
    jsonschema.validate(json.loads(choice.message.content), PERSON)


def test_a_schema_is_followed_in_streams(chat):
    fields = dict(response_format=FORMAT, seed=1, **SAMPLED)
    text = "".join(c.choices[0].delta.content or "" for c in chat(stream=True, **fields))
    assert text == chat(**fields).choices[0].message.content
    jsonschema.validate(json.loads(text), PERSON)


def test_pydantic_models_are_parsed(client):
    messages = [{"role": "user", "content": "Who?"}]
    answer = client.chat.completions.parse(
        model="stories", messages=messages, response_format=Person, seed=1, **SAMPLED
    )
    person = answer.choices[0].message.parsed
    assert person.age in [7, 70] and person.role in ["king", "queen"]


def test_json_objects(chat, tokenize):
    (close,) = tokenize("}", add_special_tokens=False)
    fields = dict(response_format={"type": "json_object"}, seed=3) | SAMPLED
    (choice,) = chat(**fields | dict(logit_bias=TERSE | {str(close): 15})).choices
    assert choice.finish_reason == "stop"
    assert isinstance(json.loads(choice.message.content), dict)
    assert chat(**fields).choices[0].message.content.lstrip().startswith("{")


def test_text_is_free(chat):
    want = chat().choices[0].message.content
    assert chat(response_format={"type": "text"}).choices[0].message.content == want


EACH_WAY = pytest.mark.parametrize("way", ["guided_{}", "structured_outputs"])


def asked(way, name, value):
    return {"structured_outputs": {name: value}} if "{}" not in way else {way.format(name): value}


@EACH_WAY
def test_regex(complete, way):
    fields = dict(temperature=1.5, seed=1, max_tokens=40)
    text = complete(**asked(way, "regex", "[a-f]{3}-[0-9]{2,4}"), **fields).choices[0].text
    assert re.fullmatch("[a-f]{3}-[0-9]{2,4}", text)


@EACH_WAY
def test_choice(complete, way):
    choices = ["the king", "the queen", "a fool 🙂"]
    fields = asked(way, "choice", choices) | dict(temperature=2, max_tokens=20)
    texts = {complete(**fields, seed=seed).choices[0].text for seed in range(12)}
    assert texts <= set(choices) and len(texts) > 1


@EACH_WAY
def test_json(complete, way):
    fields = dict(temperature=1.5, seed=2, max_tokens=200, logit_bias=TERSE)
    for schema in [PERSON, json.dumps(PERSON)]:
        text = complete(**asked(way, "json", schema), **fields).choices[0].text
        jsonschema.validate(json.loads(text), PERSON)


@EACH_WAY
def test_grammar(complete, way):
    grammar = 'start: animal (" and " animal)~2\nanimal: "fox" | "crow" | "cat"'
    fields = dict(temperature=1.5, seed=1, max_tokens=40)
    text = complete(**asked(way, "grammar", grammar), **fields).choices[0].text
    assert re.fullmatch("(fox|crow|cat)( and (fox|crow|cat)){2}", text)


def test_chats_take_vllms_fields(chat):
    choices = ["yes", "no"]
    for extra in [{"guided_choice": choices}, {"structured_outputs": {"choice": choices}}]:
        assert chat(extra_body=extra).choices[0].message.content in choices


def test_the_token_that_ends_it_comes_by_itself(complete):
    answer = complete(guided_choice=["the king"], max_tokens=20)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("the king", "stop")


def test_each_of_several_answers_follows(complete):
    choices = complete(guided_regex="[0-9]{4}", n=4, temperature=2, seed=1).choices
    assert all(re.fullmatch("[0-9]{4}", choice.text) for choice in choices)
    assert len({choice.text for choice in choices}) > 1


@pytest.mark.parametrize(
    "fields, param",
    [
        ({"guided_regex": "("}, "guided_regex"),
        ({"guided_grammar": "start: ("}, "guided_grammar"),
        ({"guided_json": {"type": "nothing"}}, "guided_json"),
        ({"guided_json": "{"}, "guided_json"),
        ({"guided_choice": []}, "guided_choice"),
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "("}}, "structured_outputs.regex"),
        ({"guided_regex": "a", "guided_choice": ["b"]}, "guided_choice"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ],
)
def test_what_cannot_be_followed_is_refused_by_name(complete, fields, param):
    with pytest.raises(BadRequestError) as refused:
        complete(**fields)
    assert refused.value.param == param
