//! Which values of a setting make sense, whatever the others are.

use std::fmt::{self, Display};
use std::path::PathBuf;

/// Most images of a batch, and most batches of a step: far beyond any use, and low enough that no
/// product of extents overflows.
pub const MOST_IMAGES: usize = 1 << 20;

/// Which values of a setting make sense.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bounds {
    /// A whole number from 1.
    Count,
    /// An extent of tensors or a part of one. A network and its plan depend on it.
    Extent {
        /// The smallest value allowed.
        least: usize,
        /// The largest: no product of such extents overflows.
        most: usize,
    },
    /// Images per batch: a plan may have a single one, but BatchNorm cannot train on it.
    Batch,
    /// A number, and not an infinite one.
    Finite,
    /// A finite number above 0.
    Positive,
    /// A finite number of at least 0.
    AtLeastZero,
    /// A number from the first to the second.
    Between(f32, f32),
    /// A path in UTF-8, as all of `config.toml` must be.
    Text,
    /// Epochs from 1, each after the one before.
    Epochs,
}

impl Bounds {
    /// What must hold of the value for its network to be planned; `None` if anything may.
    pub fn planned(self) -> Option<Self> {
        match self {
            Self::Extent { .. } => Some(self),
            Self::Batch => Some(Self::Extent { least: 1, most: MOST_IMAGES }),
            _ => None,
        }
    }

    /// What is wrong with a number, given as a float and as it is written.
    fn number(self, x: f64, text: &dyn Display) -> Result<(), String> {
        let extent = |least: usize, most: usize| {
            if x < least as f64 {
                Err(format!("is {text}; it must be positive"))
            } else if x > most as f64 {
                Err(format!("{text} is more than {most}, the largest that can be planned"))
            } else {
                Ok(())
            }
        };
        let wrong = |is: bool, says: String| if is { Err(says) } else { Ok(()) };
        match self {
            Self::Count => wrong(x < 1.0, format!("is {text}; it must be positive")),
            Self::Extent { least, most } => extent(least, most),
            Self::Batch => extent(1, MOST_IMAGES).and_then(|()| {
                wrong(x < 2.0, format!("{text} leaves BatchNorm nothing to average; use 2 or more"))
            }),
            Self::Finite => wrong(!x.is_finite(), format!("{text} is not a finite number")),
            Self::Positive => {
                wrong(!(x.is_finite() && x > 0.0), format!("{text} is not a positive number"))
            }
            Self::AtLeastZero => {
                wrong(!(x.is_finite() && x >= 0.0), format!("{text} is not a number of at least 0"))
            }
            Self::Between(least, most) => wrong(
                !(f64::from(least)..=f64::from(most)).contains(&x),
                format!("{text} is not between {least} and {most}"),
            ),
            Self::Text | Self::Epochs => panic!("{self:?} is no range of numbers"),
        }
    }
}

impl Display for Bounds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count => f.write_str("from 1"),
            Self::Extent { least, most } => write!(f, "{least} to {most}"),
            Self::Batch => write!(f, "2 to {MOST_IMAGES}"),
            Self::Finite => f.write_str("finite"),
            Self::Positive => f.write_str("above 0"),
            Self::AtLeastZero => f.write_str("from 0"),
            Self::Between(least, most) => write!(f, "{least} to {most}"),
            Self::Text => f.write_str("a path in UTF-8"),
            Self::Epochs => f.write_str("ascending, from 1"),
        }
    }
}

/// A type of values that can have [`Bounds`].
pub trait Ranged {
    /// Checks a value.
    ///
    /// # Errors
    /// What is wrong with it, to be read after the name of its setting.
    ///
    /// # Panics
    /// If the range is not one of such values, which is a fault of the list of settings.
    fn check(&self, range: Bounds) -> Result<(), String>;
}

macro_rules! numbers {
    ($($type:ty),+) => { $(
        impl Ranged for $type {
            fn check(&self, range: Bounds) -> Result<(), String> {
                range.number(*self as f64, self)
            }
        }
    )+ };
}
numbers!(usize, u64, f32, f64);

/// An option that is not set is within every range.
impl<T: Ranged> Ranged for Option<T> {
    fn check(&self, range: Bounds) -> Result<(), String> {
        self.as_ref().map_or(Ok(()), |value| value.check(range))
    }
}

impl Ranged for PathBuf {
    fn check(&self, range: Bounds) -> Result<(), String> {
        assert_eq!(range, Bounds::Text, "a path is text");
        if self.to_str().is_some() {
            return Ok(());
        }
        let path = crate::text::name(self);
        Err(format!("`{path}` is not UTF-8, as all of config.toml must be; a link to it may be"))
    }
}

impl Ranged for Vec<usize> {
    fn check(&self, range: Bounds) -> Result<(), String> {
        assert_eq!(range, Bounds::Epochs, "a list is of epochs");
        if self.first() != Some(&0) && self.is_sorted_by(|a, b| a < b) {
            return Ok(());
        }
        Err(format!("{self:?} are not epochs from 1 in ascending order"))
    }
}
