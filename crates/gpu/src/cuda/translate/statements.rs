//! Statements of a function. Every load, and every value that is used more than once, becomes a
//! constant where naga evaluates it; the rest is written where it is used.

use std::{collections::HashSet, fmt::Write};

use naga::{
    Barrier, Block, Expression, Function, GatherMode, Handle, Module, Statement, TypeInner,
    valid::FunctionInfo,
};

use super::{
    Result, expressions::constant, function_name, is_native, suffix, types::type_name, unsupported,
};

/// Prints one function's body.
pub(super) struct Writer<'a> {
    pub(super) module: &'a Module,
    pub(super) function: &'a Function,
    pub(super) info: &'a FunctionInfo,
    /// The arguments that pass on the kernel's parameters.
    globals: &'a str,
    /// Threads per block.
    threads: u32,
    /// Expressions that have a constant of their own.
    pub(super) named: HashSet<Handle<Expression>>,
    out: String,
    depth: usize,
    labels: usize,
    /// Where `continue` goes: the label of the innermost loop.
    next: Vec<String>,
    /// How this function touches memory.
    memory: Memory,
}

/// How a function touches memory.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Memory {
    /// As written.
    Plain,
    /// What it loads and assigns the hardware copies on the side.
    Copies,
    /// What it returns is a place, which the hardware's own function of this name takes.
    Place(&'static str),
}

impl<'a> Writer<'a> {
    pub(super) fn new(
        module: &'a Module,
        function: &'a Function,
        info: &'a FunctionInfo,
        globals: &'a str,
        threads: u32,
    ) -> Writer<'a> {
        Writer {
            module,
            function,
            info,
            globals,
            threads,
            named: HashSet::new(),
            out: String::new(),
            depth: 1,
            labels: 0,
            next: Vec::new(),
            memory: match function.name.as_deref() {
                Some(name) if name.starts_with("copy_") => Memory::Copies,
                Some("load_matrices") => Memory::Place("load_matrices"),
                Some("load_turned") => Memory::Place("load_turned"),
                Some("shared_place") => Memory::Place("shared_place"),
                _ => Memory::Plain,
            },
        }
    }

    /// The text so far.
    pub(super) fn finish(self) -> String {
        self.out
    }

    /// Local variables and the body.
    pub(super) fn function(&mut self) -> Result<()> {
        for (handle, variable) in self.function.local_variables.iter() {
            let ty = type_name(self.module, &self.module.types[variable.ty].inner)?;
            let name = format!("v{}{}", handle.index(), suffix(variable.name.as_deref()));
            let init = match variable.init {
                Some(init) => self.expression(init)?,
                None => format!("{ty}{{}}"),
            };
            self.line(&format!("{ty} {name} = {init};"));
        }
        self.block(&self.function.body)
    }

    fn line(&mut self, text: &str) {
        let width = self.depth * 4;
        writeln!(self.out, "{:width$}{text}", "").expect("writing to a string");
    }

    fn block(&mut self, block: &Block) -> Result<()> {
        block.iter().try_for_each(|statement| self.statement(statement))
    }

    /// A block between braces that the caller writes.
    fn nested(&mut self, block: &Block) -> Result<()> {
        self.depth += 1;
        let result = self.block(block);
        self.depth -= 1;
        result
    }

    fn statement(&mut self, statement: &Statement) -> Result<()> {
        match statement {
            Statement::Emit(range) => {
                range.clone().try_for_each(|handle| self.emit(handle))?;
            }
            Statement::Block(block) => {
                self.line("{");
                self.nested(block)?;
                self.line("}");
            }
            Statement::If { condition, accept, reject } => {
                let condition = self.expression(*condition)?;
                self.line(&format!("if ({condition}) {{"));
                self.nested(accept)?;
                if !reject.is_empty() {
                    self.line("} else {");
                    self.nested(reject)?;
                }
                self.line("}");
            }
            Statement::Loop { body, continuing, break_if } => {
                self.repeat(body, continuing, *break_if)?;
            }
            Statement::Break => self.line("break;"),
            Statement::Continue => {
                let Some(label) = self.next.last() else {
                    return unsupported("continue outside of a loop");
                };
                let text = format!("goto {label};");
                self.line(&text);
            }
            Statement::Return { value } => {
                let value = match (value, self.memory) {
                    (Some(value), Memory::Place(name)) => {
                        format!(" {name}(&{})", self.expression(*value)?)
                    }
                    (Some(value), _) => format!(" {}", self.expression(*value)?),
                    (None, _) => String::new(),
                };
                self.line(&format!("return{value};"));
            }
            Statement::ControlBarrier(flags) => {
                if *flags != Barrier::WORK_GROUP {
                    return unsupported(format!("{flags:?}"));
                }
                self.line("__syncthreads();");
            }
            Statement::Store { pointer, value } => {
                let loaded = self.is_load(*value);
                let (pointer, value) = (self.pointer(*pointer)?, self.expression(*value)?);
                self.line(&match self.memory {
                    Memory::Copies if loaded => format!("copy_async(&{pointer}, &{value});"),
                    _ => format!("{pointer} = {value};"),
                });
            }
            Statement::Call { function, arguments, result } => {
                // Pointers go to the hardware's functions alone, which take references.
                let argument = |a: Handle<Expression>| match self.is_pointer(a) {
                    true => self.pointer(a),
                    false => self.expression(a),
                };
                let given: Result<Vec<_>> = arguments.iter().map(|&a| argument(a)).collect();
                let given = given?.join(", ");
                let called = self.module.functions[*function].name.as_deref();
                let call = match called {
                    Some(name) if is_native(called) => format!("{name}({given})"),
                    _ => {
                        let comma = if given.is_empty() { "" } else { ", " };
                        let name = function_name(self.module, *function);
                        format!("{name}({}{comma}{given})", self.globals)
                    }
                };
                match result {
                    Some(result) => self.name(*result, &call)?,
                    None => self.line(&format!("{call};")),
                }
            }
            Statement::SubgroupGather { mode: GatherMode::Broadcast(lane), argument, result } => {
                let whole = self.threads < 32 || self.threads.is_multiple_of(32);
                if !whole {
                    return unsupported("subgroup operations in workgroups that end within a warp");
                }
                let (value, lane) = (self.expression(*argument)?, self.expression(*lane)?);
                let call = format!("broadcast({}u, {value}, {lane})", self.threads);
                self.name(*result, &call)?;
            }
            other => {
                let text = format!("{other:?}");
                let name = text.split([' ', '(']).next().unwrap_or_default();
                return unsupported(format!("statement {name}"));
            }
        }
        Ok(())
    }

    /// A loop; `continue` jumps to the end of the body, whose names end there.
    fn repeat(
        &mut self,
        body: &Block,
        continuing: &Block,
        break_if: Option<Handle<Expression>>,
    ) -> Result<()> {
        self.line("while (true) {");
        self.depth += 1;
        if continues(body) {
            self.labels += 1;
            let label = format!("next{}", self.labels);
            self.next.push(label.clone());
            self.line("{");
            self.nested(body)?;
            self.line("}");
            self.line(&format!("{label}:;"));
            self.next.pop();
        } else {
            self.block(body)?;
        }
        self.block(continuing)?;
        if let Some(condition) = break_if {
            let condition = self.expression(condition)?;
            self.line(&format!("if ({condition}) break;"));
        }
        self.depth -= 1;
        self.line("}");
        Ok(())
    }

    fn is_load(&self, handle: Handle<Expression>) -> bool {
        matches!(self.function.expressions[handle], Expression::Load { .. })
    }

    fn is_pointer(&self, handle: Handle<Expression>) -> bool {
        let inner = self.info[handle].ty.inner_with(&self.module.types);
        matches!(inner, TypeInner::Pointer { .. } | TypeInner::ValuePointer { .. })
    }

    /// Gives an evaluated expression a name where one is needed.
    fn emit(&mut self, handle: Handle<Expression>) -> Result<()> {
        if self.is_pointer(handle) {
            return Ok(());
        }
        let load = self.is_load(handle);
        if load && self.memory != Memory::Plain {
            // Its address is what is wanted.
            return Ok(());
        }
        if load || self.info[handle].ref_count > 1 {
            let value = self.expression(handle)?;
            self.name(handle, &value)?;
        }
        Ok(())
    }

    fn name(&mut self, handle: Handle<Expression>, value: &str) -> Result<()> {
        let inner = self.info[handle].ty.inner_with(&self.module.types);
        let ty = type_name(self.module, inner)?;
        self.line(&format!("const {ty} e{} = {value};", handle.index()));
        self.named.insert(handle);
        Ok(())
    }

    /// A constant expression of the module.
    pub(super) fn global_constant(&self, handle: Handle<naga::Constant>) -> Result<String> {
        constant(self.module, self.module.constants[handle].init)
    }
}

/// Whether a block has a `continue` of the loop around it.
fn continues(block: &Block) -> bool {
    block.iter().any(|statement| match statement {
        Statement::Continue => true,
        Statement::Block(inner) => continues(inner),
        Statement::If { accept, reject, .. } => continues(accept) || continues(reject),
        // Loops inside have their own.
        _ => false,
    })
}
