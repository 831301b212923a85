//! `brolly score`: how likely a text is.

use serde_json::json;

use crate::{
    args::Score,
    context::Context,
    failure::Result,
    output,
    session::{self, failure},
    table::Table,
};

pub(crate) fn score(args: &Score, cx: &Context) -> Result<()> {
    let mut session = session::open(&args.source, cx)?;
    let tokens = match (&args.prompt, &args.tokens) {
        (Some(text), _) => session::encode(&session, text)?,
        (None, tokens) => tokens.as_ref().map_or_else(Vec::new, |t| t.0.clone()),
    };
    let scores = session.score(&tokens).map_err(failure)?;
    let scores: Vec<Option<f64>> = scores.into_iter().map(|s| s.map(f64::from)).collect();
    if args.json {
        return output::json(&json!({ "tokens": tokens, "logprobs": scores }));
    }
    let tokenizer = session.tokenizer().map_err(failure)?;
    let mut table = Table::new(&[">token", "text", ">log-probability"]);
    for (token, score) in tokens.iter().zip(&scores) {
        let text = tokenizer.and_then(|t| t.decode(&[*token], false).ok());
        let text = text.map_or_else(String::new, |t| t.escape_debug().to_string());
        table.row([token.to_string(), text, score.map_or("-".into(), |s| format!("{s:.4}"))]);
    }
    output::print(&format!("{}{}", table.render(), summary(&scores)))
}

fn summary(scores: &[Option<f64>]) -> String {
    let known: Vec<f64> = scores.iter().flatten().copied().collect();
    if known.is_empty() {
        return String::new();
    }
    let sum: f64 = known.iter().sum();
    let perplexity = (-sum / known.len() as f64).exp();
    format!("\n  sum {sum:.4}, perplexity {perplexity:.4}\n")
}

#[cfg(test)]
mod tests {
    #[test]
    fn perplexity_is_the_inverse_mean_probability() {
        let half = Some(0.5f64.ln());
        assert!(super::summary(&[None, half, half]).contains("perplexity 2.0000"));
        assert_eq!(super::summary(&[None]), "");
    }
}
