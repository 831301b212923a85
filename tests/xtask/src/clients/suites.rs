//! The suites, one row each. A suite learns where the servers are from its environment.

use super::environment;
use crate::process::{self, Failure, Result, command, file_failure, root, succeeds};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The key that the servers ask for.
pub(super) const API_KEY: &str = "key-of-the-client-tests";

/// A suite.
pub(super) struct Suite {
    pub(super) name: &'static str,
    /// Installs what it needs into a folder, once.
    pub(super) prepare: fn(&Path) -> Result<PathBuf>,
    pub(super) run: fn(&Stage) -> Result<Outcome>,
}

/// All suites, in the order in which they run.
pub(super) static SUITES: &[Suite] = &[
    Suite { name: "openai-python", prepare: python, run: openai_python },
    Suite { name: "openai-node", prepare: environment::node, run: openai_node },
    Suite { name: "schemathesis", prepare: python, run: schemathesis },
    Suite { name: "promtool", prepare: python, run: promtool },
    Suite { name: "lm-eval", prepare: lm_eval_python, run: lm_eval },
];

/// How a suite went that found nothing.
pub(super) enum Outcome {
    Passed,
    /// It could not be run, for this reason.
    Skipped(String),
}

/// What suites run against. Pairs are of the language model and of the encoder.
pub(super) struct Stage {
    pub(super) brolly: PathBuf,
    pub(super) folder: PathBuf,
    pub(super) artifacts: [PathBuf; 2],
    pub(super) urls: [String; 2],
    pub(super) schemathesis_seconds: f64,
    pub(super) seed: u32,
}

/// The suites' names, for the command line.
pub(super) fn names() -> Vec<&'static str> {
    SUITES.iter().map(|suite| suite.name).collect()
}

impl Stage {
    /// `command` with everything in its environment that suites read.
    fn tell<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command
            .env("BROLLY", &self.brolly)
            .env("BROLLY_API_KEY", API_KEY)
            .env("BROLLY_ARTIFACT", &self.artifacts[0])
            .env("BROLLY_ENCODER", &self.artifacts[1])
            .env("BROLLY_URL", &self.urls[0])
            .env("BROLLY_ENCODER_URL", &self.urls[1])
            .env("NO_PROXY", "127.0.0.1")
            .env("PYTHONPYCACHEPREFIX", self.folder.join("pycache"))
    }

    fn run(&self, command: &mut Command) -> Result<Outcome> {
        process::run(self.tell(command)).map(|()| Outcome::Passed)
    }
}

/// The environment of the suites in Python, but for lm-eval, which needs much more.
fn python(folder: &Path) -> Result<PathBuf> {
    environment::python(folder, "python", "requirements.txt")
}

fn lm_eval_python(folder: &Path) -> Result<PathBuf> {
    environment::python(folder, "lm-eval", "requirements-lm-eval.txt")
}

fn openai_python(stage: &Stage) -> Result<Outcome> {
    let mut pytest = command(python(&stage.folder)?);
    pytest.args(["-m", "pytest", "--quiet", "-p", "no:cacheprovider", "-p", "no:schemathesis"]);
    stage.run(pytest.arg("tests/clients/openai_python"))
}

fn openai_node(stage: &Stage) -> Result<Outcome> {
    let modules = environment::node(&stage.folder)?;
    // Node looks for packages from where a file lies, so that the tests go to them.
    let (from, to) = (root().join("tests/clients/openai_node"), modules.join("tests"));
    environment::remove(&to)?;
    fs::create_dir_all(&to).map_err(file_failure(&to))?;
    let entries = fs::read_dir(&from).map_err(file_failure(&from))?;
    for file in entries.filter_map(|entry| entry.ok().map(|entry| entry.path())) {
        let name = file.file_name().unwrap_or_default();
        fs::copy(&file, to.join(name)).map_err(file_failure(&file))?;
    }
    let mut node = command("node");
    node.args(["--test", "--test-reporter=spec"]).current_dir(to);
    stage.run(&mut node)
}

fn schemathesis(stage: &Stage) -> Result<Outcome> {
    let python = python(&stage.folder)?;
    // The encoder has one route that computes.
    for (url, share) in stage.urls.iter().zip([0.7, 0.3]) {
        let mut run = command(python.with_file_name("schemathesis"));
        run.arg("run").arg(format!("{url}/openapi.json"));
        run.arg("--header").arg(format!("Authorization: Bearer {API_KEY}"));
        // Some fields exclude each other, which no schema says: a request that is valid by its
        // schema may be refused.
        run.args(["--exclude-checks", "positive_data_acceptance"]);
        run.args(["--phases", "examples,coverage,fuzzing", "--generation-database", "none"]);
        run.args(["--continue-on-failure", "--output-sanitize", "false", "--warnings", "off"]);
        let seconds = (stage.schemathesis_seconds * share).ceil();
        run.args(["--max-time", &seconds.to_string(), "--seed", &stage.seed.to_string()]);
        let hooks = root().join("tests/clients/schemathesis");
        run.env("PYTHONPATH", hooks).env("SCHEMATHESIS_HOOKS", "hooks");
        let mut is_tested = false;
        process::run_lines(stage.tell(run.current_dir(&stage.folder)), |line| {
            println!("{line}");
            is_tested |= made_requests(line);
        })?;
        if !is_tested {
            return Err(Failure::Explained(format!(
                "schemathesis made no request in {seconds} s; give it more --minutes"
            )));
        }
    }
    Ok(Outcome::Passed)
}

/// Whether this line of schemathesis' summary counts requests: `476 generated, 476 passed`.
fn made_requests(line: &str) -> bool {
    let count = line.trim_start().split_once(" generated,").map(|(count, _)| count);
    count.and_then(|count| count.parse::<u64>().ok()).is_some_and(|count| count > 0)
}

fn promtool(stage: &Stage) -> Result<Outcome> {
    if !succeeds(command("promtool").arg("--version")) {
        let reason = "there is no promtool; on Debian, apt-get install prometheus";
        return Ok(Outcome::Skipped(reason.to_owned()));
    }
    let python = python(&stage.folder)?;
    for url in &stage.urls {
        let metrics = get(stage, &python, &format!("{url}/metrics"))?;
        check_metrics(&metrics)?;
    }
    Ok(Outcome::Passed)
}

/// Has promtool read `metrics`. What it says about names is passed over where they are vLLM's,
/// which dashboards look for.
fn check_metrics(metrics: &str) -> Result<()> {
    let name = "promtool check metrics";
    let failure = |source| Failure::Spawn { command: name.to_owned(), source };
    let mut promtool = command("promtool");
    promtool.args(["check", "metrics"]).stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut child = promtool.spawn().map_err(failure)?;
    if let Some(mut pipe) = child.stdin.take() {
        pipe.write_all(metrics.as_bytes()).map_err(failure)?;
    }
    let output = child.wait_with_output().map_err(failure)?;
    let told = String::from_utf8_lossy(&output.stderr);
    // Anything but advice on names has another exit code.
    let is_advice = output.status.code() == Some(3);
    let faults = faults(&told);
    if output.status.success() || is_advice && faults.is_empty() {
        return Ok(());
    }
    let faults = if is_advice { faults.join("\n") } else { told.into_owned() };
    Err(Failure::Explained(format!("{name}: {}\n{faults}", output.status)))
}

/// What promtool says about names that are not vLLM's.
fn faults(told: &str) -> Vec<&str> {
    told.lines().filter(|line| !line.is_empty() && !line.starts_with("vllm:")).collect()
}

/// The text at `url`, which needs the key.
fn get(stage: &Stage, python: &Path, url: &str) -> Result<String> {
    let script = "import os, sys, urllib.request as u\n\
        headers = {'Authorization': 'Bearer ' + os.environ['BROLLY_API_KEY']}\n\
        answer = u.urlopen(u.Request(sys.argv[1], headers=headers))\n\
        sys.stdout.write(answer.read().decode())";
    process::capture(stage.tell(command(python).args(["-c", script, url])))
}

fn lm_eval(stage: &Stage) -> Result<Outcome> {
    let mut check = command(lm_eval_python(&stage.folder)?);
    check.arg("tests/clients/lm_eval/check.py").arg(root().join("tests/data/stories"));
    check.envs(["HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"].map(|v| (v, "1")));
    check.env("HF_HOME", stage.folder.join("hf"));
    stage.run(&mut check)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suites_have_names_of_their_own() {
        let mut names = names();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), SUITES.len());
    }

    #[test]
    fn a_summary_without_requests_is_told_from_one_with_some() {
        assert!(made_requests("  476 generated, 476 passed, 14 skipped"));
        assert!(!made_requests("  No test cases were generated"));
        assert!(!made_requests("  0 generated, 0 passed"));
    }

    #[test]
    fn only_names_of_vllms_are_passed_over() {
        let told = "vllm:x metric names should not contain ':'\nx_total no help text\n";
        assert_eq!(faults(told), ["x_total no help text"]);
    }

    #[test]
    fn a_suite_learns_the_addresses() {
        let stage = Stage {
            brolly: "b".into(),
            folder: "f".into(),
            artifacts: ["m".into(), "e".into()],
            urls: ["http://one".to_owned(), "http://two".to_owned()],
            schemathesis_seconds: 1.0,
            seed: 1,
        };
        let mut echo = command("sh");
        echo.args(["-c", "echo $BROLLY_URL $BROLLY_ENCODER_URL $BROLLY_ENCODER"]);
        assert_eq!(process::capture(stage.tell(&mut echo)).unwrap(), "http://one http://two e\n");
    }
}
