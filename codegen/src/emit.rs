//! Typed emitter: prints one MLIR module per kernel.
//!
//! Values carry their type and get fresh SSA names; constants are shared and stand at the top of
//! the function; loops and conditionals take closures. Every method takes `&self`, so calls nest:
//! `e.fma(e.load(ty, p), x, acc)`. A type error in a generator is a bug of ours and panics here
//! with both types, before MLIR sees the text.
//!
//! The arithmetic is strict: no fast-math flags, no contraction, so a kernel's rounding is exactly
//! what its generator wrote. What is not here: knowledge of any operator (see `kernels`), and
//! polynomials (see `math`).

mod arith;
mod control;
mod convert;
mod device;
mod entry;
mod memory;
mod ty;
mod vector;

pub use arith::Cmp;
pub use device::{Barrier, Param};
pub use ty::{Elem, Ty};

use rustc_hash::FxHashMap;
use std::cell::RefCell;
use std::fmt::{self, Write as _};

/// An SSA value with its type. Cheap to copy; valid in the emitter that made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Val {
    id: u32,
    result: Option<u32>,
    ty: Ty,
}

impl Val {
    /// The type.
    #[must_use]
    pub const fn ty(self) -> Ty {
        self.ty
    }

    /// The element type; panics on a pointer.
    #[must_use]
    pub const fn elem(self) -> Elem {
        self.ty.elem()
    }

    /// Number of lanes; 1 for scalars.
    #[must_use]
    pub const fn lanes(self) -> u32 {
        self.ty.lanes()
    }
}

impl fmt::Display for Val {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.result {
            Some(result) => write!(f, "%{}#{result}", self.id),
            None => write!(f, "%{}", self.id),
        }
    }
}

/// Prints one kernel: `void symbol(ptr args, ptr dims, ptr scratch, i64 tile_begin, i64 tile_end)`.
/// Of no tiles it does nothing.
pub struct Emitter {
    symbol: String,
    params: [Val; 5],
    state: RefCell<State>,
    /// Of a kernel for a GPU.
    device: Option<device::Device>,
}

struct State {
    next_id: u32,
    depth: usize,
    body: String,
    constants: String,
    constant_ids: FxHashMap<(Ty, u64), u32>,
}

impl Emitter {
    /// Starts the kernel `symbol`.
    ///
    /// # Panics
    /// If the symbol is not an identifier (`[A-Za-z_][A-Za-z0-9_]*`).
    #[must_use]
    pub fn new(symbol: &str) -> Self {
        let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let starts_well = symbol.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        assert!(starts_well && symbol.chars().all(is_word), "bad kernel symbol `{symbol}`");
        let param = |id, ty| Val { id, result: None, ty };
        let int = Ty::Scalar(Elem::I64);
        Self {
            symbol: symbol.to_owned(),
            params: [
                param(0, Ty::Ptr),
                param(1, Ty::Ptr),
                param(2, Ty::Ptr),
                param(3, int),
                param(4, int),
            ],
            state: RefCell::new(State {
                next_id: 5,
                depth: 2,
                body: String::new(),
                constants: String::new(),
                constant_ids: FxHashMap::default(),
            }),
            device: None,
        }
    }

    /// Data pointer number `index` of the kernel's arguments.
    #[must_use]
    pub fn arg(&self, index: u32) -> Val {
        if self.device.is_some() {
            return self.param(Param::Pointer(index));
        }
        let slot = self.at(self.params[0], Elem::I64, self.i64(index.into()));
        self.load(Ty::Ptr, slot)
    }

    /// Run-time size number `index`, an i64.
    #[must_use]
    pub fn dim(&self, index: u32) -> Val {
        if self.device.is_some() {
            return self.param(Param::Size(index));
        }
        let slot = self.at(self.params[1], Elem::I64, self.i64(index.into()));
        self.load(Ty::Scalar(Elem::I64), slot)
    }

    /// The calling thread's scratch, 64-byte aligned.
    #[must_use]
    pub const fn scratch(&self) -> Val {
        self.params[2]
    }

    /// First tile of this call.
    #[must_use]
    pub const fn tile_begin(&self) -> Val {
        self.params[3]
    }

    /// One past the last tile of this call.
    #[must_use]
    pub const fn tile_end(&self) -> Val {
        self.params[4]
    }

    /// The finished module's text.
    #[must_use]
    pub fn finish(self) -> String {
        if self.device.is_some() {
            return self.finish_device();
        }
        let state = self.state.into_inner();
        let [args, dims, scratch, begin, end] = self.params;
        format!(
            "module {{\n  llvm.func @{symbol}({args}: !llvm.ptr {{llvm.noalias}}, \
             {dims}: !llvm.ptr {{llvm.noalias}}, {scratch}: !llvm.ptr {{llvm.noalias}}, \
             {begin}: i64, {end}: i64) attributes {{passthrough = [\"no-builtins\", \
             \"nounwind\"]}} {{\n{constants}{body}    llvm.return\n  }}\n}}\n",
            symbol = self.symbol,
            constants = state.constants,
            body = state.body,
        )
    }

    /// A constant of `ty` (splat for vectors) from a float; rounded to f32 first unless `ty` is
    /// f64.
    #[must_use]
    pub fn float(&self, ty: Ty, value: f64) -> Val {
        assert!(ty.elem().is_float(), "float constant of type {ty}");
        match ty.elem() {
            Elem::F64 => self.constant(ty, value.to_bits(), &float_text(value, 64)),
            #[allow(clippy::cast_possible_truncation, reason = "rounding is what is asked for")]
            _ => {
                let rounded = f64::from(value as f32);
                self.constant(ty, rounded.to_bits(), &float_text(rounded, 32))
            }
        }
    }

    /// A constant of `ty` (splat for vectors) from an integer.
    #[must_use]
    pub fn int(&self, ty: Ty, value: i64) -> Val {
        assert!(!ty.elem().is_float(), "integer constant of type {ty}");
        match ty.elem() {
            Elem::Bool => self.constant(ty, u64::from(value != 0), &(value != 0).to_string()),
            _ => self.constant(ty, value.cast_unsigned(), &value.to_string()),
        }
    }

    /// The scalar f32 constant.
    #[must_use]
    pub fn f32(&self, value: f32) -> Val {
        self.float(Ty::Scalar(Elem::F32), value.into())
    }

    /// The scalar i64 constant.
    #[must_use]
    pub fn i64(&self, value: i64) -> Val {
        self.int(Ty::Scalar(Elem::I64), value)
    }

    /// A float constant of the type of `model`.
    #[must_use]
    pub fn like(&self, model: Val, value: f64) -> Val {
        self.float(model.ty, value)
    }

    fn constant(&self, ty: Ty, bits: u64, text: &str) -> Val {
        let mut state = self.state.borrow_mut();
        if let Some(&id) = state.constant_ids.get(&(ty, bits)) {
            return Val { id, result: None, ty };
        }
        let id = state.fresh();
        state.constant_ids.insert((ty, bits), id);
        let text = match ty {
            Ty::Vector(..) => format!("    %{id} = arith.constant dense<{text}> : {ty}"),
            _ if ty.elem() == Elem::Bool => format!("    %{id} = arith.constant {text}"),
            _ => format!("    %{id} = arith.constant {text} : {ty}"),
        };
        state.constants.push_str(&text);
        state.constants.push('\n');
        Val { id, result: None, ty }
    }

    /// Appends `%fresh = text` and returns the value.
    fn op(&self, ty: Ty, text: fmt::Arguments<'_>) -> Val {
        let id = self.state.borrow_mut().fresh();
        self.line(format_args!("%{id} = {text}"));
        Val { id, result: None, ty }
    }

    /// Appends one line at the current depth.
    fn line(&self, text: fmt::Arguments<'_>) {
        let mut state = self.state.borrow_mut();
        let indent = 2 * state.depth;
        // Writing to a String cannot fail.
        let _ = writeln!(state.body, "{:indent$}{text}", "");
    }

    /// Runs `body` one level deeper.
    fn nested<R>(&self, body: impl FnOnce() -> R) -> R {
        self.state.borrow_mut().depth += 1;
        let result = body();
        self.state.borrow_mut().depth -= 1;
        result
    }

    /// A fresh name without an operation, for block arguments.
    fn fresh(&self, ty: Ty) -> Val {
        Val { id: self.state.borrow_mut().fresh(), result: None, ty }
    }
}

impl State {
    const fn fresh(&mut self) -> u32 {
        let id = self.next_id;
        self.next_id += 1;
        id
    }
}

/// Exact text of a float constant: decimal where finite, else its bits.
fn float_text(value: f64, bits: u32) -> String {
    if !value.is_finite() {
        return match bits {
            64 => format!("0x{:016X}", value.to_bits()),
            #[allow(clippy::cast_possible_truncation, reason = "the value came from an f32")]
            _ => format!("0x{:08X}", (value as f32).to_bits()),
        };
    }
    let text = format!("{value:e}");
    match text.split_once('e') {
        Some((digits, exponent)) if !digits.contains('.') => format!("{digits}.0e{exponent}"),
        _ => text,
    }
}

/// Comma-separated list.
fn join<T: fmt::Display>(items: impl IntoIterator<Item = T>) -> String {
    let mut text = String::new();
    for (index, item) in items.into_iter().enumerate() {
        let separator = if index == 0 { "" } else { ", " };
        let _ = write!(text, "{separator}{item}");
    }
    text
}

#[cfg(test)]
mod tests;
