//! Random walks under masks, masks of particular states, and structures that cost too much.

mod reasoning;

use std::time::{Duration, Instant};

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::{Tokenizer, tiny};

/// The tokens that a mask allows.
fn allowed(constraint: &mut Constraint) -> Vec<u32> {
    let mask = constraint.mask().unwrap();
    (0..)
        .zip(mask)
        .flat_map(|(i, word)| {
            (0..32).filter(move |bit| word >> bit & 1 == 1).map(move |bit| 32 * i + bit)
        })
        .collect()
}

/// Walks at random to the end, and after some steps by the shortest way; gives the tokens.
pub(crate) fn walk(mut constraint: Constraint, tokenizer: &Tokenizer, choices: &[u16]) -> Vec<u32> {
    let closers = ["\"", "}", "]", ")", "n", ",", ":"]
        .map(|text| tokenizer.encode(text, false).unwrap().last().copied());
    let mut ids = Vec::new();
    for step in 0..4000 {
        let allowed = allowed(&mut constraint);
        let eos = constraint.eos_ids[0];
        let is_over = constraint.is_finished();
        assert!(!is_over || allowed == [eos], "{allowed:?}");
        let closer = closers.iter().flatten().find(|id| allowed.contains(id));
        let token = match closer {
            _ if step > 60 && allowed.contains(&eos) => eos,
            Some(&closer) if step > 60 => closer,
            _ => allowed[usize::from(choices[step % choices.len()]) % allowed.len()],
        };
        constraint.accept(token).unwrap();
        if token == eos {
            assert!(constraint.is_finished());
            return ids;
        }
        ids.push(token);
    }
    panic!("no end: {:?}", tokenizer.decode(&ids, false));
}

/// Whether a schema accepts a value: the keywords that these tests use.
fn accepts(root: &Value, schema: &Value, value: &Value) -> bool {
    let Some(fields) = schema.as_object() else { return schema == &json!(true) };
    fields.iter().all(|(keyword, limit)| match keyword.as_str() {
        "$ref" => accepts(root, root.pointer(&limit.as_str().unwrap()[1..]).unwrap(), value),
        "type" => match (limit.as_str().unwrap(), value) {
            ("object", Value::Object(_))
            | ("array", Value::Array(_))
            | ("string", Value::String(_))
            | ("boolean", Value::Bool(_))
            | ("null", Value::Null)
            | ("number", Value::Number(_)) => true,
            ("integer", Value::Number(n)) => n.as_f64().unwrap().fract() == 0.0,
            _ => false,
        },
        "enum" => limit.as_array().unwrap().contains(value),
        "const" => limit == value,
        "anyOf" => limit.as_array().unwrap().iter().any(|schema| accepts(root, schema, value)),
        "minimum" => value.as_f64().is_none_or(|n| n >= limit.as_f64().unwrap()),
        "maximum" => value.as_f64().is_none_or(|n| n <= limit.as_f64().unwrap()),
        "exclusiveMaximum" => value.as_f64().is_none_or(|n| n < limit.as_f64().unwrap()),
        "minLength" => length(value).is_none_or(|n| n >= limit.as_u64().unwrap()),
        "maxLength" => length(value).is_none_or(|n| n <= limit.as_u64().unwrap()),
        "minItems" => value.as_array().is_none_or(|v| v.len() as u64 >= limit.as_u64().unwrap()),
        "maxItems" => value.as_array().is_none_or(|v| v.len() as u64 <= limit.as_u64().unwrap()),
        "items" => value.as_array().is_none_or(|v| v.iter().all(|v| accepts(root, limit, v))),
        "required" => value.as_object().is_none_or(|object| {
            limit.as_array().unwrap().iter().all(|key| object.contains_key(key.as_str().unwrap()))
        }),
        "properties" => value.as_object().is_none_or(|object| {
            let schemas = limit.as_object().unwrap();
            object.iter().all(|(key, v)| schemas.get(key).is_none_or(|s| accepts(root, s, v)))
        }),
        "additionalProperties" => value.as_object().is_none_or(|object| {
            let known = fields.get("properties").and_then(Value::as_object);
            let is_more = |key: &String| known.is_none_or(|known| !known.contains_key(key));
            object.iter().all(|(key, v)| !is_more(key) || accepts(root, limit, v))
        }),
        "$defs" => true,
        keyword => panic!("the tests do not know {keyword}"),
    })
}

fn length(value: &Value) -> Option<u64> {
    value.as_str().map(|text| text.chars().count() as u64)
}

fn schemas() -> Vec<Value> {
    vec![
        json!({"type": "object"}),
        json!({"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer",
            "minimum": 0, "maximum": 150}}, "required": ["name", "age"], "additionalProperties": false}),
        json!({"type": "object", "properties": {"a": {"type": "boolean"}},
            "additionalProperties": {"type": "number", "minimum": -1.5, "exclusiveMaximum": 2}}),
        json!({"enum": ["a\"b\\\n", "é😀", 12, null, [1], {"a": true}]}),
        json!({"type": "array", "minItems": 1, "maxItems": 3, "items": {"type": "array", "maxItems": 2,
            "items": {"type": "string", "minLength": 1, "maxLength": 3}}}),
        json!({"$ref": "#/$defs/tree", "$defs": {"tree": {"type": "object", "properties": {
            "v": {"const": 1}, "left": {"anyOf": [{"$ref": "#/$defs/tree"}, {"type": "null"}]}},
            "required": ["v", "left"], "additionalProperties": false}}}),
        json!({"anyOf": [{"type": "integer", "minimum": 98, "maximum": 102}, {"type": "null"}]}),
    ]
}

fn text_of(tokenizer: &Tokenizer, ids: &[u32]) -> String {
    // In SentencePiece vocabularies the first token of a text loses a space.
    let prompt = tokenizer.encode("a", false).unwrap();
    let mut stream = tokenizer.stream(true).after(&prompt).unwrap();
    let mut text: String = ids.iter().filter_map(|&id| stream.push(id).unwrap()).collect();
    text += &stream.finish().unwrap().unwrap_or_default();
    text
}

/// Byte-level and byte-fallback tokenizers, and the id that ends a text.
fn vocabularies() -> [(Tokenizer, u32); 2] {
    [(tiny::tokenizer(&tiny::byte_level()), 263), (tiny::tokenizer(&tiny::byte_fallback()), 2)]
}

fn compiler((tokenizer, eos): &(Tokenizer, u32)) -> GrammarCompiler {
    GrammarCompiler::new(tokenizer, tokenizer.vocab_size() + 70, &[*eos]).unwrap()
}

fn walks(structure: &Structure, choices: &[u16]) -> Vec<String> {
    let one = |vocabulary: &(Tokenizer, u32)| {
        let constraint = compiler(vocabulary).compile(structure).unwrap();
        text_of(&vocabulary.0, &walk(constraint, &vocabulary.0, choices))
    };
    vocabularies().iter().map(one).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn json_is_by_its_schema(choices in prop::collection::vec(any::<u16>(), 61)) {
        for schema in schemas() {
            for text in walks(&Structure::JsonSchema(schema.clone()), &choices) {
                let is_right = match serde_json::from_str(&text) {
                    Ok(value) => accepts(&schema, &schema, &value),
                    // JSON has numbers that f64 has not.
                    Err(error) => error.to_string().starts_with("number out of range"),
                };
                prop_assert!(is_right, "{text:?} {schema}");
            }
        }
        for text in walks(&Structure::JsonObject, &choices) {
            let is_right = match serde_json::from_str::<Value>(&text) {
                Ok(value) => value.is_object(),
                Err(error) => error.to_string().starts_with("number out of range"),
            };
            prop_assert!(is_right, "{text:?}");
        }
    }

    #[test]
    fn texts_match_their_expression(choices in prop::collection::vec(any::<u16>(), 61)) {
        for text in walks(&Structure::Regex(r"^(\d{3}-){2}\d{2}$".to_owned()), &choices) {
            let parts: Vec<usize> = text.split('-').map(|part| part.chars().count()).collect();
            prop_assert!(parts == [3, 3, 2] && text.chars().all(|c| c == '-' || c.is_numeric()));
        }
        for text in walks(&Structure::Regex("[é😀/]{3}".to_owned()), &choices) {
            prop_assert!(text.chars().count() == 3 && text.chars().all(|c| "é😀/".contains(c)));
        }
        let grammar = "start: item (\",\" item)*\nitem: /[a-c]+/ | \"(\" start \")\"";
        for text in walks(&Structure::Grammar(grammar.to_owned()), &choices) {
            let depth = |depth: i32, c| depth + i32::from(c == '(') - i32::from(c == ')');
            prop_assert!(text.chars().fold(0, depth) == 0 && text.chars().all(|c| "abc,()".contains(c)));
        }
    }

    #[test]
    fn a_choice_is_one_of_its_texts(
        texts in prop::collection::vec("[a-c.*/\\\\\\[\\]é\n\"]{1,4}", 1..6),
        choices in prop::collection::vec(any::<u16>(), 61),
    ) {
        for text in walks(&Structure::Choice(texts.clone()), &choices) {
            prop_assert!(texts.contains(&text), "{text:?} {texts:?}");
        }
    }
}

#[test]
fn a_text_ends_exactly_where_it_may() {
    let vocabulary = &vocabularies()[0];
    let (tokenizer, eos) = vocabulary;
    let id = |text: &str| tokenizer.encode(text, false).unwrap()[0];
    let choice = Structure::Choice(vec!["he".to_owned(), "hell".to_owned(), "é".to_owned()]);
    let mut constraint = compiler(vocabulary).compile(&choice).unwrap();
    let mut other = constraint.clone();
    // é is two bytes, and the vocabulary has "h", "he" and "hell".
    let mut start = [id("h"), id("he"), id("hell"), id("é")];
    start.sort_unstable();
    assert_eq!(allowed(&mut constraint), start);
    constraint.accept(id("he")).unwrap();
    assert_eq!(allowed(&mut constraint), [id("l"), id("ll"), *eos]);
    assert!(!constraint.is_finished());

    let error = constraint.accept(id("h")).unwrap_err().to_string();
    assert!(error.contains("is not allowed here"), "{error}");
    constraint.accept(id("ll")).unwrap();
    assert!(constraint.is_finished());
    assert_eq!(allowed(&mut constraint), [*eos]);
    assert!(constraint.accept(id("l")).is_err());
    constraint.accept(*eos).unwrap();
    constraint.accept(*eos).unwrap();

    // The clone is where it was; half a character is no end.
    other.accept(id("é")).unwrap();
    assert_eq!(allowed(&mut other).len(), 1);
    assert!(other.accept(*eos).is_err() && other.accept(u32::MAX).is_err());
    assert!(format!("{other:?}").contains("is_finished: false"));
}

#[test]
fn every_token_that_ends_a_text_is_allowed_at_its_end() {
    let (tokenizer, _) = &vocabularies()[0];
    let compiler = GrammarCompiler::new(tokenizer, 300, &[263, 299]).unwrap();
    let mut constraint = compiler.compile(&Structure::Regex("a*".to_owned())).unwrap();
    let a = tokenizer.token_to_id("a").unwrap();
    assert_eq!(allowed(&mut constraint), [a, 263, 299]);
    constraint.accept(299).unwrap();
    assert!(constraint.is_finished());

    let without = GrammarCompiler::new(tokenizer, 265, &[]).unwrap();
    let mut constraint = without.compile(&Structure::Choice(vec!["a".to_owned()])).unwrap();
    constraint.accept(a).unwrap();
    assert!(constraint.is_finished() && allowed(&mut constraint).is_empty());
}

#[test]
fn constraints_move_between_threads() {
    fn is_send<T: Send>() {}
    fn is_shared<T: Send + Sync + Clone>() {}
    is_send::<Constraint>();
    is_shared::<GrammarCompiler>();
}

#[test]
fn what_cannot_be_enforced_is_refused() {
    let compiler = compiler(&vocabularies()[0]);
    let schema = |schema| Structure::JsonSchema(schema);
    let text = |text: &str| text.to_owned();
    for (structure, expected) in [
        (schema(json!([])), "a JSON schema is an object"),
        (schema(json!({"type": "objekt"})), "objekt"),
        (schema(json!({"not": {"type": "string"}})), "not"),
        (schema(json!({"$ref": "#/$defs/x"})), "$defs"),
        (schema(json!({"$ref": "http://example.com/a.json"})), "example.com"),
        (schema(json!({"type": "integer", "minimum": 3, "maximum": 2})), "minimum"),
        (schema(json!(false)), "false"),
        (Structure::Regex(text("(")), "unclosed group"),
        (Structure::Regex(text(r"a\b")), ""),
        (Structure::Regex(text("[^\\s\\S]")), ""),
        (Structure::Grammar(text("start: x")), "x"),
        (Structure::Grammar(text("")), ""),
        (Structure::Choice(vec![]), "at least one text"),
        (Structure::Choice(vec![text("")]), "none that is empty"),
    ] {
        let error = compiler.compile(&structure).map(|_| ()).unwrap_err();
        assert!(matches!(error, TextError::Structure { .. }), "{error:?}");
        let error = error.to_string();
        assert!(error.contains(expected) && !error.contains("panic"), "{structure:?}: {error}");
        assert!(error.len() < 600, "{error}");
    }
}

/// A value within itself.
fn nested(levels: usize, wrap: impl Fn(Value) -> Value) -> Value {
    (0..levels).fold(json!({"type": "string"}), |value, _| wrap(value))
}

fn many(n: usize, entry: impl Fn(usize) -> (String, Value)) -> Value {
    Value::Object((0..n).map(entry).collect())
}

/// Structures small to write and large to work out.
fn bombs() -> Vec<(&'static str, Structure)> {
    let schema = |schema| Structure::JsonSchema(schema);
    let any_of = |n: usize, make: &dyn Fn(usize) -> Value| json!({"anyOf": (0..n).map(make).collect::<Vec<_>>()});
    let object = |key: String| json!({"type": "object", "properties": {key.clone(): {"type": "string"}}, "required": [key]});
    let links = many(3000, |i| (format!("d{i}"), json!({"$ref": format!("#/$defs/d{}", i + 1)})));
    vec![
        ("depth", schema(nested(1000, |v| json!({"type": "array", "items": v})))),
        ("depth within limits", schema(nested(31, |v| json!({"type": "array", "items": v})))),
        ("links", schema(json!({"$defs": links, "$ref": "#/$defs/d0"}))),
        ("links within limits", {
            let link = |i: usize| {
                let next =
                    json!({"anyOf": [{"$ref": format!("#/$defs/d{}", i + 1)}, {"type": "null"}]});
                (
                    format!("d{i}"),
                    nested(5, |v| {
                        if v == json!({"type": "string"}) {
                            json!({"type": "object", "properties": {"p": next.clone()}})
                        } else {
                            json!({"type": "array", "items": v})
                        }
                    }),
                )
            };
            let mut links = many(900, link);
            links["d900"] = json!({"type": "null"});
            schema(json!({"$defs": links, "$ref": "#/$defs/d0"}))
        }),
        ("loop", schema(json!({"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}))),
        ("doubling", {
            let twice = |i: usize| {
                let next = json!({"$ref": format!("#/$defs/d{}", i + 1)});
                (format!("d{i}"), json!({"allOf": [next, next]}))
            };
            schema(json!({"$defs": many(40, twice), "$ref": "#/$defs/d0"}))
        }),
        ("all of any of", {
            let part = |i: usize| any_of(10, &|j| object(format!("p{i}_{j}")));
            schema(json!({"allOf": (0..8).map(part).collect::<Vec<_>>()}))
        }),
        ("one of", {
            let options: Vec<Value> = (0..400).map(|i| object(format!("p{i}"))).collect();
            schema(json!({"oneOf": options}))
        }),
        ("properties", {
            let names = many(5000, |i| (format!("property{i}"), json!({"type": "string"})));
            schema(json!({"type": "object", "properties": names}))
        }),
        ("patterns", {
            let patterns = many(120, |i| (format!("^a{{0,40}}b{{{i}}}"), json!({"type": "null"})));
            schema(json!({"type": "object", "patternProperties": patterns}))
        }),
        (
            "enum",
            schema(json!({"enum": (0..15_000).map(|i| format!("value {i}")).collect::<Vec<_>>()})),
        ),
        ("length", schema(json!({"type": "string", "maxLength": 4_000_000_000u64}))),
        ("length from", schema(json!({"type": "string", "minLength": 1_000_000_000u64}))),
        ("items", schema(json!({"type": "array", "items": {}, "minItems": 1_000_000_000u64}))),
        (
            "items up to",
            schema(json!({"type": "array", "items": {"type": "string"},
            "maxItems": 4_000_000_000u64})),
        ),
        (
            "items in items",
            schema(nested(20, |v| {
                json!({"type": "array", "items": v,
            "minItems": 1000, "maxItems": 100_000})
            })),
        ),
        ("number", schema(json!({"type": "number", "multipleOf": 1e-9, "maximum": 1e300}))),
        ("divisor", schema(json!({"type": "integer", "multipleOf": 99_999_989}))),
        (
            "divisor within limits",
            schema(json!({"type": "integer", "multipleOf": 9973,
            "minimum": 5, "maximum": 1_000_000_000})),
        ),
        (
            "schema in a grammar",
            Structure::Grammar(
                "start: %json {\"type\": \"integer\", \"multipleOf\": 99999989}".to_owned(),
            ),
        ),
        ("pattern", schema(json!({"type": "string", "pattern": "(.*a.{0,60}){20}"}))),
        ("repetition", Structure::Regex("((((a{100}){100}){100}){100}){100}".to_owned())),
        ("window", Structure::Regex("(a|b)*a(a|b){400}".to_owned())),
        ("classes", Structure::Regex("(\\w{1,50}\\s?){1,200}x".to_owned())),
        ("options", Structure::Regex(vec!["(a|b|ab)*c?"; 1000].concat())),
        ("nesting", Structure::Regex("(".repeat(5000) + &")".repeat(5000))),
        ("choices", Structure::Choice((0..100_000).map(|i| i.to_string()).collect())),
        ("choices within limits", Structure::Choice((0..4000).map(|i| format!("{i} é")).collect())),
        (
            "intersection",
            Structure::Grammar(
                "start: X\nX: /(.*a.{30}){3}/ & /(.*b.{31}){3}/ & ~/(.*c.{29}){3}/".to_owned(),
            ),
        ),
        ("ambiguity", Structure::Grammar("start: start start | \"a\" | ".to_owned())),
        (
            "rules",
            Structure::Grammar({
                let rule = |i| format!("r{i}: r{} r{} | \"x\"\n", i + 1, i + 1);
                "start: r0\n".to_owned()
                    + &(0..5000).map(rule).collect::<String>()
                    + "r5000: \"y\"\n"
            }),
        ),
        (
            "groups",
            Structure::Grammar(format!("start: {}\"a\"{}", "(".repeat(50_000), ")".repeat(50_000))),
        ),
        ("counts", Structure::Grammar("start: (((\"a\"{9999}){9999}){9999}){9999}".to_owned())),
    ]
}

/// Compiles, then goes some steps; whatever comes of it, it takes bounded time.
#[test]
fn bombs_are_bounded() {
    let compiler = compiler(&vocabularies()[0]);
    let mut slow = Vec::new();
    for (name, structure) in bombs() {
        let start = Instant::now();
        let compiled = compiler.compile(&structure);
        let compile_time = start.elapsed();
        let mut slowest = Duration::ZERO;
        match compiled {
            Err(error) => assert!(error.to_string().len() < 2000, "{name}: {error}"),
            Ok(mut constraint) => {
                for step in 0..100 {
                    let start = Instant::now();
                    let Ok(mask) = constraint.mask().map(<[u32]>::to_vec) else { break };
                    slowest = slowest.max(start.elapsed());
                    let allowed: Vec<u32> = (0..265)
                        .filter(|&id| mask[id as usize / 32] >> (id % 32) & 1 == 1)
                        .collect();
                    if constraint.is_finished()
                        || constraint.accept(allowed[step % allowed.len()]).is_err()
                    {
                        break;
                    }
                }
            }
        }
        if compile_time > Duration::from_secs(20) || slowest > Duration::from_secs(10) {
            slow.push(name);
        }
    }
    assert_eq!(slow, [""; 0]);
}
