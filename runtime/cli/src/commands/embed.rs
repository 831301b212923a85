//! `brolly embed`: texts to vectors.

use serde_json::json;

use crate::{
    args::Embed,
    context::Context,
    failure::Result,
    output,
    session::{self, failure},
};

pub(crate) fn embed(args: &Embed, cx: &Context) -> Result<()> {
    let mut session = session::open(&args.source, cx)?;
    let vectors = if args.tokens.is_empty() {
        session.embed_texts(&args.texts.iter().map(String::as_str).collect::<Vec<_>>())
    } else {
        session.embed(&args.tokens.iter().map(|tokens| tokens.0.as_slice()).collect::<Vec<_>>())
    };
    let vectors = vectors.map_err(failure)?;
    if args.json {
        let vectors: Vec<Vec<f64>> = vectors.iter().map(|v| output::exact(v)).collect();
        return output::json(&json!({ "embeddings": vectors }));
    }
    let line = |vector: &Vec<f32>| {
        let numbers: Vec<String> = vector.iter().map(ToString::to_string).collect();
        numbers.join(" ") + "\n"
    };
    output::print(&vectors.iter().map(line).collect::<String>())
}
