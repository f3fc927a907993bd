//! Builds a dispatch: declarations of buffers and parameters go in front of the shader's text, so
//! that names in Rust and WGSL are the same and sizes stay out of the text.

use std::{borrow::Cow, fmt::Write};

use super::{Binding, Dispatch};

/// A dispatch under construction.
pub(in crate::ops) struct Shader {
    label: &'static str,
    buffers: Vec<Buffer>,
    fields: Vec<(Cow<'static, str>, &'static str)>,
    params: Vec<u32>,
    defines: Vec<(&'static str, String)>,
    fits: bool,
    half: bool,
}

struct Buffer {
    name: Cow<'static, str>,
    binding: Binding,
    element: &'static str,
    /// Elements of 4 bytes in one of these.
    words: u32,
}

impl Shader {
    /// A dispatch without buffers and parameters; `label` names it in traces.
    pub(in crate::ops) fn new(label: &'static str) -> Shader {
        Shader {
            label,
            buffers: Vec::new(),
            fields: Vec::new(),
            params: Vec::new(),
            defines: Vec::new(),
            fits: true,
            half: false,
        }
    }

    /// Adds a buffer: in WGSL an array `name` of `f32`, `i32`, `u32`, `vec4<f32>` or (constants
    /// only) `f16` and `vec4<f16>`, and a function `at_name()`, the first element of this
    /// operand in it.
    pub(in crate::ops) fn buffer(
        mut self,
        name: impl Into<Cow<'static, str>>,
        binding: Binding,
        element: &'static str,
    ) -> Shader {
        let words = if element.starts_with("vec4") { 4 } else { 1 };
        self.half |= element.contains("f16");
        self.buffers.push(Buffer { name: name.into(), binding, element, words });
        self
    }

    /// Adds a parameter `p.name: u32`. A value over 32 bits makes [`Shader::build`] give up.
    pub(in crate::ops) fn size(
        mut self,
        name: impl Into<Cow<'static, str>>,
        value: usize,
    ) -> Shader {
        self.fields.push((name.into(), "u32"));
        match u32::try_from(value) {
            Ok(value) => self.params.push(value),
            Err(_) => self.fits = false,
        }
        self
    }

    /// Adds several `u32` parameters.
    pub(in crate::ops) fn sizes<const N: usize>(
        self,
        values: [(&'static str, usize); N],
    ) -> Shader {
        values.into_iter().fold(self, |shader, (name, value)| shader.size(name, value))
    }

    /// Adds a parameter `p.name: i32`.
    pub(in crate::ops) fn int(
        mut self,
        name: impl Into<Cow<'static, str>>,
        value: isize,
    ) -> Shader {
        self.fields.push((name.into(), "i32"));
        match i32::try_from(value) {
            Ok(value) => self.params.push(value.cast_unsigned()),
            Err(_) => self.fits = false,
        }
        self
    }

    /// Adds a parameter `p.name: f32`.
    pub(in crate::ops) fn float(
        mut self,
        name: impl Into<Cow<'static, str>>,
        value: f32,
    ) -> Shader {
        self.fields.push((name.into(), "f32"));
        self.params.push(value.to_bits());
        self
    }

    /// Number of parameters so far; makes names unique.
    pub(in crate::ops) fn fields(&self) -> usize {
        self.fields.len()
    }

    /// Replaces `$name` in the text by `value`.
    pub(in crate::ops) fn define(mut self, name: &'static str, value: impl Into<String>) -> Shader {
        self.defines.push((name, value.into()));
        self
    }

    /// The dispatch of `text` over `grid` workgroups; `None` when a size is out of range.
    pub(in crate::ops) fn build(self, text: &str, grid: [usize; 3]) -> Option<Dispatch> {
        let sizes = grid.map(u32::try_from);
        let [Ok(x), Ok(y), Ok(z)] = sizes else { return None };
        if !self.fits || self.buffers.len() > 8 {
            return None;
        }
        let mut source = String::with_capacity(text.len() + 1024);
        if self.half {
            source.push_str("enable f16;\n");
        }
        source.push_str("struct Params { offsets: array<vec4<u32>, 2>,");
        for (name, ty) in &self.fields {
            write!(source, " {name}: {ty},").expect("writing to a string");
        }
        source.push_str(" }\n@group(0) @binding(0) var<uniform> p: Params;\n");
        for (i, buffer) in self.buffers.iter().enumerate() {
            let Buffer { name, binding, element, words } = buffer;
            let constant = matches!(binding, Binding::Constant(_));
            let access = if constant { "read" } else { "read_write" };
            let at = match (constant, words) {
                // Constants begin where their buffer does.
                (true, _) => "0u".to_owned(),
                (false, 1) => format!("p.offsets[{}][{}]", i / 4, i % 4),
                (false, _) => format!("p.offsets[{}][{}] / {words}u", i / 4, i % 4),
            };
            writeln!(
                source,
                "@group(0) @binding({}) var<storage, {access}> {name}: array<{element}>;\n\
                 fn at_{name}() -> u32 {{ return {at}; }}",
                i + 1
            )
            .expect("writing to a string");
        }
        let mut body = text.to_owned();
        // Longest first: $T must not eat the beginning of $THREADS.
        let mut defines: Vec<_> = self.defines.iter().collect();
        defines.sort_by_key(|(name, _)| std::cmp::Reverse(name.len()));
        for (name, value) in defines {
            body = body.replace(&format!("${name}"), value);
        }
        source.push_str(&body);
        Some(Dispatch {
            label: self.label,
            source: Cow::Owned(source),
            overrides: Vec::new(),
            bindings: self.buffers.iter().map(|b| b.binding).collect(),
            params: self.params,
            grid: [x, y, z],
            spread: false,
            cluster: 1,
        })
    }
}

/// A one-dimensional grid of `groups` workgroups, folded into two dimensions where the adapter
/// allows fewer in one; shaders number workgroups with `group.x + group.y * groups_x`. The second
/// value is `groups_x`.
pub(in crate::ops) fn fold(groups: usize, max_grid: u32) -> ([usize; 3], usize) {
    let max = max_grid as usize;
    let x = groups.min(max).max(1);
    ([x, groups.div_ceil(x), 1], x)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn declares_buffers_and_parameters_in_order() {
        let dispatch = Shader::new("test")
            .buffer("x", Binding::Input(0), "vec4<f32>")
            .buffer("w", Binding::Constant(0), "f32")
            .size("n", 7)
            .float("eps", 0.5)
            .define("value", "1.0")
            .build("fn f() -> f32 { return $value; }", [3, 1, 1])
            .unwrap();
        assert_eq!(dispatch.params, [7, 0.5f32.to_bits()]);
        assert_eq!(dispatch.bindings, [Binding::Input(0), Binding::Constant(0)]);
        for part in ["n: u32, eps: f32", "read> w: array<f32>", "/ 4u", "return 1.0;"] {
            assert!(dispatch.source.contains(part), "{part} in {}", dispatch.source);
        }
        assert!(Shader::new("big").size("n", 1 << 40).build("", [1, 1, 1]).is_none());
    }

    #[test]
    fn folding_covers_all_groups() {
        assert_eq!(fold(10, 100), ([10, 1, 1], 10));
        let ([x, y, _], row) = fold(1000, 300);
        assert!(x == row && x * y >= 1000 && x <= 300);
    }
}
