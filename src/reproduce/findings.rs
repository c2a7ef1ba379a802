//! The paper's claims, and what the runs say about them.

use super::Experiment;
use super::cells::Varies;
use super::results::{Measure, Results, RunResult, Stat};
use crate::eval::embed::Similarity;
use crate::run::summary::RunSummary;

/// What the runs say about a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Our numbers agree with the claim.
    Holds,
    /// Our numbers contradict the claim.
    Fails,
    /// The 95 % confidence interval has both signs, or there is only one seed.
    Open,
}

impl Verdict {
    /// The verdict as a report words it.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Holds => "holds",
            Self::Fails => "does not hold",
            Self::Open => "undecided",
        }
    }

    /// Whether a difference is positive, by its 95 % confidence interval.
    fn positive(difference: &Stat) -> Self {
        match difference.margin() {
            Some(margin) if difference.mean > margin => Self::Holds,
            Some(margin) if difference.mean < -margin => Self::Fails,
            _ => Self::Open,
        }
    }
}

/// A claim with our numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    /// What the paper says.
    pub claim: String,
    /// What we measured.
    pub ours: String,
    /// Whether our numbers bear the claim out.
    pub verdict: Verdict,
}

/// The claims of an experiment that the finished runs say something about.
pub fn findings(results: &Results) -> Vec<Finding> {
    match results.setup.experiment {
        Experiment::Table1 => table1(results),
        Experiment::Fig2 => fig2(results),
        Experiment::Fig3 => fig3(results),
        Experiment::Fig4 => fig4(results),
        Experiment::Fig5 => fig5(results),
        Experiment::Duration => duration(results),
    }
}

/// Differences of two cells, seed by seed.
fn paired(
    results: &Results,
    a: &str,
    b: &str,
    of: impl Fn(&RunResult, &RunSummary) -> Option<f64>,
) -> Option<Stat> {
    let (a, b) = (results.values(results.cell(a)?, &of), results.values(results.cell(b)?, &of));
    let differences: Vec<f64> =
        a.iter().filter_map(|(seed, x)| Some(x - b.iter().find(|(s, _)| s == seed)?.1)).collect();
    Stat::of(&differences)
}

fn seeds(n: usize) -> String {
    format!("n = {n}")
}

/// "+5.40 ± 1.20".
fn signed(difference: &Stat, scale: f64, digits: usize) -> String {
    let sign = if difference.mean >= 0.0 { "+" } else { "" };
    format!("{sign}{}", difference.text(scale, digits))
}

/// "+5.40 ± 1.20 points (n = 3)".
fn points(difference: &Stat) -> String {
    format!("{} points ({})", signed(difference, 100.0, 2), seeds(difference.n))
}

/// A claim that one cell is above another, judged by the probe.
fn difference(claim: String, probe: &Stat, knn: Option<Stat>) -> Finding {
    let knn = knn.map_or(String::new(), |stat| format!("; kNN-20 {}", signed(&stat, 100.0, 2)));
    Finding { claim, ours: format!("{}{knn}", points(probe)), verdict: Verdict::positive(probe) }
}

fn table1(results: &Results) -> Vec<Finding> {
    let claims = [
        ("AAVAE is above the VAE", "aavae", "vae"),
        ("The VAE is a little above the AE", "vae", "ae"),
        (
            "AAVAE is above AAAE with the original as target: augmentation alone is not enough",
            "aavae",
            "aaae",
        ),
        (
            "AAVAE is above AAAE with the view as target: augmentation alone is not enough",
            "aavae",
            "aaae-view",
        ),
        (
            "AAVAE is above the VAE without its KL term: noise alone is not enough",
            "aavae",
            "vae-noise",
        ),
        (
            "The AE is above AAAE with the original as target: augmentation alone hurts",
            "ae",
            "aaae",
        ),
        (
            "The AE is above AAAE with the view as target: augmentation alone hurts",
            "ae",
            "aaae-view",
        ),
        ("AAVAE is above the untrained encoder", "aavae", "random"),
        ("SimCLR is above AAVAE", "simclr", "aavae"),
    ];
    let finding = |(claim, a, b): (&str, &str, &str)| {
        let of = |measure: Measure| paired(results, a, b, |_, s| measure.of(&s.measured));
        Some(difference(claim.into(), &of(Measure::Probe)?, of(Measure::Knn20)))
    };
    claims.into_iter().filter_map(finding).collect()
}

/// Points of accuracy that count as none.
const NOTHING: f64 = 0.01;

fn fig2(results: &Results) -> Vec<Finding> {
    let finding = |(i, cell): (usize, &super::Cell)| {
        let late = |run: &RunResult, _: &RunSummary| {
            let accuracies = run.milestones(Measure::Probe);
            Some(accuracies.last()?.1 - accuracies.get((accuracies.len() - 1) / 2)?.1)
        };
        let gains: Vec<f64> = results.values(i, late).into_iter().map(|v| v.1).collect();
        let stat = Stat::of(&gains)?;
        let overfit = |run: &RunResult, _: &RunSummary| {
            let bits = run.bits.as_ref().ok()?;
            let last = bits.last()?.val;
            Some(last - bits.iter().map(|b| b.val).fold(f64::INFINITY, f64::min))
        };
        let bits: Vec<f64> = results.values(i, overfit).into_iter().map(|v| v.1).collect();
        let bits = Stat::of(&bits).map_or(String::new(), |b| {
            format!("; held-out bits per dimension end {} above their best", b.text(1.0, 3))
        });
        // Falling by no more than a point.
        let verdict = Verdict::positive(&Stat { mean: stat.mean + NOTHING, ..stat });
        let ours = format!("from the middle of training to its end {}{bits}", points(&stat));
        Some(Finding {
            claim: format!("{}: the accuracy does not fall", cell.label),
            ours,
            verdict,
        })
    };
    results.cells.iter().enumerate().filter_map(finding).collect()
}

fn fig3(results: &Results) -> Vec<Finding> {
    let falls = |name: &str, claim: &str| {
        let stat = paired(results, "beta-0", name, |_, s| Measure::Probe.of(&s.measured))?;
        let ours = format!("β = 0 minus it: {}", points(&stat));
        Some(Finding { claim: claim.into(), ours, verdict: Verdict::positive(&stat) })
    };
    let flat = || {
        let cells = ["beta-0", "beta-0.001", "beta-0.01"];
        let stats = cells
            .iter()
            .map(|name| results.stat(results.cell(name)?, Measure::Probe))
            .collect::<Option<Vec<_>>>()?;
        Some(flatness("A weight far below 1 (0 to 0.01) changes nothing", &stats))
    };
    [
        flat(),
        falls("beta-1", "The accuracy is lower with β = 1"),
        falls("beta-10", "The accuracy is lower with β = 10"),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Points of accuracy that means may be apart and hardly differ.
const FLAT: f64 = 0.03;

/// Whether the range of some means is within [`FLAT`], by more than the largest half of their 95 %
/// confidence intervals.
fn flatness(claim: &str, stats: &[Stat]) -> Finding {
    let (low, high) = stats.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), s| {
        (low.min(s.mean), high.max(s.mean))
    });
    // A mean of one seed may be anywhere.
    let margins: Option<Vec<f64>> = stats.iter().map(Stat::margin).collect();
    let margin = margins.and_then(|margins| margins.into_iter().reduce(f64::max));
    let verdict = match margin {
        Some(margin) if high - low + margin < FLAT => Verdict::Holds,
        Some(margin) if high - low - margin > FLAT => Verdict::Fails,
        _ => Verdict::Open,
    };
    let margin = margin.map_or("not all have two seeds".to_owned(), |m| {
        format!("the widest 95 % interval is ± {:.2}", m * 100.0)
    });
    let ours = format!(
        "means from {:.2} to {:.2} %, {:.2} points apart; {margin}",
        low * 100.0,
        high * 100.0,
        (high - low) * 100.0
    );
    Finding { claim: claim.into(), ours, verdict }
}

fn fig4(results: &Results) -> Vec<Finding> {
    let panel = |(varies, what): (Varies, &str)| {
        let mine = |cell: &super::Cell| cell.varies == varies || cell.varies == Varies::Base;
        let cells = results.cells.iter().enumerate().filter(|(_, cell)| mine(cell));
        let stats: Vec<Stat> = cells.filter_map(|(i, _)| results.stat(i, Measure::Probe)).collect();
        (stats.len() > 1)
            .then(|| flatness(&format!("The accuracy hardly depends on {what}"), &stats))
    };
    let panels = [
        (Varies::Batch, "the batch size"),
        (Varies::Latent, "the latent size"),
        (Varies::Decoder, "the decoder"),
        (Varies::LogScale, "the width of the likelihood"),
    ];
    panels.into_iter().filter_map(panel).collect()
}

fn fig5(results: &Results) -> Vec<Finding> {
    let gap = |of: &'static str| {
        move |run: &RunResult, _: &RunSummary| similarity(run, of).map(Similarity::gap)
    };
    let finding = |of: &'static str, what: &str| {
        let stat = paired(results, "aavae", "vae", gap(of))?;
        let ours =
            format!("AAVAE's gap minus the VAE's: {} ({})", signed(&stat, 1.0, 3), seeds(stat.n));
        let claim = format!("AAVAE has a wider gap than the VAE, by {what}");
        Some(Finding { claim, ours, verdict: Verdict::positive(&stat) })
    };
    [
        finding("h", "the features h"),
        finding("mu", "the posterior's mean"),
        finding("z", "the latent z"),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// The similarities of one kind of vector.
pub fn similarity<'a>(run: &'a RunResult, of: &str) -> Option<&'a Similarity> {
    run.similarities.iter().find(|s| s.of == of)
}

fn duration(results: &Results) -> Vec<Finding> {
    let gain = |run: &RunResult, _: &RunSummary| {
        let accuracies = run.milestones(Measure::Probe);
        Some(accuracies.last()?.1 - accuracies.first()?.1)
    };
    let longer = || {
        let gains: Vec<f64> =
            results.values(results.cell("aavae")?, gain).into_iter().map(|v| v.1).collect();
        let stat = Stat::of(&gains)?;
        let ours = format!("from the first to the last checkpoint {}", points(&stat));
        let claim = "The longer AAVAE's pretraining, the better the representation".into();
        Some(Finding { claim, ours, verdict: Verdict::positive(&stat) })
    };
    let noise = |epoch: usize| {
        let at = |measure| move |run: &RunResult, _: &RunSummary| run.milestone(epoch, measure);
        let claim = match results.milestones.last() {
            Some(last) if *last == epoch => {
                "In the end AAVAE is above AAAE: augmentation alone is not enough".to_owned()
            }
            _ => format!("Not the paper's: the same after {epoch} epochs"),
        };
        let of = |measure| paired(results, "aavae", "aaae", at(measure));
        Some(difference(claim, &of(Measure::Probe)?, of(Measure::Knn20)))
    };
    longer()
        .into_iter()
        .chain(results.milestones.iter().rev().filter_map(|epoch| noise(*epoch)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_of_means_is_judged_by_the_least_certain() {
        let stat = |values: &[f64]| Stat::of(values).expect("values");
        let (sure, low) = (stat(&[0.40, 0.401, 0.399]), stat(&[0.30, 0.301, 0.299]));
        assert_eq!(flatness("", &[sure, sure]).verdict, Verdict::Holds);
        assert_eq!(flatness("", &[sure, low]).verdict, Verdict::Fails);
        // Two seeds that are half a point apart may be anywhere within four; one seed may be
        // anywhere.
        assert_eq!(flatness("", &[sure, stat(&[0.40, 0.405])]).verdict, Verdict::Open);
        assert_eq!(flatness("", &[sure, stat(&[0.40])]).verdict, Verdict::Open);
        assert_eq!(Verdict::positive(&stat(&[0.01, 0.02])), Verdict::Open);
        assert_eq!(Verdict::positive(&stat(&[0.01, 0.012, 0.011])), Verdict::Holds);
        assert_eq!(Verdict::positive(&stat(&[-0.01, -0.012, -0.011])), Verdict::Fails);
    }
}
