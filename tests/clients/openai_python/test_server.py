"""What can be known of server and model."""

import jsonschema
import pytest
from conftest import ENCODER_URL, MODEL, PROMPT, URL


def test_models_are_listed(client):
    (model,) = client.models.list().data
    assert (model.id, model.object) == (MODEL, "model")
    assert model.created > 1_700_000_000
    assert model.max_model_len == 512


def test_a_model_is_retrieved(client):
    assert client.models.retrieve(MODEL).id == MODEL


@pytest.mark.parametrize("url", [URL, ENCODER_URL])
def test_health_needs_no_key(ask, url):
    assert ask("/health", url=url, key=None)[0] == 200


@pytest.mark.parametrize(
    "path", ["/", "/version", "/stats", "/metrics", "/openapi.json", "/v1/models", "/tokenize"]
)
def test_every_other_route_needs_one(ask, path):
    status, headers, _ = ask(path, key=None)
    assert status == 401
    assert headers["WWW-Authenticate"]


def test_the_document_of_the_routes_is_openapi(ask):
    status, _, document = ask("/openapi.json")
    assert status == 200
    assert document["openapi"].startswith("3.1.")
    routes = {"/v1/completions", "/v1/chat/completions", "/v1/embeddings", "/v1/models", "/health"}
    assert routes <= document["paths"].keys()
    for path in ["/v1/completions", "/v1/chat/completions", "/v1/embeddings"]:
        body = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]
        jsonschema.Draft202012Validator.check_schema(body["schema"])


def test_metrics_count_tokens_under_vllms_names(complete, metric):
    before = metric("vllm:generation_tokens_total")
    complete(max_tokens=7, ignore_eos=True)
    assert metric("vllm:generation_tokens_total") >= before + 7


def test_text_becomes_tokens_and_text_again(tokenize, detokenize):
    for text in [PROMPT, "äöü 漢字 \n\t 🙂", "<s> </s>"]:
        assert detokenize(tokenize(text, add_special_tokens=False)) == text


def test_a_prompt_begins_with_its_special_token(tokenize):
    assert tokenize(PROMPT) == [0, *tokenize(PROMPT, add_special_tokens=False)]


def test_a_conversation_becomes_tokens_as_the_template_says(ask, detokenize):
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    status, _, answer = ask("/tokenize", {"messages": messages})
    assert status == 200
    text = "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
    assert detokenize(answer["tokens"]) == text + "<|im_start|>assistant\n"
    assert answer["count"] == len(answer["tokens"])


def test_a_wrong_method_is_refused_and_the_right_one_told(ask):
    status, headers, answer = ask("/v1/completions", method="GET")
    assert (status, headers["Allow"]) == (405, "POST")
    assert answer["error"]["message"]
