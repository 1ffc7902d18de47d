//! The query of `POST /build`, in the frontend's words.

use crate::http::{ApiError, ApiResult, Query};
use proto::{image_ref::ImageRef, moby::buildkit::v1::Exporter};
use serde::{Deserialize, de::DeserializeOwned};
use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
};

/// What is asked for.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Params {
    /// Options of the frontend.
    pub options: HashMap<String, String>,
    /// Names of the image.
    pub tags: Vec<ImageRef>,
    /// Where the result goes.
    pub exporters: Vec<Exporter>,
    /// What it has to be allowed to do.
    pub entitlements: Vec<String>,
    /// Name of the build, for `/build/cancel`.
    pub id: Option<String>,
    /// Whether only the image's id is told.
    pub quiet: bool,
    /// Whether BuildKit's own messages are told rather than lines of text.
    pub trace: bool,
    /// The client's session, of `version=2`.
    pub session: Option<String>,
    /// Where the context comes from.
    pub context: Context,
}

/// Where the context of a build is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Context {
    /// An archive in the request.
    #[default]
    Body,
    /// A folder that the client's session serves.
    Session,
    /// git or a web server, named among the options.
    Remote,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Ulimit {
    name: String,
    #[serde(default)]
    soft: i64,
    #[serde(default)]
    hard: i64,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Output {
    #[serde(rename = "Type", alias = "type")]
    kind: String,
    #[serde(default, alias = "attrs")]
    attrs: HashMap<String, String>,
}

/// Limits of the containers of the old builder, which BuildKit has no place for.
const LIMITS: &[&str] = &["memory", "memswap", "cpushares", "cpuperiod", "cpuquota"];

impl Params {
    /// Reads them; `gateway` is what `host-gateway` stands for.
    pub fn read(query: &Query, experimental: bool, gateway: Option<IpAddr>) -> ApiResult<Self> {
        let mut params = Self {
            quiet: query.flag("q"),
            trace: match query.get("version") {
                None | Some("1") => false,
                Some("2") => true,
                Some(other) => return Err(ApiError::invalid(format!("invalid version {other}"))),
            },
            session: query.get("session").map(str::to_owned),
            id: query.get("buildid").map(str::to_owned),
            ..Self::default()
        };
        if query.flag("squash") {
            return Err(match experimental {
                false => ApiError::invalid("squash is only supported with experimental mode"),
                true => ApiError::not_implemented(
                    "squash is not implemented in berth: a stage FROM scratch with COPY --from makes one layer",
                ),
            });
        }
        for key in LIMITS {
            if query.number::<i64>(key)?.is_some_and(|limit| limit != 0) {
                return Err(unlimited(key));
            }
        }
        if let Some(key) = ["cpusetcpus", "cpusetmems"].into_iter().find(|key| query.get(key).is_some()) {
            return Err(unlimited(key));
        }
        if let Some(isolation) = query.get("isolation").filter(|isolation| *isolation != "default") {
            return Err(ApiError::invalid(format!("invalid isolation mode {isolation:?} on linux")));
        }
        params.context(query)?;
        params.options_of(query, gateway)?;
        params.network(query.get("networkmode").unwrap_or_default())?;
        params.results(query)?;
        Ok(params)
    }

    fn set(&mut self, key: &str, value: impl Into<String>) {
        self.options.insert(key.to_owned(), value.into());
    }

    fn context(&mut self, query: &Query) -> ApiResult<()> {
        if let Some(name) = query.get("dockerfile") {
            self.set("filename", name);
        }
        match query.get("remote") {
            None => {}
            Some("client-session") => {
                if self.session.is_none() {
                    return Err(ApiError::invalid("remote=client-session needs a session"));
                }
                self.context = Context::Session;
            }
            // Which another request with the same buildid was to bring, of a client long gone.
            Some("upload-request") => {
                return Err(ApiError::not_implemented("remote=upload-request is not implemented in berth"));
            }
            Some(remote) => {
                self.context = Context::Remote;
                self.set("context", remote);
            }
        }
        Ok(())
    }

    fn options_of(&mut self, query: &Query, gateway: Option<IpAddr>) -> ApiResult<()> {
        for (key, option) in [("target", "target"), ("platform", "platform"), ("cgroupparent", "cgroup-parent")] {
            if let Some(value) = query.get(key) {
                self.set(option, value);
            }
        }
        if let Some(bytes) = query.number::<i64>("shmsize")?.filter(|bytes| *bytes != 0) {
            if bytes < 0 {
                return Err(ApiError::invalid("SHM size can not be less than 0"));
            }
            self.set("shm-size", bytes.to_string());
        }
        if query.flag("nocache") {
            self.set("no-cache", "");
        }
        self.set("image-resolve-mode", if query.flag("pull") { "pull" } else { "default" });
        // A name without value is one that the client has none for: nothing then.
        for (name, value) in read::<BTreeMap<String, Option<String>>>(query, "buildargs")? {
            if let Some(value) = value {
                self.set(&format!("build-arg:{name}"), value);
            }
        }
        for (name, value) in read::<BTreeMap<String, String>>(query, "labels")? {
            self.set(&format!("label:{name}"), value);
        }
        let from: Vec<String> = read(query, "cachefrom")?;
        if !from.is_empty() {
            let entries: Vec<_> =
                from.iter().map(|name| serde_json::json!({"Type": "registry", "Attrs": {"ref": name}})).collect();
            self.set("cache-imports", serde_json::Value::from(entries).to_string());
        }
        let ulimits: Vec<Ulimit> = read(query, "ulimits")?;
        if !ulimits.is_empty() {
            let words: Vec<String> = ulimits.iter().map(|u| format!("{}={}:{}", u.name, u.soft, u.hard)).collect();
            self.set("ulimit", words.join(","));
        }
        let hosts: Vec<String> = query
            .all("extrahosts")
            .filter(|entry| !entry.is_empty())
            .map(|entry| {
                let (host, address) =
                    entry.split_once(['=', ':']).ok_or_else(|| ApiError::invalid(format!("invalid host {entry}")))?;
                let address = match (address, gateway) {
                    ("host-gateway", Some(gateway)) => gateway.to_string(),
                    ("host-gateway", None) => {
                        return Err(ApiError::invalid("unable to derive the IP value for host-gateway"));
                    }
                    (address, _) => address.to_owned(),
                };
                Ok(format!("{host}={address}"))
            })
            .collect::<ApiResult<_>>()?;
        if !hosts.is_empty() {
            self.set("add-hosts", hosts.join(","));
        }
        Ok(())
    }

    fn network(&mut self, mode: &str) -> ApiResult<()> {
        match mode {
            "" | "default" | "bridge" => {}
            "none" => self.set("force-network-mode", "none"),
            "host" => {
                self.set("force-network-mode", "host");
                self.entitlements.push("network.host".to_owned());
            }
            other => {
                return Err(ApiError::invalid(format!(
                    "network mode {other:?} not supported by buildkit: it is default, none or host"
                )));
            }
        }
        Ok(())
    }

    fn results(&mut self, query: &Query) -> ApiResult<()> {
        for tag in query.all("t").filter(|tag| !tag.is_empty()) {
            let name: ImageRef =
                tag.parse().map_err(|error| ApiError::invalid(format!("invalid reference format: {tag}: {error}")))?;
            if name.digest().is_some() {
                return Err(ApiError::invalid(format!("build tag cannot contain a digest: {tag}")));
            }
            let name = name.with_default_tag();
            if !self.tags.contains(&name) {
                self.tags.push(name);
            }
        }
        let outputs: Vec<Output> = read(query, "outputs")?;
        if !outputs.is_empty() && !self.trace {
            return Err(ApiError::invalid("outputs need BuildKit (version=2)"));
        }
        if outputs.len() > 1 {
            return Err(ApiError::invalid("multiple outputs not supported"));
        }
        let names: Vec<String> = self.tags.iter().map(ToString::to_string).collect();
        let mut exporter = match outputs.into_iter().next() {
            Some(output) if output.kind == "cacheonly" => return Ok(()),
            Some(output) => Exporter { r#type: output.kind, attrs: output.attrs },
            None => Exporter { r#type: "moby".to_owned(), ..Exporter::default() },
        };
        if !names.is_empty() {
            exporter.attrs.insert("name".to_owned(), names.join(","));
        }
        self.exporters.push(exporter);
        Ok(())
    }
}

fn unlimited(key: &str) -> ApiError {
    ApiError::not_implemented(format!("{key} of builds is not implemented in berth: builds are done as BuildKit does them, without limits of their own"))
        .hint("cgroupparent puts the containers of a build below a cgroup that has limits")
}

fn read<T: DeserializeOwned + Default>(query: &Query, key: &str) -> ApiResult<T> {
    match query.get(key) {
        None | Some("null") => Ok(T::default()),
        Some(text) => serde_json::from_str(text).map_err(|error| {
            ApiError::invalid(format!("error reading {key}: {text:?} is not what it must be: {error}"))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(query: &str) -> ApiResult<Params> {
        Params::read(&Query::parse(Some(query)), false, Some("172.17.0.1".parse().unwrap()))
    }

    #[test]
    fn as_dockers_client_asks() {
        let params = read(
            "buildargs={\"A\":\"1\",\"B\":null}&cachefrom=[\"c\"]&cgroupparent=/x&cpuperiod=0&cpuquota=0&cpusetcpus=&\
             cpusetmems=&cpushares=0&dockerfile=D&labels={\"l\":\"v\"}&memory=0&memswap=0&networkmode=host&rm=1&shmsize=64&\
             t=a/b&t=c:1&target=out&ulimits=[{\"Name\":\"nofile\",\"Soft\":1,\"Hard\":2}]&version=1&extrahosts=x:1.2.3.4&\
             extrahosts=y:host-gateway&pull=1&nocache=1&platform=linux/arm64&q=1&buildid=b1",
        )
        .unwrap();
        let option = |key: &str| params.options.get(key).map(String::as_str);
        for (key, value) in [
            ("build-arg:A", Some("1")),
            ("build-arg:B", None),
            ("label:l", Some("v")),
            ("filename", Some("D")),
            ("target", Some("out")),
            ("platform", Some("linux/arm64")),
            ("cgroup-parent", Some("/x")),
            ("shm-size", Some("64")),
            ("ulimit", Some("nofile=1:2")),
            ("add-hosts", Some("x=1.2.3.4,y=172.17.0.1")),
            ("force-network-mode", Some("host")),
            ("image-resolve-mode", Some("pull")),
            ("no-cache", Some("")),
            ("cache-imports", Some(r#"[{"Attrs":{"ref":"c"},"Type":"registry"}]"#)),
        ] {
            assert_eq!(option(key), value, "{key}");
        }
        assert_eq!(params.entitlements, ["network.host"]);
        assert_eq!(params.exporters[0].attrs["name"], "docker.io/a/b:latest,docker.io/library/c:1");
        assert!(params.quiet && !params.trace);
        assert_eq!((params.id.as_deref(), params.context), (Some("b1"), Context::Body));
    }

    #[test]
    fn contexts_and_outputs() {
        let params =
            read("version=2&remote=client-session&session=s&outputs=[{\"Type\":\"local\",\"Attrs\":{\"dest\":\"x\"}}]");
        let params = params.unwrap();
        assert_eq!((params.context, params.exporters[0].r#type.as_str()), (Context::Session, "local"));
        let params = read("remote=https://x/y.git").unwrap();
        assert_eq!((params.context, params.options["context"].as_str()), (Context::Remote, "https://x/y.git"));
    }

    #[test]
    fn refusals() {
        for (query, status) in [
            ("squash=1", 400),
            ("memory=1000", 501),
            ("cpusetcpus=0", 501),
            ("version=3", 400),
            ("t=UPPER", 400),
            ("t=a@sha256:ac85f380a63b13dfcefa89046420e1781752bab202122f8f50032edf31be0021", 400),
            ("remote=client-session", 400),
            ("networkmode=container:x", 400),
            ("buildargs=[]", 400),
            ("ulimits={}", 400),
            ("shmsize=-1", 400),
            ("extrahosts=x", 400),
            ("isolation=hyperv", 400),
            ("outputs=[{\"Type\":\"local\"}]", 400),
            ("version=2&outputs=[{\"Type\":\"a\"},{\"Type\":\"b\"}]", 400),
        ] {
            assert_eq!(read(query).unwrap_err().status, status, "{query}");
        }
        assert_eq!(Params::read(&Query::parse(Some("squash=1")), true, None).unwrap_err().status, 501);
    }
}
