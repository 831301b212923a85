//! Products of e4m3 and what makes it.

use ir::{Attr, Attrs, DType, Dim, KernelSpec, Target};

use super::{clean, kernels, layout, programs, spec};

/// Products of e4m3, of the same model.
pub(in super::super) fn fp8() -> Vec<(&'static str, KernelSpec)> {
    let product = |n: i64, dtype: DType, k: i64, gated: bool| {
        let (blocks, panels) = ((k + 127) / 128, (n / if gated { 8 } else { 16 }).to_string());
        let row = ir::e4m3_row_bytes(&Dim::from(blocks)).to_string();
        let bytes = ir::E4M3_PANEL_BYTES.to_string();
        let x = layout(DType::U8, &["T", &row]);
        let w = layout(DType::U8, &[&panels, &blocks.to_string(), &bytes]);
        let y = layout(dtype, &["T", &n.to_string()]);
        let act = if gated { "silu" } else { "none" };
        let attrs = Attrs::none().with("n", n).with("act", act).with("gated", Attr::Bool(gated));
        let mut operands = vec![x, w];
        if !gated {
            operands.extend([layout(dtype, &[&n.to_string()]), y.clone()]);
        }
        spec("quantized_linear", attrs, &operands, &[y])
    };
    let bf16 = DType::Bf16;
    vec![
        ("fp8-bf16", product(4096, bf16, 4096, false)),
        ("fp8-odd", product(11008, bf16, 1408, false)),
        ("fp8-gated", product(14336, bf16, 4096, true)),
    ]
}

#[test]
fn products_of_e4m3_use_its_tensor_cores() {
    let Some(folder) = programs() else { return };
    let target = Target::sm_90a();
    for (name, spec) in fp8() {
        for (i, kernel) in kernels(&spec, &target).iter().enumerate() {
            let sass = clean(&folder, &format!("{name}-{i}"), kernel, &target);
            assert!(sass.contains("QGMMA.64x"), "{name}-{i}");
            assert!(sass.contains("UTMALDG") && sass.contains("UBLKCP"), "{name}-{i}");
        }
    }
    let format = Attrs::none().with("format", "e4m3").with("weight_bits", 8i64);
    for dtype in [DType::F32, DType::Bf16] {
        let rows = ir::e4m3_row_bytes(&Dim::from(32)).to_string();
        let (x, y) = (layout(dtype, &["T", "4096"]), layout(DType::U8, &["T", &rows]));
        let spec = spec("quantize_rows", format.clone(), &[x], &[y]);
        let sass = clean(&folder, &format!("e4m3-{dtype}"), &kernels(&spec, &target)[0], &target);
        assert!(sass.contains("F2FP.SATFINITE.E4M3"), "{dtype}");
    }
}
