//! The parser: what it refuses and how it says so, and that it never panics.

use brolly_ptx::Module;
use proptest::prelude::*;

use crate::common::{fixture, kernel};

fn errors(body: &str) -> String {
    Module::parse(&kernel("sm_80", body, 1)).unwrap_err().to_string()
}

#[test]
fn the_fixtures_parse() {
    for (name, entry) in [
        ("mma.sm_80.ptx", "gemm_bf16"),
        ("rmsnorm.sm_80.ptx", "rmsnorm_silu"),
        ("wgmma.sm_90a.ptx", "gemm_wgmma"),
    ] {
        assert_eq!(Module::parse(&fixture(name)).unwrap().kernels(), [entry]);
    }
}

#[test]
fn an_unknown_instruction_or_qualifier_is_named_with_its_line() {
    assert_eq!(errors("frobnicate.b32 %r0, %r1;"), "line 11: unknown instruction `frobnicate.b32`");
    assert_eq!(errors("add.fast.s32 %r0, %r1, 1;"), "line 11: `add` has no qualifier `.fast` here");
    assert_eq!(
        errors("tcgen05.alloc.b32 %r0;"),
        "line 11: unknown instruction `tcgen05.alloc.b32`"
    );
}

#[test]
fn all_errors_are_reported() {
    let text = errors("mov.b32 %r0, %q;\nbra NOWHERE;\nadd.s32 %r0, %r1;\n@%r1 exit;");
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(
        lines,
        [
            "line 11: `%q` is not declared",
            "line 12: label `NOWHERE` is not defined",
            "line 13: `add.s32` has 2 operands, needs 3 to 3",
            "line 14: `%r1` is no predicate",
        ]
    );
}

#[test]
fn scopes_hide_names_and_labels() {
    let body = "{ .reg .b32 t; L: mov.b32 t, 1; bra.uni M; M: }\n{ .reg .b64 t; L: mov.b64 t, 2; }\n\
        mov.b32 %r0, t;";
    assert!(errors(body).ends_with("`t` is not declared"));
}

#[test]
fn variables_of_the_module_have_places_and_values() {
    use brolly_ptx::{Arch, Gpu, Launch, Param};
    let text = ".version 8.0\n.target sm_80\n.address_size 64\n\
        .const .align 4 .b32 table[4] = {5, 6, 7, -8};\n\
        .global .align 8 .b8 bytes[8] = {1, 2, 3};\n\
        .visible .entry k(.param .u64 .ptr .global .align 16 out) {\n\
        .reg .b32 %r<4>; .reg .b64 %d<4>; .local .align 8 .b8 stack[16];\n\
        ld.param.b64 %d0, [out]; ld.const.b32 %r0, [table+12]; ld.global.b32 %r1, [bytes];\n\
        mov.b64 %d1, stack; cvta.local.u64 %d2, %d1; st.b32 [%d2+4], %r1;\n\
        ld.local.b32 %r2, [stack+4];\n\
        st.global.v2.b32 [%d0], {%r0, %r2}; ret; }";
    let module = Module::parse(text).unwrap();
    let mut gpu = Gpu::new(Arch::Sm80);
    let out = gpu.alloc(8);
    let launch = Launch { block: [1, 1, 1], params: vec![Param::U64(out)], ..Launch::default() };
    gpu.launch(&module, "k", &launch).unwrap();
    assert_eq!(gpu.read(out, 8), [0xf8, 0xff, 0xff, 0xff, 1, 2, 3, 0]);
}

/// Runs all kernels of a text for a while, on arguments that fit the fixtures.
fn launch(text: &str) {
    use brolly_ptx::{Arch, Elem, Gpu, Launch, Param, Swizzle, TensorMap};
    let Ok(module) = Module::parse(text) else { return };
    let mut gpu = Gpu::new(Arch::Sm90a);
    let data = gpu.upload(&[0; 1 << 20]);
    let map = TensorMap {
        base: data,
        elem: Elem::Bf16,
        dims: vec![256, 128],
        strides: vec![512],
        box_dims: vec![64, 128],
        swizzle: Swizzle::B128,
        ..TensorMap::default()
    };
    let map = Param::Bytes(gpu.tensor_map(&map).to_vec());
    for kernel in module.kernels() {
        let maps = kernel == "gemm_wgmma";
        let block = if kernel == "rmsnorm_silu" { 256 } else { 128 };
        let params = if maps {
            vec![map.clone(), map.clone(), Param::U64(data)]
        } else {
            vec![Param::U64(data); 3]
        };
        let launch = Launch {
            block: [block, 1, 1],
            dynamic_shared: 140_000,
            params,
            max_steps: 20_000,
            ..Launch::default()
        };
        let _ = gpu.launch(&module, kernel, &launch);
    }
}

proptest! {
    #[test]
    fn arbitrary_text_does_not_panic(text in "[ -~\n]{0,200}") {
        let _ = Module::parse(&text);
    }

    #[test]
    fn damaged_kernels_do_not_panic(from in 0usize..5000, length in 0usize..40, with in "[ -~]{0,8}") {
        let text = fixture("rmsnorm.sm_80.ptx");
        let from = from.min(text.len());
        let to = (from + length).min(text.len());
        let _ = Module::parse(&format!("{}{with}{}", &text[..from], &text[to..]));
    }

    #[test]
    fn shuffled_tokens_do_not_panic(order in prop::collection::vec(0usize..400, 0..200)) {
        let text = fixture("wgmma.sm_90a.ptx");
        let words: Vec<&str> = text.split_whitespace().collect();
        let pick = |index: &usize| words[index * words.len() / 400];
        let picked: Vec<&str> = order.iter().map(pick).collect();
        let _ = Module::parse(&picked.join(" "));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn damaged_kernels_do_not_panic_when_they_run(
        name in prop::sample::select(vec!["rmsnorm.sm_80.ptx", "mma.sm_80.ptx", "wgmma.sm_90a.ptx"]),
        from in 0.0f64..1.0,
        to in 0.0f64..1.0,
    ) {
        // One token is replaced by another of the same text.
        let text = fixture(name);
        let mut words: Vec<&str> = text.split_inclusive([' ', ',', '\t']).collect();
        let count = words.len() as f64;
        words[(from * count) as usize] = words[(to * count) as usize];
        launch(&words.concat());
    }
}
