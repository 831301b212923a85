//! What a compiled step depends on, so that an artifact is used for what it was compiled for.

use std::{collections::BTreeMap, fs, path::Path};

use serde::{Deserialize, Serialize};

use crate::{TrainConfig, TrainError, weights};

/// The parts of a configuration, and of the model's folder, that a compiled step follows from.
/// Whatever else a configuration says (data, rates, how long) may change under one artifact.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepSettings(BTreeMap<String, String>);

/// Keys of a rule that are inputs of the update and not compiled.
const RATES: [&str; 2] = ["adamw_lr", "beta2_decay"];

impl StepSettings {
    /// Those of a configuration.
    ///
    /// # Errors
    /// [`TrainError::File`] if the model's `config.json` cannot be read, nor its weights, where
    /// some of them are frozen: those are in the artifact.
    pub fn of(config: &TrainConfig) -> Result<StepSettings, TrainError> {
        let path = config.model.join("config.json");
        let architecture = fs::read(&path).map_err(|e| TrainError::file(&path, e))?;
        let mut rule = json(&path, &config.optimizer.rule)?;
        if let Some(rule) = rule.as_object_mut() {
            RATES.iter().for_each(|rate| drop(rule.remove(*rate)));
        }
        let groups = config.groups.iter().map(|g| (&g.regex, g.decay, g.freeze));
        let groups = json(&path, &groups.collect::<Vec<_>>())?;
        let is_frozen = config.lora.is_some() || config.groups.iter().any(|group| group.freeze);
        let evaluates = config.eval.as_ref().is_some_and(|eval| eval.data.is_some());
        let samples = config.eval.as_ref().is_some_and(|eval| eval.sequences() > 0);
        let mut settings: BTreeMap<String, String> = [
            ("model", format!("one with the config.json {}", short(&architecture))),
            ("data.seq_len", config.data.seq_len.to_string()),
            ("data.micro_batch", config.data.micro_batch.to_string()),
            ("train.dtype", json(&path, &config.train.dtype)?.to_string()),
            ("optimizer", rule.to_string()),
            ("optimizer.weight_decay", config.optimizer.weight_decay.to_string()),
            ("groups", groups.to_string()),
            ("mesh", json(&path, &config.mesh)?.to_string()),
            ("memory.recompute", json(&path, &config.memory.recompute)?.to_string()),
            ("dropout", json(&path, &config.applied_dropout())?.to_string()),
            ("lora", json(&path, &config.lora)?.to_string()),
            ("eval.data", there(evaluates)),
            ("eval.prompts", there(samples)),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .into();
        if is_frozen {
            let digest = weights::digest(&config.model)?;
            settings.insert("model (its weights)".to_owned(), digest);
        }
        Ok(StepSettings(settings))
    }

    /// What these ask for and `compiled` do not have, a sentence for each.
    #[must_use]
    pub fn differences(&self, compiled: &StepSettings) -> Vec<String> {
        let keys = self.0.keys().chain(compiled.0.keys().filter(|key| !self.0.contains_key(*key)));
        let value = |of: &StepSettings, key: &str| {
            of.0.get(key).map_or_else(|| "nothing".to_owned(), String::clone)
        };
        let pairs = keys.map(|key| (key, value(self, key), value(compiled, key)));
        // What is not asked for may be there.
        let is_idle = |key: &str, asked: &str| key.starts_with("eval.") && asked == there(false);
        let differing =
            pairs.filter(|(key, asked, compiled)| asked != compiled && !is_idle(key, asked));
        let told = |(key, asked, compiled): (&String, String, String)| {
            format!("`{key}` is {asked}, and the artifact was compiled for {compiled}")
        };
        differing.map(told).collect()
    }
}

fn there(is_there: bool) -> String {
    if is_there { "there" } else { "not there" }.to_owned()
}

fn json(path: &Path, value: &impl Serialize) -> Result<serde_json::Value, TrainError> {
    let mut value = serde_json::to_value(value).map_err(|e| TrainError::file(path, e))?;
    // In one order, whatever the program that compiles or trains was built with.
    value.sort_all_objects();
    Ok(value)
}

/// Enough of a digest to tell contents apart.
fn short(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex()[..16].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_step_depends_on_is_told_by_key_and_the_rest_may_change() {
        let dir = std::env::temp_dir().join(format!("brolly-settings-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("config.json"), "{}").unwrap();
        let of = |optimizer: &str, train: &str, more: &str| {
            let text = format!(
                "model = {:?}\n[data]\ntrain = \"a.jsonl\"\nseq_len = 8\n[optimizer]\n{optimizer}\n\
                 [train]\nsteps = 9\n{train}\n{more}",
                dir.display().to_string()
            );
            let (config, _) = TrainConfig::parse("t", &text).unwrap_or_else(|e| panic!("{e}"));
            StepSettings::of(&config)
        };
        let plain = of("", "", "").unwrap();
        let text = serde_json::to_string(&plain).unwrap();
        assert_eq!(serde_json::from_str::<StepSettings>(&text).unwrap(), plain);
        let muon = of("name = \"muon\"", "", "").unwrap();
        for same in [
            (of("lr = 1e-5\nschedule = \"cosine\"", "seed = 3\ngrad_accum = 2", ""), &plain),
            (of("name = \"muon\"\nadamw_lr = 1e-5", "", ""), &muon),
            (of("", "", ""), &of("", "", "[eval]\ndata = \"b.jsonl\"").unwrap()),
        ] {
            assert_eq!(same.0.unwrap().differences(same.1), Vec::<String>::new());
        }
        let told = of("", "", "[eval]\ndata = \"b.jsonl\"").unwrap().differences(&plain);
        assert_eq!(told, ["`eval.data` is there, and the artifact was compiled for not there"]);
        let other = of("betas = [0.9, 0.99]", "dtype = \"bf16\"", "[eval]\nprompts = \"a\"");
        let told = other.unwrap().differences(&plain);
        assert_eq!(told.len(), 3, "{told:#?}");
        assert_eq!(told[0], "`eval.prompts` is there, and the artifact was compiled for not there");
        let is_named = told[1].starts_with("`optimizer` is {");
        assert!(is_named && told[1].contains("\"betas\":[0.9,0.99]"), "{told:#?}");
        fs::write(dir.join("config.json"), "{ }").unwrap();
        let told = of("", "", "").unwrap().differences(&plain);
        assert!(told.len() == 1 && told[0].starts_with("`model` is one with"), "{told:#?}");
        // Weights that are frozen are in the artifact.
        let frozen = "[[groups]]\nregex = \"a\"\nfreeze = true\n";
        assert!(of("", "", frozen).is_err(), "there are no weights");
        fs::write(dir.join("model.safetensors"), "1").unwrap();
        let before = of("", "", frozen).unwrap();
        fs::write(dir.join("model.safetensors"), "2").unwrap();
        let told = of("", "", frozen).unwrap().differences(&before);
        assert!(told.len() == 1 && told[0].starts_with("`model (its weights)`"), "{told:#?}");
        fs::remove_dir_all(dir).unwrap();
    }
}
