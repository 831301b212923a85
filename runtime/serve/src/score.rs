//! The probability of a text, token by token.

use crate::{Batch, BlockPool, ServeError, StepModel, generate::check_tokens};

/// The logarithm of each token's probability given those before it; `None` for the first.
///
/// The text is computed in pieces of as many tokens as the model gives rows of logits for; the
/// result is the same, bit for bit, for any piece size.
///
/// # Errors
/// [`ServeError::Request`] for no tokens, ids out of the vocabulary or too many tokens;
/// [`ServeError::NotFinite`]; what the model reports.
pub(crate) fn score<M: StepModel>(
    model: &mut M,
    pool: &mut BlockPool,
    tokens: &[u32],
) -> Result<Vec<Option<f32>>, ServeError> {
    let limits = model.limits().clone();
    check_tokens(tokens, &limits)?;
    if tokens.len() > limits.max_seq_len {
        let (n, most) = (tokens.len(), limits.max_seq_len);
        let reason =
            format!("{n} tokens are more than the {most} that the model is compiled or opened for");
        return Err(ServeError::request("prompt", reason));
    }
    // Nothing depends on what comes after the last token.
    let context = &tokens[..tokens.len() - 1];
    let mut table = pool.table();
    pool.grow(&mut table, context.len())
        .map_err(|e| ServeError::request("prompt", e.to_string()))?;
    let mut scores = vec![None];
    let mut batch = Batch::default();
    let piece = limits.max_batch_tokens.min(limits.max_rows);
    for (start, part) in context.chunks(piece).enumerate().map(|(i, part)| (i * piece, part)) {
        batch.clear();
        batch.push(&limits, part, start, &table, 0..part.len());
        let logits = model.step(&batch)?;
        for row in 0..part.len() {
            let (position, token) = (start + row + 1, tokens[start + row + 1]);
            let score = logits.logprob(row, token);
            if !score.is_finite() {
                if logits.row(row)[token as usize] != f32::NEG_INFINITY {
                    return Err(ServeError::logits(start + row));
                }
                let what = format!("token {token} at position {position} is impossible");
                return Err(ServeError::NotFinite { what });
            }
            scores.push(Some(score));
        }
    }
    pool.release(table);
    Ok(scores)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Mock;

    #[test]
    fn the_piece_size_makes_no_difference() {
        let tokens: Vec<u32> = (0..40).map(|i| (i * 7 + i / 3) % 50).collect();
        let mut results = Vec::new();
        for (max_batch_tokens, max_rows) in [(64, 64), (5, 64), (64, 3), (1, 1)] {
            let mut model =
                Mock::new(|l| (l.max_batch_tokens, l.max_rows) = (max_batch_tokens, max_rows));
            let mut pool = model.pool();
            results.push(score(&mut model, &mut pool, &tokens).unwrap());
            assert_eq!(pool.free_blocks(), pool.blocks());
            let prefix = score(&mut model, &mut pool, &tokens[..17]).unwrap();
            assert_eq!(prefix, results[0][..17]);
        }
        assert!(results.iter().all(|r| *r == results[0]));
        assert_eq!((results[0].len(), results[0][0]), (40, None));
        assert!(results[0][1..].iter().all(|s| s.is_some_and(|s| s < 0.0)));
    }

    #[test]
    fn a_single_token_has_no_score() {
        let mut model = Mock::new(|_| ());
        let mut pool = model.pool();
        assert_eq!(score(&mut model, &mut pool, &[3]).unwrap(), [None]);
    }

    #[test]
    fn impossible_tokens_and_broken_logits_are_refused() {
        for (seven, why) in [
            (f32::NEG_INFINITY, "token 7 at position 2 is impossible"),
            (f32::INFINITY, "the logits after position 0 hold NaN or infinity"),
            (f32::NAN, "the logits after position 0 hold NaN or infinity"),
        ] {
            let mut model = Mock::new(|_| ());
            model.seven = Some(seven);
            let mut pool = model.pool();
            let error = score(&mut model, &mut pool, &[1, 2, 7]).unwrap_err().to_string();
            assert!(error.starts_with(why), "{error}");
        }
    }

    #[test]
    fn bad_prompts_are_refused() {
        let mut model = Mock::new(|_| ());
        let mut pool = model.pool();
        let mut refused =
            |tokens: &[u32]| score(&mut model, &mut pool, tokens).unwrap_err().to_string();
        assert!(refused(&[]).starts_with("prompt: is empty"));
        assert_eq!(refused(&[1, 50]), "prompt: token 1 is 50, and the vocabulary has ids below 50");
        assert!(refused(&[1; 65]).contains("65 tokens are more than the 64"));
    }
}
