//! Shaped kernels in place of compact ones, found while a model trains.
//!
//! Where compiling is slow a run starts with compact kernels ([`Target::compact`]), of which few
//! serve products of all shapes. Between its steps a [`Search`] compiles the kernel of each shape,
//! compares it with the compact one and times both, the products with the most FLOPs first: one
//! kernel, one comparison or one sample at a time, so that no step waits long.
//!
//! [`Target::compact`]: crate::ops::Target::compact

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use serde::Deserialize;
use web_time::Instant;

use super::{GAIN, Product, REPEATS};
use crate::check::Pair;
use crate::device::{Compiled, DeviceError, Session, Stopwatch};
use crate::ops::{Choices, Dispatch, Variant};
use crate::plan::Plan;

/// What a search takes of the training's time in all, and of a step's for one kernel.
pub const SEARCH: [Duration; 2] = [Duration::from_secs(20), Duration::from_millis(50)];

/// Which kernels a run takes that starts with compact ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kernels {
    /// Shaped ones where compiling is quick and they are faster.
    #[default]
    Auto,
    /// The compact ones.
    Compact,
    /// Shaped ones wherever they are right, however long compiling takes.
    Shaped,
}

/// What is to be said of them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Outlook {
    /// Nothing else is asked for, or offered.
    Kept,
    /// So many others would take so many seconds each to compile, which is too long.
    Slow {
        /// How many kernels they have.
        kernels: usize,
        /// Seconds of one.
        seconds: f64,
    },
    /// Others are tried.
    Trying {
        /// Products whose shaped kernel was tried.
        tried: usize,
        /// Products that have one.
        of: usize,
    },
    /// All that there was time for were tried.
    Found {
        /// Products that take their shaped kernel.
        shaped: usize,
        /// Of those, whose was wrong or not taken by the driver.
        refused: usize,
        /// Products that have one.
        of: usize,
    },
    /// The device has no room for the plans with the kernels that were found.
    NoRoom,
}

impl fmt::Display for Outlook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Kept => write!(f, "those that the run started with"),
            Self::Slow { kernels, seconds } => write!(
                f,
                "compact ones, which serve all shapes: one for each shape, {kernels} in all, would \
                 take {seconds:.2} s each to compile here"
            ),
            Self::Trying { tried, of } => write!(
                f,
                "compact ones, which serve all shapes; between steps one for each shape is tried, \
                 {tried} of {of} so far"
            ),
            Self::Found { shaped: 0, refused, of } => write!(
                f,
                "compact ones, which serve all shapes: of {of} for one shape none is faster, \
                 {refused} refused"
            ),
            Self::Found { shaped, refused, of } => write!(
                f,
                "those for one shape for {shaped} of {of} products, {refused} refused; compact \
                 ones for the others"
            ),
            Self::NoRoom => write!(f, "compact ones: there is no room for others"),
        }
    }
}

/// A search in progress.
pub struct Search {
    products: VecDeque<Product>,
    of: usize,
    /// Whether every right kernel is taken, whatever the time.
    all: bool,
    trying: Option<Trying>,
    choices: Choices,
    refused: usize,
    spent: Duration,
}

/// A product that is tried.
struct Trying {
    product: Product,
    candidate: Variant,
    pair: Option<Pair>,
    stage: Stage,
}

/// What is next.
enum Stage {
    /// To compile what the pair needs, then to load it.
    Compile(Box<Plan>, Vec<Dispatch>),
    /// To compare, after so many comparisons.
    Compare(usize),
    /// To time the compact kernel, then the other.
    Time(Stopwatch, Option<f64>),
}

/// What came of a slice.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Came {
    /// There is more to do.
    Nothing,
    /// The compact kernel stays.
    Lost,
    /// The same, because the candidate is wrong or cannot be had.
    Refused,
    /// The candidate is taken.
    Won,
}

impl Search {
    /// A search among products of a session's plans, those first that come first; `all` takes each
    /// shaped kernel that is right.
    pub fn new(session: &Session, products: Vec<Product>, all: bool) -> Self {
        let compact = |p: &Product| p.default(session).is_compact();
        let products: VecDeque<Product> = products.into_iter().filter(compact).collect();
        let of = products.len();
        let choices = Choices::default();
        Self { products, of, all, trying: None, choices, refused: 0, spent: Duration::ZERO }
    }

    /// The choices if every product took its shaped kernel.
    pub fn aims(&self, session: &Session) -> Choices {
        let mut aims = Choices::default();
        for product in &self.products {
            aims.set(product.key.clone(), shaped(session, product));
        }
        aims
    }

    /// What is to be said before it begins: whether a device that compiled so much so far is quick
    /// enough for so many more kernels.
    pub fn outlook(&self, compiled: Compiled, missing: usize) -> Outlook {
        let seconds = compiled.time.as_secs_f64() / compiled.kernels.max(1) as f64;
        let [whole, one] = SEARCH.map(|limit| limit.as_secs_f64());
        if self.of == 0 {
            Outlook::Kept
        } else if !self.all && (seconds * missing as f64 > whole || seconds > one) {
            Outlook::Slow { kernels: missing, seconds }
        } else {
            self.progress()
        }
    }

    /// How far it has come.
    pub fn progress(&self) -> Outlook {
        let left = self.products.len() + usize::from(self.trying.is_some());
        Outlook::Trying { tried: self.of - left, of: self.of }
    }

    /// What it has found.
    pub fn found(&self) -> Outlook {
        Outlook::Found { shaped: self.choices.len(), refused: self.refused, of: self.of }
    }

    /// The products that take their shaped kernel, so far.
    pub fn choices(&self) -> &Choices {
        &self.choices
    }

    /// Does one thing, on a session that holds whatever it holds; whether there is more to do.
    ///
    /// # Errors
    /// If the device is lost. A kernel that its driver does not take, or that it has no room to
    /// compare, is refused.
    pub fn slice(&mut self, session: &mut Session) -> Result<bool, DeviceError> {
        let began = Instant::now();
        let done = self.advance(session);
        self.spent += began.elapsed();
        done
    }

    fn advance(&mut self, session: &mut Session) -> Result<bool, DeviceError> {
        let Some(mut trying) = self.trying.take() else {
            let late = !self.all && self.spent >= SEARCH[0];
            let Some(product) = self.products.pop_front().filter(|_| !late) else {
                return Ok(false);
            };
            self.trying = Some(Trying::new(session, product));
            return Ok(true);
        };
        let came = match trying.advance(session, self.all) {
            Err(error @ DeviceError::Lost { .. }) => return Err(error),
            Err(_) => Came::Refused,
            Ok(came) => came,
        };
        if came == Came::Nothing {
            self.trying = Some(trying);
            return Ok(true);
        }
        if let Some(pair) = trying.pair {
            pair.unload(session)?;
        }
        match came {
            Came::Won => self.choices.set(trying.product.key, trying.candidate),
            Came::Refused => self.refused += 1,
            Came::Lost | Came::Nothing => {}
        }
        Ok(true)
    }
}

impl Trying {
    fn new(session: &Session, product: Product) -> Self {
        let (candidate, compact) = (shaped(session, &product), product.default(session));
        let plan = Pair::plan(session, &product.op, &product.io, compact, candidate);
        let missing = session.missing(std::slice::from_ref(&plan));
        Self { product, candidate, pair: None, stage: Stage::Compile(Box::new(plan), missing) }
    }

    /// Does what is next.
    fn advance(&mut self, session: &mut Session, all: bool) -> Result<Came, DeviceError> {
        match (&mut self.stage, &mut self.pair) {
            (Stage::Compile(plan, missing), pair) => match missing.pop() {
                Some(kernel) => session.compile(&kernel)?,
                None => {
                    *pair = Some(Pair::beside(session, *plan.clone(), &self.product.io)?);
                    self.stage = Stage::Compare(0);
                }
            },
            (Stage::Compare(count), Some(pair)) => {
                if pair.compare(session)?.is_some() {
                    return Ok(Came::Refused);
                }
                *count += 1;
                match *count {
                    REPEATS if all => return Ok(Came::Won),
                    REPEATS => self.stage = Stage::Time(pair.stopwatch(false), None),
                    _ => {}
                }
            }
            (Stage::Time(watch, compact), Some(pair)) => match (session.sample(watch)?, *compact) {
                (None, _) => {}
                (Some(timing), None) => {
                    self.stage = Stage::Time(pair.stopwatch(true), Some(timing.seconds));
                }
                (Some(timing), Some(compact)) if timing.seconds < compact * GAIN => {
                    return Ok(Came::Won);
                }
                (Some(_), Some(_)) => return Ok(Came::Lost),
            },
            (Stage::Compare(_) | Stage::Time(..), None) => {
                unreachable!("loaded before it is compared")
            }
        }
        Ok(Came::Nothing)
    }
}

/// The kernel of a product that is compiled for its shape.
fn shaped(session: &Session, product: &Product) -> Variant {
    product.op.variants(&product.io, &session.target())[0]
}
