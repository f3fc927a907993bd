//! Which bytes of a value are present on a device, and which action put them there.

use std::ops::Range;

/// Bytes of one buffer on one device. Values are written once, so presence only grows.
#[derive(Clone, Debug, Default)]
pub(super) struct Residency {
    /// Ranges with the action that wrote each; `None` for what is there from the start.
    written: Vec<(Range<usize>, Option<usize>)>,
}

impl Residency {
    /// Records that `range` is present once `action` has run.
    pub fn add(&mut self, range: Range<usize>, action: Option<usize>) {
        if !range.is_empty() {
            self.written.push((range, action));
        }
    }

    /// The parts of `range` that are absent, in order.
    pub fn missing(&self, range: &Range<usize>) -> Vec<Range<usize>> {
        let mut present: Vec<_> = self.written.iter().map(|(r, _)| r.clone()).collect();
        present.sort_by_key(|r| r.start);
        let mut missing = Vec::new();
        let mut at = range.start;
        for r in present {
            if r.end <= at {
                continue;
            }
            if r.start >= range.end {
                break;
            }
            if r.start > at {
                missing.push(at..r.start);
            }
            at = r.end;
        }
        if at < range.end {
            missing.push(at..range.end);
        }
        missing
    }

    /// The actions that wrote bytes of `range`.
    pub fn writers(&self, range: &Range<usize>) -> impl Iterator<Item = usize> {
        self.written
            .iter()
            .filter(|(r, _)| r.start < range.end && range.start < r.end)
            .filter_map(|(_, action)| *action)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_absent_bytes_are_missing() {
        let mut r = Residency::default();
        assert_eq!(r.missing(&(0..8)), [0..8]);
        r.add(4..8, Some(1));
        r.add(16..20, None);
        assert_eq!(r.missing(&(0..24)), [0..4, 8..16, 20..24]);
        assert_eq!(r.missing(&(5..8)), []);
        assert_eq!(r.missing(&(6..18)), [8..16]);
        assert_eq!(r.writers(&(7..18)).collect::<Vec<_>>(), [1]);
    }
}
