//! What `shaders/README.md` promises of every header.

use std::path::Path;

use aavae::shader::{FILES, file};
use libtest_mimic::Failed;

use crate::check;

/// What a header lacks of what `shaders/README.md` promises: a formula, what is read, how the
/// result is written, the grid and the Rust reference, in this order, with every buffer that the
/// file or its imports bind; and each binding's line ends with its shape.
fn header_faults(name: &str, text: &str) -> Vec<String> {
    let lines: Vec<&str> = text.lines().take_while(|l| l.starts_with("//")).collect();
    let header = lines.join("\n");
    let mut faults = Vec::new();
    if name.starts_with("lib/") {
        if header.is_empty() {
            faults.push("no header".into());
        }
        return faults;
    }
    let mut at = 0;
    for (what, words) in [
        ("`reads`", &["Reads ", "reads "][..]),
        (
            "`writes (=)`, `adds (+=)` or `updates (in place)`",
            &["rites (=)", "dds (+=)", "pdates (in place)"],
        ),
        ("`Grid:`", &["Grid:"]),
        ("`Reference:`", &["Reference:"]),
    ] {
        match words.iter().filter_map(|w| header[at..].find(w)).min() {
            Some(found) if what == "`reads`" && !header[..found].contains('=') => {
                faults.push("no formula stands before what is read".into())
            }
            Some(found) => at += found,
            None => faults.push(format!("no {what} where it belongs")),
        }
    }
    // What stands from `reads` on: a formula names the operands too.
    let said = ["Reads ", "reads "].iter().filter_map(|w| header.find(w)).min();
    let said = said.map_or("", |found| &header[found..]);
    // Bindings, those of imported modules too, but not what is specialised away: every `#if`
    // counts.
    let mut files = vec![text];
    while let Some(text) = files.pop() {
        for line in text.lines() {
            files.extend(
                line.trim_start().strip_prefix("#import ").and_then(|name| file(name.trim())),
            );
            let Some((_, rest)) =
                line.split_once("@binding(").and_then(|(_, rest)| rest.split_once("> "))
            else {
                continue;
            };
            let variable: String =
                rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            let uniform = line.contains("var<uniform>");
            let named = said
                .split(|c: char| !(c.is_alphanumeric() || c == '_'))
                .any(|word| word == variable);
            if !named {
                faults.push(format!("the header does not say `{variable}`"));
            }
            if !uniform && !line.split_once("// ").is_some_and(|(_, note)| note.starts_with('[')) {
                faults.push(format!("the line of `{variable}` does not end with its shape"));
            }
        }
    }
    faults.extend(reference_fault(&header));
    faults
}

/// A reference that is not there: a file and, in backticks, ops that it implements
/// (`Op::reference`) or functions of it.
fn reference_fault(header: &str) -> Option<String> {
    let (_, reference) = header.split_once("Reference:")?;
    let reference = reference.lines().next().unwrap_or("");
    let path = reference.split('`').next().unwrap_or("").trim();
    let items: Vec<&str> = reference.split('`').skip(1).step_by(2).collect();
    let Ok(code) =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(path))
    else {
        return Some(format!("there is no src/{path}"));
    };
    let declared = |item: &str| match item.strip_suffix("::reference") {
        Some(op) => code.contains(&format!("impl OpDef for {op} ")),
        None => code.contains(&format!("fn {item}")),
    };
    match items.iter().find(|item| !declared(item)) {
        Some(item) => Some(format!("src/{path} has no `{item}`")),
        None => items.is_empty().then(|| "the reference names no item".into()),
    }
}

pub(crate) fn headers() -> Result<(), Failed> {
    let faults = |(name, text): &(&str, &str)| {
        header_faults(name, text).into_iter().map(|f| format!("{name}: {f}")).collect::<Vec<_>>()
    };
    let all: Vec<_> = FILES.iter().flat_map(faults).collect();
    check(all.is_empty(), || all.join("\n"))?;
    // The check refuses what is not as it should be.
    let good = file("relu").ok_or("relu is gone")?;
    for (from, to) in [
        ("y = 0 where x < 0, else x", "rectifies"),
        ("Reads x", "Takes x"),
        ("writes (=)", "gives"),
        ("Grid:", "Groups:"),
        ("Reference:", "See"),
        ("pointwise.rs", "elsewhere.rs"),
        ("`Relu::reference`", "`Rectify::reference`"),
        ("Reads x [LEN4]", "Reads everything"),
        ("y: array<vec4<f32>>; // [LEN4]", "y: array<vec4<f32>>;"),
    ] {
        let bad = good.replacen(from, to, 1);
        check(bad != good && !header_faults("relu", &bad).is_empty(), || {
            format!("accepted a header with `{to}` for `{from}`")
        })?;
    }
    Ok(())
}
