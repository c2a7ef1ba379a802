//! What a report says, before it is a page or a text.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use super::figures::Figure;
use crate::data::read_regular;
use crate::eval::embed::Similarity;
use crate::reproduce::cells::{Overrides, Weights};
use crate::reproduce::findings::{Finding, findings, similarity};
use crate::reproduce::folder::{CellState, Identity};
use crate::reproduce::results::{Measure, Results, RunResult, Stat};
use crate::reproduce::{Experiment, GridScale, paper};
use crate::run::settings::DataKind;
use crate::run::summary::RunSummary;
use crate::text;

/// A part of a report.
#[derive(Clone, Debug)]
pub struct Section {
    /// Heading of the section.
    pub title: &'static str,
    /// What it holds.
    pub blocks: Vec<Block>,
}

/// A piece of a section.
#[derive(Clone, Debug)]
pub enum Block {
    /// A paragraph of running text.
    Text(String),
    /// A paragraph that must not be overlooked.
    Note(String),
    /// A table of words and numbers.
    Table(Table),
    /// A plot that is drawn from the results.
    Figure(Figure),
    /// A picture: caption, path from the grid's folder, contents.
    Picture(String, String, Vec<u8>),
    /// Lines to type.
    Code(String),
}

/// Rows of text.
#[derive(Clone, Debug, Default)]
pub struct Table {
    /// Names of the columns.
    pub head: Vec<String>,
    /// Rows, as long as the head.
    pub rows: Vec<Vec<String>>,
    /// How many of the first columns are words; the others are numbers.
    pub words: usize,
}

impl Table {
    fn new(head: &[&str], words: usize) -> Self {
        Self { head: head.iter().map(|&h| h.into()).collect(), rows: Vec::new(), words }
    }
}

/// What stands where there is no number.
const NONE: &str = "–";

fn percent(stat: Option<Stat>) -> String {
    stat.map_or(NONE.into(), |s| s.text(100.0, 2))
}

/// The whole report.
pub fn sections(results: &Results, identity: &Identity, figures: Vec<Figure>) -> Vec<Section> {
    let mut found = vec![
        Block::Text(format!("The paper: {}", results.setup.experiment.claim())),
        Block::Note(comparable(results)),
    ];
    found.extend(unfinished(results).map(Block::Note));
    found.extend(results.unread().map(|(run, error)| {
        Block::Note(format!("The bits per dimension of `{run}` are left out: {error}"))
    }));
    found.push(Block::Table(main_table(results)));
    found.push(Block::Text(legend(results)));
    found.extend(ablation(results).into_iter().flatten());
    found.extend(figures.into_iter().map(Block::Figure));
    let mut claims = Table::new(&["the paper's claim", "here", "verdict"], 3);
    let judged = results.setup.scale != GridScale::Smoke;
    let verdict = |f: &Finding| if judged { f.verdict.text() } else { "not judged at this scale" };
    claims.rows = findings(results)
        .into_iter()
        .map(|f| vec![f.claim.clone(), f.ours.clone(), verdict(&f).into()])
        .collect();
    let verdicts = "A claim about a difference holds if the 95 % confidence interval of the \
        probe's difference (Student's t) is above 0, and does not hold if it is below; otherwise, \
        and with one seed, it is undecided. Means hardly differ if they are less than three points \
        apart, and an accuracy does not fall if it loses less than one, by the same interval. \
        Differences are taken seed by seed: mean ± standard deviation over n seeds.";
    let mut sections = vec![Section { title: "Results", blocks: found }];
    if !claims.rows.is_empty() {
        let mut blocks = vec![Block::Table(claims), Block::Text(verdicts.into())];
        blocks.extend(two_targets(results).map(Block::Text));
        sections.push(Section { title: "The paper's claims", blocks });
    }
    let pictures = pictures(results);
    if results.show_images && !pictures.is_empty() {
        sections.push(Section { title: "Images", blocks: pictures });
    }
    sections.push(Section { title: "Runs", blocks: vec![Block::Table(runs(results))] });
    sections.push(Section { title: "How it was made", blocks: provenance(results, identity) });
    sections
}

fn networks(results: &Results) -> String {
    let b = results.setup.budget();
    let epochs = match results.setup.overrides.max_steps {
        Some(steps) => format!("{steps} steps"),
        None => format!("{} epochs", b.epochs),
    };
    format!(
        "{:?} of width {}, {epochs} of {} images, {}-epoch probe",
        b.depth, b.width, results.images[0], b.probe_epochs
    )
    .replace("Resnet", "ResNet-")
}

/// What may be compared with the paper, in plain words.
fn comparable(results: &Results) -> String {
    let setup = &results.setup;
    let here = networks(results);
    let theirs = paper::PROTOCOL;
    let data = match setup.dataset {
        DataKind::Shapes | DataKind::Folder => {
            format!(
                " The paper has no results on the data set `{}`; its numbers here are for {}.",
                setup.dataset.name(),
                paper::dataset(setup.dataset)
            )
        }
        _ => String::new(),
    };
    let changed = if setup.overrides == Overrides::default() {
        ""
    } else {
        " The scale's budget was changed for a test."
    };
    let verdict = match setup.scale {
        GridScale::Smoke => {
            "The accuracies show that everything works. They cannot be compared with the paper's, \
             and neither can their order."
        }
        GridScale::Ci | GridScale::Laptop => {
            "The accuracies cannot be compared with the paper's; the order of the rows may be, as \
             far as their spread allows."
        }
        GridScale::Paper => "This is the paper's budget.",
    };
    format!("Scale `{}`: {here}. The paper: {theirs}. {verdict}{data}{changed}", setup.scale.name())
}

fn unfinished(results: &Results) -> Option<String> {
    let (all, done, failed) =
        (results.runs.len(), results.done().count(), results.failures().count());
    (done < all).then(|| {
        format!(
            "{done} of {all} runs are done, {failed} failed, {} are not finished; the table \
            has what there is.",
            all - done - failed
        )
    })
}

/// One row for each cell; for the duration one for each milestone of each.
fn main_table(results: &Results) -> Table {
    let setup = &results.setup;
    let head = ["", "n", "linear probe, %", "kNN-20, %", "kNN-200, %"];
    if setup.experiment == Experiment::Duration {
        let mut table =
            Table::new(&["", "epochs", "n", "linear probe, %", "kNN-20, %", "kNN-200, %"], 1);
        for (i, cell) in results.cells.iter().enumerate() {
            for epoch in &results.milestones {
                let stat = |measure: Measure| {
                    let values = results.values(i, |run, _| run.milestone(*epoch, measure));
                    Stat::of(&values.into_iter().map(|v| v.1).collect::<Vec<_>>())
                };
                let n = stat(Measure::Probe).map_or(0, |s| s.n).to_string();
                let row = [cell.label.clone(), epoch.to_string(), n];
                table
                    .rows
                    .push(row.into_iter().chain(Measure::ALL.map(|m| percent(stat(m)))).collect());
            }
        }
        return table;
    }
    let mut table = Table::new(&head, 1);
    if setup.experiment == Experiment::Table1 {
        table.head.push(format!("the paper's probe, {}, %", paper::dataset(setup.dataset)));
    }
    if setup.experiment == Experiment::Fig2 {
        table.head.push("held-out bits per dimension".into());
    }
    if setup.experiment == Experiment::Fig5 {
        for of in ["h", "mu", "z"] {
            table.head.extend(["within", "across", "gap"].map(|what| format!("{of}: {what}")));
        }
    }
    for (i, cell) in results.cells.iter().enumerate() {
        let n = results.values(i, |_, s| Measure::Probe.of(&s.measured)).len();
        let mut row = vec![cell.label.clone(), n.to_string()];
        row.extend(Measure::ALL.map(|measure| percent(results.stat(i, measure))));
        let of = |f: &dyn Fn(&RunResult) -> Option<f64>, digits: usize| {
            let values: Vec<f64> =
                results.values(i, |run, _| f(run)).into_iter().map(|v| v.1).collect();
            Stat::of(&values).map_or(NONE.into(), |s| s.text(1.0, digits))
        };
        match setup.experiment {
            Experiment::Table1 => row.push(
                paper::table1(&cell.name, setup.dataset).map_or(NONE.into(), |p| format!("{p:.2}")),
            ),
            Experiment::Fig2 => {
                row.push(of(&|run| run.bits.as_ref().ok()?.last().map(|b| b.val), 3))
            }
            Experiment::Fig5 => {
                for kind in ["h", "mu", "z"] {
                    let fields: [fn(&Similarity) -> f64; 3] =
                        [|s| s.within, |s| s.across, Similarity::gap];
                    row.extend(fields.map(|field| of(&|run| similarity(run, kind).map(field), 3)));
                }
            }
            _ => {}
        }
        table.rows.push(row);
    }
    table
}

/// What Table 1's two rows for AAAE say about its claim that noise is needed.
fn two_targets(results: &Results) -> Option<String> {
    if results.setup.experiment != Experiment::Table1 {
        return None;
    }
    let mean = |name: &str| Some(results.stat(results.cell(name)?, Measure::Probe)?.mean * 100.0);
    let (aavae, original, view) = (mean("aavae")?, mean("aaae")?, mean("aaae-view")?);
    Some(format!(
        "Why there are two AAAEs: with the view as target (the released code) AAAE copies its \
         input, and AAVAE's lead of {:+.2} points over it is that of the target and of the noise \
         together. With the original as target (the equations) AAAE undoes the augmentation as \
         AAVAE does, and the lead of {:+.2} points is what the noise of the sampled latent gains \
         by itself at this length of training. `aavae reproduce duration` follows both over a \
         longer one.",
        aavae - view,
        aavae - original
    ))
}

fn legend(results: &Results) -> String {
    let mut text = format!(
        "Accuracy on {} test images: mean ± standard deviation over n seeds. The linear probe \
         trains on the frozen features; kNN-20 and kNN-200 vote with temperatures .07 and .1.",
        results.images[2]
    );
    if results.setup.experiment == Experiment::Table1 {
        text += " The paper has one AAAE: its equations have the original image as target, its \
            released code the view. AE and AAAE minimise a squared error, VAE and AAVAE a \
            likelihood, SimCLR a contrastive loss.";
    } else {
        let dataset = results.setup.dataset;
        let methods = results
            .cells
            .iter()
            .filter_map(|cell| Some((cell.label.as_str(), paper::table1(&cell.name, dataset)?)));
        let mut theirs: Vec<String> =
            methods.map(|(label, x)| format!("{label} {x:.2} %")).collect();
        if theirs.is_empty() {
            theirs.extend(paper::table1("aavae", dataset).map(|x| format!("AAVAE {x:.2} %")));
        }
        let theirs = theirs.join(", ");
        text += &format!(
            " The paper's text gives no numbers for this beyond its Table 1 on {}: {theirs}.",
            paper::dataset(dataset)
        );
    }
    text
}

/// Table 1's argument as two by two: augmentation, noise, both, neither.
fn ablation(results: &Results) -> Option<[Block; 2]> {
    if results.setup.experiment != Experiment::Table1 {
        return None;
    }
    let mut table = Table::new(&["", "cell", "linear probe, %", "kNN-20, %", "kNN-200, %"], 2);
    for (what, name) in [
        ("neither", "ae"),
        ("augmentation alone, target: original", "aaae"),
        ("augmentation alone, target: view", "aaae-view"),
        ("noise alone", "vae-noise"),
        ("augmentation and noise", "aavae"),
    ] {
        let i = results.cell(name)?;
        let stats = Measure::ALL.map(|measure| percent(results.stat(i, measure)));
        table
            .rows
            .push([what.into(), results.cells[i].label.clone()].into_iter().chain(stats).collect());
    }
    let text = "What each ingredient does, from the same runs: noise is the sampled latent without \
        a KL term, augmentation that of the input.";
    Some([Block::Text(text.into()), Block::Table(table)])
}

/// What the runs of the first seed drew.
fn pictures(results: &Results) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut add = |caption: String, path: String| {
        match read_regular(&results.out.join(&path)) {
            Ok(bytes) => blocks.push(Block::Picture(caption, path, bytes)),
            // A run may draw none.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => blocks.push(Block::Text(format!("{path} cannot be read: {error}"))),
        }
    };
    for (run, summary) in results.done().filter(|(run, _)| run.seed == 0) {
        let cell = &results.cells[run.cell];
        if cell.weights == Weights::Initial {
            continue;
        }
        let rows = if run.config.method.augments() {
            "original, view and reconstruction"
        } else {
            "original and reconstruction"
        };
        let step = summary.steps.unwrap_or(0);
        add(
            format!("{}: {rows} of held-out images", cell.label),
            format!("{}/images/reconstruction-{step:06}.png", run.name),
        );
    }
    let augmented = results.done().find(|(run, _)| {
        run.config.method.augments() && results.cells[run.cell].weights == Weights::Trained
    });
    if let Some((run, _)) = augmented {
        add(
            "Augmentation: originals on top, views below".into(),
            format!("{}/images/augmentation.png", run.name),
        );
    }
    blocks
}

fn runs(results: &Results) -> Table {
    let head = [
        "run",
        "state",
        "device",
        "weights",
        "probe, %",
        "kNN-20, %",
        "kNN-200, %",
        "steps",
        "images/s",
        "pretraining, s",
        "evaluation, s",
    ];
    let mut table = Table::new(&head, 4);
    for run in &results.runs {
        let row = match &run.state {
            CellState::Done(s) => {
                let number = |x: Option<f64>| x.map_or(NONE.into(), |x| format!("{x:.0}"));
                let digest = s
                    .sha256
                    .as_ref()
                    .map_or("initial".into(), |d| d.chars().take(12).collect::<String>());
                let device = s.device.as_deref().unwrap_or(NONE);
                let accuracies = Measure::ALL.map(|m| {
                    m.of(&s.measured).map_or(NONE.into(), |x| format!("{:.2}", x * 100.0))
                });
                // Of a run that was resumed the summary has the last session's.
                let of_session = |x: Option<f64>| number(x.filter(|_| s.is_of_one_session()));
                let evaluations = s.milestones.iter().filter_map(|m| m.measured.evaluation_seconds);
                let evaluation = if s.milestones.is_empty() {
                    s.measured.evaluation_seconds
                } else {
                    Some(evaluations.sum())
                };
                let rest = [
                    number(s.steps.map(|steps| steps as f64)),
                    of_session(s.images_per_second),
                    of_session(s.seconds),
                    number(evaluation),
                ];
                [run.name.clone(), "done".into(), device.into(), digest]
                    .into_iter()
                    .chain(accuracies)
                    .chain(rest)
                    .collect()
            }
            CellState::Failed(error) => words(&run.name, &format!("failed: {error}"), head.len()),
            CellState::Open => words(&run.name, "not finished", head.len()),
        };
        table.rows.push(row);
    }
    table
}

fn words(name: &str, state: &str, columns: usize) -> Vec<String> {
    [name, state]
        .into_iter()
        .map(String::from)
        .chain(std::iter::repeat_n(NONE.into(), columns - 2))
        .collect()
}

fn provenance(results: &Results, identity: &Identity) -> Vec<Block> {
    let setup = &results.setup;
    let budget = setup.budget();
    let base = results.cells[0].config(0);
    let mut table = Table::new(&["budget of a run", ""], 2);
    let row = |key: &str, value: String| vec![key.to_owned(), value];
    table.rows = vec![
        row("data set", setup.dataset.name()),
        row("images: training, held out, test", results.images.map(|n| n.to_string()).join(", ")),
        row(
            "encoder and decoder",
            format!("{:?}, width {}", budget.depth, budget.width).replace("Resnet", "ResNet-"),
        ),
        row("latent size", base.latent_dim.to_string()),
        row("epochs", budget.epochs.to_string()),
        row(
            "batch size, learning rate, warm-up epochs",
            format!("{}, {}, {}", budget.batch, budget.learning_rate, budget.warmup),
        ),
        row("probe epochs", budget.probe_epochs.to_string()),
        row("seeds", (0..setup.seeds).map(|s| s.to_string()).collect::<Vec<_>>().join(", ")),
    ];
    if let Some(steps) = setup.overrides.max_steps {
        table.rows.push(row("steps", format!("{steps}, fewer than the epochs have")));
    }
    let devices: BTreeSet<&str> = results.done().filter_map(|(_, s)| s.device.as_deref()).collect();
    table.rows.push(row("device", devices.into_iter().collect::<Vec<_>>().join("; ")));
    let system =
        format!("aavae {}, {} {}", identity.version, std::env::consts::OS, std::env::consts::ARCH);
    table.rows.push(row("program and system", system));
    let dates: BTreeSet<&str> = results.done().filter_map(|(_, s)| s.finished.as_deref()).collect();
    if let (Some(first), Some(last)) = (dates.first(), dates.last()) {
        table.rows.push(row("first and last run finished", format!("{first}, {last}")));
    }
    let trained =
        results.done().filter(|(run, _)| results.cells[run.cell].weights == Weights::Trained);
    let lines: Vec<String> =
        trained.map(|(run, summary)| command(&results.out, &run.name, summary)).collect();
    vec![
        Block::Table(table),
        Block::Text(
            "The command that was typed last. It continues where it was stopped; without \
            --only it is the whole grid:"
                .into(),
        ),
        Block::Code(identity.command.clone()),
        Block::Text(
            "Each trained run that is done, by itself; the same version, device and seed give the \
             same bits. The probe and kNN at the end are among them, measurements of earlier \
             checkpoints and of views are the grid's:"
                .into(),
        ),
        Block::Code(lines.join("\n")),
    ]
}

/// A run by itself, into a folder of its own, on the device that it ran on.
fn command(out: &Path, name: &str, summary: &RunSummary) -> String {
    let device =
        summary.device.as_deref().and_then(|device| device.split(' ').next()).unwrap_or("auto");
    let config = quoted(&text::name(&out.join(name).join("config.toml")).to_string());
    format!("aavae pretrain --config {config} --device {} --out runs/{name}", quoted(device))
}

/// A word of a shell.
pub fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.into()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}
