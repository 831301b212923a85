"""Fields that change which token is taken, held against the log-probabilities of the raw model."""

import pytest
from conftest import EOS, PROMPT, ids

TOLD = dict(logprobs=20, return_tokens_as_token_ids=True)


def steps(answer):
    """Of each new token: its id, and log-probabilities of the likeliest by id."""
    told = answer.choices[0].logprobs
    tops = [{ids([name])[0]: value for name, value in top.items()} for top in told.top_logprobs]
    return list(zip(ids(told.tokens), tops))


def assert_greedy(answer, shift):
    """Each token is the best after `shift(id, tokens before)` is added to its log-probability."""
    before = []
    changed = 0
    for token, top in steps(answer):
        shifted = {id: value + shift(id, before) for id, value in top.items()}
        assert token == max(shifted, key=shifted.get)
        changed += token != max(top, key=top.get)
        before.append(token)
    assert changed > 0


@pytest.mark.parametrize("penalty", [2, -2])
def test_presence_penalty_is_for_tokens_of_the_output(complete, penalty):
    answer = complete(presence_penalty=penalty, max_tokens=48, ignore_eos=True, **TOLD)
    assert_greedy(answer, lambda id, before: -penalty * (id in before))


@pytest.mark.parametrize("penalty", [2, -0.5])
def test_frequency_penalty_counts(complete, penalty):
    answer = complete(frequency_penalty=penalty, max_tokens=48, ignore_eos=True, **TOLD)
    assert_greedy(answer, lambda id, before: -penalty * before.count(id))


def test_repetition_penalty_covers_prompt_and_output(complete, tokenize):
    prompt = tokenize(PROMPT)
    fields = dict(max_tokens=24, ignore_eos=True, **TOLD)
    tokens = [token for token, _ in steps(complete(repetition_penalty=1000, **fields))]
    assert len(set(tokens + prompt)) == len(tokens) + len(set(prompt))


def test_logit_bias_shifts(complete):
    likely = [id for id in list(steps(complete(max_tokens=1, **TOLD))[0][1])]
    bias = {likely[1]: 1.5, likely[2]: 3, likely[0]: -1}
    answer = complete(logit_bias={str(id): b for id, b in bias.items()}, max_tokens=12, **TOLD)
    assert_greedy(answer, lambda id, _: bias.get(id, 0))


def test_logit_bias_forces_and_forbids(complete):
    (first, _), *_ = steps(complete(max_tokens=1, **TOLD))
    forced = complete(logit_bias={"300": 100}, max_tokens=4, ignore_eos=True, **TOLD)
    assert [token for token, _ in steps(forced)] == [300] * 4
    forbidden = complete(logit_bias={str(first): -100}, max_tokens=1, **TOLD)
    assert steps(forbidden)[0][0] != first


def test_repetition_penalty_comes_before_bias(complete, tokenize):
    prompt = tokenize("The king and the queen, and the fox and the crow, said that the")
    # Below 1 it makes logits larger, here by more than any bias takes away.
    fields = dict(prompt=prompt, repetition_penalty=1e-3, max_tokens=1, **TOLD)
    bias = {str(id): -100 for id in prompt}
    for logit_bias in [{}, bias]:
        ((token, _),) = steps(complete(logit_bias=logit_bias, **fields))
        assert token in prompt
    ((token, _),) = steps(complete(**fields | dict(repetition_penalty=1, logit_bias=bias)))
    assert token not in prompt


@pytest.mark.parametrize("narrow", [{"top_k": 1}, {"min_p": 1}, {"top_p": 1e-6}])
def test_the_narrowest_choice_is_greedy(complete, narrow):
    want = complete(max_tokens=24).choices[0].text
    answer = complete(max_tokens=24, temperature=2, seed=5, **narrow)
    assert answer.choices[0].text == want


def test_top_k_takes_none_but_the_k_likeliest(complete):
    fields = dict(temperature=2, max_tokens=32, ignore_eos=True, **TOLD)
    for token, top in steps(complete(top_k=3, seed=1, **fields)):
        assert token in sorted(top, key=top.get)[-3:]
    free = steps(complete(seed=1, **fields))
    assert any(token not in sorted(top, key=top.get)[-3:] for token, top in free)


def test_min_p_takes_none_below_its_share(complete):
    from math import log

    fields = dict(temperature=1, min_p=0.2, seed=2, max_tokens=32, ignore_eos=True)
    for token, top in steps(complete(**fields, **TOLD)):
        assert top[token] >= max(top.values()) + log(0.2) - 1e-5


def test_top_p_takes_the_fewest_that_reach_it(complete):
    from math import exp

    fields = dict(temperature=1, top_p=0.3, seed=2, max_tokens=32, ignore_eos=True)
    for token, top in steps(complete(**fields, **TOLD)):
        assert sum(exp(value) for value in top.values() if value > top[token]) < 0.3 + 1e-5


def test_allowed_token_ids_are_the_only_ones(complete):
    allowed = [20, 300, 301, 302]
    answer = complete(allowed_token_ids=allowed, temperature=1, seed=1, max_tokens=24, **TOLD)
    assert {token for token, _ in steps(answer)} <= set(allowed)


def test_bad_words_do_not_come(complete):
    assert " king" in complete().choices[0].text
    answer = complete(bad_words=["king", "there was"], max_tokens=40)
    assert "king" not in answer.choices[0].text
    assert "there was" not in answer.choices[0].text


def test_a_stop_token_ends_the_answer(complete, tokenize):
    (king,) = tokenize(" king", add_special_tokens=False)
    answer = complete(stop_token_ids=[king])
    (choice,) = answer.choices
    assert (choice.finish_reason, choice.stop_reason) == ("stop", king)
    assert " king" not in choice.text
    assert answer.usage.completion_tokens == 4


def test_min_tokens_holds_ends_off(complete, tokenize):
    (king,) = tokenize(" king", add_special_tokens=False)
    answer = complete(stop_token_ids=[king], min_tokens=6)
    assert answer.usage.completion_tokens >= 6
    bias = {str(EOS): 20}
    assert complete(logit_bias=bias).usage.completion_tokens == 1
    assert complete(logit_bias=bias, min_tokens=6).usage.completion_tokens == 7


def test_the_end_of_the_sequence_ends_the_answer(complete):
    (choice,) = complete(logit_bias={str(EOS): 100}).choices
    assert (choice.text, choice.finish_reason) == ("", "stop")


def test_ignore_eos_goes_on(complete):
    answer = complete(logit_bias={str(EOS): 100}, ignore_eos=True, max_tokens=5)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 5
