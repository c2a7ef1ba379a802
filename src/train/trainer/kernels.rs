//! Other kernels for a run that trains: a device on which compiling is slow starts with compact
//! ones, and takes those for one shape where they are right and faster. The plans are exchanged
//! between two steps; the weights, and what else outlives a step, stay where they are.

use super::Trainer;
use crate::device::{DeviceError, Session};
use crate::ir::Graph;
use crate::ops::{Choices, Dispatch};
use crate::plan::{Options, Plan, lower};
use crate::run::RunError;
use crate::train::plans::{self, RunSet};
use crate::tune::{self, Kernels, Outlook, Search};

/// How far a run is with other kernels.
pub(super) enum Settling {
    /// The kernels of products are tried.
    Searching(Box<Search>),
    /// Those of the plans that take the ones that were found are compiled.
    Compiling(Box<Others>),
}

/// Plans to take in place of those that there are.
pub(super) struct Others {
    plans: RunSet<Plan>,
    choices: Choices,
    /// What is not compiled yet.
    missing: Vec<Dispatch>,
    /// What is to be said of them.
    outlook: Outlook,
}

/// Plans of the same graphs with other choices.
fn replanned(session: &Session, graphs: &RunSet<Graph>, choices: &Choices) -> RunSet<Plan> {
    let options = Options { choices, ..session.options() };
    let plan = |name, graph| Ok::<_, std::convert::Infallible>(lower(name, &graph, options));
    graphs.clone().try_map(plan).unwrap_or_else(|never| match never {})
}

fn all(plans: &RunSet<Plan>) -> Vec<Plan> {
    plans.iter().map(|(_, plan)| plan.clone()).collect()
}

impl Trainer<'_> {
    /// Begins to look for other kernels than compact ones, between steps ([`Trainer::settle`]),
    /// unless it has some already: those of a run that is resumed. Of `most` products at most:
    /// those with the most FLOPs. Returns what is to be said.
    pub fn seek(&mut self, kernels: Kernels, most: Option<usize>) -> Outlook {
        let session = &self.session;
        let dispatches = session.capabilities().dispatches;
        if kernels == Kernels::Compact || !dispatches || !session.choices().is_empty() {
            return Outlook::Kept;
        }
        let mut products = tune::products([session.plan(self.plans.train)]);
        products.truncate(most.unwrap_or(usize::MAX));
        let search = Search::new(session, products, kernels == Kernels::Shaped);
        let aims = replanned(session, &self.graphs(), &search.aims(session));
        let outlook = search.outlook(session.compiled(), session.missing(&all(&aims)).len());
        if matches!(outlook, Outlook::Trying { .. }) {
            self.settling = Some(Settling::Searching(Box::new(search)));
        }
        outlook
    }

    /// Does a little of that search: compiles a kernel, compares or times one, and at its end
    /// exchanges the plans. Returns what is to be said if that is something else than before.
    ///
    /// # Errors
    /// If the device fails, or a step before was not finite.
    pub fn settle(&mut self) -> Result<Option<Outlook>, RunError> {
        match self.settling.take() {
            None => Ok(None),
            Some(Settling::Searching(mut search)) => {
                let before = search.progress();
                if search.slice(&mut self.session)? {
                    let now = search.progress();
                    self.settling = Some(Settling::Searching(search));
                    return Ok(Some(now).filter(|now| *now != before));
                }
                if search.choices().is_empty() {
                    return Ok(Some(search.found()));
                }
                self.settling = Some(Settling::Compiling(Box::new(self.others(&search))));
                Ok(None)
            }
            Some(Settling::Compiling(mut others)) => {
                let Some(kernel) = others.missing.pop() else {
                    let outlook = others.outlook;
                    let taken = self.exchange(*others)?;
                    return Ok(Some(if taken { outlook } else { Outlook::NoRoom }));
                };
                // A kernel that is not taken is refused again where the plan is loaded.
                if let Err(error @ DeviceError::Lost { .. }) = self.session.compile(&kernel) {
                    return Err(error.into());
                }
                self.settling = Some(Settling::Compiling(others));
                Ok(None)
            }
        }
    }

    fn others(&self, search: &Search) -> Others {
        let choices = search.choices().clone();
        let plans = replanned(&self.session, &self.graphs(), &choices);
        let missing = self.session.missing(&all(&plans));
        Others { plans, choices, missing, outlook: search.found() }
    }

    /// Takes other plans for the following steps; where they cannot be loaded, again those that
    /// there were. Whether it took them.
    fn exchange(&mut self, others: Others) -> Result<bool, RunError> {
        // A step that failed is run again by the plans that it had.
        self.drain()?;
        self.looks.forget(&mut self.session)?;
        match self.reload(others.plans) {
            Ok(()) => {
                self.session.set_choices(others.choices);
                Ok(true)
            }
            Err(error @ DeviceError::Lost { .. }) => Err(error.into()),
            Err(_) => {
                let before = replanned(&self.session, &self.graphs(), self.session.choices());
                self.reload(before)?;
                Ok(false)
            }
        }
    }

    fn reload(&mut self, plans: RunSet<Plan>) -> Result<(), DeviceError> {
        let ids: Vec<_> = self.plans.iter().map(|(_, id)| *id).collect();
        // Room for all that are smaller before one that is larger.
        for &id in &ids {
            self.session.unload(id)?;
        }
        let mut ids = ids.into_iter();
        plans.try_map(|name, plan| {
            let id = ids.next().unwrap_or_else(|| unreachable!("{name}: the same plans"));
            self.session.reload(id, plan)
        })?;
        Ok(())
    }

    fn graphs(&self) -> RunSet<Graph> {
        let graphs = plans::graphs(&self.config, &self.model, self.sizes).0;
        match &self.images {
            Ok(set) => graphs.resident(set),
            Err(_) => graphs,
        }
    }
}
