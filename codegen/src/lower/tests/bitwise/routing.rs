//! Mixtures of experts: what a token becomes does not depend on where the others go.

use ir::{Bounds, DType, Dim, Env, KernelSpec, Layout, Symbols, Tensor};

use super::{
    Case, Draw, MOST, Runner, Subject, Units,
    families::{ACTIVATIONS, none, rows, weight},
    rounds,
    subject::{Along, take},
};

/// Rows sorted by group, each times its group's weight.
pub(super) fn grouped(op: &'static str, draw: &mut Draw) -> Subject {
    let (t, n, groups) = (rows(draw), draw.within(1..=90), draw.within(1..=6));
    let k = draw.pick(&[1, 37, 129, 601, 1201]);
    let gated = op == "grouped_gated_linear";
    let panels = n.div_ceil(16) * (1 + usize::from(gated));
    let mut of: Vec<usize> = (0..t).map(|_| draw.within(0..=groups - 1)).collect();
    of.sort_unstable();
    let float = draw.float();
    let args = [
        draw.noise(DType::F32, &[t, k]),
        weight(draw, float, &[groups, panels, k, 16]),
        Tensor::from_i64s(DType::I32, &[groups + 1], vec![0; groups + 1]),
        draw.noise(DType::F32, &[groups, n]),
    ];
    let bias = !gated && draw.coin();
    let args = args.into_iter().take(3 + usize::from(bias)).map(Some).collect();
    let attrs = none().with("n", n as i64).with("act", draw.pick(&ACTIVATIONS));
    Subject {
        case: Case { op, attrs, args },
        body: None,
        units: Units::Groups(groups, of),
        operands: vec![Along::Tokens(0), Along::Shared, Along::Offsets],
        results: vec![Along::Tokens(0)],
    }
}

/// Tokens to experts and back. A slot is a place among all tokens: `moe_permute` has no rows, but
/// what the three together make of a token must not depend on it, which is a test below.
pub(super) fn moved(op: &'static str, draw: &mut Draw) -> Subject {
    let (t, k, experts) = (rows(draw), draw.within(1..=4), draw.size(1..=9));
    if op == "moe_permute" {
        let picked = draw.ints(DType::I32, &[t, k], -1..experts + 1);
        let case = Case::new(op, none().with("experts", experts), &[&picked]);
        return Subject::whole(case, "a slot is a place among all tokens");
    }
    let (width, dtype) = (draw.within(1..=150), draw.float());
    let y = draw.noise(dtype, &[40, width]);
    let slots = draw.ints(DType::I32, &[t, k], -1..42);
    let weights = draw.noise(dtype, &[t, k]);
    let case = Case::new(op, none(), &[&y, &slots, &weights]);
    Subject::rows(case, &[None, Some(0), Some(0)], &[Some(0)])
}

/// The specification with these sizes symbolic: (operand, axis, size), results behind operands.
fn symbolic(case: &Case, sizes: &[(usize, usize, &str)]) -> KernelSpec {
    let mut spec = case.spec();
    let operands = spec.operands.len();
    for (i, axis, size) in sizes {
        let layout = match i.checked_sub(operands) {
            None => spec.operands[*i].as_mut().unwrap(),
            Some(result) => &mut spec.results[result],
        };
        layout.ty.shape[*axis] = size.parse::<Dim>().unwrap();
        *layout = Layout::contiguous(&layout.ty);
    }
    let mut symbols = Symbols::default();
    symbols.insert("T".into(), Bounds { lo: 0, hi: 500 });
    spec.symbols = std::sync::Arc::new(symbols);
    spec
}

/// Sorted, multiplied and gathered again, alone and among others.
#[test]
fn fuzz_a_token_of_a_mixture_does_not_depend_on_where_the_others_go() {
    rounds(2, |draw| {
        let (t, each) = (draw.within(40..=MOST), draw.within(1..=3));
        let (experts, k, n) = (draw.within(2..=7), draw.pick(&[37, 601]), draw.within(1..=60));
        let x = draw.noise(DType::F32, &[t, k]);
        let picked = draw.ints(DType::I32, &[t, each], 0..experts as i64);
        let shares = draw.noise(DType::F32, &[t, each]);
        let w = weight(draw, DType::Bf16, &[experts, n.div_ceil(16), k, 16]);
        let attrs = none().with("experts", experts as i64);
        let permute = |picked: &Tensor| Case::new("moe_permute", attrs.clone(), &[picked]);
        let product = |rows: &Tensor, offsets: &Tensor| {
            let attrs = none().with("n", n as i64).with("act", "silu");
            Case::new("grouped_linear", attrs, &[rows, &w, offsets])
        };
        let combine = |y: &Tensor, slots: &Tensor, shares: &Tensor| {
            Case::new("moe_combine", none(), &[y, slots, shares])
        };
        let all = format!("{each}*T");
        let [tokens, slots, offsets] =
            <[Tensor; 3]>::try_from(permute(&picked).expected().1).unwrap();
        let sorted = take(&x, 0, &vec![0; tokens.len()]);
        let y = Tensor::from_f64s(DType::F32, &[tokens.len(), n], vec![0.0; tokens.len() * n]);
        let specs = vec![
            symbolic(&permute(&picked), &[(0, 0, "T"), (1, 0, &all), (2, 0, "T")]),
            symbolic(&product(&sorted, &offsets), &[(0, 0, &all), (3, 0, &all)]),
            symbolic(
                &combine(&y, &slots, &shares),
                &[(0, 0, &all), (1, 0, "T"), (2, 0, "T"), (3, 0, "T")],
            ),
        ];
        let runner = Runner::new(specs);
        let mut mixture = |of: &[usize]| {
            let env = Env::from([("T".into(), of.len() as i64)]);
            let [x, picked, shares] = [&x, &picked, &shares].map(|t| take(t, 0, of));
            let mut run = |i: usize, case: Case| {
                let threads = draw.within(1..=3);
                runner.run_shared(i, &case.args, &env, draw.shares(threads))
            };
            let [tokens, slots, offsets] =
                <[Tensor; 3]>::try_from(run(0, permute(&picked))).unwrap();
            let rows: Vec<usize> =
                tokens.to_i64s().into_iter().map(|t| usize::try_from(t).unwrap()).collect();
            let y = run(1, product(&take(&x, 0, &rows), &offsets)).remove(0);
            run(2, combine(&y, &slots, &shares)).remove(0)
        };
        let all: Vec<usize> = (0..t).collect();
        let whole = mixture(&all);
        for of in [&all[7..8], &all[20..23], &all[..33], &all[33..]] {
            let wanted = take(&whole, 0, of);
            assert!(mixture(of).to_bytes() == wanted.to_bytes(), "tokens {of:?} of {t}");
        }
        let mut turned = all.clone();
        turned.reverse();
        assert!(mixture(&turned) == take(&whole, 0, &turned), "tokens in another order");
    });
}
