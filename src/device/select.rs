//! Which device `--device` means, and why.

use super::wgpu::{Gpu, OpenOptions, Pick, adapters};
use super::{Data, DeviceError, Host, Session};
use crate::ir::Graph;
use crate::ops::{Conv2d, Emit};
use crate::rng::{Philox, Stream};
use crate::tensor::{Shape, TensorType};

/// A parsed `--device`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceSpec {
    /// The faster one of a GPU and the processor.
    Auto,
    /// f32 on the processor.
    Cpu,
    /// f64 on the processor, naive (tests).
    Reference,
    /// A wgpu adapter.
    Wgpu(Pick),
    /// A CUDA device by its index.
    Cuda(usize),
}

impl std::str::FromStr for DeviceSpec {
    type Err = DeviceError;
    fn from_str(text: &str) -> Result<Self, DeviceError> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "reference" => Ok(Self::Reference),
            "wgpu" => Ok(Self::Wgpu(Pick::Any)),
            "cuda" => Ok(Self::Cuda(0)),
            _ if text.starts_with("cuda:") => {
                let index =
                    text["cuda:".len()..].parse().map_err(|_| DeviceError::unknown(text))?;
                Ok(Self::Cuda(index))
            }
            _ => Ok(Self::Wgpu(
                text.strip_prefix("wgpu:").ok_or_else(|| DeviceError::unknown(text))?.parse()?,
            )),
        }
    }
}

/// What `auto` takes, and why: the fastest of the first CUDA device, the first other GPU and the
/// processor, measured on a convolution of the networks' kind. An integrated GPU, or a software
/// adapter that calls itself a GPU, can be slower than the processor.
pub fn auto() -> (DeviceSpec, String) {
    let found = adapters();
    let first = found.iter().position(|a| !a.software);
    let wgpu = first.map(|i| (found[i].name.clone(), DeviceSpec::Wgpu(Pick::Index(i))));
    let rate =
        |spec: &DeviceSpec| open(spec).and_then(|(mut session, _)| convolution_rate(&mut session));
    let gpus = cuda_gpu().into_iter().chain(wgpu);
    let raced = gpus.map(|(name, choice)| (name, rate(&choice), choice));
    // One that fails is the slowest.
    let speed = |rate: &Result<f64, DeviceError>| *rate.as_ref().unwrap_or(&0.0);
    let Some((name, gpu_rate, gpu)) = raced.max_by(|a, b| speed(&a.1).total_cmp(&speed(&b.1)))
    else {
        let why = match found.first() {
            None => "there is no Vulkan, Metal or DX12 adapter".into(),
            Some(a) => {
                format!(
                    "`{}` is a software adapter; native code is faster on this processor",
                    a.name
                )
            }
        };
        return (DeviceSpec::Cpu, why);
    };
    faster(&name, gpu, gpu_rate, rate(&DeviceSpec::Cpu))
}

/// The choice between a GPU and the processor from their FLOP/s.
fn faster(
    name: &str,
    gpu: DeviceSpec,
    gpu_rate: Result<f64, DeviceError>,
    cpu_rate: Result<f64, DeviceError>,
) -> (DeviceSpec, String) {
    let giga = |rate: f64| format!("{:.0} GFLOP/s", rate / 1e9);
    match (gpu_rate, cpu_rate) {
        (Ok(g), Ok(c)) => {
            let why =
                format!("on a convolution `{name}` does {}, the processor {}", giga(g), giga(c));
            (if g > c { gpu } else { DeviceSpec::Cpu }, why)
        }
        (Ok(_), Err(error)) => (gpu, format!("the processor failed: {error}")),
        (Err(error), _) => (DeviceSpec::Cpu, format!("`{name}` failed: {error}")),
    }
}

/// FLOP/s of a 3x3 convolution of 64 to 64 channels on 64 maps of 16x16.
fn convolution_rate(session: &mut Session) -> Result<f64, DeviceError> {
    let (x, w) = (Shape::new(64, 16, 16, 64), Shape::new(64, 3, 3, 64));
    let mut g = Graph::default();
    let inputs = [g.input("x", TensorType::f32(x)), g.input("w", TensorType::f32(w))];
    g.label("race");
    let y = g.emit1(Conv2d::new(1, 1).into(), &inputs);
    g.output("y", y);
    session.allocate(&g.layout);
    let id = session.load(session.lower("race", &g))?;
    let rng = Philox::new(0, Stream::Test);
    for (i, shape) in [x, w].into_iter().enumerate() {
        let value = |e: usize| rng.uniforms(0, i as u32, (e / 4) as u32)[e % 4] - 0.5;
        let data: Vec<f32> = (0..shape.len()).map(value).collect();
        session.upload(id, i, Data::F32(&data))?;
    }
    let timing = session.time_op(id, 0)?;
    Ok(session.plan(id).ops[0].flops as f64 / timing.seconds)
}

/// Opens a device and says why it is the one.
///
/// # Errors
/// If there is no such device or its driver fails.
pub fn open(spec: &DeviceSpec) -> Result<(Session, String), DeviceError> {
    match spec {
        DeviceSpec::Auto => {
            let (choice, why) = auto();
            open(&choice).map(|(session, _)| (session, why))
        }
        DeviceSpec::Cpu => Ok((Host::<f32>::new().into(), "as asked".into())),
        DeviceSpec::Reference => Ok((Host::<f64>::new().into(), "as asked".into())),
        DeviceSpec::Wgpu(pick) => {
            Ok((Gpu::pick(pick, OpenOptions::default())?.into(), "as asked".into()))
        }
        DeviceSpec::Cuda(index) => Ok((cuda(*index)?, "as asked".into())),
    }
}

#[cfg(feature = "cuda")]
fn cuda(index: usize) -> Result<Session, DeviceError> {
    use super::cuda::{Cuda, OpenOptions};
    Ok(Cuda::open(index, OpenOptions::default())?.into())
}

#[cfg(not(feature = "cuda"))]
fn cuda(_: usize) -> Result<Session, DeviceError> {
    Err(DeviceError::NotFound {
        message: "this program was built without CUDA".into(),
        hint: Some("build it with `cargo build --release --features cuda`".into()),
    })
}

/// The first CUDA device: its name and how to open it.
fn cuda_gpu() -> Option<(String, DeviceSpec)> {
    #[cfg(feature = "cuda")]
    {
        let report = super::cuda::report();
        // One that cannot be used is none.
        report.missing.is_none().then_some(())?;
        report.gpus.first().map(|gpu| (format!("cuda:{}", gpu.name), DeviceSpec::Cuda(0)))
    }
    #[cfg(not(feature = "cuda"))]
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuda_devices_are_named_by_index() {
        assert_eq!("cuda".parse(), Ok(DeviceSpec::Cuda(0)));
        assert_eq!("cuda:3".parse(), Ok(DeviceSpec::Cuda(3)));
        for text in ["cuda:", "cuda:x", "cuda:-1", "cudaa"] {
            let error = text.parse::<DeviceSpec>().expect_err("no device");
            assert!(error.to_string().contains(text), "{error}");
        }
    }

    #[test]
    fn auto_takes_the_faster_one() {
        let gpu = DeviceSpec::Wgpu(Pick::Index(1));
        let lost = || Err(DeviceError::Lost { device: "GPU".into(), message: "reset".into() });
        let choose = |g, c| faster("GPU", gpu.clone(), g, c);
        let (choice, why) = choose(Ok(3e11), Ok(2e11));
        assert_eq!(choice, gpu);
        assert!(why.contains("300 GFLOP/s") && why.contains("200 GFLOP/s"), "{why}");
        let (choice, why) = choose(Ok(1e11), Ok(2e11));
        assert_eq!(choice, DeviceSpec::Cpu, "an integrated GPU can be the slower one");
        assert!(why.contains("100 GFLOP/s") && why.contains("200 GFLOP/s"), "{why}");
        assert_eq!(choose(lost(), Ok(1e9)).0, DeviceSpec::Cpu);
        assert_eq!(choose(Ok(f64::NAN), Ok(1e9)).0, DeviceSpec::Cpu);
    }

    #[test]
    fn the_race_gives_a_rate() {
        let mut session = Session::from(Host::<f32>::new());
        let rate = convolution_rate(&mut session).expect("the processor does not fail");
        assert!(rate > 1e7 && rate.is_finite(), "{rate} FLOP/s");
    }
}
