//! Runs cases on the device, and says what it does, a line of JSON each.
//!
//! An argument lies between guards of 256 bytes, and all memory is ones before operands are
//! written: numbers that are none. So results that are not written, reads beyond an operand and
//! writes beyond a result are seen.

use std::io::Write;

use cuda::{Address, CudaError, Device, Facts, Kernel, Memory, Staging, Stream};
use ir::Tensor;
use serde::{Deserialize, Serialize};

use crate::{
    Case, CaseError, Check, Folder, Operand, Source,
    compare::{Bound, Distance, scale},
    noise,
    reference::{self, ReferenceError},
    timing,
};

/// What a worker says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Message {
    /// What the device is, and bytes per second of copies on it if times are taken.
    Device(Facts, Option<f64>),
    /// It begins with the case of this number.
    Begin(usize),
    /// What came of it.
    End(usize, Outcome),
    /// It cannot begin at all.
    Failed(String),
}

/// What came of a case.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// What is wrong.
    pub error: Option<String>,
    /// The device cannot be used any more.
    pub fatal: bool,
    /// The largest error, as a fraction of what is allowed.
    pub worst: f64,
    /// Digests of the bits that are to be the same in other cases.
    pub same: Vec<String>,
    /// Microseconds of a launch.
    pub us: Option<f64>,
}

/// Why a case failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error(transparent)]
    Device(#[from] CudaError),
    #[error(transparent)]
    Files(#[from] CaseError),
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    #[error("{0}")]
    Result(String),
}

/// Bytes before and behind an argument.
const GUARD: u64 = 256;
/// Every byte of memory that holds no operand.
const ONES: u8 = 0xff;
/// Bytes of a pinned buffer.
const STAGING: usize = 16 << 20;

/// Runs these cases and writes [`Message`]s; ends early if the device is lost.
///
/// # Errors
/// If messages cannot be written.
pub fn run(
    folder: &Folder,
    cases: &[(usize, Case)],
    timed: bool,
    out: &mut dyn Write,
) -> std::io::Result<()> {
    let mut say = |message: &Message| -> std::io::Result<()> {
        let line = serde_json::to_string(message).map_err(std::io::Error::other)?;
        writeln!(out, "{line}")?;
        out.flush()
    };
    let started = Bench::open().and_then(|bench| {
        let copied = timed.then(|| timing::copies(&bench.device, &bench.stream)).transpose()?;
        Ok((bench, copied))
    });
    let (mut bench, copied) = match started {
        Ok(started) => started,
        Err(error) => return say(&Message::Failed(error.to_string())),
    };
    say(&Message::Device(bench.device.facts().clone(), copied))?;
    for (number, case) in cases {
        say(&Message::Begin(*number))?;
        let outcome = bench.outcome(folder, case, timed);
        let fatal = outcome.fatal;
        say(&Message::End(*number, outcome))?;
        if fatal {
            break;
        }
    }
    Ok(())
}

/// A device at work.
struct Bench {
    device: Device,
    stream: Stream,
    staging: Staging,
}

/// Where a case's arguments are.
pub(crate) struct Places {
    pub(crate) memory: Memory,
    /// Of operands, then of results.
    offsets: Vec<u64>,
    /// Between and around them.
    guards: Vec<u64>,
}

impl Places {
    /// Bytes of all arguments, and where each lies.
    fn of(case: &Case) -> (u64, Vec<u64>, Vec<u64>) {
        let (mut end, mut offsets, mut guards) = (GUARD, Vec::new(), vec![0]);
        let mut place = |bytes: Option<usize>| {
            let at = end;
            let bytes = bytes.unwrap_or(0) as u64;
            let guard = at + bytes;
            end = (guard + GUARD).next_multiple_of(GUARD);
            (at, guard)
        };
        for operand in &case.operands {
            let Some(operand) = operand else {
                offsets.push(0);
                continue;
            };
            let (at, guard) = place(operand.bytes());
            offsets.push(at);
            guards.push(guard);
        }
        for result in &case.results {
            if let Some(operand) = result.in_place {
                offsets.push(offsets[operand as usize]);
                continue;
            }
            let (at, guard) = place(result.bytes());
            offsets.push(at);
            guards.push(guard);
        }
        (end, offsets, guards)
    }

    /// Addresses of arguments, in memory that begins `base` bytes behind this.
    pub(crate) fn args(&self, memory: &Memory, base: u64) -> Vec<Address> {
        self.offsets.iter().map(|offset| memory.at(base + offset)).collect()
    }
}

impl Bench {
    fn open() -> Result<Bench, CudaError> {
        let device = Device::open(0)?;
        let stream = Stream::new(&device)?;
        let staging = device.staging(STAGING)?;
        Ok(Bench { device, stream, staging })
    }

    fn outcome(&mut self, folder: &Folder, case: &Case, timed: bool) -> Outcome {
        let mut outcome = Outcome::default();
        if let Err(failure) = self.run(folder, case, timed, &mut outcome) {
            outcome.error = Some(failure.to_string());
            outcome.fatal = matches!(&failure, Failure::Device(error) if error.is_fatal());
        }
        outcome
    }

    fn run(
        &mut self,
        folder: &Folder,
        case: &Case,
        timed: bool,
        outcome: &mut Outcome,
    ) -> Result<(), Failure> {
        let image = folder.kernel(&case.module)?;
        let kernel = Kernel::load(&self.device, &image, &case.launch.symbol)?;
        let (bytes, offsets, guards) = Places::of(case);
        let places = Places { memory: self.device.allocate(bytes)?, offsets, guards };
        self.stream.fill(&places.memory.at(0), ONES, bytes)?;
        for (operand, offset) in case.operands.iter().zip(&places.offsets) {
            let Some(operand) = operand else { continue };
            self.write(folder, operand, &places.memory.at(*offset))?;
        }
        let verdict = self.verdict(folder, case, &kernel, &places, outcome);
        // What is wrong takes time too.
        if timed && !matches!(&verdict, Err(Failure::Device(_))) {
            let places = (&places, bytes);
            outcome.us = Some(timing::launch(&self.device, &self.stream, &kernel, case, places)?);
        }
        verdict
    }

    /// Launches twice and checks all that can be.
    fn verdict(
        &mut self,
        folder: &Folder,
        case: &Case,
        kernel: &Kernel,
        places: &Places,
        outcome: &mut Outcome,
    ) -> Result<(), Failure> {
        let first = self.launch(case, kernel, places)?;
        self.check(folder, case, &first, outcome)?;
        self.intact(folder, case, places)?;
        self.reset(folder, case, places)?;
        let second = self.launch(case, kernel, places)?;
        if first != second {
            let text = "two launches on the same operands differ: a race";
            return Err(Failure::Result(text.into()));
        }
        let digest = |same: &crate::Same| {
            blake3::hash(&first[0][same.offset..][..same.bytes]).to_hex()[..16].to_owned()
        };
        outcome.same = case.same.iter().map(digest).collect();
        Ok(())
    }

    /// Writes an operand's values.
    fn write(&mut self, folder: &Folder, operand: &Operand, to: &Address) -> Result<(), Failure> {
        if let Source::File(name) = &operand.source {
            self.staging.upload(&self.stream, to, &folder.data(name)?)?;
            return Ok(());
        }
        let bytes = operand.bytes().unwrap_or(0);
        let mut part = vec![0; STAGING.min(bytes)];
        for first in (0..bytes).step_by(STAGING) {
            let part = &mut part[..STAGING.min(bytes - first)];
            noise::fill(operand, first / operand.dtype.size(), part);
            self.staging.upload(&self.stream, &to.plus(first as u64), part)?;
        }
        Ok(())
    }

    /// Launches, waits, and reads the results.
    fn launch(
        &mut self,
        case: &Case,
        kernel: &Kernel,
        places: &Places,
    ) -> Result<Vec<Vec<u8>>, Failure> {
        self.stream.launch(kernel, &case.launch, &places.args(&places.memory, 0))?;
        self.stream.synchronize()?;
        let offsets = &places.offsets[case.operands.len()..];
        let mut results = Vec::new();
        for (result, offset) in case.results.iter().zip(offsets) {
            let mut bytes = vec![0; result.bytes().unwrap_or(0)];
            self.staging.download(&self.stream, &places.memory.at(*offset), &mut bytes)?;
            results.push(bytes);
        }
        Ok(results)
    }

    /// Makes memory what it was before the launch.
    fn reset(&mut self, folder: &Folder, case: &Case, places: &Places) -> Result<(), Failure> {
        let offsets = &places.offsets[case.operands.len()..];
        for (result, offset) in case.results.iter().zip(offsets) {
            let at = places.memory.at(*offset);
            match result.in_place.and_then(|operand| case.operands[operand as usize].as_ref()) {
                Some(operand) => self.write(folder, operand, &at)?,
                None => self.stream.fill(&at, ONES, result.bytes().unwrap_or(0) as u64)?,
            }
        }
        Ok(())
    }

    /// Compares results with what they must be.
    fn check(
        &self,
        folder: &Folder,
        case: &Case,
        results: &[Vec<u8>],
        outcome: &mut Outcome,
    ) -> Result<(), Failure> {
        let mut distance = Distance::default();
        match &case.check {
            Check::Whole { files, tolerance } => {
                for (index, (result, file)) in case.results.iter().zip(files).enumerate() {
                    let tensor = |bytes| Tensor::from_bytes(result.dtype, &result.shape, bytes);
                    let (got, want) = (tensor(results[index].clone()), tensor(folder.data(file)?));
                    distance.add_all(index, &got, &want, *tolerance);
                }
            }
            Check::Rows { .. } | Check::Attention { .. } => {
                let dtype = case.results[0].dtype;
                let (parts, tolerance) = reference::parts(folder, case)?;
                for part in parts {
                    let (at, count) = (part.first * dtype.size(), part.want.len());
                    let bytes = results[0][at..][..count * dtype.size()].to_vec();
                    let got = Tensor::from_bytes(dtype, &[count], bytes).to_f64s();
                    let bound = Bound::OfScale(tolerance, scale(&part.want));
                    let name = |i| format!("element {}", part.first + i);
                    distance.add(dtype, &got, &part.want, bound, name);
                }
            }
        }
        outcome.worst = distance.worst;
        distance.wrong.map_or(Ok(()), |wrong| Err(Failure::Result(wrong)))
    }

    /// Sees that nothing but results was written.
    fn intact(&mut self, folder: &Folder, case: &Case, places: &Places) -> Result<(), Failure> {
        for guard in &places.guards {
            let mut bytes = vec![0; usize::try_from(GUARD).unwrap_or(0)];
            self.staging.download(&self.stream, &places.memory.at(*guard), &mut bytes)?;
            if let Some(at) = bytes.iter().position(|byte| *byte != ONES) {
                let text = format!("wrote {at} bytes behind the argument that ends at {guard}");
                return Err(Failure::Result(text));
            }
        }
        for (index, (operand, at)) in case.operands.iter().zip(&places.offsets).enumerate() {
            let Some(Operand { source: Source::File(name), .. }) = operand else { continue };
            let number = u32::try_from(index).ok();
            if case.results.iter().any(|result| result.in_place == number) {
                continue;
            }
            let want = folder.data(name)?;
            let mut got = vec![0; want.len()];
            self.staging.download(&self.stream, &places.memory.at(*at), &mut got)?;
            if got != want {
                return Err(Failure::Result(format!("wrote to operand {index}")));
            }
        }
        Ok(())
    }
}
