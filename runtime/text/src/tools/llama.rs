//! `{"name": .., "parameters": {..}}`, several separated by `;`: Llama 3.1 and later.
//!
//! The objects are all of the answer, or follow `<|python_tag|>` in it.

use super::{
    call::{CallObject, Progress},
    output::Output,
};
use crate::mark::advance;

pub(super) const TAG: &str = "<|python_tag|>";

#[derive(Clone, Debug, Default)]
pub(super) struct Llama {
    state: State,
}

#[derive(Clone, Debug, Default)]
enum State {
    /// Nothing but whitespace came yet.
    #[default]
    Start,
    /// Text, or so many bytes of the tag.
    Text(usize),
    /// After the tag, or after `;`.
    Open,
    Call(Box<CallObject>),
    /// After an object.
    Between,
}

impl Llama {
    pub(super) fn push(&mut self, c: char, output: &mut Output) {
        match &mut self.state {
            State::Start if c.is_whitespace() => output.hold(c),
            State::Start | State::Open | State::Between if c == '{' => {
                self.state = State::Call(Box::new(CallObject::with_arguments()));
                self.push(c, output);
            }
            State::Open if c.is_whitespace() => output.hold(c),
            State::Between if c.is_whitespace() => output.text(c),
            State::Between if c == ';' => {
                output.hold(c);
                self.state = State::Open;
            }
            State::Start | State::Open | State::Between => self.give_up(c, output),
            State::Text(matched) => match advance(TAG, *matched, c) {
                Some(next) => {
                    output.hold(c);
                    self.state = if next == TAG.len() { State::Open } else { State::Text(next) };
                }
                None if *matched > 0 => self.give_up(c, output),
                None => output.text(c),
            },
            State::Call(call) => match call.push(c, output) {
                Progress::More => {}
                Progress::Done if call.has_begun() => self.state = State::Between,
                Progress::Done => {
                    output.release();
                    self.state = State::Text(0);
                }
                Progress::Broken => self.give_up(c, output),
            },
        }
    }

    /// Whether the text is within an object that may be a call.
    pub(super) fn is_calling(&self) -> bool {
        matches!(self.state, State::Call(_))
    }

    /// What is held is text, and `c` may be.
    fn give_up(&mut self, c: char, output: &mut Output) {
        output.release();
        self.state = State::Text(0);
        self.push(c, output);
    }
}
