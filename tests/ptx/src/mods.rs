//! The qualifiers of instructions, and sets of them.

macro_rules! mods {
    ($($name:ident $text:literal,)*) => {
        /// A qualifier of an instruction: what follows a dot and is neither type nor shape.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Mod { $($name,)* }

        impl Mod {
            /// The qualifier that is written so, without its dot.
            pub(crate) fn parse(text: &str) -> Option<Mod> {
                match text { $($text => Some(Mod::$name),)* _ => None }
            }
        }
    };
}

mods! {
    // state spaces
    Param "param", ParamEntry "param::entry", Global "global", Shared "shared",
    SharedCta "shared::cta", SharedCluster "shared::cluster", Local "local", Const "const",
    To "to",
    // vectors and matrices
    V2 "v2", V4 "v4", V8 "v8", X1 "x1", X2 "x2", X4 "x4", Trans "trans", M8n8 "m8n8",
    Row "row", Col "col",
    // caches
    Ca "ca", Cg "cg", Cs "cs", Lu "lu", Cv "cv", Wb "wb", Wt "wt", Nc "nc",
    L1NoAllocate "L1::no_allocate", L1EvictFirst "L1::evict_first", L1EvictLast "L1::evict_last",
    L1EvictNormal "L1::evict_normal", L1EvictUnchanged "L1::evict_unchanged",
    L2EvictFirst "L2::evict_first", L2EvictLast "L2::evict_last", L2EvictNormal "L2::evict_normal",
    L2EvictUnchanged "L2::evict_unchanged",
    L2CacheHint "L2::cache_hint", L2B64 "L2::64B", L2B128 "L2::128B", L2B256 "L2::256B",
    L1 "L1", L2 "L2", Fractional "fractional", Tensormap "tensormap",
    // memory order and scope
    Weak "weak", Volatile "volatile", Relaxed "relaxed", Acquire "acquire", Release "release",
    AcqRel "acq_rel", Sc "sc", Cta "cta", Cluster "cluster", Gpu "gpu", Gl "gl", Sys "sys",
    // rounding and floating point
    Rn "rn", Rz "rz", Rm "rm", Rp "rp", Rna "rna", Rni "rni", Rzi "rzi", Rmi "rmi", Rpi "rpi",
    Ftz "ftz", Sat "sat", Satfinite "satfinite", Relu "relu", Approx "approx", Full "full",
    PropagateNan "NaN", XorSign "xorsign", Abs "abs", Noftz "noftz",
    // integers
    Lo "lo", Hi "hi", Wide "wide", Left "l", Right "r", Wrap "wrap", Clamp "clamp",
    ShiftAmt "shiftamt",
    // comparison
    Eq "eq", Ne "ne", Lt "lt", Le "le", Gt "gt", Ge "ge", Ls "ls", Hs "hs",
    Equ "equ", Neu "neu", Ltu "ltu", Leu "leu", Gtu "gtu", Geu "geu", Num "num", Nan "nan",
    // boolean and atomic operations
    And "and", Or "or", Xor "xor", Add "add", Min "min", Max "max", Inc "inc", Dec "dec",
    Cas "cas", Exch "exch", Popc "popc",
    // prmt
    F4e "f4e", B4e "b4e", Rc8 "rc8", Ecl "ecl", Ecr "ecr", Rc16 "rc16",
    // testp
    Finite "finite", Infinite "infinite", Number "number", NotANumber "notanumber",
    Normal "normal", Subnormal "subnormal",
    // warps
    Uni "uni", Sync "sync", Aligned "aligned", Up "up", Down "down", Bfly "bfly", Idx "idx",
    All "all", Any "any", Ballot "ballot",
    // asynchronous copies
    NoInc "noinc", NoComplete "noComplete", ExpectTx "expect_tx", Parity "parity", Read "read",
    CompleteTx "mbarrier::complete_tx::bytes", BulkGroup "bulk_group", Tile "tile",
    Multicast "multicast::cluster",
    D1 "1d", D2 "2d", D3 "3d", D4 "4d", D5 "5d",
}

/// A set of qualifiers.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Mods([u64; 3]);

impl Mods {
    pub(crate) fn insert(&mut self, item: Mod) {
        self.0[item as usize / 64] |= 1 << (item as usize % 64);
    }

    pub(crate) fn has(self, item: Mod) -> bool {
        self.0[item as usize / 64] >> (item as usize % 64) & 1 != 0
    }

    /// Which of these it has, by position; the first one counts.
    pub(crate) fn which(self, items: &[Mod]) -> Option<Mod> {
        items.iter().copied().find(|item| self.has(*item))
    }
}
