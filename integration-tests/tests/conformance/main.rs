//! What Debian's real dockerd answers, Berth answers. Every case is a script of requests that was written against dockerd; it is run
//! on both engines, unchanged, and what they said is compared: status, headers, the shape of the JSON (null, empty or missing;
//! types), and values after ids, times and addresses are masked. Real clients do the same one level up.
//!
//! | variable | meaning |
//! |---|---|
//! | `CONFORMANCE=dockerd` or `berth` | only that engine, for writing cases; else both, compared |
//! | `CONFORMANCE_CASE=word` | only the cases whose name holds the word |
//! | `CONFORMANCE_KEEP=file` | dockerd's answers are kept there, and taken from there the next time: for work on Berth's |
//!
//! Differences that are meant stand in `differences.tsv`, each with its reason; they are listed at the end of the run. Cases with
//! another difference are played a second time, and what differs again fails the test.

#![recursion_limit = "256"]

mod cases;
mod clients;
mod compare;
mod engine;
mod killed;
mod mask;
mod run;

use compare::{Difference, Reasons};
use engine::Engine;
use run::{Case, Run, Said};
use std::{
    env,
    path::{Path, PathBuf},
    thread,
    time::Instant,
};

/// One engine's answers to all cases, in their order.
fn play(engine: &Engine, cases: &[Case]) -> Vec<Said> {
    cases.iter().map(|case| Run::play(engine, case)).collect()
}

fn chosen() -> Vec<Case> {
    let word = env::var("CONFORMANCE_CASE").unwrap_or_default();
    cases::all().into_iter().filter(|case| case.name.contains(&word)).collect()
}

/// What either engine said to the cases; nothing of one that isn't asked, or isn't there.
struct Both {
    dockerd: Option<Vec<Said>>,
    berth: Option<Vec<Said>>,
}

/// Plays the cases on both engines, side by side. `kept`: dockerd's answers are taken from there, or put there.
fn on_both(cases: &[Case], kept: Option<&Path>) -> Both {
    let only = env::var("CONFORMANCE").unwrap_or_default();
    let side = |wanted: &str, start: fn() -> Option<Engine>| {
        (only.is_empty() || only == wanted).then(|| {
            let engine = start()?;
            let begun = Instant::now();
            let runs = play(&engine, cases);
            println!("{}: {} cases in {:?}", engine.name(), cases.len(), begun.elapsed());
            Some(runs)
        })?
    };
    thread::scope(|scope| {
        let dockerd = scope.spawn(|| match kept.and_then(|file| run::read(file, cases)) {
            Some(runs) => Some(runs),
            None => side("dockerd", Engine::dockerd).inspect(|runs| {
                kept.inspect(|file| run::write(file, runs));
            }),
        });
        let berth = scope.spawn(|| side("berth", Engine::berth));
        Both { dockerd: dockerd.join().unwrap(), berth: berth.join().unwrap() }
    })
}

/// What is wrong, case by case: first what dockerd answers otherwise than a case is written, then what Berth answers otherwise.
fn differences(both: &Both, reasons: &Reasons, whole: bool) -> Vec<(String, String)> {
    // A case that dockerd answers otherwise than it is written is wrong in itself.
    let wrong = both.dockerd.iter().flatten().flat_map(|run| {
        run.wrong.iter().map(|what| (run.case.clone(), format!("dockerd answers otherwise than the case says: {what}")))
    });
    let mut found: Vec<Difference> = Vec::new();
    for (index, ours) in both.berth.iter().flatten().enumerate() {
        match &both.dockerd {
            Some(theirs) => found.extend(compare::runs(&theirs[index], ours)),
            None => found.extend(ours.wrong.iter().map(|what| Difference::plain(&ours.case, what))),
        }
    }
    wrong.chain(reasons.judge(&found, whole)).collect()
}

#[test]
fn berth_answers_what_dockerd_answers() {
    let cases = chosen();
    let kept = env::var_os("CONFORMANCE_KEEP").map(PathBuf::from);
    let reasons = Reasons::read();
    let both = on_both(&cases, kept.as_deref());
    let whole = both.dockerd.is_some() && env::var_os("CONFORMANCE_CASE").is_none();
    let first = differences(&both, &reasons, whole);
    if first.is_empty() {
        return;
    }
    // Some of dockerd's answers depend on which of its threads is faster: what differs has to differ twice.
    println!("seen once:");
    first.iter().for_each(|(_, what)| println!("    {what}"));
    let again: Vec<Case> = cases.into_iter().filter(|case| first.iter().any(|(name, _)| *name == case.name)).collect();
    assert!(!again.is_empty(), "differences of no case: {first:#?}");
    let left: Vec<String> =
        differences(&on_both(&again, None), &reasons, false).into_iter().map(|(_, what)| what).collect();
    assert!(left.is_empty(), "{} differences without a reason:\n{}", left.len(), left.join("\n"));
}
