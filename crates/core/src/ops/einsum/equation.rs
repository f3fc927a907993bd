//! The text of an Einsum and what it means for tensors of known shapes.

use crate::ops::{OpError, axes};

/// An index: a letter, or a position counted from the end of the ellipsis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Label {
    Letter(char),
    Ellipsis(usize),
}

/// One term or the output: letters, and where the ellipsis is among them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Term {
    letters: Vec<char>,
    ellipsis: Option<usize>,
}

/// A parsed equation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Equation {
    terms: Vec<Term>,
    output: Option<Term>,
}

fn invalid(text: &str, why: &str) -> OpError {
    OpError::invalid(format!("attribute equation '{text}': {why}"))
}

impl Equation {
    pub(super) fn parse(text: &str) -> Result<Equation, OpError> {
        let compact: String = text.chars().filter(|c| !c.is_whitespace()).collect();
        let (left, right) = match compact.split_once("->") {
            Some((left, right)) => (left, Some(right)),
            None => (compact.as_str(), None),
        };
        let terms = left.split(',').map(|t| term(t, text)).collect::<Result<Vec<_>, _>>()?;
        let output = right.map(|t| term(t, text)).transpose()?;
        if let Some(output) = &output {
            for (i, letter) in output.letters.iter().enumerate() {
                if output.letters[..i].contains(letter) {
                    return Err(invalid(text, &format!("the output has '{letter}' twice")));
                }
                if !terms.iter().any(|t| t.letters.contains(letter)) {
                    return Err(invalid(text, &format!("no term has the output's '{letter}'")));
                }
            }
        }
        Ok(Equation { terms, output })
    }

    /// The equation as text.
    pub(super) fn text(&self) -> String {
        let terms: Vec<String> = self.terms.iter().map(Term::text).collect();
        match &self.output {
            None => terms.join(","),
            Some(output) => format!("{}->{}", terms.join(","), output.text()),
        }
    }

    /// The labels' sizes and every operand's strides by label.
    pub(super) fn place(&self, shapes: &[&[usize]]) -> Result<Labels, OpError> {
        if shapes.len() != self.terms.len() {
            return Err(OpError::invalid(format!(
                "attribute equation has {} terms, the node {} inputs",
                self.terms.len(),
                shapes.len()
            )));
        }
        let mut indexed = Vec::with_capacity(shapes.len());
        let mut dots = 0;
        for (term, shape) in self.terms.iter().zip(shapes) {
            let more = shape.len().checked_sub(term.letters.len());
            let more = more.filter(|&n| n == 0 || term.ellipsis.is_some()).ok_or_else(|| {
                OpError::invalid(format!(
                    "term '{}' of attribute equation does not fit the shape {shape:?}",
                    term.text()
                ))
            })?;
            dots = dots.max(more);
            indexed.push(term.labels(more));
        }
        let output = match &self.output {
            Some(output) => output.labels(if output.ellipsis.is_some() { dots } else { 0 }),
            None => self.implicit_output(dots),
        };
        let mut labels: Vec<Label> = output.clone();
        for label in indexed.iter().flatten() {
            if !labels.contains(label) {
                labels.push(*label);
            }
        }
        let mut sizes = vec![1; labels.len()];
        for (own, shape) in indexed.iter().zip(shapes) {
            for (label, &size) in own.iter().zip(*shape) {
                let at = position(&labels, label);
                if sizes[at] == 1 {
                    sizes[at] = size;
                } else if size != 1 && size != sizes[at] {
                    return Err(OpError::invalid(format!(
                        "attribute equation gives one index to sizes {} and {size}",
                        sizes[at]
                    )));
                }
            }
        }
        let strides = indexed
            .iter()
            .zip(shapes)
            .map(|(own, shape)| {
                let mut result = vec![0; labels.len()];
                for ((label, &size), stride) in own.iter().zip(*shape).zip(axes::strides(shape)) {
                    if size != 1 {
                        result[position(&labels, label)] += stride;
                    }
                }
                result
            })
            .collect();
        let repeats = indexed.iter().any(|own| (1..own.len()).any(|i| own[..i].contains(&own[i])));
        let operands = shapes.iter().map(|s| s.to_vec()).collect();
        let of = indexed
            .iter()
            .map(|own| own.iter().map(|label| position(&labels, label)).collect())
            .collect();
        Ok(Labels { sizes, output: output.len(), strides, repeats, operands, of })
    }

    /// The ellipsis, then the letters that appear once, in order of the alphabet.
    fn implicit_output(&self, dots: usize) -> Vec<Label> {
        let all: Vec<char> = self.terms.iter().flat_map(|t| t.letters.iter().copied()).collect();
        let mut letters: Vec<char> =
            all.iter().copied().filter(|c| all.iter().filter(|d| *d == c).count() == 1).collect();
        letters.sort_unstable();
        Term { letters, ellipsis: Some(0) }.labels(dots)
    }
}

fn position(labels: &[Label], label: &Label) -> usize {
    labels.iter().position(|l| l == label).expect("every label of a term is in the list")
}

fn term(text: &str, equation: &str) -> Result<Term, OpError> {
    let mut result = Term::default();
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        if let Some(after) = rest.strip_prefix("...") {
            if result.ellipsis.is_some() {
                return Err(invalid(equation, "a term has two ellipses"));
            }
            result.ellipsis = Some(result.letters.len());
            rest = after;
        } else if c.is_ascii_alphabetic() {
            result.letters.push(c);
            rest = &rest[1..];
        } else {
            return Err(invalid(equation, &format!("'{c}' is neither a letter nor an ellipsis")));
        }
    }
    Ok(result)
}

impl Term {
    fn text(&self) -> String {
        let mut text: String = self.letters.iter().collect();
        if let Some(at) = self.ellipsis {
            text.insert_str(at, "...");
        }
        text
    }

    /// Labels with an ellipsis of `dots` dimensions.
    fn labels(&self, dots: usize) -> Vec<Label> {
        let mut labels: Vec<Label> = self.letters.iter().copied().map(Label::Letter).collect();
        if let Some(at) = self.ellipsis {
            labels.splice(at..at, (0..dots).rev().map(Label::Ellipsis));
        }
        labels
    }
}

/// An equation on tensors of known shapes. Labels are numbers; the output's come first, in order.
#[derive(Clone, Debug)]
pub(super) struct Labels {
    /// Size of each label.
    pub sizes: Vec<usize>,
    /// How many labels the output has.
    pub output: usize,
    /// For each operand, the stride of each label; 0 where it does not move along.
    pub strides: Vec<Vec<usize>>,
    /// Some operand has a label twice.
    pub repeats: bool,
    /// Shapes of the operands.
    pub operands: Vec<Vec<usize>>,
    /// For each operand, the label of each dimension.
    pub of: Vec<Vec<usize>>,
}

impl Labels {
    pub(super) fn output_shape(&self) -> Vec<usize> {
        self.sizes[..self.output].to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_round_trip() {
        for text in ["bij,bjk->bik", "...ij,jk->...ik", "ii", "i,j->", "a...b->b...a"] {
            assert_eq!(Equation::parse(text).unwrap().text(), text);
        }
        assert_eq!(Equation::parse(" i j , j k -> i k ").unwrap().text(), "ij,jk->ik");
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["i->ii", "i->j", "......i", "i1->i", "i.->i"] {
            assert!(Equation::parse(text).is_err(), "{text}");
        }
        let equation = Equation::parse("ij,jk->ik").unwrap();
        assert!(equation.place(&[&[2, 3]]).is_err());
        assert!(equation.place(&[&[2, 3], &[4, 5]]).is_err());
        assert!(equation.place(&[&[2, 3], &[3]]).is_err());
        assert_eq!(equation.place(&[&[2, 3], &[3, 5]]).unwrap().output_shape(), [2, 5]);
    }
}
