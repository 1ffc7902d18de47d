//! A build by BuildKit's protocol: Control.Solve over `POST /grpc`, Status for its progress, and a session for what it needs.

use super::failure::{Source, excerpts, words};
use super::inputs::Inputs;
use super::questions::{self, Asked};
use super::request::{self, Request, Surroundings};
use super::session::{
    self, Offer,
    agents::{Agents, Own},
};
use super::specs::{self, Cache, Destination, Output};
use crate::args::build::BuildArgs;
use crate::client::{Call, Client, ClientError, call::escape};
use crate::commands::App;
use crate::config::{self, own_variable};
use crate::exit::{Failure, Outcome};
use crate::output::build::{Mode, Progress};
use crate::output::{self, progress};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use proto::moby::buildkit::v1::control_client::ControlClient;
use proto::moby::buildkit::v1::frontend::llb_bridge_client::LlbBridgeClient;
use proto::moby::buildkit::v1::{
    CacheOptions, CacheOptionsEntry, Exporter, InfoRequest, ListWorkersRequest, SolveRequest, SolveResponse,
    StatusRequest, StatusResponse,
};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::sync::Mutex;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, Streaming};

/// What a frontend is expected to know.
pub const CAPS: &str = "frontend.caps";
/// The address of this machine for containers, among a worker's labels.
const GATEWAY: &str = "org.mobyproject.buildkit.worker.moby.host-gateway-ip";
/// The most that a builder says at once.
const LARGEST: usize = 32 << 20;
/// From one frame to the next.
const FRAME: Duration = Duration::from_millis(100);
/// So long the end of the progress is waited for after the end of the build.
const TAIL: Duration = Duration::from_secs(3);

/// The builder's services on one connection.
#[derive(Debug, Clone)]
pub struct Grpc {
    channel: Channel,
}

impl Grpc {
    /// Opens `POST /grpc`.
    pub async fn open(client: &Client) -> Outcome<Self> {
        let io = match client.upgrade(Call::post("/grpc").unversioned(), "h2c").await {
            Err(error) if error.is_not_found() || error.is_refusal() => {
                let text = format!("this engine has no BuildKit: {error}; DOCKER_BUILDKIT=0 builds without it");
                return Err(Failure::Refused(format!("ERROR: {text}")));
            }
            other => other?,
        };
        let io = Mutex::new(Some(io));
        // There is one connection: when it breaks, the build is over.
        let connector = tower::service_fn(move |_: hyper::Uri| {
            let io = io.lock().ok().and_then(|mut io| io.take());
            async { io.ok_or_else(|| std::io::Error::from(std::io::ErrorKind::ConnectionAborted)) }
        });
        let endpoint = Endpoint::from_static("http://localhost");
        let channel = endpoint.connect_with_connector(connector).await;
        let channel = channel.map_err(|error| Failure::Refused(format!("ERROR: connect to BuildKit: {error}")))?;
        Ok(Self { channel })
    }

    /// Builds.
    pub fn control(&self) -> ControlClient<Channel> {
        ControlClient::new(self.channel.clone()).max_decoding_message_size(LARGEST)
    }

    /// For those that are a frontend themselves.
    pub fn bridge(&self) -> LlbBridgeClient<Channel> {
        LlbBridgeClient::new(self.channel.clone()).max_decoding_message_size(LARGEST)
    }
}

fn refused(text: impl std::fmt::Display) -> Failure {
    Failure::Refused(format!("ERROR: {text}"))
}

/// Runs `build`; who is interrupted leaves nothing behind.
pub async fn run(app: &App, args: &BuildArgs) -> Outcome {
    let failed = |cause| Failure::io("watch for signals", cause);
    let mut interrupts = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut terminates = signal(SignalKind::terminate()).map_err(failed)?;
    tokio::select! {
        // While it builds, this watches for the same signals, and has more to say.
        biased;
        outcome = build(app, args) => outcome,
        _ = interrupts.recv() => Err(canceled()),
        _ = terminates.recv() => Err(canceled()),
    }
}

async fn build(app: &App, args: &BuildArgs) -> Outcome {
    let proxies = app.config.proxy_variables();
    let around = Surroundings {
        own: &own_variable,
        proxies: &proxies,
        platform: app.config.default_platform.as_deref(),
        terminal: crate::terminal::stdout_is_terminal(),
    };
    let mut request = request::plan(args, &around).map_err(refused)?;
    let mode = match (args.quiet, &args.progress) {
        (true, Some(name)) if name != "quiet" && name != "none" => {
            return Err(refused(format!("progress={name} and quiet cannot be used together")));
        }
        (true, _) => Mode::Quiet,
        (false, Some(name)) => Mode::of(name)?,
        (false, None) => Mode::of(config::variable("BUILDKIT_PROGRESS").as_deref().unwrap_or_default())?,
    };
    let mut inputs = Inputs::of(args)?;
    request.attrs.append(&mut inputs.attrs);
    // Agents that were started end when this function does.
    let (offer, _agents) = offer(app, args, &mut inputs, &request)?;
    let client = app.client().await?;
    let grpc = Grpc::open(&client).await?;
    resolve_gateway(&grpc, &mut request).await?;
    let failed = |cause| Failure::io("name the build", cause);
    let session_id = super::random_id().map_err(failed)?;
    let session = session::open(&client, session_id, &inputs.shared_key, offer).await?;
    let build = super::random_id().map_err(failed)?;
    if let Some(question) = &request.question {
        let asked = Asked { build, session: session.id.clone(), attrs: request.attrs.clone() };
        let answer = questions::ask(&grpc, question, asked).await;
        let metadata = answer.map_err(|status| {
            eprint(&excerpts(&status));
            questions::failed(question, &status)
        })?;
        return questions::print(question, &metadata);
    }
    if request.outputs.len() > 1 {
        check_several_outputs(&grpc).await?;
    }
    let pushes: Vec<Output> = request.outputs.iter().filter(|output| output.pushes()).cloned().collect();
    let engine_pushes = pushes.is_empty() || has_content_store(&client).await?;
    let exporters = request.outputs.iter().map(|output| exporter(output, engine_pushes)).collect();
    let solve = solve_request(&build, &session.id, &request, exporters);
    let response = watched(&grpc, solve, mode, app.config.globals().debug).await?;
    drop(session);
    let response: BTreeMap<String, String> = response.exporter_response.into_iter().collect();
    if !engine_pushes {
        for name in pushes.iter().filter_map(|output| output.attrs.get("name")).flat_map(|names| names.split(',')) {
            push(app, &client, name, args.quiet).await?;
        }
    }
    finish(args, &build, &response)
}

/// What the builder may ask for.
fn offer(app: &App, args: &BuildArgs, inputs: &mut Inputs, request: &Request) -> Outcome<(Offer, Vec<Own>)> {
    let has_variable = |name: &str| own_variable(name).is_some();
    let mut secrets = BTreeMap::new();
    for text in &args.secret {
        let (id, source) = specs::secret(text, &has_variable).map_err(refused)?;
        if let specs::SecretSource::File(path) = &source
            && let Err(cause) = std::fs::metadata(path)
        {
            let cause = crate::options::Plain(cause);
            return Err(refused(format!("failed to stat {}: {cause}", path.display())));
        }
        secrets.insert(id, source);
    }
    let agents: Vec<_> = args.ssh.iter().map(|text| specs::ssh(text)).collect();
    let (agents, started) = Agents::of(&agents, &own_variable).map_err(refused)?;
    let outputs = request.outputs.iter().map(|output| output.destination.clone()).enumerate();
    let offer = Offer {
        folders: std::mem::take(&mut inputs.folders),
        results: outputs.filter(|(_, destination)| *destination != Destination::Engine).collect(),
        credentials: app.config.credentials.clone(),
        secrets,
        agents,
        upload: inputs.upload.take(),
    };
    Ok((offer, started))
}

/// `--add-host NAME:host-gateway`: what that is, the builder's worker knows.
async fn resolve_gateway(grpc: &Grpc, request: &mut Request) -> Outcome {
    let Some(hosts) = request.attrs.get_mut("add-hosts").filter(|hosts| hosts.contains("=host-gateway")) else {
        return Ok(());
    };
    let workers = grpc.control().list_workers(ListWorkersRequest::default()).await;
    let workers = workers.map_err(|status| refused(words(&status)))?.into_inner().record;
    let gateway = workers.iter().find_map(|worker| worker.labels.get(GATEWAY)).filter(|text| !text.is_empty());
    let gateway = gateway.ok_or_else(|| refused("unable to derive the IP value for host-gateway"))?;
    let resolved = hosts.split(',').map(|host| match host.strip_suffix("=host-gateway") {
        Some(name) => format!("{name}={gateway}"),
        None => host.to_owned(),
    });
    *hosts = resolved.collect::<Vec<_>>().join(",");
    Ok(())
}

/// Builders from before 0.13 know one output, and would leave the others out.
async fn check_several_outputs(grpc: &Grpc) -> Outcome {
    let old = match grpc.control().info(InfoRequest {}).await {
        Ok(info) => info.into_inner().buildkit_version.is_some_and(|version| {
            version.package == "github.com/moby/buildkit"
                && ["v0.11.", "v0.12."].iter().any(|old| version.version.starts_with(old))
        }),
        Err(status) if status.code() == Code::Unimplemented => true,
        Err(status) => return Err(refused(words(&status))),
    };
    match old {
        true => Err(refused(
            "multiple outputs currently unsupported by the current BuildKit daemon, please upgrade to version v0.13+ or use a single output",
        )),
        false => Ok(()),
    }
}

/// Whether images are kept as they are pushed; an engine without pushes them by its own endpoint only.
async fn has_content_store(client: &Client) -> Result<bool, ClientError> {
    let info: Value = client.send(Call::get("/info")).await?.json().await?;
    let known = json!(["driver-type", "io.containerd.snapshotter.v1"]);
    Ok(info["DriverStatus"].as_array().is_some_and(|all| all.contains(&known)))
}

/// An output as the engine knows it: its own store is the exporter "moby".
fn exporter(output: &Output, engine_pushes: bool) -> Exporter {
    let mut attrs: HashMap<String, String> = output.attrs.clone().into_iter().collect();
    let kind = match (output.kind.as_str(), &output.destination) {
        ("image", _) if output.pushes() && engine_pushes => "image",
        ("image", _) | ("docker", Destination::Engine) => {
            attrs.remove("push");
            "moby"
        }
        (kind, _) => kind,
    };
    Exporter { r#type: kind.to_owned(), attrs }
}

fn solve_request(build: &str, session: &str, request: &Request, exporters: Vec<Exporter>) -> SolveRequest {
    let entry = |cache: &Cache| CacheOptionsEntry {
        r#type: cache.kind.clone(),
        attrs: cache.attrs.clone().into_iter().collect(),
    };
    let mut attrs: HashMap<String, String> = request.attrs.clone().into_iter().collect();
    if !request.imports.is_empty() {
        let all: Vec<Value> =
            request.imports.iter().map(|cache| json!({ "Type": cache.kind, "Attrs": cache.attrs })).collect();
        attrs.insert("cache-imports".to_owned(), Value::Array(all).to_string());
    }
    // Builders from before 0.13 read the first output here.
    let first = exporters.first().cloned().unwrap_or_default();
    SolveRequest {
        r#ref: build.to_owned(),
        exporter_deprecated: first.r#type,
        exporter_attrs_deprecated: first.attrs,
        session: session.to_owned(),
        frontend: "dockerfile.v0".to_owned(),
        frontend_attrs: attrs,
        cache: Some(CacheOptions {
            exports: request.exports.iter().map(entry).collect(),
            imports: request.imports.iter().map(entry).collect(),
            ..CacheOptions::default()
        }),
        entitlements: request.entitlements.clone(),
        exporters,
        ..SolveRequest::default()
    }
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Builds, and shows how.
async fn watched(grpc: &Grpc, request: SolveRequest, mode: Mode, debug: bool) -> Outcome<SolveResponse> {
    let failed = |cause| Failure::io("watch for signals", cause);
    let mut interrupts = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut terminates = signal(SignalKind::terminate()).map_err(failed)?;
    let mut resizes = signal(SignalKind::window_change()).map_err(failed)?;
    let mut progress = Progress::new(mode);
    let (mut control, mut watcher) = (grpc.control(), grpc.control());
    let status = StatusRequest { r#ref: request.r#ref.clone() };
    let solve = async move { control.solve(request).await.map(tonic::Response::into_inner) };
    let status = async move { watcher.status(status).await.map(tonic::Response::into_inner) };
    tokio::pin!(solve, status);
    let mut stream: Option<Streaming<StatusResponse>> = None;
    let (mut asked, mut watching) = (false, true);
    let mut result: Option<Result<SolveResponse, Status>> = None;
    let mut end: Option<Instant> = None;
    let mut frames = tokio::time::interval(FRAME);
    frames.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    while result.is_none() || watching {
        tokio::select! {
            // What is said of the build comes before its end.
            biased;
            _ = interrupts.recv() => break,
            _ = terminates.recv() => break,
            begun = &mut status, if !asked => {
                asked = true;
                watching = begun.is_ok();
                stream = begun.ok();
            }
            message = next(&mut stream), if stream.is_some() => match message {
                Some(response) => progress.update(&response, now())?,
                None => {
                    stream = None;
                    watching = false;
                }
            },
            solved = &mut solve, if result.is_none() => {
                result = Some(solved);
                end = Some(Instant::now() + TAIL);
            }
            () = tokio::time::sleep_until(end.unwrap_or_else(Instant::now)), if end.is_some() => watching = false,
            _ = frames.tick() => progress.draw(now())?,
            _ = resizes.recv() => progress.resize(now())?,
        }
    }
    progress.finish(now())?;
    if matches!(mode, Mode::Tty | Mode::Plain) {
        eprint(&warnings(progress.build().warnings(), debug));
    }
    match result {
        Some(Ok(response)) => Ok(response),
        Some(Err(status)) => {
            eprint(&excerpts(&status));
            Err(refused(format!("failed to build: failed to solve: {}", words(&status))))
        }
        None => Err(canceled()),
    }
}

async fn next(stream: &mut Option<Streaming<StatusResponse>>) -> Option<StatusResponse> {
    match stream {
        // What breaks the stream breaks the build, and is said of that.
        Some(stream) => stream.message().await.ok().flatten(),
        None => std::future::pending().await,
    }
}

/// The builder takes the end of the call for the wish that it is.
fn canceled() -> Failure {
    Failure::Said { text: "ERROR: failed to build: failed to solve: Canceled: context canceled".to_owned(), code: 130 }
}

fn eprint(text: &str) {
    if !text.is_empty() {
        output::note(text.trim_end_matches('\n'));
    }
}

/// What the Dockerfile is warned of; with --debug with places and reasons.
fn warnings(all: &[proto::moby::buildkit::v1::VertexWarning], debug: bool) -> String {
    if all.is_empty() {
        return String::new();
    }
    let count = if all.len() == 1 { "1 warning found".to_owned() } else { format!("{} warnings found", all.len()) };
    let hint = if debug { "" } else { " (use --debug to expand)" };
    let mut text = format!("\n {count}{hint}:\n");
    for warning in all {
        let _ = writeln!(text, " - {}", String::from_utf8_lossy(&warning.short));
        if !debug {
            continue;
        }
        warning.detail.iter().for_each(|line| _ = writeln!(text, "{}", String::from_utf8_lossy(line)));
        if !warning.url.is_empty() {
            let _ = writeln!(text, "More info: {}", warning.url);
        }
        if let Some(info) = &warning.info {
            text.push_str(&Source::of(info, &warning.ranges).excerpt());
        }
        text.push('\n');
    }
    text
}

/// Uploads an image as `push` does.
async fn push(app: &App, client: &Client, name: &str, quiet: bool) -> Outcome {
    let image = name.parse::<proto::image_ref::ImageRef>()?.with_default_tag();
    let call = Call::post(format!("/images/{}/push", escape(&image.familiar_repository(), true)))
        .query("tag", image.tag().unwrap_or("latest"))
        .header("x-registry-auth", app.config.credentials.header(image.domain()));
    let reply = client.send(call).await?;
    match quiet {
        true => progress::drain(reply).await,
        false => progress::show(reply, progress::Sink::Stderr).await,
    }
}

/// What is left to do with what the builder says of the result.
fn finish(args: &BuildArgs, build: &str, response: &BTreeMap<String, String>) -> Outcome {
    let digest = response.get("containerimage.digest").map(String::as_str).unwrap_or_default();
    let id = response.get("containerimage.config.digest").map_or(digest, String::as_str);
    let write = |path: &str, text: &str| {
        std::fs::write(path, text).map_err(|cause| Failure::io(format!("write {path}"), cause))
    };
    if let Some(path) = args.iidfile.as_deref().filter(|path| !path.is_empty()) {
        if id.is_empty() {
            return Err(refused(format!("cannot write {path} because no image was built")));
        }
        write(path, id)?;
    }
    if let Some(path) = args.metadata_file.as_deref().filter(|path| !path.is_empty()) {
        write(path, &metadata(build, response))?;
    }
    if args.quiet && !id.is_empty() {
        output::print_line(id)?;
    }
    Ok(())
}

/// The result's facts as JSON; those that are documents themselves are put in as such.
fn metadata(build: &str, response: &BTreeMap<String, String>) -> String {
    let document = |text: &String| {
        let bytes = STANDARD.decode(text).ok()?;
        serde_json::from_slice::<Value>(&bytes).ok().filter(Value::is_object)
    };
    let mut all: Map<String, Value> =
        response.iter().map(|(key, text)| (key.clone(), document(text).unwrap_or_else(|| json!(text)))).collect();
    all.insert("buildx.build.ref".to_owned(), json!(format!("default/default/{build}")));
    serde_json::to_string_pretty(&Value::Object(all)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::moby::buildkit::v1::VertexWarning;

    fn output(kind: &str, attrs: &[(&str, &str)], destination: Destination) -> Output {
        let attrs = attrs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Output { kind: kind.into(), attrs, destination }
    }

    #[test]
    fn exporters() {
        use Destination::{Engine, Stdout};
        for (given, pushes, want) in [
            (output("image", &[("name", "a")], Engine), true, "moby [(\"name\", \"a\")]"),
            (output("image", &[("push", "true")], Engine), true, "image [(\"push\", \"true\")]"),
            (output("image", &[("push", "true")], Engine), false, "moby []"),
            (output("docker", &[], Engine), true, "moby []"),
            (output("docker", &[], Stdout), true, "docker []"),
            (output("oci", &[], Stdout), true, "oci []"),
        ] {
            let exporter = exporter(&given, pushes);
            let attrs: Vec<_> = exporter.attrs.iter().collect();
            assert_eq!(format!("{} {attrs:?}", exporter.r#type), want, "{given:?}");
        }
    }

    #[test]
    fn requests() {
        let request = Request {
            attrs: [("target".to_owned(), "t".to_owned())].into(),
            imports: specs::caches(&["a".to_owned()]).unwrap(),
            ..Request::default()
        };
        let exporters = vec![Exporter { r#type: "moby".into(), attrs: HashMap::new() }, Exporter::default()];
        let solve = solve_request("b", "s", &request, exporters);
        assert_eq!(solve.frontend_attrs["cache-imports"], r#"[{"Attrs":{"ref":"a"},"Type":"registry"}]"#);
        assert_eq!(solve.cache.unwrap().imports[0].attrs["ref"], "a");
        assert_eq!((solve.exporter_deprecated.as_str(), solve.exporters.len()), ("moby", 2));
    }

    #[test]
    fn facts_of_a_result() {
        let descriptor = STANDARD.encode(r#"{"size":1}"#);
        let response: BTreeMap<String, String> =
            [("containerimage.descriptor".to_owned(), descriptor), ("image.name".to_owned(), "a".to_owned())].into();
        assert_eq!(
            metadata("x", &response),
            "{\n  \"buildx.build.ref\": \"default/default/x\",\n  \"containerimage.descriptor\": {\n    \"size\": 1\n  },\n  \"image.name\": \"a\"\n}"
        );
    }

    #[test]
    fn warnings_of_a_dockerfile() {
        let warning =
            VertexWarning { short: b"Rule: text (line 1)".to_vec(), url: "u".into(), ..VertexWarning::default() };
        assert_eq!(warnings(&[], false), "");
        assert_eq!(
            warnings(std::slice::from_ref(&warning), false),
            "\n 1 warning found (use --debug to expand):\n - Rule: text (line 1)\n"
        );
        assert_eq!(warnings(&[warning.clone(), warning], true).lines().nth(3), Some("More info: u"));
    }
}
