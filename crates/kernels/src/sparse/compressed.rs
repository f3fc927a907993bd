//! Weights as lists of offsets and values, by block of input channels and output channel.

use std::ops::Range;

/// The weights of one group of a convolution.
#[derive(Clone, Debug)]
pub(crate) struct Compressed {
    rows: usize,
    blocks: Vec<Range<usize>>,
    /// Where the list of (block, row) begins; one more at the end.
    starts: Vec<u32>,
    /// Distance from the place of a tile's first pixel in the block's part of the slab.
    offsets: Vec<u16>,
    values: Vec<f32>,
}

impl Compressed {
    /// `row(channels, row, list)` adds the (offset, value) pairs of a row's nonzero weights for a
    /// block of channels to the list.
    pub(crate) fn new(
        rows: usize,
        blocks: Vec<Range<usize>>,
        mut row: impl FnMut(&Range<usize>, usize, &mut Vec<(u16, f32)>),
    ) -> Compressed {
        let mut starts = Vec::with_capacity(blocks.len() * rows + 1);
        let (mut offsets, mut values) = (Vec::new(), Vec::new());
        let mut list = Vec::new();
        let position = |values: &Vec<f32>| {
            u32::try_from(values.len()).expect("a layer has fewer than 2^32 weights")
        };
        for block in &blocks {
            for r in 0..rows {
                starts.push(position(&values));
                list.clear();
                row(block, r, &mut list);
                // The slab from front to back.
                list.sort_unstable_by_key(|&(offset, _)| offset);
                offsets.extend(list.iter().map(|&(offset, _)| offset));
                values.extend(list.iter().map(|&(_, value)| value));
            }
        }
        starts.push(position(&values));
        offsets.shrink_to_fit();
        values.shrink_to_fit();
        Compressed { rows, blocks, starts, offsets, values }
    }

    /// Output channels.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// Blocks of input channels, in order.
    pub(crate) fn blocks(&self) -> &[Range<usize>] {
        &self.blocks
    }

    pub(crate) fn nonzeros(&self) -> usize {
        self.values.len()
    }

    pub(crate) fn bytes(&self) -> usize {
        size_of_val(&self.starts[..])
            + size_of_val(&self.offsets[..])
            + size_of_val(&self.values[..])
    }

    /// A row's offsets and values in a block.
    #[inline(always)]
    pub(crate) fn row(&self, block: usize, row: usize) -> (&[u16], &[f32]) {
        let at = block * self.rows + row;
        let (start, end) = (self.starts[at] as usize, self.starts[at + 1] as usize);
        (&self.offsets[start..end], &self.values[start..end])
    }
}
