"""Clients of the servers that `cargo xtask clients` has started, and `brolly` beside them."""

import json
import os
import re
import subprocess
import urllib.error
import urllib.request

import pytest
from openai import AsyncOpenAI, OpenAI

KEY = os.environ["BROLLY_API_KEY"]
URL = os.environ["BROLLY_URL"]
ENCODER_URL = os.environ["BROLLY_ENCODER_URL"]
ARTIFACT = os.environ["BROLLY_ARTIFACT"]
ENCODER = os.environ["BROLLY_ENCODER"]

MODEL = "stories"
PROMPT = "Once upon a time"
EOS = 1
# Against bare "\t", "\n", "\r" and " ", with which the model likes to fill JSON.
TERSE = {"199": -100, "200": -100, "203": -100, "222": -100}


def options(url=URL, key=KEY):
    return dict(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=60)


@pytest.fixture(scope="session")
def client():
    return OpenAI(**options())


@pytest.fixture(scope="session")
def encoder():
    return OpenAI(**options(ENCODER_URL))


@pytest.fixture
def async_client():
    return AsyncOpenAI(**options())


@pytest.fixture(scope="session")
def complete(client):
    """Completes `PROMPT`, greedily unless told otherwise; fields unknown to OpenAI may be given."""
    known = "prompt max_tokens temperature top_p n stop seed logprobs echo logit_bias stream"
    known += " stream_options presence_penalty frequency_penalty user"

    def complete(**fields):
        fields = dict(prompt=PROMPT, max_tokens=16, temperature=0) | fields
        extra = {name: fields.pop(name) for name in list(fields) if name not in known.split()}
        return client.completions.create(model=MODEL, extra_body=extra, **fields)

    return complete


@pytest.fixture(scope="session")
def chat(client):
    """Answers a message, greedily unless told otherwise."""

    def chat(message="Tell me of a king.", **fields):
        messages = [{"role": "user", "content": message}]
        fields = dict(messages=messages, max_completion_tokens=16, temperature=0) | fields
        return client.chat.completions.create(model=MODEL, **fields)

    return chat


@pytest.fixture(scope="session")
def ask():
    """A request without a client: status, headers, and the body, read if it is JSON."""

    def ask(path, body=None, url=URL, key=KEY, method=None):
        headers = {"Content-Type": "application/json"}
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(url + path, data, headers, method=method)
        try:
            answer = urllib.request.urlopen(request, timeout=60)
        except urllib.error.HTTPError as error:
            answer = error
        with answer:
            text = answer.read().decode()
            is_json = answer.headers["Content-Type"] == "application/json"
            return answer.status, answer.headers, json.loads(text) if is_json else text

    return ask


@pytest.fixture(scope="session")
def tokenize(ask):
    """Token ids of a text as a prompt, or of what goes on after one."""

    def tokenize(text, **fields):
        status, _, answer = ask("/tokenize", {"prompt": text} | fields)
        assert status == 200, answer
        return answer["tokens"]

    return tokenize


@pytest.fixture(scope="session")
def detokenize(ask):
    def detokenize(tokens):
        status, _, answer = ask("/detokenize", {"tokens": tokens})
        assert status == 200, answer
        return answer["prompt"]

    return detokenize


@pytest.fixture(scope="session")
def metric(ask):
    """The value of a metric that has one sample."""

    def metric(name):
        text = ask("/metrics")[2]
        (value,) = re.findall(rf"^{re.escape(name)}\{{[^}}]*\}} (\S+)$", text, re.MULTILINE)
        return float(value)

    return metric


def brolly(*args):
    """What a command of `brolly` prints with `--json`."""
    command = [os.environ["BROLLY"], *args, "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def ids(names):
    """The ids that `return_tokens_as_token_ids` calls tokens by."""
    return [int(name.removeprefix("token_id:")) for name in names]
