//! Tool calls: how a model writes that it wants a function called, read and enforced.
//!
//! Models are trained on one of a few formats, which their chat template shows. A [`ToolParser`]
//! reads a format from text as it streams; [`ToolFormat::structure`] gives the grammar under which
//! a model can write nothing else. A [`Tool`] and a [`ToolChoice`] are what a request says, in the
//! shape of OpenAI's chat completions.
//!
//! A parser is an automaton over characters: where pieces are cut makes no difference to what the
//! events add up to. What turns out not to be a call is given back as text.

mod call;
mod first_call;
mod format;
mod grammar;
mod hermes;
mod json;
mod llama;
mod mistral;
mod output;
mod request;

pub use first_call::FirstCall;
pub use format::ToolFormat;
pub use request::{Tool, ToolChoice};

use hermes::Hermes;
use llama::Llama;
use mistral::Mistral;
use output::Output;

/// What a piece of streamed text turned out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToolEvent {
    /// Ordinary text.
    Text(String),
    /// A call begins.
    Call {
        /// Its place among the calls of this text.
        index: usize,
        /// The function to call.
        name: String,
    },
    /// Further text of a call's arguments, which are a JSON object.
    Arguments {
        /// The call's place.
        index: usize,
        /// The next part; parts joined are the arguments.
        piece: String,
    },
}

/// Separates calls from text, incrementally.
///
/// A call begins once its name is known and its arguments have begun: from then on arguments
/// stream. What breaks off before that is text; where a call breaks off later, by an error of the
/// model or the end of the text, it keeps the arguments so far, and what follows is text. Line
/// breaks in strings, which models write and JSON forbids, become escapes. Whitespace beside calls
/// is dropped, as are the marks around them.
///
/// ```
/// # use brolly_text as text;
/// use text::ToolEvent::{Arguments, Call, Text};
///
/// let mut parser = text::ToolParser::new(text::ToolFormat::Hermes);
/// assert_eq!(parser.push("Let me see.\n<tool"), [Text("Let me see.".to_owned())]);
/// assert_eq!(
///     parser.push("_call>\n{\"name\": \"now\", \"arguments\": {\"zone\":"),
///     [
///         Call { index: 0, name: "now".to_owned() },
///         Arguments { index: 0, piece: "{\"zone\":".to_owned() },
///     ]
/// );
/// let end = "\"UTC\"}}\n</tool_call>";
/// assert_eq!(parser.push(end), [Arguments { index: 0, piece: "\"UTC\"}".to_owned() }]);
/// assert_eq!(parser.finish(), []);
/// ```
#[derive(Clone, Debug)]
pub struct ToolParser {
    machine: Machine,
    output: Output,
}

#[derive(Clone, Debug)]
enum Machine {
    Hermes(Hermes),
    Llama(Llama),
    Mistral(Mistral),
}

impl ToolParser {
    /// A parser of the text of one answer.
    #[must_use]
    pub fn new(format: ToolFormat) -> Self {
        let machine = match format {
            ToolFormat::Hermes => Machine::Hermes(Hermes::default()),
            ToolFormat::Llama3 => Machine::Llama(Llama::default()),
            ToolFormat::Mistral => Machine::Mistral(Mistral::default()),
        };
        Self { machine, output: Output::default() }
    }

    /// Takes the next piece of the text; gives what is now certain.
    pub fn push(&mut self, piece: &str) -> Vec<ToolEvent> {
        for c in piece.chars() {
            match &mut self.machine {
                Machine::Hermes(machine) => machine.push(c, &mut self.output),
                Machine::Llama(machine) => machine.push(c, &mut self.output),
                Machine::Mistral(machine) => machine.push(c, &mut self.output),
            }
        }
        self.output.take()
    }

    /// Whether a call has begun and the last one is over: its arguments are complete, or broke off.
    #[must_use]
    pub fn has_called(&self) -> bool {
        let is_calling = match &self.machine {
            Machine::Hermes(machine) => machine.is_calling(),
            Machine::Llama(machine) => machine.is_calling(),
            Machine::Mistral(machine) => machine.is_calling(),
        };
        self.output.calls() > 0 && !is_calling
    }

    /// The text ends; gives what was held back.
    #[must_use]
    pub fn finish(mut self) -> Vec<ToolEvent> {
        if let Machine::Hermes(machine) = &self.machine
            && machine.is_closing()
        {
            self.output.drop_held();
        }
        self.output.finish();
        self.output.take()
    }
}

#[cfg(test)]
mod tests;
