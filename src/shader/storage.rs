//! 16-bit bindings under a text that is written in f32: the last rewrite of a kernel's text.
//!
//! The elements of such a binding become f16, a load `x[i]` becomes `vec4<f32>(x[i])`, and a store
//! `y[i] = v;` becomes `y[i] = vec4<f16>(v);` (`f32` and `f16` where the elements are scalars). Of
//! a binding that is rounded only the loads change, to `round_f16(w[i])` of `lib/round_f16.wgsl`. A
//! text that wants f16 itself, `vec4<f16>(x[i])`, keeps it: not every compiler sees that widening
//! undoes nothing.
//!
//! A text of bf16 is that of f16 in other words: `bf16`, after `enable bf16;`, and `round_bf16`. It
//! is no WGSL, as WGSL has no such type, and no device but CUDA is given it ([`super::BF16`]).

use super::expression::is_word;
use super::spec::replace_word;
use crate::ops::Storage;
use crate::tensor::Half;

/// Rewrites a text for bindings that do not hold plain f32. What is not declared, because a guard
/// took it away, is not there to be rewritten.
///
/// # Errors
/// A binding of other elements, or a store that the rewrite does not know.
pub(super) fn store(text: &str, bindings: &[(u32, Storage)]) -> Result<String, String> {
    if bindings.is_empty() {
        return Ok(text.to_owned());
    }
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    for (at, storage) in bindings {
        let attribute = format!("@binding({at}) ");
        for line in 0..lines.len() {
            if !lines[line].contains(&attribute) {
                continue;
            }
            let variable = Variable::declared(&lines[line], *storage)
                .ok_or_else(|| format!("no floats at a binding: {}", lines[line].trim()))?;
            for (i, line) in lines.iter_mut().enumerate().filter(|(i, _)| *i != line) {
                *line = variable.statement(line).map_err(|e| format!("line {}: {e}", i + 1))?;
            }
            if matches!(storage, Storage::Half(_)) {
                lines[line] = variable.declaration(&lines[line]);
            }
        }
    }
    let text = lines.join("\n");
    let half = kind(bindings)?;
    let (enable, text) = match half {
        Half::F16 => ("enable f16;", text),
        Half::Bf16 => {
            let text = replace_word(&text, "f16", "bf16");
            (super::BF16, replace_word(&text, "round_f16", "round_bf16"))
        }
    };
    let name = half.name();
    let module = super::file(&format!("lib/round_{name}"));
    let module = module.filter(|_| text.contains(&format!("round_{name}(")));
    Ok(format!("{enable}\n{text}\n{}", module.unwrap_or_default()))
}

/// The one 16-bit float of a kernel.
fn kind(bindings: &[(u32, Storage)]) -> Result<Half, String> {
    let mut halves = bindings.iter().map(|(_, storage)| match storage {
        Storage::Half(half) | Storage::Rounded(half) => *half,
    });
    let first = halves.next().ok_or("no 16-bit binding")?;
    if halves.all(|half| half == first) { Ok(first) } else { Err("two 16-bit floats".into()) }
}

/// A bound array.
struct Variable {
    name: String,
    /// Type of an element as the text has it.
    wide: String,
    /// The same of f16.
    narrow: String,
    storage: Storage,
}

impl Variable {
    /// The variable of a declaration, if its elements are floats.
    fn declared(line: &str, storage: Storage) -> Option<Self> {
        let (_, rest) = line.split_once("var<storage")?;
        let (name, ty) = rest.split_once('>')?.1.split_once(':')?;
        let element = ty.trim().strip_prefix("array<")?;
        let wide = ["vec4<f32>", "f32"].into_iter().find(|e| element.starts_with(&format!("{e}>")));
        let wide = wide?.to_owned();
        let narrow = wide.replace("f32", "f16");
        Some(Self { name: name.trim().into(), wide, narrow, storage })
    }

    fn declaration(&self, line: &str) -> String {
        line.replacen(&format!("array<{}>", self.wide), &format!("array<{}>", self.narrow), 1)
    }

    /// A line of code with its loads and stores changed. A store is a statement: it stands at the
    /// begin of the line, or behind `{`, `}` or `;`.
    fn statement(&self, line: &str) -> Result<String, String> {
        let (code, note) = line.split_at(line.find("//").unwrap_or(line.len()));
        let mut out = String::new();
        let mut rest = code;
        while let Some((before, place, behind)) = self.store(rest) {
            let unknown = || format!("a store that cannot be rewritten: {}", code.trim());
            let value = behind.strip_prefix(" = ").ok_or_else(unknown)?;
            let (value, behind) = value.split_once(';').ok_or_else(unknown)?;
            let index = self.loads(&place[self.name.len()..])?;
            out += &self.loads(before)?;
            out += &format!("{}{index} = {}({});", self.name, self.narrow, self.loads(value)?);
            rest = behind;
        }
        Ok(out + &self.loads(rest)? + note)
    }

    /// The first store to a binding of halves: what is before it, its place, and what is behind.
    fn store<'a>(&self, code: &'a str) -> Option<(&'a str, &'a str, &'a str)> {
        let halves = matches!(self.storage, Storage::Half(_));
        code.match_indices(&self.name).filter(|_| halves).find_map(|(at, _)| {
            let end = self.indexed(code, at)?;
            let before = code[..at].trim_end();
            let begins = before.is_empty() || before.ends_with(['{', '}', ';']);
            begins.then(|| (&code[..at], &code[at..end], &code[end..]))
        })
    }

    /// Where an indexed mention of the variable that begins at `at` ends.
    fn indexed(&self, code: &str, at: usize) -> Option<usize> {
        let rest = code.get(at..)?.strip_prefix(self.name.as_str())?;
        if !rest.starts_with('[') || code[..at].ends_with(|c: char| is_word(c) || c == '.') {
            return None;
        }
        let mut depth = 0;
        for (i, c) in rest.char_indices() {
            depth += i32::from(c == '[') - i32::from(c == ']');
            if depth == 0 {
                return Some(at + self.name.len() + i + 1);
            }
        }
        None
    }

    /// Code in which every indexed mention is a load.
    fn loads(&self, code: &str) -> Result<String, String> {
        let (mut out, mut rest) = (String::new(), 0);
        while let Some(found) = code[rest..].find(&self.name) {
            let at = rest + found;
            let Some(end) = self.indexed(code, at) else {
                let next = at + self.name.len();
                out += &code[rest..next];
                rest = next;
                continue;
            };
            let first = at + self.name.len() + 1;
            let index = self.loads(&code[first..end - 1])?;
            let narrowed =
                code[..at].ends_with(&format!("{}(", self.narrow)) && code[end..].starts_with(')');
            let load = match self.storage {
                _ if narrowed => format!("{}[{index}]", self.name),
                Storage::Half(_) => format!("{}({}[{index}])", self.wide, self.name),
                Storage::Rounded(half) if self.wide == "f32" => {
                    format!("round_{}(vec4<f32>({}[{index}])).x", half.name(), self.name)
                }
                Storage::Rounded(half) => {
                    format!("round_{}({}[{index}])", half.name(), self.name)
                }
            };
            out += &code[rest..at];
            out += &load;
            rest = end;
        }
        Ok(out + &code[rest..])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>; // [N]
@group(0) @binding(1) var<storage, read_write> y: array<f32>; // [N]
fn f(max: vec4<f32>) -> f32 { return max.x; }
fn main() {
    let a = x[i + u32(y[0])] + yx[i]; // x[i]
    y[i] = x[x_at(1u)][2];
    s.x[i] = 1.0;
    if (i > 0u) { y[i - 1u] = a.x; y[0] = y[1]; } // y[i] = 0;
}
";

    #[test]
    fn loads_widen_and_stores_round() {
        let both = [(0, Storage::Half(Half::F16)), (1, Storage::Half(Half::F16))];
        let want = "enable f16;
@group(0) @binding(0) var<storage, read> x: array<vec4<f16>>; // [N]
@group(0) @binding(1) var<storage, read_write> y: array<f16>; // [N]
fn f(max: vec4<f32>) -> f32 { return max.x; }
fn main() {
    let a = vec4<f32>(x[i + u32(f32(y[0]))]) + yx[i]; // x[i]
    y[i] = f16(vec4<f32>(x[x_at(1u)])[2]);
    s.x[i] = 1.0;
    if (i > 0u) { y[i - 1u] = f16(a.x); y[0] = f16(f32(y[1])); } // y[i] = 0;
}
";
        assert_eq!(store(TEXT, &both).unwrap(), want);
        let rounded = store(TEXT, &[(0, Storage::Rounded(Half::F16))]).unwrap();
        assert!(rounded.contains("y[i] = round_f16(x[x_at(1u)])[2];"), "{rounded}");
        assert!(rounded.contains("var<storage, read> x: array<vec4<f32>>;"), "{rounded}");
        assert_eq!(store(TEXT, &[]).unwrap(), TEXT);
        let unused = store(TEXT, &[(5, Storage::Half(Half::F16))]).unwrap();
        assert_eq!(unused, format!("enable f16;\n{TEXT}"));
    }

    #[test]
    fn bf16_is_f16_by_another_name() {
        for storage in [Storage::Half, Storage::Rounded] {
            let [f16, bf16] = [Half::F16, Half::Bf16]
                .map(|half| store(TEXT, &[(0, storage(half))]).unwrap().replace("\n\n", "\n"));
            let kernel = |text: &str| text.split("// What f32 is").next().unwrap().to_owned();
            assert_eq!(kernel(&f16).replace("f16", "bf16"), kernel(&bf16));
            assert_eq!(bf16.contains("fn round_bf16("), bf16.contains("= round_bf16("));
        }
        let two = [(0, Storage::Half(Half::F16)), (1, Storage::Rounded(Half::Bf16))];
        assert!(store(TEXT, &two).unwrap_err().contains("two 16-bit floats"));
    }

    #[test]
    fn what_is_f16_already_is_not_widened() {
        let text = TEXT.replace("let a = x[i", "let b = vec4<f16>(x[y_at(i)]); let a = x[i");
        for storage in [Storage::Half, Storage::Rounded] {
            let made = store(&text, &[(0, storage(Half::F16))]).unwrap();
            assert!(made.contains("let b = vec4<f16>(x[y_at(i)]); let a = "), "{made}");
        }
    }

    #[test]
    fn refuses_what_it_does_not_know() {
        let words = TEXT.replace("array<f32>", "array<u32>");
        assert!(store(&words, &[(1, Storage::Half(Half::F16))]).is_err());
        for statement in ["y[i] += 1.0;", "y[i] =\n 1.0;"] {
            let text = TEXT.replace("y[i] = x[x_at(1u)][2];", statement);
            let error = store(&text, &[(1, Storage::Half(Half::F16))]).unwrap_err();
            assert!(error.contains("cannot be rewritten"), "{error}");
        }
    }
}
