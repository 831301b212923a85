//! Reasoning in `<think>` and `</think>`, told apart from the answer as text streams.
//!
//! Where reasoning starts is the chat template's choice. Qwen 3's leaves it to the model, which may
//! begin with `<think>`, and writes an empty block into the prompt where the request wants no
//! reasoning. DeepSeek R1's (and Qwen 3 Thinking's) ends the prompt with `<think>`, so that the
//! text is reasoning from its first character. The prompt's end tells which it was.

use std::{fmt, str::FromStr};

use crate::{error::TextError, mark::advance};

pub(crate) const OPEN: &str = "<think>";
pub(crate) const CLOSE: &str = "</think>";

/// When a model reasons.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ReasoningFormat {
    /// If its text begins with `<think>`: Qwen 3.
    Qwen3,
    /// Always: DeepSeek R1, Qwen 3 Thinking.
    DeepSeekR1,
}

/// What a piece of streamed text turned out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReasoningEvent {
    /// Reasoning.
    Reasoning(String),
    /// The answer.
    Text(String),
}

/// Separates reasoning from the answer, incrementally.
///
/// The tags are left out, with the line breaks beside them. Tags after the answer has begun are
/// text, those after a prompt that ends with a closing tag too. Where pieces are cut makes no
/// difference to what the events add up to.
///
/// ```
/// # use brolly_text as text;
/// use text::ReasoningEvent::{Reasoning, Text};
///
/// let mut parser = text::ReasoningParser::new(text::ReasoningFormat::Qwen3, "<|assistant|>\n");
/// assert_eq!(parser.push("<thi"), []);
/// assert_eq!(parser.push("nk>\nA sum.\n</think>\n\n4"), [
///     Reasoning("A sum.".to_owned()),
///     Text("4".to_owned()),
/// ]);
/// assert_eq!(parser.finish(), []);
/// ```
#[derive(Clone, Debug)]
pub struct ReasoningParser {
    state: State,
    /// What may be a tag, or line breaks beside one.
    held: String,
    events: Vec<ReasoningEvent>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nothing but whitespace came yet, then so many bytes of the opening tag; whether the text is
    /// reasoning even without it.
    Start {
        matched: usize,
        reasons: bool,
    },
    /// Line breaks after the opening tag.
    Opened,
    /// Reasoning, then so many bytes of the closing tag.
    Reasoning(usize),
    /// Line breaks after the closing tag.
    Closed,
    Text,
}

impl ReasoningFormat {
    /// Guesses from the source of a chat template; `None` if it speaks of no reasoning.
    #[must_use]
    pub fn detect(template: &str) -> Option<Self> {
        if !template.contains(CLOSE) && !template.contains(OPEN) {
            return None;
        }
        let prompt = template.rfind("add_generation_prompt").map_or("", |at| &template[at..]);
        let leaves_open = prompt.contains(OPEN) && !prompt.contains(CLOSE);
        Some(if leaves_open { Self::DeepSeekR1 } else { Self::Qwen3 })
    }

    /// The tags. Where the vocabulary has them as special tokens, decoding must not skip them.
    #[must_use]
    pub fn marks(self) -> &'static [&'static str] {
        &[OPEN, CLOSE]
    }

    /// Whether the text after `prompt` begins within reasoning; `None` if the text itself tells.
    pub(crate) fn begins_within(self, prompt: &str) -> Option<bool> {
        let end = prompt.trim_end();
        match self {
            _ if end.ends_with(OPEN) => Some(true),
            _ if end.ends_with(CLOSE) => Some(false),
            Self::DeepSeekR1 => Some(true),
            Self::Qwen3 => None,
        }
    }
}

impl FromStr for ReasoningFormat {
    type Err = TextError;

    /// Reads `qwen3` or `deepseek-r1` (or `deepseek_r1`).
    fn from_str(name: &str) -> Result<Self, TextError> {
        match name {
            "qwen3" => Ok(Self::Qwen3),
            "deepseek-r1" | "deepseek_r1" => Ok(Self::DeepSeekR1),
            _ => Err(TextError::UnknownFormat {
                kind: "format of reasoning",
                name: name.to_owned(),
                known: "qwen3 and deepseek-r1",
            }),
        }
    }
}

impl fmt::Display for ReasoningFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Qwen3 => "qwen3",
            Self::DeepSeekR1 => "deepseek-r1",
        })
    }
}

impl ReasoningParser {
    /// A parser of the text of one answer to `prompt`, of which only the end matters.
    #[must_use]
    pub fn new(format: ReasoningFormat, prompt: &str) -> Self {
        let state = match format.begins_within(prompt) {
            Some(true) => State::Start { matched: 0, reasons: true },
            None => State::Start { matched: 0, reasons: false },
            Some(false) => State::Text,
        };
        Self { state, held: String::new(), events: Vec::new() }
    }

    /// Takes the next piece of the text; gives what is now certain.
    pub fn push(&mut self, piece: &str) -> Vec<ReasoningEvent> {
        for c in piece.chars() {
            self.step(c);
        }
        std::mem::take(&mut self.events)
    }

    /// The text ends; gives what was held back.
    #[must_use]
    pub fn finish(mut self) -> Vec<ReasoningEvent> {
        self.release();
        self.events
    }

    /// Whether the answer has not begun, as far as is certain: constraints on it come after.
    #[must_use]
    pub fn is_reasoning(&self) -> bool {
        match self.state {
            State::Start { reasons, .. } => reasons,
            State::Opened | State::Reasoning(_) => true,
            State::Closed | State::Text => false,
        }
    }

    fn step(&mut self, c: char) {
        match self.state {
            State::Start { matched: 0, .. } if c.is_whitespace() => self.held.push(c),
            State::Start { matched, reasons } => match advance(OPEN, matched, c) {
                Some(next) if next == OPEN.len() => self.open(),
                Some(next) => {
                    self.held.push(c);
                    self.state = State::Start { matched: next, reasons };
                }
                None if reasons => {
                    let held = std::mem::take(&mut self.held);
                    self.state = State::Opened;
                    held.chars().chain([c]).for_each(|c| self.step(c));
                }
                None => {
                    self.release();
                    self.state = State::Text;
                    self.step(c);
                }
            },
            State::Opened if c == '\n' => {}
            State::Opened => {
                self.state = State::Reasoning(0);
                self.step(c);
            }
            State::Reasoning(matched) => match advance(CLOSE, matched, c) {
                Some(next) if next == CLOSE.len() => {
                    self.held.clear();
                    self.state = State::Closed;
                }
                Some(next) => {
                    self.held.push(c);
                    self.state = State::Reasoning(next);
                }
                None if c == '\n' => {
                    self.release_tag(matched);
                    self.held.push(c);
                }
                None => {
                    self.release();
                    match advance(CLOSE, 0, c) {
                        Some(next) => {
                            self.held.push(c);
                            self.state = State::Reasoning(next);
                        }
                        None => {
                            self.state = State::Reasoning(0);
                            self.emit(c.encode_utf8(&mut [0; 4]));
                        }
                    }
                }
            },
            State::Closed if c == '\n' => {}
            State::Closed | State::Text => {
                self.state = State::Text;
                self.emit(c.encode_utf8(&mut [0; 4]));
            }
        }
    }

    fn open(&mut self) {
        self.held.clear();
        self.state = State::Opened;
    }

    /// What looked like a closing tag so far is none.
    fn release_tag(&mut self, matched: usize) {
        if matched > 0 {
            self.release();
            self.state = State::Reasoning(0);
        }
    }

    fn release(&mut self) {
        let held = std::mem::take(&mut self.held);
        self.emit(&held);
    }

    fn emit(&mut self, text: &str) {
        if text.is_empty() {
            return;
        }
        let is_reasoning = self.is_reasoning();
        match self.events.last_mut() {
            Some(ReasoningEvent::Reasoning(last)) if is_reasoning => last.push_str(text),
            Some(ReasoningEvent::Text(last)) if !is_reasoning => last.push_str(text),
            _ if is_reasoning => self.events.push(ReasoningEvent::Reasoning(text.to_owned())),
            _ => self.events.push(ReasoningEvent::Text(text.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Reasoning and answer of a text in pieces.
    fn split<'a>(
        format: ReasoningFormat,
        prompt: &str,
        pieces: impl IntoIterator<Item = &'a str>,
    ) -> (String, String) {
        let mut parser = ReasoningParser::new(format, prompt);
        let mut events: Vec<ReasoningEvent> =
            pieces.into_iter().flat_map(|piece| parser.push(piece)).collect();
        events.extend(parser.finish());
        let mut parts = (String::new(), String::new());
        for event in events {
            match event {
                // Reasoning never follows the answer.
                ReasoningEvent::Reasoning(text) => {
                    assert_eq!(parts.1, "");
                    parts.0 += &text;
                }
                ReasoningEvent::Text(text) => parts.1 += &text,
            }
        }
        parts
    }

    const QWEN: ReasoningFormat = ReasoningFormat::Qwen3;
    const R1: ReasoningFormat = ReasoningFormat::DeepSeekR1;

    #[test]
    fn where_reasoning_starts_and_ends() {
        for (format, prompt, text, reasoning, answer) in [
            (QWEN, "assistant\n", "<think>\na\n\nb\n</think>\n\nc", "a\n\nb", "c"),
            (QWEN, "assistant\n", " \n<think>a</think>b", "a", "b"),
            (QWEN, "assistant\n", "\n c <think>", "", "\n c <think>"),
            (QWEN, "<think>\n\n</think>\n\n", "c", "", "c"),
            (QWEN, "<think>\n\n</think>\n\n", "\n<think>c", "", "\n<think>c"),
            (QWEN, "<think>\n", "a</think>c", "a", "c"),
            (QWEN, "assistant\n", "<think>\n\n</think>\n\nc", "", "c"),
            (R1, "<think>\n", "a\n</think>\n\nc</think>", "a", "c</think>"),
            (R1, "Assistant:", "a\n</think>c", "a", "c"),
            (R1, "Assistant:", "\n<think>\na\n</think>c", "a", "c"),
            (R1, "Assistant:", "<thin", "<thin", ""),
            (R1, "<think>\n\n</think>\n\n", "c", "", "c"),
            (R1, "<think>\n", "a <</think", "a <</think", ""),
            (R1, "<think>\n", "a\n", "a\n", ""),
            (R1, "<think>\n", " a", " a", ""),
        ] {
            let parts = split(format, prompt, [text]);
            assert_eq!((parts.0.as_str(), parts.1.as_str()), (reasoning, answer), "{text}");
        }
    }

    #[test]
    fn templates_tell_the_format() {
        let qwen = include_str!("chat/tests/qwen.jinja");
        assert_eq!(ReasoningFormat::detect(qwen), Some(QWEN));
        let r1 = "{{ content.split('</think>')[-1] }}{% if add_generation_prompt %}\
                  {{ '<｜Assistant｜><think>\\n' }}{% endif %}";
        assert_eq!(ReasoningFormat::detect(r1), Some(R1));
        assert_eq!(ReasoningFormat::detect(include_str!("chat/tests/llama.jinja")), None);
        for format in [QWEN, R1] {
            assert_eq!(format.to_string().parse::<ReasoningFormat>().unwrap(), format);
        }
        assert!("none".parse::<ReasoningFormat>().is_err());
    }

    proptest! {
        #[test]
        fn cuts_make_no_difference_and_nothing_is_lost(
            pieces in prop::collection::vec(
                prop_oneof!["<think>", "</think>", "\n", "[<>/thinké \n]{0,6}"], 0..12),
            r1 in any::<bool>(),
            open in any::<bool>(),
        ) {
            let format = if r1 { R1 } else { QWEN };
            let prompt = if open { "<think>\n" } else { "" };
            let text = pieces.concat();
            let chars: Vec<String> = text.chars().map(String::from).collect();
            let whole = split(format, prompt, [text.as_str()]);
            prop_assert_eq!(&split(format, prompt, pieces.iter().map(String::as_str)), &whole);
            prop_assert_eq!(&split(format, prompt, chars.iter().map(String::as_str)), &whole);
            // All is there in its order, but one tag of each kind and whitespace.
            let given = format!("{}{}", whole.0, whole.1);
            let mut rest = text.chars();
            prop_assert!(given.chars().all(|c| rest.any(|other| other == c)), "{:?}", whole);
            let visible = |text: &str| text.chars().filter(|c| !c.is_whitespace()).count();
            let lost = visible(&text) - visible(&given);
            let tags = [0, OPEN.len(), CLOSE.len(), OPEN.len() + CLOSE.len()];
            prop_assert!(tags.contains(&lost), "{:?} of {:?}", whole, text);
        }
    }
}
