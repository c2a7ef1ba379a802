//! State dicts that other programs wrote: the names that PyTorch's wrappers make of a module's.

use super::checkpoint::Checkpoint;

/// What wrappers put before the names of the module that they wrap: `DataParallel`,
/// `torch.compile`, Lightning's habit.
const WRAPPERS: [&str; 3] = ["module.", "_orig_mod.", "model."];

/// A tensor that every model has.
const KNOWN: &str = "encoder.conv1.weight";

/// Takes wrappers' prefixes off the names of a model's tensors, and returns what it took off. What
/// is not the model's stays.
///
/// # Errors
/// If the names have another prefix, or would meet: the message names the prefix.
pub fn unwrap(file: &mut Checkpoint) -> Result<Option<String>, String> {
    if file.tensors.contains_key(KNOWN) {
        return Ok(None);
    }
    let prefixes = file
        .tensors
        .keys()
        .filter_map(|name| name.strip_suffix(KNOWN).filter(|prefix| prefix.ends_with('.')));
    let Some(prefix) = prefixes.min_by_key(|prefix| prefix.len()).map(str::to_owned) else {
        return Ok(None);
    };
    let mut rest = prefix.as_str();
    while let Some(shorter) = WRAPPERS.iter().find_map(|wrapper| rest.strip_prefix(wrapper)) {
        rest = shorter;
    }
    if !rest.is_empty() {
        return Err(format!(
            "the names of its tensors begin with `{prefix}`; save them without, as `{KNOWN}` and \
             so on"
        ));
    }
    for (name, tensor) in std::mem::take(&mut file.tensors) {
        let short = name.strip_prefix(&prefix).map(str::to_owned);
        let name = short.unwrap_or(name);
        if file.tensors.contains_key(&name) {
            return Err(format!("it has both `{name}` and `{prefix}{name}`"));
        }
        file.tensors.insert(name, tensor);
    }
    Ok(Some(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::checkpoint::NamedTensor;

    fn names(names: &[&str]) -> Checkpoint {
        let tensor = |name: &&str| ((*name).to_owned(), NamedTensor::f32(&[1], vec![1.0]));
        Checkpoint { tensors: names.iter().map(tensor).collect(), ..Checkpoint::default() }
    }

    #[test]
    fn wrappers_are_taken_off() {
        for prefix in ["module.", "_orig_mod.", "model.", "module._orig_mod.", "model.module."] {
            let mut file = names(&[
                &format!("{prefix}{KNOWN}"),
                &format!("{prefix}log_scale"),
                "criterion.weight",
            ]);
            assert_eq!(unwrap(&mut file), Ok(Some(prefix.to_owned())));
            assert_eq!(
                file.tensors.keys().collect::<Vec<_>>(),
                ["criterion.weight", KNOWN, "log_scale"]
            );
        }
        for plain in [&[KNOWN, "model.x"][..], &["nothing.of.it"]] {
            let mut file = names(plain);
            assert_eq!(unwrap(&mut file), Ok(None));
            assert_eq!(file, names(plain));
        }
    }

    #[test]
    fn other_prefixes_are_named() {
        for prefix in ["net.", "model.net.", "ema_model."] {
            let error =
                unwrap(&mut names(&[&format!("{prefix}{KNOWN}")])).expect_err("another prefix");
            assert!(error.contains(&format!("`{prefix}`")), "{error}");
        }
        let error = unwrap(&mut names(&["module.encoder.conv1.weight", "module.x", "x"]))
            .expect_err("two of one name");
        assert!(error.contains("`x` and `module.x`"), "{error}");
    }
}
