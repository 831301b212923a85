//! A `brolly serve` as a child process: started on a free port, ended with SIGTERM.

use super::suites::API_KEY;
use crate::process::{Failure, Result, command, root, shown, succeeds};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

/// How long a start may take, and an end.
const PATIENCE: Duration = Duration::from_secs(60);

/// The line on stderr that tells the address begins so.
const READY: &str = "serving at ";

/// A server that runs. Dropping it without [`Server::stop`] kills it.
pub(super) struct Server {
    child: Child,
    url: String,
}

impl Server {
    /// Serves `artifact` and waits until it takes requests.
    ///
    /// # Errors
    /// If it ends or says nothing instead; what it said is on the terminal.
    pub(super) fn start(brolly: &Path, artifact: &Path) -> Result<Server> {
        let mut serve = command(brolly);
        serve.arg("serve").arg(artifact).args(["--port", "0", "--chat-template"]);
        serve.arg(root().join("tests/clients/chat_template.jinja"));
        Server::spawn(serve.env("BROLLY_API_KEY", API_KEY))
    }

    fn spawn(serve: &mut Command) -> Result<Server> {
        let name = shown(serve);
        eprintln!("$ {name}");
        let spawned = serve.stderr(Stdio::piped()).stdin(Stdio::null()).spawn();
        let mut child =
            spawned.map_err(|source| Failure::Spawn { command: name.clone(), source })?;
        let (sender, addresses) = mpsc::channel();
        if let Some(pipe) = child.stderr.take() {
            thread::spawn(move || {
                for line in BufReader::new(pipe).lines().map_while(std::result::Result::ok) {
                    eprintln!("serve: {line}");
                    if let Some(url) = line.strip_prefix(READY) {
                        // Nobody listens any more after the first.
                        let _ = sender.send(url.to_owned());
                    }
                }
            });
        }
        let mut server = Server { child, url: String::new() };
        let told = addresses.recv_timeout(PATIENCE);
        server.url = told.map_err(|_| {
            Failure::Explained(format!("`{name}` did not say `{READY}ADDRESS` on stderr"))
        })?;
        Ok(server)
    }

    /// Where it listens: `http://127.0.0.1:12345`.
    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// Ends it with SIGTERM.
    ///
    /// # Errors
    /// If it does not end in time, or not with exit code 0.
    pub(super) fn stop(mut self) -> Result<()> {
        let failed = |reason: String| Err(Failure::Explained(format!("brolly serve: {reason}")));
        let pid = self.child.id().to_string();
        // Small systems have no program for it, but every shell does.
        if !succeeds(command("sh").args(["-c", &format!("kill -TERM {pid}")])) {
            return failed("it was gone before SIGTERM".to_owned());
        }
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            match self.child.try_wait() {
                Ok(Some(status)) if status.success() => return Ok(()),
                Ok(Some(status)) => return failed(format!("{status} after SIGTERM")),
                Ok(None) => thread::sleep(Duration::from_millis(20)),
                Err(error) => return failed(error.to_string()),
            }
        }
        failed(format!("still there {} s after SIGTERM", PATIENCE.as_secs()))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Either may fail where the process has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(script: &str) -> Result<Server> {
        Server::spawn(command("sh").args(["-c", script]))
    }

    #[test]
    fn the_address_is_read_and_the_exit_code_counts() {
        for code in [0, 3] {
            let said = "echo 'serving at http://127.0.0.1:7' >&2";
            let script = format!("trap 'exit {code}' TERM\n{said}\nwhile :; do sleep 0.05; done");
            let server = start(&script).unwrap();
            assert_eq!(server.url(), "http://127.0.0.1:7");
            assert_eq!(server.stop().is_ok(), code == 0, "{code}");
        }
    }

    #[test]
    fn a_server_that_ends_at_once_is_a_failure() {
        assert!(start("exit 1").is_err_and(|failure| failure.to_string().contains("did not say")));
    }
}
