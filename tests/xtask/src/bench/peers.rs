//! Other programs that do the same work, where they are installed.

use super::Args;
use crate::process::{Failure, Result, capture, command, root, shown};
use serde_json::Value;
use std::env;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

/// OpenBLAS where linkers look.
pub(super) fn openblas() -> Option<PathBuf> {
    let folders = ["/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/lib", "/usr/local/lib"];
    let names = ["libopenblas.so", "libopenblas.so.0"];
    let of = |folder: &str| names.map(|name| Path::new(folder).join(name));
    folders.iter().flat_map(|folder| of(folder)).find(|path| path.is_file())
}

/// llama.cpp's benches.
pub(super) struct LlamaCpp {
    bench: PathBuf,
    batched: PathBuf,
    server: PathBuf,
    threads: String,
}

/// Tokens a second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Rates {
    pub(super) prefill: f64,
    pub(super) decode: f64,
}

impl LlamaCpp {
    /// Finds them: in the folder that was named, or on the PATH.
    ///
    /// # Errors
    /// Where a folder was named that does not hold them.
    pub(super) fn find(args: &Args) -> Result<Option<LlamaCpp>> {
        let variable = env::var_os("BROLLY_LLAMA_CPP").map(PathBuf::from);
        let named = args.llama_cpp.clone().or(variable);
        let path = env::var_os("PATH").unwrap_or_default();
        let folders = named.clone().map_or_else(|| env::split_paths(&path).collect(), |f| vec![f]);
        let both =
            |folder: &PathBuf| [folder.join("llama-bench"), folder.join("llama-batched-bench")];
        let found = folders.iter().map(both).find(|both| both.iter().all(|p| p.is_file()));
        match (found, named) {
            (Some([bench, batched]), _) => {
                let server = bench.with_file_name("llama-server");
                let threads = args.threads().to_string();
                Ok(Some(LlamaCpp { bench, batched, server, threads }))
            }
            (None, None) => Ok(None),
            (None, Some(folder)) => Err(Failure::Explained(format!(
                "{}: has no llama-bench and llama-batched-bench; name the folder of llama.cpp's \
                 programs with --llama-cpp or BROLLY_LLAMA_CPP",
                folder.display()
            ))),
        }
    }

    /// Its server.
    ///
    /// # Errors
    /// Where it was not built with the benches.
    pub(super) fn server(&self) -> Result<&Path> {
        match self.server.is_file() {
            true => Ok(&self.server),
            false => Err(Failure::Explained(format!("{}: is missing", self.server.display()))),
        }
    }

    /// One stream.
    pub(super) fn single(&self, gguf: &Path, prompt: usize, new: usize) -> Result<Rates> {
        let mut bench = command(&self.bench);
        bench.arg("-m").arg(gguf).args(["-t", &self.threads, "-r", "1", "-o", "json"]);
        bench.args(["-p", &prompt.to_string(), "-n", &new.to_string()]);
        let text = capture(&mut bench)?;
        let rows: Value = serde_json::from_str(&text).unwrap_or_default();
        let rate = |key: &str| {
            let row = rows.as_array()?.iter().find(|row| row[key].as_u64() > Some(0))?;
            row["avg_ts"].as_f64()
        };
        let rates = rate("n_prompt").zip(rate("n_gen"));
        let (prefill, decode) = rates.ok_or_else(|| unreadable(&shown(&bench), &text))?;
        Ok(Rates { prefill, decode })
    }

    /// Several streams at once, all together.
    pub(super) fn batched(
        &self,
        gguf: &Path,
        streams: usize,
        prompt: usize,
        new: usize,
    ) -> Result<Rates> {
        let context = streams * (prompt + new);
        let mut bench = command(&self.batched);
        bench.arg("-m").arg(gguf).args(["-t", &self.threads, "--output-format", "jsonl"]);
        let number = |n: usize| n.to_string();
        bench.args(["-c", &number(context), "-npp", &number(prompt), "-ntg", &number(new)]);
        bench.args(["-npl", &number(streams)]);
        let text = capture(&mut bench)?;
        let rows = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let rates = |row: Value| {
            Some(Rates { prefill: row["speed_pp"].as_f64()?, decode: row["speed_tg"].as_f64()? })
        };
        let found = rows.filter_map(rates).next();
        found.ok_or_else(|| unreadable(&shown(&bench), &text))
    }
}

fn unreadable(command: &str, text: &str) -> Failure {
    let text: String = text.chars().take(200).collect();
    Failure::Explained(format!("`{command}` printed no rates: {text}"))
}

/// A Python process that runs an ONNX file whenever it is told to, so that rounds can take turns.
pub(super) struct Python {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    shown: String,
}

impl Python {
    pub(super) fn start(
        python: &Path,
        onnx: &Path,
        [batch, tokens, threads]: [usize; 3],
    ) -> Result<Python> {
        let mut peers = command(python);
        peers.arg(root().join("tests/reference/bench_peers.py")).arg(onnx);
        let flags = [("--batch", batch), ("--tokens", tokens), ("--threads", threads)];
        for (flag, value) in flags {
            peers.args([flag, &value.to_string()]);
        }
        let shown = shown(&peers);
        let spawned = peers.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child =
            spawned.map_err(|source| Failure::Spawn { command: shown.clone(), source })?;
        let pipes = child.stdin.take().zip(child.stdout.take());
        let (input, output) = pipes.ok_or_else(|| unreadable(&shown, "no pipes"))?;
        Ok(Python { child, input, output: BufReader::new(output), shown })
    }

    /// Tokens a second of each peer, in one more round.
    pub(super) fn round(&mut self) -> Result<Vec<(String, f64)>> {
        let mut line = String::new();
        let asked = self.input.write_all(b"go\n").and_then(|()| self.input.flush());
        let read = asked.and_then(|()| self.output.read_line(&mut line));
        read.map_err(|source| Failure::Spawn { command: self.shown.clone(), source })?;
        let rates: Value = serde_json::from_str(&line).unwrap_or_default();
        let rates = rates.as_object().ok_or_else(|| unreadable(&self.shown, &line))?;
        let rate = |(name, value): (&String, &Value)| Some((name.clone(), value.as_f64()?));
        Ok(rates.iter().filter_map(rate).collect())
    }
}

impl Drop for Python {
    fn drop(&mut self) {
        // It may have ended by itself, and nothing is left to say if it cannot be waited for.
        let _ = self.child.kill().and_then(|()| self.child.wait());
    }
}
