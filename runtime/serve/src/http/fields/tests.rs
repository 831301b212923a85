//! Kinds one by one, and all problems of an object at once.

use serde_json::json;

use super::*;

const PART: Table = &[&[
    required("type", Kind::Choice(&["text"]), ""),
    required("text", Kind::Text, "What is said."),
]];

const TABLE: Table = &[
    &[
        field("flag", Kind::Bool, ""),
        field("n", Kind::Integer { from: 1, to: 128 }, ""),
        field("p", Kind::Number { from: 0.0, to: 1.0, is_open: true }, ""),
        field("bias", Kind::ByToken(&Kind::between(-100.0, 100.0)), ""),
    ],
    &[
        required("prompt", Kind::OneOf(&[Kind::Text, TOKENS, LISTS]), ""),
        field("best_of", Kind::Only { values: &["1"], why: "one answer is computed" }, ""),
        field("suffix", Kind::Only { values: &[], why: "nothing is inserted" }, ""),
        field("part", Kind::Tagged { by: "type", of: &[("text", PART)] }, ""),
        field("parts", Kind::List { of: &Kind::Object(PART), from: 1, to: 2 }, ""),
    ],
];
const TOKENS: Kind = Kind::List { of: &Kind::Token, from: 1, to: usize::MAX };
const LISTS: Kind = Kind::List { of: &TOKENS, from: 1, to: 3 };

fn check(value: &Value) -> Option<(String, String)> {
    let mut problems = Problems::new(50);
    problems.check_object(TABLE, value.as_object().unwrap(), "");
    problems.into_result().err().map(|error| (error.param.unwrap(), error.message))
}

#[test]
fn good_values_pass_and_null_is_absence() {
    for value in [
        json!({"prompt": "x", "flag": true, "n": 128, "p": 1, "best_of": 1.0}),
        json!({"prompt": [0, 49], "flag": null, "n": 2.0, "p": 0.001, "suffix": null}),
        json!({"prompt": [[1], [2, 3]], "bias": {"0": -100, "49": 1.5}}),
        json!({"prompt": "", "part": {"type": "text", "text": ""}, "n": null}),
    ] {
        assert_eq!(check(&value), None, "{value}");
    }
}

#[test]
fn each_wrong_value_is_named() {
    for (value, param, reason) in [
        (json!({"flag": 1}), "flag", "is 1, and must be true or false"),
        (json!({"n": 0}), "n", "is 0, and must be an integer from 1 to 128"),
        (json!({"n": 1.5}), "n", "is 1.5, and must be an integer from 1 to 128"),
        (json!({"n": true}), "n", "is true, and must be an integer"),
        (json!({"n": 18_446_744_073_709_551_615_u64}), "n", "must be an integer from 1 to 128"),
        (json!({"p": 0}), "p", "is 0, and must be a number above 0 and at most 1"),
        (json!({"p": "1"}), "p", "is \"1\", and must be a number"),
        (json!({"bias": {"50": 1}}), "bias", "has the key \"50\", and keys are token ids below 50"),
        (json!({"bias": {"-1": 1}}), "bias", "has the key \"-1\""),
        (json!({"bias": {"+1": 1}}), "bias", "has the key \"+1\""),
        (json!({"bias": {"1": 101}}), "bias.1", "is 101, and must be a number from -100 to 100"),
        (json!({"best_of": 2}), "best_of", "is 2: one answer is computed; it may be 1"),
        (json!({"suffix": ""}), "suffix", "is \"\": nothing is inserted"),
        (json!({"prompt": null}), "prompt", "is missing"),
        (json!({"prompt": 3}), "prompt", "must be a text, a list of token ids or a list of lists"),
        (json!({"prompt": []}), "prompt", "must be a text, a list of token ids or a list of lists"),
        (json!({"prompt": [1, "a"]}), "prompt[1]", "is \"a\", and must be a token id below 50"),
        (json!({"prompt": [[1], [-2]]}), "prompt[1][0]", "is -2, and must be a token id"),
        (json!({"part": {"type": "image"}}), "part.type", "is \"image\", and must be \"text\""),
        (json!({"part": {"type": "text"}}), "part.text", "is missing"),
        (json!({"parts": []}), "parts", "has 0 items, and must have 1 to 2"),
        (json!({"parts": [{"type": "text", "text": 1}]}), "parts[0].text", "is 1, and must be"),
        (json!({"pormpt": 1}), "pormpt", "is not a field that this server knows"),
    ] {
        let mut value = value;
        value.as_object_mut().unwrap().entry("prompt").or_insert("x".into());
        let (found, message) = check(&value).expect(param);
        assert_eq!(found, param);
        assert!(message.starts_with(&format!("`{param}` ")), "{message}");
        assert!(message.contains(reason), "{message}");
    }
}

#[test]
fn all_problems_are_told_at_once() {
    let (param, message) = check(&json!({"n": 0, "flag": 3, "other": {}})).unwrap();
    assert_eq!(param, "flag");
    for name in ["`flag` is 3", "`n` is 0", "`prompt` is missing", "`other` is not"] {
        assert!(message.contains(name), "{message}");
    }
    let many: Map<String, Value> = (0..40).map(|i| (format!("x{i}"), Value::Null)).collect();
    let (_, message) = check(&Value::Object(many)).unwrap();
    assert!(message.contains("`x14`") && message.ends_with("; and 25 more"), "{message}");
}

#[test]
fn the_schema_says_the_same() {
    let schema = object_schema(TABLE, 50);
    let of = |name: &str| schema["properties"][name].clone();
    assert_eq!(schema["required"], json!(["prompt"]));
    assert_eq!(schema["additionalProperties"], json!(false));
    assert_eq!(of("flag"), json!({"type": ["boolean", "null"]}));
    assert_eq!(of("n"), json!({"type": ["integer", "null"], "minimum": 1, "maximum": 128}));
    let p = json!({"type": ["number", "null"], "exclusiveMinimum": 0.0, "maximum": 1.0});
    assert_eq!(of("p"), p);
    assert_eq!(of("best_of"), json!({"enum": [1, null]}));
    assert_eq!(of("suffix"), json!({"enum": [null]}));
    assert_eq!(of("prompt")["anyOf"][1]["items"]["maximum"], json!(49));
    assert_eq!(of("part")["anyOf"][0]["oneOf"][0]["properties"]["type"], json!({"const": "text"}));
    assert_eq!(of("part")["anyOf"][1], json!({"type": "null"}));
}
