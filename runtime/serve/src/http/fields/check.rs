//! Values against kinds, collecting what is wrong.

use serde_json::{Map, Value};

use super::{Kind, Table};
use crate::http::error::ApiError;

/// More are counted, not told.
const MAX_TOLD: usize = 16;

/// What is wrong with a request, field by field.
#[derive(Debug, Default)]
pub(crate) struct Problems {
    found: Vec<(String, String)>,
    /// Ids of tokens are below it.
    vocab_size: usize,
}

impl Problems {
    /// None so far, for a model with so many tokens.
    pub(crate) fn new(vocab_size: usize) -> Problems {
        Problems { found: Vec::new(), vocab_size }
    }

    /// Notes one; `reason` goes on after the field's name. A field is told of once.
    pub(crate) fn add(&mut self, field: impl Into<String>, reason: impl Into<String>) {
        let field = field.into();
        if !self.has(&field) {
            self.found.push((field, reason.into()));
        }
    }

    /// Whether there is one with this field.
    pub(crate) fn has(&self, field: &str) -> bool {
        self.found.iter().any(|(other, _)| other == field)
    }

    /// Nothing, or an error with all of them that names the first.
    pub(crate) fn into_result(self) -> Result<(), ApiError> {
        let Some((first, _)) = self.found.first() else { return Ok(()) };
        let told = self.found.iter().take(MAX_TOLD);
        let told: Vec<String> = told.map(|(field, reason)| format!("`{field}` {reason}")).collect();
        let mut message = told.join("; ");
        if let Some(more @ 1..) = self.found.len().checked_sub(MAX_TOLD) {
            message += &format!("; and {more} more");
        }
        Err(ApiError::invalid(message).with_param(first))
    }

    /// Checks the fields of an object that is at `path` in the request.
    pub(crate) fn check_object(&mut self, table: Table, object: &Map<String, Value>, path: &str) {
        let at = |name: &str| if path.is_empty() { name.into() } else { format!("{path}.{name}") };
        let rows = || table.iter().copied().flatten();
        for row in rows() {
            match object.get(row.name) {
                None | Some(Value::Null) if row.is_required => {
                    self.add(at(row.name), "is missing");
                }
                None | Some(Value::Null) => {}
                Some(value) => self.check(&row.kind, value, &at(row.name)),
            }
        }
        for name in object.keys() {
            if !rows().any(|row| row.name == name) {
                let name: String = name.chars().take(64).collect();
                self.add(at(&name), "is not a field that this server knows");
            }
        }
    }

    /// Checks a value.
    pub(crate) fn check(&mut self, kind: &Kind, value: &Value, path: &str) {
        match (kind, value) {
            (Kind::List { of, from, to }, Value::Array(list)) => {
                self.check_list((*of, *from, *to), list, path);
            }
            (Kind::ByToken(of), Value::Object(map)) => {
                for (token, value) in map {
                    let id = token.parse::<u32>().ok().filter(|_| !token.starts_with('+'));
                    if id.is_none_or(|id| id as usize >= self.vocab_size) {
                        let token: String = token.chars().take(64).collect();
                        let reason = format!(
                            "has the key {token:?}, and keys are token ids below {}",
                            self.vocab_size
                        );
                        return self.add(path, reason);
                    }
                    self.check(of, value, &format!("{path}.{token}"));
                }
            }
            (Kind::Object(table), Value::Object(object)) => self.check_object(table, object, path),
            (Kind::Tagged { by, of }, Value::Object(object)) => {
                let tag = object.get(*by).and_then(Value::as_str);
                match of.iter().find(|(name, _)| Some(*name) == tag) {
                    Some((_, table)) => self.check_object(table, object, path),
                    None => {
                        let names: Vec<String> =
                            of.iter().map(|(name, _)| format!("{name:?}")).collect();
                        let given = object.get(*by).map_or("missing".into(), told);
                        let reason = format!("is {given}, and must be {}", either(&names));
                        self.add(format!("{path}.{by}"), reason);
                    }
                }
            }
            (Kind::OneOf(kinds), value) => self.check_any(kinds, value, path),
            (Kind::Only { values, why }, value) => {
                if !values.iter().any(|allowed| is_json(value, allowed)) {
                    let mut reason = format!("is {}: {why}", told(value));
                    if !values.is_empty() {
                        reason += &format!("; it may be {}", either(&owned(values)));
                    }
                    self.add(path, reason);
                }
            }
            (kind, value) => {
                if !self.fits(kind, value) {
                    let reason = format!("is {}, and must be {}", told(value), self.describe(kind));
                    self.add(path, reason);
                }
            }
        }
    }

    fn check_list(&mut self, kind: (&Kind, usize, usize), list: &[Value], path: &str) {
        let (of, from, to) = kind;
        let n = list.len();
        if n < from || n > to {
            let reason = match to {
                usize::MAX => format!("has {n} items, and needs at least {from}"),
                to => format!("has {n} items, and must have {from} to {to}"),
            };
            return self.add(path, reason);
        }
        let before = self.found.len();
        for (index, value) in list.iter().enumerate() {
            // Prompts have many ids, and paths are only needed for wrong ones.
            if matches!(of, Kind::Token) && self.fits(of, value) {
                continue;
            }
            self.check(of, value, &format!("{path}[{index}]"));
            if self.found.len() > before + MAX_TOLD {
                break;
            }
        }
    }

    /// Whether a value without parts is of a kind.
    fn fits(&self, kind: &Kind, value: &Value) -> bool {
        match kind {
            Kind::Bool => value.is_boolean(),
            Kind::Integer { from, to } => {
                integer(value).is_some_and(|i| (*from..=*to).contains(&i))
            }
            Kind::Number { from, to, is_open } => value
                .as_f64()
                .is_some_and(|x| x <= *to && if *is_open { x > *from } else { x >= *from }),
            Kind::Token => integer(value)
                .and_then(|i| usize::try_from(i).ok())
                .is_some_and(|i| i < self.vocab_size),
            Kind::Text => value.is_string(),
            Kind::Name => value.as_str().is_some_and(|text| !text.is_empty()),
            Kind::Choice(texts) => value.as_str().is_some_and(|text| texts.contains(&text)),
            Kind::AnyObject => value.is_object(),
            _ => false,
        }
    }

    /// Of several kinds, the one that goes wrong deepest within the value is what was meant.
    fn check_any(&mut self, kinds: &[Kind], value: &Value, path: &str) {
        let mut nearest = Problems::default();
        for kind in kinds {
            let mut problems = Problems::new(self.vocab_size);
            problems.check(kind, value, path);
            let depth = |p: &Problems| p.found.first().map_or(0, |(field, _)| field.len());
            if problems.found.is_empty() {
                return;
            }
            if depth(&problems) > depth(&nearest) {
                nearest = problems;
            }
        }
        match nearest.found.first() {
            Some((field, _)) if field != path => {
                for (field, reason) in nearest.found {
                    self.add(field, reason);
                }
            }
            _ => {
                let kinds: Vec<String> = kinds.iter().map(|kind| self.describe(kind)).collect();
                self.add(path, format!("is {}, and must be {}", told(value), either(&kinds)));
            }
        }
    }

    fn describe(&self, kind: &Kind) -> String {
        match kind {
            Kind::Bool => "true or false".into(),
            Kind::Integer { from, to: i64::MAX } => format!("an integer of at least {from}"),
            Kind::Integer { from, to } => format!("an integer from {from} to {to}"),
            Kind::Number { from, to, is_open: true } if to.is_infinite() => {
                format!("a number above {from}")
            }
            Kind::Number { from, to, is_open: true } => {
                format!("a number above {from} and at most {to}")
            }
            Kind::Number { from, to, is_open: false } => format!("a number from {from} to {to}"),
            Kind::Token => format!("a token id below {}", self.vocab_size),
            Kind::Text => "a text".into(),
            Kind::Name => "a text that is not empty".into(),
            Kind::Choice(texts) => {
                let texts: Vec<String> = texts.iter().map(|text| format!("{text:?}")).collect();
                either(&texts)
            }
            Kind::Only { values, .. } => either(&owned(values)),
            Kind::List { of, .. } => match of {
                Kind::Token => "a list of token ids".into(),
                Kind::Text | Kind::Name => "a list of texts".into(),
                Kind::List { .. } => "a list of lists".into(),
                _ => "a list".into(),
            },
            Kind::ByToken(_) => "an object of numbers by token id".into(),
            Kind::Object(_) | Kind::Tagged { .. } | Kind::AnyObject => "an object".into(),
            Kind::OneOf(kinds) => {
                let kinds: Vec<String> = kinds.iter().map(|kind| self.describe(kind)).collect();
                either(&kinds)
            }
        }
    }
}

/// A whole number, however it is written.
pub(super) fn integer(value: &Value) -> Option<i64> {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    #[allow(clippy::cast_possible_truncation, reason = "it is whole and small enough")]
    let whole = |x: f64| (x.fract() == 0.0 && x.abs() <= EXACT).then_some(x as i64);
    value.as_i64().or_else(|| value.as_f64().filter(|_| value.is_f64()).and_then(whole))
}

fn is_json(value: &Value, json: &str) -> bool {
    let number = value.as_f64().zip(json.parse::<f64>().ok());
    number.is_some_and(|(a, b)| a == b)
        || serde_json::from_str::<Value>(json).is_ok_and(|json| json == *value)
}

fn owned(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

/// A value in a message: itself if short, else its beginning.
pub(crate) fn told(value: &Value) -> String {
    const MAX_CHARS: usize = 60;
    let text = match value {
        Value::Array(list) if list.len() > 8 => return format!("a list of {}", list.len()),
        Value::Object(map) if map.len() > 8 => return format!("an object of {}", map.len()),
        Value::String(text) if text.len() > 1024 => {
            return format!("a text of {} bytes", text.len());
        }
        value => value.to_string(),
    };
    match text.char_indices().nth(MAX_CHARS) {
        Some((end, _)) => format!("{}..", &text[..end]),
        None => text,
    }
}

fn either(names: &[String]) -> String {
    match names {
        [] => "null".into(),
        [one] => one.clone(),
        [first @ .., last] => format!("{} or {last}", first.join(", ")),
    }
}
