//! Dispatches against what their kernels declare.

use std::collections::{BTreeMap, BTreeSet};

use aavae::ops::{Binding, Dispatch, Kernel, Storage};
use aavae::shader::{CONSTANTS_BINDING, constants, source};
use aavae::tensor::Half;
use libtest_mimic::Failed;

use crate::check;
use crate::kernel::{Access, Reflection, validate};
use crate::reach::{Reached, reached, texts};
use rayon::prelude::*;

/// Fewer distinct kernels than this means that the walk no longer reaches the networks.
const LEAST_KERNELS: usize = 900;

/// A browser's limits and every output language, for every distinct text; then every dispatch
/// against what its kernel declares.
pub(crate) fn reachable_kernels() -> Result<(), Failed> {
    let reflections: Vec<(&String, Result<Reflection, String>)> = texts()
        .par_iter()
        .map(|(text, (kernel, from))| {
            (text, validate(kernel.file, text).map_err(|e| format!("{from}: {e}")))
        })
        .collect();
    let mut by_text = BTreeMap::new();
    for (text, r) in reflections {
        by_text.insert(text.as_str(), r?);
    }
    let dispatches: usize = reached().iter().map(|r| r.dispatches.len()).sum();
    eprintln!(
        "{} distinct kernels in {} distinct lowerings with {dispatches} dispatches",
        by_text.len(),
        reached().len()
    );
    check(by_text.len() >= LEAST_KERNELS, || {
        format!("only {} kernels are reached, expected {LEAST_KERNELS}", by_text.len())
    })?;
    let sources: BTreeMap<String, &str> =
        texts().iter().map(|(text, (kernel, _))| (format!("{kernel:?}"), text.as_str())).collect();
    reached().par_iter().try_for_each(|r| {
        let found = |d: &Dispatch| match sources.get(&format!("{:?}", d.kernel)) {
            Some(text) => &by_text[*text],
            None => &by_text[source(&d.kernel).as_str()], // another kernel had the same text
        };
        bindings_match(r, found).map_err(|e| format!("{}: {e}", r.from))
    })?;
    Ok(())
}

/// Every binding of every dispatch is declared, as what it is; scratch is written before it is
/// read; every output is written.
fn bindings_match<'a>(
    r: &Reached,
    reflection: impl Fn(&Dispatch) -> &'a Reflection,
) -> Result<(), String> {
    let mut scratch = BTreeSet::new();
    let mut written: BTreeSet<usize> = r.in_place.iter().copied().collect();
    let mut touched = BTreeSet::new();
    for d in &r.dispatches {
        let shader = reflection(d);
        let file = d.kernel.file;
        let bound: BTreeMap<u32, Binding> = d
            .bindings
            .iter()
            .enumerate()
            .filter(|(_, b)| **b != Binding::Skip)
            .map(|(i, b)| (i as u32, *b))
            .collect();
        let words = constants(&d.kernel).len();
        let uniform = (words > 0).then_some(CONSTANTS_BINDING);
        if !bound.keys().chain(&uniform).eq(shader.bindings.keys()) {
            return Err(format!(
                "{file} declares bindings {:?}, the dispatch binds {:?} and {words} constants",
                shader.bindings.keys(),
                bound.keys()
            ));
        }
        if shader.constants as usize != words * size_of::<u32>() {
            return Err(format!(
                "{file} declares {} bytes of constants, there are {words} words",
                shader.constants
            ));
        }
        if d.grid.iter().any(|&g| g == 0 || g > 65_535) {
            return Err(format!("{file}: grid {:?}", d.grid));
        }
        for (i, b) in &bound {
            let (access, reads, writes) =
                (shader.bindings[i], shader.reads.contains(i), shader.writes.contains(i));
            let fits = match b {
                Binding::Step => access == Access::Uniform,
                Binding::Input(_) | Binding::Table(_) => access == Access::Read,
                Binding::Output(o) => {
                    if reads && !writes && !written.contains(o) {
                        return Err(format!("{file} reads output {o} before it is written"));
                    }
                    if writes {
                        touched.insert(*o);
                    }
                    access != Access::Uniform
                }
                Binding::Scratch(s) => {
                    if reads && !scratch.contains(s) {
                        return Err(format!("{file} reads scratch {s} before it is written"));
                    }
                    access != Access::Uniform
                }
                Binding::Skip => unreachable!("filtered above"),
            };
            if !fits {
                return Err(format!(
                    "{file} declares binding {i} as {access:?}, the dispatch binds {b:?}"
                ));
            }
        }
        for (i, b) in &bound {
            match b {
                Binding::Output(o) if shader.writes.contains(i) => drop(written.insert(*o)),
                Binding::Scratch(s) if shader.writes.contains(i) => drop(scratch.insert(*s)),
                _ => {}
            }
        }
    }
    match (0..r.outputs).find(|o| !touched.contains(o)) {
        Some(o) => Err(format!("no dispatch writes output {o}")),
        None => Ok(()),
    }
}

/// What `validate` and `bindings_match` must refuse, or nothing above means anything.
pub(crate) fn canaries() -> Result<(), Failed> {
    let good = source(&Kernel::new("relu"));
    validate("relu", &good)?;
    let spoil = |what: &str, from: &str, to: &str| -> Result<(), Failed> {
        let text = good.replace(from, to);
        check(text != good, || format!("{what}: `{from}` is not in relu.wgsl"))?;
        check(validate("relu", &text).is_err(), || format!("accepted {what}"))
    };
    spoil("a syntax error", "{", "")?;
    spoil("an unknown name", "relu(x[i])", "rectify(x[i])")?;
    spoil("a write to a read binding", "var<storage, read_write> y", "var<storage, read> y")?;
    spoil(
        "a binding that is only read, bound for writing",
        "var<storage, read> x",
        "var<storage, read_write> x",
    )?;
    spoil("two variables at one binding", "@binding(1)", "@binding(0)")?;
    spoil(
        "an unused binding",
        "@compute",
        "@group(0) @binding(2) var<storage, read> z: array<f32>;\n@compute",
    )?;
    spoil("a large workgroup", "@workgroup_size(WG)", "@workgroup_size(WG * 8u)")?;
    spoil("another entry point", "fn main(", "fn other(")?;
    let large = format!(
        "var<workgroup> sh_a: array<f32, 4097>;\n{}",
        good.replacen(") {\n", ") {\n sh_a[0] = 1.0;\n", 2)
    );
    check(validate("relu", &large).is_err(), || {
        "accepted 16 KiB and 4 bytes of workgroup memory".into()
    })?;
    let half = format!("const H: f16 = 1.0h;\n{good}");
    check(validate("relu", &half).is_err(), || "accepted f16 that is not enabled".into())?;
    let bf16 = Kernel { storage: vec![(0, Storage::Half(Half::Bf16))], ..Kernel::new("relu") };
    check(validate("relu", &source(&bf16)).is_err(), || "accepted bf16, which is no WGSL".into())?;
    let subgroups = source(&Kernel::new("conv_nt_bcast").shaped(true));
    validate("conv_nt_bcast", &subgroups)?;
    check(validate("conv_nt_tile", &subgroups).is_err(), || {
        "accepted subgroups outside *_bcast".into()
    })?;

    let r = validate("relu", &good)?;
    let dispatch = |bindings: &[Binding]| Reached {
        from: "canary".into(),
        dispatches: vec![Dispatch {
            kernel: Kernel::new("relu"),
            grid: [1, 1, 1],
            bindings: bindings.to_vec(),
        }],
        outputs: 1,
        in_place: vec![],
    };
    bindings_match(&dispatch(&[Binding::Input(0), Binding::Output(0)]), |_| &r)?;
    let mut shaped = dispatch(&[Binding::Input(0), Binding::Output(0)]);
    shaped.dispatches[0].kernel.shaped = true;
    check(bindings_match(&shaped, |_| &r).is_err(), || {
        "accepted a kernel without constants that declares some".into()
    })?;
    for bad in [
        vec![Binding::Input(0)],
        vec![Binding::Input(0), Binding::Output(0), Binding::Step],
        vec![Binding::Skip, Binding::Output(0)],
        vec![Binding::Input(0), Binding::Input(1)],
        vec![Binding::Step, Binding::Output(0)],
        vec![Binding::Input(0), Binding::Table(0)],
        vec![Binding::Scratch(0), Binding::Output(0)], // read before it is written
        vec![Binding::Input(0), Binding::Scratch(0)],  // the output is not written
    ] {
        check(bindings_match(&dispatch(&bad), |_| &r).is_err(), || {
            format!("accepted the bindings {bad:?}")
        })?;
    }
    Ok(())
}
