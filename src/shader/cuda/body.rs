//! Statements.

use naga::{
    Block, Expression, Function, GatherMode, Handle, Statement, SwitchCase, SwitchValue, TypeInner,
};

use super::{CudaError, Scope, Writer, unknown};

impl<'a> Writer<'a> {
    /// The local variables and the statements of a function.
    pub(super) fn body(&mut self, scope: &mut Scope<'a>) -> Result<(), CudaError> {
        let function = scope.function;
        for (handle, variable) in function.local_variables.iter() {
            let name = scope.names.fresh(variable.name.as_deref().unwrap_or("v"));
            scope.locals.insert(handle, name.clone());
            let ty = self.type_name(variable.ty)?;
            // WGSL's variables start as zeros.
            let init = match variable.init {
                Some(e) => format!(" = {}", self.expression(scope, e)?),
                None => "{}".into(),
            };
            self.line(1, &format!("{ty} {name}{init};"));
        }
        self.block(scope, &function.body, 1)
    }

    fn block(
        &mut self,
        scope: &mut Scope<'a>,
        block: &'a Block,
        depth: usize,
    ) -> Result<(), CudaError> {
        block.iter().try_for_each(|statement| self.statement(scope, statement, depth))
    }

    fn statement(
        &mut self,
        scope: &mut Scope<'a>,
        statement: &'a Statement,
        depth: usize,
    ) -> Result<(), CudaError> {
        match statement {
            Statement::Emit(range) => {
                range.clone().try_for_each(|e| self.emit(scope, e, depth))?;
            }
            Statement::Block(block) => {
                self.line(depth, "{");
                self.block(scope, block, depth + 1)?;
                self.line(depth, "}");
            }
            Statement::If { condition, accept, reject } => {
                let condition = self.expression(scope, *condition)?;
                self.line(depth, &format!("if ({condition}) {{"));
                self.block(scope, accept, depth + 1)?;
                if !reject.is_empty() {
                    self.line(depth, "} else {");
                    self.block(scope, reject, depth + 1)?;
                }
                self.line(depth, "}");
            }
            Statement::Switch { selector, cases } => {
                self.switch(scope, *selector, cases, depth)?;
            }
            Statement::Loop { body, continuing, break_if } => {
                self.loops(scope, (body, continuing), *break_if, depth)?;
            }
            Statement::Break => self.line(depth, "break;"),
            Statement::Continue => {
                let Some((label, met)) = scope.loops.last_mut() else {
                    return unknown("`continue` in `continuing`");
                };
                *met = true;
                let text = format!("goto next_{label};");
                self.line(depth, &text);
            }
            Statement::Return { value: None } => self.line(depth, "return;"),
            Statement::Return { value: Some(e) } => {
                let value = self.expression(scope, *e)?;
                self.line(depth, &format!("return {value};"));
            }
            Statement::ControlBarrier(barrier) => {
                // `__syncthreads` orders shared and global memory within the block.
                if barrier.intersects(naga::Barrier::SUB_GROUP | naga::Barrier::TEXTURE) {
                    return unknown(format!("the barrier {barrier:?}"));
                }
                self.barriers = true;
                self.line(depth, "__syncthreads();");
            }
            Statement::Store { pointer, value } => self.store(scope, *pointer, *value, depth)?,
            Statement::SubgroupGather { mode: GatherMode::Shuffle(lane), argument, result } => {
                self.cooperates = true;
                let value = self.expression(scope, *argument)?;
                let call = format!("w_shuffle({value}, {})", self.expression(scope, *lane)?);
                self.name(scope, *result, &call, depth)?;
            }
            Statement::CooperativeStore { target, data } => {
                let text = self.coop_store(scope, *target, data)?;
                self.cooperates = true;
                self.line(depth, &text);
            }
            Statement::Call { function, arguments, result } => {
                self.call(scope, *function, arguments, *result, depth)?;
            }
            other => return unknown(format!("the statement {other:?}")),
        }
        Ok(())
    }

    fn switch(
        &mut self,
        scope: &mut Scope<'a>,
        selector: Handle<Expression>,
        cases: &'a [SwitchCase],
        depth: usize,
    ) -> Result<(), CudaError> {
        let selector = self.expression(scope, selector)?;
        self.line(depth, &format!("switch ({selector}) {{"));
        for case in cases {
            let label = match case.value {
                SwitchValue::I32(x) => format!("case {x}: {{"),
                SwitchValue::U32(x) => format!("case {x}u: {{"),
                SwitchValue::Default => "default: {".into(),
            };
            self.line(depth, &label);
            self.block(scope, &case.body, depth + 1)?;
            self.line(depth, if case.fall_through { "}" } else { "} break;" });
        }
        self.line(depth, "}");
        Ok(())
    }

    /// Names a value where it is evaluated.
    fn emit(
        &mut self,
        scope: &mut Scope<'a>,
        e: Handle<Expression>,
        depth: usize,
    ) -> Result<(), CudaError> {
        let pointer =
            matches!(self.ty(scope, e), TypeInner::Pointer { .. } | TypeInner::ValuePointer { .. });
        let given = scope.function.named_expressions.get(&e);
        let uses = scope.info[e].ref_count;
        let load = match scope.function.expressions[e] {
            Expression::Load { .. } => true,
            // All lanes meet, whatever some of them do later.
            Expression::CooperativeLoad { .. } | Expression::CooperativeMultiplyAdd { .. } => {
                self.cooperates = true;
                true
            }
            _ => false,
        };
        let unused = uses == 0 && given.is_none();
        if pointer || unused || !(load || uses >= 2 || given.is_some()) {
            return Ok(());
        }
        let value = self.expression(scope, e)?;
        let name = scope.names.fresh(given.map_or("e", String::as_str));
        let ty = self.value_type(scope, e)?;
        self.line(depth, &format!("const {ty} {name} = {value};"));
        scope.named.insert(e, name);
        Ok(())
    }

    /// Names the result of a statement.
    fn name(
        &mut self,
        scope: &mut Scope<'a>,
        e: Handle<Expression>,
        value: &str,
        depth: usize,
    ) -> Result<(), CudaError> {
        let given = scope.function.named_expressions.get(&e);
        let name = scope.names.fresh(given.map_or("r", String::as_str));
        let ty = self.value_type(scope, e)?;
        self.line(depth, &format!("const {ty} {name} = {value};"));
        scope.named.insert(e, name);
        Ok(())
    }

    /// `continue` jumps to the end of the body's braces, behind which `continuing` stands.
    fn loops(
        &mut self,
        scope: &mut Scope<'a>,
        (body, continuing): (&'a Block, &'a Block),
        break_if: Option<Handle<Expression>>,
        depth: usize,
    ) -> Result<(), CudaError> {
        scope.labels += 1;
        let label = scope.labels;
        scope.loops.push((label, false));
        self.line(depth, "for (;;) {");
        let start = self.out.len();
        self.block(scope, body, depth + 1)?;
        if scope.loops.pop().is_some_and(|l| l.1) {
            if break_if.is_some() {
                return unknown("`continue` and `break if` in one loop");
            }
            self.out.insert_str(start, "{\n");
            self.line(depth, &format!("}} next_{label}:;"));
        }
        // A `continue` in here would be of no loop around either.
        let outer = std::mem::take(&mut scope.loops);
        self.block(scope, continuing, depth + 1)?;
        scope.loops = outer;
        if let Some(e) = break_if {
            let condition = self.expression(scope, e)?;
            self.line(depth + 1, &format!("if ({condition}) break;"));
        }
        self.line(depth, "}");
        Ok(())
    }

    fn store(
        &mut self,
        scope: &Scope<'a>,
        pointer: Handle<Expression>,
        value: Handle<Expression>,
        depth: usize,
    ) -> Result<(), CudaError> {
        let value = self.expression(scope, value)?;
        let text = match scope.function.expressions[pointer] {
            Expression::Access { base, index } if self.is_vector_pointer(scope, base) => {
                let (base, index) = (self.expression(scope, base)?, self.expression(scope, index)?);
                format!("w_set({base}, {index}, {value});")
            }
            _ => format!("{} = {value};", self.expression(scope, pointer)?),
        };
        self.line(depth, &text);
        Ok(())
    }

    fn call(
        &mut self,
        scope: &mut Scope<'a>,
        function: Handle<Function>,
        arguments: &[Handle<Expression>],
        result: Option<Handle<Expression>>,
        depth: usize,
    ) -> Result<(), CudaError> {
        let mut list = Vec::new();
        for argument in arguments {
            list.push(self.expression(scope, *argument)?);
        }
        let needs = self.needs(&self.info[function]);
        list.extend(needs.iter().map(|h| self.globals[h].clone()));
        let call = format!("{}({})", self.functions[&function], list.join(", "));
        let Some(e) = result else {
            self.line(depth, &format!("{call};"));
            return Ok(());
        };
        self.name(scope, e, &call, depth)
    }
}
