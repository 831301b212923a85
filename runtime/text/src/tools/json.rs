//! JSON (RFC 8259), recognised character by character.

/// Deeper values are refused, as by most parsers.
const MAX_DEPTH: usize = 120;

/// The state of reading one value.
#[derive(Clone, Debug)]
pub(super) struct Json {
    /// The open objects (`true`) and lists (`false`).
    open: Vec<bool>,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Value,
    /// After `[`.
    ValueOrEnd,
    /// After `{`.
    KeyOrEnd,
    Key,
    Colon,
    String {
        is_key: bool,
    },
    Escape {
        is_key: bool,
    },
    Hex {
        is_key: bool,
        left: u8,
    },
    /// What remains of `true`, `false` or `null`.
    Literal(&'static str),
    Number(Number),
    AfterValue,
}

/// What of a number was read last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Number {
    Sign,
    Zero,
    Digits,
    Point,
    Fraction,
    E,
    ExponentSign,
    Exponent,
}

impl Default for Json {
    fn default() -> Self {
        Self { open: Vec::new(), state: State::Value }
    }
}

impl Json {
    /// Takes a character; `false` if it cannot come here. Control characters in strings pass.
    pub(super) fn push(&mut self, c: char) -> bool {
        match self.step(c) {
            Some(state) => self.state = state,
            None => return false,
        }
        true
    }

    /// How many objects and lists are open.
    pub(super) fn depth(&self) -> usize {
        self.open.len()
    }

    pub(super) fn is_done(&self) -> bool {
        self.open.is_empty() && self.state == State::AfterValue
    }

    /// Whether a key was read, and its colon comes next.
    pub(super) fn is_after_key(&self) -> bool {
        self.state == State::Colon
    }

    /// Whether a string, or a key, is open.
    pub(super) fn is_in_string(&self) -> bool {
        matches!(self.state, State::String { .. } | State::Escape { .. } | State::Hex { .. })
    }

    /// Whether a value comes next.
    pub(super) fn is_before_value(&self) -> bool {
        self.state == State::Value
    }

    fn step(&mut self, c: char) -> Option<State> {
        let is_space = matches!(c, ' ' | '\t' | '\n' | '\r');
        match self.state {
            State::Value | State::ValueOrEnd | State::KeyOrEnd | State::Key | State::Colon
                if is_space =>
            {
                Some(self.state)
            }
            State::ValueOrEnd if c == ']' => self.close(false),
            State::Value | State::ValueOrEnd => self.value(c),
            State::KeyOrEnd if c == '}' => self.close(true),
            State::KeyOrEnd | State::Key => (c == '"').then_some(State::String { is_key: true }),
            State::Colon => (c == ':').then_some(State::Value),
            State::String { is_key } => Some(match c {
                '"' if is_key => State::Colon,
                '"' => State::AfterValue,
                '\\' => State::Escape { is_key },
                _ => State::String { is_key },
            }),
            State::Escape { is_key } => match c {
                'u' => Some(State::Hex { is_key, left: 4 }),
                '"' | '\\' | '/' | 'b' | 'f' | 'n' | 'r' | 't' => Some(State::String { is_key }),
                _ => None,
            },
            State::Hex { is_key, left } => c.is_ascii_hexdigit().then_some(match left {
                1 => State::String { is_key },
                _ => State::Hex { is_key, left: left - 1 },
            }),
            State::Literal(rest) => {
                let rest = rest.strip_prefix(c)?;
                Some(if rest.is_empty() { State::AfterValue } else { State::Literal(rest) })
            }
            State::Number(number) => match number.step(c) {
                Some(number) => Some(State::Number(number)),
                None if number.is_whole() => self.after_value(c),
                None => None,
            },
            State::AfterValue => self.after_value(c),
        }
    }

    fn value(&mut self, c: char) -> Option<State> {
        Some(match c {
            '{' | '[' => {
                if self.open.len() == MAX_DEPTH {
                    return None;
                }
                self.open.push(c == '{');
                if c == '{' { State::KeyOrEnd } else { State::ValueOrEnd }
            }
            '"' => State::String { is_key: false },
            't' => State::Literal("rue"),
            'f' => State::Literal("alse"),
            'n' => State::Literal("ull"),
            '-' => State::Number(Number::Sign),
            '0' => State::Number(Number::Zero),
            '1'..='9' => State::Number(Number::Digits),
            _ => return None,
        })
    }

    fn after_value(&mut self, c: char) -> Option<State> {
        let is_object = self.open.last().copied();
        match (c, is_object) {
            (' ' | '\t' | '\n' | '\r', _) => Some(State::AfterValue),
            (',', Some(true)) => Some(State::Key),
            (',', Some(false)) => Some(State::Value),
            ('}', Some(true)) => self.close(true),
            (']', Some(false)) => self.close(false),
            _ => None,
        }
    }

    fn close(&mut self, is_object: bool) -> Option<State> {
        (self.open.pop() == Some(is_object)).then_some(State::AfterValue)
    }
}

impl Number {
    fn is_whole(self) -> bool {
        matches!(self, Self::Zero | Self::Digits | Self::Fraction | Self::Exponent)
    }

    fn step(self, c: char) -> Option<Self> {
        let is_digit = c.is_ascii_digit();
        match self {
            Self::Sign if c == '0' => Some(Self::Zero),
            Self::Sign | Self::Digits if is_digit => Some(Self::Digits),
            Self::Zero | Self::Digits if c == '.' => Some(Self::Point),
            Self::Point | Self::Fraction if is_digit => Some(Self::Fraction),
            Self::Zero | Self::Digits | Self::Fraction if matches!(c, 'e' | 'E') => Some(Self::E),
            Self::E if matches!(c, '+' | '-') => Some(Self::ExponentSign),
            Self::E | Self::ExponentSign | Self::Exponent if is_digit => Some(Self::Exponent),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn accepts(text: &str) -> bool {
        let mut json = Json::default();
        // A space ends a number.
        text.chars().chain([' ']).all(|c| json.push(c)) && json.is_done()
    }

    #[test]
    fn values() {
        for text in [r#"{"a":[1,-0.5e+3,{}],"b":"\u00e9\"","c":[]}"#, " null", "[[true , false]]"] {
            assert!(accepts(text), "{text}");
        }
        for text in ["", "{", "[1,]", r#"{"a":1,}"#, "01", "1.", "-", "nul", r#""\x""#, "{]", "1 2"]
        {
            assert!(!accepts(text), "{text}");
        }
        assert!(!accepts(&"[".repeat(10_000)));
    }

    proptest! {
        #[test]
        fn serde_json_agrees(text in r#"[{}\[\]",:01.eE+a\\tru -]{0,12}"#) {
            let valid = serde_json::from_str::<serde::de::IgnoredAny>(&text).is_ok();
            prop_assert_eq!(accepts(&text), valid);
        }
    }
}
