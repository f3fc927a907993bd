//! Transposition of n-dimensional arrays of plain elements.

use crate::pool::Pool;

/// y = x with dimension i of y being dimension perm[i] of x; elements of 1, 2, 4 or 8 bytes.
pub fn permute(
    x: &[u8],
    elem_size: usize,
    shape: &[usize],
    perm: &[usize],
    y: &mut [u8],
    pool: &Pool,
) {
    let _ = pool;
    let rank = shape.len();
    assert!(matches!(elem_size, 1 | 2 | 4 | 8), "elements have 1, 2, 4 or 8 bytes");
    assert!(perm.len() == rank && (0..rank).all(|d| perm.contains(&d)), "perm is a permutation");
    let count: usize = shape.iter().product();
    assert!(
        x.len() == count * elem_size && y.len() == x.len(),
        "x and y have the shape's elements"
    );
    let mut strides = vec![elem_size; rank];
    for d in (0..rank.saturating_sub(1)).rev() {
        strides[d] = strides[d + 1] * shape[d + 1];
    }
    let mut index = vec![0; rank];
    for y in y.chunks_exact_mut(elem_size) {
        let from: usize = (0..rank).map(|d| index[d] * strides[perm[d]]).sum();
        y.copy_from_slice(&x[from..from + elem_size]);
        for d in (0..rank).rev() {
            index[d] += 1;
            if index[d] < shape[perm[d]] {
                break;
            }
            index[d] = 0;
        }
    }
}
