// Which lanes of a vec4 of an NHWC tensor are channels and which are padding.
// Requires nothing of the importer; its host sets C4 and CHANNELS.
const C4: u32 = 1u; // uniform: stored channels / 4
const CHANNELS: u32 = 3u; // uniform: channels that count
fn is_channel(i: u32) -> vec4<bool> {
  return vec4<u32>(0u, 1u, 2u, 3u) + (i % C4) * 4u < vec4<u32>(CHANNELS);
}
