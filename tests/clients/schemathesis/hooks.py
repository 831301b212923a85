"""Makes schemathesis' valid requests ones that are answered.

No schema says that two fields exclude each other, so that nearly every random request holds a
contradiction and is refused before it reaches the model. Half of the valid ones lose what
contradicts, and all of them ask for few tokens. Invalid requests stay as they are.
"""

import json

import schemathesis

STRUCTURES = "response_format structured_outputs guided_json guided_regex guided_choice "
STRUCTURES += "guided_grammar"
MOST_TOKENS = {
    "/v1/completions": "max_tokens",
    "/v1/chat/completions": "max_completion_tokens",
}
FEW_TOKENS = 8


@schemathesis.hook
def before_call(context, case, kwargs):
    body = case.body
    if not isinstance(body, dict) or not case.meta.generation.mode.is_positive:
        return
    if case.path in MOST_TOKENS:
        name = MOST_TOKENS[case.path]
        asked = body.get(name)
        body[name] = FEW_TOKENS if asked is None else min(asked, FEW_TOKENS)
    # The same for the same body, so that a seed's run can be repeated.
    number = len(json.dumps(body, default=str))
    if number % 2 == 0:
        consistent(body, number)


def consistent(body, number):
    asked = [name for name in STRUCTURES.split() if body.get(name)]
    for index, name in enumerate(asked):
        if index != number // 2 % len(asked):
            del body[name]
    if not body.get("stream"):
        body.pop("stream_options", None)
    else:
        body.pop("prompt_logprobs", None)
    if not body.get("logprobs"):
        body.pop("top_logprobs", None)
    if "max_completion_tokens" in body:
        body.pop("max_tokens", None)
    if body.get("n"):
        body["n"] = min(body["n"], 3)
    body.pop("min_tokens", None)
    if body.get("continue_final_message"):
        body.pop("add_generation_prompt", None)
    if not body.get("tools") or body.get("tool_choice") not in ["none", "auto", "required"]:
        body.pop("tool_choice", None)
    if "prompt" in body and "messages" in body:
        del body["messages"]
    body.pop("reasoning_effort", None)
    body.pop("dimensions", None)
