//! Sequences of tokens that the output must not hold.
//!
//! A word is kept out by its last token alone, which is impossible where the output ends with the
//! tokens before it. A word that begins in the prompt is not the model's, so only the output
//! counts, as in vLLM; transformers looks at the prompt as well.

/// The tokens that would complete a word after this output.
pub(super) fn completions<'a>(
    words: &'a [Vec<u32>],
    output: &'a [u32],
) -> impl Iterator<Item = u32> + use<'a> {
    words.iter().filter_map(|word| {
        let (last, before) = word.split_last()?;
        output.ends_with(before).then_some(*last)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_token_of_a_word_that_has_begun_is_kept_out() {
        let words = vec![vec![7], vec![1, 2], vec![3, 1, 4], vec![5, 5, 5]];
        let after = |output: &[u32]| completions(&words, output).collect::<Vec<_>>();
        assert_eq!(after(&[]), [7]);
        assert_eq!(after(&[1]), [7, 2]);
        assert_eq!(after(&[3, 1]), [7, 2, 4]);
        assert_eq!(after(&[1, 3]), [7]);
        assert_eq!(after(&[5]), [7]);
        assert_eq!(after(&[5, 5]), [7, 5]);
        assert_eq!(after(&[1, 9]), [7]);
    }
}
