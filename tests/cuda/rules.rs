//! WGSL's rules where C++ has others, and constructs that the writer must refuse.

use aavae::shader::cuda::{CudaError, PRELUDE, translate};
use libtest_mimic::{Failed, Trial};

use crate::compiler::{Bug, run};
use crate::support::check;

/// Runs one thread of a kernel on `x` and returns the words it writes.
fn words(body: &str, x: &[u32], count: usize) -> Result<Vec<u32>, Failed> {
    let wgsl = format!(
        "@group(0) @binding(0) var<storage, read> x: array<u32>;\n\
         @group(0) @binding(1) var<storage, read_write> y: array<u32>;\n\
         @compute @workgroup_size(1) fn main() {{\n{body}\n}}\n"
    );
    let (mut x, mut y) = (x.to_vec(), vec![0u32; count]);
    run(&wgsl, &mut [&mut x, &mut y], &Bug::default(), 0)?;
    Ok(y)
}

/// An expression of `a` and `b` and what it must give, in bits.
type Rule<'a> = (&'a str, Box<dyn Fn(u32, u32) -> u32>);

/// Expressions of two operands of a type, on each pair.
fn rules(ty: &str, pairs: &[(u32, u32)], rules: &[Rule<'_>]) -> Result<(), Failed> {
    let x: Vec<u32> = pairs.iter().flat_map(|p| [p.0, p.1]).collect();
    let (count, each) = (pairs.len(), rules.len());
    let mut body = format!("for (var i = 0u; i < {count}u; i++) {{\n");
    body += &format!("let a = bitcast<{ty}>(x[2u * i]); let b = bitcast<{ty}>(x[2u * i + 1u]);\n");
    for (r, (expression, _)) in rules.iter().enumerate() {
        body += &format!("y[{each}u * i + {r}u] = bitcast<u32>({expression});\n");
    }
    let got = words(&(body + "}"), &x, count * each)?;
    for (got, (a, b)) in got.chunks(each).zip(pairs) {
        for (got, (expression, want)) in got.iter().zip(rules) {
            let want = want(*a, *b);
            let message =
                || format!("{ty}: {expression} of {a:#x} and {b:#x}: {got:#x}, not {want:#x}");
            check(*got == want, message)?;
        }
    }
    Ok(())
}

fn integers() -> Result<(), Failed> {
    let min = i32::MIN as u32;
    let edges = [0, 1, 2, 31, 32, 33, 0x7fff_ffff, min, min + 1, u32::MAX, 0x1234_5678];
    let pairs: Vec<_> = edges.iter().flat_map(|a| edges.map(|b| (*a, b))).collect();
    fn signed(f: fn(i32, i32) -> i32) -> Box<dyn Fn(u32, u32) -> u32> {
        Box::new(move |a, b| f(a as i32, b as i32) as u32)
    }
    let divide = |a: i32, b: i32| if b == 0 { a } else { a.wrapping_div(b) };
    let remain = |a: i32, b: i32| if b == 0 { 0 } else { a.wrapping_rem(b) };
    let of_signed: [Rule<'_>; 10] = [
        ("a + b", Box::new(u32::wrapping_add)),
        ("a - b", Box::new(u32::wrapping_sub)),
        ("a * b", Box::new(u32::wrapping_mul)),
        ("-a", Box::new(|a, _| a.wrapping_neg())),
        ("abs(a)", signed(|a, _| a.wrapping_abs())),
        ("a / b", signed(divide)),
        ("a % b", signed(remain)),
        ("a << bitcast<u32>(b)", Box::new(|a, b| a << (b & 31))),
        ("a >> bitcast<u32>(b)", Box::new(|a, b| ((a as i32) >> (b & 31)) as u32)),
        ("clamp(a, -5, b)", signed(|a, b| a.max(-5).min(b))),
    ];
    rules("i32", &pairs, &of_signed)?;
    let of_unsigned: [Rule<'_>; 6] = [
        ("a / b", Box::new(|a, b| a.checked_div(b).unwrap_or(a))),
        ("a % b", Box::new(|a, b| a.checked_rem(b).unwrap_or(0))),
        ("a << b", Box::new(|a, b| a << (b & 31))),
        ("a >> b", Box::new(|a, b| a >> (b & 31))),
        // Vectors go through functions of their own.
        ("(vec2<u32>(a, b) >> vec2<u32>(b, a)).y", Box::new(|a, b| b >> (a & 31))),
        ("(vec3<u32>(a) / vec3<u32>(b, 1u, 2u)).x", Box::new(|a, b| a.checked_div(b).unwrap_or(a))),
    ];
    rules("u32", &pairs, &of_unsigned)
}

fn floats() -> Result<(), Failed> {
    let edges = [0.0, 1.5, -1.5, 3e9, -3e9, 5e9, f32::INFINITY, f32::NEG_INFINITY, f32::NAN];
    let pairs: Vec<_> =
        edges.iter().flat_map(|a| edges.map(|b| (a.to_bits(), b.to_bits()))).collect();
    fn of(f: fn(f32, f32) -> u32) -> Box<dyn Fn(u32, u32) -> u32> {
        Box::new(move |a, b| f(f32::from_bits(a), f32::from_bits(b)))
    }
    let all: [Rule<'_>; 5] = [
        // Rust's `as` saturates as WGSL's conversions do.
        ("u32(a)", of(|a, _| a as u32)),
        ("i32(a)", of(|a, _| a as i32 as u32)),
        ("select(0u, 1u, a != a)", of(|a, _| u32::from(a.is_nan()))),
        ("select(0u, 1u, a < b)", of(|a, b| u32::from(a < b))),
        ("select(0u, 1u, !(a < b))", of(|a, b| u32::from(!(a < b)))),
    ];
    rules("f32", &pairs, &all)?;
    let numbers: Vec<_> = pairs.into_iter().filter(|p| !f32::from_bits(p.0).is_nan()).collect();
    let of_numbers: [Rule<'_>; 3] = [
        ("min(a, b)", of(|a, b| a.min(b).to_bits())),
        ("max(a, b)", of(|a, b| a.max(b).to_bits())),
        ("clamp(a, -1.0, 1.0)", of(|a, _| a.clamp(-1.0, 1.0).to_bits())),
    ];
    rules("f32", &numbers, &of_numbers)
}

/// A 16-bit float: its name, the bits of its fraction, the exponent of its smallest normal number.
#[derive(Clone, Copy)]
struct Format {
    name: &'static str,
    digits: u32,
    least: i32,
}

const F16: Format = Format { name: "f16", digits: 10, least: -14 };
const BF16: Format = Format { name: "bf16", digits: 7, least: -126 };

impl Format {
    /// A text that is written for f16.
    fn text(self, wgsl: &str) -> String {
        wgsl.replace("f16", self.name)
    }

    fn infinity(self) -> u16 {
        0x7fff >> self.digits << self.digits
    }

    /// The value of some bits.
    fn wide(self, bits: u16) -> f64 {
        let (one, size) = (1 << self.digits, bits & 0x7fff);
        let (exponent, fraction) = (i32::from(size / one), f64::from(size % one));
        let unit = self.least - self.digits as i32;
        let size = match exponent {
            0 => fraction * 2f64.powi(unit),
            _ if size > self.infinity() => f64::NAN,
            _ if size == self.infinity() => f64::INFINITY,
            _ => (f64::from(one) + fraction) * 2f64.powi(unit + exponent - 1),
        };
        if bits >> 15 == 1 { -size } else { size }
    }

    /// The bits of the number that is nearest to another, of two that are as near the even one: by
    /// looking at all.
    fn narrow(self, x: f32) -> u16 {
        let (sign, size) = (if x.is_sign_negative() { 0x8000 } else { 0 }, f64::from(x).abs());
        // What is halfway to the power of two that follows the largest number becomes infinite.
        let infinity = self.infinity();
        let beyond = 2f64.powi(2 - self.least);
        let value = |bits: u16| if bits == infinity { beyond } else { self.wide(bits) };
        let mut all = 0..=infinity;
        let above = all.find(|bits| value(*bits) >= size).unwrap_or(infinity);
        let below = above.saturating_sub(1);
        let (up, down) = (value(above) - size, size - value(below));
        sign | if down < up || (down == up && below % 2 == 0) { below } else { above }
    }
}

/// Every 16-bit float widens exactly, and f32 round to the nearest: singly and as vectors.
fn halves(format: Format) -> Result<(), Failed> {
    let wgsl = "enable f16;
        @group(0) @binding(0) var<storage, read> x: array<f16>;
        @group(0) @binding(1) var<storage, read_write> y: array<f32>;
        @compute @workgroup_size(1) fn main() {
            for (var i = 0u; i < arrayLength; i++) { y[i] = f32(x[i]); }
        }"
    .replace("arrayLength", "65536u");
    let mut x: Vec<u32> = (0..32768).map(|i| (2 * i) | (2 * i + 1) << 16).collect();
    let mut y = vec![0; 65536];
    run(&format.text(&wgsl), &mut [&mut x, &mut y], &Bug::default(), 0)?;
    for (bits, got) in (0..=u16::MAX).zip(y) {
        let (got, want) = (f32::from_bits(got), format.wide(bits) as f32);
        let same = got.to_bits() == want.to_bits() || (got.is_nan() && want.is_nan());
        check(same, || format!("{bits:#06x} became {got}, not {want}"))?;
    }
    // Numbers, those halfway to their neighbours, those beside these, and what is out of range.
    let around = |x: f32| [f32::from_bits(x.to_bits() - 1), x, f32::from_bits(x.to_bits() + 1)];
    let most = format.infinity() - 1;
    let normal = 1 << format.digits;
    let last = [1, 2, normal - 2, normal - 1, normal, most - 1];
    let pick = (1u16..most).step_by(97).chain(last);
    let wide = |bits: u16| format.wide(bits);
    let halfway = |bits: u16| ((wide(bits) + wide(bits + 1)) / 2.0) as f32;
    let mut numbers: Vec<f32> =
        pick.flat_map(|b| [wide(b) as f32, halfway(b)]).flat_map(around).collect();
    // The largest number, those halfway from it to infinity, and beyond.
    let large = wide(most) as f32;
    let beyond = (wide(most) + (wide(most) - wide(most - 1)) / 2.0) as f32;
    numbers.extend([large, beyond, f32::from_bits(beyond.to_bits() - 1)]);
    numbers.extend([0.0, 1e-30, 2f32.powi(-25), 1e9, f32::MAX, f32::INFINITY]);
    numbers.extend(numbers.clone().iter().map(|x| -x));
    numbers.resize(numbers.len().next_multiple_of(4), 0.0);
    let count = numbers.len();
    let wgsl = format!(
        "enable f16;
        @group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
        @group(0) @binding(1) var<storage, read_write> y: array<f16>;
        @group(0) @binding(2) var<storage, read_write> z: array<vec4<f16>>;
        @compute @workgroup_size(1) fn main() {{
            for (var i = 0u; i < {}u; i++) {{
                let v = x[i];
                for (var j = 0u; j < 4u; j++) {{ y[4u * i + j] = f16(v[j]); }}
                var copy: array<vec4<f16>, 2>;
                copy[1] = vec4<f16>(v);
                z[i] = copy[1];
            }}
        }}",
        count / 4
    );
    let mut x: Vec<u32> = numbers.iter().map(|x| x.to_bits()).collect();
    let (mut y, mut z) = (vec![0; count / 2], vec![0; count / 2]);
    run(&format.text(&wgsl), &mut [&mut x, &mut y, &mut z], &Bug::default(), 0)?;
    check(y == z, || "vectors are rounded otherwise than scalars".into())?;
    let got = y.iter().flat_map(|w| [*w as u16, (w >> 16) as u16]);
    for (x, got) in numbers.iter().zip(got) {
        let want = format.narrow(*x);
        check(got == want, || format!("{x:e} became {got:#06x}, not {want:#06x}"))?;
    }
    Ok(())
}

/// Other values of 16-bit floats: literals, zeros, other types, and what is chosen or put together.
fn half_values(format: Format) -> Result<(), Failed> {
    let wgsl = "enable f16;
        const HALF = vec4<f16>(0.5h);
        var<workgroup> staged: array<vec4<f16>, 2>;
        @group(0) @binding(0) var<storage, read> x: array<u32>;
        @group(0) @binding(1) var<storage, read_write> y: array<vec4<f32>>;
        @compute @workgroup_size(1) fn main() {
            var zero: vec4<f16>;
            let four = vec4<f16>(f16(x[0]), f16(-3i), f16(x[0] > 2u), -1.5h);
            staged[0] = four;
            y[0] = vec4<f32>(select(zero, four, x[0] > 2u)) + vec4<f32>(HALF);
            y[1] = vec4<f32>(f32(u32(four.x)), f32(i32(four.y)), f32(bool(four.z)), f32(staged[0].w));
            staged[1][x[1]] = four[x[1]];
            y[2] = vec4<f32>(vec4<f16>(four.yx, staged[1].zz));
        }";
    let (mut x, mut y) = (vec![7, 2], vec![0; 12]);
    run(&format.text(wgsl), &mut [&mut x, &mut y], &Bug::default(), 0)?;
    let got: Vec<f32> = y.into_iter().map(f32::from_bits).collect();
    let want = [7.5, -2.5, 1.5, -1.0, 7.0, -3.0, 1.0, -1.5, -3.0, 7.0, 1.0, 1.0];
    check(got == want, || format!("{got:?}, not {want:?}"))
}

/// Statements whose order or jumps C++ could get wrong.
fn control() -> Result<(), Failed> {
    let body = "
        var sum = 0u;
        for (var i = 0u; i < 10u; i++) {
            if (i == 3u) { continue; }
            switch (i) {
                case 5u: { continue; }
                case 7u, 8u: { sum += 100u; }
                default: { sum += i; }
            }
            if (i == 8u) { break; }
        }
        y[0] = sum;
        var k = 0u;
        loop { k++; continuing { k *= 2u; break if k > 20u; } }
        y[1] = k;
        // A value is that of the time it was read.
        var v = x[0];
        let before = v;
        v = v + 1u;
        y[2] = before * 1000u + v;
        var t = vec4<u32>(1u, 2u, 3u, 4u);
        let at = x[1];
        t[at] = 9u;
        y[3] = t.x * 1000u + t.y * 100u + t[at] * 10u + t.wz.x;
        y[4] = select(1u, 2u, x[0] > 1u && x[1] > 5u);";
    let got = words(body, &[41, 2], 5)?;
    // 0 + 1 + 2 + 4 + 6 + 200; 2, 6, 14, 30.
    let want = [213, 30, 41_042, 1294, 1];
    check(got == want, || format!("{got:?}, not {want:?}"))
}

/// An index beyond a buffer, a workgroup array or a vector is noticed.
fn bounds() -> Result<(), Failed> {
    for body in ["y[x[0]] = 1u;", "y[0] = x[2];", "var t = array<u32, 3>(); y[0] = t[x[0]];"] {
        check(words(body, &[5, 0], 4).is_err(), || format!("`{body}` passed"))?;
    }
    words("y[x[0]] = 1u;", &[3, 0], 4).map(|_| ())
}

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        Trial::test("rules of integers", integers),
        Trial::test("rules of floats", floats),
        Trial::test("rules of f16", || halves(F16)),
        Trial::test("rules of bf16", || halves(BF16)),
        Trial::test("rules of values of f16", || half_values(F16)),
        Trial::test("rules of values of bf16", || half_values(BF16)),
        Trial::test("rules of control flow", control),
        Trial::test("rules of indices", bounds),
    ]
}

/// Each construct is refused by name, not guessed.
pub(crate) fn unknown() -> Vec<Trial> {
    let refused = |name: &'static str, wgsl: &'static str, named: &'static str| {
        Trial::test(format!("the writer refuses {name}"), move || match translate(wgsl, "k") {
            Err(CudaError::Unknown(what)) if what.contains(named) => Ok(()),
            other => Err(format!("{other:?}").into()),
        })
    };
    let compiles = Trial::test("the writer is told what naga refuses", || {
        match translate("@compute @workgroup_size(1) fn main() { let x: u32 = 1.5; }", "k") {
            Err(CudaError::Wgsl(_)) if PRELUDE.contains("w_add") => Ok(()),
            other => Err(format!("{other:?}").into()),
        }
    });
    vec![
        compiles,
        refused(
            "an atomic",
            "@group(0) @binding(0) var<storage, read_write> a: atomic<u32>;\n\
             @compute @workgroup_size(1) fn main() { atomicAdd(&a, 1u); }",
            "Atomic",
        ),
        refused(
            "a matrix",
            "@group(0) @binding(0) var<storage, read_write> a: array<f32>;\n\
             @compute @workgroup_size(1) fn main() {\n\
             var m = mat2x2<f32>(1.0, 2.0, 3.0, a[0]); a[0] = m[0][1]; }",
            "Matrix",
        ),
        refused(
            "a function that no shader uses",
            "@group(0) @binding(0) var<storage, read_write> a: array<f32>;\n\
             @compute @workgroup_size(1) fn main() { a[0] = sinh(a[0]); }",
            "Sinh",
        ),
        refused(
            "a variable of a thread at module scope",
            "var<private> p: u32;\n@group(0) @binding(0) var<storage, read_write> a: array<u32>;\n\
             @compute @workgroup_size(1) fn main() { p += 1u; a[0] = p; }",
            "Private",
        ),
        refused(
            "a buffer that is not used",
            "@group(0) @binding(0) var<storage, read_write> a: array<u32>;\n\
             @group(0) @binding(1) var<storage, read> b: array<u32>;\n\
             @compute @workgroup_size(1) fn main() { a[0] = 1u; }",
            "not used",
        ),
        refused(
            "arithmetic in f16",
            "enable f16;\n@group(0) @binding(0) var<storage, read_write> a: array<f16>;\n\
             @compute @workgroup_size(1) fn main() { a[0] = a[0] + a[1]; }",
            "arithmetic in f16",
        ),
        refused(
            "a function of f16",
            "enable f16;\n@group(0) @binding(0) var<storage, read_write> a: array<vec4<f16>>;\n\
             @compute @workgroup_size(1) fn main() { a[0] = max(a[0], a[1]); }",
            "arithmetic in f16",
        ),
        refused(
            "a structure with a hole",
            "struct S { a: u32, @align(16) b: u32 }\n\
             @group(0) @binding(0) var<storage, read_write> s: S;\n\
             @compute @workgroup_size(1) fn main() { s.b = 1u; }",
            "C++ puts",
        ),
    ]
}
