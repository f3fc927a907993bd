//! The batch: the leading dimension of every input.

use super::{Dim, Model, Shapes, SpecializeError};

/// Sets the leading dimension of every input to `batch`: in `shapes` where the input is there,
/// else from the model, whose leading dimension must be free or already that. An input with
/// further free dimensions is left for [`super::specialize`] to ask for.
///
/// # Errors
/// [`SpecializeError::NoBatch`] for 0, [`SpecializeError::FixedBatch`] for a model exported with
/// another batch.
pub fn set_batch(model: &Model, batch: usize, shapes: &mut Shapes) -> Result<(), SpecializeError> {
    if batch == 0 {
        return Err(SpecializeError::NoBatch);
    }
    for input in &model.inputs {
        if let Some(dims) = shapes.get_mut(&input.name) {
            if let Some(first) = dims.first_mut() {
                *first = batch;
            }
            continue;
        }
        let dims = input.dims.as_deref().unwrap_or(&[]);
        let fixed = |d: &Dim| match d {
            Dim::Fixed(n) => Some(*n),
            _ => None,
        };
        match (dims.first(), dims.iter().skip(1).map(fixed).collect::<Option<Vec<_>>>()) {
            (Some(Dim::Fixed(n)), _) if *n != batch => {
                let (name, fixed) = (input.name.clone(), *n);
                return Err(SpecializeError::FixedBatch { name, fixed, batch });
            }
            (Some(Dim::Fixed(_)) | None, _) | (Some(_), None) => {}
            (Some(_), Some(rest)) => {
                let dims = std::iter::once(batch).chain(rest).collect();
                shapes.insert(input.name.clone(), dims);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ir::ModelBuilder, tensor::DType};

    fn model(dims: [Dim; 2]) -> Model {
        let mut m = ModelBuilder::new("m");
        let x = m.input("x", DType::F32, dims);
        m.output(x);
        m.finish()
    }

    fn free() -> Dim {
        Dim::Symbol("n".into())
    }

    #[test]
    fn a_free_batch_is_set_and_given_shapes_keep_the_rest() {
        let model = model([free(), Dim::Fixed(3)]);
        let mut shapes = Shapes::new();
        set_batch(&model, 4, &mut shapes).unwrap();
        assert_eq!(shapes["x"], [4, 3]);
        shapes.insert("x".into(), vec![1, 7]);
        set_batch(&model, 2, &mut shapes).unwrap();
        assert_eq!(shapes["x"], [2, 7]);
    }

    #[test]
    fn a_fixed_batch_says_how_to_export() {
        let fixed = model([Dim::Fixed(1), Dim::Fixed(3)]);
        let mut shapes = Shapes::new();
        set_batch(&fixed, 1, &mut shapes).unwrap();
        let error = set_batch(&fixed, 8, &mut shapes).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("'x'") && text.contains("dynamic_axes"), "{text}");
        assert!(error.is_usage());
        assert!(matches!(set_batch(&fixed, 0, &mut shapes), Err(SpecializeError::NoBatch)));
    }

    #[test]
    fn other_free_dimensions_are_left_to_the_importer() {
        let mut shapes = Shapes::new();
        set_batch(&model([free(), free()]), 8, &mut shapes).unwrap();
        assert!(shapes.is_empty());
    }
}
