//! What a structure may cost: limits on its size before it is compiled, and on the parser after.
//!
//! Structures come with requests, from strangers. Compiling cannot be interrupted, so whatever
//! could make it long is bounded by what it is made of, and by fuel that its steps use up: how
//! busy the machine is decides nothing.

use std::{collections::BTreeSet, time::Duration};

use llguidance::api::ParserLimits;
use serde_json::{Map, Value};

use super::Structure;
use crate::error::TextError;

/// Bytes of a grammar's text, and of a schema written as JSON.
const MAX_BYTES: usize = 256 << 10;
/// Bytes of a regular expression.
const MAX_REGEX_BYTES: usize = 16 << 10;
/// Texts to choose from.
const MAX_CHOICES: usize = 4096;
/// Nested objects and lists of a schema.
const MAX_DEPTH: usize = 64;
/// Values in a schema.
const MAX_VALUES: usize = 20_000;

/// The sum over all objects of the number of their properties, squared: what compiling them takes.
const MAX_PROPERTIES_SQUARED: usize = 1_000_000;
/// Patterns of properties, which are compared with each other.
const MAX_PATTERNS: usize = 32;
/// The largest `multipleOf`, its point left out: an automaton has as many states.
const MAX_MULTIPLE: f64 = 10_000.0;
/// Lines of a grammar that hold a rule.
const MAX_RULES: usize = 1500;
/// What comes before a schema within a grammar.
const JSON_IN_LARK: &str = "%json";
/// Schemas within a grammar.
const MAX_SCHEMAS: usize = 256;
/// Schemas that a schema refers to.
const MAX_REFERENCES: usize = 1000;

/// How long compiling may take before nobody waits for it any more: a guard against what the limits
/// miss. The largest schemas within them take 2 s of a core's time.
pub(super) const DEADLINE: Duration = Duration::from_secs(60);
/// Compilations at a time, those included that were given up and have not ended.
pub(super) const MAX_AT_ONCE: usize = 16;

/// The stack of a thread that compiles: address space, of which little is ever touched.
pub(super) const STACK_BYTES: usize = 256 << 20;

/// Limits on the parser: llguidance's own, less where memory or the time of a mask is at stake.
///
/// A mask waits for nothing but its fuel, and the sequences of a step wait for the mask. Over a
/// vocabulary of 150,000 tokens, expressions that use up 200,000 (llguidance's default) took up to
/// 350 ms, with half of it 80 ms; half of that again stops lists of words, which take 70 ms.
pub(super) fn parser() -> ParserLimits {
    ParserLimits {
        initial_lexer_fuel: 500_000,
        step_lexer_fuel: 100_000,
        max_lexer_states: 50_000,
        max_grammar_size: 200_000,
        verbose_errors: false,
        ..ParserLimits::default()
    }
}

/// Refuses a structure that is too large to compile.
pub(super) fn check(structure: &Structure) -> Result<(), TextError> {
    match structure {
        Structure::JsonSchema(schema) => check_schema(schema),
        Structure::JsonObject => Ok(()),
        Structure::Regex(regex) => {
            at_most("bytes of the regular expression", regex.len(), MAX_REGEX_BYTES)
        }
        Structure::Choice(choices) => {
            if choices.is_empty() || choices.iter().any(String::is_empty) {
                return refuse("a choice needs at least one text, and none that is empty");
            }
            at_most("choices", choices.len(), MAX_CHOICES)?;
            at_most("bytes of choices", choices.iter().map(String::len).sum(), MAX_BYTES)
        }
        Structure::Grammar(grammar) => {
            at_most("bytes of the grammar", grammar.len(), MAX_BYTES)?;
            let rules = grammar.lines().filter(|line| line.contains(':')).count();
            at_most("lines with rules", rules, MAX_RULES)?;
            let schemas: Vec<_> = grammar.match_indices(JSON_IN_LARK).collect();
            at_most("schemas in the grammar", schemas.len(), MAX_SCHEMAS)?;
            for (at, keyword) in schemas {
                let rest = &grammar[at + keyword.len()..];
                let schema = serde_json::Deserializer::from_str(rest).into_iter::<Value>().next();
                // What is no JSON the compiler refuses.
                if let Some(Ok(schema)) = schema {
                    check_schema(&schema)?;
                }
            }
            Ok(())
        }
    }
}

/// Refuses a schema that is too large to compile.
pub(crate) fn check_schema(schema: &Value) -> Result<(), TextError> {
    if !schema.is_object() && !schema.is_boolean() {
        return refuse("a JSON schema is an object");
    }
    let (mut values, mut bytes, mut squares, mut patterns) = (0, 0, 0, 0);
    let mut references = BTreeSet::new();
    let mut open = vec![(schema, 0)];
    while let Some((value, depth)) = open.pop() {
        at_most("levels of the schema", depth, MAX_DEPTH)?;
        values += 1;
        match value {
            Value::String(text) => bytes += text.len(),
            Value::Array(items) => open.extend(items.iter().map(|item| (item, depth + 1))),
            Value::Object(fields) => {
                references.extend(fields.get("$ref").and_then(Value::as_str));
                let entries = |key| fields.get(key).and_then(Value::as_object).map_or(0, Map::len);
                if let Some(multiple) = fields.get("multipleOf").and_then(Value::as_f64)
                    && significand(multiple) > MAX_MULTIPLE
                {
                    return refuse(&format!("multiples of {multiple} are too many to tell apart"));
                }
                squares += entries("properties").pow(2);
                patterns += entries("patternProperties");
                bytes += fields.keys().map(String::len).sum::<usize>();
                open.extend(fields.values().map(|field| (field, depth + 1)));
            }
            _ => {}
        }
    }
    at_most("different values of `$ref` in the schema", references.len(), MAX_REFERENCES)?;
    at_most("properties of objects, squared,", squares, MAX_PROPERTIES_SQUARED)?;
    at_most("patterns of properties", patterns, MAX_PATTERNS)?;
    at_most("values in the schema", values, MAX_VALUES)?;
    at_most("bytes of the schema", bytes, MAX_BYTES)
}

/// A number with its decimal point left out: 25 for 0.25.
fn significand(number: f64) -> f64 {
    let mut number = number.abs();
    for _ in 0..16 {
        if number.fract() == 0.0 {
            break;
        }
        number *= 10.0;
    }
    number
}

fn at_most(what: &str, count: usize, limit: usize) -> Result<(), TextError> {
    if count <= limit { Ok(()) } else { refuse(&format!("{count} {what}; the limit is {limit}")) }
}

fn refuse(reason: &str) -> Result<(), TextError> {
    Err(TextError::Structure { reason: reason.to_owned() })
}
