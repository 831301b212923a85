"""Server-sent events, other clients at the same time, and clients that go away."""

import asyncio
import time

import pytest
from conftest import PROMPT


def joined(stream):
    chunks = list(stream)
    return "".join(choice.text for chunk in chunks for choice in chunk.choices), chunks


@pytest.mark.parametrize("seed", range(8))
def test_streamed_text_joined_is_the_text(complete, seed):
    fields = dict(temperature=2, seed=seed, max_tokens=48)
    text, chunks = joined(complete(stream=True, **fields))
    answer = complete(**fields)
    assert text == answer.choices[0].text
    assert chunks[-1].choices[0].finish_reason == answer.choices[0].finish_reason
    assert all(chunk.usage is None for chunk in chunks)
    assert len({chunk.id for chunk in chunks}) == 1


def test_stop_texts_are_held_back(complete):
    whole = complete(max_tokens=12).choices[0].text
    for length in range(1, len(whole) - 4, 3):
        stop = whole[length : length + 5]
        text, _ = joined(complete(stream=True, max_tokens=12, stop=stop))
        assert text == whole[: whole.index(stop)]


def test_a_last_chunk_tells_the_usage(complete):
    fields = dict(max_tokens=6, ignore_eos=True)
    options = {"include_usage": True}
    _, chunks = joined(complete(stream=True, stream_options=options, **fields))
    assert chunks[-1].choices == []
    assert all(chunk.usage is None for chunk in chunks[:-1])
    usage, want = chunks[-1].usage, complete(**fields).usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (want.prompt_tokens, 6)


def test_streamed_logprobs_are_the_same(complete):
    fields = dict(logprobs=2, echo=True, max_tokens=6)
    want = complete(**fields).choices[0].logprobs
    _, chunks = joined(complete(stream=True, **fields))
    told = [choice.logprobs for chunk in chunks for choice in chunk.choices if choice.logprobs]
    for name in ["tokens", "token_logprobs", "top_logprobs", "text_offset"]:
        assert [value for each in told for value in getattr(each, name)] == getattr(want, name)


def test_streams_of_several_answers_are_told_apart(complete):
    fields = dict(prompt=[PROMPT, "The king"], n=2, temperature=1, seed=4, max_tokens=12)
    texts = {}
    for chunk in complete(stream=True, **fields):
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + choice.text
    want = {choice.index: choice.text for choice in complete(**fields).choices}
    assert texts == want


def test_answers_are_the_same_among_others(async_client, complete):
    fields = dict(model="stories", prompt=PROMPT, max_tokens=24, temperature=1)

    async def together():
        async with async_client:
            calls = (async_client.completions.create(seed=s, **fields) for s in range(16))
            return await asyncio.gather(*calls)

    texts = [answer.choices[0].text for answer in asyncio.run(together())]
    alone = [complete(seed=s, max_tokens=24, temperature=1).choices[0].text for s in range(16)]
    assert texts == alone


def test_an_asynchronous_chat_streams(async_client, chat):
    message = {"role": "user", "content": "Tell me of a king."}
    fields = dict(model="stories", messages=[message], max_completion_tokens=16, temperature=0)

    async def text():
        async with async_client:
            stream = await async_client.chat.completions.create(stream=True, **fields)
            return "".join([c.choices[0].delta.content or "" async for c in stream])

    assert asyncio.run(text()) == chat().choices[0].message.content


@pytest.mark.parametrize("count", [1, 8])
def test_a_client_that_goes_away_frees_its_place(complete, metric, count):
    streams = [complete(stream=True, max_tokens=480, ignore_eos=True) for _ in range(count)]
    for stream in streams:
        next(iter(stream))
        stream.close()
    until = time.monotonic() + 10
    while metric("vllm:num_requests_running") + metric("vllm:num_requests_waiting") > 0:
        assert time.monotonic() < until, "the requests go on"
        time.sleep(0.05)
    assert complete(max_tokens=4).choices[0].text
