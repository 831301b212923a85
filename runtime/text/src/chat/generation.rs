//! `{% generation %}`: transformers' tag around what the assistant writes, for masking in training.
//!
//! minijinja has no custom tags, so it becomes `{% with %}`: a block with a scope of its own and
//! nothing else, as the tag is where nothing is masked. Where the places are asked for, the blocks
//! begin and end with characters that Unicode keeps out of text, which [`spans`] finds again.

use std::ops::Range;

/// Marks a beginning and an end in rendered text: noncharacters of Unicode.
pub(super) const MARKS: [char; 2] = ['\u{fdd0}', '\u{fdd1}'];

/// `source` with every generation tag replaced. Comments, expressions, strings and `raw` blocks
/// stay as they are.
pub(super) fn as_scopes(source: &str) -> String {
    replaced(source, false).0
}

/// As [`as_scopes`], with marks within the scopes; `None` if there is no generation tag.
pub(super) fn as_marked_scopes(source: &str) -> Option<String> {
    let (out, found) = replaced(source, true);
    found.then_some(out)
}

/// Takes the marks out of rendered text and gives the places between them.
pub(super) fn spans(rendered: &str) -> (String, Vec<Range<usize>>) {
    let (mut text, mut spans) = (String::with_capacity(rendered.len()), Vec::new());
    let mut start = None;
    for c in rendered.chars() {
        match c {
            c if c == MARKS[0] => start = start.or(Some(text.len())),
            c if c == MARKS[1] => spans.extend(start.take().map(|start| start..text.len())),
            c => text.push(c),
        }
    }
    (text, spans)
}

fn replaced(source: &str, with_marks: bool) -> (String, bool) {
    let mut found = false;
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    let mut raw = false;
    while let Some(start) = rest.find('{') {
        let (text, tag) = rest.split_at(start);
        out.push_str(text);
        let end = match tag.as_bytes().get(1) {
            Some(b'#') if !raw => tag.find("#}").map(|end| end + 2),
            Some(b'%') if raw => tag.find("%}").map(|end| end + 2),
            Some(b'%') => tag_end(tag, "%}"),
            Some(b'{') if !raw => tag_end(tag, "}}"),
            _ => Some(1),
        };
        let (tag, after) = tag.split_at(end.unwrap_or(tag.len()));
        let name = tag_name(tag);
        raw = (raw || name == Some("raw")) && name != Some("endraw");
        match name {
            Some("generation") if !raw => {
                found = true;
                out.push_str(&tag.replacen("generation", "with", 1));
                if with_marks {
                    rest = open_mark(&mut out, tag, after);
                    continue;
                }
            }
            Some("endgeneration") if !raw => {
                if with_marks {
                    close_mark(&mut out, tag);
                }
                out.push_str(&tag.replacen("endgeneration", "endwith", 1));
            }
            _ => out.push_str(tag),
        }
        rest = after;
    }
    (out + rest, found)
}

/// Writes the mark of a beginning behind its tag, and trims what stands behind as the tag would.
fn open_mark<'s>(out: &mut String, tag: &str, after: &'s str) -> &'s str {
    out.push(MARKS[0]);
    if tag.ends_with("-%}") {
        return after.trim_start();
    }
    let line = after.strip_prefix("\r\n").or_else(|| after.strip_prefix('\n'));
    let Some(line) = line.filter(|_| !tag.ends_with("+%}")) else { return after };
    // A block that begins a line takes the space before it away; behind a mark it no longer does.
    let block = line.trim_start_matches([' ', '\t']);
    let strips = block.starts_with("{%") && !block.starts_with("{%+") || block.starts_with("{#");
    if strips { block } else { line }
}

/// Writes the mark of an end before its tag, and trims what stands before as the tag would.
fn close_mark(out: &mut String, tag: &str) {
    if tag.starts_with("{%-") {
        out.truncate(out.trim_end().len());
    } else if !tag.starts_with("{%+") {
        let line = out.rfind('\n').map_or(0, |at| at + 1);
        if out[line..].chars().all(|c| c == ' ' || c == '\t') {
            out.truncate(line);
        }
    }
    out.push(MARKS[1]);
}

/// Where a tag ends that `source` starts with, string literals skipped.
fn tag_end(source: &str, close: &str) -> Option<usize> {
    let bytes = source.as_bytes();
    let mut at = 2;
    while at < bytes.len() {
        match bytes[at] {
            quote @ (b'"' | b'\'') => {
                at += 1;
                while *bytes.get(at)? != quote {
                    at += 1 + usize::from(bytes[at] == b'\\');
                }
            }
            _ if bytes[at..].starts_with(close.as_bytes()) => return Some(at + close.len()),
            _ => {}
        }
        at += 1;
    }
    None
}

/// The first word of `{% word .. %}`.
fn tag_name(tag: &str) -> Option<&str> {
    let inside = tag.strip_prefix("{%")?.strip_suffix("%}")?;
    inside.trim_matches(['-', '+']).split_whitespace().next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_stand_where_the_text_of_a_block_begins_and_ends() {
        let marked = |source: &str| {
            let source = as_marked_scopes(source)?;
            Some(source.replace(MARKS[0], "<").replace(MARKS[1], ">"))
        };
        let cases = [
            (
                "a {%- generation -%} b {%- endgeneration -%} c",
                "a {%- with -%}<b>{%- endwith -%} c",
            ),
            ("{% generation %}\n b\n  {% endgeneration %}\n", "{% with %}< b\n>{% endwith %}\n"),
            ("{% generation %}\n  {% if b %}", "{% with %}<{% if b %}"),
            ("{% generation +%}\nb {%+ endgeneration %}", "{% with +%}<\nb >{%+ endwith %}"),
        ];
        for (source, wanted) in cases {
            assert_eq!(marked(source).as_deref(), Some(wanted));
        }
        assert_eq!(marked("{# {% generation %} #}"), None);
        let rendered = "a\u{fdd0}b\u{fdd1}c\u{fdd0}dé\u{fdd1}";
        assert_eq!(spans(rendered), ("abcdé".to_owned(), vec![1..2, 3..6]));
    }

    #[test]
    fn tags_are_replaced_whatever_their_white_space() {
        let source = "{%- generation -%}a{% endgeneration %}{%generation%}b{%+ endgeneration +%}";
        let scopes = "{%- with -%}a{% endwith %}{%with%}b{%+ endwith +%}";
        assert_eq!(as_scopes(source), scopes);
    }

    #[test]
    fn other_text_is_left_alone() {
        for source in [
            "{# {% generation %} #}",
            "{{ '{% generation %}' }}",
            "{% if x == '%}' %}{ generation }{% endif %}",
            "{% raw %}{% generation %}{{ ' }}{% endraw %}",
            "{% raw %}{% it's %}{% endraw %}{# {% generation %} #}",
            "{% set generation = 1 %}{{ generation",
            "{",
            "{%",
            "{% 'é",
        ] {
            assert_eq!(as_scopes(source), source);
        }
    }
}
