//! Products by a library: what is chosen, what is refused, what is kept.

use std::sync::Arc;

use ir::DType;

use super::standin::{Blank, device};
use crate::{
    Address, CudaError, Device, Memory, Multiplier, Stream,
    cublaslt::{Matmul, Places},
    standin::{Products, StandIn},
};

fn multiplying(refused: Option<u64>) -> (Device, Arc<StandIn<Blank>>) {
    let (device, driver) = device(&[]);
    let products = Products::new(driver.clone());
    let products = match refused {
        Some(rows) => products.refusing(rows),
        None => products,
    };
    (device.multiplying_by(Arc::new(products)), driver)
}

fn matmul(m: u64) -> Matmul {
    Matmul {
        m,
        n: 8,
        k: 16,
        factors: DType::Bf16,
        results: DType::F32,
        transposed: true,
        x_stride: 16,
        w_stride: 16,
        residual_stride: Some(8),
        y_stride: 8,
        has_bias: true,
        workspace_bytes: 8192,
    }
}

fn places(memory: &Memory) -> Places<Address> {
    Places {
        x: memory.at(0),
        w: memory.at(1024),
        bias: Some(memory.at(2048)),
        residual: Some(memory.at(2560)),
        y: memory.at(4096),
        workspace: memory.at(8192),
    }
}

#[test]
fn an_algorithm_is_chosen_once_for_a_size_and_kept_until_the_end() {
    let (device, driver) = multiplying(None);
    let stream = Stream::new(&device).unwrap();
    let memory = device.allocate(16384).unwrap();
    let multiplier = Multiplier::new(&device).unwrap();
    for m in [1, 4, 1] {
        stream.multiply(&multiplier, &matmul(m), &places(&memory)).unwrap();
    }
    assert_eq!(multiplier.algorithms(), 2);
    // Beginnings of another alignment may need another one.
    let moved = Places { x: memory.at(32), ..places(&memory) };
    stream.multiply(&multiplier, &matmul(1), &moved).unwrap();
    assert_eq!(multiplier.algorithms(), 3);
    let graph = stream.capture(|stream| stream.multiply(&multiplier, &matmul(4), &places(&memory)));
    // What works, and what is recorded, keeps it.
    drop((multiplier, memory, moved));
    stream.synchronize().unwrap();
    stream.launch_graph(&graph.unwrap()).unwrap();
    stream.synchronize().unwrap();
    assert_eq!(driver.counts().products, 5);
    drop(stream);
    assert!(driver.alive().is_empty(), "{:?}", driver.alive());
}

#[test]
fn what_cannot_be_multiplied_says_why() {
    let (device, _) = multiplying(Some(3));
    let stream = Stream::new(&device).unwrap();
    let memory = device.allocate(16384).unwrap();
    let by = Multiplier::new(&device).unwrap();
    let why = stream.multiply(&by, &matmul(3), &places(&memory)).unwrap_err();
    assert!(matches!(why, CudaError::NoAlgorithm { .. }), "{why:?}");
    let text = why.to_string();
    assert!(text.contains("3 x 8 x 16 of bf16 in f32 with a bias added to"), "{text}");
    let short = Places { workspace: memory.at(16000), ..places(&memory) };
    let why = stream.multiply(&by, &matmul(1), &short).unwrap_err();
    assert!(matches!(why, CudaError::Range { .. }), "{why:?}");
    let other = Places { bias: None, ..places(&memory) };
    let why = stream.multiply(&by, &matmul(1), &other).unwrap_err();
    assert!(matches!(why, CudaError::Invalid { .. }), "{why:?}");
    let wrong = Matmul { factors: DType::F32, ..matmul(1) };
    let why = stream.multiply(&by, &wrong, &places(&memory)).unwrap_err().to_string();
    assert!(why.contains("CUBLAS_STATUS_INVALID_VALUE"), "{why}");
}

#[test]
fn a_machine_without_the_library_says_what_to_install() {
    let (device, _) = device(&[]);
    // A machine that has it is not asked.
    let Err(why) = Multiplier::new(&device) else { return };
    let text = why.to_string();
    assert!(matches!(why, CudaError::NoCublasLt { .. }), "{why:?}");
    assert!(text.contains("--gpu-library cublaslt") && text.contains("BROLLY_CUBLASLT"), "{text}");
}
