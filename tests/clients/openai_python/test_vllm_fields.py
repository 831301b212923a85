"""Further fields of vLLM's that both routes take."""

from uuid import uuid4

from conftest import ARTIFACT, PROMPT, brolly


def test_prompt_logprobs_score_the_prompt(complete, tokenize):
    want = brolly("score", ARTIFACT, "--prompt", PROMPT)["logprobs"]
    told = complete(prompt_logprobs=2).choices[0].prompt_logprobs
    tokens = tokenize(PROMPT)
    assert told[0] is None and want[0] is None
    assert len(told) == len(tokens)
    for entry, token, logprob in list(zip(told, tokens, want))[1:]:
        assert entry[str(token)]["logprob"] == logprob
        assert sorted(each["rank"] for each in entry.values())[:2] == [1, 2]


def test_prompt_logprobs_are_told_in_chats(chat):
    answer = chat(extra_body={"prompt_logprobs": 0})
    assert len(answer.prompt_logprobs) == answer.usage.prompt_tokens


def test_return_token_ids(complete, tokenize, detokenize):
    (choice,) = complete(return_token_ids=True).choices
    assert choice.prompt_token_ids == tokenize(PROMPT)
    assert detokenize(choice.token_ids) == choice.text


def test_include_stop_str_in_output(complete):
    (choice,) = complete(stop=" king", include_stop_str_in_output=True).choices
    assert choice.text.endswith(" king")


def test_skip_special_tokens(complete):
    fields = dict(logit_bias={"0": 100}, max_tokens=3)
    assert complete(**fields).choices[0].text == ""
    assert complete(**fields, skip_special_tokens=False).choices[0].text == "<s><s><s>"


def test_priority_changes_no_text(complete):
    want = complete().choices[0].text
    assert [complete(priority=p).choices[0].text for p in [-5, 0, 5]] == [want] * 3


def test_a_salt_keeps_caches_apart(complete):
    prompt = "The miller had three sons, a mill, a donkey and a cat. " * 12

    def cached(salt):
        usage = complete(prompt=prompt, cache_salt=salt, max_tokens=1).usage
        return usage.prompt_tokens_details.cached_tokens

    one, two = uuid4().hex, uuid4().hex
    assert cached(one) == 0
    assert cached(one) > 0
    assert cached(two) == 0


def test_continuous_usage(complete):
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = list(complete(stream=True, stream_options=options, max_tokens=4, ignore_eos=True))
    counts = [chunk.usage.completion_tokens for chunk in chunks]
    assert counts == sorted(counts) and counts[-1] == 4
