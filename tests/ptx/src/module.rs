//! A parsed module: kernels, their code, and the variables they use.

use std::collections::HashMap;

use crate::mods::{Mod, Mods};
use crate::ops::{Needs, Op};
use crate::ty::Ty;

/// PTX text, parsed and resolved.
#[derive(Debug)]
pub struct Module {
    pub(crate) kernels: HashMap<String, Kernel>,
    /// Variables of the module in global and constant memory.
    pub(crate) globals: Vec<Variable>,
    /// The device of `.target`.
    pub(crate) target: Needs,
}

impl Module {
    /// The names of the kernels, sorted.
    #[must_use]
    pub fn kernels(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.kernels.keys().map(String::as_str).collect();
        names.sort_unstable();
        names
    }

    /// Bytes of a kernel's parameters, in order; `None` if there is no kernel of that name.
    #[must_use]
    pub fn param_bytes(&self, kernel: &str) -> Option<Vec<usize>> {
        let params = self.kernels.get(kernel)?.params.iter();
        Some(params.map(|param| param.bytes as usize).collect())
    }
}

/// A variable in global or constant memory.
#[derive(Debug)]
pub(crate) struct Variable {
    pub(crate) align: u64,
    pub(crate) bytes: u64,
    /// Its first bytes; those after are zero.
    pub(crate) init: Vec<u8>,
}

/// An entry function.
#[derive(Debug, Default)]
pub(crate) struct Kernel {
    pub(crate) params: Vec<ParamDecl>,
    pub(crate) code: Vec<Inst>,
    pub(crate) regs: Vec<Reg>,
    /// Bytes of shared memory with a fixed size; the dynamic part begins there.
    pub(crate) shared_bytes: u64,
    pub(crate) local_bytes: u64,
    /// Where the dynamic part of shared memory begins.
    pub(crate) dynamic_offset: u64,
    pub(crate) max_threads: Option<[u32; 3]>,
    pub(crate) required_threads: Option<[u32; 3]>,
    pub(crate) required_cluster: Option<[u32; 3]>,
}

/// A parameter of a kernel and its place in parameter space.
#[derive(Debug)]
pub(crate) struct ParamDecl {
    pub(crate) offset: u64,
    pub(crate) bytes: u64,
}

/// A register's name and width.
#[derive(Clone, Debug)]
pub(crate) struct Reg {
    pub(crate) name: String,
    pub(crate) ty: Ty,
}

/// An index into the registers of a kernel.
pub(crate) type RegId = usize;

/// An instruction.
#[derive(Clone, Debug)]
pub(crate) struct Inst {
    pub(crate) line: u32,
    pub(crate) guard: Option<Guard>,
    pub(crate) op: Op,
    pub(crate) name: &'static str,
    pub(crate) needs: Needs,
    pub(crate) mods: Mods,
    pub(crate) ty: Vec<Ty>,
    /// `mMnNkK` of matrix instructions.
    pub(crate) shape: Option<[u32; 3]>,
    pub(crate) args: Vec<Arg>,
    /// All registers that it reads and writes.
    pub(crate) regs: Vec<RegId>,
}

impl Inst {
    pub(crate) fn has(&self, item: Mod) -> bool {
        self.mods.has(item)
    }

    /// The first type, which most instructions have.
    pub(crate) fn ty(&self) -> Ty {
        self.ty.first().copied().unwrap_or(Ty::B32)
    }
}

/// `@%p` or `@!%p`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Guard {
    pub(crate) reg: RegId,
    pub(crate) negated: bool,
}

/// An operand.
#[derive(Clone, Debug)]
pub(crate) enum Arg {
    Reg(RegId),
    /// `!%p`.
    NotReg(RegId),
    /// `%p|%q`.
    Pair(Box<Arg>, Box<Arg>),
    /// An integer, or the bits of a float.
    Imm(u64),
    Special(Special),
    /// The address of a variable in its state space, plus an offset.
    Sym(Symbol, i64),
    /// `_`: the result is not wanted.
    Sink,
    /// `{..}`.
    Vec(Vec<Arg>),
    /// `[base+offset]`.
    Addr(Box<Arg>, i64),
    /// `[map, {coordinates}]`.
    Tensor(Box<Arg>, Vec<Arg>),
    /// A place in the code.
    Target(usize),
}

impl Arg {
    /// The registers that the operand names.
    pub(crate) fn registers(&self) -> Vec<RegId> {
        match self {
            Arg::Reg(reg) | Arg::NotReg(reg) => vec![*reg],
            Arg::Pair(first, second) => [first.registers(), second.registers()].concat(),
            Arg::Vec(items) => items.iter().flat_map(Arg::registers).collect(),
            Arg::Addr(base, _) => base.registers(),
            Arg::Tensor(base, items) => {
                base.registers().into_iter().chain(items.iter().flat_map(Arg::registers)).collect()
            }
            Arg::Imm(_) | Arg::Special(_) | Arg::Sym(..) | Arg::Sink | Arg::Target(_) => Vec::new(),
        }
    }
}

/// A variable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Symbol {
    Param(u64),
    Shared(u64),
    /// Where the dynamic part of shared memory begins.
    DynamicShared,
    Local(u64),
    /// An index into [`Module::globals`].
    Global(usize),
}

/// A special register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Special {
    Tid(usize),
    Ntid(usize),
    Ctaid(usize),
    Nctaid(usize),
    ClusterId(usize),
    NclusterId(usize),
    ClusterCtaid(usize),
    ClusterNctaid(usize),
    ClusterCtarank,
    ClusterNctarank,
    IsExplicitCluster,
    LaneId,
    WarpId,
    NwarpId,
    SmId,
    NsmId,
    GridId,
    LaneMaskEq,
    LaneMaskLe,
    LaneMaskLt,
    LaneMaskGe,
    LaneMaskGt,
    Clock,
    Clock64,
    GlobalTimer,
    DynamicSharedBytes,
    TotalSharedBytes,
}

impl Special {
    /// The register that is named so.
    pub(crate) fn parse(name: &str) -> Option<Special> {
        let (stem, axis) = match name.rsplit_once('.') {
            Some((stem, "x")) => (stem, Some(0)),
            Some((stem, "y")) => (stem, Some(1)),
            Some((stem, "z")) => (stem, Some(2)),
            _ => (name, None),
        };
        if let Some(axis) = axis {
            return Some(match stem {
                "%tid" => Special::Tid(axis),
                "%ntid" => Special::Ntid(axis),
                "%ctaid" => Special::Ctaid(axis),
                "%nctaid" => Special::Nctaid(axis),
                "%clusterid" => Special::ClusterId(axis),
                "%nclusterid" => Special::NclusterId(axis),
                "%cluster_ctaid" => Special::ClusterCtaid(axis),
                "%cluster_nctaid" => Special::ClusterNctaid(axis),
                _ => return None,
            });
        }
        Some(match stem {
            "%cluster_ctarank" => Special::ClusterCtarank,
            "%cluster_nctarank" => Special::ClusterNctarank,
            "%is_explicit_cluster" => Special::IsExplicitCluster,
            "%laneid" => Special::LaneId,
            "%warpid" => Special::WarpId,
            "%nwarpid" => Special::NwarpId,
            "%smid" => Special::SmId,
            "%nsmid" => Special::NsmId,
            "%gridid" => Special::GridId,
            "%lanemask_eq" => Special::LaneMaskEq,
            "%lanemask_le" => Special::LaneMaskLe,
            "%lanemask_lt" => Special::LaneMaskLt,
            "%lanemask_ge" => Special::LaneMaskGe,
            "%lanemask_gt" => Special::LaneMaskGt,
            "%clock" | "%clock_hi" => Special::Clock,
            "%clock64" => Special::Clock64,
            "%globaltimer" | "%globaltimer_lo" => Special::GlobalTimer,
            "%dynamic_smem_size" => Special::DynamicSharedBytes,
            "%total_smem_size" => Special::TotalSharedBytes,
            _ => return None,
        })
    }
}
