//! The factor that keeps small gradients above the smallest f16.

use serde::{Deserialize, Serialize};

/// Steps in a row with finite gradients after which the scale doubles.
const GROWTH_INTERVAL: u64 = 2000;

/// The factor of the loss, and of gradients until they are used: it halves when a gradient is not
/// finite, which skips the update, and doubles after 2,000 good steps in a row.
///
/// Micikevicius et al. 2018, arXiv:1710.03740, with the constants of PyTorch's `GradScaler`. Scales
/// are powers of two, so that no bit of a gradient that stays in range depends on them.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LossScale {
    /// The factor.
    pub scale: f32,
    /// Good steps since it changed.
    pub good_steps: u64,
    /// Steps whose update was skipped, in all.
    pub skipped: u64,
}

impl Default for LossScale {
    fn default() -> LossScale {
        LossScale { scale: 65536.0, good_steps: 0, skipped: 0 }
    }
}

impl LossScale {
    /// After a step whose gradients were finite.
    pub(crate) fn grow(&mut self) {
        self.good_steps += 1;
        if self.good_steps == GROWTH_INTERVAL {
            self.good_steps = 0;
            if (self.scale * 2.0).is_finite() {
                self.scale *= 2.0;
            }
        }
    }

    /// After a step whose gradients were not; `false`, and nothing happens, where there is nothing
    /// left to take back.
    pub(crate) fn back_off(&mut self) -> bool {
        if self.scale <= 1.0 {
            return false;
        }
        *self = LossScale { scale: self.scale / 2.0, good_steps: 0, skipped: self.skipped + 1 };
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scale, tracker and skipped updates after each of PyTorch's steps in
    /// `tests/reference/optimizers.py`.
    #[derive(Deserialize)]
    struct Reference {
        scaler: Vec<(u64, bool, f32, u64)>,
    }

    #[test]
    fn it_moves_as_torchs_does() {
        let path =
            concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/data/training/optimizers.json");
        let all: Reference = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let mut scale = LossScale::default();
        let mut skipped = 0;
        for (steps, is_finite, want, good_steps) in all.scaler {
            for _ in 0..steps {
                if is_finite {
                    scale.grow();
                } else {
                    assert!(scale.back_off());
                    skipped += 1;
                }
            }
            assert_eq!(scale, LossScale { scale: want, good_steps, skipped });
        }
        assert!(skipped > 2 && scale.scale != 65536.0);
        let mut least = LossScale { scale: 1.0, ..scale };
        assert!(!least.back_off());
        let mut most = LossScale { scale: 2f32.powi(127), good_steps: 1999, skipped: 0 };
        most.grow();
        assert_eq!((most.scale, most.good_steps), (2f32.powi(127), 0));
    }
}
