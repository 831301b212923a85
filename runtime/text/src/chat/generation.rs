//! `{% generation %}`: transformers' tag around what the assistant writes, for masking in training.
//!
//! minijinja has no custom tags, so it becomes `{% with %}`: a block with a scope of its own and
//! nothing else, as the tag is where nothing is masked.

/// `source` with every generation tag replaced. Comments, expressions, strings and `raw` blocks
/// stay as they are.
pub(super) fn as_scopes(source: &str) -> String {
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
            Some("generation") if !raw => out.push_str(&tag.replacen("generation", "with", 1)),
            Some("endgeneration") if !raw => {
                out.push_str(&tag.replacen("endgeneration", "endwith", 1));
            }
            _ => out.push_str(tag),
        }
        rest = after;
    }
    out + rest
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
    use super::as_scopes;

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
