//! Compares what plans take: a product has one choice for all its forms, and is measured in one of
//! them. Others have another epilogue, which a library may compute in another way, write the
//! moments of their result, or a bias's gradient; some a plan has only where a choice allows them.

use super::{Product, Trial, Tried, prepare, products, try_one};
use crate::device::{DeviceError, Session};
use crate::ir::Graph;
use crate::ops::{Choices, Io, Variant, key};
use crate::plan::{Plan, lower};

/// What graphs take with the choices of a session: every form of a product once, and its variant.
/// Left out is what nothing is compared with: the portable kernel, and the trusted one.
fn taken(session: &Session, graphs: &[&Graph]) -> Vec<(Variant, Product)> {
    let mut found: Vec<(Variant, Product)> = Vec::new();
    for graph in graphs {
        for step in lower("confirm", graph, session.options()).ops {
            let io = Io::from(&step.io);
            let offered = step.op.variants(&io, &session.target());
            if step.variant == offered[0] {
                continue;
            }
            let product = Product { key: key(&step.op, &io), op: step.op, io, flops: step.flops };
            if step.variant != product.trusted(session) && !holds(&found, step.variant, &product) {
                found.push((step.variant, product));
            }
        }
    }
    found
}

/// Whether a form with this variant is among others.
fn holds(all: &[(Variant, Product)], variant: Variant, form: &Product) -> bool {
    all.iter().any(|(v, p)| *v == variant && p.op == form.op && p.io == form.io)
}

/// Compares every form that graphs take with the choices of an empty session, but for those that
/// were `compared`. Products of which one is wrong get the portable kernel; returns what was wrong.
pub(super) fn confirm(
    session: &mut Session,
    graphs: &[&Graph],
    mut compared: Vec<(Variant, Product)>,
) -> Result<Vec<Trial>, DeviceError> {
    let mut refused: Vec<Trial> = Vec::new();
    if !session.capabilities().dispatches {
        return Ok(refused);
    }
    loop {
        let mut new = taken(session, graphs);
        new.retain(|(variant, form)| !holds(&compared, *variant, form));
        if new.is_empty() {
            return Ok(refused);
        }
        let forms: Vec<Product> = new.iter().map(|(_, form)| form.clone()).collect();
        let mut choices = session.choices().clone();
        let (mut prepared, before) = (0, refused.len());
        for (i, (variant, form)) in new.iter().enumerate() {
            if i == prepared {
                prepared += prepare(session, &forms[i..], |session, p| vec![p.taken(session)])?;
            }
            if refused[before..].iter().any(|trial| trial.key == form.key) {
                continue;
            }
            if let Tried::Refused(why) = try_one(session, form, *variant)? {
                let portable = form.op.variants(&form.io, &session.target())[0];
                choices.set(form.key.clone(), portable);
                refused.push(Trial::refused(form, *variant, why));
            }
        }
        compared.extend(new);
        session.reset();
        session.set_choices(choices);
    }
}

/// Sets choices on an empty session after comparing once more what graphs take with them. Returns
/// the products whose choice is refused; they have the portable kernel.
///
/// # Errors
/// If the device fails.
pub fn trust(
    session: &mut Session,
    graphs: &[&Graph],
    mut choices: Choices,
) -> Result<Vec<String>, DeviceError> {
    session.set_choices(choices.clone());
    let plans: Vec<Plan> = graphs.iter().map(|g| lower("confirm", g, session.options())).collect();
    let mut refused = Vec::new();
    for product in products(&plans) {
        let offered = product.op.variants(&product.io, &session.target());
        if choices.get(&product.key).is_some_and(|v| !offered.contains(&v)) {
            choices.set(product.key.clone(), offered[0]);
            refused.push(product.key);
        }
    }
    session.set_choices(choices);
    let wrong = confirm(session, graphs, vec![])?;
    refused.extend(wrong.into_iter().map(|trial| trial.key));
    Ok(refused)
}
