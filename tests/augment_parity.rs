//! Augmentations with given parameters against torchvision's (`tests/golden/augment.*`): every
//! case, by the reference in f64 and by the `cpu` device's version in f32.

use aavae::ops::{
    Call, ColorJitter, CropResize, Decode, GaussianBlur, Input, Normalize, Op, ProbeAugment,
    ResizeCenter, StepUniforms, slot,
};
use aavae::rng::{Philox, Stream};
use aavae::tensor::{Shape, TensorType};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

/// Largest absolute difference, a fortieth of a byte's step; the mean may be a tenth of it.
const TOLERANCE: f64 = 1e-4;

fn golden(file: &str) -> Vec<u8> {
    let path = format!("{}/tests/golden/{file}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read(&path).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// Packed pixels of an image of `images.safetensors`, repeated `tile` times along both axes.
fn pixels(images: &SafeTensors<'_>, image: usize, tile: usize) -> Vec<u32> {
    let bytes = images.tensor("images").expect("the file holds `images`");
    let at =
        |c: usize, y: usize, x: usize| u32::from(bytes.data()[((image * 3 + c) * 32 + y) * 32 + x]);
    let side = 32 * tile;
    (0..side * side)
        .map(|i| (i / side % 32, i % 32))
        .map(|(y, x)| at(0, y, x) | at(1, y, x) << 8 | at(2, y, x) << 16)
        .collect()
}

/// One image on its way through ops, as f64 (reference) or f32 (native).
struct Chain {
    params: Vec<f32>,
    native: bool,
    step: StepUniforms,
}

impl Chain {
    /// Runs an op on pixels or on an image; ops that take parameters get those of the chain.
    fn run(
        &self,
        op: impl Into<Op>,
        pixels: Option<&[u32]>,
        image: &[f64],
        side: usize,
    ) -> Vec<f64> {
        let op = op.into();
        let mut in_types = vec![match pixels {
            Some(_) => TensorType::u32(Shape::new(1, side, side, 1)),
            None => TensorType::f32(Shape::new(1, side, side, 4)),
        }];
        if matches!(op, Op::CropResize(_) | Op::ColorJitter(_) | Op::GaussianBlur(_)) {
            in_types.push(TensorType::f32(Shape::rows(1, slot::COUNT)));
        }
        let out_types = op.outputs(&in_types).expect("the op takes an image of the test");
        let narrow: Vec<f32> = image.iter().map(|&x| x as f32).collect();
        let wide: Vec<f64> = self.params.iter().map(|&x| f64::from(x)).collect();
        if self.native {
            let mut y = vec![f32::NAN; out_types[0].shape.len()];
            let inputs = vec![pixels.map_or(Input::F(&narrow), Input::U), Input::F(&self.params)];
            let mut call = Call {
                inputs,
                outputs: vec![&mut y],
                words: vec![],
                in_types: &in_types,
                out_types: &out_types,
                step: &self.step,
            };
            op.native(&mut call);
            y.into_iter().map(f64::from).collect()
        } else {
            let mut y = vec![f64::NAN; out_types[0].shape.len()];
            let inputs = vec![pixels.map_or(Input::F(image), Input::U), Input::F(&wide)];
            let mut call = Call {
                inputs,
                outputs: vec![&mut y],
                words: vec![],
                in_types: &in_types,
                out_types: &out_types,
                step: &self.step,
            };
            op.reference(&mut call);
            y
        }
    }
}

fn number(case: &Value, key: &str) -> f64 {
    case[key].as_f64().unwrap_or_else(|| panic!("case {} has no number `{key}`", case["name"]))
}

fn channels(case: &Value, key: &str) -> [f32; 3] {
    [0, 1, 2].map(|c| case[key][c].as_f64().expect("three numbers") as f32)
}

/// Side of a case's result.
fn size(case: &Value) -> usize {
    case["side"].as_u64().unwrap_or(32) as usize
}

const JITTER: [&str; 4] = ["brightness", "contrast", "saturation", "hue"];

/// Parameters that do nothing but what the case says.
fn params(case: &Value, side: usize) -> Vec<f32> {
    let mut row = vec![0.0; slot::COUNT];
    let whole = [0.0, 0.0, side as f64, side as f64];
    for (i, key) in ["top", "left", "height", "width"].iter().enumerate() {
        row[slot::BOX + i] = case[*key].as_f64().unwrap_or(whole[i]) as f32;
    }
    let single = [serde_json::json!({ "op": case["op"], "factor": case["factor"] })];
    let chain = case["chain"].as_array().map_or(&single[..], |c| c);
    let mut order = Vec::new();
    row[slot::FACTORS..][..4].copy_from_slice(&[1.0, 1.0, 1.0, 0.0]);
    for link in chain {
        if let Some(op) = JITTER.iter().position(|&name| link["op"] == name) {
            order.push(op);
            row[slot::FACTORS + op] = number(link, "factor") as f32;
            row[slot::JITTER] = 1.0;
        }
    }
    order.extend((0..4).filter(|op| !order.contains(op)).collect::<Vec<_>>());
    (0..4).for_each(|i| row[slot::ORDER + i] = order[i] as f32);
    let flag = |on: bool| f32::from(u8::from(on));
    row[slot::FLIP] = flag(case["op"] == "hflip" || case["flip"] == true);
    row[slot::GREY] = flag(case["op"] == "grayscale" || case["grayscale"] == true);
    row[slot::BLUR] = flag(case["sigma"].is_number());
    row[slot::SIGMA] = case["sigma"].as_f64().unwrap_or(1.0) as f32;
    row
}

/// Counter at which the probe's draws are these.
fn probe_step(dy: usize, dx: usize) -> StepUniforms {
    let rng = Philox::new(0, Stream::Probe);
    let wanted = |s: &u32| {
        let [y, x, flip, _] = rng.uniforms(0, *s, 0);
        (y * 9.0) as usize == dy && (x * 9.0) as usize == dx && flip >= 0.5
    };
    StepUniforms {
        first_sample: (0..100_000).find(wanted).expect("one in 162 draws fits"),
        ..StepUniforms::default()
    }
}

fn result(case: &Value, pixels: &[u32], native: bool) -> Vec<f64> {
    let side = pixels.len().isqrt();
    let mut chain = Chain { params: params(case, side), native, step: StepUniforms::default() };
    let (mean, std) = ([0.0; 3], [1.0; 3]);
    let out = size(case);
    let crop = || chain.run(CropResize { out_h: out, out_w: out }, Some(pixels), &[], side);
    let jitter = |x: &[f64]| chain.run(ColorJitter { normalize: None }, None, x, out);
    let blur = |x: &[f64]| {
        chain.run(GaussianBlur { kernel: number(case, "kernel") as usize }, None, x, out)
    };
    match case["op"].as_str().expect("a case has an op") {
        "resized_crop" | "hflip" => crop(),
        "brightness" | "contrast" | "saturation" | "hue" | "jitter" | "grayscale" => {
            jitter(&chain.run(Decode { mean, std }, Some(pixels), &[], side))
        }
        "gaussian_blur" => blur(&chain.run(Decode { mean, std }, Some(pixels), &[], side)),
        "pad_crop" => {
            chain.step = probe_step(number(case, "top") as usize, number(case, "left") as usize);
            chain.run(
                ProbeAugment { pad: number(case, "pad") as usize, mean, std },
                Some(pixels),
                &[],
                side,
            )
        }
        "normalise" => chain.run(
            Decode { mean: channels(case, "mean"), std: channels(case, "std") },
            Some(pixels),
            &[],
            side,
        ),
        "pipeline" => {
            let op = Normalize { mean: channels(case, "mean"), std: channels(case, "std") };
            chain.run(op, None, &blur(&jitter(&crop())), out)
        }
        "resize_center" => {
            let full = number(case, "full") as usize;
            let (mean, std) = (channels(case, "mean"), channels(case, "std"));
            chain.run(
                ResizeCenter { full_h: full, full_w: full, out_h: out, out_w: out, mean, std },
                Some(pixels),
                &[],
                side,
            )
        }
        other => panic!("unknown op `{other}` in augment.json"),
    }
}

/// Value `i` of a stored tensor, back in the units of the result.
fn stored(tensor: &safetensors::tensor::TensorView<'_>, i: usize) -> f64 {
    let bytes = |n: usize| &tensor.data()[i * n..][..n];
    match tensor.dtype() {
        Dtype::U8 => f64::from(bytes(1)[0]) / 255.0,
        Dtype::U16 => f64::from(u16::from_le_bytes([bytes(2)[0], bytes(2)[1]])) / 65535.0,
        Dtype::F32 => {
            f64::from(f32::from_le_bytes([bytes(4)[0], bytes(4)[1], bytes(4)[2], bytes(4)[3]]))
        }
        other => panic!("unexpected dtype {other:?}"),
    }
}

#[test]
fn equals_torchvision() {
    let cases: Value =
        serde_json::from_slice(&golden("augment.json")).expect("augment.json is JSON");
    let (images, results) = (golden("images.safetensors"), golden("augment.safetensors"));
    let (images, results) = (
        SafeTensors::deserialize(&images).expect("images"),
        SafeTensors::deserialize(&results).expect("results"),
    );
    let cases = cases["cases"].as_array().expect("a list of cases");
    assert_eq!(cases.len(), results.len(), "every stored result has a case");
    let mut failures = Vec::new();
    for case in cases {
        let name = case["name"].as_str().expect("a case has a name");
        let pixels = pixels(&images, number(case, "image") as usize, number(case, "tile") as usize);
        let want = results.tensor(name).expect("a case has a result");
        let [c, h, w] = *want.shape() else { panic!("{name}: shape {:?}", want.shape()) };
        for native in [false, true] {
            let got = result(case, &pixels, native);
            assert!(got.chunks(4).all(|p| p[3] == 0.0), "{name}: the fourth channel is not 0");
            let step = size(case) / h;
            let error = |i: usize| {
                let (c, y, x) = (i / (h * w), i / w % h * step, i % w * step);
                (got[(y * size(case) + x) * 4 + c] - stored(&want, i)).abs()
            };
            let len = c * h * w;
            let (mean, worst) = (
                (0..len).map(error).sum::<f64>() / len as f64,
                (0..len).map(error).fold(0.0, f64::max),
            );
            let which = if native { "native" } else { "reference" };
            println!("{name:16} {which:9} mean {mean:.1e} worst {worst:.1e}");
            if !(mean <= TOLERANCE / 10.0 && worst <= TOLERANCE) {
                failures.push(format!("{name} ({which}): mean {mean:.1e}, worst {worst:.1e}"));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
