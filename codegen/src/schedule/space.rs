//! The space that a search goes through: for each size of a schedule, the values to try.

use super::{Family, Schedule};

/// One size of a schedule.
pub struct Axis {
    /// The field's name.
    pub name: &'static str,
    /// Values to try besides the default.
    pub values: &'static [u64],
    /// Whether it matters to one row; otherwise to many.
    pub few_rows: bool,
    set: fn(&mut Schedule, u64),
}

/// Every size, those that matter most first.
pub static AXES: &[Axis] = &[
    Axis {
        name: "prefetch_bytes",
        values: &[2 << 10, 4 << 10, 6 << 10, 8 << 10, 12 << 10, 16 << 10],
        few_rows: true,
        set: |s, v| s.prefetch_bytes = Some(v),
    },
    Axis {
        name: "k_block",
        values: &[128, 192, 256, 384, 512, 1024],
        few_rows: false,
        set: |s, v| s.k_block = Some(v),
    },
    Axis {
        name: "row_block",
        values: &[48, 96, 192, 384],
        few_rows: false,
        set: |s, v| s.row_block = Some(v),
    },
    Axis { name: "unroll", values: &[1, 2, 4, 8], few_rows: false, set: |s, v| s.unroll = Some(v) },
    Axis {
        name: "tile_rows",
        values: &[4, 5, 6, 8, 12],
        few_rows: false,
        set: |s, v| s.tile_rows = Some(v),
    },
    Axis {
        name: "tile_panels",
        values: &[1, 2],
        few_rows: false,
        set: |s, v| s.tile_panels = Some(v),
    },
];

impl Axis {
    /// Schedules that differ from `base` in this size alone. Not all of them fit a target, see
    /// [`Schedule::check`].
    pub fn around(&self, base: Schedule) -> impl Iterator<Item = Schedule> + '_ {
        self.values.iter().map(move |value| {
            let mut schedule = base;
            (self.set)(&mut schedule, *value);
            schedule
        })
    }

    /// Whether it is a choice that the family has.
    pub fn applies(&self, family: Family) -> bool {
        self.few_rows || !family.is_quantized()
    }
}
