//! `[TOOL_CALLS][{"name": .., "arguments": {..}}, ..]`, and from 2025 on
//! `[TOOL_CALLS]name[ARGS]{..}` for each call, with `[CALL_ID]id` before `[ARGS]` in some models.

use super::{
    call::{Arguments, CallObject, Progress},
    output::Output,
};
use crate::mark::advance;

pub(super) const OPEN: &str = "[TOOL_CALLS]";
pub(super) const ARGS: &str = "[ARGS]";
const CALL_ID: &str = "[CALL_ID]";

/// The longest name or id.
const MAX_NAME: usize = 256;

#[derive(Clone, Debug, Default)]
pub(super) struct Mistral {
    state: State,
}

#[derive(Clone, Debug)]
enum State {
    /// Text, or so many bytes of `[TOOL_CALLS]`.
    Text(usize),
    /// After `[TOOL_CALLS]`.
    Open,
    /// Before an object of a list.
    Item,
    Call(Box<CallObject>),
    /// After an object of a list.
    Separator,
    Name(String),
    /// So many bytes of a mark after the name.
    Mark {
        name: String,
        mark: &'static str,
        matched: usize,
    },
    Id {
        name: String,
        length: usize,
    },
    BeforeArguments(String),
    Arguments(String, Arguments),
}

impl Default for State {
    fn default() -> Self {
        Self::Text(0)
    }
}

impl Mistral {
    pub(super) fn push(&mut self, c: char, output: &mut Output) {
        match std::mem::take(&mut self.state) {
            State::Text(matched) => match advance(OPEN, matched, c) {
                Some(next) if next == OPEN.len() => self.hold(c, State::Open, output),
                Some(next) => self.hold(c, State::Text(next), output),
                None if matched > 0 => self.give_up(c, output),
                None => output.text(c),
            },
            State::Open if c.is_whitespace() => self.hold(c, State::Open, output),
            State::Open if c == '[' => self.hold(c, State::Item, output),
            State::Open if is_name(c) => self.hold(c, State::Name(c.into()), output),
            State::Item if c.is_whitespace() => self.hold(c, State::Item, output),
            State::Item if c == '{' => self.call(Box::default(), c, output),
            State::Call(call) => self.call(call, c, output),
            State::Separator if c.is_whitespace() => {
                output.text(c);
                self.state = State::Separator;
            }
            State::Separator if c == ',' => self.hold(c, State::Item, output),
            // The end of the list is no text.
            State::Separator if c == ']' => {}
            State::Name(mut name) if is_name(c) && name.len() < MAX_NAME => {
                name.push(c);
                self.hold(c, State::Name(name), output);
            }
            State::Name(name) if c == '[' => {
                self.hold(c, State::Mark { name, mark: ARGS, matched: 1 }, output);
            }
            State::Mark { name, matched: 1, .. } if c == 'C' => {
                self.hold(c, State::Mark { name, mark: CALL_ID, matched: 2 }, output);
            }
            State::Mark { name, mark, matched } => match advance(mark, matched, c) {
                Some(next) => {
                    let state = match (next == mark.len(), mark) {
                        (false, _) => State::Mark { name, mark, matched: next },
                        (true, CALL_ID) => State::Id { name, length: 0 },
                        (true, _) => State::BeforeArguments(name),
                    };
                    self.hold(c, state, output);
                }
                None => self.give_up(c, output),
            },
            State::Id { name, length } if is_name(c) && length < MAX_NAME => {
                self.hold(c, State::Id { name, length: length + 1 }, output);
            }
            State::Id { name, .. } if c == '[' => {
                self.hold(c, State::Mark { name, mark: ARGS, matched: 1 }, output);
            }
            State::Name(name) | State::Id { name, .. } | State::BeforeArguments(name)
                if c.is_whitespace() =>
            {
                self.hold(c, State::BeforeArguments(name), output);
            }
            State::Name(name) | State::Id { name, .. } | State::BeforeArguments(name)
                if c == '{' =>
            {
                self.arguments(name, Arguments::default(), c, output);
            }
            State::Arguments(name, arguments) => self.arguments(name, arguments, c, output),
            _ => self.give_up(c, output),
        }
    }

    /// Whether the text is within an object that may be a call, or within arguments.
    pub(super) fn is_calling(&self) -> bool {
        matches!(self.state, State::Call(_) | State::Arguments(..))
    }

    fn hold(&mut self, c: char, state: State, output: &mut Output) {
        output.hold(c);
        self.state = state;
    }

    fn call(&mut self, mut call: Box<CallObject>, c: char, output: &mut Output) {
        match call.push(c, output) {
            Progress::More => self.state = State::Call(call),
            Progress::Done if call.has_begun() => self.state = State::Separator,
            Progress::Done => output.release(),
            Progress::Broken => self.give_up(c, output),
        }
    }

    fn arguments(&mut self, name: String, mut arguments: Arguments, c: char, output: &mut Output) {
        match arguments.push(&name, c, output) {
            Progress::More => self.state = State::Arguments(name, arguments),
            Progress::Done => {}
            Progress::Broken => self.give_up(c, output),
        }
    }

    /// What is held is text, and `c` may be.
    fn give_up(&mut self, c: char, output: &mut Output) {
        output.release();
        self.state = State::Text(0);
        self.push(c, output);
    }
}

fn is_name(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '_' | '-' | '.')
}
