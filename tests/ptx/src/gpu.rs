//! The device: its memory, and launches.

use crate::exec::{Machine, Setup};
use crate::fault::{Fault, FaultKind};
use crate::global::Global;
use crate::launch::{Launch, Report};
use crate::module::{Kernel, Module};
use crate::ops::Needs;
use crate::tensor_map::TensorMap;

/// A device that is emulated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arch {
    /// A100: 163 KiB of shared memory for a block.
    Sm80,
    /// H100, with the instructions that only it has: 227 KiB of shared memory for a block.
    Sm90a,
}

impl Arch {
    fn has(self, needs: Needs) -> bool {
        self == Arch::Sm90a || needs == Needs::Sm80
    }

    fn max_shared(self) -> u64 {
        match self {
            Arch::Sm80 => 163 << 10,
            Arch::Sm90a => 227 << 10,
        }
    }

    /// The driver keeps the first KiB of shared memory of compute capability 8 and up.
    fn shared_base(self) -> u32 {
        1 << 10
    }
}

/// A device with its global memory.
#[derive(Debug)]
pub struct Gpu {
    arch: Arch,
    global: Global,
}

impl Gpu {
    /// A device without allocations.
    #[must_use]
    pub fn new(arch: Arch) -> Gpu {
        Gpu { arch, global: Global::new() }
    }

    /// Allocates global memory, of which nothing can be read before it is written.
    ///
    /// The address is a multiple of 256; what lies around the allocation is out of bounds.
    pub fn alloc(&mut self, bytes: usize) -> u64 {
        self.global.alloc(bytes as u64, 1)
    }

    /// Frees what [`Gpu::alloc`] gave, which is out of bounds from then on; whether there was such
    /// an allocation.
    pub fn free(&mut self, address: u64) -> bool {
        self.global.free(address)
    }

    /// Where the allocations begin that no kernel has written to.
    #[must_use]
    pub fn constants(&self) -> Vec<u64> {
        self.global.constants().collect()
    }

    /// Writes global memory.
    ///
    /// # Panics
    /// If the range is not within one allocation.
    pub fn write(&mut self, address: u64, data: &[u8]) {
        if let Err(fault) = self.global.write(address, data) {
            panic!("Gpu::write: {fault}");
        }
    }

    /// Reads global memory.
    ///
    /// # Panics
    /// If the range is not within one allocation, or not all of it was written.
    #[must_use]
    pub fn read(&mut self, address: u64, bytes: usize) -> Vec<u8> {
        self.try_read(address, bytes).unwrap_or_else(|fault| panic!("Gpu::read: {fault}"))
    }

    /// Reads global memory.
    ///
    /// # Errors
    /// [`FaultKind::OutOfBounds`] if the range is not within one allocation;
    /// [`FaultKind::Uninitialised`] if not all of it was written.
    pub fn try_read(&mut self, address: u64, bytes: usize) -> Result<Vec<u8>, FaultKind> {
        self.global.read(address, bytes).map(<[u8]>::to_vec)
    }

    /// The bytes of global memory, where they were written.
    ///
    /// # Errors
    /// [`FaultKind::OutOfBounds`] if the range is not within one allocation.
    pub fn written(&mut self, address: u64, bytes: usize) -> Result<Vec<Option<u8>>, FaultKind> {
        self.global.written(address, bytes)
    }

    /// Writes singles. Panics as [`Gpu::write`] does.
    pub fn write_f32s(&mut self, address: u64, values: &[f32]) {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.write(address, &bytes);
    }

    /// Reads singles. Panics as [`Gpu::read`] does.
    #[must_use]
    pub fn read_f32s(&mut self, address: u64, count: usize) -> Vec<f32> {
        let bytes = self.read(address, count * 4);
        let single = |bytes: &[u8]| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        bytes.chunks_exact(4).map(single).collect()
    }

    /// Allocates and writes.
    pub fn upload(&mut self, data: &[u8]) -> u64 {
        let address = self.alloc(data.len());
        self.write(address, data);
        address
    }

    /// The 128 bytes of a tensor map, for a kernel's parameter that is a multiple of 64.
    ///
    /// # Panics
    /// If the map breaks a rule of CUDA's, or the tensor is not within one allocation.
    #[must_use]
    pub fn tensor_map(&mut self, map: &TensorMap) -> [u8; 128] {
        self.try_tensor_map(map).unwrap_or_else(|fault| panic!("Gpu::tensor_map: {fault}"))
    }

    /// The 128 bytes of a tensor map.
    ///
    /// # Errors
    /// [`FaultKind::TensorMap`] if it breaks a rule of CUDA's; [`FaultKind::OutOfBounds`] if the
    /// tensor is not within one allocation.
    pub fn try_tensor_map(&mut self, map: &TensorMap) -> Result<[u8; 128], FaultKind> {
        let bytes = map.encode()?;
        let reach = |(dim, stride): (&u64, &u64)| (dim - 1) * stride;
        let outer: u64 = map.dims[1..].iter().zip(&map.strides).map(reach).sum();
        let extent = outer + map.dims[0] * map.elem.bytes() as u64;
        self.global.check(map.base, extent as usize)?;
        Ok(bytes)
    }

    /// Runs a kernel.
    ///
    /// Variables of the module in global memory are set to their initial values by every launch.
    ///
    /// # Errors
    /// The first fault that a thread causes; memory is then as the threads before left it.
    pub fn launch(
        &mut self,
        module: &Module,
        kernel: &str,
        launch: &Launch,
    ) -> Result<Report, Fault> {
        let before = |kind| Fault { kind, cta: [0; 3], thread: None, line: 0 };
        let clusters = self.clusters(launch).map_err(before)?;
        let kernel = self.check(module, kernel, launch).map_err(before)?;
        let params = pack(kernel, launch).map_err(before)?;
        let allocations = self.global.count();
        let mut variables = Vec::new();
        for variable in &module.globals {
            let address = self.global.alloc(variable.bytes, variable.align);
            let mut bytes = variable.init.clone();
            bytes.resize(variable.bytes as usize, 0);
            self.global.write(address, &bytes).map_err(before)?;
            variables.push(address);
        }
        let mut report = Report::default();
        let mut result = Ok(());
        for (index, ids) in clusters.iter().enumerate() {
            let setup = Setup {
                kernel,
                launch,
                global: &mut self.global,
                variables: &variables,
                params: &params,
                report: &mut report,
                shared_base: self.arch.shared_base(),
            };
            let seed = launch.seed.wrapping_mul(0x1_0000_01b3).wrapping_add(index as u64);
            result = Machine::new(setup, ids, seed).run();
            if result.is_err() {
                break;
            }
        }
        self.global.truncate(allocations);
        result.map(|()| report)
    }

    fn check<'m>(
        &self,
        module: &'m Module,
        name: &str,
        launch: &Launch,
    ) -> Result<&'m Kernel, FaultKind> {
        let bad = |reason: String| Err(FaultKind::Launch(reason));
        let Some(kernel) = module.kernels.get(name) else {
            return bad(format!("there is no kernel `{name}`"));
        };
        let lacking = |what: String, needs: Needs| {
            let needs = if needs == Needs::Sm90 { "sm_90" } else { "sm_90a" };
            Err(FaultKind::Arch { what, needs })
        };
        if !self.arch.has(module.target) {
            return lacking("the module".to_owned(), module.target);
        }
        if let Some(inst) = kernel.code.iter().find(|inst| inst.needs > module.target) {
            return lacking(format!("`{}` in line {}", inst.name, inst.line), inst.needs);
        }
        let threads = volume(launch.block);
        if threads == 0 || threads > 1024 {
            return bad(format!("a block of {threads} threads"));
        }
        if let Some(required) = kernel.required_threads
            && required != launch.block
        {
            return bad(format!("the kernel needs blocks of {required:?}, not {:?}", launch.block));
        }
        let most = kernel.max_threads.map_or(1024, volume);
        if threads > most {
            return bad(format!("a block of {threads} threads, at most {most} are allowed"));
        }
        if let Some(required) = kernel.required_cluster
            && required != launch.cluster
        {
            let found = launch.cluster;
            return bad(format!("the kernel needs clusters of {required:?}, not {found:?}"));
        }
        if kernel.local_bytes > 512 << 10 {
            return bad(format!("{} bytes of local memory for a thread", kernel.local_bytes));
        }
        let shared = kernel.dynamic_offset + u64::from(launch.dynamic_shared);
        if shared > self.arch.max_shared() {
            let most = self.arch.max_shared();
            return bad(format!("{shared} bytes of shared memory, there are {most}"));
        }
        Ok(kernel)
    }

    /// The blocks of each cluster that runs, by rank.
    fn clusters(&self, launch: &Launch) -> Result<Vec<Vec<[u32; 3]>>, FaultKind> {
        let bad = |reason: String| Err(FaultKind::Launch(reason));
        let (grid, size) = (launch.grid, launch.cluster);
        let count = volume(size);
        if count == 0 || count > 16 || (count > 1 && self.arch == Arch::Sm80) {
            return bad(format!("a cluster of {count} blocks"));
        }
        if grid.contains(&0) || (0..3).any(|axis| !grid[axis].is_multiple_of(size[axis])) {
            return bad(format!("a grid of {grid:?} blocks in clusters of {size:?}"));
        }
        let corner = |block: [u32; 3]| -> [u32; 3] {
            std::array::from_fn(|axis| block[axis] / size[axis] * size[axis])
        };
        let mut corners = Vec::new();
        match &launch.blocks {
            Some(blocks) => {
                for block in blocks {
                    if (0..3).any(|axis| block[axis] >= grid[axis]) {
                        return bad(format!("block {block:?} is not in the grid"));
                    }
                    if !corners.contains(&corner(*block)) {
                        corners.push(corner(*block));
                    }
                }
            }
            None => {
                for z in (0..grid[2]).step_by(size[2] as usize) {
                    for y in (0..grid[1]).step_by(size[1] as usize) {
                        for x in (0..grid[0]).step_by(size[0] as usize) {
                            corners.push([x, y, z]);
                        }
                    }
                }
            }
        }
        let members = |corner: [u32; 3]| {
            let ranks = 0..count as u32;
            let place = move |rank: u32| {
                let offset = [rank % size[0], rank / size[0] % size[1], rank / size[0] / size[1]];
                std::array::from_fn(|axis| corner[axis] + offset[axis])
            };
            ranks.map(place).collect()
        };
        Ok(corners.into_iter().map(members).collect())
    }
}

fn volume(extents: [u32; 3]) -> u64 {
    extents.iter().fold(1, |volume, extent| volume.saturating_mul((*extent).into()))
}

fn pack(kernel: &Kernel, launch: &Launch) -> Result<Vec<u8>, FaultKind> {
    let (needed, given) = (kernel.params.len(), launch.params.len());
    if needed != given {
        return Err(FaultKind::Launch(format!("{given} arguments, the kernel has {needed}")));
    }
    let mut packed = Vec::new();
    for (index, (decl, param)) in kernel.params.iter().zip(&launch.params).enumerate() {
        let bytes = param.bytes();
        if bytes.len() as u64 != decl.bytes {
            let (found, needed) = (bytes.len(), decl.bytes);
            let reason = format!("argument {index} has {found} bytes, the kernel takes {needed}");
            return Err(FaultKind::Launch(reason));
        }
        packed.resize(decl.offset as usize, 0);
        packed.extend_from_slice(&bytes);
    }
    Ok(packed)
}
