//! Why a command ends without success, and how that is told.
//!
//! Exit codes: 1 where the input is at fault, 2 for flags that make no sense (clap's own errors
//! too), 70 where brolly is (`EX_SOFTWARE` of BSD's `sysexits.h`). Every one comes with a message
//! on stderr. A closed stdout is no failure: whoever reads has enough.

use std::{fmt, io::IsTerminal};

use exec::collectives::CollectiveError;
use miette::{
    Diagnostic, GraphicalReportHandler, GraphicalTheme, LabeledSpan, NamedSource, SourceCode,
};

use crate::output;

/// What to do about a bug of ours.
const REPORT: &str =
    "please report it, with the command and what it was given; RUST_BACKTRACE=1 shows where";

/// Problems that are told one by one; of further ones, only the number.
const TOLD: usize = 100;

/// Why a command ends without success.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The input is at fault.
    Input(Box<Problems>),
    /// The flags are.
    Usage(String),
    /// A file that stands for flags is: all of its problems, as text.
    Config(String),
    /// Brolly is.
    Bug(String),
    /// The ranks of a job cannot go on together.
    Ranks(CollectiveError),
    /// The first rank tells it, and this one ends with this code.
    Told(u8),
    /// Nobody reads what is written to stdout.
    Closed,
}

impl From<CollectiveError> for Failure {
    fn from(error: CollectiveError) -> Failure {
        Failure::Ranks(error)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Input(problems) => f.write_str(problems.plain().trim_end()),
            Failure::Usage(text) | Failure::Config(text) | Failure::Bug(text) => f.write_str(text),
            Failure::Ranks(error) => error.fmt(f),
            Failure::Told(_) => f.write_str("the first rank tells why"),
            Failure::Closed => f.write_str("nobody reads the output"),
        }
    }
}

/// What a command returns.
pub(crate) type Result<T, E = Failure> = std::result::Result<T, E>;

impl Failure {
    /// One problem of the input.
    pub(crate) fn input(problem: impl fmt::Display) -> Failure {
        Failure::Input(Problems::new(problem.to_string(), Vec::new()).into())
    }

    /// Several problems of the input under one headline; a single one speaks for itself.
    pub(crate) fn inputs(headline: impl Into<String>, mut problems: Vec<String>) -> Failure {
        let problems = match problems.len() {
            1 => Problems::new(problems.remove(0), Vec::new()),
            _ => Problems::new(headline.into(), problems),
        };
        Failure::Input(problems.into())
    }

    /// The exit code.
    pub(crate) fn code(&self) -> u8 {
        match self {
            Failure::Input(_) | Failure::Ranks(_) => 1,
            Failure::Told(code) => *code,
            Failure::Usage(_) | Failure::Config(_) => 2,
            Failure::Bug(_) => 70,
            Failure::Closed => 0,
        }
    }

    /// Says on stderr what happened.
    pub(crate) fn report(&self) {
        let problems = match self {
            Failure::Input(problems) => problems,
            Failure::Usage(text) => {
                &Problems::new(text.clone(), Vec::new()).help("see `brolly --help`")
            }
            Failure::Bug(text) => {
                &Problems::new(format!("this is a bug in brolly: {text}"), vec![]).help(REPORT)
            }
            Failure::Config(text) => &Problems::new(text.clone(), Vec::new()),
            Failure::Ranks(error) => &Problems::new(error.to_string(), Vec::new()),
            Failure::Told(_) | Failure::Closed => return,
        };
        output::tell(&problems.render(std::io::stderr().is_terminal()));
    }
}

/// One or more problems, told at once.
#[derive(Debug)]
pub(crate) struct Problems {
    headline: String,
    each: Vec<String>,
    /// Those that are told, as miette wants them.
    told: Option<Box<Cause>>,
    help: Option<String>,
    place: Option<(NamedSource<String>, LabeledSpan)>,
}

impl Problems {
    /// A headline and what stands under it.
    pub(crate) fn new(headline: String, each: Vec<String>) -> Problems {
        let link = |next, text| Some(Box::new(Cause { text, next }));
        let more = each.len().saturating_sub(TOLD);
        let last = (more > 0).then(|| format!("and {more} more"));
        let told = each.iter().take(TOLD).cloned().chain(last);
        let told = told.collect::<Vec<_>>().into_iter().rev().fold(None, link);
        Problems { headline, each, told, help: None, place: None }
    }

    /// The problems one by one.
    #[cfg_attr(not(feature = "compiler"), allow(dead_code, reason = "only `check` needs it"))]
    pub(crate) fn each(&self) -> Vec<&str> {
        match self.each.as_slice() {
            [] => vec![&self.headline],
            each => each.iter().map(String::as_str).collect(),
        }
    }

    /// Adds what to do.
    pub(crate) fn help(self, help: impl Into<String>) -> Problems {
        Problems { help: Some(help.into()), ..self }
    }

    /// Adds the place in a text file, as line and column from 1.
    #[cfg_attr(not(feature = "compiler"), allow(dead_code, reason = "only `opt` needs it"))]
    pub(crate) fn at(self, file: &str, text: &str, line: usize, column: usize) -> Problems {
        let before: usize = text.split_inclusive('\n').take(line - 1).map(str::len).sum();
        let in_line: usize =
            text[before..].chars().take(column.saturating_sub(1)).map(char::len_utf8).sum();
        let span = LabeledSpan::new(Some("here".into()), before + in_line, 1);
        Problems { place: Some((NamedSource::new(file, text.to_owned()), span)), ..self }
    }

    fn causes(&self) -> impl Iterator<Item = &str> {
        let links = std::iter::successors(self.told.as_deref(), |c| c.next.as_deref());
        links.map(|c| c.text.as_str())
    }

    fn render(&self, is_terminal: bool) -> String {
        if !is_terminal {
            return self.plain();
        }
        let mut out = String::new();
        let handler = GraphicalReportHandler::new_themed(GraphicalTheme::unicode());
        match handler.render_report(&mut out, self) {
            Ok(()) => out,
            Err(_) => self.plain(),
        }
    }

    /// For files and programs: a line a problem.
    fn plain(&self) -> String {
        let mut out = format!("error: {}\n", self.headline);
        for problem in self.causes() {
            out += &format!("  - {}\n", problem.replace('\n', "\n    "));
        }
        if let Some(help) = &self.help {
            out += &format!("help: {help}\n");
        }
        out
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.headline)
    }
}

impl std::error::Error for Problems {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&**self.told.as_ref()?)
    }
}

/// One of several problems, linked to the next: so they are shown as a tree.
#[derive(Debug)]
struct Cause {
    text: String,
    next: Option<Box<Cause>>,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Cause {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&**self.next.as_ref()?)
    }
}

impl Diagnostic for Problems {
    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.help.as_ref().map(|h| Box::new(h) as Box<dyn fmt::Display>)
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        self.place.as_ref().map(|(source, _)| source as &dyn SourceCode)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let (_, span) = self.place.as_ref()?;
        Some(Box::new(std::iter::once(span.clone())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_problem_is_told() {
        let problems = vec!["a.json: is empty".to_owned(), "b.json: is missing".to_owned()];
        let Failure::Input(both) = Failure::inputs("the model has 2 problems", problems) else {
            panic!("input")
        };
        assert_eq!(
            both.render(false),
            "error: the model has 2 problems\n  - a.json: is empty\n  - b.json: is missing\n"
        );
        let shown = both.render(true);
        assert!(shown.contains("a.json: is empty") && shown.contains("b.json"), "{shown}");
        let Failure::Input(one) = Failure::inputs("x", vec!["a.json: is empty".into()]) else {
            panic!("input")
        };
        assert_eq!(one.help("write it").render(false), "error: a.json: is empty\nhelp: write it\n");
    }

    #[test]
    fn of_very_many_problems_the_first_are_told() {
        let problems: Vec<String> = (0..300_000).map(|i| format!("tensor {i}")).collect();
        let Failure::Input(all) = Failure::inputs("too many", problems) else { panic!("input") };
        let plain = all.render(false);
        assert_eq!(plain.lines().count(), 102);
        assert!(plain.ends_with("  - tensor 99\n  - and 299900 more\n"), "{plain}");
        assert!(all.render(true).contains("and 299900 more"));
        assert_eq!(all.each().len(), 300_000);
    }

    #[test]
    fn a_place_in_text_is_shown() {
        let text = "module \"é\"\nfn main( {\n";
        let problem = Problems::new("`x` expected".into(), vec![]).at("a.ir", text, 2, 9);
        let shown = problem.render(true);
        assert!(shown.contains("a.ir:2:9") && shown.contains("fn main("), "{shown}");
    }
}
