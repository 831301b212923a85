//! The memory timeline: what lies where in the arena, launch by launch, as a picture.
//!
//! To the right go the launches, upwards the addresses; a rectangle is a value, from the launch
//! that writes it to the last that reads it. The broken line is the size of the arena, the peak.

use std::fmt::Write as _;

use ir::{Interval, Program};

use super::html::escape;
use crate::table;

const WIDTH: f64 = 1000.0;
const HEIGHT: f64 = 320.0;
/// Room for the labels of the axes.
const LEFT: f64 = 76.0;
const BOTTOM: f64 = 28.0;
const TOP: f64 = 18.0;

/// Kinds of values by the operator that computes them: name, operators.
const KINDS: [(&str, &[&str]); 4] = [
    ("product", &["linear", "gated_linear", "cublaslt_linear", "matmul"]),
    (
        "attention",
        &["attention", "paged_attention", "quantize_heads", "kv_write", "rope", "rope_kv_write"],
    ),
    ("norm", &["rms_norm", "layer_norm", "l2_normalize", "softmax", "logsumexp"]),
    ("movement", &["gather", "copy", "concat", "transpose", "reshape", "slice", "broadcast_to"]),
];

/// The picture of a program's arena, an `<svg>` element; nothing for a program without launches.
pub(super) fn timeline(program: &Program) -> String {
    let launches = program.launches.len();
    if launches == 0 || program.arena_bytes == 0 {
        return String::new();
    }
    let x = |launch: f64| LEFT + launch / launches as f64 * (WIDTH - LEFT - 8.0);
    let y = |byte: u64| {
        HEIGHT - BOTTOM - byte as f64 / program.arena_bytes as f64 * (HEIGHT - BOTTOM - TOP)
    };
    let mut out = format!(
        "<svg class=\"timeline\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" \
         aria-label=\"memory timeline of {}\">\n",
        escape(&program.name)
    );
    axes(&mut out, program, &x, &y);
    for interval in &program.intervals {
        let Interval { name, offset, bytes, first, last } = interval;
        let (left, right) = (x(f64::from(*first)), x(f64::from(*last) + 1.0));
        let (top, bottom) = (y(offset.saturating_add(*bytes)), y(*offset));
        let _ = writeln!(
            out,
            "<rect class=\"{}\" x=\"{left:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{:.1}\">\
             <title>{}\n{} at {offset}, launches {first} to {last}</title></rect>",
            kind(program, interval),
            (right - left).max(0.5),
            (bottom - top).max(0.5),
            escape(name),
            table::bytes(*bytes),
        );
    }
    let peak = y(program.arena_bytes);
    let _ = writeln!(
        out,
        "<line class=\"peak\" x1=\"{LEFT}\" x2=\"{WIDTH}\" y1=\"{peak:.1}\" y2=\"{peak:.1}\"/>\
         <text x=\"{WIDTH}\" y=\"{:.1}\" text-anchor=\"end\">peak {}</text>",
        peak - 5.0,
        table::bytes(program.arena_bytes)
    );
    out + "</svg>\n" + &legend(program)
}

/// The name of a value's kind, which is its colour's class.
fn kind(program: &Program, interval: &Interval) -> &'static str {
    if program.inputs.iter().any(|port| *port.name == *interval.name) {
        return "input";
    }
    let op = program
        .launches
        .get(interval.first as usize)
        .and_then(|l| program.kernels.get(l.kernel as usize))
        .map_or("", |k| k.op.as_str());
    KINDS.iter().find(|(_, ops)| ops.contains(&op)).map_or("other", |(name, _)| name)
}

fn axes(out: &mut String, program: &Program, x: &dyn Fn(f64) -> f64, y: &dyn Fn(u64) -> f64) {
    let launches = program.launches.len();
    // A power of two, three to six of which fit.
    let step = 1u64 << (program.arena_bytes / 3).max(1).ilog2();
    for byte in (0..=program.arena_bytes).step_by(usize::try_from(step).unwrap_or(usize::MAX)) {
        let at = y(byte);
        let _ = writeln!(
            out,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{WIDTH}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            LEFT - 6.0,
            at + 4.0,
            table::bytes(byte)
        );
    }
    let step = [1, 2, 5].iter().flat_map(|m| [1, 10, 100, 1000, 10_000].map(|p| m * p));
    let step = step.filter(|s| launches / s <= 12).min().unwrap_or(launches.max(1));
    for launch in (0..launches).step_by(step) {
        let _ = writeln!(
            out,
            "<text x=\"{:.1}\" y=\"{:.1}\">{launch}</text>",
            x(launch as f64),
            HEIGHT - 8.0
        );
    }
}

fn legend(program: &Program) -> String {
    let used: Vec<&str> = program.intervals.iter().map(|i| kind(program, i)).collect();
    let names = ["input"].into_iter().chain(KINDS.map(|(name, _)| name)).chain(["other"]);
    let entries = names.filter(|name| used.contains(name)).map(|name| {
        format!(
            "<span><svg class=\"key\" viewBox=\"0 0 10 10\"><rect class=\"{name}\" width=\"10\" \
                 height=\"10\"/></svg> {name}</span>"
        )
    });
    format!("<p class=\"legend\">{}</p>\n", entries.collect::<String>())
}
