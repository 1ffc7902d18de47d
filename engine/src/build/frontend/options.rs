//! What a client asks of the frontend: BuildKit's names and forms.

use crate::{build::error::BuildError, images::platform::Platform};
use dockerfile::convert::Options;
use proto::{moby::buildkit::v1::CacheOptionsEntry, pb};
use serde::Deserialize;
use std::collections::{BTreeMap, HashMap};

/// The options, read.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Wishes {
    /// What the conversion needs to know, as far as it is the same for all platforms.
    pub common: Options,
    /// What is built for; empty: where it is built.
    pub platforms: Vec<pb::Platform>,
    /// Whether an index is made, even of one platform.
    pub multi_platform: bool,
    /// Name of the Dockerfile.
    pub filename: String,
    /// The context, if it isn't a folder of the client's.
    pub remote: Option<String>,
    /// Name of the client's folder with the Dockerfile.
    pub dockerfile_local: String,
    /// Whether the Dockerfile comes from there, whatever the context is.
    pub local_dockerfile: bool,
    /// Only this folder of a context that isn't the client's.
    pub subdir: Option<String>,
    /// Whether `.git` stays.
    pub keep_git: bool,
    /// `default`, `pull` or `local`.
    pub resolve_mode: String,
    /// context:
    pub contexts: BTreeMap<String, String>,
    /// Configurations that go with `context:x=input:y`.
    pub input_metadata: BTreeMap<String, String>,
    /// Sessions of folders that come from others: local-sessionid:
    pub local_sessions: BTreeMap<String, String>,
    /// Where cached steps may be found.
    pub cache_imports: Vec<CacheOptionsEntry>,
    /// Something else than a build: `frontend.lint`.
    pub request: Option<String>,
    /// A frontend that is wanted rather than the one of the Dockerfile.
    pub syntax: Option<String>,
}

/// Keys that are somebody else's: the exporters', the client's own, or told again by us.
const PASSED: &[&str] = &["source", "cmdline", "local-sessionid", "build-arg-mode", "vcs", "frontend.caps"];

impl Wishes {
    /// Reads them; `host` is where the build runs.
    pub fn read(options: &HashMap<String, String>, host: pb::Platform) -> Result<Self, BuildError> {
        let mut wishes = Self {
            filename: "Dockerfile".to_owned(),
            dockerfile_local: "dockerfile".to_owned(),
            resolve_mode: "default".to_owned(),
            ..Self::default()
        };
        attestable(options)?;
        wishes.common.build_platform = host;
        let sorted: BTreeMap<&String, &String> = options.iter().collect();
        for (key, value) in &sorted {
            wishes.take(key, value)?;
        }
        let context = sorted.iter().find(|(key, _)| key.as_str() == "contextkey").map_or("context", |(_, name)| name);
        wishes.remote = options.get(context).filter(|value| !value.is_empty()).cloned();
        if wishes.platforms.len() > 1 && options.get("multi-platform").is_some_and(|text| !text.is_empty()) {
            if !wishes.multi_platform {
                return Err(BuildError::invalid(
                    "conflicting config: returning multiple target platforms is not allowed",
                ));
            }
        } else if wishes.platforms.len() > 1 {
            wishes.multi_platform = true;
        }
        wishes.common.multi_platform = wishes.multi_platform;
        Ok(wishes)
    }

    fn take(&mut self, key: &str, value: &str) -> Result<(), BuildError> {
        let common = &mut self.common;
        let given = || (!value.is_empty()).then(|| value.to_owned());
        if let Some(name) = key.strip_prefix("build-arg:") {
            common.build_args.insert(name.to_owned(), value.to_owned());
            return self.take_arg(name, value);
        }
        let prefixed = [
            ("label:", &mut common.labels),
            ("context:", &mut self.contexts),
            ("input-metadata:", &mut self.input_metadata),
            ("local-sessionid:", &mut self.local_sessions),
        ];
        for (prefix, map) in prefixed {
            if let Some(name) = key.strip_prefix(prefix) {
                map.insert(name.to_owned(), value.to_owned());
                return Ok(());
            }
        }
        match key {
            "target" => common.target = given(),
            "cgroup-parent" => common.cgroup_parent = given(),
            "hostname" => common.hostname = common.hostname.take().or_else(given),
            "no-cache" => {
                let stages = value.split(',').filter(|stage| !stage.is_empty()).map(str::to_owned).collect();
                common.no_cache = Some(stages);
            }
            "add-hosts" => common.extra_hosts = hosts(value)?,
            "ulimit" => common.ulimits = ulimits(value)?,
            "shm-size" => {
                let bad = || BuildError::invalid(format!("failed to parse shm size: invalid value {value:?}"));
                common.shm_size = given().map(|text| text.parse().map_err(|_| bad())).transpose()?;
            }
            "force-network-mode" => match value {
                "" | "default" => {}
                "none" | "host" | "sandbox" => common.network = given(),
                _ => return Err(BuildError::invalid(format!("invalid netmode {value}"))),
            },
            "platform" => self.platforms = platforms(value)?,
            "multi-platform" if !value.is_empty() => self.multi_platform = boolean("multi-platform", value)?,
            "multi-platform" => {}
            "image-resolve-mode" => match value {
                "" | "default" => {}
                "pull" | "local" => self.resolve_mode = value.to_owned(),
                _ => return Err(BuildError::invalid(format!("invalid image-resolve-mode: {value}"))),
            },
            "filename" if !value.is_empty() => self.filename = value.to_owned(),
            "dockerfilekey" => (self.dockerfile_local, self.local_dockerfile) = (value.to_owned(), true),
            "contextsubdir" => self.subdir = given(),
            "cache-imports" => self.cache_imports.extend(cache_imports(value)?),
            "cache-from" => {
                self.cache_imports.extend(value.split(',').filter(|name| !name.is_empty()).map(of_registry))
            }
            "requestid" => self.request = given(),
            "override-copy-image" => {
                return Err(BuildError::invalid("support for \"override-copy-image\" was removed in BuildKit 0.11"));
            }
            "device" if !value.is_empty() => {
                return Err(BuildError::unsupported(
                    "devices for all RUN instructions are not implemented in berth: RUN --device says it for one",
                ));
            }
            _ if key.starts_with("automount:") => {
                return Err(BuildError::unsupported("mounts for all RUN instructions are not implemented in berth"));
            }
            _ if PASSED.contains(&key) || PASSED.iter().any(|p| key.starts_with(&format!("{p}:"))) => {}
            // BuildKit's frontends take no notice of keys that they don't know: clients add some now and then, what contexts are
            // called is their choice, and the same map is read by others. So nobody is warned, but a search finds the key.
            _ => tracing::debug!(key, "an option that this frontend doesn't know"),
        }
        Ok(())
    }

    /// Arguments of a build that are for the frontend, too.
    fn take_arg(&mut self, name: &str, value: &str) -> Result<(), BuildError> {
        let common = &mut self.common;
        match name {
            "BUILDKIT_CACHE_MOUNT_NS" => common.cache_namespace = value.to_owned(),
            "BUILDKIT_SANDBOX_HOSTNAME" if !value.is_empty() => common.hostname = Some(value.to_owned()),
            "BUILDKIT_MULTI_PLATFORM" if !value.is_empty() => {
                self.multi_platform = boolean("multi-platform", value)?;
            }
            "BUILDKIT_CONTEXT_KEEP_GIT_DIR" => self.keep_git = parse_bool(value).unwrap_or(false),
            "BUILDKIT_SYNTAX" => self.syntax = (!value.is_empty()).then(|| value.to_owned()),
            "BUILDKIT_DISABLE_FILEOP" if parse_bool(value) == Some(true) => {
                return Err(BuildError::invalid(
                    "support for \"BUILDKIT_DISABLE_FILEOP\" build-arg was removed in BuildKit 0.11",
                ));
            }
            "SOURCE_DATE_EPOCH" if !value.is_empty() => {
                let bad = |_| BuildError::invalid(format!("invalid SOURCE_DATE_EPOCH: {value}"));
                common.epoch = Some(value.parse().map_err(bad)?);
            }
            _ => {}
        }
        Ok(())
    }
}

/// Refuses attestations, of which none can be made yet, by BuildKit's two ways of asking for them. Fine is what asks for none, and
/// the one that buildx asks for unasked: dockerd's own store has no place for it and leaves it out, too.
pub fn attestable(options: &HashMap<String, String>) -> Result<(), BuildError> {
    let sorted: BTreeMap<&String, &String> = options.iter().collect();
    for (key, value) in sorted {
        let named = key.strip_prefix("attest:").or_else(|| key.strip_prefix("build-arg:BUILDKIT_ATTEST_"));
        let Some(kind) = named.map(str::to_lowercase) else { continue };
        let fields: Vec<(&str, &str)> =
            value.split(',').filter(|f| !f.is_empty()).map(|f| f.split_once('=').unwrap_or((f, ""))).collect();
        let is_off = fields.iter().any(|(name, value)| *name == "disabled" && parse_bool(value) == Some(true));
        let has =
            |wanted: &[(&str, &str)]| fields.len() == wanted.len() && wanted.iter().all(|field| fields.contains(field));
        if !(is_off || kind == "provenance" && has(&[("mode", "min"), ("inline-only", "true")])) {
            let comma = if value.is_empty() { "" } else { "," };
            return Err(BuildError::unsupported(format!(
                "attestation {kind}{comma}{value} is not supported by this builder yet"
            )));
        }
    }
    Ok(())
}

/// Go's strconv.ParseBool.
pub fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

fn boolean(key: &str, text: &str) -> Result<bool, BuildError> {
    parse_bool(text).ok_or_else(|| BuildError::invalid(format!("invalid boolean value for {key}: {text}")))
}

/// `linux/amd64,linux/arm64`
pub fn platforms(text: &str) -> Result<Vec<pb::Platform>, BuildError> {
    let mut read: Vec<pb::Platform> = Vec::new();
    for word in text.split(',').map(str::trim).filter(|word| !word.is_empty()) {
        let platform = Platform::parse(word)
            .map_err(|error| BuildError::invalid(format!("failed to parse target platform {word}: {error}")))?;
        let platform = llb_platform(&platform);
        if !read.contains(&platform) {
            read.push(platform);
        }
    }
    Ok(read)
}

/// The same platform in LLB.
pub fn llb_platform(platform: &Platform) -> pb::Platform {
    pb::Platform {
        os: platform.os.clone(),
        architecture: platform.architecture.clone(),
        variant: platform.variant.clone(),
        ..pb::Platform::default()
    }
}

/// `linux/arm/v7`
pub fn platform_name(platform: &pb::Platform) -> String {
    let parts = [&platform.os, &platform.architecture, &platform.variant];
    parts.into_iter().filter(|part| !part.is_empty()).map(String::as_str).collect::<Vec<_>>().join("/")
}

/// `host=address,…`
fn hosts(text: &str) -> Result<Vec<(String, String)>, BuildError> {
    let wrong = |what: String| BuildError::invalid(format!("failed to parse additional hosts: {what}"));
    let read = text.split(',').filter(|entry| !entry.is_empty()).map(|entry| {
        let (host, address) = entry.split_once('=').ok_or_else(|| wrong(format!("invalid key-value pair: {entry}")))?;
        let bare = address.trim_start_matches('[').trim_end_matches(']');
        match bare.parse::<std::net::IpAddr>() {
            Ok(address) => Ok((host.to_lowercase(), address.to_string())),
            Err(_) if bare == "host-gateway" => Ok((host.to_lowercase(), bare.to_owned())),
            Err(_) => Err(wrong(format!("failed to parse IP {address}"))),
        }
    });
    read.collect()
}

/// `nofile=1024:2048,…`
fn ulimits(text: &str) -> Result<Vec<pb::Ulimit>, BuildError> {
    let read = text.split(',').filter(|entry| !entry.is_empty()).map(|entry| {
        let wrong = || BuildError::invalid(format!("failed to parse ulimit: invalid ulimit argument: {entry}"));
        let (name, limits) = entry.split_once('=').ok_or_else(wrong)?;
        let (soft, hard) = limits.split_once(':').unwrap_or((limits, limits));
        let number = |text: &str| text.parse::<i64>().ok().filter(|n| *n >= -1).ok_or_else(wrong);
        let (soft, hard) = (number(soft)?, number(hard)?);
        if name.is_empty() || (hard != -1 && (soft > hard || soft == -1)) {
            return Err(wrong());
        }
        Ok(pb::Ulimit { name: name.to_owned(), soft, hard })
    });
    read.collect()
}

fn of_registry(name: &str) -> CacheOptionsEntry {
    CacheOptionsEntry { r#type: "registry".to_owned(), attrs: [("ref".to_owned(), name.to_owned())].into() }
}

#[derive(Deserialize)]
struct CacheImport {
    #[serde(rename = "Type", alias = "type", default)]
    kind: String,
    #[serde(rename = "Attrs", alias = "attrs", default)]
    attrs: HashMap<String, String>,
}

/// JSON, as clients send it.
fn cache_imports(text: &str) -> Result<Vec<CacheOptionsEntry>, BuildError> {
    if text.is_empty() {
        return Ok(Vec::new());
    }
    let read: Vec<CacheImport> = serde_json::from_str(text)
        .map_err(|error| BuildError::invalid(format!("failed to unmarshal cache-imports ({text:?}): {error}")))?;
    Ok(read.into_iter().map(|entry| CacheOptionsEntry { r#type: entry.kind, attrs: entry.attrs }).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(options: &[(&str, &str)]) -> Result<Wishes, BuildError> {
        let options = options.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Wishes::read(&options, llb_platform(&Platform::parse("linux/amd64").unwrap()))
    }

    #[test]
    fn options_of_buildx() {
        let wishes = read(&[
            ("filename", "a/Dockerfile.x"),
            ("target", "out"),
            ("build-arg:A", "1"),
            ("build-arg:EMPTY", ""),
            ("label:l", "v"),
            ("platform", "linux/amd64,linux/arm64/v8,linux/arm/v7"),
            ("no-cache", ""),
            ("add-hosts", "x=1.2.3.4,Y=[::1]"),
            ("ulimit", "nofile=1024:2048,core=-1"),
            ("shm-size", "67108864"),
            ("force-network-mode", "none"),
            ("image-resolve-mode", "pull"),
            ("context:base", "docker-image://alpine"),
            ("attest:provenance", "mode=min,inline-only=true"),
            ("cache-imports", r#"[{"Type":"registry","Attrs":{"ref":"r/c"}}]"#),
            ("cache-from", "old/ref"),
            ("local-sessionid:dockerfile", "s2"),
            ("build-arg:SOURCE_DATE_EPOCH", "17"),
            ("build-arg:BUILDKIT_SANDBOX_HOSTNAME", "h"),
            ("hostname", "other"),
        ])
        .unwrap();
        let common = &wishes.common;
        assert_eq!(wishes.filename, "a/Dockerfile.x");
        assert_eq!(common.target.as_deref(), Some("out"));
        assert_eq!(common.build_args["EMPTY"], "");
        assert_eq!(common.labels["l"], "v");
        let names: Vec<String> = wishes.platforms.iter().map(platform_name).collect();
        assert_eq!(names, ["linux/amd64", "linux/arm64", "linux/arm/v7"]);
        assert!(wishes.multi_platform && common.multi_platform);
        assert_eq!(common.no_cache, Some(vec![]));
        assert_eq!(common.extra_hosts, [("x".into(), "1.2.3.4".into()), ("y".into(), "::1".into())]);
        assert_eq!((common.ulimits[0].soft, common.ulimits[0].hard, common.ulimits[1].hard), (1024, 2048, -1));
        assert_eq!(common.shm_size, Some(64 << 20));
        assert_eq!(common.network.as_deref(), Some("none"));
        assert_eq!(common.epoch, Some(17));
        assert_eq!(common.hostname.as_deref(), Some("h"));
        assert_eq!(wishes.resolve_mode, "pull");
        assert_eq!(wishes.contexts["base"], "docker-image://alpine");
        assert_eq!(wishes.cache_imports.len(), 2);
        assert_eq!(wishes.local_sessions["dockerfile"], "s2");
        assert_eq!(wishes.remote, None);
    }

    #[test]
    fn remote_contexts() {
        assert_eq!(read(&[("context", "https://x/y.tar")]).unwrap().remote.as_deref(), Some("https://x/y.tar"));
        let renamed = read(&[("contextkey", "c2"), ("c2", "https://x"), ("context", "https://y")]).unwrap();
        assert_eq!(renamed.remote.as_deref(), Some("https://x"));
        let wishes = read(&[("dockerfilekey", "other"), ("contextsubdir", "sub")]).unwrap();
        assert!(wishes.local_dockerfile && wishes.dockerfile_local == "other");
        assert_eq!(wishes.subdir.as_deref(), Some("sub"));
    }

    #[test]
    fn attestations_are_refused_but_for_what_nobody_asked_for() {
        for (key, value) in [
            ("attest:provenance", "mode=min,inline-only=true"),
            ("attest:provenance", "inline-only=true,mode=min"),
            ("attest:provenance", "disabled=true"),
            ("attest:sbom", "disabled=true"),
            ("build-arg:BUILDKIT_ATTEST_PROVENANCE", "mode=min,inline-only=true"),
        ] {
            assert!(read(&[(key, value)]).is_ok(), "{key}={value}");
        }
        for (key, value, named) in [
            ("attest:sbom", "", "attestation sbom is"),
            ("attest:sbom", "disabled=false", "attestation sbom,disabled=false is"),
            ("attest:sbom", "mode=min,inline-only=true", "attestation sbom,"),
            // Without a word on it, BuildKit's mode is max.
            ("attest:provenance", "", "attestation provenance is"),
            ("attest:provenance", "inline-only=true", "attestation provenance,inline-only=true is"),
            ("attest:provenance", "mode=max", "attestation provenance,mode=max is"),
            ("attest:provenance", "mode=min", "attestation provenance,mode=min is"),
            ("attest:provenance", "mode=min,inline-only=true,builder-id=x", "attestation provenance,"),
            ("attest:provenance", "mode=min,mode=min", "attestation provenance,"),
            ("attest:new", "", "attestation new is"),
            ("build-arg:BUILDKIT_ATTEST_SBOM", "", "attestation sbom is"),
        ] {
            let error = read(&[(key, value)]).unwrap_err();
            assert!(error.message.starts_with(named), "{key}={value}: {error}");
            assert!(error.message.ends_with(" not supported by this builder yet"), "{error}");
            assert_eq!(error.kind, proto::kind::ErrorKind::Unimplemented);
        }
    }

    #[test]
    fn unknown_options_change_nothing() {
        assert_eq!(read(&[("of-tomorrow", "x"), ("mine:y", "z")]).unwrap(), read(&[]).unwrap());
    }

    #[test]
    fn nonsense_is_named() {
        for (key, value, words) in [
            ("platform", "linux/amd64/v1/x", "failed to parse target platform"),
            ("force-network-mode", "bridge", "invalid netmode bridge"),
            ("image-resolve-mode", "sometimes", "invalid image-resolve-mode: sometimes"),
            ("add-hosts", "x", "invalid key-value pair"),
            ("add-hosts", "x=y", "failed to parse IP y"),
            ("ulimit", "nofile=9:3", "failed to parse ulimit"),
            ("ulimit", "nofile", "failed to parse ulimit"),
            ("shm-size", "-1", "failed to parse shm size"),
            ("multi-platform", "maybe", "invalid boolean value for multi-platform: maybe"),
            ("cache-imports", "{", "failed to unmarshal cache-imports"),
            ("build-arg:SOURCE_DATE_EPOCH", "now", "invalid SOURCE_DATE_EPOCH: now"),
            ("build-arg:BUILDKIT_DISABLE_FILEOP", "1", "removed in BuildKit 0.11"),
            ("override-copy-image", "x", "removed in BuildKit 0.11"),
        ] {
            let error = read(&[(key, value)]).unwrap_err();
            assert!(error.message.contains(words), "{key}={value}: {error}");
        }
        let two = [("platform", "linux/amd64,linux/arm64"), ("multi-platform", "false")];
        assert!(read(&two).unwrap_err().message.starts_with("conflicting config"));
        assert!(read(&[("multi-platform", "true")]).unwrap().multi_platform);
    }
}
