//! Typed reading of a JSON object's fields, collecting every problem on the way.
//!
//! A field is read as `fields.count("hidden_size", 1..=MAX).required()`: the first call checks kind
//! and range, the second says what an absent field means. Both return `None` for a field that was
//! reported, so a reader goes on to the next and gives up only at its end. `null` counts as absent.

use std::{cell::RefCell, fmt, ops::RangeInclusive, path::Path};

use serde_json::{Map, Value};

use crate::{FrontendError, json};

/// Problems found so far, shared by an object and those within it.
pub(crate) type Errors = RefCell<Vec<FrontendError>>;

/// The fields of one JSON object.
pub(crate) struct Fields<'a> {
    file: &'a Path,
    /// Path of the object within the file, ending in a dot unless it is the whole.
    path: String,
    map: &'a Map<String, Value>,
    errors: &'a Errors,
}

/// What reading one field gave.
pub(crate) struct Read<'a, T> {
    fields: &'a Fields<'a>,
    name: &'a str,
    expected: String,
    state: State<T>,
}

enum State<T> {
    Absent,
    Reported,
    Is(T),
}

impl<'a> Fields<'a> {
    /// The fields of a file's object.
    pub(crate) fn new(
        file: &'a Path,
        map: &'a Map<String, Value>,
        errors: &'a Errors,
    ) -> Fields<'a> {
        Fields { file, path: String::new(), map, errors }
    }

    /// Reports a problem with a field.
    pub(crate) fn refuse(&self, name: &str, reason: impl Into<String>) {
        let field = format!("{}{name}", self.path);
        self.errors.borrow_mut().push(FrontendError::field(self.file, &field, reason));
    }

    /// Reports every field besides the known ones that is not null; whether there was none.
    pub(crate) fn refuse_others(&self, known: &[&str], why: &str) -> bool {
        let other =
            |(name, value): &(&String, &Value)| !value.is_null() && !known.contains(&name.as_str());
        let others: Vec<&String> = self.map.iter().filter(other).map(|(name, _)| name).collect();
        others.iter().for_each(|name| self.refuse(name, why));
        others.is_empty()
    }

    /// The field's value, unless it is absent or null.
    pub(crate) fn get(&self, name: &str) -> Option<&'a Value> {
        self.map.get(name).filter(|v| !v.is_null())
    }

    /// Whether the field is there, be it null.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.map.contains_key(name)
    }

    fn read<'b, T>(
        &'b self,
        name: &'b str,
        expected: impl fmt::Display,
        parse: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Read<'b, T> {
        let expected = expected.to_string();
        let state = match self.get(name).map(|v| (v, parse(v))) {
            None => State::Absent,
            Some((_, Some(v))) => State::Is(v),
            Some((v, None)) => {
                self.refuse(name, format!("is {}, expected {expected}", json::shown(v)));
                State::Reported
            }
        };
        Read { fields: self, name, expected, state }
    }

    /// An integer within a range.
    pub(crate) fn count<'b>(&'b self, name: &'b str, range: RangeInclusive<u64>) -> Read<'b, u64> {
        let expected = format!("an integer from {} to {}", range.start(), range.end());
        self.read(name, expected, |v| v.as_u64().filter(|n| range.contains(n)))
    }

    /// A number within a range.
    pub(crate) fn number<'b>(&'b self, name: &'b str, range: RangeInclusive<f64>) -> Read<'b, f64> {
        let expected = format!("a number from {:?} to {:?}", range.start(), range.end());
        self.read(name, expected, |v| v.as_f64().filter(|x| range.contains(x)))
    }

    /// A list of numbers within a range, as many as given where that is known.
    pub(crate) fn numbers<'b>(
        &'b self,
        name: &'b str,
        len: Option<u64>,
        range: RangeInclusive<f64>,
    ) -> Read<'b, Vec<f64>> {
        let (lo, hi) = (range.start(), range.end());
        let many = len.map(|n| format!("{n} ")).unwrap_or_default();
        let expected = format!("a list of {many}numbers from {lo:?} to {hi:?}");
        self.read(name, expected, |v| {
            let list = v.as_array()?;
            if len.is_some_and(|n| n != list.len() as u64) {
                return None;
            }
            list.iter().map(|v| v.as_f64().filter(|x| range.contains(x))).collect()
        })
    }

    /// A boolean.
    pub(crate) fn flag<'b>(&'b self, name: &'b str) -> Read<'b, bool> {
        self.read(name, "true or false", Value::as_bool)
    }

    /// A string.
    pub(crate) fn text<'b>(&'b self, name: &'b str) -> Read<'b, &'a str> {
        self.read(name, "a string", Value::as_str)
    }

    /// One of the strings that stand for a value.
    pub(crate) fn choice<'b, T: Copy>(
        &'b self,
        name: &'b str,
        choices: &[(&str, T)],
    ) -> Read<'b, T> {
        let names: Vec<&str> = choices.iter().map(|(n, _)| *n).collect();
        self.read(name, format!("one of {}", names.join(", ")), |v| {
            choices.iter().find(|(n, _)| Some(*n) == v.as_str()).map(|(_, t)| *t)
        })
    }

    /// A list of as many strings, each of which stands for a value.
    pub(crate) fn choices<'b, T: Copy>(
        &'b self,
        name: &'b str,
        len: u64,
        choices: &[(&str, T)],
    ) -> Read<'b, Vec<T>> {
        let names: Vec<&str> = choices.iter().map(|(n, _)| *n).collect();
        self.read(name, format!("a list of {len} of {}", names.join(", ")), |v| {
            let list = v.as_array().filter(|list| list.len() as u64 == len)?;
            let one = |v: &Value| choices.iter().find(|(n, _)| Some(*n) == v.as_str());
            list.iter().map(|v| one(v).map(|(_, t)| *t)).collect()
        })
    }

    /// An object within this one.
    pub(crate) fn object<'b>(&'b self, name: &'b str) -> Read<'b, Fields<'a>> {
        let path = format!("{}{name}.", self.path);
        let (file, errors) = (self.file, self.errors);
        self.read(name, "an object", |v| Some(Fields { file, path, map: v.as_object()?, errors }))
    }

    /// Whether a field is absent or has the one value that is supported; else it is reported.
    pub(crate) fn only<T: PartialEq + fmt::Debug>(
        &self,
        read: Read<'_, T>,
        supported: &T,
        why: &str,
    ) -> bool {
        match read.state {
            State::Is(v) if v != *supported => {
                self.refuse(read.name, format!("is {v:?}: {why}"));
                false
            }
            State::Reported => false,
            _ => true,
        }
    }
}

impl<T> Read<'_, T> {
    /// The value; an absent field is reported.
    pub(crate) fn required(self) -> Option<T> {
        if matches!(self.state, State::Absent) {
            self.fields.refuse(self.name, format!("is missing, expected {}", self.expected));
        }
        self.value()
    }

    /// The value, or the one that an absent field stands for.
    pub(crate) fn or(self, default: T) -> Option<T> {
        match self.state {
            State::Absent => Some(default),
            _ => self.value(),
        }
    }

    /// The value where there is one.
    pub(crate) fn optional(self) -> Option<Option<T>> {
        match self.state {
            State::Absent => Some(None),
            State::Reported => None,
            State::Is(v) => Some(Some(v)),
        }
    }

    fn value(self) -> Option<T> {
        match self.state {
            State::Is(v) => Some(v),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_problem_is_reported_once_and_defaults_fill_in() {
        let map = json::object(
            Path::new("config.json"),
            br#"{"heads": 0, "eps": "x", "act": "swoosh", "null": null, "ok": 3, "big": 1e12,
                 "inner": {"factor": -1}, "list": [1.0, 2], "huge": 1000000000000}"#,
        )
        .unwrap();
        let errors = Errors::default();
        let c = Fields::new(Path::new("config.json"), &map, &errors);
        assert_eq!(c.count("heads", 1..=9).required(), None);
        assert_eq!(c.number("eps", 0.0..=1.0).or(0.5), None);
        assert_eq!(c.choice("act", &[("relu", 1), ("silu", 2)]).required(), None);
        assert_eq!(c.count("null", 1..=9).or(4), Some(4));
        assert_eq!(c.count("none", 1..=9).required(), None);
        assert_eq!(c.count("none", 1..=9).optional(), Some(None));
        assert_eq!(c.count("ok", 1..=9).optional(), Some(Some(3)));
        assert_eq!(c.count("big", 1..=9).required(), None);
        assert_eq!(c.count("huge", 1..=9).required(), None);
        assert_eq!(c.numbers("list", Some(2), 0.0..=9.0).required(), Some(vec![1.0, 2.0]));
        assert_eq!(c.numbers("list", Some(3), 0.0..=9.0).required(), None);
        let inner = c.object("inner").required().unwrap();
        assert_eq!(inner.number("factor", 1.0..=9.0).required(), None);
        assert!(!c.only(c.count("ok", 1..=9), &4, "only 4 is supported"));
        let text: Vec<String> = errors.borrow().iter().map(ToString::to_string).collect();
        assert_eq!(
            text,
            [
                "config.json: field `heads` is 0, expected an integer from 1 to 9",
                "config.json: field `eps` is \"x\", expected a number from 0.0 to 1.0",
                "config.json: field `act` is \"swoosh\", expected one of relu, silu",
                "config.json: field `none` is missing, expected an integer from 1 to 9",
                "config.json: field `big` is 1000000000000.0, expected an integer from 1 to 9",
                "config.json: field `huge` is 1000000000000, expected an integer from 1 to 9",
                "config.json: field `list` is [1.0,2], expected a list of 3 numbers from 0.0 to 9.0",
                "config.json: field `inner.factor` is -1, expected a number from 1.0 to 9.0",
                "config.json: field `ok` is 3: only 4 is supported",
            ]
        );
    }
}
