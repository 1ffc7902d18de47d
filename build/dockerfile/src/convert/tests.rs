//! `cases.txt` has Dockerfiles and what becomes of them. A case begins with `### title`; lines like `option target=x` follow,
//! then the Dockerfile, then behind `=>` what is expected. `BERTH_WRITE_CASES=1` writes what comes out instead: to be read, line
//! by line, before it is committed.

use super::*;
use proptest::prelude::*;
use prost::Message as _;
use serde_json::Value;
use std::fmt::Write as _;

const CASES: &str = include_str!("cases.txt");

#[derive(Debug, thiserror::Error)]
#[error("not found")]
struct NotFound;

/// Some images.
struct Images;

impl Images {
    fn config(reference: &str) -> Option<&'static str> {
        Some(match reference {
            "docker.io/library/base:latest" => {
                r#"{"architecture":"amd64","os":"linux","created":"2020-01-01T00:00:00Z","docker_version":"20","config":{
                "Env":["PATH=/bin","FROM_BASE=1"],"Cmd":["sh"],"Labels":null,"OnBuild":null},
                "rootfs":{"type":"layers","diff_ids":["sha256:0"]},"history":[{"created_by":"base"}]}"#
            }
            "docker.io/library/full:1" => {
                r#"{"architecture":"amd64","os":"linux","author":"me","config":{"User":"app","WorkingDir":"/srv/",
                "Env":["A=full"],"Cmd":["c"],"Entrypoint":["/e"],"Labels":{"l":"base"},"Volumes":{"/v":{}},
                "ExposedPorts":{"1/tcp":{}},"StopSignal":"SIGINT","Shell":["/bin/bash","-c"],"StopTimeout":5,
                "Healthcheck":{"Test":["CMD","x"],"Interval":1000000000}},
                "rootfs":{"type":"layers","diff_ids":["sha256:0"]},"history":[{"created_by":"full"}]}"#
            }
            "docker.io/library/trigger:latest" => {
                r#"{"architecture":"amd64","os":"linux","config":{"OnBuild":["COPY . /src","RUN make"]},
                "rootfs":{"type":"layers","diff_ids":["sha256:0"]}}"#
            }
            "docker.io/library/trigger-from:latest" => {
                r#"{"architecture":"amd64","os":"linux","config":{"OnBuild":["COPY --from=base /x /y"]},
                "rootfs":{"type":"layers","diff_ids":["sha256:0"]}}"#
            }
            "docker.io/library/trigger-bad:latest" => {
                r#"{"architecture":"amd64","os":"linux","config":{"OnBuild":["FROM x"]},
                "rootfs":{"type":"layers","diff_ids":["sha256:0"]}}"#
            }
            "docker.io/library/hollow:latest" => {
                r#"{"architecture":"amd64","os":"linux","config":{"Cmd":["x"]},"rootfs":{"type":"layers","diff_ids":null},
                "history":[{"created_by":"CMD x","empty_layer":true}]}"#
            }
            "docker.io/library/arm:latest" => {
                r#"{"architecture":"arm64","os":"linux","config":{},"rootfs":{"type":"layers","diff_ids":["sha256:0"]}}"#
            }
            "docker.io/library/broken:latest" => "{",
            _ => return None,
        })
    }
}

impl Resolver for Images {
    type Error = NotFound;

    async fn image(&self, reference: &str, _: &pb::Platform) -> Result<ImageConfig, NotFound> {
        let config = Self::config(reference).ok_or(NotFound)?;
        Ok(ImageConfig { digest: format!("sha256:{:064}", 0), config: config.into(), reference: None })
    }

    fn is_ignored(&self, path: &str) -> bool {
        path.starts_with("ignored")
    }
}

/// Options as a case has them.
fn options(lines: &[&str]) -> Options {
    let platform = |text: &str| platform::parse(text).unwrap();
    let mut options = Options {
        platform: platform("linux/amd64"),
        build_platform: platform("linux/amd64"),
        cache_namespace: "ns".into(),
        source: ("Dockerfile".into(), Vec::new()),
        ..Options::default()
    };
    for line in lines {
        let (name, value) = line.split_once('=').unwrap_or((line, ""));
        let pair = || {
            let (name, value) = value.split_once('=').unwrap();
            (name.to_owned(), value.to_owned())
        };
        match name {
            "target" => options.target = Some(value.into()),
            "arg" => options.build_args.extend([pair()]),
            "label" => options.labels.extend([pair()]),
            "platform" => options.platform = platform(value),
            "all" => options.all_stages = true,
            "implicit" => options.implicit_platform = true,
            "multi" => options.multi_platform = true,
            "no-cache" => {
                options.no_cache = Some(value.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect());
            }
            "host" => options.extra_hosts.push(pair()),
            "ulimit" => options.ulimits.push(pb::Ulimit { name: value.into(), soft: 1, hard: 2 }),
            "shm" => options.shm_size = value.parse().ok(),
            "cgroup" => options.cgroup_parent = Some(value.into()),
            "network" => options.network = Some(value.into()),
            "hostname" => options.hostname = Some(value.into()),
            "epoch" => options.epoch = value.parse().ok(),
            "session" => options.session = value.into(),
            "unique" => options.unique_id = value.into(),
            "exclude" => {
                let exclude = value.split(',').map(str::to_owned).collect();
                options.context = Some(NamedContext::Local { name: "context".into(), exclude });
            }
            "git" => options.context = Some(NamedContext::Source(GitRef::parse(value).unwrap().unwrap().source())),
            "image" => {
                let (name, value) = pair();
                options.contexts.insert(name, NamedContext::Image(value));
            }
            "local" => {
                let (name, value) = pair();
                options.contexts.insert(name, NamedContext::Local { name: value, exclude: vec!["x".into()] });
            }
            "url" => {
                let (name, identifier) = pair();
                let source = pb::SourceOp { identifier, ..pb::SourceOp::default() };
                options.contexts.insert(name, NamedContext::Source(source));
            }
            "input" => {
                let (name, base) = pair();
                let file = crate::parse::parse(format!("FROM {base}\nRUN input\nENV IN=1").as_bytes()).unwrap();
                let made = run(&file, &self::options(&[])).unwrap();
                options.contexts.insert(name, NamedContext::Input(made.definition.unwrap(), Some(made.config)));
            }
            other => panic!("option {other:?}"),
        }
    }
    options
}

fn run(file: &Dockerfile, options: &Options) -> Result<Converted, ConvertError<NotFound>> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(convert(file, options, &Images))
}

/// All that comes out, as a text.
fn outcome(lines: &[&str], text: &str) -> String {
    let options = options(lines);
    let made = match crate::parse::parse(text.as_bytes()) {
        Ok(file) => run(&file, &options),
        Err(error) => return format!("parse error {error}\n"),
    };
    let made = match made {
        Ok(made) => made,
        Err(ConvertError::Dockerfile(error)) => return format!("error {error}\n"),
        Err(error @ ConvertError::Image { span, .. }) => {
            let cause = std::error::Error::source(&error).unwrap();
            return format!("image error on line {}: {error}: {cause}\n", span.unwrap().first);
        }
    };
    if let Some(definition) = &made.definition {
        check(definition);
    }
    let mut out = made.definition.as_ref().map_or_else(|| "empty\n".into(), llb::show);
    let config: Value = serde_json::from_slice(&made.config).unwrap();
    let platform = ["os", "architecture", "variant"].map(|name| config[name].as_str().unwrap_or_default());
    let platform: Vec<_> = platform.iter().filter(|part| !part.is_empty()).copied().collect();
    if platform != ["linux", "amd64"] {
        let _ = writeln!(out, "platform {}", platform.join("/"));
    }
    if let Some(author) = config["author"].as_str() {
        let _ = writeln!(out, "author {author}");
    }
    for (name, value) in config["config"].as_object().unwrap() {
        if *value == serde_json::json!([format!("PATH={}", image::PATH)])
            || (name, value) == (&"WorkingDir".into(), &"/".into())
        {
            continue;
        }
        let _ = writeln!(out, "{name} {value}");
    }
    for entry in config["history"].as_array().into_iter().flatten() {
        let layer = if entry["empty_layer"] == true { "meta" } else { "layer" };
        let created = entry["created"].as_str().map_or_else(String::new, |time| format!(" {time}"));
        let comment = entry["comment"].as_str().filter(|comment| *comment != "buildkit.dockerfile.v0");
        let _ = writeln!(
            out,
            "{layer}{created} {}{}",
            entry["created_by"].as_str().unwrap().replace('\n', "\\n"),
            comment.map_or_else(String::new, |comment| format!(" ({comment})"))
        );
    }
    for warning in &made.warnings {
        let _ = writeln!(out, "warning line {} {}: {}", warning.span.first, warning.rule, warning.detail);
    }
    if let Some(violation) = &made.violation {
        let _ = writeln!(out, "violation {violation}");
    }
    out.replace(&format!("sha256:{:064}", 0), "sha256:0")
}

/// What must be so of any graph: inputs come before who needs them, numbers of inputs are those of inputs, all is needed.
fn check(definition: &pb::Definition) {
    use pb::{file_action::Action, op::Op};
    let ops: Vec<pb::Op> = definition.def.iter().map(|bytes| pb::Op::decode(bytes.as_slice()).unwrap()).collect();
    let (last, others) = ops.split_last().unwrap();
    assert!(last.op.is_none() && last.inputs.len() == 1, "{last:?}");
    let mut known: Vec<String> = Vec::new();
    let mut used = std::collections::BTreeSet::new();
    for (op, bytes) in ops.iter().zip(&definition.def) {
        for input in &op.inputs {
            assert!(known.contains(&input.digest) && input.index == 0, "{op:?}");
            used.insert(input.digest.clone());
        }
        let count = op.inputs.len() as i64;
        match &op.op {
            Some(Op::Exec(exec)) => {
                assert_eq!(exec.mounts[0].dest, "/");
                assert_eq!(exec.mounts.iter().filter(|mount| mount.output >= 0).count(), 1);
                assert!(
                    exec.mounts.iter().all(|mount| (-1..count).contains(&mount.input) && mount.dest.starts_with('/'))
                );
                assert!(exec.meta.as_ref().unwrap().cwd.starts_with('/'));
            }
            Some(Op::File(file)) => {
                for (at, action) in (0..).zip(&file.actions) {
                    assert!((-1..count + at).contains(&action.input) && (-1..count).contains(&action.secondary_input));
                    if let Some(Action::Copy(copy)) = &action.action {
                        assert!(copy.src.starts_with('/') && copy.dest.starts_with('/'), "{copy:?}");
                        assert!(!copy.src.split('/').any(|part| part == ".."), "{copy:?}");
                    }
                }
                assert_eq!(file.actions.last().unwrap().output, 0);
            }
            Some(Op::Merge(merge)) => assert!(merge.inputs.iter().all(|input| (0..count).contains(&input.input))),
            Some(Op::Source(source)) => assert!(source.identifier.contains("://") && count == 0),
            other => assert!(other.is_none(), "{other:?}"),
        }
        let digest = llb::digest(bytes);
        assert!(definition.metadata.contains_key(&digest));
        known.push(digest);
    }
    assert_eq!(used.len(), others.len(), "something is made for nothing");
}

/// Lines that Dockerfiles are made of.
fn line() -> impl Strategy<Value = String> {
    const FORMS: &[&str] = &[
        "FROM {n}",
        "FROM {n} AS a",
        "FROM {n} AS b",
        "FROM --platform=$BUILDPLATFORM {n} AS c",
        "RUN {w} {w}",
        "RUN [\"{w}\"]",
        "RUN --mount=from={n},target={w} {w}",
        "RUN --mount=type=cache,target={w},uid=1 {w}",
        "RUN --mount=type=cache,id={w},target=/c,from={n},source={w} {w}",
        "RUN --mount=type=secret,id={w},env={w} --mount=type=ssh {w}",
        "RUN --mount=type=tmpfs,target={w} {w}",
        "RUN <<E\n{w}\nE",
        "RUN {w} <<E\n#!{w}\nE",
        "COPY {w} {w} {w}",
        "COPY --from={n} {w} {w}",
        "COPY --link --from={n} {w} {w}",
        "COPY --parents --exclude={w} {w} {w}",
        "COPY --chown={w} --chmod=644 {w} {w}",
        "COPY <<E {w}\n{w} $A\nE",
        "ADD {w} {w}",
        "ADD --keep-git-dir https://h/r.git#{w} {w}",
        "WORKDIR {w}",
        "USER {w}",
        "ENV A={w} B={w}",
        "ARG A={w}",
        "ARG A",
        "LABEL a={w}",
        "EXPOSE 1-3 {w}",
        "VOLUME {w}",
        "CMD {w}",
        "ENTRYPOINT [\"{w}\"]",
        "HEALTHCHECK CMD {w}",
        "ONBUILD RUN {w}",
        "ONBUILD COPY --from={n} {w} {w}",
        "SHELL [\"{w}\"]",
        "STOPSIGNAL {w}",
        "MAINTAINER {w}",
    ];
    const NAMES: &[&str] = &["a", "b", "c", "base", "full:1", "trigger", "scratch", "0", "1", "7"];
    const WORDS: &[&str] = &[
        "x",
        "/",
        ".",
        "..",
        "a/b/",
        "$A",
        "${A:-x}",
        "*",
        "/./",
        "a/./b",
        "\"",
        "'q'",
        "http://h/x",
        "git@h:x",
        "~",
        "=",
        "u:g",
        "0:0",
        "--",
        "[",
        "\\",
        "é",
        "https://h/r.git#a:b",
    ];
    let parts = (
        prop::sample::select(FORMS),
        prop::sample::select(NAMES),
        prop::sample::select(WORDS),
        prop::sample::select(WORDS),
    );
    parts.prop_map(|(form, name, first, second)| {
        form.replace("{n}", name).replacen("{w}", first, 1).replace("{w}", second)
    })
}

proptest! {
    #[test]
    fn anything_comes_out_whole_or_not_at_all(lines in prop::collection::vec(line(), 1..10)) {
        let text = format!("ARG G=x\nFROM base AS a\n{}\n", lines.join("\n"));
        if let Ok(file) = crate::parse::parse(text.as_bytes())
            && let Ok(made) = run(&file, &options(&["epoch=1", "multi", "local=c=folder"]))
            && let Some(definition) = &made.definition
        {
            check(definition);
            llb::show(definition);
        }
    }
}

#[test]
fn it_may_be_done_on_any_thread() {
    fn is_send<T: Send>(_: &T) {}
    let (file, options) = (Dockerfile::default(), Options::default());
    is_send(&convert(&file, &options, &Images));
}

#[test]
fn cases_come_out_as_expected() {
    let write = std::env::var_os("BERTH_WRITE_CASES").is_some();
    let (mut written, mut failed, mut count) = (String::new(), Vec::new(), 0);
    for case in CASES.split("### ").skip(1) {
        let (title, body) = case.split_once('\n').unwrap();
        let (source, expected) = body.split_once("\n=>\n").unwrap_or((body.trim_end_matches('\n'), ""));
        let lines: Vec<&str> = source.lines().map_while(|line| line.strip_prefix("option ")).collect();
        let text: String = source.split_inclusive('\n').skip(lines.len()).collect();
        let out = outcome(&lines, &text);
        if out.trim() != expected.trim() {
            failed.push(format!("{title}\n{text}\nexpected:\n{expected}\ngot:\n{out}"));
        }
        let _ = write!(written, "### {title}\n{source}\n=>\n{out}\n");
        count += 1;
    }
    if write {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/convert/cases.txt");
        std::fs::write(path, written.trim_end().to_owned() + "\n").unwrap();
        return;
    }
    assert!(failed.is_empty(), "{} of {count} cases:\n{}", failed.len(), failed.join("\n\n"));
    assert!(count >= 130, "{count}");
}

#[test]
fn the_same_comes_out_the_same() {
    let file =
        crate::parse::parse(b"FROM base AS a\nRUN x\nFROM base\nCOPY --from=a x y\nCOPY --link z /\nRUN y").unwrap();
    let options = options(&["arg=A=1", "session=s"]);
    assert_eq!(run(&file, &options).unwrap(), run(&file, &options).unwrap());
}

#[test]
fn steps_know_their_lines() {
    let file = crate::parse::parse(b"FROM base\n\nRUN a \\\n b\n").unwrap();
    let mut options = options(&[]);
    options.source = ("x/Dockerfile".into(), b"FROM base".to_vec());
    let definition = run(&file, &options).unwrap().definition.unwrap();
    let source = definition.source.unwrap();
    assert_eq!(
        (source.infos[0].filename.as_str(), source.infos[0].data.as_slice()),
        ("x/Dockerfile", &b"FROM base"[..])
    );
    let mut lines: Vec<_> = source
        .locations
        .values()
        .flat_map(|found| &found.locations)
        .flat_map(|location| &location.ranges)
        .map(|range| (range.start.unwrap().line, range.end.unwrap().line))
        .collect();
    lines.sort_unstable();
    assert_eq!(lines, [(1, 1), (3, 4)]);
}

#[test]
fn a_linked_copy_is_shown_as_one_step() {
    let file = crate::parse::parse(b"FROM base\nCOPY --link a /").unwrap();
    let definition = run(&file, &options(&[])).unwrap().definition.unwrap();
    let groups: Vec<_> = definition.metadata.values().filter_map(|data| data.progress_group.clone()).collect();
    assert_eq!(groups.len(), 2);
    assert_eq!((groups[0].id.as_str(), groups[0].name.as_str()), (groups[1].id.as_str(), groups[1].name.as_str()));
    assert_ne!(groups[0].weak, groups[1].weak);
}

#[test]
fn long_chains_and_many_stages_are_no_trouble() {
    let mut text = String::from("FROM base AS s0\n");
    for number in 1..2_000 {
        let _ = writeln!(text, "FROM s{} AS s{number}\nRUN {number}", number - 1);
    }
    let file = crate::parse::parse(text.as_bytes()).unwrap();
    let made = run(&file, &options(&[])).unwrap();
    assert_eq!(made.definition.unwrap().def.len(), 2_001);
}

#[test]
fn small_files_do_not_fill_the_machine() {
    let many = |count: usize, line: &dyn Fn(usize) -> String| (0..count).map(line).collect::<String>();
    let vars = many(4_000, &|number| format!("ENV A{number}=1\n"));
    let large = format!("ENV C={}\nENV A=$C$C$C$C$C$C$C$C\n", "x".repeat(60_000));
    for text in [
        // Stages that have the same stage below them.
        format!(
            "FROM base AS s\n{vars}{}FROM base\n{}",
            many(150, &|number| format!("FROM s AS a{number}\nFROM a{number} AS b{number}\n")),
            many(150, &|number| format!("COPY --from=b{number} x y\n"))
        ),
        // Stages one on the other.
        format!("FROM base AS s\n{vars}{}", many(150, &|_| "FROM s AS s\n".into())),
        // Steps with all variables.
        format!("FROM base\n{vars}{}", many(100, &|_| "RUN x\n".into())),
        // Values that become many.
        format!("FROM base\n{large}{}", many(60, &|number| format!("ENV B{number}=$A\n"))),
        format!("FROM base\n{large}{}", many(60, &|_| "COPY $A x\n".into())),
        format!("FROM base\n{}", many(6, &|_| "EXPOSE 1-65000\n".into())),
    ] {
        let file = crate::parse::parse(text.as_bytes()).unwrap();
        let error = run(&file, &options(&[])).map(drop).unwrap_err().to_string();
        assert!(error.contains("comes to too much"), "{error}");
    }
}

#[test]
fn many_copies_are_no_trouble() {
    let mut text = String::new();
    for number in 0..4_000 {
        let _ = writeln!(text, "FROM base AS s{number}\nRUN {number}");
    }
    text += "FROM scratch\n";
    for number in 0..4_000 {
        let _ = writeln!(text, "COPY --from={number} x y\nCOPY --from=s{number} x y");
    }
    let file = crate::parse::parse(text.as_bytes()).unwrap();
    let made = run(&file, &options(&[])).unwrap();
    // One image, which is many steps only for those who count them.
    assert_eq!(made.definition.unwrap().def.len(), 1 + 4_000 + 8_000 + 1);
}

#[test]
fn what_is_imported_must_be_whole() {
    for (definition, problem) in [
        (pb::Definition { def: vec![vec![0xff]], ..pb::Definition::default() }, "operation 0"),
        (
            pb::Definition {
                def: vec![
                    pb::Op { inputs: vec![pb::Input { digest: "sha256:1".into(), index: 0 }], ..pb::Op::default() }
                        .encode_to_vec(),
                ],
                ..pb::Definition::default()
            },
            "does not come before it",
        ),
    ] {
        let file = crate::parse::parse(b"FROM given\nRUN x").unwrap();
        let mut options = options(&[]);
        options.contexts.insert("given".into(), NamedContext::Input(definition, None));
        let error = run(&file, &options).unwrap_err().to_string();
        assert!(error.contains(problem), "{error}");
    }
}

#[test]
fn images_are_asked_for_at_once_and_each_of_them_once() {
    use std::sync::atomic::{AtomicUsize, Ordering};
    struct Waiting(AtomicUsize, tokio::sync::Notify);
    impl Resolver for Waiting {
        type Error = NotFound;
        async fn image(&self, reference: &str, platform: &pb::Platform) -> Result<ImageConfig, NotFound> {
            // Nobody gets an answer before all have asked.
            if self.0.fetch_add(1, Ordering::SeqCst) == 2 {
                self.1.notify_waiters();
            } else {
                self.1.notified().await;
            }
            Images.image(reference, platform).await
        }
    }
    let text = b"FROM base AS a\nFROM full:1 AS b\nFROM base\nCOPY --from=a x y\nCOPY --from=b x y\nCOPY --from=arm x y\nFROM unused";
    let file = crate::parse::parse(text).unwrap();
    let options = Options { target: Some("2".into()), ..options(&[]) };
    let waiting = Waiting(AtomicUsize::new(0), tokio::sync::Notify::new());
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(convert(&file, &options, &waiting)).unwrap();
    assert_eq!(waiting.0.into_inner(), 3);
}
