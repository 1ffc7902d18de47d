//! `cases.txt` has Dockerfiles and what becomes of them. A case begins with `### title`; lines like `option target=x` follow,
//! then the Dockerfile, then behind `=>` what is expected. `BERTH_WRITE_CASES=1` writes what comes out instead: to be read, line
//! by line, before it is committed.

use super::*;
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
fn what_is_imported_must_be_whole() {
    for (definition, problem) in [
        (pb::Definition { def: vec![vec![0xff]], ..pb::Definition::default() }, "operation 0"),
        (
            pb::Definition {
                def: vec![prost::Message::encode_to_vec(&pb::Op {
                    inputs: vec![pb::Input { digest: "sha256:1".into(), index: 0 }],
                    ..pb::Op::default()
                })],
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
fn images_are_asked_for_at_once() {
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
    let text = b"FROM base AS a\nFROM full:1 AS b\nFROM base\nCOPY --from=a x y\nCOPY --from=b x y\nFROM unused";
    let file = crate::parse::parse(text).unwrap();
    let options = Options { target: Some("2".into()), ..options(&[]) };
    let waiting = Waiting(AtomicUsize::new(0), tokio::sync::Notify::new());
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(convert(&file, &options, &waiting)).unwrap();
    assert_eq!(waiting.0.into_inner(), 3);
}
