//! The syntax of `--shape` (`name:1x3x224x224`, commas accepted for `x`) and of `--batch` (a
//! number or `auto`).

/// One `--batch`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BatchArg {
    /// So many rows.
    Rows(usize),
    /// The batch with the best throughput.
    Auto,
}

impl std::str::FromStr for BatchArg {
    type Err = String;

    fn from_str(text: &str) -> Result<BatchArg, String> {
        match text {
            "auto" => Ok(BatchArg::Auto),
            _ => match text.parse() {
                Ok(rows) if rows > 0 => Ok(BatchArg::Rows(rows)),
                _ => Err("must be a number of at least 1, or auto".to_owned()),
            },
        }
    }
}

/// One `--shape` argument.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShapeArg {
    /// Input name; `None` when the model has one input and the name is left out.
    pub name: Option<String>,
    /// Dimensions.
    pub dims: Vec<usize>,
}

impl std::str::FromStr for ShapeArg {
    type Err = String;

    /// Parses `name:1x3x224x224` or `1x3x224x224`; input names may contain colons
    /// (`input:0:1x224x224x3`). `name:scalar` is a shape without dimensions.
    fn from_str(text: &str) -> Result<ShapeArg, String> {
        let (name, dims) = match text.rsplit_once(':') {
            Some((name, dims)) => (Some(name.to_owned()), dims),
            None => (None, text),
        };
        if name.as_deref() == Some("") {
            return Err("the input's name before ':' is empty".to_owned());
        }
        if dims == "scalar" {
            return Ok(ShapeArg { name, dims: Vec::new() });
        }
        let dims = dims
            .split(['x', ','])
            .map(|d| d.trim().parse::<usize>())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| format!("'{dims}' is not a shape (write it as 1x3x224x224)"))?;
        Ok(ShapeArg { name, dims })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_may_hold_colons_and_commas_separate() {
        let arg: ShapeArg = "input:0:1x224x224x3".parse().unwrap();
        assert_eq!(arg, ShapeArg { name: Some("input:0".into()), dims: vec![1, 224, 224, 3] });
        assert_eq!("2,3".parse::<ShapeArg>().unwrap().dims, [2, 3]);
        assert_eq!("sr:scalar".parse::<ShapeArg>().unwrap().dims, [] as [usize; 0]);
    }

    #[test]
    fn batches_are_numbers_or_auto() {
        assert_eq!("8".parse(), Ok(BatchArg::Rows(8)));
        assert_eq!("auto".parse(), Ok(BatchArg::Auto));
        for text in ["0", "-1", "", "x", "Auto", "1x2"] {
            assert!(text.parse::<BatchArg>().is_err(), "{text}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["x:1x-3", "x:", ":1x2", "x:1xx3", "x:99999999999999999999999"] {
            assert!(text.parse::<ShapeArg>().is_err(), "{text}");
        }
    }
}
