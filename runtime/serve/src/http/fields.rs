//! Fields of requests as tables: each row says what a field may hold, and from it follow the check,
//! the message about a wrong value, and the field's part of the OpenAPI document.
//!
//! Nothing is ignored: a field that is in no table is refused, and one that this server cannot
//! honour has a row that takes only the values that change nothing. `null` is the same as absence.

mod check;
mod schema;

use serde_json::{Map, Value};

pub(crate) use check::Problems;
pub(crate) use schema::object_schema;

/// A field of an object.
pub(crate) struct Field {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    pub(crate) is_required: bool,
    /// What it does, for the document.
    pub(crate) about: &'static str,
}

/// Tables of fields that make up one object.
pub(crate) type Table = &'static [&'static [Field]];

/// What a value may be.
pub(crate) enum Kind {
    /// `true` or `false`.
    Bool,
    /// A whole number.
    Integer { from: i64, to: i64 },
    /// A number; `from` itself is too little where `is_open`.
    Number { from: f64, to: f64, is_open: bool },
    /// An id of the vocabulary.
    Token,
    /// A text, perhaps empty.
    Text,
    /// A text that is not empty.
    Name,
    /// One of these texts.
    Choice(&'static [&'static str]),
    /// One of these values, as JSON, none of which changes anything; else the reason.
    Only { values: &'static [&'static str], why: &'static str },
    /// A list of so many.
    List { of: &'static Kind, from: usize, to: usize },
    /// Values by token id.
    ByToken(&'static Kind),
    /// An object with these fields and no others.
    Object(Table),
    /// An object whose field `by` says which others it has.
    Tagged { by: &'static str, of: &'static [(&'static str, Table)] },
    /// Any object.
    AnyObject,
    /// Any of these.
    OneOf(&'static [Kind]),
}

/// A field that may be absent.
pub(crate) const fn field(name: &'static str, kind: Kind, about: &'static str) -> Field {
    Field { name, kind, is_required: false, about }
}

/// A field that must be there.
pub(crate) const fn required(name: &'static str, kind: Kind, about: &'static str) -> Field {
    Field { name, kind, is_required: true, about }
}

impl Kind {
    pub(crate) const fn at_least(from: i64) -> Kind {
        Kind::Integer { from, to: i64::MAX }
    }

    pub(crate) const fn between(from: f64, to: f64) -> Kind {
        Kind::Number { from, to, is_open: false }
    }
}

/// The fields of an object that has been checked. Absent, `null` and wrong ones are `None`.
#[derive(Clone, Copy)]
pub(crate) struct Fields<'a>(pub(crate) &'a Map<String, Value>);

impl<'a> Fields<'a> {
    pub(crate) fn get(self, name: &str) -> Option<&'a Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    pub(crate) fn bool(self, name: &str) -> Option<bool> {
        self.get(name)?.as_bool()
    }

    pub(crate) fn integer(self, name: &str) -> Option<i64> {
        check::integer(self.get(name)?)
    }

    pub(crate) fn count(self, name: &str) -> Option<usize> {
        usize::try_from(self.integer(name)?).ok()
    }

    pub(crate) fn number(self, name: &str) -> Option<f64> {
        self.get(name)?.as_f64()
    }

    pub(crate) fn text(self, name: &str) -> Option<&'a str> {
        self.get(name)?.as_str()
    }

    pub(crate) fn list(self, name: &str) -> Option<&'a [Value]> {
        self.get(name)?.as_array().map(Vec::as_slice)
    }

    pub(crate) fn object(self, name: &str) -> Option<Fields<'a>> {
        self.get(name)?.as_object().map(Fields)
    }

    /// A list of token ids.
    pub(crate) fn tokens(self, name: &str) -> Option<Vec<u32>> {
        tokens(self.get(name)?)
    }

    /// A text, or a list of texts.
    pub(crate) fn texts(self, name: &str) -> Vec<String> {
        match self.get(name) {
            Some(Value::String(text)) => vec![text.clone()],
            Some(Value::Array(list)) => {
                list.iter().filter_map(Value::as_str).map(str::to_owned).collect()
            }
            _ => Vec::new(),
        }
    }
}

/// Token ids, if the value is a list of nothing else.
pub(crate) fn tokens(value: &Value) -> Option<Vec<u32>> {
    let token = |value| u32::try_from(check::integer(value)?).ok();
    value.as_array()?.iter().map(token).collect()
}

#[cfg(test)]
mod tests;
