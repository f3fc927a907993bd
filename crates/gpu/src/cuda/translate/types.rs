//! Types: scalars and vectors of four, three only as they come from built-in values.

use naga::{ArraySize, Module, Scalar, ScalarKind, TypeInner, VectorSize};

use super::{Result, unsupported};

/// The C++ name of a value's type.
pub(super) fn type_name(module: &Module, inner: &TypeInner) -> Result<String> {
    match inner {
        TypeInner::Scalar(scalar) => Ok(scalar_name(*scalar)?.to_owned()),
        TypeInner::Vector { size: VectorSize::Quad, scalar } => {
            Ok(format!("vec4<{}>", scalar_name(*scalar)?))
        }
        TypeInner::Vector { size: VectorSize::Tri, scalar: scalar @ Scalar::U32 } => {
            Ok(format!("vec3<{}>", scalar_name(*scalar)?))
        }
        other => unsupported(format!("values of type {}", describe(module, other))),
    }
}

/// The C++ name of a scalar type.
pub(super) fn scalar_name(scalar: Scalar) -> Result<&'static str> {
    match (scalar.kind, scalar.width) {
        (ScalarKind::Float, 4) => Ok("f32"),
        (ScalarKind::Float, 2) => Ok("f16"),
        (ScalarKind::Sint, 4) => Ok("i32"),
        (ScalarKind::Uint, 4) => Ok("u32"),
        (ScalarKind::Bool, _) => Ok("bool"),
        (kind, width) => unsupported(format!("{kind:?} of {width} bytes")),
    }
}

/// Bytes and alignment of a struct's member in C++.
pub(super) fn layout(module: &Module, inner: &TypeInner) -> Result<(u32, u32)> {
    match *inner {
        TypeInner::Scalar(scalar) if scalar.kind != ScalarKind::Bool => {
            Ok((scalar.width.into(), scalar.width.into()))
        }
        TypeInner::Vector { size: VectorSize::Quad, scalar } => {
            let bytes = 4 * u32::from(scalar.width);
            Ok((bytes, bytes))
        }
        TypeInner::Array { base, size: ArraySize::Constant(count), stride } => {
            let (bytes, align) = layout(module, &module.types[base].inner)?;
            if bytes != stride {
                return unsupported("an array whose elements lie apart");
            }
            Ok((bytes * count.get(), align))
        }
        _ => unsupported(format!("members of type {}", describe(module, inner))),
    }
}

/// The scalar of a scalar or vector.
pub(super) fn scalar_of(inner: &TypeInner) -> Option<Scalar> {
    match inner {
        TypeInner::Scalar(scalar) | TypeInner::Vector { scalar, .. } => Some(*scalar),
        _ => None,
    }
}

fn describe(module: &Module, inner: &TypeInner) -> String {
    let known = module.types.iter().find(|(_, ty)| ty.inner == *inner);
    known.and_then(|(_, ty)| ty.name.clone()).unwrap_or_else(|| format!("{inner:?}"))
}
