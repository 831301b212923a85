//! What is wrong with a configuration: every problem with its place, its reason and what to do.

use std::{fmt, ops::Range};

/// Lines longer than this are not shown under a problem.
const MAX_SHOWN: usize = 200;

/// One thing that is wrong, or that has no effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The key's full name, such as `optimizer.lr`; empty for faults of syntax.
    pub key: String,
    /// Where in the file, in bytes.
    pub span: Range<usize>,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// What is wrong, as the rest of a sentence about the key.
    pub reason: String,
    /// What to do, where that is not obvious.
    pub help: Option<String>,
}

impl Problem {
    pub(super) fn new(
        text: &str,
        span: Range<usize>,
        key: impl Into<String>,
        reason: impl Into<String>,
    ) -> Problem {
        let before = &text[..floor(text, span.start)];
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        Problem {
            key: key.into(),
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
            span,
            reason: reason.into(),
            help: None,
        }
    }

    pub(super) fn help(self, help: Option<String>) -> Problem {
        Problem { help, ..self }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.key.as_str() {
            "" => write!(f, "{}", self.reason)?,
            key => write!(f, "`{key}` {}", self.reason)?,
        }
        self.help.as_ref().map_or(Ok(()), |help| write!(f, "; {help}"))
    }
}

/// A configuration that cannot be used, with everything that is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The file, as it was named.
    pub file: String,
    /// Its text, for showing the lines.
    pub text: String,
    /// At least one, in the order of the file.
    pub problems: Vec<Problem>,
}

impl std::error::Error for ConfigError {}

/// `file:line:column: problem` for each, with the line of the file and a mark under the place.
impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.problems.len() {
            1 => write!(f, "{} cannot be used", self.file)?,
            n => write!(f, "{} cannot be used: it has {n} problems", self.file)?,
        }
        for problem in &self.problems {
            write!(f, "\n{}:{}:{}: {problem}", self.file, problem.line, problem.column)?;
            let line = self.text.lines().nth(problem.line - 1).unwrap_or_default();
            if line.trim().is_empty() || line.len() > MAX_SHOWN {
                continue;
            }
            let line = line.replace('\t', " ");
            let number = problem.line.to_string();
            let gap = " ".repeat(problem.column - 1);
            let rest = line.chars().count().saturating_sub(problem.column - 1).max(1);
            let end = floor(&self.text, problem.span.end);
            let marked = self.text.get(floor(&self.text, problem.span.start)..end);
            let width = marked.unwrap_or_default().chars().count().clamp(1, rest);
            let margin = " ".repeat(number.len());
            write!(f, "\n  {number} | {line}\n  {margin} | {gap}{}", "^".repeat(width))?;
        }
        Ok(())
    }
}

/// The end of the last whole character at or before `at`.
fn floor(text: &str, at: usize) -> usize {
    text.floor_char_boundary(at)
}
