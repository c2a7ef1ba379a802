//! Reports of grids that never ran: every experiment, with runs that are done, failed and open.

use serde_json::{Value, json};

use super::*;
use crate::eval::embed::Similarity;
use crate::reproduce::cells::{Overrides, Setup, Weights, cells};
use crate::reproduce::folder::CellState;
use crate::reproduce::results::{Bits, RunResult};
use crate::reproduce::views::{IMAGES, VIEWS};
use crate::reproduce::{Experiment, GridScale};
use crate::run::settings::DataKind;
use crate::run::summary::RunSummary;

const SEEDS: u64 = 3;

fn summary(cell: usize, seed: u64, milestones: &[usize]) -> Box<RunSummary> {
    let accuracy = |plus: f64| 0.3 + 0.01 * cell as f64 + 0.001 * seed as f64 + plus;
    let measured = |plus: f64| {
        json!({ "probe": { "accuracy": accuracy(plus), "epochs": 4 }, "knn": [
            { "k": 20, "temperature": 0.07, "accuracy": accuracy(plus) - 0.05 },
            { "k": 200, "temperature": 0.1, "accuracy": accuracy(plus) - 0.1 },
        ] })
    };
    let mut all = measured(0.0);
    let at = |(i, epoch): (usize, &usize)| {
        let mut row = measured(0.01 * i as f64);
        row["epoch"] = json!(epoch);
        row
    };
    all["milestones"] = milestones.iter().enumerate().map(at).collect();
    for (key, value) in
        [("seconds", 2.5), ("images_per_second", 800.0), ("evaluation_seconds", 1.0)]
    {
        all[key] = json!(value);
    }
    all["steps"] = json!(60);
    all["sha256"] = json!("0123456789abcdef".repeat(4));
    all["device"] = json!("cpu");
    all["finished"] = json!(format!("2026-01-0{}T00:00:00Z", seed + 1));
    RunSummary::of_json(all).expect("a summary").into()
}

/// Changes what a summary says, as somebody who edits the file.
fn edit(summary: &mut RunSummary, edits: impl Fn(&mut Value)) {
    let mut value = summary.to_json();
    edits(&mut value);
    *summary = RunSummary::of_json(value).expect("a summary");
}

/// Made-up results: in the last seed the first cell failed and the second is open.
fn results(experiment: Experiment, scale: GridScale, out: &Path) -> Results {
    let seeds = SEEDS as usize;
    let setup = Setup {
        experiment,
        scale,
        dataset: DataKind::Shapes,
        data_dir: None,
        seeds,
        overrides: Overrides::default(),
    };
    let cells = cells(&setup, 9000);
    let run = |(seed, cell): (u64, usize)| {
        let c = &cells[cell];
        let config = c.config(seed);
        let state = match (seed + 1 == SEEDS, cell) {
            (true, 0) => CellState::Failed("the loss is <NaN> & gone".into()),
            (true, 1) => CellState::Open,
            _ => CellState::Done(summary(cell, seed, &config.milestones)),
        };
        let done = matches!(state, CellState::Done(_));
        let bits = |epoch: f64| Bits {
            epoch,
            train: 6.0 / epoch,
            val: 6.5 / epoch,
            sampled: (epoch > 2.0).then_some(6.4 / epoch),
        };
        let vectors: Vec<Vec<Vec<f32>>> = (0..IMAGES)
            .map(|i| {
                (0..VIEWS)
                    .map(|v| {
                        (0..8).map(|k| ((i * 7 + v + k * 3 + cell) % 11) as f32 - 4.0).collect()
                    })
                    .collect()
            })
            .collect();
        let similarities = ["h", "mu", "z"].map(|of| Similarity::new(of, &vectors)).into();
        let fig2 = experiment == Experiment::Fig2 && done;
        let fig5 = experiment == Experiment::Fig5 && done && c.weights == Weights::Trained;
        RunResult {
            name: c.folder(seed),
            cell,
            seed,
            config,
            state,
            bits: Ok(if fig2 { (1..=4).map(|e| bits(f64::from(e))).collect() } else { vec![] }),
            similarities: if fig5 { similarities } else { vec![] },
        }
    };
    let runs = (0..SEEDS)
        .flat_map(|seed| (0..cells.len()).map(move |cell| (seed, cell)))
        .map(run)
        .collect();
    let milestones = cells[0].config(0).milestones;
    Results {
        setup,
        cells: cells.clone(),
        runs,
        out: out.into(),
        images: [9000, 1000, 2000],
        milestones,
        show_images: true,
    }
}

/// Writes the pictures that the runs would have left, then the report.
fn written(experiment: Experiment, scale: GridScale) -> (tempfile::TempDir, Results) {
    let dir = tempfile::tempdir().expect("a folder");
    let results = results(experiment, scale, dir.path());
    write_all(&results, dir.path());
    (dir, results)
}

fn write_all(results: &Results, dir: &Path) {
    let png = crate::eval::grid::grid_png(&[vec![&[9u8; 12][..]; 3]], 2, 1);
    for run in &results.runs {
        let images = dir.join(&run.name).join("images");
        std::fs::create_dir_all(&images).expect("a folder");
        let names = (0..IMAGES)
            .map(|i| format!("views-{i}.png"))
            .chain(["reconstruction-000060.png".into(), "augmentation.png".into()]);
        names.for_each(|name| std::fs::write(images.join(name), &png).expect("a file"));
    }
    let identity = Identity {
        experiment: results.setup.experiment.name().into(),
        scale: results.setup.scale.name().into(),
        dataset: "shapes".into(),
        version: "0.1.0".into(),
        overrides: Overrides::default(),
        images: String::new(),
        seeds: SEEDS as usize,
        runs: results.runs.iter().map(|run| run.name.clone()).collect(),
        command: "aavae reproduce 'it & more'".into(),
    };
    write(results, &identity, dir).expect("a report");
}

/// Every tag that opens closes in order; returns how often each opened.
fn tags(page: &str) -> std::collections::BTreeMap<String, usize> {
    let (mut open, mut seen) = (Vec::new(), std::collections::BTreeMap::new());
    for (at, _) in page.match_indices('<') {
        let tag = &page[at + 1..at + page[at..].find('>').expect("a tag ends")];
        let name = tag.split_whitespace().next().unwrap_or("");
        if let Some(name) = name.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name.to_owned()), "…{}", &page[at.saturating_sub(120)..at]);
        } else if name != "!DOCTYPE" {
            *seen.entry(name.to_owned()).or_default() += 1;
            if !["meta", "link", "img"].contains(&name) {
                open.push(name.to_owned());
            }
        }
    }
    assert!(open.is_empty(), "{open:?} do not close");
    seen
}

#[test]
fn every_report_has_every_run_number_and_picture() {
    for experiment in Experiment::ALL {
        let (dir, results) = written(experiment, GridScale::Smoke);
        let read = |name: &str| {
            std::fs::read_to_string(dir.path().join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
        };
        let (page, markdown, csv) = (read("report.html"), read("report.md"), read("results.csv"));
        let seen = tags(&page);
        let name = experiment.name();
        // Text and attributes, without the pictures' data, in which anything may occur.
        let words: String = page
            .split("base64,")
            .enumerate()
            .map(|(i, p)| if i == 0 { p } else { &p[p.find('"').expect("an end")..] })
            .collect();
        assert!(!words.contains("NaN\"") && !words.contains(">NaN"), "{name}");
        // Namespaces are names, not addresses.
        assert_eq!(
            words.matches("http").count(),
            words.matches("=\"http://www.w3.org/").count(),
            "{name}"
        );
        for run in &results.runs {
            assert!(
                words.contains(&format!(">{}<", run.name))
                    && markdown.contains(&format!("| {} |", run.name)),
                "{name}: {}",
                run.name
            );
            assert!(
                csv.contains(&format!(",{},{},", results.cells[run.cell].name, run.seed)),
                "{name}: {}",
                run.name
            );
        }
        assert!(
            words.contains("failed: the loss is &lt;NaN&gt; &amp; gone")
                && words.contains("not finished"),
            "{name}"
        );
        let all = results.runs.len();
        let open = all.min(if results.cells.len() > 1 { 2 } else { 1 });
        assert!(
            words.contains(&format!("{} of {all} runs are done, 1 failed", all - open)),
            "{name}"
        );
        assert!(
            words.contains("aavae reproduce 'it &amp; more'")
                && words.contains("cannot be compared with the paper"),
            "{name}"
        );

        let figures = figures::figures(&results);
        assert!(!figures.is_empty() && seen["svg"] == figures.len(), "{name}");
        for figure in &figures {
            let png = image::open(dir.path().join(format!("plots/{}.png", figure.name)))
                .expect("a plot")
                .to_rgb8();
            let dark = png.pixels().filter(|p| p.0.iter().all(|c| *c < 120)).count();
            assert!(dark > 500, "{name}: {} has {dark} dark pixels", figure.name);
            assert!(markdown.contains(&format!("](plots/{}.png)", figure.name)), "{name}");
        }
        let trained = results.cells.iter().filter(|cell| cell.weights == Weights::Trained).count();
        assert!(seen["img"] >= trained, "{name}: {} pictures of {trained} cells", seen["img"]);
        let plain = page.matches("<tr>").count();
        assert_eq!(
            markdown.lines().filter(|l| l.starts_with('|')).count(),
            plain + seen["table"],
            "{name}: the same tables"
        );
    }
}

#[test]
fn a_report_without_images_has_everything_else() {
    for experiment in Experiment::ALL {
        let (dir, mut results) = written(experiment, GridScale::Ci);
        let page = || std::fs::read_to_string(dir.path().join("report.html")).expect("a page");
        let with = tags(&page());
        results.show_images = false;
        write_all(&results, dir.path());
        let without = tags(&page());
        assert!(
            !without.contains_key("img") && !without.contains_key("use"),
            "{experiment:?}: {without:?}"
        );
        for tag in ["table", "tr", "svg", "path"] {
            assert_eq!(with.get(tag), without.get(tag), "{experiment:?}: <{tag}>");
        }
        let markdown = std::fs::read_to_string(dir.path().join("report.md")).expect("a report");
        assert!(!markdown.contains("/images/") && markdown.contains("](plots/"), "{experiment:?}");
    }
}

#[test]
fn the_papers_values_are_the_papers_and_named_so() {
    let (dir, results) = written(Experiment::Table1, GridScale::Ci);
    let markdown = std::fs::read_to_string(dir.path().join("report.md")).expect("a report");
    assert!(markdown.contains("the paper's probe, CIFAR-10, %"), "{markdown}");
    let row = |label: &str| {
        markdown
            .lines()
            .find(|l| l.starts_with(&format!("| {label} |")))
            .unwrap_or_else(|| panic!("no {label}"))
            .to_owned()
    };
    assert!(
        row("AAVAE").ends_with("| 87.14 |") && row("untrained encoder").ends_with("| – |"),
        "{markdown}"
    );
    // Cell 5, seeds 0 to 2: 35.00, 35.10, 35.20.
    assert!(row("AAVAE").starts_with("| AAVAE | 3 | 35.10 ± 0.10 |"), "{}", row("AAVAE"));
    let diamonds = chart_of(&results).matches("class=\"theirs\"").count();
    assert_eq!(diamonds, 5 + 1, "five methods of the table, and the legend");
    assert!(markdown.contains("The paper has no results on the data set `shapes`"), "{markdown}");
}

fn chart_of(results: &Results) -> String {
    figures::figures(results)[0].svg.clone().into_string()
}

#[test]
fn claims_are_judged_by_the_numbers() {
    use crate::reproduce::findings::{Verdict, findings};
    let verdicts = |experiment| {
        let dir = tempfile::tempdir().expect("a folder");
        let found = findings(&results(experiment, GridScale::Smoke, dir.path()));
        found.into_iter().map(|f| (f.claim, f.verdict)).collect::<Vec<_>>()
    };
    // A later cell has a higher accuracy, by a point, in every seed.
    let table: std::collections::BTreeMap<_, _> =
        verdicts(Experiment::Table1).into_iter().collect();
    assert_eq!(table["AAVAE is above the VAE"], Verdict::Holds);
    assert_eq!(
        table["The AE is above AAAE with the original as target: augmentation alone hurts"],
        Verdict::Fails
    );
    assert_eq!(table["AAVAE is above the untrained encoder"], Verdict::Fails);
    // Figure 3's cells 0 to 2 are two points apart, and a seed moves them by a tenth of one; figure
    // 4's of one panel are further.
    assert_eq!(
        verdicts(Experiment::Fig3).iter().map(|f| f.1).collect::<Vec<_>>(),
        [Verdict::Holds, Verdict::Fails, Verdict::Fails]
    );
    assert_eq!(verdicts(Experiment::Fig4).iter().filter(|f| f.1 == Verdict::Fails).count(), 3);
    // Accuracy grows with each milestone, of which there are four; and is higher for the later
    // cell, AAAE.
    let duration: Vec<Verdict> = verdicts(Experiment::Duration).into_iter().map(|f| f.1).collect();
    assert_eq!(duration, [[Verdict::Holds].as_slice(), &[Verdict::Fails; 4]].concat());
    assert!(verdicts(Experiment::Fig2).iter().all(|f| f.1 == Verdict::Holds));
}

#[test]
fn an_empty_grid_has_a_report() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut results = results(Experiment::Fig5, GridScale::Laptop, dir.path());
    results.runs.iter_mut().for_each(|run| run.state = CellState::Open);
    let identity = Identity {
        experiment: "fig5".into(),
        scale: "laptop".into(),
        dataset: "shapes".into(),
        version: "0.1.0".into(),
        overrides: Overrides::default(),
        images: String::new(),
        seeds: 1,
        runs: vec![],
        command: String::new(),
    };
    let page = write(&results, &identity, dir.path()).expect("a report");
    let page = std::fs::read_to_string(page).expect("a page");
    tags(&page);
    assert!(page.contains("0 of 6 runs are done"), "{page}");
}

#[test]
fn base64_of_the_standards_examples() {
    for (text, want) in [
        ("", ""),
        ("f", "Zg=="),
        ("fo", "Zm8="),
        ("foo", "Zm9v"),
        ("foob", "Zm9vYg=="),
        ("fooba", "Zm9vYmE="),
        ("foobar", "Zm9vYmFy"),
    ] {
        assert_eq!(base64(text.as_bytes()), want);
    }
}

/// The times in a summary are its last session's: of a run that was resumed they are nobody's.
#[test]
fn times_of_a_resumed_run_are_left_out() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut results = results(Experiment::Fig5, GridScale::Ci, dir.path());
    if let CellState::Done(summary) = &mut results.runs[1].state {
        summary.resumed_at = Some(20);
    }
    write_all(&results, dir.path());
    let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).expect("a file");
    let (markdown, csv) = (read("report.md"), read("results.csv"));
    let row = |name: &str| {
        markdown.lines().find(|l| l.starts_with(&format!("| {name} |"))).expect("a row").to_owned()
    };
    assert!(row("vae-s0").ends_with("| 60 | 800 | 2 | 1 |"), "{}", row("vae-s0"));
    assert!(row("aavae-s0").ends_with("| 60 | – | – | 1 |"), "{}", row("aavae-s0"));
    let seconds = |cell: &str| {
        csv.lines().filter(|l| l.contains(&format!(",{cell},0,done,,seconds,"))).count()
    };
    assert_eq!((seconds("vae"), seconds("aavae")), (1, 0), "{csv}");
}

/// What cannot be read of a run that is done is said, and the other runs' curves are drawn.
#[test]
fn a_curve_that_cannot_be_read_is_named() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut results = results(Experiment::Fig2, GridScale::Ci, dir.path());
    let name = results.runs[1].name.clone();
    results.runs[1].bits = Err("`metrics.jsonl`, line 8: not a metrics record".into());
    write_all(&results, dir.path());
    for file in ["report.md", "report.html"] {
        let text = std::fs::read_to_string(dir.path().join(file)).expect("a report");
        let says = "are left out: ";
        assert!(text.contains(says) && text.contains("line 8: not a metrics record"), "{text}");
        assert!(text.contains(&name), "{text}");
    }
    results.runs[1].bits = Ok(vec![]);
    write_all(&results, dir.path());
    let text = std::fs::read_to_string(dir.path().join("report.md")).expect("a report");
    assert!(!text.contains("are left out: "));
}

/// Whatever somebody has written into the files of a run, there is a report.
#[test]
fn edited_summaries_are_reported() {
    for experiment in Experiment::ALL {
        let dir = tempfile::tempdir().expect("a folder");
        let mut results = results(experiment, GridScale::Ci, dir.path());
        for (i, run) in results.runs.iter_mut().enumerate() {
            let CellState::Done(summary) = &mut run.state else { continue };
            edit(summary, |summary| {
                summary["sha256"] = json!("é猫".repeat(8));
                summary["device"] = json!("a|b `c` <d>\u{1b}[2J");
                summary["steps"] = json!(-1);
                summary["probe"]["accuracy"] = json!([1e308, -1e308, 5e-324, 0.5][i % 4]);
                summary["knn"][0]["accuracy"] = json!(1e308);
            });
        }
        write_all(&results, dir.path());
        let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).expect("a file");
        assert!(read("report.md").contains(r"a\|b `c` \<d\>\\u{1b}\[2J"), "{}", read("report.md"));
        assert!(read("report.md").contains("é猫é猫é猫é猫é猫é猫 "), "{}", read("report.md"));
        assert!(!read("report.html").contains("<d>"));
    }
}
