//! From flags to what the builder is asked: attributes of the Dockerfile frontend, exporters, caches and entitlements. Pure.

use super::specs::{self, Attrs, Cache, Destination, Output, Question, SpecError};
use crate::args::build::BuildArgs;

/// What is not the flags': the environment, config.json.
pub struct Surroundings<'a> {
    /// A variable of the environment.
    pub own: &'a dyn Fn(&str) -> Option<String>,
    /// Variables for the proxies that steps are to use.
    pub proxies: &'a [(String, String)],
    /// DOCKER_DEFAULT_PLATFORM
    pub platform: Option<&'a str>,
    /// Standard output is a terminal.
    pub terminal: bool,
}

/// What the builder is asked.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Request {
    /// Attributes of the frontend.
    pub attrs: Attrs,
    /// Where results go.
    pub outputs: Vec<Output>,
    /// Caches to build from.
    pub imports: Vec<Cache>,
    /// Caches to export to.
    pub exports: Vec<Cache>,
    /// What steps may do beyond the usual.
    pub entitlements: Vec<String>,
    /// What is asked of the Dockerfile instead.
    pub question: Option<Question>,
}

/// Flags that can't be carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// A flag of the classic builder.
    #[error("{0} is only known to the classic builder: set DOCKER_BUILDKIT=0 for that one, or leave the flag out")]
    Classic(&'static str),
    /// A flag's value.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// `--network`
    #[error("network mode {0:?} not supported by buildkit: default, none or host")]
    Network(String),
    /// Two flags that contradict one another.
    #[error("--no-cache and --no-cache-filter cannot currently be used together")]
    NoCache,
    /// A push without a name.
    #[error("tag is needed when pushing to registry")]
    Tag,
    /// An index in the form that can't hold one.
    #[error("docker exporter does not support exporting manifest lists, use the oci exporter instead")]
    Index,
    /// An image as a folder.
    #[error("tar=false is not supported for {0} exporter: unpack the archive")]
    Layout(String),
    /// A cache in a folder of the client.
    #[error("a cache of type=local is not supported: use type=registry or type=inline")]
    LocalCache,
}

/// What the flags ask for.
pub fn plan(args: &BuildArgs, around: &Surroundings<'_>) -> Result<Request, RequestError> {
    refuse_classic_flags(args)?;
    let question = specs::question(&args.call, args.check)?;
    let mut attrs = Attrs::new();
    for (name, value) in variables(args, around) {
        attrs.insert(format!("build-arg:{name}"), value);
    }
    for text in &args.label {
        let (key, value) = text.split_once('=').unwrap_or((text, ""));
        attrs.insert(format!("label:{key}"), value.to_owned());
    }
    let mut set = |key: &str, value: String| _ = attrs.insert(key.to_owned(), value);
    // Images of this engine are taken as they are, unless newer ones are asked for.
    set("image-resolve-mode", if args.pull { "pull" } else { "local" }.to_owned());
    match (args.no_cache, args.no_cache_filter.is_empty()) {
        (true, false) => return Err(RequestError::NoCache),
        (true, true) => set("no-cache", String::new()),
        (false, false) => set("no-cache", args.no_cache_filter.join(",")),
        (false, true) => {}
    }
    let platforms: Vec<&str> = match args.platform.as_slice() {
        [] => around.platform.into_iter().collect(),
        given => given.iter().map(String::as_str).collect(),
    };
    let platforms: Vec<&str> = platforms.into_iter().filter(|platform| !platform.is_empty()).collect();
    if !platforms.is_empty() {
        set("platform", platforms.join(","));
    }
    let texts = [("target", &args.target), ("cgroup-parent", &args.cgroup_parent)];
    for (key, text) in texts {
        if let Some(text) = text.as_ref().filter(|text| !text.is_empty()) {
            set(key, text.clone());
        }
    }
    let mut entitlements = args.allow.clone();
    match args.network.as_str() {
        "" | "default" => {}
        "none" => set("force-network-mode", "none".to_owned()),
        "host" => {
            set("force-network-mode", "host".to_owned());
            entitlements.push("network.host".to_owned());
        }
        other => return Err(RequestError::Network(other.to_owned())),
    }
    if !args.add_host.is_empty() {
        let host = |text: &String| text.split_once(':').map(|(name, address)| format!("{name}={address}"));
        set("add-hosts", args.add_host.iter().filter_map(host).collect::<Vec<_>>().join(","));
    }
    if let Some(size) = args.shm_size.filter(|size| size.0 > 0) {
        set("shm-size", size.0.to_string());
    }
    if !args.ulimit.is_empty() {
        let limits = args.ulimit.iter().map(|limit| format!("{}={}:{}", limit.name, limit.soft, limit.hard));
        set("ulimit", limits.collect::<Vec<_>>().join(","));
    }
    let attestations = specs::attestations(&args.attest, args.provenance.as_deref(), args.sbom.as_deref())?;
    let is_index = platforms.len() > 1 || !attestations.is_empty();
    for (kind, value) in attestations {
        set(&format!("attest:{kind}"), value);
    }
    let imports = specs::caches(&args.cache_from)?;
    let mut exports = specs::caches(&args.cache_to)?;
    if attrs.get("build-arg:BUILDKIT_INLINE_CACHE").is_some_and(|v| crate::args::values::boolean(v).unwrap_or(false)) {
        exports.push(Cache { kind: "inline".to_owned(), attrs: Attrs::new() });
    }
    if imports.iter().chain(&exports).any(|cache| cache.kind == "local") {
        return Err(RequestError::LocalCache);
    }
    let outputs = if question.is_some() { Vec::new() } else { outputs(args, around, is_index)? };
    Ok(Request { attrs, outputs, imports, exports, entitlements, question })
}

/// Variables for the Dockerfile: the proxies first, then the flags. A bare name stands for the client's own value.
fn variables(args: &BuildArgs, around: &Surroundings<'_>) -> Attrs {
    let mut all: Attrs = around.proxies.iter().cloned().collect();
    if let Some(epoch) = (around.own)("SOURCE_DATE_EPOCH").filter(|epoch| !epoch.is_empty()) {
        all.insert("SOURCE_DATE_EPOCH".to_owned(), epoch);
    }
    for text in &args.build_arg {
        match text.split_once('=') {
            Some((name, value)) => _ = all.insert(name.to_owned(), value.to_owned()),
            None => all.extend((around.own)(text).map(|value| (text.clone(), value))),
        }
    }
    all
}

fn outputs(args: &BuildArgs, around: &Surroundings<'_>, is_index: bool) -> Result<Vec<Output>, RequestError> {
    let mut all = specs::outputs(&args.output, args.push, args.load, around.terminal)?;
    if all.is_empty() {
        all.push(Output { kind: "image".to_owned(), attrs: Attrs::new(), destination: Destination::Engine });
    }
    all.retain(|output| output.kind != "cacheonly");
    let annotations = specs::annotations(&args.annotation)?;
    for output in &mut all {
        let is_image = matches!(output.kind.as_str(), "image" | "docker" | "oci");
        if !is_image {
            continue;
        }
        if output.kind == "docker" && output.destination != Destination::Engine && is_index {
            return Err(RequestError::Index);
        }
        if matches!(output.destination, Destination::Folder(_)) {
            return Err(RequestError::Layout(output.kind.clone()));
        }
        if !args.tag.is_empty() {
            output.attrs.insert("name".to_owned(), args.tag.join(","));
        }
        if output.pushes() && output.attrs.get("name").is_none_or(String::is_empty) {
            return Err(RequestError::Tag);
        }
        output.attrs.extend(annotations.clone());
    }
    Ok(all)
}

/// What BuildKit has no word for. --rm and --force-rm are what it does anyway: it has no intermediate containers.
fn refuse_classic_flags(args: &BuildArgs) -> Result<(), RequestError> {
    let given = [
        ("--compress", args.compress),
        ("--cpu-period", args.cpu_period.is_some()),
        ("--cpu-quota", args.cpu_quota.is_some()),
        ("--cpu-shares", args.cpu_shares.is_some()),
        ("--cpuset-cpus", args.cpuset_cpus.is_some()),
        ("--cpuset-mems", args.cpuset_mems.is_some()),
        ("--isolation", args.isolation.as_ref().is_some_and(|name| !name.is_empty() && name != "default")),
        ("--memory", args.memory.is_some()),
        ("--memory-swap", args.memory_swap.is_some()),
        ("--security-opt", !args.security_opt.is_empty()),
        ("--squash", args.squash),
    ];
    given.iter().find(|(_, given)| *given).map_or(Ok(()), |(flag, _)| Err(RequestError::Classic(flag)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::values::ByteSize;

    fn planned(args: BuildArgs) -> Result<Request, RequestError> {
        let own = |name: &str| (name == "HOME").then(|| "/h".to_owned());
        let proxies = [("HTTP_PROXY".to_owned(), "p".to_owned())];
        plan(&args, &Surroundings { own: &own, proxies: &proxies, platform: None, terminal: false })
    }

    fn of(request: &Request, key: &str) -> Option<String> {
        request.attrs.get(key).cloned()
    }

    #[test]
    fn flags_become_attributes() {
        let request = planned(BuildArgs {
            tag: vec!["a:1".into(), "b".into()],
            build_arg: vec!["A=b=c".into(), "HOME".into(), "NONE".into(), "HTTP_PROXY=q".into()],
            label: vec!["k=v".into(), "bare".into()],
            no_cache_filter: vec!["one".into(), "two".into()],
            platform: vec!["linux/amd64".into(), "linux/arm64".into()],
            pull: true,
            network: "host".into(),
            target: Some("t".into()),
            cgroup_parent: Some("cg".into()),
            shm_size: Some(ByteSize(64)),
            ulimit: vec![crate::options::limits::parse("nofile=1:2").unwrap()],
            add_host: vec!["h:1.2.3.4".into(), "six:::1".into(), "g:host-gateway".into()],
            allow: vec!["security.insecure".into()],
            provenance: Some("mode=max".into()),
            annotation: vec!["index:x=y".into()],
            ..BuildArgs::default()
        })
        .unwrap();
        for (key, value) in [
            ("build-arg:A", Some("b=c")),
            ("build-arg:HOME", Some("/h")),
            ("build-arg:NONE", None),
            ("build-arg:HTTP_PROXY", Some("q")),
            ("label:k", Some("v")),
            ("label:bare", Some("")),
            ("no-cache", Some("one,two")),
            ("platform", Some("linux/amd64,linux/arm64")),
            ("image-resolve-mode", Some("pull")),
            ("force-network-mode", Some("host")),
            ("target", Some("t")),
            ("cgroup-parent", Some("cg")),
            ("shm-size", Some("64")),
            ("ulimit", Some("nofile=1:2")),
            ("add-hosts", Some("h=1.2.3.4,six=::1,g=host-gateway")),
            ("attest:provenance", Some("mode=max")),
        ] {
            assert_eq!(of(&request, key).as_deref(), value, "{key}");
        }
        assert_eq!(request.entitlements, ["security.insecure", "network.host"]);
        let [image] = request.outputs.as_slice() else { panic!("{:?}", request.outputs) };
        assert_eq!((image.kind.as_str(), image.attrs["name"].as_str()), ("image", "a:1,b"));
        assert_eq!(image.attrs["annotation-index.x"], "y");
    }

    #[test]
    fn what_cannot_be_asked() {
        let error = |args: BuildArgs| planned(args).unwrap_err().to_string();
        assert!(error(BuildArgs { memory: Some(ByteSize(1)), ..BuildArgs::default() }).starts_with("--memory is only"));
        assert!(error(BuildArgs { network: "net".into(), ..BuildArgs::default() }).contains("\"net\""));
        assert_eq!(error(BuildArgs { push: true, ..BuildArgs::default() }), "tag is needed when pushing to registry");
        let both = BuildArgs { no_cache: true, no_cache_filter: vec!["s".into()], ..BuildArgs::default() };
        assert_eq!(error(both), "--no-cache and --no-cache-filter cannot currently be used together");
        let list = BuildArgs {
            platform: vec!["linux/amd64".into(), "linux/arm64".into()],
            output: vec!["type=docker,dest=x.tar".into()],
            ..BuildArgs::default()
        };
        assert_eq!(error(list), RequestError::Index.to_string());
        let local = BuildArgs { cache_to: vec!["type=local,dest=x".into()], ..BuildArgs::default() };
        assert_eq!(error(local), RequestError::LocalCache.to_string());
    }

    #[test]
    fn caches_and_questions() {
        let args = BuildArgs {
            build_arg: vec!["BUILDKIT_INLINE_CACHE=1".into()],
            cache_from: vec!["a".into()],
            no_cache: true,
            ..BuildArgs::default()
        };
        let request = planned(args).unwrap();
        assert_eq!((request.exports[0].kind.as_str(), request.imports[0].attrs["ref"].as_str()), ("inline", "a"));
        assert_eq!(of(&request, "no-cache").as_deref(), Some(""));
        let question = planned(BuildArgs { check: true, ..BuildArgs::default() }).unwrap();
        assert!(question.outputs.is_empty() && question.question.unwrap().name == "lint");
        let cache = planned(BuildArgs { output: vec!["type=cacheonly".into()], ..BuildArgs::default() }).unwrap();
        assert!(cache.outputs.is_empty());
    }
}
