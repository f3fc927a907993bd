//! From a kernel's WGSL to CUDA C++: naga parses and validates, this prints its IR. Covered is what
//! the operators' kernels use; anything else is an error that names it, never other code.
//!
//! Buffers that are stored in 16 bits are declared as such; what is loaded becomes f32, what is stored is
//! rounded (`half.cuh`). A text that declares one of u32 takes it as it is. Whether these are f16 or bf16
//! is told apart here alone: texts say `half`.
//!
//! The uniform block becomes the kernel's first parameter, by value; storage buffers are pointers
//! in the order of their bindings. Helper functions get all of them and are inlined.
//!
//! What a warp does together has no words in WGSL: functions called `native_..` are declared there
//! for their types and are defined in `native.cuh`. What functions called `copy_..` load and assign is
//! copied by the hardware on the side; of the element that `load_matrices`, `load_turned` and `shared_place`
//! return the address is taken, the access is the hardware's.

mod expressions;
mod statements;
mod types;

use std::fmt::Write;

use naga::{
    AddressSpace, ArraySize, BuiltIn, Expression, Function, GlobalVariable, Handle, Module, Scalar,
    ShaderStage, StorageAccess, TypeInner,
    valid::{Capabilities, FunctionInfo, GlobalUse, ModuleInfo, ValidationFlags, Validator},
};

use expressions::{constant, literal_of};
use statements::Writer;
use types::{layout, scalar_of, type_name};

use super::storage::Half;

/// What stands in front of every translated kernel.
pub(crate) const PRELUDE: &str = include_str!("prelude.cuh");
/// What stands behind it where numbers of 16 bits are bf16, not f16.
pub(crate) const BFLOAT: &str = "#define BFLOAT\n";
/// What stands behind it where buffers are stored in 16 bits.
pub(crate) const HALF: &str = include_str!("half.cuh");
/// What stands behind that where functions called `native_..` are used.
pub(crate) const NATIVE: &str = include_str!("native.cuh");
/// What stands behind that where functions called `native_group_..` are used.
pub(crate) const GROUP: &str = include_str!("group.cuh");
/// How the names of functions begin that are defined in [`NATIVE`], and of those in [`GROUP`].
const NATIVE_PREFIX: &str = "native_";
const GROUP_PREFIX: &str = "native_group_";
/// Vectors of 16 bytes from which on a thread needs more than 128 registers.
const MANY_VECTORS: usize = 28;
/// Bytes of shared memory of which a multiprocessor has room for two blocks', where it has most.
const HALF_SHARED: u32 = 113 << 10;
/// Matrices begin where their pattern of banks does.
const MATRIX_ALIGN: &str = "__align__(1024) ";
/// Shared memory that a module may declare; what takes more gets all of its memory at launch.
const DECLARED_BYTES: usize = 48 << 10;
/// The declaration of memory that comes at launch.
pub(crate) const AT_LAUNCH: &str =
    "extern __shared__ __align__(1024) unsigned char shared_memory[];";
/// Name of the kernel's function in the translated text.
pub(crate) const ENTRY: &str = "sparoa_main";

/// A translated kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Kernel {
    /// CUDA C++.
    pub(crate) source: String,
    /// Threads per block.
    pub(crate) threads: [u32; 3],
    /// Pointer parameters after the parameter block.
    pub(crate) buffers: usize,
    /// Bytes of the parameter block.
    pub(crate) params_bytes: usize,
    /// Bytes of shared memory that a launch must ask for.
    pub(crate) shared_bytes: u32,
}

/// Why a kernel has no CUDA form.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TranslateError {
    /// The text is not WGSL.
    #[error("not WGSL: {0}")]
    Parse(String),
    /// The text is WGSL without meaning.
    #[error("invalid WGSL: {0}")]
    Invalid(String),
    /// A construct that is not translated.
    #[error("no CUDA form of {0}")]
    Unsupported(String),
}

type Result<T> = std::result::Result<T, TranslateError>;

fn unsupported<T>(construct: impl Into<String>) -> Result<T> {
    Err(TranslateError::Unsupported(construct.into()))
}

/// A name from WGSL as the end of a C++ one; the handle's index before it makes it unique.
fn suffix(name: Option<&str>) -> String {
    let name = name.unwrap_or_default();
    name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect()
}

/// Translates the entry point `main` of `source`. `halves`: the buffers that are stored in 16 bits, a bit
/// for each; `half`: as what.
///
/// # Errors
/// See [`TranslateError`].
pub(crate) fn translate(
    source: &str,
    overrides: &[(&str, f64)],
    halves: u8,
    half: Half,
) -> Result<Kernel> {
    let module = naga::front::wgsl::parse_str(source)
        .map_err(|e| TranslateError::Parse(e.emit_to_string(source)))?;
    let capabilities = Capabilities::SHADER_FLOAT16 | Capabilities::SUBGROUP;
    let info = Validator::new(ValidationFlags::all(), capabilities)
        .validate(&module)
        .map_err(|e| TranslateError::Invalid(e.emit_to_string(source)))?;
    let mut out = PRELUDE.to_owned();
    if half == Half::Bf16 {
        out.push_str(BFLOAT);
    }
    Printer { module: &module, info: &info, halves, out }.kernel(overrides)
}

struct Printer<'a> {
    module: &'a Module,
    info: &'a ModuleInfo,
    halves: u8,
    out: String,
}

/// Workgroup memory.
struct Shared {
    name: String,
    element: String,
    length: String,
    /// `None` where the length is an override.
    bytes: Option<u32>,
}

/// Names the parameters that every function gets.
struct Globals {
    /// `const Params& p, f32* x`.
    declared: String,
    /// `p, x`.
    passed: String,
    buffers: usize,
    params_bytes: usize,
    shared_bytes: u32,
}

impl Printer<'_> {
    fn kernel(mut self, overrides: &[(&str, f64)]) -> Result<Kernel> {
        let module = self.module;
        let [entry] = module.entry_points.as_slice() else {
            return unsupported("a module without exactly one entry point");
        };
        if entry.stage != ShaderStage::Compute || entry.workgroup_size_overrides.is_some() {
            return unsupported("an entry point that is not a compute shader of fixed size");
        }
        if self.halves != 0 {
            self.out.push_str(HALF);
        }
        let native = |function: &Function| is_native(function.name.as_deref());
        if module.functions.iter().any(|(_, function)| native(function)) {
            self.out.push_str(NATIVE);
        }
        let names = module.functions.iter().filter_map(|(_, f)| f.name.as_deref());
        if names.into_iter().any(|name| name.starts_with(GROUP_PREFIX)) {
            self.out.push_str(GROUP);
        }
        self.overrides(overrides)?;
        self.structs()?;
        let globals = self.globals()?;
        let threads: u32 = entry.workgroup_size.iter().product();
        for (handle, function) in module.functions.iter().filter(|(_, f)| !native(f)) {
            self.function(handle, function, &globals, threads)?;
        }
        let [x, y, _] = entry.workgroup_size;
        // Registers for two large blocks at once, of which one works while the other waits; but
        // where one has more sums than that leaves room for, or takes most of the shared memory.
        let locals = entry.function.local_variables.iter();
        let vectors = locals
            .filter(|(_, v)| matches!(module.types[v.ty].inner, TypeInner::Vector { .. }))
            .count();
        let large = globals.shared_bytes > HALF_SHARED;
        let two = threads == 256 && vectors < MANY_VECTORS && !large;
        let bounds = if two { "256, 2".to_owned() } else { threads.to_string() };
        self.line(&format!(
            "extern \"C\" __global__ void __launch_bounds__({bounds}) {ENTRY}({}) {{",
            globals.declared.replace("& params", " params, const u32 overlapped")
        ));
        self.line("    take_turn(overlapped);");
        for (i, argument) in entry.function.arguments.iter().enumerate() {
            let index = format!("threadIdx.x + {x}u * (threadIdx.y + {y}u * threadIdx.z)");
            let value = match &argument.binding {
                Some(naga::Binding::BuiltIn(BuiltIn::WorkGroupId)) => {
                    "{blockIdx.x, blockIdx.y, blockIdx.z}".to_owned()
                }
                Some(naga::Binding::BuiltIn(BuiltIn::LocalInvocationId)) => {
                    "{threadIdx.x, threadIdx.y, threadIdx.z}".to_owned()
                }
                Some(naga::Binding::BuiltIn(BuiltIn::LocalInvocationIndex)) => index,
                Some(naga::Binding::BuiltIn(BuiltIn::SubgroupInvocationId)) => {
                    format!("({index}) % 32u")
                }
                other => return unsupported(format!("the entry point's argument {other:?}")),
            };
            let ty = type_name(module, &module.types[argument.ty].inner)?;
            self.line(&format!("    const {ty} a{i} = {value};"));
        }
        let info = self.info.get_entry_point(0);
        self.body(&entry.function, info, &globals, threads)?;
        self.line("}");
        Ok(Kernel {
            source: self.out,
            threads: entry.workgroup_size,
            buffers: globals.buffers,
            params_bytes: globals.params_bytes,
            shared_bytes: globals.shared_bytes,
        })
    }

    fn line(&mut self, text: &str) {
        self.out.push_str(text);
        self.out.push('\n');
    }

    fn overrides(&mut self, values: &[(&str, f64)]) -> Result<()> {
        let module = self.module;
        for (name, _) in values {
            if !module.overrides.iter().any(|(_, o)| o.name.as_deref() == Some(*name)) {
                return Err(TranslateError::Invalid(format!("there is no override {name}")));
            }
        }
        for (handle, declared) in module.overrides.iter() {
            let name = declared.name.as_deref().unwrap_or_default();
            let inner = &module.types[declared.ty].inner;
            let given = values.iter().find(|(n, _)| *n == name).map(|(_, value)| *value);
            let value = match (given, declared.init) {
                (Some(value), _) => literal_of(inner, value)?,
                (None, Some(init)) => constant(module, init)?,
                (None, None) => {
                    return Err(TranslateError::Invalid(format!("override {name} has no value")));
                }
            };
            let ty = type_name(module, inner)?;
            self.line(&format!("static constexpr {ty} o{} = {value};", handle.index()));
        }
        Ok(())
    }

    /// Structs, whose members lie in C++ where WGSL has them.
    fn structs(&mut self) -> Result<()> {
        let module = self.module;
        for (handle, ty) in module.types.iter() {
            let TypeInner::Struct { members, span } = &ty.inner else { continue };
            let name = format!("S{}{}", handle.index(), suffix(ty.name.as_deref()));
            let mut fields = String::new();
            let mut end = 0u32;
            for (i, member) in members.iter().enumerate() {
                let field = format!("m{i}{}", suffix(member.name.as_deref()));
                let inner = &module.types[member.ty].inner;
                let declared = match inner {
                    TypeInner::Array { base, size: ArraySize::Constant(n), .. } => {
                        let base = type_name(module, &module.types[*base].inner)?;
                        format!("{base} {field}[{n}]")
                    }
                    inner => format!("{} {field}", type_name(module, inner)?),
                };
                let (size, align) = layout(module, inner)?;
                if end.next_multiple_of(align) != member.offset {
                    return unsupported(format!("a struct with a gap before {field}"));
                }
                end = member.offset + size;
                write!(fields, " {declared};").expect("writing to a string");
            }
            self.line(&format!("struct alignas(16) {name} {{{fields} }};"));
            self.line(&format!("static_assert(sizeof({name}) == {span}, \"layout\");"));
        }
        Ok(())
    }

    fn globals(&mut self) -> Result<Globals> {
        let module = self.module;
        let mut params = None;
        let mut buffers = Vec::new();
        let mut shared = Vec::new();
        for (handle, global) in module.global_variables.iter() {
            match global.space {
                AddressSpace::Uniform => {
                    if params.replace((handle, global)).is_some() {
                        return unsupported("a second uniform block");
                    }
                }
                AddressSpace::Storage { access } => {
                    let binding = global.binding.ok_or_else(|| {
                        TranslateError::Invalid("a buffer has no binding".to_owned())
                    })?;
                    buffers.push((
                        binding.binding,
                        handle,
                        self.pointer(handle, binding.binding, access)?,
                    ));
                }
                AddressSpace::WorkGroup => shared.push(self.shared(handle, global)?),
                other => return unsupported(format!("address space {other:?}")),
            }
        }
        buffers.sort_by_key(|(binding, ..)| *binding);
        let Some((params, block)) = params else {
            return unsupported("a kernel without a uniform block");
        };
        let TypeInner::Struct { span, .. } = &module.types[block.ty].inner else {
            return unsupported("a uniform that is no block");
        };
        // Its name is fixed by `Writer::pointer`.
        debug_assert_eq!(global_name(module, params), "params");
        let block_type = type_name_of(module, block)?;
        let mut globals = Globals {
            declared: format!("const {block_type}& params"),
            passed: "params".to_owned(),
            buffers: buffers.len(),
            params_bytes: *span as usize,
            shared_bytes: self.declare(&shared),
        };
        for (_, handle, pointer) in buffers {
            let name = global_name(module, handle);
            write!(globals.declared, ", {pointer} {name}").expect("writing to a string");
            write!(globals.passed, ", {name}").expect("writing to a string");
        }
        Ok(globals)
    }

    /// The type of a storage buffer's pointer. Nothing that a kernel writes overlaps another of its
    /// buffers: values that are in use at the same time never share memory. What it does not write
    /// nobody does meanwhile, except for a kernel in front of it that it waits for (`FROM_BEFORE`).
    fn pointer(
        &self,
        handle: Handle<GlobalVariable>,
        binding: u32,
        access: StorageAccess,
    ) -> Result<String> {
        let module = self.module;
        let global = &module.global_variables[handle];
        let TypeInner::Array { base, size: ArraySize::Dynamic, .. } = module.types[global.ty].inner
        else {
            return unsupported("a storage buffer that is no runtime-sized array");
        };
        let inner = &module.types[base].inner;
        // The first binding is the uniform block's.
        let half = binding.checked_sub(1).is_some_and(|i| i < 8 && self.halves >> i & 1 == 1);
        let element = match (scalar_of(inner), inner) {
            (Some(Scalar::F32), TypeInner::Scalar(_)) if half => "half1".to_owned(),
            (Some(Scalar::F32), _) if half => "half4".to_owned(),
            (Some(Scalar::U32), _) if half => type_name(module, inner)?,
            _ if half => {
                return unsupported("a buffer of 16-bit numbers that declares other elements");
            }
            _ => type_name(module, inner)?,
        };
        let written = self.info.get_entry_point(0)[handle].contains(GlobalUse::WRITE);
        Ok(match (access.contains(StorageAccess::STORE), written) {
            (true, true) => format!("{element}* __restrict__"),
            (true, false) => format!("const {element}* FROM_BEFORE"),
            (false, _) => format!("const {element}* __restrict__"),
        })
    }

    fn shared(&self, handle: Handle<GlobalVariable>, global: &GlobalVariable) -> Result<Shared> {
        let module = self.module;
        let TypeInner::Array { base, size, stride } = module.types[global.ty].inner else {
            return unsupported("workgroup memory that is no array");
        };
        let (length, bytes) = match size {
            ArraySize::Constant(length) => (length.to_string(), Some(length.get() * stride)),
            ArraySize::Pending(handle) => (format!("o{}", handle.index()), None),
            ArraySize::Dynamic => return unsupported("workgroup memory of dynamic size"),
        };
        let element = type_name(module, &module.types[base].inner)?;
        Ok(Shared { name: global_name(module, handle), element, length, bytes })
    }

    /// Declares workgroup memory; how many bytes of it come at launch.
    fn declare(&mut self, shared: &[Shared]) -> u32 {
        let sizes: Option<Vec<u32>> = shared.iter().map(|s| s.bytes).collect();
        let sizes = sizes.filter(|sizes| sizes.iter().sum::<u32>() as usize > DECLARED_BYTES);
        let Some(sizes) = sizes else {
            for Shared { name, element, length, .. } in shared {
                let align = if element == "vec4<u32>" { MATRIX_ALIGN } else { "" };
                self.line(&format!("static __shared__ {align}{element} {name}[{length}];"));
            }
            return 0;
        };
        self.line(AT_LAUNCH);
        let mut at = 0u32;
        for (Shared { name, element, .. }, bytes) in shared.iter().zip(sizes) {
            self.line(&format!("#define {name} (({element}*)(shared_memory + {at}u))"));
            at = (at + bytes).next_multiple_of(1024);
        }
        at
    }

    fn function(
        &mut self,
        handle: Handle<Function>,
        function: &Function,
        globals: &Globals,
        threads: u32,
    ) -> Result<()> {
        let module = self.module;
        let result = match &function.result {
            Some(result) => type_name(module, &module.types[result.ty].inner)?,
            None => "void".to_owned(),
        };
        let mut arguments = globals.declared.clone();
        for (i, argument) in function.arguments.iter().enumerate() {
            let ty = type_name(module, &module.types[argument.ty].inner)?;
            write!(arguments, ", const {ty} a{i}").expect("writing to a string");
        }
        let name = function_name(module, handle);
        self.line(&format!("FN {result} {name}({arguments}) {{"));
        let info = &self.info[handle];
        self.body(function, info, globals, threads)?;
        self.line("}");
        Ok(())
    }

    fn body(
        &mut self,
        function: &Function,
        info: &FunctionInfo,
        globals: &Globals,
        threads: u32,
    ) -> Result<()> {
        let mut writer = Writer::new(self.module, function, info, &globals.passed, threads);
        writer.function()?;
        self.out.push_str(&writer.finish());
        Ok(())
    }
}

fn type_name_of(module: &Module, global: &GlobalVariable) -> Result<String> {
    let ty = &module.types[global.ty];
    match ty.inner {
        TypeInner::Struct { .. } => {
            Ok(format!("S{}{}", global.ty.index(), suffix(ty.name.as_deref())))
        }
        ref inner => type_name(module, inner),
    }
}

/// The C++ name of a global.
fn global_name(module: &Module, handle: Handle<GlobalVariable>) -> String {
    let global = &module.global_variables[handle];
    match global.space {
        AddressSpace::Uniform => "params".to_owned(),
        _ => format!("g{}{}", handle.index(), suffix(global.name.as_deref())),
    }
}

/// Whether a function is the hardware's own.
fn is_native(name: Option<&str>) -> bool {
    name.is_some_and(|name| name.starts_with(NATIVE_PREFIX))
}

/// The C++ name of a function.
fn function_name(module: &Module, handle: Handle<Function>) -> String {
    format!("f{}{}", handle.index(), suffix(module.functions[handle].name.as_deref()))
}

/// A short name of an expression's kind, for errors.
fn kind(expression: &Expression) -> String {
    let text = format!("{expression:?}");
    text.split([' ', '(', '{']).next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests;
