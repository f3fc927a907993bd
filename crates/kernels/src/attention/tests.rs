//! Attention against double precision, on every instruction set.

use super::*;
use crate::testing::random;

/// q, k, v and out as batch x rows x heads x dim.
fn strides(heads: usize, rows: usize, dim: usize) -> Strides {
    Strides { batch: rows * heads * dim, head: dim, row: heads * dim }
}

fn check(shape: AttentionShape, causal: bool, with_bias: bool, threads: usize) {
    let s = shape;
    let (q_strides, k_strides) =
        (strides(s.heads, s.q_len, s.head_dim), strides(s.heads, s.kv_len, s.head_dim));
    let (v_strides, out_strides) =
        (strides(s.heads, s.kv_len, s.v_dim), strides(s.heads, s.q_len, s.v_dim));
    let q = random(s.batch * q_strides.batch, 1);
    let k = random(s.batch * k_strides.batch, 2);
    let v = random(s.batch * v_strides.batch, 3);
    let bias_data = random(2 * s.q_len * s.kv_len, 4);
    let bias = with_bias.then_some(AttentionBias {
        data: &bias_data,
        batch_modulo: 2,
        batch_stride: s.q_len * s.kv_len,
        head_stride: 0,
        row_stride: s.kv_len,
    });
    let pool = Pool::new(threads);
    for isa in Isa::available() {
        let mut y = vec![f32::NAN; s.batch * out_strides.batch];
        let mut scratch = vec![f32::NAN; scratch_len_with_isa(isa, &s, threads)];
        attention_with_isa(
            isa,
            &s,
            (&q, q_strides),
            (&k, k_strides),
            (&v, v_strides),
            0.7,
            bias,
            causal,
            (&mut y, out_strides),
            &mut scratch,
            &pool,
        );
        for (b, h) in (0..s.batch).flat_map(|b| (0..s.heads).map(move |h| (b, h))) {
            for i in 0..s.q_len {
                let at = |t: Strides, r: usize| b * t.batch + h * t.head + r * t.row;
                let seen =
                    if causal { (i + 1 + s.kv_len).saturating_sub(s.q_len) } else { s.kv_len };
                let mut weights: Vec<f64> = (0..seen.min(s.kv_len))
                    .map(|j| {
                        let dot: f64 = (0..s.head_dim)
                            .map(|d| {
                                f64::from(q[at(q_strides, i) + d])
                                    * f64::from(k[at(k_strides, j) + d])
                            })
                            .sum();
                        let bias = if with_bias {
                            bias_data[(b % 2 * s.q_len + i) * s.kv_len + j]
                        } else {
                            0.0
                        };
                        (0.7 * dot + f64::from(bias)).exp()
                    })
                    .collect();
                let sum: f64 = weights.iter().sum();
                weights.iter_mut().for_each(|w| *w /= sum);
                for d in 0..s.v_dim {
                    let want: f64 = weights
                        .iter()
                        .enumerate()
                        .map(|(j, w)| w * f64::from(v[at(v_strides, j) + d]))
                        .sum();
                    let got = f64::from(y[at(out_strides, i) + d]);
                    // |v| <= 1; scores of at most 64 terms err by 64 eps times their size.
                    assert!((got - want).abs() < 2e-5, "{isa} {s:?} {b} {h} {i} {d}: {got} {want}");
                }
            }
        }
    }
}

#[test]
fn matches_double_precision() {
    let shape = |batch, heads, q_len, kv_len, head_dim, v_dim| AttentionShape {
        batch,
        heads,
        q_len,
        kv_len,
        head_dim,
        v_dim,
    };
    check(shape(1, 2, 65, 65, 32, 32), false, false, 2);
    check(shape(3, 2, 49, 49, 32, 32), false, true, 2);
    check(shape(1, 3, 7, 20, 5, 9), true, true, 1);
    check(shape(1, 1, 20, 7, 16, 8), true, false, 3);
    check(shape(2, 1, 100, 1300, 16, 24), false, true, 2);
    check(shape(1, 1, 700, 700, 8, 8), true, false, 2);
    check(shape(1, 1, 1, 1, 1, 1), false, false, 1);
}

#[test]
fn fully_masked_rows_are_zero() {
    let shape = AttentionShape { batch: 1, heads: 1, q_len: 2, kv_len: 3, head_dim: 4, v_dim: 4 };
    let (x, t) = (random(12, 1), Strides { batch: 0, head: 0, row: 4 });
    let mask = [f32::NEG_INFINITY, f32::NEG_INFINITY, f32::NEG_INFINITY, 0.0, 0.0, 0.0];
    let bias = AttentionBias {
        data: &mask,
        batch_modulo: 1,
        batch_stride: 0,
        head_stride: 0,
        row_stride: 3,
    };
    let mut y = [f32::NAN; 8];
    let mut scratch = vec![0.0; scratch_len(&shape, 1)];
    attention(
        &shape,
        (&x, t),
        (&x, t),
        (&x, t),
        1.0,
        Some(bias),
        false,
        (&mut y, t),
        &mut scratch,
        &Pool::single(),
    );
    assert_eq!(y[..4], [0.0; 4]);
    assert!(y[4..].iter().all(|v| v.is_finite() && *v != 0.0));
}
