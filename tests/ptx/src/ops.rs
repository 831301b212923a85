//! The instructions, as a table: name, types, operands, qualifiers and the least device.
//!
//! An instruction with a qualifier that its row does not list is refused when the text is parsed.

use crate::ty::Ty;

/// The least device that has an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Needs {
    Sm80,
    Sm90,
    Sm90a,
}

/// What an instruction looks like.
pub(crate) struct Spec {
    pub(crate) name: &'static str,
    pub(crate) op: Op,
    /// How many types follow the name.
    pub(crate) types: usize,
    /// The least and the largest number of operands.
    pub(crate) args: (usize, usize),
    /// The qualifiers it may have.
    pub(crate) mods: &'static str,
    pub(crate) needs: Needs,
}

const MEMORY: &str = "param param::entry global shared shared::cta shared::cluster local const \
    weak volatile relaxed acquire release cta cluster gpu sys v2 v4 v8 nc ca cg cs lu cv wb wt \
    L1::no_allocate L1::evict_first L1::evict_last L1::evict_normal L1::evict_unchanged \
    L2::evict_first L2::evict_last L2::evict_normal L2::cache_hint L2::64B L2::128B L2::256B";
const ATOMIC: &str = "global shared shared::cta shared::cluster relaxed acquire release acq_rel \
    cta cluster gpu sys and or xor add min max inc dec cas exch noftz L2::cache_hint";
const FLOAT: &str = "rn rz rm rp ftz sat approx full relu NaN xorsign abs lo hi wide";
const COMPARE: &str =
    "eq ne lt le gt ge lo ls hi hs equ neu ltu leu gtu geu num nan and or xor ftz";
const SHARED: &str = "shared shared::cta";
const MBARRIER: &str = "shared shared::cta shared::cluster noComplete expect_tx parity release \
    acquire relaxed cta cluster";
const TENSOR: &str = "1d 2d 3d 4d 5d shared::cta shared::cluster global tile bulk_group \
    mbarrier::complete_tx::bytes multicast::cluster L2::cache_hint";

macro_rules! ops {
    ($($op:ident: $($name:literal $types:literal ($min:literal, $max:literal) $mods:expr,
        $needs:ident;)*)*) => {
        /// What an instruction does.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Op { $($op,)* }

        /// All instructions.
        pub(crate) static SPECS: &[Spec] = &[$($(Spec {
            name: $name,
            op: Op::$op,
            types: $types,
            args: ($min, $max),
            mods: $mods,
            needs: Needs::$needs,
        },)*)*];
    };
}

ops! {
    // moves
    Mov: "mov" 1 (2, 2) "", Sm80;
    Cvta: "cvta" 1 (2, 2) "to param param::entry const global local shared shared::cta shared::cluster", Sm80;
    Cvt: "cvt" 2 (2, 3) "rn rz rm rp rna rni rzi rmi rpi ftz sat satfinite relu", Sm80;
    Selp: "selp" 1 (4, 4) "", Sm80;
    Slct: "slct" 2 (4, 4) "ftz", Sm80;
    Prmt: "prmt" 1 (4, 4) "f4e b4e rc8 ecl ecr rc16", Sm80;
    // numbers
    Add: "add" 1 (3, 3) FLOAT, Sm80;
    Sub: "sub" 1 (3, 3) FLOAT, Sm80;
    Mul: "mul" 1 (3, 3) FLOAT, Sm80;
    Mad: "mad" 1 (4, 4) FLOAT, Sm80;
    Fma: "fma" 1 (4, 4) FLOAT, Sm80;
    Div: "div" 1 (3, 3) FLOAT, Sm80;
    Rem: "rem" 1 (3, 3) "", Sm80;
    Min: "min" 1 (3, 4) FLOAT, Sm80;
    Max: "max" 1 (3, 4) FLOAT, Sm80;
    Abs: "abs" 1 (2, 2) FLOAT, Sm80;
    Neg: "neg" 1 (2, 2) FLOAT, Sm80;
    Copysign: "copysign" 1 (3, 3) "", Sm80;
    Sqrt: "sqrt" 1 (2, 2) FLOAT, Sm80;
    Rsqrt: "rsqrt" 1 (2, 2) FLOAT, Sm80;
    Rcp: "rcp" 1 (2, 2) FLOAT, Sm80;
    Ex2: "ex2" 1 (2, 2) FLOAT, Sm80;
    Lg2: "lg2" 1 (2, 2) FLOAT, Sm80;
    Sin: "sin" 1 (2, 2) FLOAT, Sm80;
    Cos: "cos" 1 (2, 2) FLOAT, Sm80;
    Tanh: "tanh" 1 (2, 2) FLOAT, Sm80;
    Testp: "testp" 1 (2, 2) "finite infinite number notanumber normal subnormal", Sm80;
    Sad: "sad" 1 (4, 4) "", Sm80;
    Dp4a: "dp4a" 2 (4, 4) "", Sm80;
    Dp2a: "dp2a" 2 (4, 4) "lo hi", Sm80;
    // bits
    And: "and" 1 (3, 3) "", Sm80;
    Or: "or" 1 (3, 3) "", Sm80;
    Xor: "xor" 1 (3, 3) "", Sm80;
    Not: "not" 1 (2, 2) "", Sm80;
    Cnot: "cnot" 1 (2, 2) "", Sm80;
    Shl: "shl" 1 (3, 3) "", Sm80;
    Shr: "shr" 1 (3, 3) "", Sm80;
    Shf: "shf" 1 (4, 4) "l r wrap clamp", Sm80;
    Bfe: "bfe" 1 (4, 4) "", Sm80;
    Bfi: "bfi" 1 (5, 5) "", Sm80;
    Bfind: "bfind" 1 (2, 2) "shiftamt", Sm80;
    Clz: "clz" 1 (2, 2) "", Sm80;
    Popc: "popc" 1 (2, 2) "", Sm80;
    Brev: "brev" 1 (2, 2) "", Sm80;
    Lop3: "lop3" 1 (5, 5) "", Sm80;
    // comparison
    Setp: "setp" 1 (3, 4) COMPARE, Sm80;
    Set: "set" 2 (3, 4) COMPARE, Sm80;
    // memory
    Ld: "ld" 1 (2, 3) MEMORY, Sm80;
    St: "st" 1 (2, 3) MEMORY, Sm80;
    Atom: "atom" 1 (3, 5) ATOMIC, Sm80;
    Red: "red" 1 (2, 3) ATOMIC, Sm80;
    Isspacep: "isspacep" 0 (2, 2) "param const global local shared shared::cta shared::cluster", Sm80;
    Nop:
        "prefetch" 0 (1, 1) "global local L1 L2 L2::evict_last L2::evict_normal tensormap param const", Sm80;
        "prefetchu" 0 (1, 1) "L1", Sm80;
        "griddepcontrol.launch_dependents" 0 (0, 0) "", Sm90;
        "cp.async.bulk.prefetch" 0 (2, 3) "L2 global L2::cache_hint", Sm90;
        "cp.async.bulk.prefetch.tensor" 0 (1, 2) "1d 2d 3d 4d 5d L2 global tile L2::cache_hint", Sm90;
        "nanosleep" 1 (1, 1) "", Sm80;
    GridWait: "griddepcontrol.wait" 0 (0, 0) "", Sm90;
    CreatePolicy: "createpolicy" 1 (2, 3) "fractional L2::evict_first L2::evict_last \
        L2::evict_normal L2::evict_unchanged", Sm80;
    Fence:
        "fence" 0 (0, 0) "sc acq_rel acquire release cta cluster gpu sys", Sm80;
        "membar" 0 (0, 0) "cta gl sys", Sm80;
    FenceProxyAsync: "fence.proxy.async" 0 (0, 0) "global shared::cta shared::cluster", Sm90;
    FenceMbarrierInit: "fence.mbarrier_init" 0 (0, 0) "release cluster", Sm90;
    // control
    Bra: "bra" 0 (1, 1) "uni", Sm80;
    Exit: "exit" 0 (0, 0) "", Sm80;
    Ret: "ret" 0 (0, 0) "uni", Sm80;
    Trap: "trap" 0 (0, 0) "", Sm80;
    // barriers
    BarSync:
        "bar.sync" 0 (1, 2) "", Sm80;
        "bar.cta.sync" 0 (1, 2) "", Sm80;
        "barrier.sync" 0 (1, 2) "aligned", Sm80;
        "barrier.cta.sync" 0 (1, 2) "aligned", Sm80;
    BarArrive:
        "bar.arrive" 0 (2, 2) "", Sm80;
        "bar.cta.arrive" 0 (2, 2) "", Sm80;
        "barrier.arrive" 0 (2, 2) "aligned", Sm80;
        "barrier.cta.arrive" 0 (2, 2) "aligned", Sm80;
    WarpSync: "bar.warp.sync" 0 (1, 1) "", Sm80;
    ClusterArrive: "barrier.cluster.arrive" 0 (0, 0) "release relaxed aligned", Sm90;
    ClusterWait: "barrier.cluster.wait" 0 (0, 0) "acquire aligned", Sm90;
    // warps
    Vote: "vote.sync" 1 (3, 3) "all any uni ballot", Sm80;
    Match: "match" 1 (3, 3) "any all sync", Sm80;
    ActiveMask: "activemask" 1 (1, 1) "", Sm80;
    Shfl: "shfl.sync" 1 (5, 5) "up down bfly idx", Sm80;
    Redux: "redux.sync" 1 (3, 3) "add min max and or xor", Sm80;
    Elect: "elect.sync" 0 (2, 2) "", Sm90;
    // asynchronous copies of Ampere
    CpAsync: "cp.async" 0 (3, 5) "ca cg shared shared::cta global L2::cache_hint L2::64B L2::128B \
        L2::256B", Sm80;
    CpCommit: "cp.async.commit_group" 0 (0, 0) "", Sm80;
    CpWait:
        "cp.async.wait_group" 0 (1, 1) "", Sm80;
        "cp.async.wait_all" 0 (0, 0) "", Sm80;
    CpMbarrierArrive: "cp.async.mbarrier.arrive" 1 (1, 1) "noinc shared shared::cta", Sm80;
    // matrices
    Ldmatrix: "ldmatrix.sync.aligned" 1 (2, 2) "m8n8 x1 x2 x4 trans shared shared::cta", Sm80;
    Stmatrix: "stmatrix.sync.aligned" 1 (2, 2) "m8n8 x1 x2 x4 trans shared shared::cta", Sm90;
    Movmatrix: "movmatrix.sync.aligned" 1 (2, 2) "m8n8 trans", Sm80;
    Mma: "mma.sync.aligned" 4 (4, 4) "row col satfinite", Sm80;
    // mbarriers
    MbarInit: "mbarrier.init" 1 (2, 2) SHARED, Sm80;
    MbarInval: "mbarrier.inval" 1 (1, 1) SHARED, Sm80;
    MbarArrive: "mbarrier.arrive" 1 (1, 3) MBARRIER, Sm80;
    MbarExpectTx: "mbarrier.expect_tx" 1 (2, 2) MBARRIER, Sm90;
    MbarCompleteTx: "mbarrier.complete_tx" 1 (2, 2) MBARRIER, Sm90;
    MbarTest:
        "mbarrier.test_wait" 1 (3, 3) MBARRIER, Sm80;
        "mbarrier.try_wait" 1 (3, 4) MBARRIER, Sm90;
    // bulk copies
    Bulk: "cp.async.bulk" 0 (3, 6) "shared::cta shared::cluster global bulk_group \
        mbarrier::complete_tx::bytes multicast::cluster L2::cache_hint", Sm90;
    BulkTensor: "cp.async.bulk.tensor" 0 (2, 5) TENSOR, Sm90;
    BulkCommit: "cp.async.bulk.commit_group" 0 (0, 0) "", Sm90;
    BulkWait: "cp.async.bulk.wait_group" 0 (1, 1) "read", Sm90;
    // clusters
    Mapa: "mapa" 1 (3, 3) "shared::cluster", Sm90;
    GetCtaRank: "getctarank" 1 (2, 2) "shared::cluster", Sm90;
    // warpgroups
    WgmmaFence: "wgmma.fence.sync.aligned" 0 (0, 0) "", Sm90a;
    WgmmaCommit: "wgmma.commit_group.sync.aligned" 0 (0, 0) "", Sm90a;
    WgmmaWait: "wgmma.wait_group.sync.aligned" 0 (1, 1) "", Sm90a;
    Wgmma: "wgmma.mma_async.sync.aligned" 3 (4, 8) "satfinite", Sm90a;
    SetMaxNReg:
        "setmaxnreg.inc.sync.aligned" 1 (1, 1) "", Sm90a;
        "setmaxnreg.dec.sync.aligned" 1 (1, 1) "", Sm90a;
}

impl Spec {
    /// The row with the longest name that `opcode` begins with, and what follows that name.
    pub(crate) fn find(opcode: &str) -> Option<(&'static Spec, &str)> {
        let follows = |name: &str| {
            let rest = opcode.strip_prefix(name)?;
            (rest.is_empty() || rest.starts_with('.')).then_some(rest)
        };
        let fitting = SPECS.iter().filter_map(|spec| Some((spec, follows(spec.name)?)));
        fitting.max_by_key(|(spec, _)| spec.name.len())
    }

    /// Whether the row allows a qualifier.
    pub(crate) fn allows(&self, part: &str) -> bool {
        self.mods.split_ascii_whitespace().any(|allowed| allowed == part)
    }
}

/// The least device that has an instruction with these types.
pub(crate) fn needs_of_types(op: Op, types: &[Ty]) -> Needs {
    let is_fp8 = |ty: &Ty| matches!(ty, Ty::E4m3 | Ty::E5m2 | Ty::E4m3x2 | Ty::E5m2x2);
    let is_bf16 = |ty: &Ty| matches!(ty, Ty::Bf16 | Ty::Bf16x2);
    let lacks_bf16 = match op {
        Op::Add | Op::Sub | Op::Mul | Op::Ex2 | Op::Tanh | Op::Setp | Op::Set => true,
        Op::Atom | Op::Red => true,
        Op::Cvt => types.get(1).is_some_and(is_bf16),
        _ => false,
    };
    let is_pair = |ty: &Ty| matches!(ty, Ty::S16x2 | Ty::U16x2);
    let is_new = |ty: &Ty| is_fp8(ty) || is_pair(ty);
    if types.iter().any(is_new) || (lacks_bf16 && types.iter().any(is_bf16)) {
        Needs::Sm90
    } else {
        Needs::Sm80
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mods::Mod;

    #[test]
    fn every_qualifier_of_the_table_is_known() {
        for spec in SPECS {
            for part in spec.mods.split_ascii_whitespace() {
                assert!(Mod::parse(part).is_some(), "{}: {part}", spec.name);
            }
        }
    }

    #[test]
    fn the_longest_name_wins() {
        let name = |opcode| Spec::find(opcode).map(|(spec, rest)| (spec.name, rest));
        assert_eq!(name("cp.async.cg.shared.global"), Some(("cp.async", ".cg.shared.global")));
        assert_eq!(name("cp.async.wait_group"), Some(("cp.async.wait_group", "")));
        assert_eq!(name("address.b32"), None);
    }
}
