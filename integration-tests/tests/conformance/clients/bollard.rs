//! The crate bollard, which negotiates its version.

use crate::engine::Engine;
use bollard::{
    API_DEFAULT_VERSION, Docker, body_full,
    container::LogOutput,
    exec::{CreateExecOptions, StartExecOptions, StartExecResults},
    models::{ContainerCreateBody, HostConfig, NetworkCreateRequest, VolumeCreateRequest},
    query_parameters::{
        AttachContainerOptionsBuilder, CreateContainerOptionsBuilder, DownloadFromContainerOptionsBuilder,
        EventsOptionsBuilder, InspectContainerOptions, ListContainersOptionsBuilder, LogsOptionsBuilder,
        RemoveContainerOptionsBuilder, RemoveVolumeOptions, StatsOptionsBuilder, StopContainerOptionsBuilder,
        UploadToContainerOptionsBuilder, WaitContainerOptions,
    },
};
use futures_util::{Stream, StreamExt, TryStreamExt};
use integration_tests::images::add_file;
use std::{collections::HashMap, fmt::Write, pin::pin};
use tokio::io::AsyncWriteExt;

type Failed = Box<dyn std::error::Error>;

/// What bollard hears of an engine.
pub fn talk(engine: &Engine) -> String {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut said = String::new();
    let socket = engine.socket().display().to_string();
    let result = runtime.block_on(async {
        let limit = std::time::Duration::from_secs(60);
        tokio::time::timeout(limit, conversation(&socket, &mut said)).await
    });
    assert!(matches!(result, Ok(Ok(()))), "on {}: {result:?} after\n{said}", engine.name());
    said
}

fn container(script: &str) -> ContainerCreateBody {
    let cmd = ["sh", "-c", script].map(str::to_owned).to_vec();
    ContainerCreateBody { image: Some("busybox".into()), cmd: Some(cmd), ..Default::default() }
}

async fn texts(
    stream: impl Stream<Item = Result<LogOutput, bollard::errors::Error>>,
) -> Result<(String, String), Failed> {
    let (mut out, mut err) = (String::new(), String::new());
    let mut stream = pin!(stream);
    while let Some(part) = stream.next().await {
        let part = part?;
        if matches!(part, LogOutput::StdErr { .. }) { &mut err } else { &mut out }.push_str(&part.to_string());
    }
    Ok((out, err))
}

fn code<T>(result: Result<T, bollard::errors::Error>) -> String {
    match result {
        Err(bollard::errors::Error::DockerResponseServerError { status_code, .. }) => status_code.to_string(),
        Err(other) => other.to_string(),
        Ok(_) => "fine".into(),
    }
}

async fn conversation(socket: &str, said: &mut String) -> Result<(), Failed> {
    let docker = Docker::connect_with_unix(socket, 60, API_DEFAULT_VERSION)?.negotiate_version().await?;
    writeln!(said, "{} {:?}", docker.ping().await?, docker.version().await?.os)?;
    let name = |name: &str| Some(CreateContainerOptionsBuilder::new().name(name).build());
    let forced = || Some(RemoveContainerOptionsBuilder::new().force(true).v(true).build());

    let mut web = container("trap 'exit 4' TERM; echo ready; echo err >&2; while :; do usleep 20000; done");
    web.labels = Some(HashMap::from([("a".into(), "b".into())]));
    web.host_config =
        Some(HostConfig { memory: Some(67_108_864), binds: Some(vec!["vol:/v".into()]), ..Default::default() });
    docker.create_container(name("web"), web.clone()).await?;
    writeln!(said, "taken: {}", code(docker.create_container(name("web"), web).await))?;
    docker.start_container("web", None).await?;
    writeln!(said, "again: {}", code(docker.start_container("web", None).await))?;
    let seen = docker.inspect_container("web", None::<InspectContainerOptions>).await?;
    let state = seen.state.and_then(|state| state.status);
    writeln!(said, "{:?} {state:?} {:?}", seen.name, seen.host_config.and_then(|host| host.memory))?;
    let filters = HashMap::from([("label".to_owned(), vec!["a=b".to_owned()])]);
    let listed = docker.list_containers(Some(ListContainersOptionsBuilder::new().filters(&filters).build())).await?;
    writeln!(said, "{:?}", listed.iter().map(|one| one.names.clone()).collect::<Vec<_>>())?;
    for (script, input) in [("echo in; echo e >&2; exit 6", None), ("cat; exit 2", Some("typed\n"))] {
        let cmd = Some(vec!["sh", "-c", script]);
        let (attach_stdin, both) = (Some(input.is_some()), Some(true));
        let options =
            CreateExecOptions { cmd, attach_stdin, attach_stdout: both, attach_stderr: both, ..Default::default() };
        let exec = docker.create_exec("web", options).await?.id;
        let StartExecResults::Attached { output, input: mut pipe } =
            docker.start_exec(&exec, None::<StartExecOptions>).await?
        else {
            return Err("detached".into());
        };
        if let Some(input) = input {
            pipe.write_all(input.as_bytes()).await?;
            pipe.shutdown().await?;
        }
        writeln!(said, "exec: {:?} {:?}", texts(output).await?, docker.inspect_exec(&exec).await?.exit_code)?;
    }
    let stats = StatsOptionsBuilder::new().stream(false).build();
    let stats: Vec<_> = docker.stats("web", Some(stats)).try_collect().await?;
    writeln!(said, "stats: {:?}", stats[0].memory_stats.as_ref().and_then(|memory| memory.limit))?;
    docker.pause_container("web").await?;
    writeln!(said, "paused twice: {}", code(docker.pause_container("web").await))?;
    docker.unpause_container("web").await?;
    docker.stop_container("web", Some(StopContainerOptionsBuilder::new().t(10).build())).await?;
    let waited: Vec<_> = docker.wait_container("web", None::<WaitContainerOptions>).collect().await;
    writeln!(said, "waited: {}", format!("{waited:?}").contains('4'))?;
    let logs = LogsOptionsBuilder::new().stdout(true).stderr(true).build();
    writeln!(said, "logs: {:?}", texts(docker.logs("web", Some(logs))).await?)?;
    docker.remove_container("web", None).await?;
    writeln!(said, "gone: {}", code(docker.inspect_container("web", None::<InspectContainerOptions>).await))?;

    let mut cat = container("cat");
    (cat.open_stdin, cat.stdin_once) = (Some(true), Some(true));
    docker.create_container(name("cat"), cat).await?;
    let options = AttachContainerOptionsBuilder::new().stdin(true).stdout(true).stream(true).build();
    let mut attached = docker.attach_container("cat", Some(options)).await?;
    docker.start_container("cat", None).await?;
    attached.input.write_all(b"attached\n").await?;
    attached.input.shutdown().await?;
    writeln!(said, "attach: {:?}", texts(attached.output).await?)?;

    let mut archive = tar::Builder::new(Vec::new());
    add_file(&mut archive, "file", b"uploaded\n", 0o600);
    let archive = archive.into_inner()?;
    let options = UploadToContainerOptionsBuilder::new().path("/tmp").build();
    docker.upload_to_container("cat", Some(options), body_full(archive.into())).await?;
    let options = DownloadFromContainerOptionsBuilder::new().path("/tmp/file").build();
    let parts: Vec<_> = docker.download_from_container("cat", Some(options)).try_collect().await?;
    writeln!(said, "archive: {}", String::from_utf8_lossy(&parts.concat()).contains("uploaded"))?;
    writeln!(said, "changes: {}", docker.container_changes("cat").await?.map_or(0, |changes| changes.len()))?;
    docker.remove_container("cat", forced()).await?;

    let volume = VolumeCreateRequest { name: Some("made".into()), ..Default::default() };
    writeln!(said, "volume: {}", docker.create_volume(volume).await?.name)?;
    docker.remove_volume("made", None::<RemoveVolumeOptions>).await?;
    writeln!(said, "no volume: {}", code(docker.inspect_volume("made").await))?;
    let network = NetworkCreateRequest { name: "net".into(), ..Default::default() };
    docker.create_network(network).await?;
    writeln!(said, "network: {:?}", docker.inspect_network("net", None).await?.driver)?;
    docker.remove_network("net").await?;
    writeln!(said, "no network: {}", code(docker.inspect_network("net", None).await))?;
    let image = docker.inspect_image("busybox").await?;
    writeln!(said, "image: {:?} {:?}", image.repo_tags, image.config.and_then(|config| config.cmd))?;
    writeln!(said, "no image: {}", code(docker.inspect_image("nowhere").await))?;

    let filters = HashMap::from([("container".to_owned(), vec!["seen".to_owned()])]);
    docker.create_container(name("seen"), container("true")).await?;
    let options = EventsOptionsBuilder::new().filters(&filters).since("1").build();
    let mut events = pin!(docker.events(Some(options)));
    let first = events.next().await.ok_or("no event")??;
    writeln!(said, "event: {:?} {:?}", first.typ, first.action)?;
    docker.remove_container("seen", forced()).await?;
    writeln!(
        said,
        "left: {}",
        docker.list_containers(Some(ListContainersOptionsBuilder::new().all(true).build())).await?.len()
    )?;
    Ok(())
}
