//! Launches of a kernel, whose variants are for few rows or many.

use cuda::{Address, Facts, Kernel, Launch, Param, Stream};
use ir::{CudaCode, CudaParam, CudaVariant, TensorMap};

use crate::{ExecError, executable::sizes::Sizes};

/// A kernel for launches of a limited size.
#[derive(Debug)]
pub(super) struct Variant {
    kernel: Kernel,
    limit: Option<(usize, i64)>,
    params: Vec<Given>,
    grid: [usize; 3],
    block: u32,
    cluster: u32,
    shared_bytes: u32,
    /// Whether it waits itself for what was launched before it.
    dependent: bool,
    /// Operands that it reads before that.
    early: Vec<u32>,
}

/// A parameter with its sizes by number.
#[derive(Debug)]
enum Given {
    Pointer { arg: u32, align: u32 },
    Size(usize),
    Map { map: TensorMap, extents: Vec<usize>, strides: Vec<usize> },
}

/// The variants that a device has the shared memory for, in their order.
///
/// # Errors
/// [`ExecError::SharedMemory`] if none of them is for launches of any size.
pub(super) fn runnable<'a>(
    code: &'a CudaCode,
    facts: &Facts,
) -> Result<Vec<&'a CudaVariant>, ExecError> {
    let fits = |variant: &&CudaVariant| variant.shared_bytes <= facts.shared_bytes;
    let variants: Vec<&CudaVariant> = code.variants.iter().filter(fits).collect();
    if variants.iter().any(|variant| variant.limit.is_none()) {
        return Ok(variants);
    }
    let any = code.variants.iter().filter(|variant| variant.limit.is_none());
    // The artifact has been checked: one has no limit.
    let least = any.min_by_key(|variant| variant.shared_bytes).expect("a variant");
    Err(ExecError::SharedMemory {
        kernel: least.symbol.clone(),
        bytes: least.shared_bytes,
        device: facts.name.clone(),
        most: facts.shared_bytes,
    })
}

/// Launches the first variant of a kernel that fits, on arguments and whether nothing writes to
/// each of them during a run; `follows_kernel` tells whether it comes behind a kernel of ours, not
/// a copy or a library's kernel. Whether there was anything to launch.
pub(super) fn launch(
    stream: &Stream,
    variants: &[Variant],
    sizes: &Sizes,
    (args, constant): (&[Address], &[bool]),
    follows_kernel: bool,
) -> Result<bool, ExecError> {
    let fits = |v: &&Variant| v.limit.is_none_or(|(size, most)| sizes.values[size] <= most);
    // The artifact has been checked: the last variant has no limit.
    let variant = variants.iter().find(fits).expect("a variant");
    let grid = variant.grid.map(|size| u32::try_from(sizes.values[size]).unwrap_or(u32::MAX));
    if grid.contains(&0) {
        return Ok(false);
    }
    // Without it, the launch comes behind the end of what was launched before.
    let mut early = variant.early.iter();
    let dependent = follows_kernel
        && variant.dependent
        && early.all(|arg| constant.get(*arg as usize) == Some(&true));
    let launch = Launch {
        symbol: variant.kernel.symbol().to_owned(),
        params: variant.params.iter().map(|given| given.param(sizes)).collect(),
        grid,
        block: variant.block,
        cluster: variant.cluster,
        shared_bytes: variant.shared_bytes,
        dependent,
    };
    stream.launch(&variant.kernel, &launch, args)?;
    Ok(true)
}

impl Variant {
    pub(super) fn new(
        variant: &CudaVariant,
        kernel: Kernel,
        dependent: bool,
        number: &mut impl FnMut(&ir::Dim) -> Result<usize, ExecError>,
    ) -> Result<Variant, ExecError> {
        let mut params = Vec::new();
        for param in &variant.params {
            params.push(match param {
                CudaParam::Pointer { arg, align } => Given::Pointer { arg: *arg, align: *align },
                CudaParam::Size(dim) => Given::Size(number(dim)?),
                CudaParam::Map(map) => Given::Map {
                    map: map.clone(),
                    extents: map.extents.iter().map(&mut *number).collect::<Result<_, _>>()?,
                    strides: map.strides.iter().map(&mut *number).collect::<Result<_, _>>()?,
                },
            });
        }
        let [x, y, z] = &variant.grid;
        let limit = match &variant.limit {
            Some((size, most)) => Some((number(size)?, *most)),
            None => None,
        };
        Ok(Variant {
            kernel,
            limit,
            params,
            grid: [number(x)?, number(y)?, number(z)?],
            block: variant.block,
            cluster: variant.cluster,
            shared_bytes: variant.shared_bytes,
            dependent,
            early: variant.early.clone(),
        })
    }
}

impl Given {
    fn param(&self, sizes: &Sizes) -> Param {
        let counts = |numbers: &[usize]| numbers.iter().map(|n| sizes.count(*n) as u64).collect();
        match self {
            Given::Pointer { arg, align } => Param::Pointer { arg: *arg, align: *align },
            Given::Size(size) => Param::Size(sizes.values[*size]),
            Given::Map { map, extents, strides } => Param::Map(cuda::TensorMap {
                arg: map.arg,
                dtype: map.dtype,
                extents: counts(extents),
                strides: counts(strides),
                boxes: map.boxes.clone(),
                swizzle: map.swizzle,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use ir::{CudaArch, Dim};

    use super::*;

    #[test]
    fn a_device_takes_the_variants_that_it_has_the_shared_memory_for() {
        let variant = |symbol: &str, kib: u32, most: Option<i64>| CudaVariant {
            symbol: symbol.into(),
            module: 0,
            params: Vec::new(),
            grid: [1.into(), 1.into(), 1.into()],
            block: 32,
            cluster: 1,
            shared_bytes: kib << 10,
            limit: most.map(|most| (Dim::symbol("T"), most)),
            early: Vec::new(),
        };
        let all =
            [("few", 64, Some(8)), ("some", 120, Some(64)), ("many", 160, None), ("any", 90, None)];
        let variants = all.map(|(symbol, kib, most)| variant(symbol, kib, most)).into();
        let code = CudaCode { arch: CudaArch::Sm80, variants, library: None };
        let on = |kib: u32| {
            let facts = Facts {
                name: "a GPU".into(),
                capability: (8, 9),
                driver: 13000,
                memory_bytes: 1 << 30,
                multiprocessors: 4,
                shared_bytes: kib << 10,
                l2_bytes: 1 << 20,
                clock_khz: 1,
            };
            let found = runnable(&code, &facts)?;
            Ok::<_, ExecError>(found.iter().map(|v| v.symbol.clone()).collect::<Vec<_>>())
        };
        assert_eq!(on(163).unwrap(), ["few", "some", "many", "any"]);
        assert_eq!(on(99).unwrap(), ["few", "any"]);
        let error = on(64).unwrap_err().to_string();
        assert!(error.starts_with("kernel `any` needs 92160 bytes of shared memory"), "{error}");
        assert!(error.ends_with("a block of a GPU has at most 65536"), "{error}");
    }
}
