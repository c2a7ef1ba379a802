// Per-step values; `StepUniforms` in ops/run.rs is the same struct. The importer declares
// `var<uniform> step: Step` behind its buffers.
struct Step {
  seed_lo: u32,
  seed_hi: u32,
  step: u32,          // counter word 0 of every draw
  first_sample: u32,  // added to the position in the batch: counter word 1; 0 in a step's first batch only
  learning_rate: f32,
  bias1: f32,         // 1 / (1 - beta1^t)
  bias2: f32,         // 1 / (1 - beta2^t)
  serial: u32,        // which run of its plan this is: `record` writes it behind the step
}
