//! Axes, sizes and broadcasting: arithmetic on numbers that come from files, always checked.

use super::OpError;

/// The axis that ONNX means by `axis`, which may count from the end.
///
/// # Errors
/// When it lies outside the rank.
pub fn axis(axis: i64, rank: usize) -> Result<usize, OpError> {
    let signed = i64::try_from(rank).unwrap_or(i64::MAX);
    let from_start = if axis < 0 { axis.checked_add(signed) } else { Some(axis) };
    from_start.and_then(|a| usize::try_from(a).ok()).filter(|&a| a < rank).ok_or_else(|| {
        OpError::invalid(format!("axis {axis} is out of range for a tensor of rank {rank}"))
    })
}

/// [`axis`] for a list in which no axis may appear twice.
///
/// # Errors
/// When one lies outside the rank or appears twice.
pub fn axes(list: &[i64], rank: usize) -> Result<Vec<usize>, OpError> {
    let mut result = Vec::with_capacity(list.len().min(rank));
    for &a in list {
        let a = axis(a, rank)?;
        if result.contains(&a) {
            return Err(OpError::invalid(format!("axis {a} is given twice")));
        }
        result.push(a);
    }
    Ok(result)
}

/// A dimension from a file's integer.
///
/// # Errors
/// When it is negative.
pub fn dim(value: i64) -> Result<usize, OpError> {
    usize::try_from(value)
        .map_err(|_| OpError::invalid(format!("dimension {value} is negative or too large")))
}

/// Product of dimensions.
///
/// # Errors
/// When it exceeds `isize::MAX`, more than any memory holds.
pub fn product(dims: &[usize]) -> Result<usize, OpError> {
    dims.iter()
        .try_fold(1usize, |n, &d| n.checked_mul(d))
        .filter(|&n| n <= isize::MAX as usize)
        .ok_or_else(|| OpError::invalid(format!("a tensor of shape {dims:?} is too large")))
}

/// The shape to which numpy's rules broadcast all of `shapes`.
///
/// # Errors
/// When they do not broadcast.
pub fn broadcast<'a>(
    shapes: impl IntoIterator<Item = &'a [usize]> + Clone,
) -> Result<Vec<usize>, OpError> {
    let rank = shapes.clone().into_iter().map(<[usize]>::len).max().unwrap_or(0);
    let mut out = vec![1; rank];
    for shape in shapes.clone() {
        for (o, &d) in out[rank - shape.len()..].iter_mut().zip(shape) {
            if *o == 1 {
                *o = d;
            } else if d != 1 && d != *o {
                let all: Vec<_> = shapes.into_iter().collect();
                return Err(OpError::invalid(format!("shapes {all:?} do not broadcast")));
            }
        }
    }
    Ok(out)
}

/// The greatest common divisor; of 0 and a number, the number.
pub(crate) fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Row-major strides, in elements.
pub fn strides(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1usize; shape.len()];
    for d in (0..shape.len().saturating_sub(1)).rev() {
        strides[d] = strides[d + 1].saturating_mul(shape[d + 1]);
    }
    strides
}

/// The first axis longer than 1, along which a tensor divides into contiguous parts.
pub fn first_long(shape: &[usize]) -> Option<usize> {
    shape.iter().position(|&d| d > 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_count_from_both_ends() {
        assert_eq!(axis(-1, 4), Ok(3));
        assert_eq!(axis(3, 4), Ok(3));
        assert!(axis(4, 4).is_err());
        assert!(axis(-5, 4).is_err());
        assert!(axis(i64::MIN, 4).is_err());
        assert!(axis(0, 0).is_err());
        assert!(axes(&[1, -3], 4).is_err());
        assert_eq!(axes(&[-1, 0], 3), Ok(vec![2, 0]));
    }

    #[test]
    fn broadcasting_follows_numpy() {
        let b = |shapes: &[&[usize]]| broadcast(shapes.iter().copied());
        assert_eq!(b(&[&[2, 1, 4], &[3, 1]]), Ok(vec![2, 3, 4]));
        assert_eq!(b(&[&[], &[0, 1], &[1, 5]]), Ok(vec![0, 5]));
        assert!(b(&[&[2], &[3]]).is_err());
        assert!(b(&[&[0], &[3]]).is_err());
    }

    #[test]
    fn sizes_do_not_wrap() {
        assert!(product(&[usize::MAX, 2]).is_err());
        assert_eq!(product(&[]), Ok(1));
        assert!(dim(-1).is_err());
        assert_eq!(strides(&[2, 3, 4]), vec![12, 4, 1]);
        assert_eq!(first_long(&[1, 1, 5, 2]), Some(2));
    }
}
