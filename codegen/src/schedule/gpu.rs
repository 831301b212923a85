//! Tiles for GPUs: which are legal.
//!
//! What a tile needs of registers is a bound on the sums of a thread: those and about a hundred
//! registers more must be there for each thread of a block.

mod near;

use ir::{CudaArch, CudaTarget, QUANT_GROUP};

use super::Family;
use crate::kernels::gemm::{
    PANEL, Tile, Variant, fp8, quantized, simt::Rows, sm80, sm90a, tiled::simt::Tile as Fma,
};

/// Registers of a thread besides its sums.
const OTHER_REGISTERS: i64 = 96;

/// Products that tiles are found for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// What their weights are made of.
    pub family: Family,
    /// Whether panels of two weights alternate.
    pub gated: bool,
    /// The GPU.
    pub gpu: CudaTarget,
}

impl Place {
    /// Checks a list of variants: each legal, those for fewer rows first, the last for any number.
    ///
    /// # Errors
    /// A sentence that names the tile and the field, and says what it may be.
    pub fn check(&self, tiles: &[Variant]) -> Result<(), String> {
        let Some((last, others)) = tiles.split_last() else {
            return Err("has no tiles".into());
        };
        let mut before = 0;
        for (number, variant) in (1..).zip(tiles) {
            let wrong = |why: String| Err(format!("tile {number}: {why}"));
            if let Err(why) = self.check_tile(variant.tile) {
                return wrong(why);
            }
            let most = variant.tile.most_rows();
            match variant.rows {
                Some(rows) if rows <= before => {
                    return wrong(format!("`rows` is {rows}; the tile before is for as many"));
                }
                Some(rows) => before = rows,
                None if number <= others.len() => {
                    return wrong("has no `rows`, but is not the last".into());
                }
                None => {}
            }
            if let Some(most) = most
                && variant.rows.is_none_or(|rows| rows > most)
            {
                return wrong(format!("`rows` must be at most its `m`, {most}"));
            }
        }
        match last.rows {
            Some(rows) => Err(format!(
                "the last tile is for {rows} rows at most; one without `rows` must follow"
            )),
            None => Ok(()),
        }
    }

    /// Whether there is such a kernel.
    ///
    /// # Errors
    /// A sentence that names the field and says what it may be.
    pub fn check_tile(&self, tile: Tile) -> Result<(), String> {
        let (name, families): (_, &[Family]) = match tile {
            Tile::Mma(_) => ("mma", &[Family::Bf16, Family::F16]),
            Tile::Wgmma(_) => ("wgmma", &[Family::Bf16, Family::F16]),
            Tile::Stream(_) => ("stream", &[Family::Q8, Family::Q4]),
            Tile::Lanes(_) => ("lanes", &[Family::Q8, Family::Q4]),
            Tile::Fp8(_) => ("fp8", &[Family::Fp8]),
            Tile::Rows(_) => ("rows", &[Family::F32]),
            Tile::Fma(_) => ("fma", &[Family::F32]),
        };
        if !families.contains(&self.family) {
            let (known, own) = (self.kernels().join(" and "), self.family.name());
            return Err(format!("kernel `{name}`: products of {own} have {known}"));
        }
        let is_hopper = self.gpu.arch == CudaArch::Sm90a;
        if matches!(tile, Tile::Wgmma(_) | Tile::Fp8(_)) && !is_hopper {
            return Err(format!("kernel `{name}` is for sm_90a"));
        }
        match tile {
            Tile::Mma(tile) => self.check_mma(tile),
            Tile::Wgmma(tile) => self.check_wgmma(tile),
            Tile::Stream(stream) => self.check_stream(stream),
            Tile::Lanes(tile) => self.check_lanes(tile),
            Tile::Fp8(tile) => self.check_fp8(tile),
            Tile::Rows(Rows { m }) => one_of("m", m, &[1, 4, 16]),
            Tile::Fma(tile) => check_fma(tile),
        }
    }

    fn kernels(&self) -> &'static [&'static str] {
        match (self.family, self.gpu.arch) {
            (Family::F32, _) => &["`rows`", "`fma`"],
            (Family::Bf16 | Family::F16, CudaArch::Sm80) => &["`mma`"],
            (Family::Bf16 | Family::F16, CudaArch::Sm90a) => &["`mma`", "`wgmma`"],
            (Family::Q8 | Family::Q4, _) => &["`stream`", "`lanes`"],
            (Family::Fp8, _) => &["`fp8`, on sm_90a"],
        }
    }

    fn check_mma(&self, tile: sm80::Tile) -> Result<(), String> {
        let sm80::Tile { m, n, k, warps, stages, copiers } = tile;
        power("m", m, 16, 256)?;
        power("n", n, 32, 256)?;
        one_of("k", k, &[32, 64, 128])?;
        one_of("copiers", copiers, &[0, 1, 2, 4])?;
        self.check_warps([m, n], [16, 16], warps)?;
        within("stages", stages, 2, 16)?;
        registers(m * n, warps[0] * warps[1], copiers, 128)?;
        self.check_shared(stages * 2 * k * (m + n), self.shared())
    }

    fn check_wgmma(&self, tile: sm90a::Tile) -> Result<(), String> {
        let sm90a::Tile { n, stages } = tile;
        multiple("n", n, 32, 256)?;
        within("stages", stages, 2, 12)?;
        self.check_shared(stages * wgmma_stage(n), self.shared())
    }

    fn check_stream(&self, stream: quantized::Stream) -> Result<(), String> {
        one_of("m", stream.m, &[8, 16])?;
        let bytes = stream.ahead_bytes;
        if !(64..=512).contains(&bytes) || bytes % 64 != 0 {
            return Err(format!("`ahead_bytes` is {bytes}; it must be a multiple of 64 up to 512"));
        }
        Ok(())
    }

    fn check_lanes(&self, tile: quantized::Tile) -> Result<(), String> {
        let quantized::Tile { m, n, warps, stages } = tile;
        power("m", m, 16, 256)?;
        power("n", n, 32, 256)?;
        self.check_warps([m, n], [8, 16], warps)?;
        within("stages", stages, 2, 8)?;
        registers(m * n, warps[0] * warps[1], 0, 64)?;
        // Two stages at least, and the totals of all parts.
        self.check_shared(2 * self.lanes_stage(m, n) + 4 * m * n, self.shared())
    }

    fn check_fp8(&self, tile: fp8::Tile) -> Result<(), String> {
        let fp8::Tile { warpgroups, n, blocks, stages } = tile;
        one_of("warpgroups", warpgroups, &[1, 2])?;
        multiple("n", n, 32, 192)?;
        one_of("blocks", blocks, &[1, 2, 4])?;
        let (sums, most) = ((1 + blocks) * n / 2, if warpgroups == 1 { 128 } else { 192 });
        if sums > most {
            return Err(format!(
                "`n` and `blocks` give a thread {sums} sums; there are registers for {most}"
            ));
        }
        if !(2 * blocks..=12).contains(&stages) {
            let least = 2 * blocks;
            return Err(format!("`stages` is {stages}; it must be {least} to 12"));
        }
        self.check_shared(stages * fp8_stage(warpgroups, n), self.fp8_shared(warpgroups))
    }

    /// Warps divide the tile, each into so many rows and columns or a multiple of that.
    fn check_warps(
        &self,
        [m, n]: [i64; 2],
        [rows, columns]: [i64; 2],
        warps: [i64; 2],
    ) -> Result<(), String> {
        let columns = if self.gated { 2 * PANEL } else { columns };
        let fits = |size: i64, each: i64, warps: i64| {
            (1..=8).contains(&warps) && warps.count_ones() == 1 && size % (each * warps) == 0
        };
        if fits(m, rows, warps[0]) && fits(n, columns, warps[1]) {
            return Ok(());
        }
        Err(format!(
            "`warps` is {warps:?}; a tile of {m} by {n} is divided by powers of two into pieces of \
             {rows} by {columns} or multiples of it"
        ))
    }

    /// Shared memory of a block, without what barriers take.
    fn shared(&self) -> i64 {
        let barriers = if self.gpu.arch == CudaArch::Sm90a { 3 << 10 } else { 0 };
        i64::from(self.gpu.shared_bytes) - barriers
    }

    /// The same where two blocks share it.
    fn fp8_shared(&self, warpgroups: i64) -> i64 {
        if warpgroups == 1 { self.shared() / 2 } else { self.shared() }
    }

    fn check_shared(&self, bytes: i64, most: i64) -> Result<(), String> {
        if bytes <= most {
            return Ok(());
        }
        Err(format!("needs {bytes} bytes of shared memory; a block may have {most}"))
    }

    fn lanes_stage(&self, m: i64, n: i64) -> i64 {
        let group = i64::try_from(QUANT_GROUP).expect("small");
        let bits = if self.family == Family::Q4 { 4 } else { 8 };
        m * group * 2 + n / PANEL * (64 + 128 * bits)
    }
}

/// Bytes of a stage of 128 rows, and its barriers.
const fn wgmma_stage(n: i64) -> i64 {
    128 * (128 + n) + 16
}

/// Bytes of a stage, with its scales and barriers.
const fn fp8_stage(warpgroups: i64, n: i64) -> i64 {
    128 * (64 * warpgroups + n) + 4 * n + 16
}

fn check_fma(tile: Fma) -> Result<(), String> {
    let Fma { warps: [along, across], rows } = tile;
    one_of("thread_rows", rows, &[4, 8])?;
    // A stage of eight steps over k is shared out evenly.
    if ![1, 2].contains(&along) || ![1, 2, 4].contains(&across) || 2 * across > rows {
        return Err(format!(
            "`warps` is [{along}, {across}]; it must be 1 or 2, and 1, 2 or, of eight \
             `thread_rows`, 4"
        ));
    }
    Ok(())
}

/// Checks that sums fit in the registers of the threads that have them.
fn registers(sums: i64, warps: i64, copiers: i64, most: i64) -> Result<(), String> {
    let each = sums / (32 * warps);
    let threads = 32 * (warps + copiers);
    if each <= most && (each + OTHER_REGISTERS) * threads <= 65536 {
        return Ok(());
    }
    Err(format!(
        "`warps` leaves each of {threads} threads {each} sums, for which there are no registers"
    ))
}

fn within(name: &str, value: i64, least: i64, most: i64) -> Result<(), String> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(format!("`{name}` is {value}; it must be {least} to {most}"))
}

fn one_of(name: &str, value: i64, known: &[i64]) -> Result<(), String> {
    if known.contains(&value) {
        return Ok(());
    }
    let known: Vec<String> = known.iter().map(ToString::to_string).collect();
    Err(format!("`{name}` is {value}; it must be one of {}", known.join(", ")))
}

fn power(name: &str, value: i64, least: i64, most: i64) -> Result<(), String> {
    if (least..=most).contains(&value) && value.count_ones() == 1 {
        return Ok(());
    }
    Err(format!("`{name}` is {value}; it must be a power of two, {least} to {most}"))
}

fn multiple(name: &str, value: i64, of: i64, most: i64) -> Result<(), String> {
    if (of..=most).contains(&value) && value % of == 0 {
        return Ok(());
    }
    Err(format!("`{name}` is {value}; it must be a multiple of {of} up to {most}"))
}
