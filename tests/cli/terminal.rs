//! What is printed: to a terminal, a pipe, a full disk; text from files that a terminal would obey.

use std::fs;

use crate::support::{Ran, copy, folder, sh, trained};

#[cfg(target_os = "linux")]
fn shell(script: &str) -> Ran {
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", script]).stdin(std::process::Stdio::null()).env("NODEVICE_SELECT", "1");
    Ran::new(script.into(), shell.output().expect("a shell"))
}

#[cfg(target_os = "linux")]
const BINARY: &str = env!("CARGO_BIN_EXE_aavae");

/// Lines of which each prints something, in another way.
fn printing() -> [String; 11] {
    let run = trained().display();
    [
        format!("probe {run} --device cpu --epochs 1 --json"),
        format!("knn {run} --device cpu"),
        format!("compare {run}"),
        format!("compare {run} --json"),
        format!("watch {run} --once"),
        "devices".into(),
        "plan --device cpu --width 8 --batch-size 4".into(),
        "check --device cpu --only relu".into(),
        "--help".into(),
        "pretrain --help".into(),
        "--version".into(),
    ]
}

/// Only a closed pipe is silent.
#[test]
fn a_closed_pipe_is_no_error() {
    for line in printing() {
        let mut child = crate::support::command(&line.split(' ').collect::<Vec<_>>())
            .spawn()
            .expect("the binary starts");
        drop(child.stdout.take());
        let ran = Ran::new(line, child.wait_with_output().expect("it ends")).ok();
        assert!(!ran.stderr.contains("standard output"), "{ran:?}");
    }
}

/// On Linux, which has a device that is always full.
#[cfg(target_os = "linux")]
#[test]
fn output_that_does_not_arrive_is_an_error() {
    for line in printing() {
        shell(&format!("{BINARY} {line} > /dev/full"))
            .fails(1, &["cannot write to", "standard output", "No space left"]);
    }
}

#[test]
fn text_from_files_commands_no_terminal() {
    let dir = folder();
    let evil = "\u{1b}[2J\u{9b}31m\u{7f}";
    let run = dir.path().join("run");
    copy(trained(), &run);
    let tidy = |ran: Ran, says: &str| {
        let odd = |c: char| c.is_control() && c != '\n' && c != '\t';
        assert!(!ran.stdout.contains(odd) && !ran.stderr.contains(odd), "{ran:?}");
        assert!(format!("{}{}", ran.stdout, ran.stderr).contains(says), "no `{says}`: {ran:?}");
        ran
    };
    // A metric's name, and a summary's.
    let log = fs::read_to_string(run.join("metrics.jsonl")).expect("metrics");
    let name = r"\u001b[2J\u009b31m\u007f";
    fs::write(run.join("metrics.jsonl"), log.replace("\"kl\"", &format!("\"{name}\"")))
        .expect("a file");
    tidy(sh(&format!("watch {} --once", run.display())).ok(), r"\u{1b}[2J\u{9b}31m\u{7f} ");
    // A line of a damaged configuration.
    fs::write(run.join("config.toml"), format!("width = \"{evil}\"")).expect("a file");
    for command in ["watch", "compare", "probe", "export --format folder --out x"] {
        tidy(
            sh(&format!("{command} {}", run.display())).fails(1, &[]),
            r"\u{1b}[2J\u{9b}31m\u{7f}",
        );
    }
    // Names of files and of flags.
    tidy(crate::support::run(&["watch", &format!("/nowhere/{evil}")]).fails(1, &[]), r"\u{1b}[2J");
    // The parser of flags takes some of it away itself.
    tidy(crate::support::run(&[&format!("--{evil}")]).fails(2, &[]), r"\u{9b}31m");
    tidy(crate::support::run(&["pretrain", "--width", evil]).fails(2, &[]), r"\u{9b}31m");
    // JSON is the same value.
    let odd = dir.path().join(evil);
    copy(trained(), &odd);
    let ran = tidy(
        crate::support::run(&["compare", "--json", odd.to_str().expect("text")]).ok(),
        r"\u009b31m\u007f",
    );
    assert_eq!(ran.json()["runs"][0]["run"], odd.to_str().expect("text"));
}

/// A terminal that understands no escapes gets lines. On Linux: elsewhere `script`, which makes the
/// terminal, has other flags.
#[cfg(target_os = "linux")]
#[test]
fn a_dumb_terminal_gets_lines() {
    let dir = folder();
    let on_terminal = |term: &str, line: &str| {
        let script =
            format!("TERM={term} timeout 60 script -qec '{BINARY} {line}' /dev/null < /dev/null");
        let ran = shell(&script);
        assert_eq!(ran.code, Some(0), "{ran:?}");
        ran.stdout
    };
    let train = |name: &str| {
        let out = dir.path().join(name);
        format!("pretrain {} --no-eval --max-steps 2 --out {}", crate::support::TINY, out.display())
    };
    let watch = format!("watch {}", trained().display());
    for line in [
        train("dumb"),
        watch.clone(),
        format!("{watch} --once"),
        "knn".to_owned() + &watch[5..] + " --device cpu",
    ] {
        let text = on_terminal("dumb", &line);
        assert!(!text.contains('\u{1b}'), "{line}: {text:?}");
        assert!(text.lines().count() > 2, "{line}: {text:?}");
    }
    assert!(!on_terminal("", "--help").contains('\u{1b}'), "a terminal that says nothing");
    // The others are not dumb: the same commands draw.
    assert!(on_terminal("xterm", &train("xterm")).contains('\u{1b}'), "no bar is drawn");
}
