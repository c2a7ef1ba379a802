// Row of augmentation parameters, as vec4s; the slots are listed in ops/augment_params.rs. Requires
// nothing of the importer.
const PARAMS4: u32 = 8u;  // vec4s per image
const P_BOX: u32 = 0u;    // top, left, height, width
const P_FLAGS: u32 = 1u;  // flip, jitter, grey, blur: 0 or 1
const P_ORDER: u32 = 2u;  // jitter op at each place
const P_FACTORS: u32 = 3u; // brightness, contrast, saturation, hue
const P_SIGMA: u32 = 4u;  // sigma of the blur in x
