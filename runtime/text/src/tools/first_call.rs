//! Where the first call of a text ends.

use super::{ToolFormat, ToolParser};
use crate::{ReasoningEvent, ReasoningParser};

/// Finds the end of a text's first call, for answers that are to make one at most.
///
/// A call ends with its arguments, before the marks that close it, or where it breaks off. What
/// looks like a call in reasoning is none.
///
/// ```
/// # use brolly_text as text;
/// let mut first = text::FirstCall::new(None, text::ToolFormat::Hermes);
/// assert_eq!(first.push("<tool_call>{\"name\": \"now\", \"arguments\": {"), None);
/// assert_eq!(first.push("}}</tool_call>"), Some(2));
/// ```
#[derive(Clone, Debug)]
pub struct FirstCall {
    reasoning: Option<ReasoningParser>,
    tools: ToolParser,
}

impl FirstCall {
    /// For the text of one answer, with what tells reasoning from it if the model reasons.
    #[must_use]
    pub fn new(reasoning: Option<ReasoningParser>, format: ToolFormat) -> Self {
        Self { reasoning, tools: ToolParser::new(format) }
    }

    /// Takes the next piece of the text; gives how many bytes of it the text has up to the end of
    /// its first call, none if that is over already. `None` while it is not.
    pub fn push(&mut self, piece: &str) -> Option<usize> {
        if self.tools.has_called() {
            return Some(0);
        }
        for (index, c) in piece.char_indices() {
            let text = &piece[index..index + c.len_utf8()];
            match &mut self.reasoning {
                None => drop(self.tools.push(text)),
                Some(reasoning) => {
                    for event in reasoning.push(text) {
                        if let ReasoningEvent::Text(text) = event {
                            self.tools.push(&text);
                        }
                    }
                }
            }
            if self.tools.has_called() {
                return Some(index + text.len());
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ReasoningFormat;

    #[test]
    fn the_text_up_to_the_end_holds_one_call_whatever_the_cuts() {
        let hermes = "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": \"}\"}}";
        let llama = "{\"name\": \"f\", \"parameters\": {\"a\": \"}\"}}";
        let mistral = "[TOOL_CALLS]f[ARGS]{\"a\": {}}";
        let list = "[TOOL_CALLS] [{\"name\": \"f\", \"arguments\": {}}";
        let broken = "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": x";
        for (format, call, rest) in [
            (ToolFormat::Hermes, hermes, "\n</tool_call>\n<tool_call>"),
            (ToolFormat::Hermes, broken, " and so on"),
            (ToolFormat::Llama3, llama, "; {\"name\""),
            (ToolFormat::Mistral, mistral, "[TOOL_CALLS]g[ARGS]{}"),
            (ToolFormat::Mistral, list, ", {\"name\""),
        ] {
            let thought = format!("<think>é {call}</think>");
            let text = format!("{thought}{call}{rest}");
            let reasoning = ReasoningParser::new(ReasoningFormat::Qwen3, "");
            let end = thought.len() + call.len();
            for cut in (0..text.len()).filter(|cut| text.is_char_boundary(*cut)) {
                let mut first = FirstCall::new(Some(reasoning.clone()), format);
                let found = match first.push(&text[..cut]) {
                    None => first.push(&text[cut..]).map(|end| cut + end),
                    found => found,
                };
                assert_eq!(found, Some(end), "{text} at {cut}");
                assert_eq!(first.push("more"), Some(0));
            }
            let mut first = FirstCall::new(None, format);
            assert_eq!(first.push(&call[..call.len() - 1]), None);
        }
    }
}
