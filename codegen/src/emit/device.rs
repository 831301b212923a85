//! Kernels for CUDA GPUs: parameters, thread coordinates, barriers, shuffles and inline PTX.
//!
//! A kernel takes its operands' addresses, tensor maps and sizes as parameters, in this order;
//! which ones is what the generator asks for. Shared memory is one dynamic array, addressed by
//! 32-bit integers as PTX does it. Instructions that no dialect has are PTX text with typed
//! operands.

use std::cell::RefCell;

use rustc_hash::FxHashMap;

use super::{Elem, Emitter, State, Ty, Val, join};

/// A parameter of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Param {
    /// Address of an operand's element zero, by the operand's number.
    Pointer(u32),
    /// A 128-byte tensor map, by its number.
    Map(u32),
    /// A run-time size, by its number, an i64.
    Size(u32),
}

/// What a kernel for a GPU has besides its body.
pub(super) struct Device {
    threads: u32,
    /// Blocks that a multiprocessor has registers for, at least.
    blocks: u32,
    params: RefCell<Vec<(Param, Val)>>,
}

/// Which threads a barrier waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Barrier {
    /// The whole block.
    Block,
    /// So many threads, under a number from 1 to 15.
    Named(u32, u32),
    /// The warp.
    Warp,
}

const I32: Ty = Ty::Scalar(Elem::I32);

impl Emitter {
    /// Starts the kernel `symbol` for a GPU, for blocks of exactly so many threads.
    #[must_use]
    pub fn cuda(symbol: &str, threads: u32) -> Self {
        let mut e = Self::new(symbol);
        e.device = Some(Device { threads, blocks: 1, params: RefCell::default() });
        e.state = RefCell::new(State {
            next_id: 0,
            depth: 2,
            body: String::new(),
            constants: String::new(),
            constant_ids: FxHashMap::default(),
        });
        e
    }

    /// The same kernel with so few registers that a multiprocessor holds so many blocks.
    ///
    /// # Panics
    /// If the kernel is not for a GPU.
    #[must_use]
    pub fn with_blocks(mut self, blocks: u32) -> Self {
        self.device.as_mut().expect("a kernel for a GPU").blocks = blocks;
        self
    }

    /// Whether the kernel is for a GPU.
    #[must_use]
    pub const fn is_device(&self) -> bool {
        self.device.is_some()
    }

    /// The parameters that were asked for, in the kernel's order.
    #[must_use]
    pub fn params(&self) -> Vec<Param> {
        let mut params: Vec<Param> = self.device().params.borrow().iter().map(|p| p.0).collect();
        params.sort_unstable();
        params
    }

    /// Threads of a block.
    #[must_use]
    pub fn threads(&self) -> u32 {
        self.device().threads
    }

    /// The generic address of tensor map number `index`.
    #[must_use]
    pub fn map(&self, index: u32) -> Val {
        self.param(Param::Map(index))
    }

    fn device(&self) -> &Device {
        self.device.as_ref().expect("a kernel for a GPU")
    }

    pub(super) fn param(&self, param: Param) -> Val {
        let params = &self.device().params;
        if let Some((_, value)) = params.borrow().iter().find(|(known, _)| *known == param) {
            return *value;
        }
        let ty = if let Param::Size(_) = param { Ty::Scalar(Elem::I64) } else { Ty::Ptr };
        let value = self.fresh(ty);
        params.borrow_mut().push((param, value));
        value
    }

    pub(super) fn finish_device(self) -> String {
        let device = self.device.expect("a kernel for a GPU");
        let mut params = device.params.into_inner();
        params.sort_unstable_by_key(|(param, _)| *param);
        let params = params.iter().map(|(param, value)| match param {
            Param::Pointer(_) => format!("{value}: !llvm.ptr"),
            Param::Size(_) => format!("{value}: i64"),
            Param::Map(_) => format!(
                "{value}: !llvm.ptr {{llvm.byval = !llvm.array<128 x i8>, llvm.align = 128 : i64, \
                 nvvm.grid_constant}}"
            ),
        });
        let state = self.state.into_inner();
        format!(
            "module {{\n  llvm.mlir.global external @smem() {{addr_space = 3 : i32, alignment = \
             1024 : i64}} : !llvm.array<0 x i8>\n  llvm.func @{symbol}({params}) attributes \
             {{nvvm.kernel, nvvm.minctasm = {blocks} : i32, nvvm.reqntid = array<i32: {threads}, 1, 1>}} \
             {{\n{constants}{body}    llvm.return\n  }}\n}}\n",
            symbol = self.symbol,
            params = join(params),
            blocks = device.blocks,
            threads = device.threads,
            constants = state.constants,
            body = state.body,
        )
    }

    /// The scalar i32 constant.
    #[must_use]
    pub fn i32(&self, value: i64) -> Val {
        self.int(I32, value)
    }

    /// A special register, such as `tid.x` or `ctaid.y`, as i32.
    #[must_use]
    pub fn special(&self, register: &str) -> Val {
        self.op(I32, format_args!("nvvm.read.ptx.sreg.{register} : i32"))
    }

    /// Number of the thread in its block, i32.
    #[must_use]
    pub fn thread(&self) -> Val {
        self.special("tid.x")
    }

    /// Number of the block in the grid along `x`, `y` or `z`, i32.
    #[must_use]
    pub fn block(&self, axis: char) -> Val {
        self.special(&format!("ctaid.{axis}"))
    }

    /// Waits until all threads have come here; what they wrote to memory is then seen by all.
    pub fn barrier(&self, barrier: Barrier) {
        match barrier {
            Barrier::Block => self.line(format_args!("nvvm.barrier0")),
            Barrier::Named(number, threads) => {
                self.ptx(&format!("bar.sync {number}, {threads};"), &[]);
            }
            Barrier::Warp => {
                let all = self.i32(-1);
                self.line(format_args!("nvvm.bar.warp.sync {all} : i32"));
            }
        }
    }

    /// Lets the grid behind this one be brought to the multiprocessors when all blocks have come
    /// here. PTX ISA 7.8, `griddepcontrol`.
    pub fn launch_dependents(&self) {
        self.ptx("griddepcontrol.launch_dependents;", &[]);
    }

    /// Waits until the grids before this one have ended and what they wrote is seen. Until then a
    /// kernel may read what nothing writes, and write nothing. PTX ISA 7.8, `griddepcontrol`.
    pub fn wait_for_grids(&self) {
        self.ptx("griddepcontrol.wait;", &[]);
    }

    /// Address of the block's dynamic shared memory, i32.
    #[must_use]
    pub fn shared(&self) -> Val {
        let id = self.state.borrow_mut().fresh();
        self.line(format_args!("%{id} = llvm.mlir.addressof @smem : !llvm.ptr<3>"));
        self.op(I32, format_args!("llvm.ptrtoint %{id} : !llvm.ptr<3> to i32"))
    }

    /// The value of the lane whose number differs from this one's in the bits of `mask`; every lane
    /// of the warp must come here.
    #[must_use]
    pub fn shuffle_xor(&self, value: Val, mask: u32) -> Val {
        self.shuffle_lanes("bfly", value, mask, 31)
    }

    /// The lanes of the warp for which `condition` holds, as bits of an i32; every lane of the warp
    /// must come here.
    #[must_use]
    pub fn ballot(&self, condition: Val) -> Val {
        let all = self.i32(-1);
        self.op(I32, format_args!("nvvm.vote.sync ballot {all}, {condition} -> i32"))
    }

    /// The value of the lane that is `distance` below, in the first `distance` lanes their own;
    /// every lane of the warp must come here.
    #[must_use]
    pub fn shuffle_up(&self, value: Val, distance: u32) -> Val {
        self.shuffle_lanes("up", value, distance, 0)
    }

    /// As an operation that LLVM knows to be convergent: text may move to where lanes are missing.
    fn shuffle_lanes(&self, kind: &str, value: Val, by: u32, clamp: i64) -> Val {
        let (ty, all) = (value.ty(), self.i32(-1));
        let (by, clamp) = (self.i32(by.into()), self.i32(clamp));
        let op = format_args!("nvvm.shfl.sync {kind} {all}, {value}, {by}, {clamp} : {ty} -> {ty}");
        self.op(ty, op)
    }

    /// Loads 32 bits of shared memory, `byte` bytes behind an i32 address.
    #[must_use]
    pub fn load_shared(&self, elem: Elem, address: Val, byte: i64) -> Val {
        let text = format!("ld.shared.{} $0, [$1+{byte}];", word(elem));
        self.ptx_values(&text, &[Ty::Scalar(elem)], &[address])[0]
    }

    /// Loads four times 32 bits of shared memory from a multiple of sixteen bytes.
    #[must_use]
    pub fn load_shared_four(&self, elem: Elem, address: Val, byte: i64) -> Vec<Val> {
        let text = format!("ld.shared.v4.{} {{$0, $1, $2, $3}}, [$4+{byte}];", word(elem));
        self.ptx_values(&text, &[Ty::Scalar(elem); 4], &[address])
    }

    /// Stores 32 bits to shared memory, `byte` bytes behind an i32 address.
    pub fn store_shared(&self, value: Val, address: Val, byte: i64) {
        let text = format!("st.shared.{} [$0+{byte}], $1;", word(value.elem()));
        self.ptx(&text, &[address, value]);
    }

    /// PTX without results. Operands are `$0`, `$1` and so on; a dollar sign is `$$`.
    pub fn ptx(&self, text: &str, operands: &[Val]) {
        let _ = self.inline(text, "has_side_effects ", &[], operands, 0);
    }

    /// PTX with results, `$0` and so on, followed by the operands; all results of one type.
    #[must_use]
    pub fn ptx_values(&self, text: &str, results: &[Ty], operands: &[Val]) -> Vec<Val> {
        self.inline(text, "has_side_effects ", results, operands, 0)
    }

    /// As [`Self::ptx_values`], for text that does nothing but compute its results.
    #[must_use]
    pub fn ptx_pure(&self, text: &str, results: &[Ty], operands: &[Val]) -> Vec<Val> {
        self.inline(text, "", results, operands, 0)
    }

    /// PTX that changes the registers `inout`, `$0` and so on, and reads `operands`, which are
    /// numbered from twice the number of `inout` on.
    #[must_use]
    pub fn ptx_update(&self, text: &str, inout: &[Val], operands: &[Val]) -> Vec<Val> {
        let results: Vec<Ty> = inout.iter().map(|value| value.ty()).collect();
        let operands: Vec<Val> = inout.iter().chain(operands).copied().collect();
        self.inline(text, "has_side_effects ", &results, &operands, inout.len())
    }

    /// At the beginning of a loop's body: the assembler is not to unroll it. PTX ISA, "Pragma
    /// strings: nounroll".
    pub fn keep_rolled(&self) {
        self.ptx(".pragma \\22nounroll\\22;", &[]);
    }

    /// The first `tied` operands share the registers of the results.
    fn inline(
        &self,
        text: &str,
        effects: &str,
        results: &[Ty],
        operands: &[Val],
        tied: usize,
    ) -> Vec<Val> {
        let outputs = results.iter().map(|ty| format!("={}", register(*ty)));
        let inputs = operands.iter().enumerate().map(|(i, value)| match i < tied {
            true => i.to_string(),
            false => register(value.ty()).to_owned(),
        });
        let constraints = outputs.chain(inputs).collect::<Vec<_>>().join(",");
        let ty = match results {
            [] => None,
            [one] => Some(*one),
            [first, rest @ ..] => {
                assert!(rest.iter().all(|ty| ty == first), "results of one type: {results:?}");
                Some(Ty::Group(first.elem(), u32::try_from(results.len()).expect("few")))
            }
        };
        let types = join(operands.iter().map(|value| value.ty()));
        let result = ty.map_or("()".to_owned(), |ty| ty.to_string());
        let text = text.replace('\n', "\\0A");
        let line = format!(
            "llvm.inline_asm {effects}asm_dialect = att \"{text}\", \"{constraints}\" {} : \
             ({types}) -> {result}",
            join(operands)
        );
        let Some(ty) = ty else {
            self.line(format_args!("{line}"));
            return Vec::new();
        };
        let value = self.op(ty, format_args!("{line}"));
        let Ty::Group(elem, count) = ty else { return vec![value] };
        let field =
            |i| self.op(Ty::Scalar(elem), format_args!("llvm.extractvalue {value}[{i}] : {ty}"));
        (0..count).map(field).collect()
    }
}

/// The PTX type of 32 or 64 bits in memory.
fn word(elem: Elem) -> &'static str {
    match elem {
        Elem::F32 => "f32",
        Elem::I32 => "b32",
        Elem::I64 => "b64",
        other => panic!("no word of {other}"),
    }
}

/// The constraint of a register that holds such a value.
fn register(ty: Ty) -> &'static str {
    match ty {
        Ty::Ptr => "l",
        Ty::Vector(..) | Ty::Group(..) => panic!("no register holds a {ty}"),
        Ty::Scalar(elem) => match elem {
            Elem::F64 => "d",
            Elem::F32 => "f",
            Elem::I64 => "l",
            Elem::I32 => "r",
            Elem::Bf16 | Elem::F16 | Elem::I16 => "h",
            Elem::I8 | Elem::Bool => panic!("no register holds a {ty}"),
        },
    }
}
