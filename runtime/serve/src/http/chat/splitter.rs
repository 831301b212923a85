//! The parts of an assistant's text: what is thought, said and called.

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

/// Divides text as it comes. Pieces do not depend on how the text is cut.
#[derive(Debug)]
pub(super) struct Splitter;

impl Splitter {
    /// Takes further text.
    pub(super) fn push(&mut self, text: String) -> Vec<Piece> {
        Some(text).filter(|text| !text.is_empty()).map(Piece::Content).into_iter().collect()
    }

    /// The text has ended.
    pub(super) fn finish(&mut self) -> Vec<Piece> {
        Vec::new()
    }
}
