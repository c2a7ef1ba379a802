//! The table of embedded shaders; `scripts/shader-table` writes it.

/// Name and text of every file of `shaders/`.
pub static FILES: &[(&str, &str)] = &[
    ("batch_norm_apply", include_str!("../../shaders/batch_norm_apply.wgsl")),
    ("batch_norm_grad", include_str!("../../shaders/batch_norm_grad.wgsl")),
    ("batch_norm_grad_factors", include_str!("../../shaders/batch_norm_grad_factors.wgsl")),
    ("batch_norm_grad_sums", include_str!("../../shaders/batch_norm_grad_sums.wgsl")),
    ("batch_norm_merge", include_str!("../../shaders/batch_norm_merge.wgsl")),
    ("batch_norm_moments", include_str!("../../shaders/batch_norm_moments.wgsl")),
    ("constant", include_str!("../../shaders/constant.wgsl")),
    ("dot", include_str!("../../shaders/dot.wgsl")),
    ("global_avg_pool", include_str!("../../shaders/global_avg_pool.wgsl")),
    ("global_avg_pool_grad", include_str!("../../shaders/global_avg_pool_grad.wgsl")),
    ("lib/grid", include_str!("../../shaders/lib/grid.wgsl")),
    ("max_pool2d", include_str!("../../shaders/max_pool2d.wgsl")),
    ("max_pool2d_grad", include_str!("../../shaders/max_pool2d_grad.wgsl")),
    ("relu", include_str!("../../shaders/relu.wgsl")),
    ("relu_grad", include_str!("../../shaders/relu_grad.wgsl")),
    ("scale", include_str!("../../shaders/scale.wgsl")),
    ("scale_by", include_str!("../../shaders/scale_by.wgsl")),
    ("sum_parts", include_str!("../../shaders/sum_parts.wgsl")),
    ("sum_rows", include_str!("../../shaders/sum_rows.wgsl")),
    ("upsample_nearest", include_str!("../../shaders/upsample_nearest.wgsl")),
    ("upsample_nearest_grad", include_str!("../../shaders/upsample_nearest_grad.wgsl")),
    ("weighted_sum", include_str!("../../shaders/weighted_sum.wgsl")),
];
