//! The parts of an assistant's text: what is thought, said and called.

use text::{ReasoningEvent, ReasoningParser, ToolEvent, ToolFormat, ToolParser};

/// A further piece of a message.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Piece {
    /// Of what is thought.
    Reasoning(String),
    /// Of what is said.
    Content(String),
    /// A call begins.
    Call {
        /// Its number in the message.
        index: usize,
        /// The function.
        name: String,
    },
    /// Of the arguments of a call.
    Arguments {
        /// The call's number.
        index: usize,
        /// JSON.
        text: String,
    },
}

/// Divides text as it comes: reasoning first, then calls in the answer. Pieces joined do not depend
/// on how the text is cut.
#[derive(Clone, Debug, Default)]
pub(super) struct Splitter {
    reasoning: Option<ReasoningParser>,
    tools: Option<ToolParser>,
    /// Whether calls after the first are left out.
    is_single: bool,
}

impl Splitter {
    /// For one answer.
    pub(super) fn new(
        reasoning: Option<ReasoningParser>,
        tools: Option<ToolFormat>,
        is_single: bool,
    ) -> Splitter {
        Splitter { reasoning, tools: tools.map(ToolParser::new), is_single }
    }

    /// Takes further text.
    pub(super) fn push(&mut self, text: &str) -> Vec<Piece> {
        let events = match &mut self.reasoning {
            Some(parser) => parser.push(text),
            None => vec![ReasoningEvent::Text(text.to_owned())],
        };
        self.read(events)
    }

    /// The text has ended.
    pub(super) fn finish(&mut self) -> Vec<Piece> {
        let rest = self.reasoning.take().map(ReasoningParser::finish).unwrap_or_default();
        let mut pieces = self.read(rest);
        let rest = self.tools.take().map(ToolParser::finish).unwrap_or_default();
        self.keep(rest, &mut pieces);
        pieces
    }

    fn read(&mut self, events: Vec<ReasoningEvent>) -> Vec<Piece> {
        let mut pieces = Vec::new();
        for event in events {
            match event {
                ReasoningEvent::Reasoning(text) => pieces.push(Piece::Reasoning(text)),
                ReasoningEvent::Text(text) => {
                    let events = match &mut self.tools {
                        Some(parser) => parser.push(&text),
                        None => vec![ToolEvent::Text(text)],
                    };
                    self.keep(events, &mut pieces);
                }
            }
        }
        pieces
    }

    fn keep(&self, events: Vec<ToolEvent>, pieces: &mut Vec<Piece>) {
        for event in events {
            pieces.push(match event {
                ToolEvent::Text(text) if text.is_empty() => continue,
                ToolEvent::Text(text) => Piece::Content(text),
                ToolEvent::Call { index, .. } | ToolEvent::Arguments { index, .. }
                    if self.is_single && index > 0 =>
                {
                    continue;
                }
                ToolEvent::Call { index, name } => Piece::Call { index, name },
                ToolEvent::Arguments { index, piece } => Piece::Arguments { index, text: piece },
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use text::ReasoningFormat;

    use super::*;

    #[test]
    fn thought_said_and_called_are_told_apart() {
        let text = "<think>Hm.</think>Let me see.<tool_call>\n{\"name\": \"f\", \"arguments\": \
                    {\"a\": 1}}\n</tool_call>\n<tool_call>\n{\"name\": \"g\", \"arguments\": {}}\n\
                    </tool_call>";
        let split = |is_single, cut: usize| {
            let reasoning = ReasoningParser::new(ReasoningFormat::Qwen3, "x");
            let mut splitter = Splitter::new(Some(reasoning), Some(ToolFormat::Hermes), is_single);
            let mut pieces = splitter.push(&text[..cut]);
            pieces.extend(splitter.push(&text[cut..]));
            pieces.extend(splitter.finish());
            let mut joined: [String; 4] = Default::default();
            for piece in pieces {
                match piece {
                    Piece::Reasoning(text) => joined[0] += &text,
                    Piece::Content(text) => joined[1] += &text,
                    Piece::Call { name, .. } => joined[2] += &name,
                    Piece::Arguments { text, .. } => joined[3] += &text,
                }
            }
            joined
        };
        for cut in (0..=text.len()).filter(|cut| text.is_char_boundary(*cut)) {
            assert_eq!(split(false, cut), ["Hm.", "Let me see.", "fg", "{\"a\": 1}{}"]);
            assert_eq!(split(true, cut), ["Hm.", "Let me see.", "f", "{\"a\": 1}"]);
        }
        let mut plain = Splitter::default();
        assert_eq!(plain.push(text), [Piece::Content(text.into())]);
        assert_eq!((plain.push(""), plain.finish()), (vec![], vec![]));
    }
}
