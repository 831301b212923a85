//! The parts that transformer layers are made of: linear maps, norms, attention, MLP, and the
//! residual block that joins them.
//!
//! Each part says which weights it reads ([`Slot`]s) and writes itself down as operators. Matrices
//! keep their storage type and are cast to `f32` where they are used; activations are `f32`.

use std::collections::BTreeMap;

use ir::{Attrs, Builder, DType, Dim, OpError, Value};

/// A weight that a part reads: its name, relative to the part's owner, and its shape.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Slot {
    pub(crate) path: String,
    pub(crate) shape: Vec<u64>,
}

impl Slot {
    pub(crate) fn new(path: impl Into<String>, shape: impl Into<Vec<u64>>) -> Slot {
        Slot { path: path.into(), shape: shape.into() }
    }
}

/// A function that is being written down, and the weights that its parts may read.
pub(crate) struct Scope<'b, 'm> {
    pub(crate) b: &'b mut Builder<'m>,
    /// Stored weights by slot path.
    pub(crate) weights: BTreeMap<String, Value>,
    /// The storage type that matrices are rounded to, where it is not the stored one.
    pub(crate) dtype: Option<DType>,
}

impl Scope<'_, '_> {
    /// A weight in its storage type: the requested one for matrices, the checkpoint's for vectors.
    pub(crate) fn stored(&mut self, path: &str) -> Result<Value, OpError> {
        let value = self.weights.get(path).copied();
        let value = value.ok_or_else(|| OpError::new(format!("no slot for weight `{path}`")))?;
        match self.dtype {
            Some(dtype) if self.b.ty(value).rank() >= 2 => self.b.cast(value, dtype),
            _ => Ok(value),
        }
    }

    /// A weight as `f32`.
    pub(crate) fn weight(&mut self, path: &str) -> Result<Value, OpError> {
        let stored = self.stored(path)?;
        self.b.cast(stored, DType::F32)
    }

    /// Rows of an embedding table as `f32`.
    pub(crate) fn embed(&mut self, path: &str, rows: Value) -> Result<Value, OpError> {
        self.b.at(path);
        let table = self.stored(path)?;
        let rows = self.b.gather(table, rows, 0)?;
        self.b.cast(rows, DType::F32)
    }
}

/// How a linear map's matrix is stored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Layout {
    /// `[outputs, inputs]`, as torch's `Linear`.
    OutIn,
    /// `[inputs, outputs]`, as GPT-2's `Conv1D`.
    InOut,
}

/// `x · W + b`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Linear {
    pub(crate) path: &'static str,
    pub(crate) inputs: u64,
    pub(crate) outputs: u64,
    pub(crate) bias: bool,
    pub(crate) layout: Layout,
}

impl Linear {
    pub(crate) fn slots(&self, out: &mut Vec<Slot>) {
        let shape = match self.layout {
            Layout::OutIn => [self.outputs, self.inputs],
            Layout::InOut => [self.inputs, self.outputs],
        };
        out.push(Slot::new(format!("{}.weight", self.path), shape));
        if self.bias {
            out.push(Slot::new(format!("{}.bias", self.path), [self.outputs]));
        }
    }

    pub(crate) fn apply(&self, s: &mut Scope<'_, '_>, x: Value) -> Result<Value, OpError> {
        s.b.at(self.path);
        let w = s.weight(&format!("{}.weight", self.path))?;
        let w = match self.layout {
            Layout::OutIn => s.b.transpose(w, &[1, 0])?,
            Layout::InOut => w,
        };
        let y = s.b.matmul(x, w)?;
        if !self.bias {
            return Ok(y);
        }
        let bias = s.weight(&format!("{}.bias", self.path))?;
        s.b.add(y, bias)
    }
}

/// Which norm.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum NormKind {
    /// Root mean square, a weight.
    Rms,
    /// Mean and variance, a weight and a bias.
    Layer,
}

/// A norm over the last axis.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Norm {
    pub(crate) path: &'static str,
    pub(crate) kind: NormKind,
    pub(crate) width: u64,
    pub(crate) eps: f64,
}

impl Norm {
    pub(crate) fn slots(&self, out: &mut Vec<Slot>) {
        out.push(Slot::new(format!("{}.weight", self.path), [self.width]));
        if self.kind == NormKind::Layer {
            out.push(Slot::new(format!("{}.bias", self.path), [self.width]));
        }
    }

    pub(crate) fn apply(&self, s: &mut Scope<'_, '_>, x: Value) -> Result<Value, OpError> {
        s.b.at(self.path);
        let attrs = Attrs::none().with("eps", self.eps);
        let w = s.weight(&format!("{}.weight", self.path))?;
        match self.kind {
            NormKind::Rms => s.b.op1("rms_norm", attrs, &[x, w]),
            NormKind::Layer => {
                let bias = s.weight(&format!("{}.bias", self.path))?;
                s.b.op1("layer_norm", attrs, &[x, w, bias])
            }
        }
    }
}

/// The projections to queries, keys and values.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Qkv {
    /// One map each.
    Separate([Linear; 3]),
    /// One map whose outputs are queries, keys and values, one after another.
    Joined(Linear),
}

/// Attention of a sequence to itself.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct SelfAttention {
    pub(crate) path: &'static str,
    pub(crate) heads: u64,
    pub(crate) kv_heads: u64,
    pub(crate) head_dim: u64,
    pub(crate) qkv: Qkv,
    /// Norms of each head's queries and keys.
    pub(crate) qk_norm: Option<[Norm; 2]>,
    pub(crate) out: Linear,
    pub(crate) causal: bool,
    /// Number of keys that a query sees, its own included.
    pub(crate) window: Option<u64>,
    /// Factor of the scores.
    pub(crate) scale: f64,
}

/// Values that every layer takes besides its input.
#[derive(Clone, Copy)]
pub(crate) struct Context {
    /// Cosines and sines of the rotary embedding, `[T, D/2]`.
    pub(crate) rope: Option<[Value; 2]>,
    /// Where sequences begin and end, `[S+1]`.
    pub(crate) cu_seqlens: Value,
}

impl SelfAttention {
    fn slots(&self, out: &mut Vec<Slot>) {
        match &self.qkv {
            Qkv::Separate(maps) => maps.iter().for_each(|m| m.slots(out)),
            Qkv::Joined(map) => map.slots(out),
        }
        self.qk_norm.iter().flatten().for_each(|n| n.slots(out));
        self.out.slots(out);
    }

    fn apply(&self, s: &mut Scope<'_, '_>, x: Value, cx: Context) -> Result<Value, OpError> {
        let tokens = s.b.ty(x).shape[0].clone();
        let heads = [self.heads, self.kv_heads, self.kv_heads];
        let flat = match &self.qkv {
            Qkv::Separate([q, k, v]) => [q.apply(s, x)?, k.apply(s, x)?, v.apply(s, x)?],
            Qkv::Joined(map) => {
                let all = map.apply(s, x)?;
                let mut start = Dim::from(0i64);
                let mut part = |heads: u64| {
                    let end = start.clone() + size(heads * self.head_dim);
                    s.b.slice(all, 1, std::mem::replace(&mut start, end.clone()), end)
                };
                [part(heads[0])?, part(heads[1])?, part(heads[2])?]
            }
        };
        let mut split = |x: Value, heads: u64| {
            s.b.reshape(x, vec![tokens.clone(), size(heads), size(self.head_dim)])
        };
        let [mut q, mut k] = [split(flat[0], heads[0])?, split(flat[1], heads[1])?];
        let v = split(flat[2], heads[2])?;
        if let Some([q_norm, k_norm]) = &self.qk_norm {
            (q, k) = (q_norm.apply(s, q)?, k_norm.apply(s, k)?);
        }
        s.b.at(self.path);
        if let Some([cos, sin]) = cx.rope {
            q = s.b.op1("rope", Attrs::none(), &[q, cos, sin])?;
            k = s.b.op1("rope", Attrs::none(), &[k, cos, sin])?;
        }
        let attrs = Attrs::none()
            .with("scale", self.scale)
            .with("mask", if self.causal { "causal" } else { "full" })
            .with("window", self.window.map_or(0, signed));
        let y = s.b.op1("attention", attrs, &[q, k, v, cx.cu_seqlens])?;
        let y = s.b.reshape(y, vec![tokens, size(self.heads * self.head_dim)])?;
        self.out.apply(s, y)
    }
}

/// The position-wise half of a layer: `down(act(gate(x)) · up(x))`, or `down(act(up(x)))`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Mlp {
    pub(crate) path: &'static str,
    pub(crate) gate: Option<Linear>,
    pub(crate) up: Linear,
    pub(crate) down: Linear,
    /// Operator of the activation.
    pub(crate) act: &'static str,
}

impl Mlp {
    fn slots(&self, out: &mut Vec<Slot>) {
        self.gate.iter().chain([&self.up, &self.down]).for_each(|m| m.slots(out));
    }

    fn apply(&self, s: &mut Scope<'_, '_>, x: Value) -> Result<Value, OpError> {
        let y = match &self.gate {
            Some(gate) => {
                let g = gate.apply(s, x)?;
                let up = self.up.apply(s, x)?;
                s.b.at(self.path);
                let g = s.b.unary(self.act, g)?;
                s.b.mul(g, up)?
            }
            None => {
                let up = self.up.apply(s, x)?;
                s.b.at(self.path);
                s.b.unary(self.act, up)?
            }
        };
        self.down.apply(s, y)
    }
}

/// Where a layer's norms stand.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Residual {
    /// `x + f(norm(x))`.
    PreNorm,
    /// `norm(x + f(x))`.
    PostNorm,
}

/// One layer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Block {
    pub(crate) residual: Residual,
    pub(crate) attention_norm: Norm,
    pub(crate) attention: SelfAttention,
    pub(crate) mlp_norm: Norm,
    pub(crate) mlp: Mlp,
}

impl Block {
    /// The weights of the layer, in the order of its function's parameters.
    pub(crate) fn slots(&self) -> Vec<Slot> {
        let mut out = Vec::new();
        self.attention_norm.slots(&mut out);
        self.attention.slots(&mut out);
        self.mlp_norm.slots(&mut out);
        self.mlp.slots(&mut out);
        out
    }

    pub(crate) fn apply(
        &self,
        s: &mut Scope<'_, '_>,
        x: Value,
        cx: Context,
    ) -> Result<Value, OpError> {
        match self.residual {
            Residual::PreNorm => {
                let h = self.attention_norm.apply(s, x)?;
                let h = self.attention.apply(s, h, cx)?;
                let x = s.b.add(x, h)?;
                let h = self.mlp_norm.apply(s, x)?;
                let h = self.mlp.apply(s, h)?;
                s.b.add(x, h)
            }
            Residual::PostNorm => {
                let h = self.attention.apply(s, x, cx)?;
                let x = s.b.add(x, h)?;
                let x = self.attention_norm.apply(s, x)?;
                let h = self.mlp.apply(s, x)?;
                let x = s.b.add(x, h)?;
                self.mlp_norm.apply(s, x)
            }
        }
    }
}

/// A size that reading the config has bounded.
pub(crate) fn size(n: u64) -> Dim {
    Dim::from(signed(n))
}

pub(crate) fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}
