use super::*;
use crate::testing::{Def, exec};
use pb::{file_action::Action, op::Op};
use proptest::prelude::*;
use std::time::{Duration, Instant};

fn refused(definition: &pb::Definition) -> String {
    match Graph::decode(definition) {
        Ok(graph) => panic!("taken: {graph:?}"),
        Err(error) => {
            let text = format!("{error}");
            // Digests change with every field; what is said of them matters.
            text.split_once(" of operation").map_or(text.clone(), |(before, _)| before.to_owned())
        }
    }
}

fn one(op: Op) -> pb::Definition {
    with(vec!["docker-image://a"], op)
}

fn with(sources: Vec<&str>, op: Op) -> pb::Definition {
    let mut def = Def::default();
    let inputs = sources.into_iter().map(|source| def.source(source)).collect();
    let op = def.add(&pb::Op { inputs, op: Some(op), ..pb::Op::default() });
    def.end(&op)
}

fn bent_exec(bend: impl FnOnce(&mut pb::ExecOp)) -> String {
    let mut exec = exec("x");
    bend(&mut exec);
    refused(&one(Op::Exec(exec)))
}

fn copy() -> pb::FileAction {
    let copy = pb::FileActionCopy { src: "/a".into(), dest: "/b".into(), mode: -1, ..pb::FileActionCopy::default() };
    pb::FileAction { input: 0, secondary_input: 1, output: 0, action: Some(Action::Copy(copy)) }
}

fn bent_file(bend: impl FnOnce(&mut pb::FileAction)) -> String {
    let mut action = copy();
    bend(&mut action);
    refused(&with(vec!["docker-image://a", "local://b"], Op::File(pb::FileOp { actions: vec![action] })))
}

#[test]
fn unknown_enums() {
    // GHSA-7236-3392-c5c6: 99 must not be read as anything.
    assert_eq!(bent_exec(|exec| exec.security = 99), "unknown security mode 99");
    assert_eq!(bent_exec(|exec| exec.security = -1), "unknown security mode -1");
    assert_eq!(bent_exec(|exec| exec.network = 99), "unknown network mode 99");
    assert_eq!(bent_exec(|exec| exec.mounts[0].mount_type = 99), "unknown mount type 99");
    assert_eq!(bent_exec(|exec| exec.mounts[0].content_cache = 99), "unknown content cache 99");
    let cache = |sharing| pb::Mount {
        input: -1,
        dest: "/c".into(),
        output: -1,
        mount_type: pb::MountType::Cache as i32,
        cache_opt: Some(pb::CacheOpt { id: "c".into(), sharing }),
        ..pb::Mount::default()
    };
    assert_eq!(bent_exec(|exec| exec.mounts.push(cache(99))), "unknown sharing of a cache mount 99");
    let mut fine = exec("x");
    fine.mounts.push(cache(2));
    Graph::decode(&one(Op::Exec(fine))).unwrap();
}

#[test]
fn indices_out_of_range() {
    for index in [1, 99, -2, i64::MAX, i64::MIN] {
        assert_eq!(bent_exec(|exec| exec.mounts[0].input = index), format!("invalid input of a mount {index}"));
        let action = if index == 1 { 2 } else { index };
        assert_eq!(bent_file(|file| file.input = action), format!("invalid input of an action {action}"));
        let second = format!("invalid secondary input of an action {action}");
        assert_eq!(bent_file(|file| file.secondary_input = action), second);
        let merge = pb::MergeOp { inputs: vec![pb::MergeInput { input: index }] };
        assert_eq!(refused(&one(Op::Merge(merge))), format!("invalid input of a merge {index}"));
        let lower = Some(pb::LowerDiffInput { input: index });
        let diff = pb::DiffOp { lower, upper: Some(pb::UpperDiffInput { input: 0 }) };
        assert_eq!(refused(&one(Op::Diff(diff))), format!("invalid lower input of a diff {index}"));
    }
    for output in [1, -2, i64::MAX] {
        assert_eq!(bent_exec(|exec| exec.mounts[0].output = output), format!("invalid output {output}"));
        assert_eq!(bent_file(|file| file.output = output), format!("invalid output {output}"));
    }
    for input in [-1, 2, 99] {
        let who = pb::NamedUserOpt { name: "x".into(), input };
        let user = Some(pb::UserOpt { user: Some(pb::user_opt::User::ByName(who)) });
        let owned = |file: &mut pb::FileAction| {
            if let Some(Action::Copy(copy)) = &mut file.action {
                copy.owner = Some(pb::ChownOpt { user, group: None });
            }
        };
        assert_eq!(bent_file(owned), format!("invalid input of an owner {input}"));
    }
    let two = exec("x").mounts[0].clone();
    assert_eq!(bent_exec(|exec| exec.mounts.push(pb::Mount { dest: "/b".into(), ..two })), "invalid output 0");
    assert_eq!(refused(&one(Op::Merge(pb::MergeOp::default()))), "invalid count of merged inputs 0");
}

#[test]
fn what_is_not_there() {
    let text = |definition: &pb::Definition| {
        let text = Graph::decode(definition).unwrap_err().to_string();
        text.split_once(" has no ").map(|(_, what)| what.to_owned()).unwrap_or(text)
    };
    let mut empty = Def::default();
    let op = empty.add(&pb::Op::default());
    assert_eq!(text(&empty.end(&op)), "kind that is known here");
    let bent = |bend: fn(&mut pb::ExecOp)| {
        let mut exec = exec("x");
        bend(&mut exec);
        text(&one(Op::Exec(exec)))
    };
    assert_eq!(bent(|exec| exec.meta = None), "meta");
    assert_eq!(bent(|exec| exec.meta = Some(pb::Meta::default())), "args");
    assert_eq!(bent(|exec| exec.mounts.clear()), "mount at /, the root filesystem");
    assert_eq!(bent(|exec| exec.mounts[0].dest.clear()), "target of a mount");
    assert_eq!(text(&one(Op::File(pb::FileOp::default()))), "actions");
    assert_eq!(text(&one(Op::Diff(pb::DiffOp::default()))), "lower and upper filesystem");
    let actions = vec![pb::FileAction { input: 0, secondary_input: -1, ..pb::FileAction::default() }];
    assert_eq!(text(&one(Op::File(pb::FileOp { actions }))), "kind of an action that is known here");
    for kind in [pb::MountType::Cache, pb::MountType::Secret, pb::MountType::Ssh] {
        let mut exec = exec("x");
        let mount =
            pb::Mount { input: -1, output: -1, dest: "/m".into(), mount_type: kind as i32, ..pb::Mount::default() };
        exec.mounts.push(mount);
        assert!(text(&one(Op::Exec(exec))).starts_with("options of"), "{kind:?}");
    }
}

#[test]
fn ends() {
    let mut def = Def::default();
    let source = def.source("docker-image://a");
    assert_eq!(
        refused(&def.definition),
        "last operation of the definition has to be an end with one input, it has 0 and is a source"
    );
    def.add(&pb::Op { inputs: vec![source.clone(), source.clone()], ..pb::Op::default() });
    assert!(refused(&def.definition).contains("it has 2 and is an end"));
    let mut other = Def::default();
    assert!(refused(&other.end(&source)).contains("which is not in the definition"));
    other.source("docker-image://b");
    assert!(refused(&other.end(&pb::Input { digest: "nonsense".into(), index: 0 })).contains("works on nonsense"));
    assert_eq!(refused(&def.end(&pb::Input { index: 1, ..source })), "invalid index of a result 1");
    let garbage = pb::Definition { def: vec![vec![0xff; 9]], ..pb::Definition::default() };
    assert_eq!(refused(&garbage), "decode operation 0 of the definition");
}

#[test]
fn values() {
    assert!(bent_exec(|exec| exec.mounts.push(exec.mounts[0].clone())).starts_with("invalid mount \"/\""));
    assert!(bent_exec(|exec| exec.meta.as_mut().unwrap().args[0] = "a\0b".into()).starts_with("invalid args"));
    assert!(
        bent_file(|file| {
            if let Some(Action::Copy(copy)) = &mut file.action {
                copy.mode = 0o10000;
            }
        })
        .starts_with("invalid mode of an action \"10000\"")
    );
    let source =
        |identifier: &str| Op::Source(pb::SourceOp { identifier: identifier.into(), ..pb::SourceOp::default() });
    assert!(refused(&with(vec![], source("nothing"))).starts_with("invalid source \"nothing\""));
    assert!(refused(&one(source("local://x"))).starts_with("invalid source \"local://x\""));
    // Its key can't be made of the part that is mounted: the rest of it comes out too.
    let written = |content_cache| pb::Mount {
        dest: "/w".into(),
        selector: "/part".into(),
        output: 1,
        content_cache,
        ..pb::Mount::default()
    };
    assert!(bent_exec(|exec| exec.mounts.push(written(1))).starts_with("invalid content cache of mount \"/w\""));
}

#[test]
fn build_is_not_supported() {
    let text = Graph::decode(&one(Op::Build(pb::BuildOp::default()))).unwrap_err().to_string();
    assert!(
        text.ends_with("a build whose definition is the result of another, which this builder does not have"),
        "{text}"
    );
}

#[test]
fn paths_come_out_clean() {
    for (cwd, dest, clean) in [
        ("/", "a", "/a"),
        ("/w", "a/../../../b", "/b"),
        ("/w/x", "./y//z/", "/w/x/y/z"),
        ("", "../..//etc", "/etc"),
        ("w", "a", "/w/a"),
    ] {
        let mut exec = exec("x");
        exec.meta.as_mut().unwrap().cwd = cwd.into();
        let mount = pb::Mount { dest: dest.into(), selector: "/../x/./y/".into(), output: -1, ..pb::Mount::default() };
        exec.mounts.push(mount);
        let graph = Graph::decode(&one(Op::Exec(exec))).unwrap();
        let Some(Op::Exec(exec)) = &graph.vertices[1].op.op else { panic!("an exec") };
        assert_eq!((exec.mounts[1].dest.as_str(), exec.mounts[1].selector.as_str()), (clean, "x/y"));
    }
}

#[test]
fn secrets_with_zeros_are_fine() {
    let mut exec = exec("x");
    for (kind, dest) in [(pb::MountType::Secret, "/s"), (pb::MountType::Ssh, "/t")] {
        exec.mounts.push(pb::Mount {
            dest: dest.into(),
            mount_type: kind as i32,
            secret_opt: Some(pb::SecretOpt { id: "s".into(), mode: 0o400, ..pb::SecretOpt::default() }),
            ssh_opt: Some(pb::SshOpt { id: "s".into(), mode: 0o600, ..pb::SshOpt::default() }),
            ..pb::Mount::default()
        });
    }
    assert_eq!(Graph::decode(&one(Op::Exec(exec))).unwrap().vertices[1].outputs, 1);
}

#[test]
fn order_and_names() {
    let mut def = Def::default();
    let base = def.source("docker-image://base");
    let a = def.run(&base, "make all");
    let b = def.copy(&a, &base, "/x", "/y");
    def.source("docker-image://unused");
    let end = def.merge(&[b, a.clone()]);
    let named = def.definition.metadata.entry(a.digest).or_default();
    named.description.insert("llb.customname".into(), "[1/2] RUN make all".into());
    let graph = Graph::decode(&def.end(&end)).unwrap();
    let names: Vec<_> = graph.vertices.iter().map(|vertex| vertex.name.as_str()).collect();
    assert_eq!(names, ["docker-image://base", "[1/2] RUN make all", "copy /x /y", "merge"]);
    for (at, vertex) in graph.vertices.iter().enumerate() {
        assert!(vertex.inputs.iter().all(|input| input.vertex < at));
    }
}

#[test]
fn too_much() {
    let many = pb::Definition { def: vec![Vec::new(); MAX_OPS + 1], ..pb::Definition::default() };
    assert_eq!(refused(&many), "definition has 20001 operations, at most 20000 are taken");
    let large = pb::Definition { def: vec![vec![0; MAX_BYTES + 1]], ..pb::Definition::default() };
    assert!(refused(&large).contains("bytes, at most"));
}

#[test]
fn small_on_the_wire_large_in_memory() {
    // Two bytes each, and hundreds decoded.
    for (field, list) in [(2u8, 2u8), (4, 2)] {
        let parts = [list << 3 | 2, 0].repeat(MAX_HEAVY + 1);
        let mut op = vec![field << 3 | 2];
        prost::encoding::encode_varint(parts.len() as u64, &mut op);
        op.extend(parts);
        let bomb = pb::Definition { def: vec![op], ..pb::Definition::default() };
        assert_eq!(refused(&bomb), "definition has 200001 mounts and actions, at most 200000 are taken");
    }
    // The same spread over operations, and as inputs, variables and patterns.
    let env = exec_with(|meta| meta.env = vec![String::new(); MAX_LIGHT]);
    assert!(refused(&env).ends_with("words, at most 2000000 are taken"));
    let inputs = pb::Op { inputs: vec![pb::Input::default(); MAX_LIGHT + 1], ..pb::Op::default() };
    let bomb = pb::Definition { def: vec![inputs.encode_to_vec()], ..pb::Definition::default() };
    assert!(refused(&bomb).ends_with("words, at most 2000000 are taken"));
    let mut action = copy();
    if let Some(Action::Copy(copy)) = &mut action.action {
        copy.include_patterns = vec![String::new(); MAX_LIGHT];
    }
    let patterns = with(vec!["docker-image://a", "local://b"], Op::File(pb::FileOp { actions: vec![action] }));
    assert!(refused(&patterns).ends_with("words, at most 2000000 are taken"));
    // Text that looks like anything is just text.
    let mkfile = pb::FileActionMkFile { path: "/x".into(), data: [0x12, 0].repeat(100_000), ..Default::default() };
    let action = pb::FileAction { input: 0, secondary_input: -1, output: 0, action: Some(Action::Mkfile(mkfile)) };
    Graph::decode(&one(Op::File(pb::FileOp { actions: vec![action] }))).unwrap();
}

fn exec_with(bend: impl FnOnce(&mut pb::Meta)) -> pb::Definition {
    let mut exec = exec("x");
    bend(exec.meta.as_mut().unwrap());
    one(Op::Exec(exec))
}

#[test]
fn deep_and_wide_is_no_trouble() {
    let mut def = Def::default();
    let mut last = def.source("docker-image://a");
    for at in 0..MAX_OPS - 2 {
        last = def.run(&last, &at.to_string());
    }
    assert_eq!(Graph::decode(&def.end(&last)).unwrap().vertices.len(), MAX_OPS - 1);
}

/// Good definitions with something bent, for `BERTH_FUZZ_SECONDS` (1): each is taken or refused, none is a panic, and what is
/// taken keeps what is promised. A panic ends the test with the bytes in its message.
#[test]
fn fuzz() {
    let seconds = std::env::var("BERTH_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().subsec_nanos();
    let seed = std::env::var("BERTH_FUZZ_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(u64::from(now) | 1);
    println!("seed {seed}");
    let mut dice = seed;
    let mut roll = |sides: usize| {
        dice ^= dice << 13;
        dice ^= dice >> 7;
        dice ^= dice << 17;
        (dice % sides.max(1) as u64) as usize
    };
    let end = Instant::now() + Duration::from_secs(seconds);
    let (mut taken, mut refused) = (0, 0);
    while Instant::now() < end {
        let mut def = Def::default();
        let (a, b) = (def.source("docker-image://a"), def.source("local://b"));
        let run = def.run_with(&a, "x y", &[(&b, "/s")]);
        let copied = def.copy(&run, &b, "/a/b", "/c");
        let merged = def.merge(&[copied, a]);
        let mut definition = def.end(&merged);
        for _ in 0..roll(4) {
            // Bent bytes have another digest; so the graph is built anew on them where they still decode.
            let at = roll(definition.def.len());
            let bytes = &mut definition.def[at];
            let place = roll(bytes.len());
            match roll(5) {
                0 if !bytes.is_empty() => bytes[place] = roll(256) as u8,
                1 if !bytes.is_empty() => bytes[place] ^= 1 << roll(8),
                2 => bytes.truncate(place),
                3 => bytes.extend_from_slice(&[0x98, 0x06, 0x01][..roll(4)]),
                _ => {
                    let copy = bytes.clone();
                    bytes.splice(place..place, copy.into_iter().take(20));
                }
            }
        }
        rename(&mut definition);
        match Graph::decode(&definition) {
            Ok(graph) => {
                taken += 1;
                for (at, vertex) in graph.vertices.iter().enumerate() {
                    assert!(vertex.inputs.iter().all(|i| i.vertex < at && i.output < graph.vertices[i.vertex].outputs));
                    assert_eq!(crate::keys::own(&vertex.op).inputs.len(), vertex.inputs.len());
                }
            }
            Err(_) => refused += 1,
        }
    }
    println!("{taken} taken, {refused} refused");
    assert!(taken > 0 && refused > 0);
}

/// Inputs follow what they named, whose bytes were bent.
fn rename(definition: &mut pb::Definition) {
    let mut def = Def::default();
    let (a, b) = (def.source("docker-image://a"), def.source("local://b"));
    let run = def.run_with(&a, "x y", &[(&b, "/s")]);
    let copied = def.copy(&run, &b, "/a/b", "/c");
    let merged = def.merge(&[copied.clone(), a.clone()]);
    let mut names: HashMap<String, String> = HashMap::new();
    for (at, old) in [a, b, run, copied, merged].into_iter().enumerate() {
        if let Some(bytes) = definition.def.get_mut(at) {
            follow(bytes, &names);
            names.insert(old.digest, Digest::of(bytes).to_string());
        }
    }
    if let Some(end) = definition.def.last_mut() {
        follow(end, &names);
    }
}

fn follow(bytes: &mut Vec<u8>, names: &HashMap<String, String>) {
    if let Ok(mut op) = pb::Op::decode(bytes.as_slice()) {
        for input in &mut op.inputs {
            if let Some(new) = names.get(&input.digest) {
                input.digest.clone_from(new);
            }
        }
        *bytes = op.encode_to_vec();
    }
}

proptest! {
    #[test]
    fn bytes_are_no_panic(def in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..60), 0..6)) {
        let _ = Graph::decode(&pb::Definition { def, ..pb::Definition::default() });
    }

    #[test]
    fn numbers_are_no_panic(numbers in prop::collection::vec(prop_oneof![Just(-1i64), Just(0), Just(1), any::<i64>()], 8)) {
        let [a, b, c, d, e, f, g, h] = numbers[..] else { unreachable!() };
        let mut exec = exec("x");
        exec.network = a as i32;
        exec.security = b as i32;
        exec.mounts.push(pb::Mount { input: c, output: d, dest: "/x".into(), mount_type: e as i32, ..pb::Mount::default() });
        let definition = with(vec!["docker-image://a"], Op::Exec(exec));
        if let Ok(graph) = Graph::decode(&definition) {
            crate::keys::own(&graph.vertices[1].op);
        }
        let mut action = copy();
        (action.input, action.secondary_input, action.output) = (f, g, h);
        let file = pb::FileOp { actions: vec![copy(), action] };
        if let Ok(graph) = Graph::decode(&with(vec!["docker-image://a", "local://b"], Op::File(file))) {
            crate::keys::own(&graph.vertices[2].op);
        }
    }
}
