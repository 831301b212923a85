//! Events as parsers make them: text that may yet become a call is held back, whitespace beside
//! calls goes, neighbours of one kind are joined.

use super::ToolEvent;

#[derive(Clone, Debug, Default)]
pub(super) struct Output {
    events: Vec<ToolEvent>,
    /// What may become a call, or text if it does not.
    held: String,
    /// Whitespace that goes if a call follows.
    space: String,
    /// Nothing but whitespace was between here and the last call.
    beside_call: bool,
    calls: usize,
}

impl Output {
    /// A character that is text.
    pub(super) fn text(&mut self, c: char) {
        if c.is_whitespace() {
            self.space.push(c);
            return;
        }
        let space = std::mem::take(&mut self.space);
        if !std::mem::take(&mut self.beside_call) {
            self.emit(&space);
        }
        self.emit(c.encode_utf8(&mut [0; 4]));
    }

    /// A character that may be part of a call.
    pub(super) fn hold(&mut self, c: char) {
        self.held.push(c);
    }

    /// What is held is the outside of a call.
    pub(super) fn drop_held(&mut self) {
        self.held.clear();
    }

    /// What is held is text after all.
    pub(super) fn release(&mut self) {
        for c in std::mem::take(&mut self.held).chars() {
            self.text(c);
        }
    }

    /// What is held is a call.
    pub(super) fn begin(&mut self, name: String) {
        self.held.clear();
        self.space.clear();
        self.beside_call = true;
        self.events.push(ToolEvent::Call { index: self.calls, name });
        self.calls += 1;
    }

    /// Calls that have begun.
    pub(super) fn calls(&self) -> usize {
        self.calls
    }

    /// Arguments of the call that began last.
    pub(super) fn arguments(&mut self, text: &str) {
        let at = self.calls.saturating_sub(1);
        match self.events.last_mut() {
            Some(ToolEvent::Arguments { index, piece }) if *index == at => piece.push_str(text),
            _ => self.events.push(ToolEvent::Arguments { index: at, piece: text.to_owned() }),
        }
    }

    pub(super) fn finish(&mut self) {
        self.release();
        if !self.beside_call {
            let space = std::mem::take(&mut self.space);
            self.emit(&space);
        }
    }

    pub(super) fn take(&mut self) -> Vec<ToolEvent> {
        std::mem::take(&mut self.events)
    }

    fn emit(&mut self, text: &str) {
        if text.is_empty() {
            return;
        }
        match self.events.last_mut() {
            Some(ToolEvent::Text(last)) => last.push_str(text),
            _ => self.events.push(ToolEvent::Text(text.to_owned())),
        }
    }
}
