"""`/v1/embeddings`, on the encoder; and routes that a model does not serve."""

import base64
import struct

import pytest
from conftest import ENCODER, ENCODER_URL, URL, brolly
from openai import BadRequestError

TEXTS = ["hello world", "the cat sleeps.", ""]
SIZE = 52


def embed(encoder, input, **fields):
    return encoder.embeddings.create(model="encoder", input=input, **fields)


def rounded(vector):
    """The 32-bit floats that numbers of either spelling stand for."""
    return struct.pack(f"<{SIZE}f", *vector)


@pytest.fixture(scope="session")
def want():
    flags = [flag for text in TEXTS for flag in ["--text", text]]
    vectors = brolly("embed", ENCODER, *flags)["embeddings"]
    return [rounded(vector) for vector in vectors]


def test_vectors_are_what_embed_says(encoder, want):
    answer = embed(encoder, TEXTS, encoding_format="float")
    assert answer.object == "list" and answer.model == "encoder"
    assert [item.index for item in answer.data] == [0, 1, 2]
    assert [rounded(item.embedding) for item in answer.data] == want


def test_alone_is_the_same_as_among_others(encoder, want):
    (item,) = embed(encoder, TEXTS[1], encoding_format="float").data
    assert rounded(item.embedding) == want[1]


def test_base64_holds_the_same_numbers(encoder, want):
    (item,) = embed(encoder, TEXTS[0], encoding_format="base64").data
    assert base64.b64decode(item.embedding) == want[0]


def test_the_clients_own_default_is_read(encoder, want):
    assert rounded(embed(encoder, TEXTS[0]).data[0].embedding) == want[0]


def test_token_ids(encoder, want, ask):
    ids = [ask("/tokenize", {"prompt": text}, url=ENCODER_URL)[2]["tokens"] for text in TEXTS]
    assert [ids[0][0], ids[0][-1]] == [2, 3]
    answer = embed(encoder, ids, encoding_format="float")
    assert [rounded(item.embedding) for item in answer.data] == want
    (item,) = embed(encoder, ids[1], encoding_format="float").data
    assert rounded(item.embedding) == want[1]


def test_usage_counts_tokens(encoder):
    usage = embed(encoder, ["ab", "c"]).usage
    assert usage.prompt_tokens == usage.total_tokens == (2 + 2) + (1 + 2)


def test_the_models_own_dimensions_are_taken_and_no_others(encoder, want):
    (item,) = embed(encoder, TEXTS[0], dimensions=SIZE, encoding_format="float").data
    assert rounded(item.embedding) == want[0]
    with pytest.raises(BadRequestError) as refused:
        embed(encoder, TEXTS[0], dimensions=SIZE // 2)
    assert refused.value.param == "dimensions"


@pytest.mark.parametrize(
    "fields, param",
    [
        (dict(input=[]), "input"),
        (dict(input=[[]]), "input"),
        (dict(input=[5000]), "input"),
        (dict(input="a", encoding_format="hex"), "encoding_format"),
        (dict(input="a", extra_body={"bogus": 1}), "bogus"),
    ],
)
def test_wrong_fields_are_refused_by_name(encoder, fields, param):
    with pytest.raises(BadRequestError) as refused:
        embed(encoder, **fields)
    assert (refused.value.param or "").startswith(param)


def test_a_language_model_embeds_nothing(client):
    with pytest.raises(BadRequestError):
        client.embeddings.create(model="stories", input="a")


def test_an_encoder_writes_nothing(encoder):
    with pytest.raises(BadRequestError):
        encoder.completions.create(model="encoder", prompt="a")
    with pytest.raises(BadRequestError):
        messages = [{"role": "user", "content": "a"}]
        encoder.chat.completions.create(model="encoder", messages=messages)


def test_each_serves_its_own_model(client, encoder):
    assert URL != ENCODER_URL
    names = [[model.id for model in c.models.list()] for c in (client, encoder)]
    assert names == [["stories"], ["encoder"]]
