//! When collectives begin and end.

use super::*;

const LAYERS: usize = 4;

fn attrs() -> Attrs {
    Attrs::none().with("axis", "data").with("ranks", 2i64)
}

fn f32s(shape: &[i64]) -> TensorType {
    TensorType::new(DType::F32, shape.iter().copied())
}

/// Layers of matrices that two ranks hold in parts, and sums of what they make.
fn planned() -> Plan {
    let mut m = Module::new("m");
    m.symbol("data_rank", 0, 1);
    let mut b = m.builder("main");
    let mut x = b.param("x", f32s(&[8, 8])).unwrap();
    let keep = b.param("keep", f32s(&[])).unwrap();
    let mut states = Vec::new();
    for layer in 0..LAYERS {
        let [weight, sum] = ["w", "grad"].map(|kind| format!("{kind}.{layer}"));
        let [shard, held] = [&weight, &sum].map(|name| b.param(name, f32s(&[32])).unwrap());
        let whole = attrs().with("shape", vec![Dim::from(8), Dim::from(8)]);
        b.at(&format!("layer {layer}"));
        // Canonicalising writes absent operands out.
        let w = b.op("all_gather", whole, &[Some(shard), None]).unwrap()[0];
        x = b.matmul(x, w).unwrap();
        x = b.tanh(x).unwrap();
        let part = b.op1("reduce_scatter", attrs(), &[x]).unwrap();
        let new = b.op1("accumulate", Attrs::none(), &[held, part, keep]).unwrap();
        b.output(&format!("{sum}.out"), new);
        let state = |name: &str, output: Option<String>| State {
            param: name.into(),
            output: output.map(|name| name.as_str().into()),
            part_of: None,
            shard_of: None,
        };
        states.push(state(&weight, None));
        states.push(state(&sum, Some(format!("{sum}.out"))));
    }
    let main = b.finish();
    m.add(main);
    plan_memory(&m, "main", &states, &AllKernels::default()).unwrap()
}

#[test]
fn weights_come_a_layer_ahead_and_sums_end_a_layer_behind() {
    let program = planned().program;
    let ops: Vec<&str> = program.launches.iter().map(|l| l.label.as_str()).collect();
    let at = |label: &str| {
        let found = ops.iter().position(|op| *op == label);
        u32::try_from(found.unwrap_or_else(|| panic!("{label}: {ops:?}"))).unwrap()
    };
    for layer in 0..LAYERS {
        let of_layer = |op: &str| {
            let label = format!("layer {layer} {op}");
            program.collectives.iter().find(|c| c.label == label).unwrap()
        };
        let (product, tanh) =
            (at(&format!("layer {layer} matmul")), at(&format!("layer {layer} tanh")));
        let gather = of_layer("all_gather");
        assert_eq!(gather.end, product, "needed by its layer");
        let before = layer.checked_sub(1).map_or(0, |l| at(&format!("layer {l} matmul")));
        assert_eq!(gather.start, before, "begins with the layer before");
        let reduce = of_layer("reduce_scatter");
        assert_eq!(reduce.start, tanh + 1);
        let added = at(&format!("layer {layer} accumulate"));
        assert_eq!(reduce.end, added);
        let behind = at(&format!("layer {} tanh", (layer + 1).min(LAYERS - 1)));
        assert!(added > behind, "added up when the next sum is there: {ops:?}");
    }
    assert!(program.collectives.is_sorted_by_key(|c| c.start));
}

/// What is in flight shares no memory with anything that is alive meanwhile.
#[test]
fn nothing_uses_the_memory_of_a_collective_under_way() {
    let program = planned().program;
    let bytes = |elements: u64| elements * 4;
    for collective in &program.collectives {
        let (read, written) = match collective.op {
            ir::CollectiveOp::AllGather => (32, 64),
            _ => (64, 32),
        };
        for (place, size) in [(&collective.input, read), (&collective.output, written)] {
            if place.region != Region::Arena {
                continue;
            }
            let start = u64::try_from(place.offset.as_const().unwrap()).unwrap();
            let own = start..start + bytes(size);
            let is_own = |i: &&ir::Interval| (i.offset..i.offset + i.bytes) == own;
            let (mine, others): (Vec<_>, Vec<_>) = program.intervals.iter().partition(is_own);
            let covers =
                |i: &&ir::Interval| i.first <= collective.start && i.last >= collective.end;
            assert!(mine.iter().any(covers), "{}: {mine:?}", collective.label);
            for other in others {
                let is_apart = other.offset + other.bytes <= own.start || other.offset >= own.end;
                let is_past = other.last < collective.start || other.first > collective.end;
                assert!(is_apart || is_past, "{}: {other:?}", collective.label);
            }
        }
    }
}
