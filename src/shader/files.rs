//! The table of embedded shaders; `scripts/shader-table` writes it.

/// Name and text of every file of `shaders/`.
pub static FILES: &[(&str, &str)] = &[
    ("augment_params", include_str!("../../shaders/augment_params.wgsl")),
    ("color_jitter", include_str!("../../shaders/color_jitter.wgsl")),
    ("color_jitter_mean", include_str!("../../shaders/color_jitter_mean.wgsl")),
    ("color_jitter_rows", include_str!("../../shaders/color_jitter_rows.wgsl")),
    ("constant", include_str!("../../shaders/constant.wgsl")),
    ("crop_resize", include_str!("../../shaders/crop_resize.wgsl")),
    ("decode", include_str!("../../shaders/decode.wgsl")),
    ("dot", include_str!("../../shaders/dot.wgsl")),
    ("gaussian_blur", include_str!("../../shaders/gaussian_blur.wgsl")),
    ("lib/augment", include_str!("../../shaders/lib/augment.wgsl")),
    ("lib/color", include_str!("../../shaders/lib/color.wgsl")),
    ("lib/grid", include_str!("../../shaders/lib/grid.wgsl")),
    ("lib/pixel", include_str!("../../shaders/lib/pixel.wgsl")),
    ("lib/rng", include_str!("../../shaders/lib/rng.wgsl")),
    ("lib/step", include_str!("../../shaders/lib/step.wgsl")),
    ("normalize", include_str!("../../shaders/normalize.wgsl")),
    ("probe_augment", include_str!("../../shaders/probe_augment.wgsl")),
    ("relu", include_str!("../../shaders/relu.wgsl")),
    ("relu_grad", include_str!("../../shaders/relu_grad.wgsl")),
    ("scale", include_str!("../../shaders/scale.wgsl")),
    ("scale_by", include_str!("../../shaders/scale_by.wgsl")),
    ("sum_parts", include_str!("../../shaders/sum_parts.wgsl")),
    ("weighted_sum", include_str!("../../shaders/weighted_sum.wgsl")),
];
