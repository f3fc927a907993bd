//! TensorProto and SparseTensorProto -> Tensor.

use std::sync::Arc;

use bytes::Bytes;
use half::f16;

use super::{
    LoadErrorKind, LoadOptions,
    external::ExternalData,
    mmap::Contents,
    proto::{DataLocation, DataType, SparseTensorProto, TensorProto},
};
use crate::tensor::{DType, Element, Source, Storage, Tensor, TensorType};

#[cfg(target_endian = "big")]
compile_error!("ONNX stores tensors little-endian and SparOA uses them in place");

/// Reads tensors, with the limits and files of one model.
pub(super) struct TensorReader {
    /// The model's file.
    pub(super) model: Contents,
    pub(super) external: ExternalData,
    pub(super) max_bytes: usize,
}

/// The element type of a `TensorProto.DataType`, or why there is none.
pub(super) fn dtype(data_type: i32) -> Result<DType, String> {
    let known = DataType::try_from(data_type)
        .map_err(|_| format!("element type {data_type} is not one of ONNX's"))?;
    Ok(match known {
        DataType::Float => DType::F32,
        DataType::Float16 => DType::F16,
        DataType::Double => DType::F64,
        DataType::Int8 => DType::I8,
        DataType::Uint8 => DType::U8,
        DataType::Int16 => DType::I16,
        DataType::Uint16 => DType::U16,
        DataType::Int32 => DType::I32,
        DataType::Uint32 => DType::U32,
        DataType::Int64 => DType::I64,
        DataType::Uint64 => DType::U64,
        DataType::Bool => DType::Bool,
        other => {
            let names: Vec<_> = DType::ALL.iter().map(|d| d.name()).collect();
            return Err(format!(
                "element type {} is not supported (supported: {})",
                format!("{other:?}").to_ascii_lowercase(),
                names.join(", ")
            ));
        }
    })
}

/// The `TensorProto.DataType` of an element type.
pub(super) fn data_type(dtype: DType) -> i32 {
    let known = match dtype {
        DType::F32 => DataType::Float,
        DType::F16 => DataType::Float16,
        DType::F64 => DataType::Double,
        DType::I8 => DataType::Int8,
        DType::U8 => DataType::Uint8,
        DType::I16 => DataType::Int16,
        DType::U16 => DataType::Uint16,
        DType::I32 => DataType::Int32,
        DType::U32 => DataType::Uint32,
        DType::I64 => DataType::Int64,
        DType::U64 => DataType::Uint64,
        DType::Bool => DataType::Bool,
    };
    known.into()
}

impl TensorReader {
    /// The tensor of a message. `name` is for errors.
    pub(super) fn read(
        &mut self,
        name: &str,
        proto: &TensorProto,
    ) -> Result<Tensor, LoadErrorKind> {
        let fail = |cause: String| LoadErrorKind::Tensor { tensor: name.to_owned(), cause };
        let ty = self.checked_type(name, proto.data_type.unwrap_or(0), &proto.dims)?;
        if proto.segment.is_some() {
            return Err(fail("it is stored in segments, which nothing supports".to_owned()));
        }
        if proto.data_location == Some(DataLocation::External.into()) {
            let (raw, file) = self.external.read(name, &proto.external_data, ty.bytes())?;
            return from_raw(ty, raw, file).map_err(fail);
        }
        if !proto.external_data.is_empty() {
            return Err(fail("external data is given, but data_location is not EXTERNAL".into()));
        }
        // Some writers set an empty raw_data beside the typed field.
        match proto.raw_data.clone().filter(|raw| !raw.is_empty()) {
            Some(raw) => from_raw(ty, raw, &self.model),
            None => from_typed(ty, proto),
        }
        .map_err(fail)
    }

    /// The dense tensor of a sparse one.
    pub(super) fn read_sparse(
        &mut self,
        name: &str,
        proto: &SparseTensorProto,
    ) -> Result<Tensor, LoadErrorKind> {
        let fail =
            |cause: &str| LoadErrorKind::Tensor { tensor: name.to_owned(), cause: cause.into() };
        let (Some(values), Some(indices)) = (&proto.values, &proto.indices) else {
            return Err(fail("a sparse tensor needs values and indices"));
        };
        let ty = self.checked_type(name, values.data_type.unwrap_or(0), &proto.dims)?;
        let values = self.read(name, values)?;
        let indices = self.read(name, indices)?;
        let (Some(index), 1) = (indices.as_slice::<i64>(), values.shape().len()) else {
            return Err(fail("a sparse tensor has a vector of values and i64 indices"));
        };
        let (count, rank, size) = (values.ty().len(), ty.rank(), ty.dtype.size());
        // Either one linear index per value, or one index per value and dimension.
        let coordinates: &[usize] = match indices.shape() {
            [n] if *n == count => &[ty.len()],
            [n, r] if *n == count && *r == rank && rank > 0 => &ty.shape,
            _ => return Err(fail("indices must have the shape [values] or [values, rank]")),
        };
        let mut dense = Tensor::zeros(ty.clone());
        let (target, source) = (dense.bytes_mut(), values.bytes());
        for (i, at) in index.chunks_exact(coordinates.len()).enumerate() {
            let mut linear = 0;
            for (&k, &dim) in at.iter().zip(coordinates) {
                match usize::try_from(k) {
                    Ok(k) if k < dim => linear = linear * dim + k,
                    _ => return Err(fail("an index is outside the shape")),
                }
            }
            target[linear * size..][..size].copy_from_slice(&source[i * size..][..size]);
        }
        Ok(dense)
    }

    /// The type, if its size is representable and allowed.
    fn checked_type(
        &self,
        name: &str,
        data_type: i32,
        dims: &[i64],
    ) -> Result<TensorType, LoadErrorKind> {
        checked_type(name, data_type, dims, self.max_bytes)
    }
}

/// The type that a message declares.
pub(super) fn declared_type(name: &str, proto: &TensorProto) -> Result<TensorType, LoadErrorKind> {
    let most = LoadOptions::default().max_tensor_bytes;
    checked_type(name, proto.data_type.unwrap_or(0), &proto.dims, most)
}

fn checked_type(
    name: &str,
    data_type: i32,
    dims: &[i64],
    max_bytes: usize,
) -> Result<TensorType, LoadErrorKind> {
    let fail = |cause: String| LoadErrorKind::Tensor { tensor: name.to_owned(), cause };
    let dtype = dtype(data_type).map_err(fail)?;
    let shape = dims
        .iter()
        .map(|&d| usize::try_from(d).map_err(|_| fail(format!("dimension {d} is negative"))))
        .collect::<Result<Vec<_>, _>>()?;
    let ty = TensorType::new(dtype, shape);
    check_size(name, &ty, max_bytes)?;
    Ok(ty)
}

/// Refuses types whose size overflows or exceeds `max_bytes`.
pub(super) fn check_size(
    name: &str,
    ty: &TensorType,
    max_bytes: usize,
) -> Result<(), LoadErrorKind> {
    // A zero dimension hides an overflow of the others; shape arithmetic would still meet it.
    let padded = TensorType::new(ty.dtype, ty.shape.iter().map(|d| *d.max(&1)).collect::<Vec<_>>());
    match padded.checked_bytes() {
        Some(bytes) if bytes <= max_bytes => Ok(()),
        _ => Err(LoadErrorKind::Limit {
            what: format!("the bytes of '{name}' ({ty})"),
            limit: max_bytes,
            option: "max_tensor_bytes",
        }),
    }
}

/// Smaller tensors are copied. Biases and the like are read in every run, and a page of a mapped
/// file may come with two megabytes of its neighbours.
const COPIED_BELOW: usize = 1 << 14;

/// The tensor whose bytes are `raw`, part of `file`.
fn from_raw(ty: TensorType, raw: Bytes, file: &Contents) -> Result<Tensor, String> {
    let needed = ty.bytes();
    if raw.len() != needed {
        return Err(format!("{ty} needs {needed} bytes of data, has {}", raw.len()));
    }
    if ty.dtype == DType::Bool && raw.iter().any(|b| *b > 1) {
        let bytes: Vec<u8> = raw.iter().map(|b| u8::from(*b != 0)).collect();
        return Ok(Tensor::new(ty, Storage::copy_from(&bytes)).expect("same length"));
    }
    if needed < COPIED_BELOW {
        return Ok(Tensor::new(ty, Storage::copy_from(&raw)).expect("length was checked"));
    }
    let align = ty.dtype.size();
    let (source, range) = file.locate(&raw).unwrap_or_else(|| (Arc::new(Read(raw)), 0..needed));
    let storage = Storage::borrowed(source, range, align).expect("range of the source");
    Ok(Tensor::new(ty, storage).expect("length was checked"))
}

/// Bytes that were read.
struct Read(Bytes);

impl Source for Read {
    fn bytes(&self) -> &[u8] {
        &self.0
    }
}

fn from_typed(ty: TensorType, proto: &TensorProto) -> Result<Tensor, String> {
    match ty.dtype {
        DType::F32 => copied(ty, "float_data", &proto.float_data),
        DType::F64 => copied(ty, "double_data", &proto.double_data),
        DType::I64 => copied(ty, "int64_data", &proto.int64_data),
        DType::U64 => copied(ty, "uint64_data", &proto.uint64_data),
        DType::U32 => converted::<u64, u32>(ty, "uint64_data", &proto.uint64_data),
        DType::I32 => copied(ty, "int32_data", &proto.int32_data),
        DType::I16 => converted::<i32, i16>(ty, "int32_data", &proto.int32_data),
        DType::U16 => converted::<i32, u16>(ty, "int32_data", &proto.int32_data),
        DType::I8 => converted::<i32, i8>(ty, "int32_data", &proto.int32_data),
        DType::U8 => converted::<i32, u8>(ty, "int32_data", &proto.int32_data),
        DType::Bool => {
            let bytes: Vec<u8> = proto.int32_data.iter().map(|v| u8::from(*v != 0)).collect();
            check_count(&ty, "int32_data", bytes.len())?;
            Ok(Tensor::new(ty, Storage::copy_from(&bytes)).expect("length was checked"))
        }
        DType::F16 => {
            let bits = proto
                .int32_data
                .iter()
                .map(|v| u16::try_from(*v).map(f16::from_bits))
                .collect::<Result<Vec<_>, _>>()
                .map_err(|_| "int32_data holds more than 16 bits for an f16".to_owned())?;
            copied(ty, "int32_data", &bits)
        }
    }
}

fn check_count(ty: &TensorType, field: &str, count: usize) -> Result<(), String> {
    let needed = ty.len();
    if count == needed {
        Ok(())
    } else {
        Err(format!("{ty} needs {needed} elements, {field} has {count} (and there is no raw_data)"))
    }
}

fn copied<T: Element>(ty: TensorType, field: &str, data: &[T]) -> Result<Tensor, String> {
    check_count(&ty, field, data.len())?;
    Ok(Tensor::from_slice(ty.shape, data))
}

fn converted<S: Copy, T: Element + TryFrom<S>>(
    ty: TensorType,
    field: &str,
    data: &[S],
) -> Result<Tensor, String> {
    let narrow = data
        .iter()
        .map(|v| T::try_from(*v))
        .collect::<Result<Vec<T>, _>>()
        .map_err(|_| format!("{field} holds a value outside {}", ty.dtype))?;
    copied(ty, field, &narrow)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reader() -> TensorReader {
        TensorReader {
            model: Contents::default(),
            external: ExternalData::new(None, false),
            max_bytes: 1 << 20,
        }
    }

    fn proto(data_type: DataType, dims: &[i64]) -> TensorProto {
        TensorProto {
            data_type: Some(data_type.into()),
            dims: dims.to_vec(),
            ..TensorProto::default()
        }
    }

    fn read(proto: &TensorProto) -> Result<Tensor, String> {
        reader().read("t", proto).map_err(|e| e.to_string())
    }

    #[test]
    fn typed_fields_give_their_elements() {
        let ints = |t| TensorProto { int32_data: vec![1, 0, 2], ..proto(t, &[3]) };
        assert_eq!(read(&ints(DataType::Int8)).unwrap(), Tensor::from_slice([3], &[1i8, 0, 2]));
        assert_eq!(read(&ints(DataType::Uint16)).unwrap(), Tensor::from_slice([3], &[1u16, 0, 2]));
        assert_eq!(
            read(&ints(DataType::Bool)).unwrap(),
            Tensor::from_bools([3], &[true, false, true])
        );
        let halves = TensorProto { int32_data: vec![0x3c00], ..proto(DataType::Float16, &[]) };
        assert_eq!(read(&halves).unwrap(), Tensor::scalar(f16::ONE));
        let unsigned = TensorProto { uint64_data: vec![7], ..proto(DataType::Uint32, &[1]) };
        assert_eq!(read(&unsigned).unwrap(), Tensor::from_slice([1], &[7u32]));
        let doubles = TensorProto { double_data: vec![0.5], ..proto(DataType::Double, &[1]) };
        assert_eq!(read(&doubles).unwrap(), Tensor::from_slice([1], &[0.5f64]));
    }

    #[test]
    fn raw_data_is_checked_and_booleans_are_normalised() {
        let raw = |t, dims: &[i64], bytes: &'static [u8]| TensorProto {
            raw_data: Some(Bytes::from_static(bytes)),
            ..proto(t, dims)
        };
        let bools = read(&raw(DataType::Bool, &[3], &[0, 1, 255])).unwrap();
        assert_eq!(bools, Tensor::from_bools([3], &[false, true, true]));
        assert!(read(&raw(DataType::Float, &[2], &[0; 7])).unwrap_err().contains("needs 8 bytes"));
        let empty = read(&raw(DataType::Float, &[0, 3], &[])).unwrap();
        assert_eq!(empty.shape(), [0, 3]);
    }

    #[test]
    fn hostile_shapes_are_refused() {
        for dims in [
            &[-1][..],
            &[i64::MAX, i64::MAX],
            &[1 << 40],
            &[0, i64::MAX, i64::MAX],
            &[1 << 31, 1 << 31, 1 << 31],
        ] {
            assert!(read(&proto(DataType::Float, dims)).is_err(), "{dims:?}");
        }
        assert!(read(&proto(DataType::String, &[1])).unwrap_err().contains("string"));
        let wide = TensorProto { int32_data: vec![300], ..proto(DataType::Int8, &[1]) };
        assert!(read(&wide).unwrap_err().contains("outside i8"));
    }

    #[test]
    fn sparse_tensors_become_dense() {
        let sparse = |indices: Vec<i64>, dims: &[i64]| SparseTensorProto {
            values: Some(Box::new(TensorProto {
                float_data: vec![5.0, 6.0],
                ..proto(DataType::Float, &[2])
            })),
            indices: Some(Box::new(TensorProto {
                int64_data: indices,
                ..proto(DataType::Int64, dims)
            })),
            dims: vec![2, 3],
        };
        let want = Tensor::from_slice([2, 3], &[0f32, 5.0, 0.0, 0.0, 0.0, 6.0]);
        assert_eq!(reader().read_sparse("t", &sparse(vec![1, 5], &[2])).unwrap(), want);
        assert_eq!(reader().read_sparse("t", &sparse(vec![0, 1, 1, 2], &[2, 2])).unwrap(), want);
        assert!(reader().read_sparse("t", &sparse(vec![1, 6], &[2])).is_err());
        assert!(reader().read_sparse("t", &sparse(vec![-1, 5], &[2])).is_err());
    }
}
