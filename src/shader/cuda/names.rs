//! Names that are no keyword of C++ and that nothing else has.

use std::collections::HashSet;

/// Names taken so far.
#[derive(Clone, Default)]
pub(super) struct Names {
    taken: HashSet<String>,
}

impl Names {
    /// `wanted_`, or `wanted_2_`, … where that is taken.
    pub(super) fn fresh(&mut self, wanted: &str) -> String {
        let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
        let clean: String = wanted.chars().map(plain).collect();
        // Two underscores in a row are the compiler's.
        let clean = clean.trim_end_matches('_');
        let mut name = format!("{clean}_");
        let mut n = 2;
        while !self.taken.insert(name.clone()) {
            name = format!("{clean}_{n}_");
            n += 1;
        }
        name
    }
}
