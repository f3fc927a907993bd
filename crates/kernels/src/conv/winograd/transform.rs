//! The transforms of F(2x2, 3x3) and F(4x4, 3x3).

use crate::isa::Isa;
use crate::simd::{self, Kernel, Simd};

/// Which transform.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tiling {
    /// F(2x2, 3x3).
    Two,
    /// F(4x4, 3x3).
    Four,
}

impl Tiling {
    /// Side of the output tile.
    pub(super) fn side(self) -> usize {
        match self {
            Tiling::Two => 2,
            Tiling::Four => 4,
        }
    }

    /// Elements of a transformed tile.
    pub(super) fn points(self) -> usize {
        (self.side() + 2).pow(2)
    }
}

/// One dimension of a transform between input tiles of IN and output tiles of OUT elements.
pub(super) trait Transform<const IN: usize, const OUT: usize>: Copy + Send + Sync {
    /// The filter's transform.
    const G: [[f64; 3]; IN];

    /// B^T x.
    fn input<S: Simd>(self, s: S, x: [S::V; IN]) -> [S::V; IN];

    /// A^T m.
    fn output<S: Simd>(self, s: S, m: [S::V; IN]) -> [S::V; OUT];
}

/// The points 0, 1, -1 and infinity.
#[derive(Clone, Copy)]
pub(super) struct F2;

impl Transform<4, 2> for F2 {
    const G: [[f64; 3]; 4] = [[1.0, 0.0, 0.0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0.0, 0.0, 1.0]];

    #[inline(always)]
    fn input<S: Simd>(self, s: S, x: [S::V; 4]) -> [S::V; 4] {
        [s.sub(x[0], x[2]), s.add(x[1], x[2]), s.sub(x[2], x[1]), s.sub(x[3], x[1])]
    }

    #[inline(always)]
    fn output<S: Simd>(self, s: S, m: [S::V; 4]) -> [S::V; 2] {
        [s.add(m[0], s.add(m[1], m[2])), s.add(s.sub(m[1], m[2]), m[3])]
    }
}

/// The points 0, 1, -1, 2, -2 and infinity.
#[derive(Clone, Copy)]
pub(super) struct F4;

impl Transform<6, 4> for F4 {
    const G: [[f64; 3]; 6] = [
        [1.0 / 4.0, 0.0, 0.0],
        [-1.0 / 6.0, -1.0 / 6.0, -1.0 / 6.0],
        [-1.0 / 6.0, 1.0 / 6.0, -1.0 / 6.0],
        [1.0 / 24.0, 1.0 / 12.0, 1.0 / 6.0],
        [1.0 / 24.0, -1.0 / 12.0, 1.0 / 6.0],
        [0.0, 0.0, 1.0],
    ];

    #[inline(always)]
    fn input<S: Simd>(self, s: S, x: [S::V; 6]) -> [S::V; 6] {
        let k = |v: f32| s.splat(v);
        let even = s.mul_add(k(-4.0), x[2], x[4]);
        let odd = s.mul_add(k(-4.0), x[1], x[3]);
        let even2 = s.sub(x[4], x[2]);
        let odd2 = s.sub(x[3], x[1]);
        [
            s.mul_add(k(4.0), x[0], s.mul_add(k(-5.0), x[2], x[4])),
            s.add(even, odd),
            s.sub(even, odd),
            s.mul_add(k(2.0), odd2, even2),
            s.mul_add(k(-2.0), odd2, even2),
            s.mul_add(k(4.0), x[1], s.mul_add(k(-5.0), x[3], x[5])),
        ]
    }

    #[inline(always)]
    fn output<S: Simd>(self, s: S, m: [S::V; 6]) -> [S::V; 4] {
        let k = |v: f32| s.splat(v);
        let (sum, difference) = (s.add(m[1], m[2]), s.sub(m[1], m[2]));
        let (sum2, difference2) = (s.add(m[3], m[4]), s.sub(m[3], m[4]));
        [
            s.add(s.add(m[0], sum), sum2),
            s.mul_add(k(2.0), difference2, difference),
            s.mul_add(k(4.0), sum2, sum),
            s.add(s.mul_add(k(8.0), difference2, difference), m[5]),
        ]
    }
}

/// G g G^T of the 3x3 filters of one input channel and a panel of output channels, in double
/// precision.
pub(super) struct Filters<'a> {
    /// Weights (c_out, c_in, 3, 3), from the panel's first output channel on.
    pub(super) weight: &'a [f32],
    pub(super) c_in: usize,
    /// Output channels of the panel, and as many with padding.
    pub(super) columns: usize,
    pub(super) width: usize,
    /// The panel.
    pub(super) out: &'a mut [f32],
}

/// The widest panel of any instruction set.
const MAX_WIDTH: usize = 64;

impl Filters<'_> {
    pub(super) fn transform<T: Transform<IN, OUT>, const IN: usize, const OUT: usize>(
        self,
        isa: Isa,
        _: T,
    ) {
        simd::dispatch(isa, TransformFilters::<T, IN, OUT>(self, std::marker::PhantomData));
    }
}

struct TransformFilters<'a, T, const IN: usize, const OUT: usize>(
    Filters<'a>,
    std::marker::PhantomData<T>,
);

impl<T: Transform<IN, OUT>, const IN: usize, const OUT: usize> Kernel
    for TransformFilters<'_, T, IN, OUT>
{
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let f = self.0;
        let columns = f.columns;
        assert!(columns <= MAX_WIDTH, "a panel is at most MAX_WIDTH wide");
        for i in 0..f.c_in {
            // One element of all filters side by side.
            let mut g = [[0.0f64; MAX_WIDTH]; 9];
            for (o, filters) in f.weight.chunks(f.c_in * 9).take(columns).enumerate() {
                for (g, &w) in g.iter_mut().zip(&filters[i * 9..][..9]) {
                    g[o] = f64::from(w);
                }
            }
            for (row, left) in T::G.iter().enumerate() {
                let mut half = [[0.0f64; MAX_WIDTH]; 3];
                for (j, half) in half.iter_mut().enumerate() {
                    for o in 0..columns {
                        half[o] = (0..3).map(|k| left[k] * g[k * 3 + j][o]).sum();
                    }
                }
                for (column, right) in T::G.iter().enumerate() {
                    let point = row * IN + column;
                    let out = &mut f.out[(point * f.c_in + i) * f.width..][..columns];
                    for (o, out) in out.iter_mut().enumerate() {
                        *out = (0..3).map(|k| half[k][o] * right[k]).sum::<f64>() as f32;
                    }
                }
            }
        }
    }
}
