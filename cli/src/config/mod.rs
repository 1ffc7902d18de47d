//! Everything berth takes from its environment: variables, config.json and contexts.

pub mod endpoint;
pub mod file;
pub mod headers;

use crate::args::Globals;
use crate::client::{ApiVersion, Endpoint};
use crate::context::{ContextError, DEFAULT, Store};
use crate::credentials::Credentials;
use endpoint::EndpointError;
use file::ConfigFile;
use headers::HeadersError;
use std::{
    env,
    path::{Path, PathBuf},
    sync::Arc,
};

/// What berth is told from outside the command.
#[derive(Debug)]
pub struct Config {
    /// API version that must be used, by DOCKER_API_VERSION.
    pub api_version: Option<ApiVersion>,
    /// Platform for images, by DOCKER_DEFAULT_PLATFORM.
    pub default_platform: Option<String>,
    /// Credentials for registries.
    pub credentials: Arc<Credentials>,
    /// config.json
    pub file: ConfigFile,
    /// The folder of config.json, contexts and plugins.
    pub dir: Option<PathBuf>,
    globals: Globals,
}

/// Why the surroundings don't do.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The engine's address, or how to talk with it.
    #[error("Failed to initialize: unable to resolve docker endpoint: {0}")]
    Endpoint(#[from] EndpointError),
    /// DOCKER_CUSTOM_HEADERS
    #[error("Failed to initialize: {0}")]
    Headers(#[from] HeadersError),
    /// Two ways to the engine.
    #[error("conflicting options: cannot specify both --host and --context")]
    HostAndContext,
    /// --log-level
    #[error("Unable to parse logging level: {0}")]
    LogLevel(String),
    /// DOCKER_API_VERSION
    #[error("DOCKER_API_VERSION: invalid API version {0:?}: write it as 1.41")]
    ApiVersion(String),
    /// Neither DOCKER_CONFIG nor HOME.
    #[error("there is no place for contexts: neither --config nor DOCKER_CONFIG nor HOME is set")]
    NoHome,
}

impl Config {
    /// Reads variables and config.json.
    pub fn load(globals: &Globals) -> Result<Self, ConfigError> {
        if globals.context.is_some() && !globals.host.is_empty() {
            return Err(ConfigError::HostAndContext);
        }
        if let Some(level) = &globals.log_level {
            crate::output::log::set(level).map_err(|()| ConfigError::LogLevel(level.clone()))?;
        }
        if globals.debug {
            crate::output::log::debug_on();
        }
        let api_version = match variable("DOCKER_API_VERSION") {
            Some(text) => {
                Some(text.trim_start_matches('v').parse().map_err(|_| ConfigError::ApiVersion(text.clone()))?)
            }
            None => None,
        };
        let dir = config_dir(globals);
        let path = dir.as_ref().map(|dir| dir.join("config.json"));
        let file = path.as_deref().map(ConfigFile::read).unwrap_or_default();
        let credentials = Arc::new(Credentials::load(path, file.value()));
        let default_platform = variable("DOCKER_DEFAULT_PLATFORM");
        Ok(Self { api_version, default_platform, credentials, file, dir, globals: globals.clone() })
    }

    /// The same for those who must not complain: for completions, and for a second look.
    pub fn load_quietly(globals: &Globals) -> Option<Self> {
        let dir = config_dir(globals);
        let path = dir.as_ref().map(|dir| dir.join("config.json"));
        let text = path.as_ref().and_then(|path| std::fs::read(path).ok());
        let file = text.map(|text| ConfigFile::parse_quietly(&text)).unwrap_or_default();
        Some(Self {
            api_version: None,
            default_platform: None,
            credentials: Arc::default(),
            file,
            dir,
            globals: globals.clone(),
        })
    }

    /// The contexts' folder.
    pub fn contexts(&self) -> Result<Store, ConfigError> {
        Ok(Store::new(self.dir.as_deref().ok_or(ConfigError::NoHome)?))
    }

    /// The context in use, by docker's order: --context, --host, DOCKER_HOST, DOCKER_CONTEXT, config.json.
    pub fn context_name(&self) -> String {
        if let Some(name) = self.globals.context.as_deref().filter(|name| !name.is_empty()) {
            return name.to_owned();
        }
        if !self.globals.host.is_empty() || host_variable().is_some() {
            return DEFAULT.to_owned();
        }
        let chosen = variable("DOCKER_CONTEXT").or_else(|| self.file.text("currentContext").map(str::to_owned));
        chosen.unwrap_or_else(|| DEFAULT.to_owned())
    }

    /// Where the engine is and how to talk with it.
    pub fn endpoint(&self) -> Result<Endpoint, ConfigError> {
        let name = self.context_name();
        let mut endpoint = if name == DEFAULT {
            endpoint::of_flags(&self.globals, self.dir.as_deref())?
        } else {
            let context = self.contexts()?.load(&name).map_err(EndpointError::from)?;
            endpoint::of_context(&context)?
        };
        endpoint.headers = headers::all(&self.file)?;
        Ok(endpoint)
    }

    /// Address of the engine as the user wrote it, for the default context's listing.
    pub fn default_host(&self) -> String {
        endpoint::address(&self.globals).unwrap_or_else(|| crate::client::Host::default().to_string())
    }

    /// The flags before the command.
    pub fn globals(&self) -> &Globals {
        &self.globals
    }

    /// Keys for leaving a container that the user wants everywhere.
    pub fn detach_keys(&self) -> Option<String> {
        self.file.text("detachKeys").map(str::to_owned)
    }

    /// The user's format of `ps`.
    pub fn ps_format(&self) -> Option<&str> {
        self.file.text("psFormat")
    }

    /// The user's format of `images`.
    pub fn images_format(&self) -> Option<&str> {
        self.file.text("imagesFormat")
    }

    /// The user's format of `network ls`.
    pub fn networks_format(&self) -> Option<&str> {
        self.file.text("networksFormat")
    }

    /// The user's format of `volume ls`.
    pub fn volumes_format(&self) -> Option<&str> {
        self.file.text("volumesFormat")
    }

    /// The user's format of `stats`.
    pub fn stats_format(&self) -> Option<&str> {
        self.file.text("statsFormat")
    }

    /// Variables for the proxies that containers are to use.
    pub fn proxy_variables(&self) -> Vec<(String, String)> {
        let host = self.endpoint().map(|endpoint| endpoint.host.to_string()).unwrap_or_default();
        let own = self.file.inner_map("proxies", &host);
        let Some(proxy) = own.or_else(|| self.file.inner_map("proxies", "default")) else { return Vec::new() };
        [
            ("HTTP_PROXY", "httpProxy"),
            ("HTTPS_PROXY", "httpsProxy"),
            ("NO_PROXY", "noProxy"),
            ("FTP_PROXY", "ftpProxy"),
            ("ALL_PROXY", "allProxy"),
        ]
        .into_iter()
        .filter_map(|(name, key)| Some((name, proxy.get(key).filter(|value| !value.is_empty())?)))
        .flat_map(|(name, value)| [(name.to_owned(), value.clone()), (name.to_lowercase(), value.clone())])
        .collect()
    }

    /// Filters that the user wants for every prune, "key=value".
    pub fn prune_filters(&self) -> Vec<String> {
        self.file.list("pruneFilters")
    }
}

/// --config, DOCKER_CONFIG, ~/.docker
fn config_dir(globals: &Globals) -> Option<PathBuf> {
    let dir = globals.config.as_deref().map(PathBuf::from).or_else(|| variable("DOCKER_CONFIG").map(PathBuf::from));
    dir.or_else(|| variable("HOME").map(|home| Path::new(&home).join(".docker")))
}

/// The engine's address in the environment. BERTH_HOST is for those who have both engines.
pub fn host_variable() -> Option<String> {
    variable("BERTH_HOST").or_else(|| variable("DOCKER_HOST"))
}

/// A variable of the environment that is set and not empty.
pub fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

/// A variable of the environment, for `-e NAME`; it may be empty.
pub fn own_variable(name: &str) -> Option<String> {
    env::var(name).ok()
}

impl From<ContextError> for EndpointError {
    fn from(error: ContextError) -> Self {
        Self::Context(error)
    }
}
