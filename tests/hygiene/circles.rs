//! No circles of imports within a layer.
//!
//! A module is a file. It imports another one by naming it or an item of it in a path
//! (`aavae::run::store::Store`, `super::store`, `store::LAST`), in a `use` or anywhere else; a
//! re-export stands for the module that it names, however many there are between. Comments and
//! `#[cfg(test)]` modules do not count.
//!
//! Between a module and those inside it (`data` and `data::folder`) nothing counts, in either
//! direction: a parent assembles its children, and they take the words they share (its errors, its
//! traits) from it. What a child imports from a sibling by way of their parent is the sibling's, so
//! that no circle hides in `mod.rs`.

use std::collections::{BTreeMap, BTreeSet};

use super::files;

/// A module's path below the crate: `["train", "store"]`.
type Path = Vec<String>;

/// The modules of a crate and what they import.
struct Tree {
    /// Code by module.
    code: BTreeMap<Path, String>,
    /// What the names that a module imports stand for: paths from the crate's root.
    names: BTreeMap<Path, BTreeMap<String, Path>>,
}

/// The module of a file below `src`.
fn module(name: &str) -> Option<Path> {
    let parts: Vec<&str> = name.strip_prefix("src/")?.strip_suffix(".rs")?.split('/').collect();
    match parts[..] {
        ["lib" | "main"] => None,
        [.., "mod"] => {
            Some(parts[..parts.len() - 1].iter().map(|part| (*part).to_owned()).collect())
        }
        _ => Some(parts.iter().map(|part| (*part).to_owned()).collect()),
    }
}

/// A file's text without comments and without its tests.
fn code(text: &str) -> String {
    let tests = text.find("#[cfg(test)]\nmod ").unwrap_or(text.len());
    text[..tests]
        .lines()
        .map(|line| line.split("//").next().unwrap_or(""))
        .collect::<Vec<_>>()
        .join("\n")
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Every path in a text, `use` trees spread out, with the name that it goes by where it is
/// imported.
fn paths(code: &str) -> Vec<(Path, Option<String>)> {
    let mut found = Vec::new();
    let mut rest = code;
    while let Some(at) = rest.find(|c: char| c.is_alphabetic() || c == '_') {
        let (before, tail) = rest.split_at(at);
        let end = tail.find(|c| !is_word(c)).unwrap_or(tail.len());
        let (word, after) = tail.split_at(end);
        rest = after;
        let inner = before.ends_with("::") || before.ends_with('$') || before.ends_with('\'');
        if word == "use" && !inner {
            let end = after.find(';').unwrap_or(after.len());
            spread(&mut Vec::new(), after[..end].trim(), &mut found);
            rest = &after[end..];
        } else if !inner && after.starts_with("::") {
            let end = after.find(|c| !is_word(c) && c != ':').unwrap_or(after.len());
            let path: Vec<String> = after[..end].split("::").map(str::to_owned).collect();
            found.push(([vec![word.to_owned()], path[1..].to_vec()].concat(), None));
            rest = &after[end..];
        }
    }
    found
}

/// The paths of a `use` tree.
fn spread(prefix: &mut Path, tree: &str, found: &mut Vec<(Path, Option<String>)>) {
    let before = prefix.len();
    let (mut start, mut depth) = (0, 0);
    for (i, c) in tree.char_indices().chain([(tree.len(), ',')]) {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                let part = tree[start..i].trim();
                start = i + 1;
                if part.is_empty() {
                    continue;
                }
                let (head, inner) = part
                    .split_once('{')
                    .map_or((part, None), |(head, inner)| (head, inner.strip_suffix('}')));
                let (head, name) = head
                    .split_once(" as ")
                    .map_or((head, None), |(head, name)| (head, Some(name.trim())));
                prefix.extend(
                    head.split("::")
                        .map(str::trim)
                        .filter(|word| !word.is_empty() && *word != "self")
                        .map(str::to_owned),
                );
                if head.trim_start().starts_with("self::") {
                    prefix.insert(before, "self".into());
                }
                match inner {
                    Some(inner) => spread(prefix, inner, found),
                    None => found.push((
                        prefix.clone(),
                        name.or(prefix.last().map(String::as_str)).map(str::to_owned),
                    )),
                }
                prefix.truncate(before);
            }
            _ => {}
        }
    }
}

impl Tree {
    fn new<'a>(files: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let code: BTreeMap<Path, String> = files
            .into_iter()
            .filter_map(|(name, text)| Some((module(name)?, code(text))))
            .collect();
        let mut tree = Self { code, names: BTreeMap::new() };
        for (module, text) in &tree.code {
            let imported = paths(text)
                .into_iter()
                .filter_map(|(path, name)| Some((name?, tree.absolute(module, &path)?)));
            tree.names.insert(module.clone(), imported.collect());
        }
        tree
    }

    /// A path as it is from the crate's root; `None` if it leads out of the crate.
    fn absolute(&self, module: &Path, path: &[String]) -> Option<Path> {
        let ups = path.iter().take_while(|word| *word == "super").count();
        match path.first()?.as_str() {
            "crate" => Some(path[1..].to_vec()),
            "self" => Some([&module[..], &path[1..]].concat()),
            "super" => Some([&module[..module.len().checked_sub(ups)?], &path[ups..]].concat()),
            first => {
                let child = [&module[..], &[first.to_owned()]].concat();
                self.code.contains_key(&child).then(|| [&module[..], path].concat())
            }
        }
    }

    /// The module that a path from the crate's root names, or whose item it names.
    fn resolve(&self, path: &[String], depth: usize) -> Option<Path> {
        let known = (1..=path.len()).rev().find(|n| self.code.contains_key(&path[..*n]))?;
        let (module, rest) = (path[..known].to_vec(), &path[known..]);
        let imported = rest.first().and_then(|name| self.names.get(&module)?.get(name));
        match imported {
            // An import that is imported in turn. Eight are more than anyone follows.
            Some(path) if depth < 8 => self.resolve(path, depth + 1).or(Some(module)),
            _ => Some(module),
        }
    }

    /// What a module imports of its own layer, its parents and children aside.
    fn imports(&self, module: &Path) -> BTreeSet<Path> {
        let all = paths(&self.code[module]).into_iter().filter_map(|(path, _)| {
            // A name that was imported: `store::LAST` after `use super::store`.
            let imported =
                self.names[module].get(&path[0]).map(|start| [&start[..], &path[1..]].concat());
            self.resolve(&imported.or_else(|| self.absolute(module, &path))?, 0)
        });
        all.filter(|other| {
            other[0] == module[0] && !other.starts_with(module) && !module.starts_with(other)
        })
        .collect()
    }

    /// Modules that reach themselves, each with the way.
    fn circles(&self) -> Vec<String> {
        let imports: BTreeMap<&Path, BTreeSet<Path>> =
            self.code.keys().map(|module| (module, self.imports(module))).collect();
        let mut found = Vec::new();
        let mut told: BTreeSet<Path> = BTreeSet::new();
        for start in self.code.keys().filter(|module| !imports[module].is_empty()) {
            // The shortest way back, breadth first.
            let mut ways: Vec<Vec<&Path>> = vec![vec![start]];
            let mut seen: BTreeSet<&Path> = BTreeSet::new();
            let mut next = 0;
            while next < ways.len() && !told.contains(start) {
                let way = ways[next].clone();
                next += 1;
                for other in &imports[way[way.len() - 1]] {
                    if other == start {
                        told.extend(way.iter().map(|module| (*module).clone()));
                        let names: Vec<_> =
                            way.iter().chain([&start]).map(|module| module.join("::")).collect();
                        found.push(names.join(" -> "));
                    } else if let Some((other, _)) = imports.get_key_value(other)
                        && seen.insert(other)
                    {
                        ways.push([&way[..], &[other]].concat());
                    }
                    if told.contains(start) {
                        break;
                    }
                }
            }
        }
        found
    }
}

#[test]
fn imports_go_one_way() {
    let sources = files("src", &["rs"]);
    let tree = Tree::new(sources.iter().map(|(name, text)| (name.as_str(), text.as_str())));
    let seen: usize = tree.code.keys().map(|module| tree.imports(module).len()).sum();
    assert!(seen > 100, "only {seen} imports within layers were seen");
    let circles = tree.circles();
    assert!(circles.is_empty(), "{}", circles.join("\n"));
}

/// Files of a crate: name and text.
type Sources = &'static [(&'static str, &'static str)];
/// Sources, and the circle that is in them.
type Canary = (Sources, &'static str);

const MOD: (&str, &str) = ("src/a/mod.rs", "mod b; mod c; mod d; pub use c::C; use b::Word;");

const CIRCLES: [Canary; 8] = [
    (
        &[MOD, ("src/a/b.rs", "use super::c::C;"), ("src/a/c.rs", "use crate::a::b::B;")],
        "a::b -> a::c -> a::b",
    ),
    // By way of the parent's re-export, and of a name that it imports for itself.
    (
        &[MOD, ("src/a/b.rs", "use super::C;"), ("src/a/c.rs", "use super::{Word, X};")],
        "a::b -> a::c -> a::b",
    ),
    // In the middle of code.
    (
        &[
            MOD,
            ("src/a/b.rs", "fn f() { super::c::g() }"),
            ("src/a/c.rs", "fn g(x: &crate::a::b::B) {}"),
        ],
        "a::b -> a::c -> a::b",
    ),
    // A module, an item of which is named.
    (
        &[
            MOD,
            ("src/a/b.rs", "use super::{c, Y};\nfn f() { c::g() }"),
            ("src/a/c.rs", "use super::b as x;"),
        ],
        "a::b -> a::c -> a::b",
    ),
    (
        &[
            MOD,
            ("src/a/b.rs", "use super::c::{self, C};"),
            ("src/a/c.rs", "use super::d::D;"),
            ("src/a/d.rs", "use super::b;"),
        ],
        "a::b -> a::c -> a::d -> a::b",
    ),
    // Between a module and a cousin inside another one.
    (
        &[
            MOD,
            ("src/a/b/mod.rs", "mod e;"),
            ("src/a/b/e.rs", "use super::super::c::C;"),
            ("src/a/c.rs", "use super::b::e::E;"),
        ],
        "a::b::e -> a::c -> a::b::e",
    ),
    // A re-export of a re-export.
    (
        &[
            ("src/a/mod.rs", "mod b; mod c; pub use b::E;"),
            ("src/a/b/mod.rs", "mod e; pub use self::e::E;"),
            ("src/a/b/e.rs", "use crate::a::c::C;"),
            ("src/a/c.rs", "use crate::{x::Y, a::{E, b}};"),
        ],
        "a::b::e -> a::c -> a::b::e",
    ),
    (
        &[
            MOD,
            ("src/a/b.rs", "pub(crate) use\n    super::{\n    c::C,\n};"),
            ("src/a/c.rs", "impl super::b::T for C {}"),
        ],
        "a::b -> a::c -> a::b",
    ),
];

const NO_CIRCLES: [Sources; 5] = [
    // Parent and child; one way; another layer, which is for the order of layers.
    &[
        MOD,
        ("src/a/b.rs", "use super::{Z, f}; use crate::e::E;"),
        ("src/a/c.rs", "use super::b::B;"),
        ("src/e.rs", "use crate::a::C;"),
    ],
    &[MOD, ("src/a/b.rs", "// use super::c::C;\n"), ("src/a/c.rs", "use super::b::B;")],
    &[
        MOD,
        ("src/a/b.rs", "#[cfg(test)]\nmod tests {\n use super::super::c::C;\n}"),
        ("src/a/c.rs", "use super::b::B;"),
    ],
    // A path of another crate that begins with the same word, and a local name.
    &[
        MOD,
        ("src/a/b.rs", "use other::c::C; fn f() { d::C::new() }"),
        ("src/a/c.rs", "use super::b::B;"),
    ],
    &[
        MOD,
        ("src/a/b/mod.rs", "mod e; use e::E;"),
        ("src/a/b/e.rs", "use super::X;"),
        ("src/a/c.rs", "use super::b::e::E;"),
    ],
];

#[test]
fn circles_are_seen() {
    for (files, circle) in CIRCLES {
        assert_eq!(Tree::new(files.iter().copied()).circles(), [circle], "{files:?}");
    }
    for files in NO_CIRCLES {
        assert_eq!(Tree::new(files.iter().copied()).circles(), Vec::<String>::new(), "{files:?}");
    }
}
