"""`/v1/completions`: OpenAI's fields."""

import pytest
from conftest import ARTIFACT, MODEL, PROMPT, brolly, ids


def test_an_answer_has_openais_shape(complete):
    answer = complete()
    assert answer.object == "text_completion"
    assert answer.model == MODEL
    assert answer.id.startswith("cmpl-")
    (choice,) = answer.choices
    assert (choice.index, choice.finish_reason, choice.logprobs) == (0, "length", None)
    assert choice.text


def test_usage_counts_tokens(complete, tokenize):
    usage = complete(max_tokens=9, ignore_eos=True).usage
    assert usage.prompt_tokens == len(tokenize(PROMPT))
    assert usage.completion_tokens == 9
    assert usage.total_tokens == usage.prompt_tokens + 9


def test_sixteen_tokens_are_the_default(client):
    answer = client.completions.create(
        model=MODEL, prompt=PROMPT, temperature=0, extra_body={"ignore_eos": True}
    )
    assert answer.usage.completion_tokens == 16


def test_greedy_is_what_generate_says(complete):
    flags = ["--prompt", PROMPT, "--max-tokens", "40", "--temperature", "0"]
    want = brolly("generate", ARTIFACT, *flags)
    fields = dict(max_tokens=40, logprobs=0, return_tokens_as_token_ids=True)
    (choice,) = complete(**fields).choices
    assert choice.text == want["text"]
    assert ids(choice.logprobs.tokens) == want["tokens"]
    assert choice.logprobs.token_logprobs == want["logprobs"]


@pytest.mark.parametrize("text", [PROMPT, "The fox and the crow 🙂 äöü", "\n\n"])
def test_max_tokens_0_with_echo_scores_like_score(complete, text):
    want = brolly("score", ARTIFACT, "--prompt", text)["logprobs"]
    answer = complete(prompt=text, max_tokens=0, echo=True, logprobs=1)
    (choice,) = answer.choices
    assert choice.text == text
    assert choice.logprobs.token_logprobs == want
    assert answer.usage.completion_tokens == 0


def test_token_ids_are_the_text(complete, tokenize):
    assert complete(prompt=tokenize(PROMPT)).choices[0].text == complete().choices[0].text


def test_lists_of_prompts_are_answered_in_order(complete, tokenize):
    texts = [PROMPT, "The king said", "In the forest"]
    alone = [complete(prompt=text).choices[0].text for text in texts]
    for prompts in [texts, [tokenize(text) for text in texts]]:
        choices = complete(prompt=prompts).choices
        assert [choice.index for choice in choices] == [0, 1, 2]
        assert [choice.text for choice in choices] == alone


def test_n_answers_to_each_prompt(complete):
    prompts = [PROMPT, "The king said"]
    choices = complete(prompt=prompts, n=3, temperature=1, seed=7, max_tokens=12).choices
    assert [choice.index for choice in choices] == list(range(6))
    assert len({choice.text for choice in choices[:3]}) > 1
    greedy = complete(prompt=prompts, n=2).choices
    assert greedy[0].text == greedy[1].text != greedy[2].text == greedy[3].text


def test_echo_begins_with_the_prompt(complete, tokenize):
    plain = complete().choices[0].text
    assert complete(echo=True).choices[0].text == PROMPT + plain
    assert complete(prompt=tokenize(PROMPT), echo=True).choices[0].text == PROMPT + plain


def test_logprobs_tell_tokens_alternatives_and_places(complete):
    (choice,) = complete(logprobs=3, max_tokens=8).choices
    told = choice.logprobs
    assert "".join(told.tokens) == choice.text
    assert len(told.token_logprobs) == len(told.top_logprobs) == len(told.text_offset) == 8
    for token, logprob, top, offset in zip(
        told.tokens, told.token_logprobs, told.top_logprobs, told.text_offset
    ):
        assert choice.text[offset:].startswith(token)
        assert top[token] == logprob == max(top.values()) <= 0
        assert len(top) == 3


def test_logprobs_of_an_echo_hold_the_prompt(complete, tokenize):
    (choice,) = complete(logprobs=2, max_tokens=4, echo=True).choices
    told = choice.logprobs
    assert len(told.tokens) == len(tokenize(PROMPT)) + 4
    assert told.token_logprobs[0] is None
    assert all(logprob <= 0 for logprob in told.token_logprobs[1:])
    for token, offset in list(zip(told.tokens, told.text_offset))[1:]:
        assert choice.text[offset:].startswith(token)


def test_logprobs_are_the_raw_models(complete):
    fields = dict(logprobs=5, max_tokens=1, seed=3)
    greedy = complete(**fields).choices[0].logprobs.top_logprobs[0]
    for other in [{"temperature": 2}, {"temperature": 1, "top_k": 1}, {"logit_bias": {"5": 50}}]:
        (top,) = complete(**fields | other).choices[0].logprobs.top_logprobs
        assert {token: top[token] for token in greedy} == greedy


@pytest.mark.parametrize("stop", [" king", ["zebra", " king"]])
def test_a_stop_text_ends_the_answer(complete, stop):
    whole = complete(max_tokens=12).choices[0].text
    assert " king" in whole
    (choice,) = complete(max_tokens=12, stop=stop).choices
    assert choice.text == whole[: whole.index(" king")]
    assert (choice.finish_reason, choice.stop_reason) == ("stop", " king")


def test_a_stop_text_may_begin_within_a_token(complete):
    whole = complete(max_tokens=12).choices[0].text
    for length in range(1, len(whole) - 2):
        stop = whole[length : length + 3]
        text = complete(max_tokens=12, stop=stop).choices[0].text
        assert text == whole[: whole.index(stop)], stop


def test_the_same_seed_gives_the_same_text(complete):
    fields = dict(temperature=1, max_tokens=24)
    texts = [complete(seed=seed, **fields).choices[0].text for seed in [1, 2, 3, 1, 2, 3]]
    assert texts[:3] == texts[3:]
    assert len(set(texts)) == 3


def test_without_a_seed_texts_differ(complete):
    texts = {complete(temperature=2, max_tokens=24).choices[0].text for _ in range(3)}
    assert len(texts) == 3


def test_a_repeated_prompt_is_cached(complete, tokenize):
    prompt = "The old woman looked out of the window at the snow. " * 12
    first, again = (complete(prompt=prompt, max_tokens=4) for _ in range(2))
    cached = again.usage.prompt_tokens_details.cached_tokens
    assert 0 < cached < again.usage.prompt_tokens == len(tokenize(prompt))
    assert first.choices[0].text == again.choices[0].text


def test_null_is_the_default(ask):
    nulls = "n stop seed logprobs echo logit_bias stream stream_options presence_penalty "
    nulls += "frequency_penalty user top_p suffix best_of top_k min_p repetition_penalty "
    nulls += "min_tokens stop_token_ids ignore_eos bad_words allowed_token_ids prompt_logprobs "
    nulls += "guided_regex guided_json guided_choice guided_grammar structured_outputs "
    nulls += "response_format priority cache_salt max_tokens"
    body = {"model": MODEL, "prompt": PROMPT, "temperature": 0}
    _, _, want = ask("/v1/completions", body)
    status, _, answer = ask("/v1/completions", body | dict.fromkeys(nulls.split()))
    assert status == 200, answer
    assert answer["choices"] == want["choices"]
