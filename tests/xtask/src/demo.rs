//! `cargo xtask demo`: two models from their folders to text and embeddings, a third one from
//! random weights, and what that takes.
//!
//! The models are the small language model of the repository, one that is trained for a minute and,
//! where it can be had, MiniLM.
//! Everything goes through the command line of `brolly`, as a user would do it. Times are taken
//! from outside, around whole processes; memory and rates are what `brolly bench` reports.

mod training;

use crate::minilm;
use crate::process::{self, Failure, Result, cache, capture, command, file_failure, root};
use crate::table::{duration, megabytes, table};
use crate::wheel::Fetched;
use crate::{runtime_only, setup};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

const PROMPT: &str = "Once upon a time";

const SENTENCES: [&str; 6] = [
    "The cat sleeps on the warm windowsill.",
    "A kitten is napping in the sun.",
    "The compiler rejected the program.",
    "My code does not build any more.",
    "We had fresh bread and cheese for lunch.",
    "The bakery opens at seven.",
];

/// How often a start is timed; the median counts.
const STARTS: usize = 5;

/// A compiled model and what is known about it.
struct Compiled {
    artifact: PathBuf,
    compile_time: Duration,
}

/// Sets up, builds, compiles, generates, embeds, and prints the measurements.
pub(crate) fn run() -> Result<()> {
    let llvm = setup::run()?;
    let brolly = runtime_only::build(&llvm, &[])?;

    heading("a language model");
    let stories = compile(&brolly, &root().join("tests/data/stories"), "stories.brolly")?;
    tell_a_story(&brolly, &stories, "160")?;
    let mut columns = vec![measure(&brolly, "stories", &stories, &first_token(&stories))?];

    heading("a model that is trained here");
    let trained = training::train(&brolly)?;
    tell_a_story(&brolly, &trained, "60")?;
    columns.push(measure(&brolly, "trained", &trained, &first_token(&trained))?);

    heading("a sentence encoder");
    match minilm::fetch()? {
        Fetched::Here(folder) => {
            let minilm = compile(&brolly, &folder, "minilm.brolly")?;
            println!("\n{}", similarities(&embed(&brolly, &minilm.artifact)?));
            columns.push(measure(&brolly, "MiniLM", &minilm, &first_embedding(&minilm))?);
        }
        Fetched::Skipped(reason) => println!("MiniLM: skipped: {reason}"),
    }

    heading("what it took");
    println!("{}", table(&transpose(&columns), true));
    Ok(())
}

/// Streams a text from a language model.
fn tell_a_story(brolly: &Path, model: &Compiled, tokens: &str) -> Result<()> {
    let mut generate = command(brolly);
    generate.arg("generate").arg(&model.artifact).args(["--prompt", PROMPT]);
    generate.args(["--max-tokens", tokens, "--temperature", "0.7", "--seed", "1"]);
    process::run(&mut generate)
}

fn heading(text: &str) {
    println!("\n== {text}");
}

/// Compiles `model` to `name` in the cache folder.
fn compile(brolly: &Path, model: &Path, name: &str) -> Result<Compiled> {
    let artifact = cache()?.join(name);
    let start = Instant::now();
    process::run(command(brolly).arg("compile").arg(model).arg("-o").arg(&artifact))?;
    Ok(Compiled { artifact, compile_time: start.elapsed() })
}

/// The arguments of a process that ends with the model's first token.
fn first_token(model: &Compiled) -> Vec<String> {
    let artifact = model.artifact.to_string_lossy().into_owned();
    ["generate", &artifact, "--prompt", PROMPT, "--max-tokens", "1", "--json"]
        .map(str::to_owned)
        .to_vec()
}

/// The arguments of a process that embeds one sentence.
fn first_embedding(model: &Compiled) -> Vec<String> {
    let artifact = model.artifact.to_string_lossy().into_owned();
    ["embed", &artifact, "--text", SENTENCES[0], "--json"].map(str::to_owned).to_vec()
}

/// The vector of each of [`SENTENCES`].
fn embed(brolly: &Path, artifact: &Path) -> Result<Vec<Vec<f64>>> {
    let mut embed = command(brolly);
    embed.arg("embed").arg(artifact).arg("--json");
    for sentence in SENTENCES {
        embed.args(["--text", sentence]);
    }
    let answer = json(&mut embed)?;
    let rows = answer["embeddings"].as_array().into_iter().flatten();
    let numbers =
        |row: &Value| row.as_array().into_iter().flatten().filter_map(Value::as_f64).collect();
    Ok(rows.map(numbers).collect())
}

/// The cosine similarity of every pair of sentences, as a table.
fn similarities(vectors: &[Vec<f64>]) -> String {
    let numbered = |number: usize| format!("[{number}]");
    let mut rows = vec![vec![String::new()]];
    rows[0].extend((1..=vectors.len()).map(numbered));
    for (number, (sentence, a)) in SENTENCES.iter().zip(vectors).enumerate() {
        let mut row = vec![format!("{} {sentence}", numbered(number + 1))];
        row.extend(vectors.iter().map(|b| format!("{:.2}", cosine(a, b))));
        rows.push(row);
    }
    table(&rows, true)
}

fn cosine(a: &[f64], b: &[f64]) -> f64 {
    let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

/// One column of the final table: a label and its value in each row.
fn measure(
    brolly: &Path,
    name: &str,
    model: &Compiled,
    first_result: &[String],
) -> Result<Vec<(&'static str, String)>> {
    let size = fs::metadata(&model.artifact).map_err(file_failure(&model.artifact))?.len();
    let mut bench = command(brolly);
    bench.arg("bench").arg(&model.artifact).args(["--prompt-tokens", "128", "--json"]);
    let generates = first_result[0] == "generate";
    bench.args(["--gen-tokens", if generates { "64" } else { "0" }]);
    let report = json(&mut bench)?;
    let field = |key: &str, shown: fn(f64) -> String| {
        report[key].as_f64().filter(|value| *value > 0.0).map_or("-".to_owned(), shown)
    };
    let rate = |value: f64| format!("{value:.0} tokens/s");
    Ok(vec![
        ("", name.to_owned()),
        ("compile", duration(model.compile_time)),
        ("artifact", megabytes(size as f64)),
        ("process start to first result", duration(start_time(brolly, first_result)?)),
        ("prefill", field("prefill_tokens_per_s", rate)),
        ("decode", field("decode_tokens_per_s", rate)),
        ("peak memory, predicted", field("predicted_peak_bytes", megabytes)),
        ("peak memory, measured", field("measured_peak_bytes", megabytes)),
    ])
}

/// The median time of a whole process: load, run, print, end.
fn start_time(brolly: &Path, args: &[String]) -> Result<Duration> {
    let mut times = Vec::with_capacity(STARTS);
    for _ in 0..STARTS {
        let start = Instant::now();
        capture(command(brolly).args(args))?;
        times.push(start.elapsed());
    }
    times.sort();
    Ok(times[STARTS / 2])
}

fn json(command: &mut Command) -> Result<Value> {
    let text = capture(command)?;
    serde_json::from_str(&text).map_err(|error| {
        Failure::Explained(format!("`{}` printed no JSON: {error}", process::shown(command)))
    })
}

/// Columns of labelled values as rows that begin with their label.
fn transpose(columns: &[Vec<(&'static str, String)>]) -> Vec<Vec<String>> {
    let labels = columns.first().into_iter().flatten().map(|(label, _)| *label).enumerate();
    let row = |(index, label): (usize, &str)| {
        let values = columns.iter().map(|column| column[index].1.clone());
        std::iter::once(label.to_owned()).chain(values).collect()
    };
    labels.map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn similarities_line_up_and_are_one_on_the_diagonal() {
        let text = similarities(&[vec![3.0, 4.0], vec![4.0, -3.0]]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(lines[1].ends_with("1.00  0.00") && lines[2].ends_with("0.00  1.00"), "{text}");
        assert!(lines.iter().all(|line| line.len() == lines[0].len()), "{text}");
    }

    #[test]
    fn columns_become_rows() {
        let columns = [
            vec![("", "a".to_owned()), ("x", "1".to_owned())],
            vec![("", "b".to_owned()), ("x", "2".to_owned())],
        ];
        assert_eq!(transpose(&columns), [["", "a", "b"], ["x", "1", "2"]]);
    }
}
