//! Dropout: that which a model was made with, and the keys of what is dropped.

use std::{fs, path::Path};

use serde_json::{Map, Value};

use crate::{TrainConfig, TrainError, init::splitmix64};

impl TrainConfig {
    /// The share that is dropped, if any is.
    #[must_use]
    pub fn applied_dropout(&self) -> Option<f64> {
        self.dropout.filter(|share| *share > 0.0)
    }
}

/// What is dropped of a micro-batch follows from this: a function of the seed, the number of the
/// step and that of the micro-batch among all of the step, rank by rank. So a run that goes on
/// drops what one would that did not stop.
pub(crate) fn dropout_key(seed: u64, step: u64, micro_batch: u64) -> i64 {
    splitmix64(splitmix64(seed, step), micro_batch).cast_signed()
}

/// Names that `config.json` has for shares of activations that are dropped.
const KEYS: [&str; 5] =
    ["attention_dropout", "attn_pdrop", "embd_pdrop", "hidden_dropout", "resid_pdrop"];

/// The shares above zero that a model's `config.json` states, by name.
///
/// # Errors
/// [`TrainError::File`] if it cannot be read.
pub fn stated_dropout(model: &Path) -> Result<Vec<(&'static str, f64)>, TrainError> {
    let path = model.join("config.json");
    let text = fs::read(&path).map_err(|e| TrainError::file(&path, e))?;
    let config: Map<String, Value> =
        serde_json::from_slice(&text).map_err(|e| TrainError::file(&path, e))?;
    let share = |key: &'static str| Some((key, config.get(key)?.as_f64()?));
    Ok(KEYS.into_iter().filter_map(share).filter(|(_, share)| *share > 0.0).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_differ_by_all_that_they_follow_from() {
        let numbers = || (0..3u64).flat_map(|a| (0..3).map(move |b| (a, b)));
        let keys =
            numbers().flat_map(|(seed, step)| (0..3).map(move |i| dropout_key(seed, step, i)));
        let mut keys: Vec<i64> = keys.collect();
        // Number 0 of SplitMix64 from 0 on is a seed itself.
        assert_eq!(keys[0], splitmix64(0xe220_a839_7b1d_cdaf, 0).cast_signed());
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), 27);
    }

    #[test]
    fn shares_above_zero_are_told() {
        let dir = std::env::temp_dir().join(format!("brolly-dropout-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let text = r#"{"resid_pdrop": 0.1, "attn_pdrop": 0.0, "embd_pdrop": null, "x_pdrop": 0.2}"#;
        fs::write(dir.join("config.json"), text).unwrap();
        assert_eq!(stated_dropout(&dir).unwrap(), [("resid_pdrop", 0.1)]);
        fs::remove_dir_all(&dir).unwrap();
        assert!(stated_dropout(&dir).is_err());
    }
}
