//! Reading a table of TOML key by key.
//!
//! A [`Section`] notes every key that is asked for. What is left over at the end is unknown, and
//! the keys that were asked for are those to compare it with: there is no second list of names.

use std::{
    collections::BTreeMap,
    ops::{Range, RangeInclusive},
};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    limits::Limits,
    nearest,
    problem::Problem,
    report::{MISSING, Report},
    value::{either, integer, number, told, unquoted},
};

/// A table, and where its keys stand.
pub(super) struct Section<'a> {
    report: &'a Report<'a>,
    /// Its full name; empty for the file.
    path: String,
    span: Range<usize>,
    left: BTreeMap<String, (Range<usize>, Spanned<DeValue<'a>>)>,
    places: BTreeMap<&'static str, Range<usize>>,
    known: Vec<&'static str>,
}

impl<'a> Section<'a> {
    pub(super) fn new(
        report: &'a Report<'a>,
        path: impl Into<String>,
        span: Range<usize>,
        table: DeTable<'a>,
    ) -> Section<'a> {
        let entries = table.into_iter();
        let left =
            entries.map(|(key, value)| (key.get_ref().to_string(), (key.span(), value))).collect();
        let (places, known) = (BTreeMap::new(), Vec::new());
        Section { report, path: path.into(), span, left, places, known }
    }

    /// Notes what is left over.
    pub(super) fn finish(self) {
        for (key, (span, _)) in self.left {
            self.report.unknown(&self.path, key, span);
        }
        self.report.known(self.path, self.known);
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.places.contains_key(key)
    }

    /// Notes what is wrong with a key that was asked for, or with the table for lack of it.
    pub(super) fn problem(&self, key: &str, reason: impl Into<String>, help: Option<&str>) {
        let problem = Problem::new(self.report.text, self.place(key), self.full(key), reason);
        self.report.problem(problem.help(help.map(str::to_owned)));
    }

    pub(super) fn missing(&self, key: &str, help: &str) {
        self.problem(key, MISSING, Some(help));
    }

    /// Notes something that is not wrong, but not as it seems either.
    pub(super) fn note(&self, key: &str, reason: impl Into<String>) {
        let note = Problem::new(self.report.text, self.place(key), self.full(key), reason);
        self.report.note(note);
    }

    fn place(&self, key: &str) -> Range<usize> {
        self.places.get(key).unwrap_or(&self.span).clone()
    }

    fn full(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    fn take(&mut self, key: &'static str) -> Option<DeValue<'a>> {
        self.known.push(key);
        let (span, value) = self.left.remove(key)?;
        let is_table = matches!(value.get_ref(), DeValue::Table(_));
        self.places.insert(key, if is_table { span } else { value.span() });
        Some(value.into_inner())
    }

    fn refuse(&self, key: &str, value: &DeValue<'_>, wanted: &str, help: Option<&str>) {
        self.problem(key, format!("is {}, and must be {wanted}", told(value)), help);
    }

    pub(super) fn flag(&mut self, key: &'static str) -> Option<bool> {
        match self.take(key)? {
            DeValue::Boolean(flag) => Some(flag),
            other => {
                self.refuse(key, &other, "true or false", None);
                None
            }
        }
    }

    pub(super) fn number(&mut self, key: &'static str, limits: Limits) -> Option<f64> {
        let value = self.take(key)?;
        let number = number(&value).filter(|x| limits.hold(*x));
        if number.is_none() {
            self.refuse(key, &value, &limits.to_string(), unquoted(&value));
        }
        number
    }

    /// A list of so many numbers.
    pub(super) fn numbers<const N: usize>(
        &mut self,
        key: &'static str,
        limits: Limits,
    ) -> Option<[f64; N]> {
        let value = self.take(key)?;
        let items = value.as_array().map(|list| list.iter().map(|v| number(v.get_ref())));
        let numbers: Option<Vec<f64>> =
            items.and_then(|items| items.map(|x| x.filter(|x| limits.hold(*x))).collect());
        let numbers = numbers.and_then(|numbers| <[f64; N]>::try_from(numbers).ok());
        if numbers.is_none() {
            self.refuse(key, &value, &format!("a list of {N}, each {limits}"), None);
        }
        numbers
    }

    pub(super) fn count(&mut self, key: &'static str, range: RangeInclusive<u64>) -> Option<u64> {
        let value = self.take(key)?;
        let count = integer(&value).and_then(|i| u64::try_from(i).ok());
        let count = count.filter(|i| range.contains(i));
        if count.is_none() {
            let (lo, hi) = (range.start(), range.end());
            let wanted = match *hi {
                u64::MAX => format!("a whole number of at least {lo}"),
                hi => format!("a whole number from {lo} to {hi}"),
            };
            let help = match &value {
                DeValue::Float(_) if number(&value).is_some_and(|x| x.fract() == 0.0) => {
                    Some("write it without point and exponent")
                }
                value => unquoted(value),
            };
            self.refuse(key, &value, &wanted, help);
        }
        count
    }

    /// A count of things in memory.
    pub(super) fn size(&mut self, key: &'static str, range: RangeInclusive<u64>) -> Option<usize> {
        self.count(key, range).and_then(|n| usize::try_from(n).ok())
    }

    /// A text that is not empty.
    pub(super) fn text(&mut self, key: &'static str) -> Option<String> {
        self.parsed(key, "a text that is not empty", None, |text| Some(text.to_owned()))
    }

    /// A text that `parse` understands.
    pub(super) fn parsed<T>(
        &mut self,
        key: &'static str,
        wanted: &str,
        help: Option<&str>,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Option<T> {
        let value = self.take(key)?;
        let parsed = value.as_str().filter(|text| !text.is_empty()).and_then(parse);
        if parsed.is_none() {
            self.refuse(key, &value, wanted, help);
        }
        parsed
    }

    /// One of some names.
    pub(super) fn choice<T: Copy>(
        &mut self,
        key: &'static str,
        choices: &[(&'static str, T)],
    ) -> Option<T> {
        let value = self.take(key)?;
        let chosen = choices.iter().find(|(name, _)| value.as_str() == Some(*name));
        if chosen.is_none() {
            let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
            let near = value.as_str().and_then(|text| nearest::of(text, &names));
            let help = near.map(|name| format!("did you mean {name:?}?"));
            let quoted: Vec<String> = names.iter().map(|name| format!("{name:?}")).collect();
            self.refuse(key, &value, &either(&quoted), help.as_deref());
        }
        chosen.map(|(_, chosen)| *chosen)
    }

    /// A text, or a list of texts.
    pub(super) fn texts(&mut self, key: &'static str) -> Option<Vec<String>> {
        let value = self.take(key)?;
        let full = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let texts: Option<Vec<String>> = match &value {
            DeValue::String(text) => full(text).map(|text| vec![text]),
            DeValue::Array(list) => list.iter().map(|v| full(v.get_ref().as_str()?)).collect(),
            _ => None,
        };
        let texts = texts.filter(|texts| !texts.is_empty());
        if texts.is_none() {
            self.refuse(key, &value, "a text or a list of texts, none of them empty", None);
        }
        texts
    }

    /// The table of a key; an empty one where there is none.
    pub(super) fn table(&mut self, key: &'static str) -> Section<'a> {
        let path = self.full(key);
        self.optional_table(key)
            .unwrap_or_else(|| Section::new(self.report, path, self.span.clone(), DeTable::new()))
    }

    pub(super) fn optional_table(&mut self, key: &'static str) -> Option<Section<'a>> {
        match self.take(key)? {
            DeValue::Table(table) => {
                Some(Section::new(self.report, self.full(key), self.place(key), table))
            }
            other => {
                let help = format!("write [{}] on a line of its own", self.full(key));
                self.refuse(key, &other, "a table", Some(&help));
                None
            }
        }
    }

    /// The tables of `[[key]]`.
    pub(super) fn tables(&mut self, key: &'static str) -> Vec<Section<'a>> {
        let Some(value) = self.take(key) else { return Vec::new() };
        let help = format!("write [[{}]] on a line of its own", self.full(key));
        let DeValue::Array(list) = value else {
            self.refuse(key, &value, "a list of tables", Some(&help));
            return Vec::new();
        };
        let mut out = Vec::new();
        for (index, value) in list.into_iter().enumerate() {
            let span = value.span();
            match value.into_inner() {
                DeValue::Table(table) => {
                    let path = format!("{}[{index}]", self.full(key));
                    out.push(Section::new(self.report, path, span, table));
                }
                other => self.refuse(key, &other, "a list of tables", Some(&help)),
            }
        }
        out
    }
}
