//! Shader specialisation by text: every shape is a WGSL const, and the file on disk stays legal
//! WGSL.
//!
//! Five rewrites, each of which a reader of the `.wgsl` file can do by eye:
//! 1. `#import lib/foo` on a line of its own becomes the text of that module, once.
//! 2. `const NAME: u32 = 32u; // spec` takes the value that the host gives; a name the file does
//!    not declare is an error.
//! 3. Lines between `// #if NAME` (or `// #if !NAME`) and `// #end` go when the bool const says so,
//!    which may be made from others: a binding that is not used must not be declared.
//! 4. `for (var i = 0u; i < BOUND; i++) { // unroll` becomes one block per `i`, so that a register
//!    array is indexed by constants only.
//! 5. `const NAME: u32 = 1u; // uniform` is data, not code: it becomes a member of a uniform, as
//!    does every const that is made from one, and the host computes all of them. Kernels that
//!    differ in them only are one text. A kernel that is `shaped` has them in its text instead.

use super::expression::{evaluate, is_word};
use std::collections::{HashMap, HashSet};

/// An upper limit on the expanded text: a bound that is wrong by a factor should fail here, not in
/// the driver.
const MAX_LINES: usize = 200_000;

/// The `@binding` of the uniform of constants, behind all that a shader may declare itself.
pub const CONSTANTS_BINDING: u32 = 16;

/// One line of the source, with where it came from (for messages).
#[derive(Clone)]
struct Line {
    file: String,
    number: usize,
    text: String,
}

impl Line {
    fn error(&self, what: impl std::fmt::Display) -> String {
        format!("{}:{}: {what}", self.file, self.number)
    }
}

/// A source with imports resolved, consts set, guards applied and what is data taken out.
pub(crate) struct Specialised {
    lines: Vec<Line>,
    /// The consts that are left.
    values: HashMap<String, i64>,
    /// The words of the uniform; empty if there is none.
    pub(crate) constants: Vec<u32>,
}

/// Specialises `source`: `consts` are names and WGSL literals; with `shaped`, data is written into
/// the text too.
///
/// # Errors
/// An unknown import or const, a guard that does not close, data that the host cannot compute. Each
/// names its file and line.
pub(crate) fn specialise<'a>(
    source: &str,
    consts: &[(&str, String)],
    shaped: bool,
    resolve_import: impl Fn(&str) -> Option<&'a str>,
) -> Result<Specialised, String> {
    let mut lines = Vec::new();
    import("shader", source, &resolve_import, &mut HashSet::new(), &mut lines)?;
    set_consts(&mut lines, consts)?;
    let lines = apply_guards(lines)?;
    let values = const_values(&lines);
    if shaped {
        return Ok(Specialised { lines, values, constants: vec![] });
    }
    take_uniforms(&lines, values)
}

/// The final text: loops unrolled.
///
/// # Errors
/// A loop that does not close, a bound that is not a constant. Each names its file and line.
pub(crate) fn text(specialised: &Specialised) -> Result<String, String> {
    let mut out = Vec::new();
    unroll(&specialised.lines, &specialised.values, &mut out)?;
    let mut text = String::with_capacity(out.iter().map(|l| l.len() + 1).sum());
    for line in out {
        text.push_str(&line);
        text.push('\n');
    }
    Ok(text)
}

/// Appends `source` to `out`, each imported module in place of its first import.
fn import<'a>(
    file: &str,
    source: &str,
    resolve: &impl Fn(&str) -> Option<&'a str>,
    seen: &mut HashSet<String>,
    out: &mut Vec<Line>,
) -> Result<(), String> {
    for (i, text) in source.lines().enumerate() {
        let line = Line { file: file.to_owned(), number: i + 1, text: text.to_owned() };
        let Some(name) = text.trim_start().strip_prefix("#import ").map(str::trim) else {
            out.push(line);
            continue;
        };
        let module =
            resolve(name).ok_or_else(|| line.error(format_args!("unknown import `{name}`")))?;
        if seen.insert(name.to_owned()) {
            import(name, module, resolve, seen, out)?;
        }
    }
    Ok(())
}

/// Splits `const NAME: type = value;` into name and value. Only whole-line declarations are seen.
fn const_declaration(text: &str) -> Option<(&str, &str)> {
    let code = text.split("//").next()?.trim();
    let (left, value) = code.strip_prefix("const ")?.strip_suffix(';')?.split_once('=')?;
    Some((left.split(':').next()?.trim(), value.trim()))
}

/// The same of a bool.
fn bool_declaration(text: &str) -> Option<(&str, &str)> {
    let ty = text.split_once(':')?.1.split_once('=')?.0;
    const_declaration(text).filter(|_| ty.trim() == "bool")
}

/// Whether a declaration is marked: `// MARK` or `// MARK: what it is`.
fn is_marked(text: &str, mark: &str) -> bool {
    let note = text.split_once("//").map(|(_, note)| note.trim_start());
    let rest = note.and_then(|n| n.strip_prefix(mark));
    rest.is_some_and(|r| r.is_empty() || r.starts_with(':'))
}

/// Replaces the literals of the `// spec` and `// uniform` consts that the host names.
fn set_consts(lines: &mut [Line], consts: &[(&str, String)]) -> Result<(), String> {
    for (name, value) in consts {
        let line = lines
            .iter_mut()
            .find(|l| {
                (is_marked(&l.text, "spec") || is_marked(&l.text, "uniform"))
                    && const_declaration(&l.text).is_some_and(|(n, _)| n == *name)
            })
            .ok_or_else(|| {
                format!("no `const {name}: ...; // spec` or `// uniform` in this shader")
            })?;
        let (left, rest) = line.text.split_once('=').expect("a const declaration has `=`");
        let (_, note) = rest.split_once(';').expect("a const declaration has `;`");
        line.text = format!("{left}= {value};{note}");
    }
    Ok(())
}

/// Drops the lines whose guard is false, and the guards.
fn apply_guards(lines: Vec<Line>) -> Result<Vec<Line>, String> {
    let mut bools: HashMap<String, i64> = HashMap::new();
    for (name, value) in lines.iter().filter_map(|l| bool_declaration(&l.text)) {
        if let Ok(value) = evaluate(value, &bools) {
            bools.insert(name.to_owned(), value);
        }
    }
    let mut open: Vec<(Line, bool)> = Vec::new();
    let mut out = Vec::new();
    for line in lines {
        let text = line.text.trim();
        if let Some(name) = text.strip_prefix("// #if ") {
            let (name, want) =
                name.trim().strip_prefix('!').map_or((name.trim(), true), |n| (n.trim(), false));
            let value = *bools
                .get(name)
                .ok_or_else(|| line.error(format_args!("`{name}` is not a bool const")))?;
            open.push((line, (value != 0) == want));
        } else if text == "// #end" {
            open.pop().ok_or_else(|| line.error("`#end` without `#if`"))?;
        } else if open.iter().all(|(_, keep)| *keep) {
            out.push(line);
        }
    }
    open.pop().map_or(Ok(out), |(line, _)| Err(line.error("`#if` without `#end`")))
}

/// The integer and bool consts that can be evaluated, in order of declaration (a bool is 0 or 1).
/// Others are left out.
fn const_values(lines: &[Line]) -> HashMap<String, i64> {
    let mut values = HashMap::new();
    let mut depth = 0; // only consts at module scope
    for line in lines {
        if depth == 0
            && let Some((name, value)) = const_declaration(&line.text)
            && let Ok(v) = evaluate(value, &values)
        {
            values.insert(name.to_owned(), v);
        }
        depth += brace_balance(&line.text);
    }
    values
}

/// Takes what is data out of the text: `// uniform` consts and those made from them become members
/// of a uniform, as far as the code reads them.
fn take_uniforms(lines: &[Line], mut values: HashMap<String, i64>) -> Result<Specialised, String> {
    // Names, and the lines that declare them.
    let mut names: Vec<&str> = Vec::new();
    let mut declared: Vec<&Line> = Vec::new();
    let mut code: Vec<&Line> = Vec::new();
    for line in lines {
        match const_declaration(&line.text) {
            Some((name, value))
                if is_marked(&line.text, "uniform")
                    || words(value).any(|word| names.contains(&word)) =>
            {
                names.push(name);
                declared.push(line);
            }
            _ => code.push(line),
        }
    }
    let read: HashSet<&str> = code.iter().flat_map(|l| words(code_of(&l.text))).collect();
    let (mut members, mut constants) = (String::new(), Vec::new());
    for (name, line) in names.iter().zip(&declared).filter(|(name, _)| read.contains(*name)) {
        let (word, ty) = uniform_word(&line.text, values.get(*name))
            .map_err(|e| line.error(format_args!("`{name}`: {e}")))?;
        members.push_str(&format!(" {name}: {ty},"));
        constants.push(word);
    }
    for name in &names {
        values.remove(*name);
    }
    let mut out: Vec<Line> = Vec::with_capacity(code.len() + 2);
    for line in code {
        let (code, note) = line.text.split_at(code_of(&line.text).len());
        let mut code = code.to_owned();
        for name in &names {
            if code.contains(name) {
                code = replace_word(&code, name, &format!("constants.{name}"));
            }
        }
        out.push(Line { text: code + note, ..line.clone() });
    }
    if let Some(first) = declared.first().filter(|_| !constants.is_empty()) {
        let at = format!("@group(0) @binding({CONSTANTS_BINDING})");
        for text in [
            format!("struct Constants {{{members} }}"),
            format!("{at} var<uniform> constants: Constants;"),
        ] {
            out.push(Line { text, ..(*first).clone() });
        }
    }
    Ok(Specialised { lines: out, values, constants })
}

/// The word that a member of the uniform holds, and its type.
fn uniform_word(declaration: &str, value: Option<&i64>) -> Result<(u32, &'static str), String> {
    let Some((_, literal)) = const_declaration(declaration) else {
        unreachable!("`{declaration}` was read as a declaration")
    };
    let ty = declaration.split(':').nth(1).and_then(|rest| rest.split('=').next());
    let computed = || value.copied().ok_or_else(|| format!("`{literal}` is not known to the host"));
    match ty.map(str::trim) {
        Some("u32") => {
            let word = computed()?.try_into().map_err(|_| format!("`{literal}` is no u32"))?;
            Ok((word, "u32"))
        }
        Some("i32") => {
            let word: i32 = computed()?.try_into().map_err(|_| format!("`{literal}` is no i32"))?;
            Ok((word.cast_unsigned(), "i32"))
        }
        Some("f32") => {
            let number: f32 = literal
                .trim_end_matches('f')
                .parse()
                .map_err(|_| format!("`{literal}` is no number"))?;
            Ok((number.to_bits(), "f32"))
        }
        other => Err(format!("a uniform holds u32, i32 or f32, not {other:?}")),
    }
}

/// What stands before a comment.
fn code_of(text: &str) -> &str {
    text.split("//").next().unwrap_or("")
}

/// The identifiers and numbers of a text that are not members of something.
fn words(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        loop {
            let start = rest.find(is_word)?;
            let member = rest[..start].ends_with('.');
            rest = &rest[start..];
            let length = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
            let (word, behind) = rest.split_at(length);
            rest = behind;
            if !member {
                return Some(word);
            }
        }
    })
}

fn brace_balance(text: &str) -> i64 {
    let code = text.split("//").next().unwrap_or("");
    code.chars().map(|c| i64::from(c == '{') - i64::from(c == '}')).sum()
}

/// The variable and the bound of `for (var i = 0u; i < BOUND; i++) { // unroll`.
fn unroll_header(line: &Line) -> Result<Option<(&str, &str)>, String> {
    let Some(code) = line.text.trim_end().strip_suffix("// unroll") else { return Ok(None) };
    let parse = || {
        let (start, rest) = code.trim().strip_prefix("for (")?.split_once(';')?;
        let (condition, rest) = rest.split_once(';')?;
        let (variable, zero) = start.trim().strip_prefix("var ")?.split_once('=')?;
        let variable = variable.split(':').next()?.trim();
        let (left, bound) = condition.split_once('<')?;
        let step: String = rest.chars().filter(|c| !c.is_whitespace()).collect();
        (matches!(zero.trim(), "0u" | "0")
            && left.trim() == variable
            && step == format!("{variable}++){{"))
        .then_some((variable, bound.trim()))
    };
    parse().map(Some).ok_or_else(|| {
        line.error("an unrolled loop reads `for (var i = 0u; i < BOUND; i++) { // unroll`")
    })
}

/// Appends `lines` to `out`, outer loops first.
fn unroll(
    lines: &[Line],
    values: &HashMap<String, i64>,
    out: &mut Vec<String>,
) -> Result<(), String> {
    let mut i = 0;
    while let Some(line) = lines.get(i) {
        i += 1;
        let Some((variable, bound)) = unroll_header(line)? else {
            out.push(line.text.clone());
            if out.len() > MAX_LINES {
                return Err(line.error("the unrolled shader is too long"));
            }
            continue;
        };
        // A member of the uniform, as `take_uniforms` has written it.
        if bound.contains("constants.") {
            return Err(line.error(format_args!("loop bound `{bound}` is data, known to no text")));
        }
        let count = evaluate(bound, values)
            .map_err(|e| line.error(format_args!("loop bound `{bound}`: {e}")))?;
        let mut depth = 1;
        let length = lines[i..]
            .iter()
            .position(|l| {
                depth += brace_balance(&l.text);
                depth <= 0
            })
            .ok_or_else(|| line.error("this loop does not close"))?;
        let body = &lines[i..i + length];
        if lines[i + length].text.split("//").next().is_some_and(|code| code.trim() != "}") {
            return Err(
                lines[i + length].error("the closing brace of an unrolled loop stands alone")
            );
        }
        for n in 0..count {
            let body: Vec<Line> = body
                .iter()
                .map(|l| Line {
                    text: replace_word(&l.text, variable, &format!("{n}u")),
                    ..l.clone()
                })
                .collect();
            out.push("{".to_owned());
            unroll(&body, values, out)?;
            out.push("}".to_owned());
        }
        i += length + 1;
    }
    Ok(())
}

/// Replaces `word` where it stands as a whole identifier and is not a member (`a.i`).
pub(super) fn replace_word(text: &str, word: &str, with: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(word) {
        let before = rest[..at].chars().next_back().or_else(|| out.chars().next_back());
        let after = rest[at + word.len()..].chars().next();
        let whole = !before.is_some_and(|c| is_word(c) || c == '.') && !after.is_some_and(is_word);
        out.push_str(&rest[..at]);
        out.push_str(if whole { with } else { word });
        rest = &rest[at + word.len()..];
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(
        source: &str,
        consts: &[(&str, &str)],
        shaped: bool,
    ) -> Result<(String, Vec<u32>), String> {
        let consts: Vec<(&str, String)> =
            consts.iter().map(|(n, v)| (*n, (*v).to_owned())).collect();
        let module = |name: &str| (name == "lib/f").then_some("fn f() {}");
        let made = specialise(source, &consts, shaped, module)?;
        Ok((text(&made)?, made.constants))
    }

    fn run(source: &str, consts: &[(&str, &str)]) -> Result<String, String> {
        whole(source, consts, false).map(|made| made.0)
    }

    #[test]
    fn takes_data_out_of_the_text() {
        let source = "const WG: u32 = 8u; // spec\nconst N: u32 = 1u; // uniform\nconst S: f32 = \
            1.0; // uniform: a scale\nconst I: i32 = -1; // uniform\nconst M: u32 = N / WG; // \
            made\nconst K: u32 = WG + 1u;\nconst D: u32 = N; // uniform\ny[N + M * K] = S * \
            a.N + I; // N";
        let (text, constants) = whole(source, &[("N", "24u"), ("S", "0.5f")], false).unwrap();
        assert_eq!(
            text,
            "const WG: u32 = 8u; // spec\nconst K: u32 = WG + 1u;\ny[constants.N + constants.M * \
             K] = constants.S * a.N + constants.I; // N\nstruct Constants { N: u32, S: f32, I: \
             i32, M: u32, }\n@group(0) @binding(16) var<uniform> constants: Constants;\n"
        );
        assert_eq!(constants, [24, 0.5f32.to_bits(), u32::MAX, 3]);
        let (other, words) = whole(source, &[("N", "8u"), ("S", "2.0f")], false).unwrap();
        assert_eq!((other, &words[..]), (text, &[8, 2f32.to_bits(), u32::MAX, 1][..]));
        // Shaped, it is all text.
        let (shaped, constants) = whole(source, &[("N", "24u"), ("S", "0.5f")], true).unwrap();
        assert!(constants.is_empty() && shaped.contains("const N: u32 = 24u; // uniform\n"));
        assert!(shaped.contains("const M: u32 = N / WG; // made\n") && !shaped.contains("struct"));
        // Data that nothing reads is no binding.
        let (text, constants) = whole("const N: u32 = 1u; // uniform\nx", &[], false).unwrap();
        assert_eq!((&*text, &constants[..]), ("x\n", &[][..]));
    }

    #[test]
    fn data_is_no_code() {
        for (source, why) in [
            (
                "const N: u32 = 1u; // uniform\nfor (var i = 0u; i < N; i++) { // unroll\n}",
                "is data",
            ),
            ("const S: f32 = 1.0; // uniform\nconst T: f32 = S * 2.0;\nT", "no number"),
            ("const N: u32 = 1u; // uniform\nconst B: bool = N > 0u;\nB", "u32, i32 or f32"),
            ("const N: u32 = 1u; // uniform\nconst M: u32 = N - 2u;\nM", "no u32"),
            ("const N: u32 = 1u; // uniform\nconst M: u32 = g(N);\nM", "not known"),
        ] {
            let error = run(source, &[]).unwrap_err();
            assert!(error.starts_with("shader:2:") && error.contains(why), "{source}: {error}");
        }
    }

    #[test]
    fn sets_spec_consts_only() {
        let source = "const A: u32 = 1u; // spec\nconst B: u32 = A + 1u;\nconst L: f32 = 0.5; // \
            spec: slope";
        assert_eq!(
            run(source, &[("A", "7u"), ("L", "0.1")]).unwrap(),
            "const A: u32 = 7u; // spec\nconst B: u32 = A + 1u;\nconst L: f32 = 0.1; // spec: \
             slope\n"
        );
        assert_eq!(run(source, &[]).unwrap().trim_end(), source);
        assert!(run(source, &[("B", "7u")]).unwrap_err().contains("const B"));
        assert!(run(source, &[("C", "7u")]).is_err());
    }

    #[test]
    fn imports_once() {
        assert_eq!(
            run("#import lib/f\n#import lib/f\n// #import lib/g\nx", &[]).unwrap(),
            "fn f() {}\n// #import lib/g\nx\n"
        );
        assert_eq!(run("\n#import lib/g", &[]).unwrap_err(), "shader:2: unknown import `lib/g`");
    }

    #[test]
    fn guards() {
        let source =
            "const T: bool = true; // spec\n// #if T\nyes\n// #if !T\nno\n// #end\n// #end\nend";
        assert_eq!(run(source, &[]).unwrap(), "const T: bool = true; // spec\nyes\nend\n");
        assert_eq!(
            run(source, &[("T", "false")]).unwrap(),
            "const T: bool = false; // spec\nend\n"
        );
        assert!(run("// #if X\n// #end", &[]).unwrap_err().starts_with("shader:1:"));
        assert!(run("const T: bool = true;\n// #if T", &[]).unwrap_err().starts_with("shader:2:"));
        assert!(run("// #end", &[]).is_err());
    }

    #[test]
    fn unrolls_outer_first() {
        let source = "const N: u32 = 2u; // spec\nconst M: u32 = N / 2u;\nfor (var i = 0u; i < N; \
            i++) { // unroll\nfor (var j = 0u; j < i + M; j++) { // unroll\na[i * 2u + j] = \
            ii.i;\n}\n}\nend";
        let text = run(source, &[]).unwrap();
        let body: Vec<&str> = text.lines().skip(2).collect();
        assert_eq!(
            body,
            [
                "{",
                "{",
                "a[0u * 2u + 0u] = ii.i;",
                "}",
                "}",
                "{",
                "{",
                "a[1u * 2u + 0u] = ii.i;",
                "}",
                "{",
                "a[1u * 2u + 1u] = ii.i;",
                "}",
                "}",
                "end"
            ]
        );
        assert_eq!(run(source, &[("N", "0u")]).unwrap().lines().count(), 3);
    }

    #[test]
    fn loop_errors_name_the_line() {
        assert_eq!(
            run("\nfor (var i = 0u; i < N; i++) { // unroll\n}", &[]).unwrap_err(),
            "shader:2: loop bound `N`: `N` is not an integer const of this shader"
        );
        assert!(
            run("for (var i = 0u; i < 2u; i++) { // unroll", &[])
                .unwrap_err()
                .starts_with("shader:1:")
        );
        assert!(run("for (var i = 1u; i < 2u; i++) { // unroll\n}", &[]).is_err());
        assert!(run("for (var i = 0u; i < 2u; i++) { // unroll\nx; }", &[]).is_err());
        assert!(
            run("for (var i = 0u; i < 999999u; i++) { // unroll\nx;\n}", &[])
                .unwrap_err()
                .contains("too long")
        );
    }
}
