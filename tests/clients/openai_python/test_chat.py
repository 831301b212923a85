"""`/v1/chat/completions`: OpenAI's fields, and how conversations become prompts."""

import pytest
from conftest import ARTIFACT, MODEL, brolly

KING = [{"role": "user", "content": "Tell me of a king."}]


@pytest.fixture(scope="session")
def rendered(client, detokenize):
    """The prompt that the template makes of messages and other fields."""

    def rendered(messages, **fields):
        answer = client.chat.completions.create(
            model=MODEL,
            messages=messages,
            max_completion_tokens=1,
            extra_body={"return_token_ids": True} | fields.pop("extra_body", {}),
            **fields,
        )
        return detokenize(answer.prompt_token_ids)

    return rendered


def test_an_answer_has_openais_shape(chat):
    answer = chat()
    assert (answer.object, answer.model) == ("chat.completion", MODEL)
    assert answer.id.startswith("chatcmpl-")
    (choice,) = answer.choices
    assert (choice.index, choice.finish_reason, choice.logprobs) == (0, "length", None)
    message = choice.message
    assert (message.role, message.refusal, message.tool_calls) == ("assistant", None, None)
    assert message.content
    usage = answer.usage
    assert usage.completion_tokens == 16
    assert usage.total_tokens == usage.prompt_tokens + 16


def test_the_template_makes_the_prompt(rendered):
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": [{"type": "text", "text": "Who are you?"}]},
    ]
    roles = [("system", "Be kind."), ("user", "Hi"), ("assistant", "Hello.")]
    roles.append(("user", "Who are you?"))
    want = "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in roles)
    assert rendered(messages) == want + "<|im_start|>assistant\n"


def test_developers_are_the_system(rendered):
    said = {"content": "Be kind."}
    developer, system = ({"role": role} | said for role in ["developer", "system"])
    assert rendered([developer, *KING]) == rendered([system, *KING])


def test_greedy_is_what_generate_says(chat, ask):
    tokens = ask("/tokenize", {"messages": KING})[2]["tokens"]
    flags = ["--tokens", ",".join(map(str, tokens)), "--max-tokens", "24", "--temperature", "0"]
    want = brolly("generate", ARTIFACT, *flags)
    (choice,) = chat(max_completion_tokens=24, logprobs=True).choices
    assert choice.message.content == want["text"]
    assert [token.logprob for token in choice.logprobs.content] == want["logprobs"]


def test_logprobs_tell_tokens_bytes_and_alternatives(chat):
    (choice,) = chat(logprobs=True, top_logprobs=4).choices
    tokens = choice.logprobs.content
    assert len(tokens) == 16
    told = b"".join(bytes(token.bytes) for token in tokens)
    assert told.decode() == choice.message.content
    for token in tokens:
        tops = [top.logprob for top in token.top_logprobs]
        assert len(tops) == 4 and tops == sorted(tops, reverse=True)
        assert (token.token, token.logprob) == (token.top_logprobs[0].token, tops[0])


@pytest.mark.parametrize("seed", range(4))
def test_streamed_text_joined_is_the_text(chat, seed):
    fields = dict(temperature=2, seed=seed, max_completion_tokens=48)
    chunks = list(chat(stream=True, **fields))
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert deltas[0].role == "assistant"
    want = chat(**fields).choices[0]
    assert "".join(delta.content or "" for delta in deltas) == want.message.content
    reasons = [chunk.choices[0].finish_reason for chunk in chunks]
    assert reasons[-1] == want.finish_reason and not any(reasons[:-1])
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}


def test_a_last_chunk_tells_the_usage(chat):
    *chunks, last = chat(stream=True, stream_options={"include_usage": True})
    assert last.choices == []
    assert all(chunk.usage is None for chunk in chunks)
    assert last.usage.completion_tokens == 16
    assert last.usage.prompt_tokens == chat().usage.prompt_tokens


def test_streamed_logprobs_are_the_same(chat):
    fields = dict(logprobs=True, top_logprobs=2)
    told = []
    for chunk in chat(stream=True, **fields):
        told += (chunk.choices[0].logprobs and chunk.choices[0].logprobs.content) or []
    assert told == chat(**fields).choices[0].logprobs.content


def test_the_stream_helper_puts_the_answer_together(client):
    fields = dict(model=MODEL, messages=KING, temperature=0, max_completion_tokens=16)
    fields["stop"] = client.chat.completions.create(**fields).choices[0].message.content[10:14]
    with client.chat.completions.stream(**fields) as stream:
        text = "".join(event.delta for event in stream if event.type == "content.delta")
        whole = stream.get_final_completion()
    want = client.chat.completions.create(**fields).choices[0].message.content
    assert text == whole.choices[0].message.content == want


def test_stop_ends_the_answer(chat):
    whole = chat().choices[0].message.content
    stop = whole[10:14]
    (choice,) = chat(stop=stop).choices
    assert choice.message.content == whole[: whole.index(stop)]
    assert choice.finish_reason == "stop"


def test_n_answers(chat):
    choices = chat(n=3, temperature=1, seed=1).choices
    assert [choice.index for choice in choices] == [0, 1, 2]
    assert len({choice.message.content for choice in choices}) > 1


def test_n_answers_stream_by_index(chat):
    fields = dict(n=2, temperature=1, seed=1)
    texts = {0: "", 1: ""}
    for chunk in chat(stream=True, **fields):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == {choice.index: choice.message.content for choice in chat(**fields).choices}


def test_the_same_seed_gives_the_same_text(chat):
    fields = dict(temperature=1, max_completion_tokens=24)
    texts = [chat(seed=seed, **fields).choices[0].message.content for seed in [1, 2, 1, 2]]
    assert texts[:2] == texts[2:] and texts[0] != texts[1]


def test_max_tokens_is_the_older_name(client):
    fields = dict(model=MODEL, messages=KING, extra_body={"ignore_eos": True})
    assert client.chat.completions.create(max_tokens=3, **fields).usage.completion_tokens == 3


def test_without_a_bound_the_answer_ends_by_itself_or_with_the_model(client):
    answer = client.chat.completions.create(model=MODEL, messages=KING, temperature=0, seed=1)
    if answer.choices[0].finish_reason == "length":
        assert answer.usage.total_tokens == 512
    else:
        assert answer.choices[0].finish_reason == "stop"


def test_template_variables_are_told(rendered):
    want = rendered(KING) + "Long live the king."
    kwargs = {"chat_template_kwargs": {"motto": "Long live the king."}}
    assert rendered(KING, extra_body=kwargs) == want


def test_without_a_generation_prompt(rendered):
    prompt = rendered(KING, extra_body={"add_generation_prompt": False})
    assert prompt + "<|im_start|>assistant\n" == rendered(KING)


def test_a_final_message_goes_on(rendered):
    messages = [*KING, {"role": "assistant", "content": "Once there was a"}]
    fields = {"continue_final_message": True, "add_generation_prompt": False}
    assert rendered(messages, extra_body=fields) == rendered(KING) + "Once there was a"


def test_a_repeated_conversation_is_cached(chat):
    text = "Tell me of the king who had three daughters and no sons. " * 8
    first, again = (chat(text) for _ in range(2))
    cached = again.usage.prompt_tokens_details.cached_tokens
    assert 0 < cached < again.usage.prompt_tokens
    assert first.choices[0].message == again.choices[0].message


def test_vllms_fields_are_taken(chat):
    want = chat().choices[0].message.content
    extra = dict(top_k=1, min_p=0.1, repetition_penalty=1, priority=1, cache_salt="x")
    assert chat(temperature=2, extra_body=extra).choices[0].message.content == want


def test_ends_are_as_vllms_fields_say(chat):
    eos = dict(logit_bias={"1": 100})
    assert chat(**eos).usage.completion_tokens == 1
    for extra in [{"ignore_eos": True}, {"min_tokens": 16}]:
        assert chat(**eos, extra_body=extra).usage.completion_tokens == 16


def test_tokens_are_as_vllms_fields_say(chat):
    fields = {"return_token_ids": True}
    first = chat(extra_body=fields).choices[0].token_ids
    allowed = chat(extra_body=fields | {"allowed_token_ids": [300, 301]}).choices[0].token_ids
    assert set(allowed) <= {300, 301}
    stopped = chat(extra_body=fields | {"stop_token_ids": [first[3]]}).choices[0]
    assert stopped.finish_reason == "stop" and len(stopped.token_ids) <= 4
    word = chat().choices[0].message.content.split()[0]
    assert word not in chat(extra_body={"bad_words": [word]}).choices[0].message.content


def test_fields_that_change_nothing_are_taken(chat):
    want = chat().choices[0].message.content
    fields = dict(user="u", store=False, metadata={}, service_tier="auto", logit_bias={})
    assert chat(**fields).choices[0].message.content == want


def test_null_is_the_default(ask):
    nulls = "n stop seed logprobs top_logprobs logit_bias stream stream_options user top_p "
    nulls += "presence_penalty frequency_penalty tools tool_choice parallel_tool_calls top_k "
    nulls += "response_format min_p repetition_penalty min_tokens stop_token_ids ignore_eos "
    nulls += "bad_words allowed_token_ids prompt_logprobs guided_json chat_template_kwargs "
    nulls += "add_generation_prompt continue_final_message priority cache_salt max_tokens "
    nulls += "max_completion_tokens reasoning_effort store metadata structured_outputs"
    body = {"model": MODEL, "messages": KING, "temperature": 0}
    _, _, want = ask("/v1/chat/completions", body)
    status, _, answer = ask("/v1/chat/completions", body | dict.fromkeys(nulls.split()))
    assert status == 200, answer
    assert answer["choices"] == want["choices"]
