//! Rules about the sources: layers, sizes, words, and documents that say what the code says.
//!
//! `UPDATE_GOLDENS=1 cargo test --test hygiene` writes the README's tables anew and fails, so that
//! the variable cannot stay set.

#[path = "hygiene/circles.rs"]
mod circles;
#[path = "hygiene/names.rs"]
mod names;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use aavae::method::{Head, Method, Parameter};
use aavae::ops;
use aavae::run::settings::{Flag, Preset, Resume, RunConfig, SETTINGS, setting};
use aavae::shader::FILES;

/// Every layer uses only those before it (crate docs, "Layers").
const LAYERS: [&str; 24] = [
    "text",
    "tensor",
    "rng",
    "disk",
    "ops",
    "shader",
    "ir",
    "plan",
    "device",
    "check",
    "tune",
    "nn",
    "model",
    "optim",
    "method",
    "data",
    "run",
    "eval",
    "train",
    "interop",
    "reproduce",
    "monitor",
    "cli",
    "web",
];
/// Pictures and files know nothing of tensors on devices.
const DATA_USES: [&str; 4] = ["text", "tensor", "rng", "disk"];
const RUST_LINES: usize = 600;
const SHADER_LINES: usize = 300;
const COLUMNS: usize = 100;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Files below a folder with one of these extensions, by path relative to the root.
fn files(folder: &str, extensions: &[&str]) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in
            std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()))
        {
            let path = entry.expect("a readable folder").path();
            let extension = path.extension().and_then(|e| e.to_str()).unwrap_or("");
            if path.is_dir() {
                folders.push(path);
            } else if extensions.contains(&extension) {
                let name = path
                    .strip_prefix(root())
                    .expect("below the root")
                    .to_string_lossy()
                    .replace('\\', "/");
                found.insert(name, read(&path));
            }
        }
    }
    assert!(!found.is_empty(), "{folder} holds none of {extensions:?}");
    found
}

/// The modules that follow `crate::` in code: `crate::a::b`, `use crate::{a::b, c}`. Comments do
/// not count.
fn modules(text: &str) -> Vec<String> {
    let code: String =
        text.lines().map(|l| l.split("//").next().unwrap_or("")).collect::<Vec<_>>().join("\n");
    let word =
        |s: &str| s.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let mut found = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        if code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '$') {
            continue;
        }
        let rest = &code[at + "crate::".len()..];
        let Some(list) = rest.strip_prefix('{') else {
            found.push(word(rest));
            continue;
        };
        let mut depth = 0;
        let mut start = true;
        for (i, c) in list.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => start = true,
                c if start && !c.is_whitespace() => {
                    found.push(word(&list[i..]));
                    start = false;
                }
                _ => {}
            }
        }
    }
    found
}

/// What is wrong with a file's imports.
fn arrows(name: &str, text: &str) -> Vec<String> {
    let top = name.trim_start_matches("src/").split(['/', '.']).next().unwrap_or("");
    if matches!(top, "lib" | "main") {
        return vec![];
    }
    let rank = |layer: &str| LAYERS.iter().position(|l| *l == layer);
    let Some(own) = rank(top) else { return vec![format!("{name}: `{top}` is no layer")] };
    let wrong = |used: &String| match rank(used) {
        None => Some(format!("{name}: `crate::{used}` is no layer")),
        Some(r) if r > own => Some(format!("{name}: `{top}` uses `{used}`, a layer above it")),
        Some(r) if r < own && top == "data" && !DATA_USES.contains(&used.as_str()) => {
            Some(format!("{name}: `data` uses `{used}`"))
        }
        Some(_) => None,
    };
    modules(text).iter().filter_map(wrong).collect()
}

#[test]
fn imports_point_down() {
    let sources = files("src", &["rs"]);
    let wrong: Vec<_> = sources.iter().flat_map(|(name, text)| arrows(name, text)).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let seen = sources.values().flat_map(|text| modules(text)).count();
    assert!(seen > 100, "only {seen} imports were seen");
    for layer in LAYERS {
        let (file, folder) = (format!("src/{layer}.rs"), format!("src/{layer}/mod.rs"));
        assert!(
            sources.contains_key(&file) || sources.contains_key(&folder),
            "layer `{layer}` is gone"
        );
    }
    let docs = &sources["src/lib.rs"];
    let mut at = 0;
    for layer in LAYERS {
        let link = format!("[`{layer}`]");
        at += docs[at..]
            .find(&link)
            .unwrap_or_else(|| panic!("the crate's docs do not list {link} in this order"));
    }
}

#[test]
fn wrong_imports_are_seen() {
    for (name, text) in [
        ("src/ir/graph.rs", "use crate::plan::Plan;"),
        ("src/ir/graph.rs", "fn f() -> crate::device::Data { }"),
        ("src/ops/mod.rs", "use crate::{tensor::Shape, ir::{Graph, Group}};"),
        ("src/data/mod.rs", "use crate::ops::Op;"),
        ("src/ops/mod.rs", "use crate::elsewhere::X;"),
        ("src/elsewhere.rs", ""),
    ] {
        assert!(!arrows(name, text).is_empty(), "{name}: `{text}` passed");
    }
    for (name, text) in [
        ("src/plan/lower.rs", "use crate::{ir::Graph, ops::{Io, Target}};\n// crate::device"),
        ("src/data/mod.rs", "use crate::rng::Philox;\nuse crate::data::Subset;"),
        ("src/ops/mod.rs", "$crate::cli::x"),
    ] {
        assert_eq!(arrows(name, text), Vec::<String>::new(), "{name}: {text}");
    }
}

#[test]
fn files_stay_readable() {
    for (folder, extension, budget) in
        [("src", "rs", RUST_LINES), ("tests", "rs", RUST_LINES), ("shaders", "wgsl", SHADER_LINES)]
    {
        for (name, text) in files(folder, &[extension]) {
            let lines = text.lines().count();
            assert!(lines <= budget, "{name} has {lines} lines, at most {budget}");
        }
    }
}

/// Whether a line is prose: no table, and no formula or drawing, in which columns stand apart.
fn is_prose(line: &str) -> bool {
    !line.starts_with('|') && !line.trim_start().contains("   ")
}

/// What is wrong with the width of a line of Rust; rustfmt sees to its code.
fn too_wide(line: &str) -> bool {
    let comment = line.trim_start();
    let text = comment.trim_start_matches(['/', '!']).trim_start();
    comment.starts_with("//") && is_prose(text) && line.chars().count() > COLUMNS
}

/// Prose has at most 100 columns, as code has (`rustfmt.toml`).
#[test]
fn lines_stay_short() {
    let mut wide = Vec::new();
    for (name, text) in files("src", &["rs"]).into_iter().chain(files("tests", &["rs"])) {
        let lines = text.lines().enumerate().filter(|(_, line)| too_wide(line));
        wide.extend(lines.map(|(i, line)| format!("{name}:{}: {line}", i + 1)));
    }
    for name in ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "shaders/README.md"] {
        let text = read(&root().join(name));
        let mut code = false;
        for (i, line) in text.lines().enumerate() {
            code ^= line.starts_with("```");
            if !code && is_prose(line) && line.chars().count() > COLUMNS {
                wide.push(format!("{name}:{}: {line}", i + 1));
            }
        }
    }
    assert!(wide.is_empty(), "{}", wide.join("\n"));
    let long = format!("/// {}", "word ".repeat(20));
    assert!(too_wide(&long) && !too_wide(&long[..100]) && !too_wide(&format!("/// | {long}")));
}

#[test]
fn nothing_is_left_to_do() {
    for name in ["todo", "unimplemented", "dbg"] {
        let call = format!("{name}!"); // not spelt out, or this file would be found
        for (file, text) in files("src", &["rs"]).into_iter().chain(files("tests", &["rs"])) {
            let line = text.lines().position(|l| l.contains(&call));
            assert!(line.is_none(), "{file}:{}: `{call}`", line.unwrap_or(0) + 1);
        }
    }
}

/// Calls that take "it cannot be looked at" for "it is not there", with what says which it is.
const BLIND: [(&str, &str); 2] =
    [(".exists()", "disk::is_there"), (".into_iter().flatten().flatten()", "disk::names")];

/// What users keep on a disk is never taken for none because it cannot be looked at: somebody's run
/// would be begun anew, or overwritten. Drivers' files are only looked for.
#[test]
fn errors_are_not_taken_for_no() {
    for (file, text) in files("src", &["rs"]) {
        let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
        if file.starts_with("src/device/") || file.ends_with("/tests.rs") {
            continue;
        }
        for (call, better) in BLIND {
            let at = code.lines().position(|line| line.contains(call));
            assert!(at.is_none(), "{file}:{}: `{call}`; ask {better}", at.unwrap_or(0) + 1);
        }
    }
}

/// The README's table of ops.
fn op_table() -> String {
    let mut table = String::from("| op | trials | gradient checks |\n|---|---|---|\n");
    let cases = ops::all_cases();
    for (name, count) in ops::table() {
        let checked = cases
            .iter()
            .filter(|c| c.op.name() == name && c.gradient && !c.op.differentiable().is_empty())
            .count();
        let checked = if checked > 0 { checked.to_string() } else { String::new() };
        table += &format!("| `{name}` | {count} | {checked} |\n");
    }
    table
}

/// The README's table of methods.
fn methods_table() -> String {
    let mut table = String::from(
        "| method | what it is | it minimises | the encoder sees | the latent is |\n\
         |---|---|---|---|---|\n",
    );
    for method in Method::ALL {
        let definition = method.definition();
        let sees = match definition.views {
            0 => "the image".to_owned(),
            1 => "a view".to_owned(),
            views => format!("{views} views"),
        };
        let latent = match definition.head {
            Head::Deterministic => "a function of the features",
            Head::Gaussian => "sampled",
        };
        // A bar would end the cell.
        let equation = definition.equation.replace('|', "\\|");
        let (name, title, arxiv) = (method.name(), definition.title, definition.arxiv);
        table += &format!(
            "| `{name}` | [{title}](https://arxiv.org/abs/{arxiv}) | `{equation}` | {sees} | \
             {latent} |\n"
        );
    }
    table
}

/// The README's table of settings.
fn settings_table() -> String {
    let mut table = String::from(
        "| setting | default | what it is | range | a resumed run |\n|---|---|---|---|---|\n",
    );
    let base = RunConfig::default();
    for setting in SETTINGS {
        let key = match setting.flag {
            Flag::Value(_) | Flag::On => format!("`{}`", setting.key),
            Flag::Off(_) => format!("`{}` (`{}`)", setting.key, setting.flag_name()),
            Flag::InFile => format!("`{}` (no flag)", setting.key),
        };
        let resumed = match setting.resume {
            Resume::Fixed => "",
            Resume::Length => "may change it if `schedule` is constant",
            Resume::Free => "may change it",
        };
        let default = setting.default(&base).unwrap_or_default();
        let range = setting.range.map_or(String::new(), |range| range.to_string());
        table += &format!("| {key} | {default} | {} | {range} | {resumed} |\n", setting.help());
    }
    table
}

/// The README's table of presets.
fn presets_table() -> String {
    let mut table = String::from("| preset | for | what it sets |\n|---|---|---|\n");
    for preset in Preset::ALL {
        let name = serde_json::to_string(preset).expect("a name").replace('"', "`");
        let sets: Vec<_> = RunConfig::preset(*preset)
            .differences(&RunConfig::default())
            .iter()
            .map(|difference| format!("{} {}", difference.key, difference.here.replace('"', "")))
            .collect();
        let help = preset.help();
        table += &format!("| {name} | {} | {} |\n", help.trim_end_matches('.'), sets.join(", "));
    }
    table
}

/// The tables of the README that follow from the code, by the name of their marks.
#[test]
fn readme_s_tables_are_the_code_s() {
    let path = root().join("README.md");
    let mut text = read(&path);
    let before = text.clone();
    for (name, table) in [
        ("methods", methods_table()),
        ("ops", op_table()),
        ("settings", settings_table()),
        ("presets", presets_table()),
    ] {
        let marks = [format!("<!-- {name} -->\n"), format!("<!-- /{name} -->")];
        let (Some(start), Some(end)) =
            (text.find(&marks[0]).map(|i| i + marks[0].len()), text.find(&marks[1]))
        else {
            panic!("README.md has no `<!-- {name} -->` … `<!-- /{name} -->`");
        };
        text.replace_range(start..end, &table);
    }
    if std::env::var_os("UPDATE_GOLDENS").is_some() {
        std::fs::write(&path, text).expect("README.md can be written");
        panic!("the tables are written; review them and run again without UPDATE_GOLDENS");
    }
    assert!(
        text == before,
        "README.md has other tables than the code: run UPDATE_GOLDENS=1 cargo test --test hygiene"
    );
}

/// The page in a browser has fields for settings that there are, each shown for the methods that
/// read it.
#[test]
fn fields_of_the_page_are_settings() {
    let html = read(&root().join("assets/web/index.html"));
    let of = |text: &str, attribute: &str| {
        let value = text.split_once(&format!(" {attribute}=\""))?.1;
        Some(value.split_once('"')?.0.to_owned())
    };
    let labels = html.split("<label").skip(1).filter_map(|text| text.split_once("</label>"));
    let mut fields = 0;
    for (label, _) in labels {
        let Some(name) = of(label, "name") else { continue };
        assert!(setting(&name).is_some(), "the page's field `{name}` is no setting");
        let parameter = match &name[..] {
            "kl_coeff" => Some(Parameter::KlCoeff),
            "log_scale" => Some(Parameter::LogScale),
            "temperature" => Some(Parameter::Temperature),
            _ => None,
        };
        let reads = |method: &&Method| parameter.is_some_and(|of| method.reads(of));
        let names: Vec<_> = Method::ALL.iter().filter(reads).map(|method| method.name()).collect();
        assert_eq!(of(label, "data-reads").unwrap_or_default(), names.join(" "), "`{name}`");
        fields += 1;
    }
    assert!(fields > 8, "the page has {fields} fields");
}

#[test]
fn readme_names_the_compiler() {
    let manifest = read(&root().join("Cargo.toml"));
    let line = manifest
        .lines()
        .find(|l| l.starts_with("rust-version"))
        .expect("Cargo.toml says rust-version");
    let version = line.split('"').nth(1).expect("a quoted version");
    let text = read(&root().join("README.md"));
    let words: Vec<&str> = text.split_whitespace().collect();
    let said: Vec<&str> = words
        .windows(2)
        .filter(|w| w[0] == "Rust" && w[1].starts_with("1."))
        .map(|w| w[1])
        .collect();
    for word in said {
        assert_eq!(
            word.trim_end_matches(|c: char| !c.is_ascii_digit()),
            version,
            "README.md and Cargo.toml differ"
        );
    }
}

/// Text in backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.lines().flat_map(|l| l.split('`').skip(1).step_by(2))
}

fn matches(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((head, tail)) => {
            name.len() >= head.len() + tail.len() && name.starts_with(head) && name.ends_with(tail)
        }
    }
}

#[test]
fn shaders_named_in_documents_exist() {
    let mut checked = 0;
    for document in ["shaders/README.md", "README.md", "src/ops/conv2d/lower.rs"] {
        let text = read(&root().join(document));
        for token in quoted(&text) {
            let name = token.trim_start_matches("shaders/");
            let named = name.strip_suffix(".wgsl");
            let family = ["conv_nt", "conv_tn"].iter().any(|f| name.starts_with(f))
                || name.starts_with("*_");
            let plain = name
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "_*/.".contains(c));
            if !plain || (named.is_none() && !family) {
                continue;
            }
            let name = named.unwrap_or(name);
            // `lib/x` stands for any module.
            let found = name == "lib/x" || FILES.iter().any(|(file, _)| matches(name, file));
            assert!(found, "{document} names the shader `{token}`, which does not exist");
            checked += 1;
        }
    }
    assert!(checked >= 10, "only {checked} names were found");
    assert!(!matches("conv_nt_*", "conv_tn_tile") && matches("*_tile", "conv_tn_tile"));
}

#[test]
fn every_golden_is_used() {
    let texts: Vec<(String, String)> = files("tests", &["rs", "py", "json", "md"])
        .into_iter()
        .chain(files("scripts", &["", "py"]))
        .chain([("README.md".into(), read(&root().join("README.md")))])
        .collect();
    let folder = root().join("tests/golden");
    let mut goldens: Vec<PathBuf> = std::fs::read_dir(folder)
        .expect("tests/golden")
        .map(|e| e.expect("a readable folder").path())
        .filter(|p| p.is_file())
        .collect();
    goldens.sort();
    assert!(goldens.len() > 5, "only {} goldens were found", goldens.len());
    for path in goldens {
        let name = path.file_name().and_then(|n| n.to_str()).expect("a name in UTF-8").to_owned();
        let stem = path.file_stem().and_then(|n| n.to_str()).expect("a name in UTF-8").to_owned();
        if matches!(name.as_str(), "README.md" | "mod.rs") {
            continue;
        }
        // Data must be named by a test or by the manifest that tests read; scripts by anything.
        let data =
            matches!(path.extension().and_then(|e| e.to_str()), Some("safetensors" | "json"));
        let used = texts.iter().any(|(file, text)| {
            let counts = !file.ends_with(&format!("/{name}"))
                && (!data || file.ends_with(".rs") || file.ends_with("manifest.json"));
            counts && (text.contains(&name) || data && text.contains(&stem))
        });
        assert!(used, "tests/golden/{name} is used by nothing");
    }
}
