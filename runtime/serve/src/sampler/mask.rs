//! Which tokens are possible at all.
//!
//! A mask has a bit for each token, 32 a word, the lowest bit first: set where the token is
//! allowed. Tokens behind its last word are not.

const IMPOSSIBLE: f32 = f32::NEG_INFINITY;

/// Copies the logits of the tokens that list and mask allow; those of the others become -inf.
pub(super) fn copy_allowed(
    logits: &[f32],
    allowed: Option<&[u32]>,
    mask: Option<&[u32]>,
    out: &mut Vec<f32>,
) {
    out.clear();
    match (allowed, mask) {
        (Some(allowed), mask) => {
            out.resize(logits.len(), IMPOSSIBLE);
            for token in allowed {
                if mask.is_none_or(|mask| has(mask, *token))
                    && let Some(logit) = logits.get(*token as usize)
                {
                    out[*token as usize] = *logit;
                }
            }
        }
        (None, Some(mask)) => {
            for (logits, word) in logits.chunks(32).zip(mask) {
                match *word {
                    0 => out.resize(out.len() + logits.len(), IMPOSSIBLE),
                    u32::MAX => out.extend_from_slice(logits),
                    word => out.extend((0..).zip(logits).map(|(bit, logit)| {
                        if word >> bit & 1 == 1 { *logit } else { IMPOSSIBLE }
                    })),
                }
            }
            out.resize(logits.len(), IMPOSSIBLE);
        }
        (None, None) => out.extend_from_slice(logits),
    }
}

/// Whether a mask allows a token.
pub(super) fn has(mask: &[u32], token: u32) -> bool {
    mask.get(token as usize / 32).is_some_and(|word| word >> (token % 32) & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tokens that stay possible among 70.
    fn kept(allowed: Option<&[u32]>, mask: Option<&[u32]>) -> Vec<usize> {
        let logits: Vec<f32> = (0..70u8).map(f32::from).collect();
        let mut out = vec![1.0; 3];
        copy_allowed(&logits, allowed, mask, &mut out);
        assert_eq!(out.len(), 70);
        let kept: Vec<usize> = (0..70).filter(|t| out[*t] != IMPOSSIBLE).collect();
        assert!(kept.iter().all(|t| out[*t] == logits[*t]));
        kept
    }

    #[test]
    fn set_bits_allow() {
        assert_eq!(kept(None, None), (0..70).collect::<Vec<_>>());
        assert_eq!(kept(None, Some(&[0b1001, 0, 0b100])), [0, 3, 66]);
        let all_but_one = kept(None, Some(&[u32::MAX, !1, u32::MAX]));
        assert_eq!(all_but_one, (0..70).filter(|t| *t != 32).collect::<Vec<_>>());
    }

    #[test]
    fn a_short_mask_forbids_the_rest_and_a_long_one_says_no_more() {
        assert_eq!(kept(None, Some(&[u32::MAX])), (0..32).collect::<Vec<_>>());
        assert_eq!(kept(None, Some(&[])), [0; 0]);
        assert_eq!(kept(None, Some(&[0, 0, !0, !0, !0])), (64..70).collect::<Vec<_>>());
    }

    #[test]
    fn list_and_mask_must_both_allow() {
        assert_eq!(kept(Some(&[66, 4, 4, 3, 900]), None), [3, 4, 66]);
        assert_eq!(kept(Some(&[66, 4, 4, 3, 900]), Some(&[0b1000])), [3]);
        assert_eq!(kept(Some(&[]), None), [0; 0]);
    }
}
