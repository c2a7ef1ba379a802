//! Augmentation-augmented variational autoencoders, trained by WGSL compute shaders on any GPU.
//!
//! AAVAE (Falcon et al., 2021, arXiv 2107.12329) trains a ResNet VAE whose KL term is replaced by
//! augmentation: encode an augmented view, sample a latent, decode, and score the *original* image
//! under a Gaussian. This crate is that method, its neighbours (AE, VAE, AAAE), the contrastive
//! SimCLR it is compared with, and everything under them: kernels, gradients, plans, devices, data,
//! training, evaluation. This page is its architecture.
//!
//! ```text
//! settings -> RunConfig -> method (one file = one equation) -> ir::Graph
//!                                                  | ir::autodiff  calls OpDef::gradient, knows no op
//!                                                  v
//!   plan::lower: ir::fuse (what the device can) -> ir::half (f16 or bf16, if asked for)
//!                -> ir::moments, ir::gradient_sums (what batch norms sum)
//!                -> ir::cut (updates to what it binds)
//!                -> a variant of each op (kernel, constants, grid, bindings)
//!                -> lives -> buffers -> plan::verify
//!                                                  |
//!                          Plan: plain data, printable, knows no GPU type
//!                                                  |
//!       Session: one model on one device: checks, ring of scalars, submissions, timing, recovery
//!                    +-----------------------------+-----------------------------+
//!              Host<f64> `reference`         Host<f32> `cpu`         Gpu `wgpu`, Cuda `cuda`
//!              naive, poisons dead           SIMD and threads        WGSL -> Vulkan, Metal, DX12;
//!              buffers: the oracle                                   WGSL -> CUDA C++
//! ```
//!
//! A device is about eight primitives ([`device::Device`]): capabilities, allocate, write, load,
//! run some of a plan's ops, ask for a read, poll, free. Everything that devices would do alike
//! stands in [`device::Session`], once. Which variant of a product a device runs is plain data
//! ([`ops::Choices`]): [`tune`] measures it, a file remembers it, a checkpoint carries it.
//!
//! # Layers
//!
//! Each uses only those before it (`tests/hygiene.rs` reads the imports):
//!
//! [`text`], [`tensor`], [`rng`], [`disk`] → [`ops`] → [`shader`] → [`ir`] → [`plan`] → [`device`]
//! → [`check`] → [`tune`] → [`nn`] → [`model`] → [`optim`] → [`method`] → [`data`] → [`run`] →
//! [`eval`] → [`train`] → [`interop`] → [`reproduce`] → [`monitor`] → [`cli`] → [`web`](#parts).
//!
//! # Vocabulary
//!
//! A word means one thing. Where it is a type, the entry links to it; no two public types share a
//! name, but for those that `tests/hygiene.rs` lists with a reason.
//!
//! * **Op** ([`ops::Op`]): one file of [`ops`]: mathematics, shape rule, f64 reference, native
//!   version, gradient, lowering, trial cases.
//! * **Kernel** ([`ops::Kernel`]): a file of `shaders/` and the constants it is specialised with.
//!   Every shape is a WGSL constant, so index arithmetic is exact and division is cheap.
//! * **Graph** ([`ir::Graph`]): ops applied to values. A value's **source** ([`ir::Source`]) is an
//!   op, an upload, state, or images that stay.
//! * **Plan** ([`plan::Plan`]): a graph ready for a device: ops in order ([`plan::PlannedOp`]),
//!   where each tensor lives, the dispatches. Made once; running it allocates nothing and decides
//!   nothing.
//! * **Step** ([`train::trainer::Step`]): one update of the weights, and the run of the plans that
//!   make it. What a step draws and how far it goes is its uniform ([`ops::StepUniforms`]).
//! * **State** ([`ir::Layout`] says where): what outlives a step: flat buffers of parameters,
//!   gradients, moments and running statistics ([`ir::Group`]). What is frozen
//!   ([`ir::Layout::frozen`]) no update touches.
//! * **Batch** ([`data::Batch`]): what a plan takes at once. A step has one, or with `--accumulate`
//!   several and a plan of its own for the update.
//! * **Subset** ([`data::Subset`]): some images of a data set, in an order of their own.
//! * **Images that stay** ([`ir::resident`]): those of training as bytes on the device, where it is
//!   no host and they fit ([`run::resident`]): a step uploads which ones it takes.
//! * **View**: what augmentation makes of an image. Graphs draw views or are given them
//!   ([`method::Views`]).
//! * **Method** ([`method::Method`]): what is trained: an equation and its properties, one file of
//!   [`method`]. Its parameters are the **objective** ([`method::Objective`]).
//! * **Variant** ([`ops::Variant`]): one of several kernels that an op could be lowered to;
//!   **product** ([`tune::Product`]): an op that has several, at a shape. **Choices**
//!   ([`ops::Choices`]) say which variant a product takes.
//! * **Library** ([`ops::Library`]): products by a device's vendor, as variants that are
//!   measured beside ours.
//! * **Half** ([`tensor::Half`]): f16 or bf16, as which memory may hold what passes between layers
//!   ([`ir::half`]); arithmetic stays f32. A half product has two such operands, so that matrix
//!   units may multiply them.
//! * **Copies** ([`ops::Target::copies`]): transfers to workgroup memory that go on while an
//!   invocation does something else.
//! * **Device** ([`device::Device`]): what carries out plans, as [`device::DeviceSpec`] names it.
//!   **Session** ([`device::Session`]): one model on one device, and all that devices do alike.
//! * **Evaluator** ([`eval::features::Evaluator`]): a trained model on a session, frozen. A
//!   **probe** is a linear classifier that is trained on its features.
//! * **Run**: one model trained into one folder, which belongs to one process at a time
//!   ([`reproduce::folder::CellRun`] is one of a grid). A trainer (a device, no files) takes its
//!   steps, a recorder writes what is measured, a saver keeps states on a thread of its own. Its
//!   checkpoints, not the files that people edit, say what it is.
//! * **Setting** ([`run::settings::Setting`]): an entry of the list from which a run's
//!   configuration, its file, flags and checks follow. A **preset** ([`run::settings::Preset`]) is
//!   a named set of them.
//! * **Evaluation** ([`run::summary::Evaluation`]): probe and kNN of a frozen encoder, as a run's
//!   summary keeps them.
//! * **Grid**: an experiment of the paper: runs of its cells and seeds, and their report.
//!
//! # Parts
//!
//! With the feature `cli` the crate has everything. With `native` alone it lacks the command and
//! what is drawn on terminals; without that too, what needs drivers, threads or the network, and so
//! it builds for a browser: `web` is the bridge to a page (`scripts/web`), in which the same
//! trainer takes the same steps, reads files that it is given in memory ([`data::Files`]), and
//! answers what a person asks of a model while it trains. Without threads rayon works on the one
//! that asks and batches are read when they are due; without SIMD pulp has scalars.
//!
//! # Invariants
//!
//! * `ir` and `plan` know no GPU type. A device makes no decision: grid, buffers and variants are
//!   in the plan.
//! * Tensors are NHWC with channels a multiple of 4 (RGB is stored as 4 with a zero channel): the
//!   reduction axis of every product is contiguous and loads are `vec4`s. Weights are
//!   `[Cout, Kh, Kw, Cin]`; files hold PyTorch's layouts ([`nn::FileLayout`]).
//! * No float atomics, fixed summation trees, counter-based randomness ([`rng`]): same device and
//!   seed, same bits; a resumed run has the bits of a straight one.
//! * A buffer is never read and written by one dispatch, and values share whole buffers, not
//!   ranges: WebGPU tracks hazards per buffer.
//! * All parameters live in one flat buffer, their gradients and moments at the same offsets: the
//!   optimiser is one op, cut at tensor boundaries where a device binds less ([`ir::cut`]). What
//!   kernels must know of single tensors comes as a constant table (`ops::Lowering::table`).
//! * NaN stays NaN on every device, told by its bits. After the first loss or gradient that is not
//!   finite nothing is updated ([`ops::AllFinite`]), so the weights are those of the step that the
//!   error names. Where the loss is scaled, a gradient that is not finite skips its step and halves
//!   the scale, which is state on the device ([`ops::LossScale`]), until none is left.
//! * Every op's reference is independent of its kernels, and every kernel is reached by a trial
//!   case. A variant that is not the portable one is used on a GPU only after it agreed with the
//!   compact form of that there, at that shape; `--no-tune` and software adapters take a table of
//!   defaults as it is. A page starts with compact kernels, one for many shapes, and takes the
//!   portable ones, one for each, where they agree with these and are faster ([`tune::Search`]).
//! * The last op of every plan writes the number of its run into the plan's ring ([`ops::Record`]):
//!   what the host reads of a step proves that the step was carried out.
//! * A file is written whole or not at all, by one function ([`disk`]); nothing of a run is
//!   overwritten unasked.
//! * A user's mistake is a `Result` that names the thing, the numbers and a hint; a bug of ours is
//!   a panic with a message.
//!
//! # Where building proved the design wrong
//!
//! * *The `cpu` device uses a GEMM crate.* Direct convolutions on `pulp`'s SIMD types run the
//!   networks' layers two to six times as fast as the crates' products alone (`shaders/README.md`),
//!   need no column buffer, and cost a dependency less (`ops/conv2d/native.rs`).
//! * *`subgroupBroadcast` carries the barrier-free GEMM.* naga wants its index to be a constant
//!   expression, which a loop counter is not before unrolling; the kernels use `subgroupShuffle`,
//!   which llvmpipe compiles to the same permutation.
//! * *Nothing blocks inside the library, so that it runs in a browser.* A device never waits
//!   unless `poll` is told to, and scalars are ring-buffered, so a step never waits either. But
//!   whoever reads a tensor needs it for what follows, and colouring every function between a page
//!   and its device `async` would have put the browser's event loop into the trainer, the probe and
//!   the measures. Instead the one place that waits ([`device::wait`]) puts a thread to sleep, and
//!   in a browser suspends the program (JavaScript Promise Integration), while the page goes on.
//! * *One GEMM variant per device, chosen by one convolution.* The fastest tile differs by shape,
//!   and so does the wrong one.
//! * *Half precision is another family of kernels.* Its storage is a property of a binding: every
//!   kernel is written in f32, and the last rewrite of its text has loads widen and stores round
//!   (`shader/storage.rs`), so that half precision came with one pass over types and two kernels
//!   for matrix units. The oracle is the same f64 reference, which rounds where devices do.
//! * *A driver computes what the text says.* NVIDIA's compiler for Vulkan takes a conversion to f16
//!   and back for nothing, as a GPU showed; weights are rounded by their bits.
//! * *Tuning is compiling and measuring.* On a GPU it was uploading: noise is drawn there now.
//! * *A step is one command buffer.* It is one where that is short; a slow device gets pieces, cut
//!   between ops.

pub mod check;
#[cfg(feature = "cli")]
pub mod cli;
pub mod data;
pub mod device;
pub mod disk;
pub mod eval;
#[cfg(feature = "native")]
pub mod interop;
pub mod ir;
pub mod method;
pub mod model;
#[cfg(feature = "cli")]
pub mod monitor;
pub mod nn;
pub mod ops;
pub mod optim;
pub mod plan;
#[cfg(feature = "native")]
pub mod reproduce;
pub mod rng;
pub mod run;
pub mod shader;
pub mod tensor;
pub mod text;
pub mod train;
pub mod tune;
#[cfg(all(feature = "web", target_family = "wasm"))]
pub mod web;
