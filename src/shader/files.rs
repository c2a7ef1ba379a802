//! The table of embedded shaders; `scripts/shader-table` writes it.

/// Name and text of every file of `shaders/`.
pub static FILES: &[(&str, &str)] = &[
    ("constant", include_str!("../../shaders/constant.wgsl")),
    ("dot", include_str!("../../shaders/dot.wgsl")),
    ("lib/grid", include_str!("../../shaders/lib/grid.wgsl")),
    ("relu", include_str!("../../shaders/relu.wgsl")),
    ("relu_grad", include_str!("../../shaders/relu_grad.wgsl")),
    ("scale", include_str!("../../shaders/scale.wgsl")),
    ("scale_by", include_str!("../../shaders/scale_by.wgsl")),
    ("sum_parts", include_str!("../../shaders/sum_parts.wgsl")),
    ("weighted_sum", include_str!("../../shaders/weighted_sum.wgsl")),
];
