//! Results on stdout.
//!
//! A reader that closes its end ends the command quietly. Numbers in JSON read back exactly: f32
//! values are written as the f64 that they are.

use std::io::{self, Write as _};

use serde::Serialize;

use crate::failure::{Failure, Result};

/// Writes text as it is, and no later than now.
pub(crate) fn print(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|e| match e.kind() {
        io::ErrorKind::BrokenPipe => Failure::Closed,
        _ => Failure::input(format!("stdout cannot be written: {e}")),
    })
}

/// Writes text to stderr, if anybody takes it: a message that cannot be told is no reason to fail.
pub(crate) fn tell(text: &str) {
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

/// Writes one JSON document, on a line of its own.
pub(crate) fn json(document: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string(document).map_err(|e| Failure::Bug(e.to_string()))?;
    print(&(text + "\n"))
}

/// An f32 as the f64 of the same value.
pub(crate) fn exact(values: &[f32]) -> Vec<f64> {
    values.iter().map(|v| f64::from(*v)).collect()
}

#[cfg(test)]
mod tests {
    use super::exact;

    #[test]
    fn floats_read_back_exactly() {
        let values = [0.1, -1.0e-45, f32::MAX, 1.0 / 3.0, -0.0];
        let text = serde_json::to_string(&exact(&values)).unwrap();
        let back: Vec<f64> = serde_json::from_str(&text).unwrap();
        let bits = |v: &f64| v.to_bits();
        let wanted: Vec<u64> = exact(&values).iter().map(bits).collect();
        assert_eq!(back.iter().map(bits).collect::<Vec<_>>(), wanted);
    }
}
