//! Builds: a corpus of Dockerfiles, one per rule, each built by Debian's BuildKit (in dockerd 20.10) and by Berth, and what came out
//! compared: files with their modes, owners, contents and links, and configurations. What that BuildKit is too old for says so
//! (`only:`) and states itself what has to come out.
//!
//! | variable | meaning |
//! |---|---|
//! | `CORPUS=dockerd` or `berth` | only that one, for writing cases; else both, compared |
//! | `CORPUS_CASE=word` | only the cases whose name holds the word |
//! | `CORPUS_SHOW=1` | what came out is printed |
//! | `CORPUS_KEEP=file` | what BuildKit made is kept there, and taken from there the next time: for work on Berth's |

mod builder;
mod cache;
mod clients;
mod compare;
mod corpus;
mod image;
mod project;
mod secrets;

use builder::{Builder, Built};
use corpus::Case;
use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
    sync::Mutex,
    thread,
};

/// Builds at once.
const AT_ONCE: usize = 3;

fn build_all(builder: &Builder, cases: &[Case]) -> BTreeMap<String, Built> {
    let left = Mutex::new(cases.iter());
    let done = Mutex::new(BTreeMap::new());
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let Some(case) = left.lock().unwrap().next() else { return };
                    let built = builder.build(case);
                    done.lock().unwrap().insert(case.name.clone(), built);
                }
            });
        }
    });
    done.into_inner().unwrap()
}

/// What BuildKit makes of them.
fn buildkit(cases: &[Case], kept: Option<&Path>) -> Option<BTreeMap<String, Built>> {
    if let Some(text) = kept.and_then(|file| fs::read(file).ok()) {
        return Some(serde_json::from_slice(&text).unwrap());
    }
    let asked: Vec<Case> = cases.iter().filter(|case| case.only.is_none()).cloned().collect();
    let built = build_all(&Builder::dockerd()?, &asked);
    if let Some(file) = kept {
        fs::write(file, serde_json::to_vec(&built).unwrap()).unwrap();
    }
    Some(built)
}

#[test]
fn berth_builds_what_buildkit_builds() {
    let word = env::var("CORPUS_CASE").unwrap_or_default();
    let only = env::var("CORPUS").unwrap_or_default();
    let kept = env::var_os("CORPUS_KEEP").map(PathBuf::from);
    let cases: Vec<Case> = corpus::all().into_iter().filter(|case| case.name.contains(&word)).collect();
    assert!(!cases.is_empty(), "no case named {word}");
    let theirs = (only != "berth").then(|| buildkit(&cases, kept.as_deref())).flatten();
    let ours = (only != "dockerd").then(|| build_all(&Builder::berth(), &cases));
    let mut wrong = Vec::new();
    let mut different = Vec::new();
    for case in &cases {
        let their = theirs.as_ref().and_then(|all| all.get(&case.name));
        let our = ours.as_ref().and_then(|all| all.get(&case.name));
        if env::var_os("CORPUS_SHOW").is_some() {
            their.iter().for_each(|built| println!("=== {} by BuildKit\n{}", case.name, built.show()));
            our.iter().for_each(|built| println!("=== {} by Berth\n{}", case.name, built.show()));
        }
        // A case that BuildKit builds otherwise than it is written is wrong in itself.
        let judged = their.map(|built| ("BuildKit", built)).into_iter().chain(our.map(|built| ("Berth", built)));
        for (name, built) in judged {
            wrong.extend(
                compare::with_case(case, built).into_iter().map(|what| format!("{}: {name}: {what}", case.name)),
            );
        }
        if let (Some(their), Some(our)) = (their, our) {
            let found = compare::both(case, their, our);
            different.extend(found.meant.into_iter().map(|what| format!("{}: {what}", case.name)));
            wrong.extend(found.unmeant.into_iter().map(|what| format!("{}: {what}", case.name)));
        }
    }
    println!("{} cases; {} differences that are meant", cases.len(), different.len());
    different.iter().for_each(|what| println!("    {what}"));
    assert!(wrong.is_empty(), "{} differences without a reason:\n{}", wrong.len(), wrong.join("\n"));
}
