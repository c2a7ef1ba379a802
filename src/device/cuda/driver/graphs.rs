//! Graphs of the driver: kernels and captured work that are launched as one.

use std::ffi::{c_uint, c_void};
use std::rc::Rc;

use super::{Address, Context, Driver, Failed, Function, Handle};

impl Context {
    /// What is queued meanwhile as a part of graphs; nothing of it is carried out now.
    pub(in super::super) fn capture(
        self: &Rc<Self>,
        queue: impl FnOnce(),
    ) -> Result<Captured, Failed> {
        // CU_STREAM_CAPTURE_MODE_RELAXED: the library may do what it likes on this thread.
        call!(&self.driver, cuStreamBeginCapture_v2(self.stream, 2))?;
        queue();
        let mut handle = std::ptr::null_mut();
        call!(&self.driver, cuStreamEndCapture(self.stream, &mut handle))?;
        Ok(Captured { context: Rc::clone(self), handle })
    }

    /// A graph without kernels.
    pub(in super::super) fn graph(self: &Rc<Self>) -> Result<Unfinished, Failed> {
        let mut handle = std::ptr::null_mut();
        call!(&self.driver, cuGraphCreate(&mut handle, 0))?;
        Ok(Unfinished { context: Rc::clone(self), handle, nodes: Vec::new() })
    }
}

/// `CUDA_KERNEL_NODE_PARAMS_v2` of `cuda.h`.
#[repr(C)]
pub(in super::super) struct KernelNode {
    function: Handle,
    grid: [c_uint; 3],
    block: [c_uint; 3],
    dynamic: c_uint,
    arguments: *mut *mut c_void,
    extra: *mut *mut c_void,
    kernel: Handle,
    context: Handle,
}

/// Work of a library that is part of graphs.
pub(in super::super) struct Captured {
    context: Rc<Context>,
    handle: Handle,
}

impl Drop for Captured {
    fn drop(&mut self) {
        if !self.handle.is_null() {
            call!(&self.context.driver, cuGraphDestroy(self.handle)).ok();
        }
    }
}

/// A graph that kernels are still added to.
pub(in super::super) struct Unfinished {
    context: Rc<Context>,
    handle: Handle,
    nodes: Vec<Handle>,
}

impl Unfinished {
    /// Adds a kernel that takes addresses only and waits for earlier ones, counted from 0.
    pub(in super::super) fn add(
        &mut self,
        function: &Function,
        grid: [u32; 3],
        block: [u32; 3],
        arguments: &[Address],
        after: &[usize],
    ) -> Result<(), Failed> {
        let pointer = |a: &Address| std::ptr::from_ref(a).cast_mut().cast::<c_void>();
        // The driver copies them before it returns.
        let mut pointers: Vec<*mut c_void> = arguments.iter().map(pointer).collect();
        let after: Vec<Handle> = after.iter().map(|i| self.nodes[*i]).collect();
        let none: Handle = std::ptr::null_mut();
        let node = KernelNode {
            function: function.handle,
            grid,
            block,
            dynamic: function.dynamic,
            arguments: pointers.as_mut_ptr(),
            extra: none.cast(),
            kernel: none,
            context: none, // the current one
        };
        let mut handle = none;
        call!(
            &self.context.driver,
            cuGraphAddKernelNode_v2(&mut handle, self.handle, after.as_ptr(), after.len(), &node)
        )?;
        self.nodes.push(handle);
        Ok(())
    }

    /// Adds captured work, which the driver copies, behind earlier nodes.
    pub(in super::super) fn add_captured(
        &mut self,
        work: &Captured,
        after: &[usize],
    ) -> Result<(), Failed> {
        let after: Vec<Handle> = after.iter().map(|i| self.nodes[*i]).collect();
        let mut handle = std::ptr::null_mut();
        let (list, count) = (after.as_ptr(), after.len());
        call!(
            &self.context.driver,
            cuGraphAddChildGraphNode(&mut handle, self.handle, list, count, work.handle)
        )?;
        self.nodes.push(handle);
        Ok(())
    }

    /// The graph, ready to be launched.
    pub(in super::super) fn finish(self) -> Result<Graph, Failed> {
        let mut handle = std::ptr::null_mut();
        call!(&self.context.driver, cuGraphInstantiateWithFlags(&mut handle, self.handle, 0))?;
        Ok(Graph { context: Rc::clone(&self.context), handle })
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        call!(&self.context.driver, cuGraphDestroy(self.handle)).ok();
    }
}

/// Work that is queued as one.
pub(in super::super) struct Graph {
    context: Rc<Context>,
    handle: Handle,
}

impl Graph {
    pub(in super::super) fn launch(&self) -> Result<(), Failed> {
        call!(&self.context.driver, cuGraphLaunch(self.handle, self.context.stream))
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        call!(&self.context.driver, cuGraphExecDestroy(self.handle)).ok();
    }
}
