//! What is computed again to save memory, which changes no bit.

use driver::{Keep, Silent, compile};
use exec::HOST_OVERHEAD_BYTES;

use super::*;

/// Losses, all states, and bytes of activations of three steps.
fn steps(case: &str, keep: Option<Keep>, memory: Option<u64>) -> (Vec<u64>, Vec<Vec<u8>>, u64) {
    let mut options = options_of(adamw(0.1));
    let training = options.training.as_mut().unwrap();
    (training.keep, training.memory) = (keep, memory);
    let mut trainer =
        Trainer::new(load_with(&format!("memory-{case}"), case, &options, 2), rule(), 0);
    let documents = Documents::read();
    let losses = (1..=3).map(|n| trainer.advance(&batches(&documents, n)).unwrap().loss.to_bits());
    let losses = losses.collect();
    let step = trainer.step();
    let states =
        step.states().map(|port| step.state(&port.name).unwrap().unwrap().to_vec()).collect();
    let planned = step.planned().unwrap();
    assert!(step.resident_bytes() <= planned.total());
    (losses, states, planned.arena_bytes)
}

#[test]
fn what_is_kept_changes_memory_and_no_bit() {
    for case in ["llama-gqa3", "gpt2-gelu-new"] {
        let all = steps(case, Some(Keep::All), None);
        let costly = steps(case, Some(Keep::Costly), None);
        let input = steps(case, Some(Keep::Input), None);
        for other in [&costly, &input] {
            assert_eq!(other.0, all.0, "{case}");
            assert!(other.1 == all.1, "{case}: states differ");
        }
        let bytes = [all.2, costly.2, input.2];
        assert!(bytes.is_sorted_by(|a, b| a > b), "{case}: {bytes:?}");

        // With a byte less than all of it takes, something is computed again.
        let mut options = options_of(adamw(0.1));
        options.training.as_mut().unwrap().keep = Some(Keep::All);
        let step = load_with(&format!("memory-{case}"), case, &options, 2);
        let planned = step.planned().unwrap();
        let all_of_it = planned.state_bytes + planned.arena_bytes + HOST_OVERHEAD_BYTES;
        let chosen = |memory| steps(case, None, Some(memory)).2;
        assert_eq!(chosen(all_of_it + planned.weight_bytes), all.2, "{case}");
        assert_eq!(chosen(all_of_it - 1), costly.2, "{case}");
    }
}

#[test]
fn what_fits_in_no_form_is_told_with_the_largest_tensors() {
    let mut options = options_of(adamw(0.1));
    options.training.as_mut().unwrap().memory = Some(25 << 20);
    let out = scratch().join("memory-none.brolly");
    let error = compile(&data("families/llama-gqa3"), &out, &options, &Silent).unwrap_err();
    let said = error.to_string();
    for part in ["may have 26214400", "activations", "the largest tensors are", "data.micro_batch"]
    {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert!(!out.exists());
}
