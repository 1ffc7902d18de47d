//! Everything berth takes from its environment: variables, config.json, credentials.

use crate::args::Globals;
use crate::client::{ApiVersion, Host, host::HostError};
use base64::{Engine as _, engine::general_purpose};
use serde::Deserialize;
use std::{collections::BTreeMap, env, fs, io, path::PathBuf, process::Stdio};

/// Registry whose credentials docker files under an address of its own.
const HUB: &str = "docker.io";
const HUB_KEY: &str = "https://index.docker.io/v1/";

/// What berth is told from outside the command.
#[derive(Debug)]
pub struct Config {
    /// The engine.
    pub host: Host,
    /// API version that must be used, by DOCKER_API_VERSION.
    pub api_version: Option<ApiVersion>,
    /// Platform for images, by DOCKER_DEFAULT_PLATFORM.
    pub default_platform: Option<String>,
    file: ConfigFile,
}

/// Why the surroundings don't do.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The engine's address.
    #[error(transparent)]
    Host(#[from] HostError),
    /// More than one engine.
    #[error("specify only one -H")]
    Hosts,
    /// A flag that can't be honoured.
    #[error("{0} is not supported yet")]
    NotYet(&'static str),
    /// DOCKER_API_VERSION
    #[error("DOCKER_API_VERSION: invalid API version {0:?}")]
    ApiVersion(String),
    /// config.json
    #[error("read {path}: {cause}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// config.json
    #[error("{path} is not a docker config file: {cause}")]
    Json {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: serde_json::Error,
    },
    /// A credential helper.
    #[error("credentials for {registry}: docker-credential-{helper}: {cause}")]
    Helper {
        /// The registry.
        registry: String,
        /// The helper.
        helper: String,
        /// Why.
        cause: String,
    },
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ConfigFile {
    auths: BTreeMap<String, Auth>,
    #[serde(rename = "credsStore")]
    creds_store: String,
    #[serde(rename = "credHelpers")]
    cred_helpers: BTreeMap<String, String>,
    #[serde(rename = "detachKeys")]
    detach_keys: Option<String>,
    #[serde(rename = "psFormat")]
    ps_format: Option<String>,
    #[serde(rename = "imagesFormat")]
    images_format: Option<String>,
    #[serde(rename = "networksFormat")]
    networks_format: Option<String>,
    proxies: BTreeMap<String, Proxy>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Auth {
    auth: String,
    identitytoken: String,
    registrytoken: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Proxy {
    http_proxy: String,
    https_proxy: String,
    no_proxy: String,
    ftp_proxy: String,
    all_proxy: String,
}

impl Config {
    /// Reads variables and config.json.
    pub fn load(globals: &Globals) -> Result<Self, ConfigError> {
        if globals.context.as_deref().is_some_and(|name| name != "default") {
            return Err(ConfigError::NotYet("--context (use --host)"));
        }
        if globals.tls || globals.tlsverify || variable("DOCKER_TLS_VERIFY").is_some() {
            return Err(ConfigError::NotYet("TLS"));
        }
        let host = match &globals.host[..] {
            [] => match variable("BERTH_HOST").or_else(|| variable("DOCKER_HOST")) {
                Some(text) => text.parse()?,
                None => Host::default(),
            },
            [one] => one.parse()?,
            _ => return Err(ConfigError::Hosts),
        };
        let api_version = match variable("DOCKER_API_VERSION") {
            Some(text) => Some(text.parse().map_err(|_| ConfigError::ApiVersion(text))?),
            None => None,
        };
        Ok(Self {
            host,
            api_version,
            default_platform: variable("DOCKER_DEFAULT_PLATFORM"),
            file: ConfigFile::load(globals.config.as_deref())?,
        })
    }

    /// Keys for leaving a container that the user wants everywhere.
    pub fn detach_keys(&self) -> Option<String> {
        self.file.detach_keys.clone()
    }

    /// The user's format of `ps`.
    pub fn ps_format(&self) -> Option<&str> {
        self.file.ps_format.as_deref()
    }

    /// The user's format of `images`.
    pub fn images_format(&self) -> Option<&str> {
        self.file.images_format.as_deref()
    }

    /// The user's format of `network ls`.
    pub fn networks_format(&self) -> Option<&str> {
        self.file.networks_format.as_deref()
    }

    /// Variables for the proxies that containers are to use.
    pub fn proxy_variables(&self) -> Vec<(String, String)> {
        let own = self.file.proxies.get(&self.host.to_string());
        let Some(proxy) = own.or_else(|| self.file.proxies.get("default")) else { return Vec::new() };
        let all = [
            ("HTTP_PROXY", &proxy.http_proxy),
            ("HTTPS_PROXY", &proxy.https_proxy),
            ("NO_PROXY", &proxy.no_proxy),
            ("FTP_PROXY", &proxy.ftp_proxy),
            ("ALL_PROXY", &proxy.all_proxy),
        ];
        all.iter()
            .filter(|(_, value)| !value.is_empty())
            .flat_map(|(name, value)| [((*name).to_owned(), (*value).clone()), (name.to_lowercase(), (*value).clone())])
            .collect()
    }

    /// The X-Registry-Auth header for a registry; anonymous is "{}".
    pub fn registry_auth(&self, registry: &str) -> Result<String, ConfigError> {
        let key = if registry == HUB { HUB_KEY } else { registry };
        let helper = self.file.cred_helpers.get(registry).or_else(|| self.file.cred_helpers.get(key));
        let helper = helper.map_or(self.file.creds_store.as_str(), String::as_str);
        let auth = if helper.is_empty() { self.file.plain(key) } else { ask_helper(helper, registry, key)? };
        Ok(general_purpose::URL_SAFE.encode(auth.to_string()))
    }
}

impl ConfigFile {
    fn load(dir: Option<&str>) -> Result<Self, ConfigError> {
        let dir = dir.map(PathBuf::from).or_else(|| variable("DOCKER_CONFIG").map(PathBuf::from));
        let Some(dir) = dir.or_else(|| variable("HOME").map(|home| PathBuf::from(home).join(".docker"))) else {
            return Ok(Self::default());
        };
        let path = dir.join("config.json");
        match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).map_err(|cause| ConfigError::Json { path, cause }),
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            // As docker does: somebody else's file (sudo keeps HOME) must not stop a command that may not need it.
            Err(cause) if cause.kind() == io::ErrorKind::PermissionDenied => {
                eprintln!("WARNING: Error loading config file: open {}: permission denied", path.display());
                Ok(Self::default())
            }
            Err(cause) => Err(ConfigError::Read { path, cause }),
        }
    }

    fn plain(&self, key: &str) -> serde_json::Value {
        let same = |stored: &str| stored == key || hostname(stored) == hostname(key);
        let exact = self.auths.get(key);
        let found = exact.or_else(|| self.auths.iter().find(|(stored, _)| same(stored)).map(|(_, auth)| auth));
        let Some(auth) = found else { return serde_json::json!({}) };
        let decoded = general_purpose::STANDARD.decode(&auth.auth).ok().and_then(|b| String::from_utf8(b).ok());
        let decoded = decoded.unwrap_or_default();
        let (user, password) = decoded.split_once(':').unwrap_or_default();
        let mut out = serde_json::json!({
            "username": user, "password": password.trim_end_matches('\0'), "serveraddress": key,
        });
        if !auth.identitytoken.is_empty() {
            out["identitytoken"] = auth.identitytoken.as_str().into();
        }
        if !auth.registrytoken.is_empty() {
            out["registrytoken"] = auth.registrytoken.as_str().into();
        }
        out
    }
}

fn hostname(address: &str) -> &str {
    let rest = address.strip_prefix("https://").or_else(|| address.strip_prefix("http://")).unwrap_or(address);
    rest.split('/').next().unwrap_or(rest)
}

/// Asks `docker-credential-NAME get`; a registry it does not know is anonymous.
fn ask_helper(helper: &str, registry: &str, key: &str) -> Result<serde_json::Value, ConfigError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Credentials {
        username: String,
        secret: String,
    }
    let fault = |cause: String| ConfigError::Helper { registry: registry.to_owned(), helper: helper.to_owned(), cause };
    let mut child = std::process::Command::new(format!("docker-credential-{helper}"))
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .map_err(|cause| fault(cause.to_string()))?;
    if let Some(mut stdin) = child.stdin.take() {
        io::Write::write_all(&mut stdin, key.as_bytes()).map_err(|cause| fault(cause.to_string()))?;
    }
    let output = child.wait_with_output().map_err(|cause| fault(cause.to_string()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        let anonymous = text.contains("credentials not found");
        return if anonymous { Ok(serde_json::json!({})) } else { Err(fault(text.trim().to_owned())) };
    }
    let known: Credentials = serde_json::from_str(&text).map_err(|cause| fault(cause.to_string()))?;
    Ok(if known.username == "<token>" {
        serde_json::json!({ "identitytoken": known.secret, "serveraddress": key })
    } else {
        serde_json::json!({ "username": known.username, "password": known.secret, "serveraddress": key })
    })
}

/// A variable of the environment that is set and not empty.
fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

/// A variable of the environment, for `-e NAME`; it may be empty.
pub fn own_variable(name: &str) -> Option<String> {
    env::var(name).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(json: &str) -> ConfigFile {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn credentials_by_registry() {
        // user:pa:ss
        let config = file(
            r#"{"auths":{"https://index.docker.io/v1/":{"auth":"dXNlcjpwYTpzcw=="},"https://reg.example/v2/":{"auth":"dXNlcjpwYTpzcw=="}}}"#,
        );
        assert_eq!(config.plain(HUB_KEY)["password"], "pa:ss");
        assert_eq!(config.plain("reg.example")["username"], "user");
        assert_eq!(config.plain("other.example"), serde_json::json!({}));
    }

    #[test]
    fn anonymous_is_what_docker_sends() {
        let config = Config { host: Host::default(), api_version: None, default_platform: None, file: file("{}") };
        assert_eq!(config.registry_auth("reg.example").unwrap(), "e30=");
    }

    #[test]
    fn proxies_in_both_spellings() {
        let config = Config {
            host: Host::default(),
            api_version: None,
            default_platform: None,
            file: file(r#"{"proxies":{"default":{"httpProxy":"http://p"}}}"#),
        };
        let want = [("HTTP_PROXY", "http://p"), ("http_proxy", "http://p")].map(|(a, b)| (a.to_owned(), b.to_owned()));
        assert_eq!(config.proxy_variables(), want);
    }

    #[test]
    fn a_broken_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("config.json"), "{").unwrap();
        let error = ConfigFile::load(dir.path().to_str()).unwrap_err().to_string();
        assert!(error.contains("config.json is not a docker config file"), "{error}");
        assert!(ConfigFile::load(Some("/no/such/dir")).unwrap().auths.is_empty());
    }
}
