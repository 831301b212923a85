//! A Rust source in two views: as it stands, and with comments and literals blotted out.
//!
//! The second view is what rules about code look at, so that a rule does not trip over the text
//! that describes it. It knows comments, strings and characters, nothing else of the language.

/// A source file.
pub(crate) struct Source {
    /// Relative to the root of the repository.
    pub(crate) path: String,
    /// The file as it stands.
    pub(crate) text: String,
    /// The file with a space for every character of a comment, [`LITERAL`] for every character of a
    /// literal; lines stay lines and columns stay columns.
    pub(crate) code: String,
}

/// What stands for a character of a literal.
pub(crate) const LITERAL: char = '"';

impl Source {
    pub(crate) fn new(path: String, text: String) -> Self {
        let code = code(&text);
        Self { path, text, code }
    }
}

/// `text` with comments and literals blotted out.
fn code(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let hidden = hidden_prefix(rest, code.chars().next_back());
        if hidden == 0 {
            code.push(first);
            rest = &rest[first.len_utf8()..];
        } else {
            let blot = if first == '/' { ' ' } else { LITERAL };
            code.extend(rest[..hidden].chars().map(|c| if c == '\n' { c } else { blot }));
            rest = &rest[hidden..];
        }
    }
    code
}

/// The length in bytes of the comment or literal that `text` begins with; 0 where there is none.
fn hidden_prefix(text: &str, before: Option<char>) -> usize {
    if text.starts_with("//") {
        return text.find('\n').unwrap_or(text.len());
    }
    if text.starts_with("/*") {
        return block_comment(text);
    }
    if text.starts_with('"') {
        return quoted(text, '"');
    }
    if text.starts_with('\'') {
        return character(text);
    }
    let in_word = before.is_some_and(|c| c.is_alphanumeric() || c == '_');
    if text.starts_with('r') && (!in_word || before == Some('b') || before == Some('c')) {
        return raw_string(text);
    }
    0
}

fn block_comment(text: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < text.len() {
        match &text.as_bytes()[at..] {
            [b'/', b'*', ..] => (depth, at) = (depth + 1, at + 2),
            [b'*', b'/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

/// A literal that begins and ends with `quote`.
fn quoted(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if c == quote => return at + c.len_utf8(),
            _ => {}
        }
    }
    text.len()
}

/// A character literal; 0 for a lifetime or a label.
fn character(text: &str) -> usize {
    let mut chars = text.char_indices().skip(1);
    let (Some((_, first)), Some((second_at, second))) = (chars.next(), chars.next()) else {
        return 0;
    };
    match (first, second) {
        ('\\', _) => quoted(text, '\''),
        (_, '\'') => second_at + 1,
        _ => 0,
    }
}

/// `r".."`, `r#".."#` and so on; 0 for a name that begins with r.
fn raw_string(text: &str) -> usize {
    let hashes = text[1..].bytes().take_while(|byte| *byte == b'#').count();
    if !text[1 + hashes..].starts_with('"') {
        return 0;
    }
    let close = format!("\"{}", "#".repeat(hashes));
    let body = 2 + hashes;
    text[body..].find(&close).map_or(text.len(), |end| body + end + close.len())
}

#[cfg(test)]
mod tests {
    use super::code;

    #[test]
    fn comments_and_literals_are_blotted_out_and_code_is_not() {
        let cases = [
            ("a // b\nc", "a c"),
            ("a /* b /* c */ d */ e", "a e"),
            (r#"f("x \" y") + 1"#, "f( ) + 1"),
            ("r#\"a \" b\"# + for_r", "+ for_r"),
            (r"('\'', 'é', x)", "( , , x)"),
            ("&'a str", "&'a str"),
            ("\"two\nlines\" + x", "+ x"),
            ("b\"x\" + br\"y\"", "b + b"),
        ];
        for (text, expected) in cases {
            let code = code(text);
            let bare = code.replace(super::LITERAL, " ");
            assert_eq!(bare.split_whitespace().collect::<Vec<_>>().join(" "), expected, "{text}");
            let places = |text: &str| text.lines().map(|line| line.chars().count()).collect();
            let (before, after): (Vec<usize>, Vec<usize>) = (places(text), places(&code));
            assert_eq!(before, after, "{text}");
        }
    }
}
