//! Random weights to start from.

use std::path::Path;

use ir::{DType, Tensor};
use serde::Deserialize;

use crate::{ParameterInfo, TrainError, TrainStep};

/// What a model's `config.json` says of initial weights.
#[derive(Deserialize)]
struct ModelConfig {
    model_type: Option<String>,
    initializer_range: Option<f64>,
    n_layer: Option<u32>,
}

/// Sets every parameter as transformers would: normal with the config's `initializer_range` (0.02
/// where it says nothing) for matrices, zero for biases, one for the weights of norms. GPT-2's
/// projections into the residual are smaller by `√(2·layers)`, Radford et al. 2019.
///
/// A parameter's numbers follow from the seed and its name alone.
///
/// # Errors
/// [`TrainError::File`] if the config cannot be read.
pub fn initialize(step: &mut TrainStep, folder: &Path, seed: u64) -> Result<(), TrainError> {
    let path = folder.join("config.json");
    let text = std::fs::read(&path).map_err(|e| TrainError::file(&path, e))?;
    let config: ModelConfig =
        serde_json::from_slice(&text).map_err(|e| TrainError::file(&path, e))?;
    let std = config.initializer_range.unwrap_or(0.02);
    let is_gpt2 = config.model_type.as_deref() == Some("gpt2");
    let own = step.own_parameters().iter().map(|number| step.parameters()[*number].clone());
    for parameter in own.collect::<Vec<_>>() {
        let is_residual = is_gpt2 && parameter.name.ends_with("c_proj.weight");
        let layers = f64::from(config.n_layer.unwrap_or(1));
        let std = if is_residual { std / (2.0 * layers).sqrt() } else { std };
        let bytes = values(&parameter, std, seed).to_bytes();
        step.set_state(&format!("param.{}", parameter.name), &bytes)?;
    }
    Ok(())
}

fn values(parameter: &ParameterInfo, std: f64, seed: u64) -> Tensor {
    let ParameterInfo { name, dtype, shape } = parameter;
    let len: usize = shape.iter().product();
    let values: Vec<f64> = if shape.len() >= 2 {
        let mut numbers = Numbers::new(seed, name);
        (0..len).map(|_| std * numbers.normal()).collect()
    } else {
        vec![if name.ends_with("bias") { 0.0 } else { 1.0 }; len]
    };
    let dtype = if dtype.is_float() { *dtype } else { DType::F32 };
    Tensor::from_f64s(dtype, shape, values)
}

/// The numbers of a counter, mixed as in SplitMix64 (Steele et al. 2014).
pub(crate) struct Numbers {
    key: u64,
    counter: u64,
    spare: Option<f64>,
}

impl Numbers {
    /// Those of a seed and a name.
    pub(crate) fn new(seed: u64, name: &str) -> Numbers {
        let digest = blake3::hash(name.as_bytes());
        let (head, _) = digest.as_bytes().split_first_chunk().unwrap_or((&[0; 8], &[]));
        Numbers { key: u64::from_le_bytes(*head) ^ mix(seed), counter: 0, spare: None }
    }

    /// Uniform in -1..1.
    pub(crate) fn uniform(&mut self) -> f64 {
        self.counter = self.counter.wrapping_add(1);
        let bits = splitmix64(self.key, self.counter.wrapping_sub(1));
        (bits >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }

    /// Normal, by the polar method of Marsaglia & Bray 1964.
    fn normal(&mut self) -> f64 {
        if let Some(spare) = self.spare.take() {
            return spare;
        }
        loop {
            let (x, y) = (self.uniform(), self.uniform());
            let square = x * x + y * y;
            if square > 0.0 && square < 1.0 {
                let scale = (-2.0 * square.ln() / square).sqrt();
                self.spare = Some(y * scale);
                return x * scale;
            }
        }
    }
}

/// Number `n`, from 0 on, of SplitMix64 from `seed` on: Steele et al. 2014.
pub(crate) fn splitmix64(seed: u64, n: u64) -> u64 {
    mix(seed.wrapping_add(n.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15)))
}

fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normal_numbers_are_normal_and_follow_from_seed_and_name() {
        let draw = |seed, name| {
            let mut drawn = Numbers::new(seed, name);
            (0..20_000).map(|_| drawn.normal()).collect::<Vec<f64>>()
        };
        let numbers = draw(1, "a");
        let moment = |k: i32| numbers.iter().map(|x| x.powi(k)).sum::<f64>() / 20_000.0;
        assert!(moment(1).abs() < 0.03 && (moment(2) - 1.0).abs() < 0.05);
        assert!(moment(3).abs() < 0.1 && (moment(4) - 3.0).abs() < 0.3);
        assert_eq!(numbers, draw(1, "a"));
        assert_ne!(numbers[..8], draw(1, "b")[..8]);
        assert_ne!(numbers[..8], draw(2, "a")[..8]);
    }

    #[test]
    fn vectors_are_zero_or_one() {
        let parameter = |name: &str, shape: &[usize]| ParameterInfo {
            name: name.into(),
            dtype: DType::F32,
            shape: shape.into(),
        };
        assert_eq!(values(&parameter("x.bias", &[2]), 0.02, 0).to_f32s(), [0.0, 0.0]);
        assert_eq!(values(&parameter("norm.weight", &[2]), 0.02, 0).to_f32s(), [1.0, 1.0]);
        let matrix = values(&parameter("w", &[50, 50]), 0.02, 0).to_f32s();
        assert!(matrix.iter().all(|x| x.abs() < 0.2) && matrix.iter().any(|x| x.abs() > 0.02));
    }
}
