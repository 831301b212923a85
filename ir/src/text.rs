//! The text format: prints modules and reads them back.
//!
//! ```text
//! module "tiny"
//! symbol T in 1..512
//! weight "w" : bf16[64, 32]
//! entry main
//!
//! fn main(%x: f32[T, 32]) {
//!   %0 = weight() {name = "w"} : bf16[64, 32]
//!   %1 = cast(%0) {to = f32} : f32[64, 32]
//!   %2 = transpose(%1) {perm = [1, 0]} : f32[32, 64]
//!   %3 = matmul(%x, %2) : f32[T, 64] @ "mlp.up"
//!   return y = %3
//! }
//! ```
//!
//! Operands are values or `_` for an absent one; attributes at their defaults are not printed; the
//! name behind `@` is the node's name in the source model. Types are inferred when text is read,
//! and the printed ones checked against them. Printing what was parsed gives the same text.

mod parse;
mod print;

pub use parse::{ParseError, parse_module};

#[cfg(test)]
mod tests {
    use super::parse_module;

    const TINY: &str = r#"module "tiny"
symbol T in 1..512
weight "w" : bf16[64, 32]
entry main

fn scale(%"0": f32[T, 64]) {
  %0 = constant() {value = dense<f32[] 0000003f>} : f32[]
  %1 = mul(%"0", %0) : f32[T, 64]
  return y = %1
}

fn main(%x: f32[T, 32]) {
  %0 = weight() {name = "w"} : bf16[64, 32]
  %1 = cast(%0) {to = f32} : f32[64, 32]
  %2 = transpose(%1) {perm = [1, 0]} : f32[32, 64]
  %3 = matmul(%x, %2) : f32[T, 64] @ "mlp \"up\""
  %4 = slice(%3) {axis = 0, range = <0, floor_div(T + 1, 2)>} : f32[floor_div(T + 1, 2), 64]
  %5 = call(%3) {callee = "scale"} : f32[T, 64]
  return half = %4, y = %5
}
"#;

    #[test]
    fn text_round_trips() {
        let module = parse_module(TINY).unwrap();
        assert_eq!(module.to_string(), TINY);
        crate::verify(&module).unwrap();
    }

    #[test]
    fn errors_carry_line_and_reason() {
        let cases = [
            ("f32[32, 64]", "f32[32, 63]", 15, "inference gives"),
            ("matmul(%x, %2)", "matmul(%x, %9)", 16, "no value `%9`"),
            ("perm = [1, 0]", "prm = [1, 0]", 15, "prm"),
            ("bf16[64, 32]\nentry", "bf61[64, 32]\nentry", 3, "bf61"),
            ("callee = \"scale\"", "callee = \"scael\"", 18, "no function `scael`"),
            ("cast(%0)", "csat(%0)", 14, "unknown operator `csat`"),
            ("dense<f32[] 0000003f>", "dense<f32[] 00003f>", 7, "bytes"),
            ("dense<f32[] 0000003f>", "dense<f32[99999999999, 9999999999] 00>", 7, "bytes"),
        ];
        for (from, to, line, why) in cases {
            let error = parse_module(&TINY.replacen(from, to, 1)).unwrap_err();
            assert_eq!(error.line, line, "{error}");
            assert!(error.to_string().contains(why), "{error}");
        }
    }

    #[test]
    fn no_prefix_or_mutation_of_text_panics() {
        for end in 0..TINY.len() {
            let _ = parse_module(&TINY[..end]);
        }
        for at in 0..TINY.len() {
            for c in ["", "(", "\"", "%", "-1", "9999999999999999999", "é"] {
                let _ = parse_module(&format!("{}{c}{}", &TINY[..at], &TINY[at + 1..]));
            }
        }
    }
}
