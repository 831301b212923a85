//! What sentence-transformers adds to an encoder's folder: pooling, normalisation and length.
//!
//! `modules.json` lists the steps from tokens to embedding; supported are a transformer, pooling by
//! mean or first token, and normalisation. Without it embeddings are normalised means.

use std::path::Path;

use serde_json::{Map, Value};

use crate::{
    FrontendError,
    config::{Errors, Fields},
    encoder::{Pooling, PoolingMode},
    folder, json,
};

/// How embeddings are made where nothing says so.
pub(crate) const DEFAULT: Pooling = Pooling { mode: PoolingMode::Mean, normalize: true };

const MODES: &[(&str, Option<PoolingMode>)] = &[
    ("cls", Some(PoolingMode::First)),
    ("mean", Some(PoolingMode::Mean)),
    ("max", None),
    ("mean_sqrt_len_tokens", None),
    ("weightedmean", None),
    ("lasttoken", None),
];

/// Older configs have a flag for each mode.
const FLAGS: &[(&str, &str)] = &[
    ("pooling_mode_cls_token", "cls"),
    ("pooling_mode_mean_tokens", "mean"),
    ("pooling_mode_max_tokens", "max"),
    ("pooling_mode_mean_sqrt_len_tokens", "mean_sqrt_len_tokens"),
    ("pooling_mode_weightedmean_tokens", "weightedmean"),
    ("pooling_mode_lasttoken", "lasttoken"),
];

/// Reads pooling, and the length that texts are cut to where one is given.
///
/// # Errors
/// Every problem of the files; a step or mode that is not supported is named.
pub(crate) fn read(folder: &Path) -> Result<(Pooling, Option<u64>), Vec<FrontendError>> {
    let (pooling, length) = (read_pooling(folder), read_length(folder));
    match (pooling, length) {
        (Ok(pooling), Ok(length)) => Ok((pooling, length)),
        (pooling, length) => Err(pooling.err().into_iter().chain(length.err()).flatten().collect()),
    }
}

fn read_length(folder: &Path) -> Result<Option<u64>, Vec<FrontendError>> {
    let file = folder.join("sentence_bert_config.json");
    if !file.exists() {
        return Ok(None);
    }
    let map = json::read_object(&file)?;
    let errors = Errors::default();
    let length = Fields::new(&file, &map, &errors).count("max_seq_length", 1..=1 << 30).optional();
    length.ok_or_else(|| errors.into_inner())
}

fn read_pooling(folder: &Path) -> Result<Pooling, Vec<FrontendError>> {
    let file = folder.join("modules.json");
    if !file.exists() {
        return Ok(DEFAULT);
    }
    let value = json::value(&file, &json::read_bytes(&file)?)?;
    let fail = |reason: String| vec![FrontendError::file(&file, reason)];
    let steps: Option<Vec<&Map<String, Value>>> =
        value.as_array().and_then(|list| list.iter().map(Value::as_object).collect());
    let steps = steps.ok_or_else(|| fail("is no list of modules".into()))?;
    let text = |step: &Map<String, Value>, key: &str| {
        step.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    let kinds: Vec<String> = steps.iter().map(|s| text(s, "type")).collect();
    let short: Vec<&str> = kinds.iter().filter_map(|k| k.rsplit('.').next()).collect();
    let normalize = match short.as_slice() {
        ["Transformer", "Pooling"] => false,
        ["Transformer", "Pooling", "Normalize"] => true,
        _ => {
            return Err(fail(format!(
                "lists the modules {}; supported are Transformer, Pooling and perhaps Normalize",
                short.join(", ")
            )));
        }
    };
    if !matches!(text(steps[0], "path").as_str(), "" | ".") {
        let path = text(steps[0], "path");
        return Err(fail(format!("has its transformer in `{path}`, expected in this folder")));
    }
    let path = text(steps[1], "path");
    let config = folder::within(folder, &path).map_err(&fail)?.join("config.json");
    let map = json::read_object(&config)?;
    let errors = Errors::default();
    let fields = Fields::new(&config, &map, &errors);
    let mode = pooling_mode(&fields);
    if fields.flag("include_prompt").or(true) == Some(false) && has_default_prompt(folder)? {
        let why = "is false, and texts are embedded with the default prompt of \
                   config_sentence_transformers.json before them: pooling without it is not \
                   supported; take `default_prompt_name` out of that file and give the prompt with \
                   the text";
        fields.refuse("include_prompt", why);
    }
    match mode {
        Some(mode) if errors.borrow().is_empty() => Ok(Pooling { mode, normalize }),
        _ => Err(errors.into_inner()),
    }
}

/// Whether texts get a prompt before them that nobody has to ask for.
fn has_default_prompt(folder: &Path) -> Result<bool, Vec<FrontendError>> {
    let file = folder.join("config_sentence_transformers.json");
    if !file.exists() {
        return Ok(false);
    }
    Ok(json::read_object(&file)?.get("default_prompt_name").is_some_and(|name| !name.is_null()))
}

fn pooling_mode(c: &Fields<'_>) -> Option<PoolingMode> {
    let unsupported = |name: &str, mode: &str| {
        c.refuse(name, format!("asks for pooling by {mode}; supported are mean and cls, alone"));
        None
    };
    if let Some(mode) = c.text("pooling_mode").optional()? {
        let known = MODES.iter().find(|(name, _)| *name == mode).and_then(|(_, m)| *m);
        return known.or_else(|| unsupported("pooling_mode", mode));
    }
    let mut set = Vec::new();
    for (flag, mode) in FLAGS {
        if c.flag(flag).or(false)? {
            set.push((*flag, *mode));
        }
    }
    match set.as_slice() {
        [] => Some(PoolingMode::Mean),
        [(flag, mode)] => {
            let known = MODES.iter().find(|(name, _)| name == mode).and_then(|(_, m)| *m);
            known.or_else(|| unsupported(flag, mode))
        }
        [(flag, _), ..] => {
            let modes: Vec<&str> = set.iter().map(|(_, m)| *m).collect();
            unsupported(flag, &modes.join(" and "))
        }
    }
}
