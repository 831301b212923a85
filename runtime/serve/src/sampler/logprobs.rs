//! What the model itself holds likely, whatever the sampling.

use super::peaks::Peaks;

/// The `k` most likely tokens with their log-probabilities, the most likely first; all tokens if
/// there are fewer. Equally likely ones come by id; logits that are NaN are left out.
///
/// # Shapes
/// `logits: [V]`, and `logsumexp` the logarithm of the sum of their exponentials.
pub fn top_logprobs(logits: &[f32], logsumexp: f32, k: usize) -> Vec<(u32, f32)> {
    let mut peaks = Peaks::default();
    peaks.read(logits);
    let mut top = Vec::new();
    peaks.most_likely(logits, k, f32::NEG_INFINITY, &mut top);
    top.iter().map(|c| (c.token, c.logit - logsumexp)).collect()
}

/// The place of a token among all by likelihood, the most likely at 1; behind the last for a token
/// that is none of the vocabulary.
///
/// It is the order of [`top_logprobs`]: of equally likely tokens the one with the smaller id comes
/// first. vLLM puts each of them behind all the others.
///
/// # Shapes
/// `logits: [V]`.
pub fn rank(logits: &[f32], token: u32) -> usize {
    let token = token as usize;
    let Some(own) = logits.get(token) else { return logits.len() + 1 };
    let before = logits[..token].iter().filter(|logit| *logit >= own).count();
    let behind = logits[token + 1..].iter().filter(|logit| *logit > own).count();
    before + behind + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 6] = [1.0, 3.0, f32::NEG_INFINITY, 3.0, -2.0, 2.0];

    #[test]
    fn the_most_likely_come_first_and_equal_ones_by_id() {
        assert_eq!(top_logprobs(&LOGITS, 4.0, 0), []);
        assert_eq!(top_logprobs(&LOGITS, 4.0, 3), [(1, -1.0), (3, -1.0), (5, -2.0)]);
        let all = top_logprobs(&LOGITS, 4.0, 20);
        assert_eq!(all[3..], [(0, -3.0), (4, -6.0), (2, f32::NEG_INFINITY)]);
        assert_eq!(top_logprobs(&[], 0.0, 20), []);
    }

    #[test]
    fn ranks_are_places_in_that_order() {
        assert_eq!([0, 1, 2, 3, 4, 5, 6].map(|token| rank(&LOGITS, token)), [4, 1, 6, 2, 5, 3, 7]);
        let logits: Vec<f32> = (0..2000).map(|i| ((i * 37) % 501) as f32).collect();
        for (place, (token, _)) in top_logprobs(&logits, 0.0, 2000).into_iter().enumerate() {
            assert_eq!(rank(&logits, token), place + 1);
        }
    }
}
