//! Matching a fixed mark, such as `<think>`, character by character.

/// How many bytes of `mark` are matched with `c`, after `matched` of them; `None` if it differs.
///
/// Marks have their first character nowhere else, so that text that turns out to differ cannot
/// hold the beginning of a later match, but for `c` itself.
pub(crate) fn advance(mark: &str, matched: usize, c: char) -> Option<usize> {
    mark[matched..].starts_with(c).then(|| matched + c.len_utf8())
}
