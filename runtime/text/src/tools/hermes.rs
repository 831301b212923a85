//! `<tool_call>{"name": .., "arguments": {..}}</tool_call>`: Hermes 2 Pro, Qwen 2.5 and 3.

use super::{
    call::{CallObject, Progress},
    output::Output,
};
use crate::mark::advance;

pub(super) const OPEN: &str = "<tool_call>";
pub(super) const CLOSE: &str = "</tool_call>";

#[derive(Clone, Debug, Default)]
pub(super) struct Hermes {
    state: State,
}

#[derive(Clone, Debug)]
enum State {
    /// Text, or so many bytes of the opening tag.
    Text(usize),
    /// Between the opening tag and the object.
    Open,
    Call(Box<CallObject>),
    /// After the object: so many bytes of the closing tag.
    Close(usize),
}

impl Default for State {
    fn default() -> Self {
        Self::Text(0)
    }
}

impl Hermes {
    pub(super) fn push(&mut self, c: char, output: &mut Output) {
        match &mut self.state {
            State::Text(matched) => match advance(OPEN, *matched, c) {
                Some(next) => {
                    output.hold(c);
                    self.state = if next == OPEN.len() { State::Open } else { State::Text(next) };
                }
                None if *matched > 0 => self.give_up(c, output),
                None => output.text(c),
            },
            State::Open if c.is_whitespace() => output.hold(c),
            State::Open if c == '{' => {
                self.state = State::Call(Box::default());
                self.push(c, output);
            }
            State::Open => self.give_up(c, output),
            State::Call(call) => match call.push(c, output) {
                Progress::More => {}
                Progress::Done if call.has_begun() => self.state = State::Close(0),
                Progress::Done => {
                    output.release();
                    self.state = State::Text(0);
                }
                Progress::Broken => self.give_up(c, output),
            },
            State::Close(0) if c.is_whitespace() => output.text(c),
            State::Close(matched) => match advance(CLOSE, *matched, c) {
                Some(next) if next == CLOSE.len() => {
                    output.drop_held();
                    self.state = State::Text(0);
                }
                Some(next) => {
                    output.hold(c);
                    self.state = State::Close(next);
                }
                None => self.give_up(c, output),
            },
        }
    }

    /// Whether the text is within an object that may be a call.
    pub(super) fn is_calling(&self) -> bool {
        matches!(self.state, State::Call(_))
    }

    /// Whether what is held is the beginning of a closing tag.
    pub(super) fn is_closing(&self) -> bool {
        matches!(self.state, State::Close(_))
    }

    /// What is held is text, and `c` may be.
    fn give_up(&mut self, c: char, output: &mut Output) {
        output.release();
        self.state = State::Text(0);
        self.push(c, output);
    }
}
