//! The syntax of amounts of memory: `2000000`, `512M`, `2G`.

/// An amount of memory in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BytesArg(pub usize);

impl std::str::FromStr for BytesArg {
    type Err = String;

    /// Parses a number of bytes, or of KiB, MiB, GiB or TiB with `K`, `M`, `G` or `T` behind it.
    fn from_str(text: &str) -> Result<BytesArg, String> {
        let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
        let shift = match &text[digits.len()..] {
            "" => 0,
            "K" | "k" => 10,
            "M" | "m" => 20,
            "G" | "g" => 30,
            "T" | "t" => 40,
            _ => return Err("write it as 2000000, 512M or 2G".to_owned()),
        };
        let number: usize =
            digits.parse().map_err(|_| "write it as 2000000, 512M or 2G".to_owned())?;
        let bytes = number.checked_mul(1 << shift).filter(|&bytes| bytes > 0);
        Ok(BytesArg(bytes.ok_or("must be more than nothing, and less than memory can be")?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_have_units() {
        for (text, bytes) in
            [("2000000", 2_000_000), ("64k", 65536), ("512M", 512 << 20), ("2G", 2 << 30)]
        {
            assert_eq!(text.parse(), Ok(BytesArg(bytes)), "{text}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", "M", "1.5G", "-1", "12 M", "12MB", "0", "0G", "99999999999999999G"] {
            assert!(text.parse::<BytesArg>().is_err(), "{text}");
        }
    }
}
