//! Stop strings in streamed text: what may become one is held back until it is certain.
//!
//! One Knuth-Morris-Pratt automaton per stop string, all fed the same bytes: the longest state is
//! what must be held back. Where pieces are cut makes no difference to the result.

use crate::error::TextError;

/// Finds the first of several stop strings.
///
/// ```
/// # use brolly_text as text;
/// let mut stop = text::StopMatcher::new(["\nUser:", "END"])?;
/// assert_eq!(stop.push("Hello.\nUs"), ("Hello.".to_owned(), None));
/// assert_eq!(stop.push("ual, EN"), ("\nUsual, ".to_owned(), None));
/// assert_eq!(stop.push("D and more"), (String::new(), Some(1)));
/// # Ok::<(), text::TextError>(())
/// ```
#[derive(Clone, Debug)]
pub struct StopMatcher {
    patterns: Vec<Pattern>,
    held: String,
    found: Option<usize>,
}

#[derive(Clone, Debug)]
struct Pattern {
    text: String,
    /// `borders[n]`: length of the longest proper prefix of the first `n + 1` bytes that also ends
    /// them.
    borders: Vec<usize>,
    /// How many bytes of the pattern the text ends with.
    matched: usize,
}

impl StopMatcher {
    /// A matcher for `stops`; none at all is fine.
    ///
    /// # Errors
    /// [`TextError::EmptyStop`] if one of them is empty.
    pub fn new<S: Into<String>>(stops: impl IntoIterator<Item = S>) -> Result<Self, TextError> {
        let patterns = stops
            .into_iter()
            .enumerate()
            .map(|(index, stop)| Pattern::new(stop.into()).ok_or(TextError::EmptyStop { index }))
            .collect::<Result<_, _>>()?;
        Ok(Self { patterns, held: String::new(), found: None })
    }

    /// Takes the next piece; gives the text that is certainly before any stop string, and which
    /// stop string was found, as its index.
    ///
    /// Of overlapping stop strings the one that ends first is found, the longest if several end
    /// there; neither it nor what follows is given out, then or later.
    pub fn push(&mut self, piece: &str) -> (String, Option<usize>) {
        if self.found.is_some() {
            return (String::new(), self.found);
        }
        let mut end = self.held.len();
        self.held.push_str(piece);
        for byte in piece.bytes() {
            end += 1;
            for pattern in &mut self.patterns {
                pattern.advance(byte);
            }
            let complete = self.patterns.iter().enumerate().filter(|(_, p)| p.is_complete());
            // On equal lengths the first in the list.
            if let Some((index, pattern)) = complete.rev().max_by_key(|(_, p)| p.matched) {
                self.held.truncate(end - pattern.matched);
                self.found = Some(index);
                return (std::mem::take(&mut self.held), self.found);
            }
        }
        let uncertain = self.patterns.iter().map(|p| p.matched).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - uncertain);
        (std::mem::replace(&mut self.held, rest), None)
    }

    /// The text ends; gives what was held back.
    #[must_use]
    pub fn finish(self) -> String {
        self.held
    }

    /// Which stop string was found, as its index.
    #[must_use]
    pub fn found(&self) -> Option<usize> {
        self.found
    }
}

impl Pattern {
    fn new(text: String) -> Option<Self> {
        let bytes = text.as_bytes();
        let mut borders = vec![0; bytes.len()];
        let mut border = 0;
        for n in 1..bytes.len() {
            while border > 0 && bytes[border] != bytes[n] {
                border = borders[border - 1];
            }
            border += usize::from(bytes[border] == bytes[n]);
            borders[n] = border;
        }
        (!text.is_empty()).then_some(Self { text, borders, matched: 0 })
    }

    /// Matching ends at the first complete pattern, so `matched` is short of its end here.
    fn advance(&mut self, byte: u8) {
        let bytes = self.text.as_bytes();
        while self.matched > 0 && bytes[self.matched] != byte {
            self.matched = self.borders[self.matched - 1];
        }
        self.matched += usize::from(bytes[self.matched] == byte);
    }

    fn is_complete(&self) -> bool {
        self.matched == self.text.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The definition: the least end of any occurrence, the longest pattern that ends there.
    fn first_stop(text: &str, stops: &[String]) -> Option<(usize, usize)> {
        (0..=text.len()).find_map(|end| {
            let ends_here = stops
                .iter()
                .enumerate()
                .filter(|(_, stop)| text.as_bytes()[..end].ends_with(stop.as_bytes()));
            let (index, stop) = ends_here.rev().max_by_key(|(_, stop)| stop.len())?;
            Some((end - stop.len(), index))
        })
    }

    #[test]
    fn text_flows_where_nothing_stops() {
        let mut stop = StopMatcher::new(Vec::<String>::new()).unwrap();
        assert_eq!(stop.push("any text"), ("any text".to_owned(), None));
        assert_eq!(stop.finish(), "");
    }

    #[test]
    fn an_almost_stop_is_given_out_in_the_end() {
        let mut stop = StopMatcher::new(["</s>"]).unwrap();
        assert_eq!(stop.push("a</"), ("a".to_owned(), None));
        assert_eq!(stop.push("s"), (String::new(), None));
        assert_eq!(stop.finish(), "</s");
    }

    #[test]
    fn the_stop_that_ends_first_wins_and_the_longest_of_those() {
        let mut stop = StopMatcher::new(["bcde", "c", "bc"]).unwrap();
        assert_eq!(stop.push("abcdef"), ("a".to_owned(), Some(2)));
        assert_eq!(stop.push("more"), (String::new(), Some(2)));
        assert_eq!((stop.found(), stop.finish().as_str()), (Some(2), ""));
    }

    #[test]
    fn empty_stop_strings_are_refused() {
        let error = StopMatcher::new(["a", ""]).unwrap_err();
        assert!(matches!(error, TextError::EmptyStop { index: 1 }), "{error}");
    }

    proptest! {
        #[test]
        fn cutting_the_text_makes_no_difference(
            pieces in prop::collection::vec("[abé]{0,4}", 0..12),
            stops in prop::collection::vec("[abé]{1,5}", 0..4),
        ) {
            let text = pieces.concat();
            let mut matcher = StopMatcher::new(stops.clone()).unwrap();
            let mut out = String::new();
            for piece in &pieces {
                out += &matcher.push(piece).0;
                // What is out must not turn out to belong to a stop string.
                prop_assert!(text.starts_with(&out));
            }
            let found = matcher.found();
            out += &matcher.finish();
            let expected = first_stop(&text, &stops);
            prop_assert_eq!(found, expected.map(|(_, index)| index));
            prop_assert_eq!(out.as_str(), &text[..expected.map_or(text.len(), |(start, _)| start)]);
        }
    }
}
