//! One call as a JSON object, `{"name": .., "arguments": {..}}`, and the arguments alone.

use super::{json::Json, output::Output};

/// Longer names are not names.
const MAX_NAME: usize = 256;

/// Where a call stands after a character.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    More,
    /// The character was the last one.
    Done,
    /// The character cannot come here; it was not taken.
    Broken,
}

/// Reads an object with `name` and `arguments` (or `parameters`) in any order; other fields are
/// left out. Characters are held until the call begins.
#[derive(Clone, Debug, Default)]
pub(super) struct CallObject {
    json: Json,
    /// The key or value of the object that is being read, if it is a string, as JSON.
    token: String,
    field: Field,
    name: Option<String>,
    /// Arguments that came before the name.
    early: String,
    has_arguments: bool,
    has_begun: bool,
    /// Whether an object without arguments is no call.
    needs_arguments: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Field {
    Name,
    Arguments,
    #[default]
    Other,
}

impl CallObject {
    /// For formats without marks, where an object may be an answer.
    pub(super) fn with_arguments() -> Self {
        Self { needs_arguments: true, ..Self::default() }
    }

    /// Takes a character; the first one is `{`. Where the object is done and the call has not
    /// begun, the object is not a call.
    pub(super) fn push(&mut self, c: char, output: &mut Output) -> Progress {
        let depth = self.json.depth();
        let was_in_string = self.json.is_in_string();
        let starts_value = depth == 1 && self.json.is_before_value() && !c.is_whitespace();
        let fits = match (depth, self.field) {
            (0, _) | (1, Field::Arguments) if depth == 0 || starts_value => c == '{',
            (1, Field::Name) if starts_value => c == '"',
            _ => true,
        };
        if !fits || !self.json.push(c) {
            return Progress::Broken;
        }
        if !self.has_begun {
            output.hold(c);
        }
        if self.field == Field::Arguments && (depth > 1 || starts_value) {
            self.take_arguments(c, was_in_string, output);
        } else if depth == 1 && (was_in_string || self.json.is_in_string()) {
            self.token.push(c);
            if !self.json.is_in_string() {
                self.take_token(output);
            }
        }
        if !self.json.is_done() {
            return Progress::More;
        }
        if let Some(name) = self.name.take().filter(|_| !self.has_begun && !self.needs_arguments) {
            self.begin(name, output);
            output.arguments("{}");
        }
        Progress::Done
    }

    /// Whether the call was given out.
    pub(super) fn has_begun(&self) -> bool {
        self.has_begun
    }

    /// A string of the object itself has ended.
    fn take_token(&mut self, output: &mut Output) {
        let token = serde_json::from_str::<String>(&std::mem::take(&mut self.token)).ok();
        if self.json.is_after_key() {
            self.field = match token.as_deref() {
                Some("name") if self.name.is_none() => Field::Name,
                Some("arguments" | "parameters") if !self.has_arguments => Field::Arguments,
                _ => Field::Other,
            };
        } else if self.field == Field::Name {
            let name = token.filter(|name| (1..=MAX_NAME).contains(&name.len()));
            match name {
                Some(name) if self.has_arguments => self.begin(name, output),
                name => self.name = name,
            }
        }
    }

    fn take_arguments(&mut self, c: char, in_string: bool, output: &mut Output) {
        self.has_arguments = true;
        if let Some(name) = self.name.clone().filter(|_| !self.has_begun) {
            self.begin(name, output);
        }
        escaped(c, in_string, |text| match self.has_begun {
            true => output.arguments(text),
            false => self.early.push_str(text),
        });
    }

    fn begin(&mut self, name: String, output: &mut Output) {
        self.has_begun = true;
        output.begin(name.clone());
        self.name = Some(name);
        if !self.early.is_empty() {
            output.arguments(&std::mem::take(&mut self.early));
        }
    }
}

/// Reads the arguments of a call whose name came before.
#[derive(Clone, Debug, Default)]
pub(super) struct Arguments {
    json: Json,
}

impl Arguments {
    /// Takes a character; the first one begins the call.
    pub(super) fn push(&mut self, name: &str, c: char, output: &mut Output) -> Progress {
        let (is_first, in_string) = (self.json.depth() == 0, self.json.is_in_string());
        if is_first && c != '{' || !self.json.push(c) {
            return Progress::Broken;
        }
        if is_first {
            output.begin(name.to_owned());
        }
        escaped(c, in_string, |text| output.arguments(text));
        if self.json.is_done() { Progress::Done } else { Progress::More }
    }
}

/// JSON has no control characters in strings.
fn escaped(c: char, in_string: bool, mut emit: impl FnMut(&str)) {
    if in_string && c.is_ascii_control() && c != '\u{7f}' {
        emit(&format!("\\u{:04x}", u32::from(c)));
    } else {
        emit(c.encode_utf8(&mut [0; 4]));
    }
}
