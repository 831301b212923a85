//! How long a launch takes: the median of several replays of a graph of many launches.
//!
//! Where operands would stay in the second-level cache, launches go round copies of them, so that
//! each finds its operands in memory, as a model's layers find their weights.

use cuda::{CudaError, Device, Event, Kernel, Memory, Stream};

use crate::{Case, worker::Places};

/// Bytes that launches go round, several times what caches hold.
const ROUND: u64 = 256 << 20;
/// Milliseconds of a graph.
const GRAPH_MS: f64 = 20.0;
/// Replays that are measured.
const REPLAYS: usize = 7;
/// Most launches of a graph.
const LAUNCHES: u64 = 400;

/// Microseconds of a launch on these places of so many bytes.
pub(crate) fn launch(
    device: &Device,
    stream: &Stream,
    kernel: &Kernel,
    case: &Case,
    (places, bytes): (&Places, u64),
) -> Result<f64, CudaError> {
    launches(device, stream, (&places.memory, bytes), |stream, memory, base| {
        stream.launch(kernel, &case.launch, &places.args(memory, base))
    })
}

/// Microseconds of a launch on operands of so many bytes in memory, or on copies of them: `launch`
/// is told which memory, and where in it they begin.
pub(crate) fn launches(
    device: &Device,
    stream: &Stream,
    (operands, bytes): (&Memory, u64),
    launch: impl Fn(&Stream, &Memory, u64) -> Result<(), CudaError>,
) -> Result<f64, CudaError> {
    let copies = ROUND.div_ceil(bytes).clamp(1, 64);
    let memory = if copies == 1 {
        operands.clone()
    } else {
        let memory = device.allocate(copies * bytes)?;
        for copy in 0..copies {
            stream.copy(&memory.at(copy * bytes), &operands.at(0), bytes)?;
        }
        memory
    };
    let round = |stream: &Stream, count: u64| {
        for i in 0..count {
            launch(stream, &memory, i % copies * bytes)?;
        }
        Ok(())
    };
    let (from, to) = (Event::new(device)?, Event::new(device)?);
    round(stream, 1)?;
    from.record(stream)?;
    round(stream, 3)?;
    to.record(stream)?;
    stream.synchronize()?;
    let once_ms = to.ms_since(&from)? / 3.0;
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small number")]
    let count = (GRAPH_MS / once_ms.max(1e-3)).ceil() as u64;
    let count = count.clamp(1, LAUNCHES).next_multiple_of(copies);
    let graph = stream.capture(|stream| round(stream, count))?;
    let ms = median(device, stream, |stream| stream.launch_graph(&graph))?;
    Ok(ms * 1e3 / count as f64)
}

/// Bytes per second that copies on the device read and write.
pub(crate) fn copies(device: &Device, stream: &Stream) -> Result<f64, CudaError> {
    let bytes = 1u64 << 30;
    let memory = device.allocate(2 * bytes)?;
    let ms = median(device, stream, |stream| {
        (0..4).try_for_each(|_| stream.copy(&memory.at(bytes), &memory.at(0), bytes))
    })?;
    Ok(8.0 * bytes as f64 / (ms / 1e3))
}

/// Median milliseconds of work, after doing it twice.
fn median(
    device: &Device,
    stream: &Stream,
    work: impl Fn(&Stream) -> Result<(), CudaError>,
) -> Result<f64, CudaError> {
    (0..2).try_for_each(|_| work(stream))?;
    let (from, to) = (Event::new(device)?, Event::new(device)?);
    let mut times = Vec::new();
    for _ in 0..REPLAYS {
        from.record(stream)?;
        work(stream)?;
        to.record(stream)?;
        stream.synchronize()?;
        times.push(to.ms_since(&from)?);
    }
    times.sort_by(f64::total_cmp);
    Ok(times[REPLAYS / 2])
}
