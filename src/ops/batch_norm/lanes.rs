//! Who sums the rows of a batch norm (`shaders/lib/lanes.wgsl`).
//!
//! A large GPU hides the latency of memory by loads that are under way together. There the lanes of
//! a workgroup share the rows of a part, so that each has all of its loads, or half of them, under
//! way at once, and so many parts are merged in one go that one dispatch does. A processor pays for
//! barriers and has no latency to hide: an invocation sums a part alone.

use super::super::sum_rows::{FAN_IN, chunk_rows};
use super::super::{Kernel, Target};

/// Invocations of a workgroup whose lanes share rows: all that WebGPU guarantees.
const GROUP: usize = Target::WEBGPU.max_invocations as usize;

/// Vec4s of columns that a workgroup reads beside each other, where there are as many: 128 bytes
/// of f16, which is a line of most caches.
const BESIDE: usize = 16;

/// Parts that lanes leave of rows: a workgroup for each keeps a large GPU busy (132
/// multiprocessors with a few workgroups each), and one merge takes them all.
const PARTS: usize = 1024;

/// Invocations with eight loads each that are enough to wait for memory together: 1 MB in f16.
const ALONE: usize = 16_384;

/// Parts that a lane merges at most, two rounds of [`Target::rows_ahead`].
const MERGED: usize = 16;

/// How the rows of a part are shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lanes {
    /// Vec4s of columns of a workgroup.
    width: usize,
    /// Lanes of a part; `None` without workgroups that share.
    lanes: Option<usize>,
}

impl Lanes {
    fn shared(width: usize) -> Self {
        Self { width, lanes: Some(GROUP / width) }
    }

    /// For sums of `rows` rows of `c4` vec4s: who sums, and the rows of a part.
    pub(super) fn of_rows(target: &Target, rows: usize, c4: usize) -> (Self, usize) {
        if target.software {
            return (Self { width: 1, lanes: None }, chunk_rows(rows));
        }
        let width = c4.next_power_of_two().min(BESIDE);
        let lanes = GROUP / width;
        let round = target.rows_ahead() as usize;
        let each = rows.div_ceil(lanes * PARTS).next_multiple_of(round);
        (Self::shared(width), lanes * each)
    }

    /// For sums of `parts` parts of `chunk` rows: an invocation sums a part alone where its lanes
    /// had less than one round of loads each and met for it, and the parts are enough to fill a
    /// GPU.
    pub(super) fn of_given(target: &Target, parts: usize, chunk: usize, c4: usize) -> Self {
        let width = c4.next_power_of_two().min(BESIDE);
        let idle = chunk < GROUP / width * target.rows_ahead() as usize;
        if target.software || idle && parts * c4 >= ALONE {
            return Self { width: 1, lanes: None };
        }
        Self::shared(width)
    }

    /// For a merge of so many parts of `c4` vec4s: two for each lane if there are lanes enough. The
    /// fewer columns a workgroup has, the more multiprocessors take part.
    pub(super) fn of_parts(target: &Target, parts: usize, c4: usize) -> Self {
        if target.software {
            return Self { width: 1, lanes: None };
        }
        let lanes = parts.div_ceil(2).next_power_of_two().min(GROUP);
        Self::shared((GROUP / lanes).min(c4.next_power_of_two()))
    }

    /// Most parts that one merge takes.
    pub(super) fn most(target: &Target) -> usize {
        if target.software { FAN_IN } else { GROUP * MERGED }
    }

    /// Sets the constants of `lib/lanes.wgsl` and `lib/ahead.wgsl`.
    pub(super) fn set(self, target: &Target, kernel: Kernel) -> Kernel {
        let kernel = kernel.set("AHEAD", target.rows_ahead()).set("SHARED", self.lanes.is_some());
        match self.lanes {
            Some(lanes) => kernel.set("WG", GROUP).set("WIDTH", self.width).set("LANES", lanes),
            None => kernel,
        }
    }

    /// The grid for so many parts of `c4` vec4s.
    pub(super) fn grid(self, target: &Target, parts: usize, c4: usize) -> [u32; 3] {
        match self.lanes {
            Some(_) => target.groups_1d(parts * c4.div_ceil(self.width)),
            None => target.grid_1d(parts * c4),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of every number of rows and columns each lane has its share, and one merge takes what
    /// lanes leave.
    #[test]
    fn lanes_fill_workgroups_and_leave_few_parts() {
        let target = Target::WEBGPU;
        for rows in [1, 2, 7, 35, 4096, 262_144, 1 << 25] {
            for c4 in [1, 2, 9, 16, 128, 512] {
                let (own, chunk) = Lanes::of_rows(&target, rows, c4);
                let parts = rows.div_ceil(chunk);
                let merge = Lanes::of_parts(&target, parts, c4);
                assert!(parts <= PARTS.min(Lanes::most(&target)), "{rows} rows, {c4}: {parts}");
                for lanes in [own, merge] {
                    let Lanes { width, lanes: Some(lanes) } = lanes else {
                        panic!("a GPU's lanes share")
                    };
                    assert_eq!(width * lanes, GROUP, "{rows} rows, {c4}");
                    assert!(width.is_power_of_two() && width < 2 * c4, "{rows} rows, {c4}");
                }
                assert_eq!(chunk % own.lanes.unwrap_or(0), 0);
            }
        }
    }

    /// The maps of a ResNet-18 of width 64 at batch 256 give each of an H100's 132 multiprocessors
    /// a workgroup and more.
    #[test]
    fn a_large_gpu_is_filled() {
        let target = Target::WEBGPU;
        for (rows, c4) in [(262_144, 16), (65_536, 32), (16_384, 64), (4096, 128)] {
            let (own, chunk) = Lanes::of_rows(&target, rows, c4);
            let [x, y, z] = own.grid(&target, rows.div_ceil(chunk), c4);
            assert!(x * y * z >= 132 && z == 1, "{rows} rows, {c4}: {x} {y}");
        }
    }

    /// Where a convolution's moments are of 64 rows, 16 lanes had four rows each: an invocation
    /// takes all 64 where such parts are many, and lanes share them where they are few.
    #[test]
    fn short_parts_are_summed_alone_where_they_are_many() {
        let target = Target::WEBGPU;
        let alone = Lanes { width: 1, lanes: None };
        for (rows, c4) in [(262_144, 16), (65_536, 32), (16_384, 64)] {
            assert_eq!(Lanes::of_given(&target, rows / 64, 64, c4), alone, "{rows} rows, {c4}");
        }
        for (parts, chunk, c4) in [(64, 64, 128), (4, 64, 128), (1024, 256, 16)] {
            let shared = Lanes::of_given(&target, parts, chunk, c4);
            assert_eq!(shared, Lanes { width: 16, lanes: Some(16) }, "{parts} parts of {chunk}");
        }
    }

    #[test]
    fn a_processor_has_no_lanes() {
        let target = Target { software: true, ..Target::WEBGPU };
        let (own, chunk) = Lanes::of_rows(&target, 4096, 8);
        assert_eq!((own.lanes, chunk), (None, 64));
        assert_eq!(own, Lanes::of_parts(&target, 4096, 8));
        assert_eq!(own.grid(&target, 64, 8), [8, 1, 1]);
    }
}
