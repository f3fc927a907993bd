//! Tensors: a type and its bytes, row-major.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{DType, Element, Storage};

/// Element type and concrete shape. Row-major, no strides.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TensorType {
    /// Element type.
    pub dtype: DType,
    /// Dimensions, outermost first. Empty for a scalar.
    pub shape: Vec<usize>,
}

impl TensorType {
    /// A type from its parts.
    pub fn new(dtype: DType, shape: impl Into<Vec<usize>>) -> TensorType {
        TensorType { dtype, shape: shape.into() }
    }

    /// An f32 type of this shape.
    pub fn f32(shape: impl Into<Vec<usize>>) -> TensorType {
        TensorType::new(DType::F32, shape)
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// True when a dimension is 0.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of bytes.
    pub fn bytes(&self) -> usize {
        self.len() * self.dtype.size()
    }

    /// Number of dimensions.
    pub fn rank(&self) -> usize {
        self.shape.len()
    }

    /// The element count, or `None` when count or bytes overflow `usize`: for sizes that come
    /// from a file.
    pub fn checked_bytes(&self) -> Option<usize> {
        self.shape.iter().try_fold(self.dtype.size(), |n, &d| n.checked_mul(d))
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[", self.dtype)?;
        for (i, d) in self.shape.iter().enumerate() {
            write!(f, "{}{d}", if i == 0 { "" } else { "x" })?;
        }
        f.write_str("]")
    }
}

/// Exact zeros, of either sign.
pub fn count_zeros(data: &[f32]) -> usize {
    // Counts of 32 bits per part, so that the compiler counts in vectors.
    data.chunks(1 << 16)
        .map(|part| part.iter().map(|v| u32::from(*v == 0.0)).sum::<u32>() as usize)
        .sum()
}

/// A tensor that owns (or shares) its bytes. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct Tensor {
    ty: TensorType,
    storage: Storage,
}

impl Tensor {
    /// A tensor from its type and exactly `ty.bytes()` bytes; `None` when the lengths differ.
    pub fn new(ty: TensorType, storage: Storage) -> Option<Tensor> {
        (ty.checked_bytes() == Some(storage.len())).then_some(Tensor { ty, storage })
    }

    /// All zeros.
    pub fn zeros(ty: TensorType) -> Tensor {
        let storage = Storage::zeroed(ty.bytes());
        Tensor { ty, storage }
    }

    /// A tensor that `make` makes of this one whenever it is read and no [`Tensor::reader`] that
    /// was read lives.
    pub fn made(
        self,
        ty: TensorType,
        make: impl Fn(Tensor) -> Tensor + Send + Sync + 'static,
    ) -> Tensor {
        let (bytes, base) = (ty.bytes(), self.ty);
        let make = move |storage| make(Tensor { ty: base.clone(), storage }).storage;
        Tensor { ty, storage: self.storage.made(bytes, make) }
    }

    /// The same tensor for somebody to read: where it is made when it is read, the memory goes
    /// with its readers.
    pub fn reader(self: &Arc<Tensor>) -> Arc<Tensor> {
        if self.storage.is_made() { Arc::new(Tensor::clone(self)) } else { self.clone() }
    }

    /// A tensor holding a copy of `data`.
    ///
    /// # Panics
    /// When `data` is not as long as `shape` says.
    pub fn from_slice<T: Element>(shape: impl Into<Vec<usize>>, data: &[T]) -> Tensor {
        let ty = TensorType::new(T::DTYPE, shape);
        Tensor::new(ty, Storage::copy_from(bytemuck::cast_slice(data)))
            .expect("data has the length that the shape says")
    }

    /// A boolean tensor.
    pub fn from_bools(shape: impl Into<Vec<usize>>, data: &[bool]) -> Tensor {
        let bytes: Vec<u8> = data.iter().map(|&b| u8::from(b)).collect();
        Tensor::new(TensorType::new(DType::Bool, shape), Storage::copy_from(&bytes))
            .expect("data has the length that the shape says")
    }

    /// A scalar.
    pub fn scalar<T: Element>(value: T) -> Tensor {
        Tensor::from_slice([], &[value])
    }

    /// Its type.
    pub fn ty(&self) -> &TensorType {
        &self.ty
    }

    /// Its dimensions.
    pub fn shape(&self) -> &[usize] {
        &self.ty.shape
    }

    /// Its element type.
    pub fn dtype(&self) -> DType {
        self.ty.dtype
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        self.storage.bytes()
    }

    /// Its bytes for writing (copied first if shared).
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.storage.bytes_mut()
    }

    /// Lets go of its memory if it is mapped from a file, which will be read again if need be.
    pub fn release(&self) {
        self.storage.release();
    }

    /// The elements, or `None` when the element type is another.
    pub fn as_slice<T: Element>(&self) -> Option<&[T]> {
        (self.ty.dtype == T::DTYPE).then(|| bytemuck::cast_slice(self.bytes()))
    }

    /// The elements for writing, or `None` when the element type is another.
    pub fn as_slice_mut<T: Element>(&mut self) -> Option<&mut [T]> {
        (self.ty.dtype == T::DTYPE).then(|| bytemuck::cast_slice_mut(self.storage.bytes_mut()))
    }

    /// The same bytes under another shape of equal length; `None` when the lengths differ.
    pub fn reshaped(&self, shape: impl Into<Vec<usize>>) -> Option<Tensor> {
        let ty = TensorType::new(self.ty.dtype, shape);
        (ty.checked_bytes()? == self.ty.bytes())
            .then(|| Tensor { ty, storage: self.storage.clone() })
    }

    /// f16 elements widened to f32; `None` for other types.
    pub fn widened(&self) -> Option<Tensor> {
        let floats: Vec<f32> = self.as_slice::<half::f16>()?.iter().map(|h| h.to_f32()).collect();
        Some(Tensor::from_slice(self.shape(), &floats))
    }

    /// Integer elements widened to i64 (booleans as 0 and 1); `None` for floats and for u64
    /// values over `i64::MAX`.
    pub fn to_i64s(&self) -> Option<Vec<i64>> {
        let bytes = self.bytes();
        fn widen<T: Element + Into<i64>>(bytes: &[u8]) -> Vec<i64> {
            bytemuck::cast_slice::<u8, T>(bytes).iter().map(|&v| v.into()).collect()
        }
        Some(match self.ty.dtype {
            DType::I64 => widen::<i64>(bytes),
            DType::I32 => widen::<i32>(bytes),
            DType::U32 => widen::<u32>(bytes),
            DType::I16 => widen::<i16>(bytes),
            DType::U16 => widen::<u16>(bytes),
            DType::I8 => widen::<i8>(bytes),
            DType::U8 | DType::Bool => widen::<u8>(bytes),
            DType::U64 => bytemuck::cast_slice::<u8, u64>(bytes)
                .iter()
                .map(|&v| i64::try_from(v).ok())
                .collect::<Option<_>>()?,
            DType::F16 | DType::F32 | DType::F64 => return None,
        })
    }

    /// Borrowed form.
    pub fn view(&self) -> TensorRef<'_> {
        TensorRef { dtype: self.ty.dtype, shape: &self.ty.shape, bytes: self.bytes() }
    }

    /// Borrowed form for writing.
    pub fn view_mut(&mut self) -> TensorMut<'_> {
        TensorMut { dtype: self.ty.dtype, shape: &self.ty.shape, bytes: self.storage.bytes_mut() }
    }
}

impl PartialEq for Tensor {
    /// Bitwise equality of type and contents.
    fn eq(&self, other: &Tensor) -> bool {
        self.ty == other.ty && self.bytes() == other.bytes()
    }
}

/// A borrowed tensor.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct TensorRef<'a> {
    pub dtype: DType,
    pub shape: &'a [usize],
    pub bytes: &'a [u8],
}

impl<'a> TensorRef<'a> {
    /// The elements.
    ///
    /// # Panics
    /// When the element type is another: a kernel was built for another type than it is run on.
    pub fn slice<T: Element>(&self) -> &'a [T] {
        assert_eq!(self.dtype, T::DTYPE, "kernel reads the type it was built for");
        bytemuck::cast_slice(self.bytes)
    }
}

/// A tensor borrowed for writing.
#[derive(Debug)]
#[allow(missing_docs)]
pub struct TensorMut<'a> {
    pub dtype: DType,
    pub shape: &'a [usize],
    pub bytes: &'a mut [u8],
}

impl TensorMut<'_> {
    /// The elements for writing.
    ///
    /// # Panics
    /// When the element type is another: a kernel was built for another type than it is run on.
    pub fn slice_mut<T: Element>(&mut self) -> &mut [T] {
        assert_eq!(self.dtype, T::DTYPE, "kernel writes the type it was built for");
        bytemuck::cast_slice_mut(self.bytes)
    }
}
