// Copies to workgroup memory that go on while the invocation does, where there are such. A shader
// names what it copies `async_copy_*(to, source, inside)`: two vec4<f16> of a buffer, which begin
// at a multiple of two, or zeros. Where a device has no such copies, they are carried out as they
// stand; on CUDA (src/shader/cuda/copies.rs) these functions are instructions.
// `async_copy_near_*` does the same of what the workgroup copies again soon: it stays in the cache
// that is nearest, where a device has a choice.
// What an invocation has copied is there after async_wait, what others have after a barrier behind
// theirs.
// Requires nothing of the importer.

// The copies since the last call are a group.
fn async_commit() {
}

// Waits for all groups of this invocation but the newest so many.
fn async_wait(newest: u32) {
}
