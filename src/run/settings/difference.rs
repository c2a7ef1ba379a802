//! Settings that differ, and whether a resumed run may have them differ.

use serde_json::{Map, Value};

use super::{Resume, RunConfig, SETTINGS, Schedule, setting};

/// A setting in which two configurations differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Key in `config.toml`.
    pub key: String,
    /// Value in the one, as JSON, or "unset" if it has none.
    pub here: String,
    /// Value in the other.
    pub there: String,
}

impl Difference {
    /// How the setting is given on the command line, or its key where only a file gives it.
    pub fn flag(&self) -> String {
        setting(&self.key).map_or_else(|| self.key.clone(), super::Setting::flag_name)
    }
}

impl Resume {
    /// Why a run with this schedule may not change such a setting when it is resumed; `None` if it
    /// may.
    pub fn refuses(self, schedule: Schedule) -> Option<&'static str> {
        match self {
            Self::Fixed => Some("it says what is computed"),
            Self::Length if schedule != Schedule::Constant => {
                Some("the learning rate of a run with a schedule depends on its length")
            }
            Self::Length | Self::Free => None,
        }
    }
}

impl RunConfig {
    /// The settings that a resumed run may change, under a constant learning rate, as they are
    /// given on the command line.
    pub fn may_change() -> impl Iterator<Item = String> {
        let free = SETTINGS.iter().filter(|s| s.resume.refuses(Schedule::Constant).is_none());
        free.map(super::Setting::flag_name)
    }

    /// The first of these changes to a run that this configuration may not make when it resumes the
    /// run, and what the list says of the setting. What is always refused comes first.
    pub fn refuses<'a>(&self, changes: &'a [Difference]) -> Option<(&'a Difference, Resume)> {
        let rule = |change: &Difference| setting(&change.key).map_or(Resume::Fixed, |s| s.resume);
        let refused = changes.iter().map(|change| (change, rule(change)));
        refused
            .filter(|(_, resume)| resume.refuses(self.schedule).is_some())
            .min_by_key(|(_, resume)| *resume != Resume::Fixed)
    }

    /// The settings in which this and another configuration differ, by key.
    pub fn differences(&self, other: &Self) -> Vec<Difference> {
        let (here, there) = (self.table(), other.table());
        let text = |value: Option<&Value>| value.map_or("unset".into(), ToString::to_string);
        let mut keys: Vec<_> = SETTINGS.iter().map(|setting| setting.key).collect();
        keys.sort_unstable();
        let differ = keys.into_iter().filter(|key| here.get(*key) != there.get(*key));
        differ
            .map(|key| Difference {
                key: key.into(),
                here: text(here.get(key)),
                there: text(there.get(key)),
            })
            .collect()
    }

    /// The configuration as `config.toml` has it, by key.
    ///
    /// # Panics
    /// If a path is not UTF-8, which [`RunConfig::validate`] refuses.
    pub(super) fn table(&self) -> Map<String, Value> {
        // This goes by way of text, so that 0.1 as f32 stays 0.1 and a seed beyond i64 is kept.
        serde_json::to_string(self)
            .and_then(|text| serde_json::from_str(&text))
            .expect("numbers, names and paths in UTF-8")
    }
}
