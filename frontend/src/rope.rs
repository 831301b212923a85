//! Rotary position embedding as `config.json` describes it: the frequencies of each type.
//!
//! Su et al. 2021, arXiv:2104.09864. A head's `D` elements are rotated in `D/2` planes, plane `i`
//! by `position · f_i` with `f_i = theta^(-2i/D)`; the scaling types change the `f_i`, and some
//! scale cosine and sine by an attention factor. Values follow transformers 5
//! (`modeling_rope_utils.py`) operation by operation, in `f32` where it computes in `f32`.
//!
//! Where transformers picks frequencies by the length of a sequence (`dynamic`, `longrope`), the
//! compiled bound picks them here, once: a token's logits do not depend on what follows it.

use std::f64::consts::PI;

use crate::config::Fields;

/// Rotary embedding of heads of one size.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Rope {
    /// Elements of a head; all are rotated.
    head_dim: u64,
    theta: f64,
    scaling: Scaling,
}

/// How frequencies are adapted to sequences longer than those of pretraining.
#[derive(Clone, Debug, PartialEq)]
enum Scaling {
    Default,
    /// Every frequency divided by a factor.
    Linear {
        factor: f64,
    },
    /// NTK-aware scaling of theta, from `max_position` on.
    Dynamic {
        factor: f64,
        max_position: u64,
    },
    /// Peng et al. 2023, arXiv:2309.00071.
    Yarn {
        factor: f64,
        original: u64,
        attention_factor: f64,
        beta_fast: f64,
        beta_slow: f64,
        truncate: bool,
    },
    /// Llama 3.1: low frequencies divided, high ones kept, those between blended.
    Llama3 {
        factor: f64,
        low: f64,
        high: f64,
        original: u64,
    },
    /// Ding et al. 2024, arXiv:2402.13753: a searched divisor for each frequency.
    LongRope {
        short: Vec<f64>,
        long: Vec<f64>,
        original: u64,
        attention_factor: f64,
    },
}

/// What a graph needs of a [`Rope`].
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Frequencies {
    /// Angle of each plane at position one, `D/2` of them.
    pub(crate) inv_freq: Vec<f32>,
    /// Factor of cosine and sine.
    pub(crate) attention_factor: f64,
}

const MAX_FACTOR: f64 = 1e6;
/// Fields of a block, of whatever type it is; `finetuned` only tells how a model was made.
const KEYS: &[&str] = &[
    "rope_type",
    "type",
    "rope_theta",
    "partial_rotary_factor",
    "factor",
    "original_max_position_embeddings",
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "mscale",
    "mscale_all_dim",
    "truncate",
    "low_freq_factor",
    "high_freq_factor",
    "short_factor",
    "long_factor",
    "finetuned",
];
const MAX_POSITION: u64 = i32::MAX as u64;

impl Rope {
    /// Reads `rope_parameters` as transformers 5 writes it, or `rope_scaling` and `rope_theta` as
    /// older releases do. `max_position` is `max_position_embeddings`; what is not known of the
    /// model is not checked against.
    pub(crate) fn read(
        c: &Fields<'_>,
        head_dim: Option<u64>,
        max_position: Option<u64>,
    ) -> Option<Rope> {
        if let Some(odd) = head_dim.filter(|d| d % 2 == 1) {
            let why = format!("is {odd}, but rotary embedding takes pairs of elements");
            c.refuse("head_dim", why);
        }
        let scaling = Scaling::read(c, head_dim, max_position.unwrap_or(MAX_POSITION));
        let (theta, scaling) = scaling?;
        let head_dim = head_dim.filter(|d| d % 2 == 0)?;
        max_position.map(|_| Rope { head_dim, theta, scaling })
    }

    /// The frequencies of a form compiled for sequences up to `max_seq_len`.
    pub(crate) fn frequencies(&self, max_seq_len: u64) -> Frequencies {
        let plain = |inv_freq: Vec<f32>| Frequencies { inv_freq, attention_factor: 1.0 };
        match &self.scaling {
            Scaling::Default => plain(self.inverse(self.theta)),
            Scaling::Linear { factor } => {
                plain(self.inverse(self.theta).iter().map(|f| f / single(*factor)).collect())
            }
            Scaling::Dynamic { factor, max_position } => {
                let (len, max) = (max_seq_len.max(*max_position) as f64, *max_position as f64);
                let d = self.head_dim as f64;
                let stretch = (factor * len / max) - (factor - 1.0);
                plain(self.inverse(self.theta * stretch.powf(d / (d - 2.0))))
            }
            Scaling::Yarn {
                factor,
                original,
                attention_factor,
                beta_fast,
                beta_slow,
                truncate,
            } => {
                let [low, high] = self.yarn_range(*original, [*beta_fast, *beta_slow], *truncate);
                let planes = self.powers(self.theta).into_iter().enumerate();
                let inv_freq = planes.map(|(i, power)| {
                    let ramp = ((i as f32 - single(low)) / single(high - low)).clamp(0.0, 1.0);
                    let keep = 1.0 - ramp;
                    (1.0 / (single(*factor) * power)) * (1.0 - keep) + (1.0 / power) * keep
                });
                let inv_freq = inv_freq.collect();
                Frequencies { inv_freq, attention_factor: *attention_factor }
            }
            Scaling::Llama3 { factor, low, high, original } => {
                let old = *original as f64;
                let band = |f: f32| {
                    let wavelength = single(2.0 * PI) / f;
                    if wavelength > single(old / low) {
                        f / single(*factor)
                    } else if wavelength < single(old / high) {
                        f
                    } else {
                        let smooth = (single(old) / wavelength - single(*low)) / single(high - low);
                        (1.0 - smooth) * f / single(*factor) + smooth * f
                    }
                };
                plain(self.inverse(self.theta).into_iter().map(band).collect())
            }
            Scaling::LongRope { short, long, original, attention_factor } => {
                let divisors = if max_seq_len > *original { long } else { short };
                let powers = self.powers(self.theta).into_iter().zip(divisors);
                let inv_freq = powers.map(|(p, d)| 1.0 / (single(*d) * p)).collect();
                Frequencies { inv_freq, attention_factor: *attention_factor }
            }
        }
    }

    /// `base^(2i/D)` of each plane.
    fn powers(&self, base: f64) -> Vec<f32> {
        let d = self.head_dim as f32;
        (0..self.head_dim).step_by(2).map(|i| single(base).powf(i as f32 / d)).collect()
    }

    fn inverse(&self, base: f64) -> Vec<f32> {
        self.powers(base).into_iter().map(|p| 1.0 / p).collect()
    }

    /// The planes between which yarn blends: those that turn `betas` times over the original
    /// length.
    fn yarn_range(&self, original: u64, betas: [f64; 2], truncate: bool) -> [f64; 2] {
        let d = self.head_dim as f64;
        let [low, high] = betas
            .map(|turns| d * (original as f64 / (turns * 2.0 * PI)).ln() / (2.0 * self.theta.ln()));
        let (low, high) = if truncate { (low.floor(), high.ceil()) } else { (low, high) };
        let (low, high) = (low.max(0.0), high.min(d - 1.0));
        // A range without width would divide zero by zero.
        [low, if low == high { high + 0.001 } else { high }]
    }
}

impl Scaling {
    /// Reads theta and scaling.
    fn read(c: &Fields<'_>, head_dim: Option<u64>, max_position: u64) -> Option<(f64, Scaling)> {
        let theta_of = |f: &Fields<'_>, default| {
            let partial = f.number("partial_rotary_factor", 0.0..=1.0);
            let whole = f.only(partial, &1.0, "rotating a part of each head is not supported");
            f.number("rope_theta", 1.01..=1e18).or(default).filter(|_| whole)
        };
        let theta = theta_of(c, 10_000.0);
        let older = c.get("rope_scaling").is_some();
        let block = c.object(if older { "rope_scaling" } else { "rope_parameters" }).optional()?;
        let Some(block) = &block else {
            return Some((theta?, Scaling::Default));
        };
        let known =
            block.refuse_others(KEYS, "is not known of rotary embeddings, and may change them");
        let theta = theta_of(block, theta.unwrap_or_default()).filter(|_| theta.is_some());

        let types = ["default", "linear", "dynamic", "yarn", "llama3", "longrope"];
        let types = types.map(|t| (t, t));
        let key = if block.get("rope_type").is_some() { "rope_type" } else { "type" };
        let kind = block.choice(key, &types).or("default")?;

        let factor = |f: &Fields<'_>| f.number("factor", 1e-6..=MAX_FACTOR).required();
        let scaling = match kind {
            "linear" => factor(block).map(|factor| Scaling::Linear { factor }),
            "dynamic" if head_dim.is_some_and(|d| d < 4) => {
                c.refuse("head_dim", "is too small for dynamic scaling, which takes at least 4");
                None
            }
            "dynamic" => factor(block).map(|factor| Scaling::Dynamic { factor, max_position }),
            "yarn" => yarn(block, original(c, block, max_position), max_position),
            "llama3" => llama3(block, original(c, block, max_position)),
            "longrope" => longrope(block, original(c, block, max_position), head_dim, max_position),
            _ => Some(Scaling::Default),
        };
        Some((theta?, scaling?)).filter(|_| known)
    }
}

/// `original_max_position_embeddings`; the one beside the block comes first.
fn original(c: &Fields<'_>, block: &Fields<'_>, max_position: u64) -> Option<u64> {
    let read = |f: &Fields<'_>, default| {
        f.count("original_max_position_embeddings", 2..=MAX_POSITION).or(default)
    };
    let inner = read(block, max_position)?;
    read(c, inner)
}

fn yarn(block: &Fields<'_>, original: Option<u64>, max_position: u64) -> Option<Scaling> {
    let positive = |name| block.number(name, 1e-6..=MAX_FACTOR).optional();
    let factor = positive("factor");
    let attention_factor = positive("attention_factor");
    let mscale = block.number("mscale", 0.0..=MAX_FACTOR).optional();
    let mscale_all_dim = block.number("mscale_all_dim", 0.0..=MAX_FACTOR).optional();
    let beta_fast = block.number("beta_fast", 1e-6..=MAX_FACTOR).or(32.0);
    let beta_slow = block.number("beta_slow", 1e-6..=MAX_FACTOR).or(1.0);
    let truncate = block.flag("truncate").or(true);
    let original = original?;
    let factor = factor?.unwrap_or(max_position as f64 / original as f64);
    let scale = |m: f64| if factor <= 1.0 { 1.0 } else { 0.1 * m * factor.ln() + 1.0 };
    let inferred = match (mscale?, mscale_all_dim?) {
        (Some(m), Some(all)) if m != 0.0 && all != 0.0 => scale(m) / scale(all),
        _ => scale(1.0),
    };
    Some(Scaling::Yarn {
        factor,
        original,
        attention_factor: attention_factor?.unwrap_or(inferred),
        beta_fast: beta_fast?,
        beta_slow: beta_slow?,
        truncate: truncate?,
    })
}

fn llama3(block: &Fields<'_>, original: Option<u64>) -> Option<Scaling> {
    let read = |name| block.number(name, 1e-6..=MAX_FACTOR).required();
    let (factor, low, high) = (read("factor"), read("low_freq_factor"), read("high_freq_factor"));
    let (factor, low, high) = (factor?, low?, high?);
    if high <= low {
        block.refuse("high_freq_factor", format!("is {high}, not above low_freq_factor ({low})"));
        return None;
    }
    Some(Scaling::Llama3 { factor, low, high, original: original? })
}

fn longrope(
    block: &Fields<'_>,
    original: Option<u64>,
    head_dim: Option<u64>,
    max_position: u64,
) -> Option<Scaling> {
    let planes = head_dim.map(|d| d / 2);
    let short = block.numbers("short_factor", planes, 1e-6..=MAX_FACTOR).required();
    let long = block.numbers("long_factor", planes, 1e-6..=MAX_FACTOR).required();
    let factor = block.number("factor", 1e-6..=MAX_FACTOR).optional();
    let attention_factor = block.number("attention_factor", 0.0..=MAX_FACTOR).optional();
    let original = original?;
    let factor = factor?.unwrap_or(max_position as f64 / original as f64);
    let inferred = match factor > 1.0 {
        true => (1.0 + factor.ln() / (original as f64).ln()).sqrt(),
        false => 1.0,
    };
    let attention_factor = attention_factor?.unwrap_or(inferred);
    Some(Scaling::LongRope { short: short?, long: long?, original, attention_factor })
}

#[allow(clippy::cast_possible_truncation, reason = "rounding to f32 is what is asked for")]
fn single(x: f64) -> f32 {
    x as f32
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{config::Errors, json};

    fn read(config: &str) -> Result<Rope, Vec<String>> {
        let map = json::object(Path::new("c"), config.as_bytes()).unwrap();
        let errors = Errors::default();
        let rope = Rope::read(&Fields::new(Path::new("c"), &map, &errors), Some(8), Some(128));
        let errors = errors.into_inner();
        assert_eq!(rope.is_none(), !errors.is_empty(), "{errors:?}");
        rope.ok_or_else(|| errors.iter().map(ToString::to_string).collect())
    }

    /// Values of `ROPE_INIT_FUNCTIONS` in transformers 5.23, head size 8, 128 positions.
    #[test]
    fn frequencies_are_those_of_transformers() {
        const LONG: &str = r#"{"original_max_position_embeddings": 64, "rope_theta": 1e4,
            "rope_scaling": {"type": "longrope", "short_factor": [1.0, 1.1, 1.2, 1.3],
            "long_factor": [1.5, 2.0, 4.0, 8.0]}}"#;
        const DYNAMIC: &str = r#"{"rope_scaling": {"type": "dynamic", "factor": 4.0}}"#;
        #[rustfmt::skip]
        let cases = [
            (r#"{"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}}"#, 128,
             [1.0, 0.037_606_03, 0.0014142134, 5.3182957e-5], 1.0),
            (r#"{"rope_theta": 500000.0, "rope_scaling": null}"#, 128,
             [1.0, 0.037_606_03, 0.0014142134, 5.3182957e-5], 1.0),
            (r#"{"rope_theta": 10000, "rope_scaling": {"type": "linear", "factor": 2.5}}"#, 128,
             [0.4, 0.04, 0.004, 0.00040000002], 1.0),
            (DYNAMIC, 300, [1.0, 0.053931184, 0.0029085723, 0.00015686275], 1.0),
            (DYNAMIC, 100, [1.0, 0.1, 0.01, 0.001], 1.0),
            (r#"{"rope_parameters": {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 8.0,
                 "original_max_position_embeddings": 64}}"#, 128,
             [1.0, 0.056250002, 0.00125, 0.000125], 1.2079441541679836),
            (r#"{"rope_parameters": {"rope_type": "yarn", "rope_theta": 1000.0, "factor": 4.0,
                 "mscale": 1.5, "mscale_all_dim": 0.6, "beta_fast": 16.0, "beta_slow": 2.0,
                 "truncate": false}}"#, 128,
             [1.0, 0.082_559_2, 0.007_905_695, 0.0014058533], 1.1151856218201115),
            (r#"{"rope_parameters": {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0,
                 "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                 "original_max_position_embeddings": 64}}"#, 128,
             [1.0, 0.013042256, 0.00125, 0.000125], 1.0),
            (LONG, 64, [1.0, 0.090_909_09, 0.008_333_333, 0.00076923077], 1.0801234497346435),
            (LONG, 65, [0.666_666_7, 0.05, 0.0025, 0.000125], 1.0801234497346435),
        ];
        for (config, max_seq_len, inv_freq, attention_factor) in cases {
            let got = read(config).unwrap().frequencies(max_seq_len);
            assert!((got.attention_factor - attention_factor).abs() < 1e-12, "{config}");
            for (a, b) in got.inv_freq.iter().zip(inv_freq) {
                assert!((a - b).abs() <= 2.0 * f32::EPSILON * b, "{config}: {got:?}");
            }
        }
    }

    #[test]
    fn what_is_not_supported_is_named() {
        let of = |config: &str| read(config).unwrap_err().join("\n");
        assert_eq!(
            of(r#"{"rope_scaling": {"rope_type": "su", "factor": 2}}"#),
            "c: field `rope_scaling.rope_type` is \"su\", expected one of default, linear, \
             dynamic, yarn, llama3, longrope"
        );
        assert!(
            of(r#"{"rope_scaling": {"type": "linear"}}"#).contains("`rope_scaling.factor` is m")
        );
        let bad = of(r#"{"rope_theta": 0, "rope_scaling": {"rope_type": "llama3", "factor": "8",
            "low_freq_factor": 4, "high_freq_factor": -1}}"#);
        assert_eq!(bad.lines().count(), 3, "{bad}");
        let bad = of(r#"{"rope_scaling": {"rope_type": "longrope", "short_factor": [1, 2],
            "long_factor": [1, 2, 3, 0], "original_max_position_embeddings": 0}}"#);
        assert_eq!(bad.lines().count(), 3, "{bad}");
        assert!(of(r#"{"partial_rotary_factor": 0.5}"#).contains("is 0.5: rotating a part"));
        assert!(of(r#"{"rope_scaling": "linear"}"#).contains("expected an object"));
        let nested = of(r#"{"rope_parameters": {"full_attention": {"rope_theta": 1e6},
            "sliding_attention": {"rope_theta": 1e4}, "unset": null}}"#);
        assert_eq!(nested.lines().count(), 2, "{nested}");
        assert!(nested.contains("`rope_parameters.full_attention` is not known"), "{nested}");
    }
}
