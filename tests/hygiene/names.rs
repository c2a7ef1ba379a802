//! A name is one type, and the crate's vocabulary links its terms to their types.

use std::collections::BTreeMap;

use super::{files, read, root};

/// Names that two public types share, and why.
const SHARED: [(&str, &str); 1] = [(
    "OpenOptions",
    "how a device is opened, each kind in its own module, as with `std::fs::OpenOptions`",
)];

/// Public types by name, with the files that declare them. Tests do not count.
fn public_types() -> BTreeMap<String, Vec<String>> {
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (file, text) in files("src", &["rs"]) {
        let code = text.split("#[cfg(test)]").next().unwrap_or("");
        for line in code.lines() {
            let mut words = line.trim_start().split(|c: char| !c.is_alphanumeric() && c != '_');
            let kind = ["struct", "enum", "trait", "type", "union"];
            if words.next() == Some("pub") && words.next().is_some_and(|word| kind.contains(&word))
            {
                let name = words.next().unwrap_or("").to_owned();
                found.entry(name).or_default().push(file.clone());
            }
        }
    }
    assert!(found.len() > 200, "only {} types were found", found.len());
    found
}

#[test]
fn a_name_is_one_type() {
    let types = public_types();
    for (name, files) in types.iter().filter(|(_, files)| files.len() > 1) {
        let listed = SHARED.iter().any(|(shared, _)| shared == name);
        assert!(listed, "`{name}` is a type in each of {}", files.join(", "));
    }
    for (name, why) in SHARED {
        let shared = types.get(name).is_some_and(|files| files.len() > 1);
        assert!(shared && !why.is_empty(), "`{name}` is shared no more");
    }
}

/// The entries of the crate's vocabulary: their terms and their text.
fn vocabulary(docs: &str) -> Vec<(Vec<String>, String)> {
    let lines = docs.lines().skip_while(|line| *line != "//! # Vocabulary").skip(1);
    let section: Vec<&str> = lines.take_while(|line| !line.starts_with("//! # ")).collect();
    let text = section.iter().map(|line| line.trim_start_matches("//!")).collect::<String>();
    let entries = text.split(" * **").skip(1).map(|entry| format!("**{entry}"));
    let terms = |entry: &str| -> Vec<String> {
        entry.split("**").skip(1).step_by(2).map(ToOwned::to_owned).collect()
    };
    entries.map(|entry| (terms(&entry), entry)).collect()
}

#[test]
fn terms_link_to_their_types() {
    let (types, entries) = (public_types(), vocabulary(&read(&root().join("src/lib.rs"))));
    let mut linked = 0;
    for (term, entry) in entries.iter().flat_map(|(terms, e)| terms.iter().map(move |t| (t, e))) {
        let mut letters = term.chars();
        let name = letters.next().map(|c| c.to_uppercase().chain(letters).collect::<String>());
        let name = name.unwrap_or_default();
        // A shared name is no type of the vocabulary's.
        let shared = SHARED.iter().any(|(shared, _)| *shared == name);
        if types.contains_key(&name) && !shared {
            assert!(entry.contains(&format!("::{name}`]")), "`{term}` does not link to `{name}`");
            linked += 1;
        }
    }
    assert!(linked >= 12, "only {linked} terms are types");
}
