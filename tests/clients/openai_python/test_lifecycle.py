"""Servers of their own: the queue, the end, and the flags that change what others see."""

import os
import re
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request

import pytest
from conftest import ARTIFACT, KEY, PROMPT, options
from openai import APIConnectionError, InternalServerError, OpenAI, RateLimitError

LONG = dict(model="stories", prompt=PROMPT, max_tokens=490, temperature=0)
LONG["extra_body"] = {"ignore_eos": True}


class Serve:
    def __init__(self, *flags):
        command = [os.environ["BROLLY"], "serve", ARTIFACT, "--port", "0", *flags]
        env = os.environ | {"BROLLY_API_KEY": KEY}
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env)
        for line in self.process.stderr:
            if found := re.match(r"serving at (http://\S+)", line):
                self.url = found[1]
                return
        raise AssertionError(f"{command} ended with {self.process.wait()}")

    def client(self):
        return OpenAI(**options(self.url))


@pytest.fixture
def serve():
    servers = []

    def serve(*flags):
        servers.append(Serve(*flags))
        return servers[-1]

    yield serve
    for server in servers:
        server.process.kill()
        server.process.wait()
        server.process.stderr.close()


def health(server):
    """The status of `/health`, or `None` where nobody listens."""
    try:
        return urllib.request.urlopen(f"{server.url}/health", timeout=10).status
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    except OSError:
        return None


def begin(server):
    """A long answer that has begun."""
    stream = server.client().completions.create(stream=True, **LONG)
    next(iter(stream))
    return stream


def test_a_full_queue_says_when_to_come_back(serve):
    server = serve("--max-num-seqs", "1", "--max-queue", "1")
    refused = []

    def call():
        try:
            server.client().completions.create(**LONG)
        except RateLimitError as error:
            refused.append(error)

    threads = [threading.Thread(target=call) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 1 <= len(refused) <= 5
    for error in refused:
        assert int(error.response.headers["retry-after"]) >= 1
        assert error.body["message"]


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_sigterm_finishes_what_was_accepted(serve, sign):
    server = serve()
    stream = begin(server)
    assert health(server) == 200
    server.process.send_signal(sign)
    time.sleep(0.1)
    with pytest.raises((InternalServerError, APIConnectionError)) as refused:
        server.client().completions.create(**LONG)
    if isinstance(refused.value, InternalServerError):
        assert refused.value.status_code == 503
    assert health(server) != 200
    chunks = list(stream)
    assert chunks[-1].choices[0].finish_reason == "length"
    assert server.process.wait(timeout=30) == 0


def test_other_names_are_answered_to(serve):
    server = serve("--served-model-name", "a", "--served-model-name", "b/c")
    client = server.client()
    assert [model.id for model in client.models.list()] == ["a", "b/c"]
    for name in ["a", "b/c"]:
        answer = client.completions.create(model=name, prompt=PROMPT, max_tokens=1)
        assert answer.model == name
        assert client.models.retrieve(name).id == name


def test_the_model_brings_its_template(serve, complete):
    messages = [{"role": "user", "content": PROMPT}]
    fields = dict(model="stories", temperature=0, max_tokens=20)
    answer = serve().client().chat.completions.create(messages=messages, **fields)
    want = complete(prompt=PROMPT, temperature=0, max_tokens=20)
    assert answer.choices[0].message.content == want.choices[0].text


def test_a_small_cache_changes_no_text(serve, complete):
    server = serve("--kv-cache", "2MiB", "--no-prefix-cache")
    fields = dict(model="stories", max_tokens=100, temperature=1)
    texts = {}

    def call(seed):
        answer = server.client().completions.create(prompt=PROMPT, seed=seed, **fields)
        texts[seed] = answer.choices[0].text

    threads = [threading.Thread(target=call, args=[seed]) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in range(8):
        want = complete(seed=seed, max_tokens=100, temperature=1).choices[0].text
        assert texts[seed] == want
