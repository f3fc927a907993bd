//! Numpy files as inputs and outputs: `.npy` and `.npz`.

use std::{
    fs::File,
    io::{BufReader, BufWriter, Read},
    path::Path,
};

use npyz::{DType as NpyDType, NpyFile, Order, TypeStr, WriterBuilder};
use sparoa::{DType, Element, Tensor, TensorType};

use crate::error::{CliError, CliResult};

/// Reads one array of a `.npy` file.
///
/// # Errors
/// When the file cannot be read or its element type is none of SparOA's.
pub fn read_npy(path: &Path) -> CliResult<Tensor> {
    let file = File::open(path).map_err(|e| CliError::input(format!("{}: {e}", path.display())))?;
    read(BufReader::new(file)).map_err(|e| CliError::input(format!("{}: {e}", path.display())))
}

/// Reads array `name` of a `.npz` archive, or its only array when no name matches.
///
/// # Errors
/// When the archive cannot be read, or holds several arrays and none of that name.
pub fn read_npz(path: &Path, name: &str) -> CliResult<Tensor> {
    let fail = |why: String| CliError::input(format!("{}: {why}", path.display()));
    let file = File::open(path).map_err(|e| fail(e.to_string()))?;
    let mut archive = zip::ZipArchive::new(BufReader::new(file))
        .map_err(|e| fail(format!("no npz file: {e}")))?;
    let members = archive
        .file_names()
        .map(|name| name.map(|n| n.into_owned()))
        .collect::<Result<Vec<String>, _>>()
        .map_err(|e| fail(e.to_string()))?;
    let wanted = format!("{name}.npy");
    let member = if members.contains(&wanted) {
        wanted
    } else if let [only] = members.as_slice() {
        only.clone()
    } else {
        return Err(fail(format!(
            "it holds no array '{name}' (it has: {})",
            members.join(", ").replace(".npy", "")
        )));
    };
    let entry = archive.by_name(&member).map_err(|e| fail(e.to_string()))?;
    read(entry).map_err(|e| fail(format!("{member}: {e}")))
}

/// Writes a tensor as `.npy`.
///
/// # Errors
/// When the file cannot be written.
pub fn write_npy(path: &Path, tensor: &Tensor) -> CliResult {
    let fail = |e: std::io::Error| CliError::input(format!("{}: {e}", path.display()));
    let file = BufWriter::new(File::create(path).map_err(fail)?);
    match tensor.dtype() {
        DType::F32 => write::<f32>(file, tensor),
        DType::F64 => write::<f64>(file, tensor),
        DType::I8 => write::<i8>(file, tensor),
        DType::U8 => write::<u8>(file, tensor),
        DType::I16 => write::<i16>(file, tensor),
        DType::U16 => write::<u16>(file, tensor),
        DType::I32 => write::<i32>(file, tensor),
        DType::U32 => write::<u32>(file, tensor),
        DType::I64 => write::<i64>(file, tensor),
        DType::U64 => write::<u64>(file, tensor),
        DType::F16 => write_raw(file, tensor, "<f2"),
        DType::Bool => write_raw(file, tensor, "|b1"),
    }
    .map_err(fail)
}

/// `.npy` header and bytes for the types that npyz has no Rust type for.
fn write_raw(mut file: impl std::io::Write, tensor: &Tensor, descr: &str) -> std::io::Result<()> {
    let dims: String = tensor.shape().iter().map(|d| format!("{d},")).collect();
    let mut header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({dims}), }}");
    // Magic (6), version (2), length (2), header and newline fill whole 64-byte lines.
    let padding = 64 - (10 + header.len() + 1) % 64;
    header.extend(std::iter::repeat_n(' ', padding % 64));
    header.push('\n');
    file.write_all(b"\x93NUMPY\x01\x00")?;
    file.write_all(&(header.len() as u16).to_le_bytes())?;
    file.write_all(header.as_bytes())?;
    file.write_all(tensor.bytes())?;
    file.flush()
}

fn write<T: Element + npyz::AutoSerialize>(
    file: impl std::io::Write,
    tensor: &Tensor,
) -> std::io::Result<()> {
    let shape: Vec<u64> = tensor.shape().iter().map(|&d| d as u64).collect();
    let mut writer =
        npyz::WriteOptions::<T>::new().default_dtype().shape(&shape).writer(file).begin_nd()?;
    writer.extend(
        tensor.as_slice::<T>().expect("called with the tensor's own type").iter().copied(),
    )?;
    writer.finish()
}

fn read(reader: impl Read) -> Result<Tensor, String> {
    let npy = NpyFile::new(reader).map_err(|e| format!("no npy array: {e}"))?;
    let NpyDType::Plain(ty) = npy.dtype() else {
        return Err("structured arrays are not supported (save a plain one)".to_owned());
    };
    let dtype = element_type(&ty)?;
    if npy.order() == Order::Fortran && npy.shape().len() > 1 {
        return Err("it is in Fortran order (save it with numpy.ascontiguousarray)".to_owned());
    }
    let shape: Vec<usize> = npy.shape().iter().map(|&d| d as usize).collect();
    match dtype {
        DType::F32 => collect::<f32, _>(npy, shape),
        DType::F64 => collect::<f64, _>(npy, shape),
        DType::I8 => collect::<i8, _>(npy, shape),
        DType::U8 => collect::<u8, _>(npy, shape),
        DType::I16 => collect::<i16, _>(npy, shape),
        DType::U16 => collect::<u16, _>(npy, shape),
        DType::I32 => collect::<i32, _>(npy, shape),
        DType::U32 => collect::<u32, _>(npy, shape),
        DType::I64 => collect::<i64, _>(npy, shape),
        DType::U64 => collect::<u64, _>(npy, shape),
        DType::Bool => {
            let values: Vec<bool> =
                npy.into_vec().map_err(|e| format!("unreadable contents: {e}"))?;
            Ok(Tensor::from_bools(shape, &values))
        }
        DType::F16 => Err("float16 arrays are not supported (save it as float32)".to_owned()),
    }
}

fn collect<T: Element + npyz::Deserialize, R: Read>(
    npy: NpyFile<R>,
    shape: Vec<usize>,
) -> Result<Tensor, String> {
    let values: Vec<T> = npy.into_vec().map_err(|e| format!("unreadable contents: {e}"))?;
    if TensorType::new(T::DTYPE, shape.clone()).checked_bytes() != Some(size_of_val(&*values)) {
        return Err("its length contradicts its shape".to_owned());
    }
    Ok(Tensor::from_slice(shape, &values))
}

fn element_type(ty: &TypeStr) -> Result<DType, String> {
    let text = ty.to_string();
    Ok(match text.trim_start_matches(['<', '>', '|', '=']) {
        "f4" => DType::F32,
        "f2" => DType::F16,
        "f8" => DType::F64,
        "i1" => DType::I8,
        "u1" => DType::U8,
        "i2" => DType::I16,
        "u2" => DType::U16,
        "i4" => DType::I32,
        "u4" => DType::U32,
        "i8" => DType::I64,
        "u8" => DType::U64,
        "b1" => DType::Bool,
        _ => return Err(format!("element type {text} is not supported")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_survives_a_round_trip() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.npy");
        let tensors = [
            Tensor::from_slice([2, 3], &[1f32, -2.0, f32::NAN, 4.0, 5.5, f32::INFINITY]),
            Tensor::from_slice([2], &[i64::MIN, i64::MAX]),
            Tensor::from_slice([3], &[1u8, 2, 255]),
            Tensor::from_bools([2, 1], &[true, false]),
            Tensor::scalar(7i32),
            Tensor::zeros(TensorType::f32([0, 4])),
        ];
        for tensor in tensors {
            write_npy(&path, &tensor).unwrap();
            assert_eq!(read_npy(&path).unwrap(), tensor);
        }
    }

    #[test]
    fn npz_members_are_found_by_name() {
        use std::io::Write;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.npz");
        let mut archive = zip::ZipWriter::new(File::create(&path).unwrap());
        for (name, value) in [("x", 1f32), ("y", 2.0)] {
            let part = dir.path().join("part.npy");
            write_npy(&part, &Tensor::scalar(value)).unwrap();
            archive
                .start_file(format!("{name}.npy"), zip::write::SimpleFileOptions::default())
                .unwrap();
            archive.write_all(&std::fs::read(part).unwrap()).unwrap();
        }
        archive.finish().unwrap();
        assert_eq!(read_npz(&path, "y").unwrap(), Tensor::scalar(2f32));
        let e = read_npz(&path, "z").unwrap_err();
        assert!(e.text.contains("no array 'z'") && e.text.contains('x'), "{e}");
    }

    #[test]
    fn broken_files_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.npy");
        let tensor = Tensor::from_slice([1000], &vec![1f32; 1000]);
        write_npy(&path, &tensor).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for n in [0, 5, 20, whole.len() - 1] {
            std::fs::write(&path, &whole[..n]).unwrap();
            assert!(read_npy(&path).is_err(), "{n} bytes");
        }
    }
}
