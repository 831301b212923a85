//! Gathering what is wrong with a text while it is read.

use std::{cell::RefCell, collections::BTreeMap, ops::Range};

use super::{nearest, problem::Problem};

/// The reason of a problem with a key that is not there.
pub(super) const MISSING: &str = "is missing";

/// Problems found so far in a text.
pub(super) struct Report<'t> {
    pub(super) text: &'t str,
    problems: RefCell<Vec<Problem>>,
    notes: RefCell<Vec<Problem>>,
    /// Keys by table.
    known: RefCell<BTreeMap<String, Vec<&'static str>>>,
    /// Table, key and place of what no table has.
    unknown: RefCell<Vec<(String, String, Range<usize>)>>,
}

impl<'t> Report<'t> {
    pub(super) fn new(text: &'t str) -> Report<'t> {
        let (problems, notes) = (RefCell::default(), RefCell::default());
        Report { text, problems, notes, known: RefCell::default(), unknown: RefCell::default() }
    }

    pub(super) fn problem(&self, problem: Problem) {
        self.problems.borrow_mut().push(problem);
    }

    pub(super) fn note(&self, note: Problem) {
        self.notes.borrow_mut().push(note);
    }

    /// Adds keys that a table has.
    pub(super) fn known(&self, table: String, keys: Vec<&'static str>) {
        self.known.borrow_mut().entry(table).or_default().extend(keys);
    }

    /// Adds a key that its table does not have.
    pub(super) fn unknown(&self, table: &str, key: String, span: Range<usize>) {
        self.unknown.borrow_mut().push((table.to_owned(), key, span));
    }

    /// Problems and notes, in the order of the file.
    pub(super) fn finish(self) -> (Vec<Problem>, Vec<Problem>) {
        let known = self.known.into_inner();
        let mut problems = self.problems.into_inner();
        for (table, key, span) in self.unknown.into_inner() {
            let (reason, full) = match table.as_str() {
                "" => ("is not a key or table at the top of the file".to_owned(), key.clone()),
                table => (format!("is not a key of [{table}]"), format!("{table}.{key}")),
            };
            let help = nearest::key(&known, &table, &key);
            // What was misspelt is not missing too.
            problems
                .retain(|p| p.reason != MISSING || help != format!("did you mean `{}`?", p.key));
            problems.push(Problem::new(self.text, span, full, reason).help(Some(help)));
        }
        let mut notes = self.notes.into_inner();
        problems.sort_by_key(|p| p.span.start);
        notes.sort_by_key(|p| p.span.start);
        (problems, notes)
    }
}
