//! Dropout that a model was made with.

use std::{fs, path::Path};

use serde_json::{Map, Value};

use crate::TrainError;

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
