//! Credentials for registries: DOCKER_AUTH_CONFIG, config.json and credential helpers, by docker's rules.
//!
//! They are looked up by the exact registry they are for, and never by anything near it. Whatever goes wrong on the way
//! means "no credentials": never those of another registry (CVE-2021-41092).

pub mod file;
pub mod helper;

use crate::output::value::Value;
use base64::{Engine as _, engine::general_purpose};
use file::FileError;
use helper::HelperError;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, env, path::PathBuf};

/// Docker Hub's name in references.
pub const HUB: &str = "docker.io";
/// The address under which docker files Docker Hub's credentials.
pub const HUB_KEY: &str = "https://index.docker.io/v1/";
/// User name that marks a secret as an identity token, in the protocol of credential helpers.
const TOKEN_USER: &str = "<token>";

/// What a user has for a registry: the JSON of the API's headers and of `POST /auth`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct AuthConfig {
    /// User name.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub username: String,
    /// Password or access token.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub password: String,
    /// The registry.
    #[serde(rename = "serveraddress", skip_serializing_if = "String::is_empty")]
    pub server: String,
    /// Refresh token that stands for user name and password.
    #[serde(rename = "identitytoken", skip_serializing_if = "String::is_empty")]
    pub identity_token: String,
    /// Bearer token, sent as it is.
    #[serde(rename = "registrytoken", skip_serializing_if = "String::is_empty")]
    pub registry_token: String,
}

impl AuthConfig {
    /// The header X-Registry-Auth; without credentials it is "{}", as docker sends it.
    pub fn header(&self) -> String {
        general_purpose::URL_SAFE.encode(serde_json::to_string(self).unwrap_or_else(|_| "{}".to_owned()))
    }

    fn is_empty(&self) -> bool {
        *self == Self { server: self.server.clone(), ..Self::default() }
    }
}

/// One entry of "auths".
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Entry {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
    registrytoken: String,
}

impl Entry {
    fn auth_config(&self, server: &str) -> AuthConfig {
        let mut auth = AuthConfig {
            username: self.username.clone(),
            password: self.password.clone(),
            server: server.to_owned(),
            identity_token: self.identitytoken.clone(),
            registry_token: self.registrytoken.clone(),
        };
        let decoded = general_purpose::STANDARD.decode(&self.auth).ok().and_then(|b| String::from_utf8(b).ok());
        if let Some((user, password)) = decoded.as_deref().and_then(|text| text.split_once(':')) {
            user.clone_into(&mut auth.username);
            password.trim_end_matches('\0').clone_into(&mut auth.password);
        }
        if auth.is_empty() { AuthConfig::default() } else { auth }
    }
}

/// The part of config.json that is about credentials.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Keys {
    auths: BTreeMap<String, Option<Entry>>,
    #[serde(rename = "credsStore")]
    store: String,
    #[serde(rename = "credHelpers")]
    helpers: BTreeMap<String, String>,
}

impl Keys {
    /// What is in config.json; an entry of "auths" that can't be read is no credentials, and no end of the others.
    fn of(config: &Value) -> Self {
        let again = |value: &Value| serde_json::to_value(value).unwrap_or_default();
        let fields = |name: &str| config.get(name).map(Value::fields).unwrap_or_default();
        let entry = |(name, value): &(String, Value)| match serde_json::from_value(again(value)) {
            Ok(entry) => Some((name.clone(), entry)),
            Err(error) => {
                crate::output::note(&format!("WARNING: Error parsing config file: auths of {name}: {error}"));
                None
            }
        };
        Self {
            auths: fields("auths").iter().filter_map(entry).collect(),
            store: config.text(&["credsStore"]).to_owned(),
            helpers: fields("credHelpers")
                .iter()
                .filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())))
                .collect(),
        }
    }
}

/// Why credentials were not kept or not forgotten.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// A credential helper.
    #[error(transparent)]
    Helper(#[from] HelperError),
    /// config.json
    #[error(transparent)]
    File(#[from] FileError),
}

/// Where credentials were put.
#[derive(Debug, PartialEq, Eq)]
pub enum Kept {
    /// In a helper's store.
    Safely,
    /// In config.json, readable for whoever reads that file.
    Unencrypted(PathBuf),
}

/// All the places credentials may be in.
#[derive(Debug, Default)]
pub struct Credentials {
    keys: Keys,
    /// From DOCKER_AUTH_CONFIG; wins over the file.
    variable: BTreeMap<String, Option<Entry>>,
    /// config.json, whether it exists or not.
    path: Option<PathBuf>,
    /// The store was not chosen by the user but found on this machine.
    found: bool,
}

impl Credentials {
    /// Takes what config.json says, and the variable.
    pub fn load(path: Option<PathBuf>, config: &Value) -> Self {
        let mut keys = Keys::of(config);
        let mut found = false;
        if keys.store.is_empty() && keys.helpers.is_empty() && keys.auths.is_empty() {
            // Nobody has decided yet: a store that this machine has is better than a file.
            keys.store = helper::default_store().unwrap_or_default().to_owned();
            found = !keys.store.is_empty();
        }
        let variable = env::var("DOCKER_AUTH_CONFIG").ok().filter(|text| !text.trim().is_empty());
        let variable = variable.map(|text| match serde_json::from_str::<Keys>(&text) {
            Ok(keys) => keys.auths,
            Err(error) => {
                crate::output::note(&format!("WARNING: DOCKER_AUTH_CONFIG is not valid and is ignored: {error}"));
                BTreeMap::new()
            }
        });
        Self { keys, variable: variable.unwrap_or_default(), path, found }
    }

    /// DOCKER_AUTH_CONFIG decides.
    pub fn by_variable(&self) -> bool {
        !self.variable.is_empty()
    }

    /// The header X-Registry-Auth for the registry of a reference ("docker.io", "host:port").
    pub fn header(&self, registry: &str) -> String {
        self.of(key_of(registry)).header()
    }

    /// Everything that there is, by key: a build may need any of it.
    pub fn all(&self) -> BTreeMap<String, AuthConfig> {
        let keys = self.keys.auths.keys().chain(self.keys.helpers.keys()).chain(self.variable.keys());
        keys.map(|key| (key.clone(), self.of(key))).filter(|(_, auth)| !auth.is_empty()).collect()
    }

    /// Credentials filed under a key. A helper that fails is worth a warning, and is no credentials.
    pub fn of(&self, key: &str) -> AuthConfig {
        if let Some(entry) = lookup(&self.variable, key) {
            return entry.auth_config(key);
        }
        let plain = || lookup(&self.keys.auths, key).map(|entry| entry.auth_config(key)).unwrap_or_default();
        let Some(name) = self.helper(key) else { return plain() };
        match helper::get(name, key) {
            Ok(Some((user, secret))) if user == TOKEN_USER => {
                AuthConfig { identity_token: secret, server: key.to_owned(), ..AuthConfig::default() }
            }
            Ok(Some((username, password))) => {
                AuthConfig { username, password, server: key.to_owned(), ..AuthConfig::default() }
            }
            // A bearer token is the one thing that the protocol of helpers has no word for.
            Ok(None) => AuthConfig { username: String::new(), password: String::new(), ..plain() },
            Err(error) => {
                crate::output::note(&format!("WARNING: no credentials are sent to {key}: {error}"));
                AuthConfig::default()
            }
        }
    }

    fn helper(&self, key: &str) -> Option<&str> {
        let name = self.keys.helpers.get(key).unwrap_or(&self.keys.store);
        (!name.is_empty()).then_some(name.as_str())
    }

    /// Keeps credentials.
    pub fn keep(&self, auth: &AuthConfig) -> Result<Kept, CredentialsError> {
        let key = auth.server.as_str();
        let entry = match self.helper(key) {
            Some(name) => {
                let (user, secret) = match auth.identity_token.as_str() {
                    "" => (auth.username.as_str(), auth.password.as_str()),
                    token => (TOKEN_USER, token),
                };
                helper::store(name, key, user, secret)?;
                // That there is something for this registry is noted in the file, too, as docker does it.
                file::entry(None, None)
            }
            None => {
                let pair = general_purpose::STANDARD.encode(format!("{}:{}", auth.username, auth.password));
                let pair = (!auth.username.is_empty()).then_some(pair);
                file::entry(pair, Some(auth.identity_token.clone()).filter(|token| !token.is_empty()))
            }
        };
        let path = self.path.clone().ok_or(FileError::NoHome)?;
        let store = self.found.then_some(self.keys.store.as_str());
        file::edit(&path, |config| file::put(config, key, entry, store))?;
        Ok(if self.helper(key).is_some() { Kept::Safely } else { Kept::Unencrypted(path) })
    }

    /// Forgets credentials; those that are not there count as forgotten.
    pub fn forget(&self, key: &str) -> Result<(), CredentialsError> {
        if let Some(name) = self.helper(key) {
            helper::erase(name, key)?;
        }
        if self.keys.auths.contains_key(key) {
            let path = self.path.clone().ok_or(FileError::NoHome)?;
            file::edit(&path, |config| file::remove(config, key))?;
        }
        Ok(())
    }
}

/// What the registry of a reference is filed under.
pub fn key_of(registry: &str) -> &str {
    if registry == HUB || registry == "index.docker.io" { HUB_KEY } else { registry }
}

/// The entry of exactly this registry; older files name it by a URL.
fn lookup<'e>(entries: &'e BTreeMap<String, Option<Entry>>, key: &str) -> Option<&'e Entry> {
    let exact = entries.get(key);
    let found = exact.or_else(|| entries.iter().find(|(stored, _)| host_of(stored) == key).map(|(_, entry)| entry));
    found.and_then(Option::as_ref)
}

/// "https://HOST/v1/" -> "HOST"
pub fn host_of(address: &str) -> &str {
    let rest = address.strip_prefix("https://").or_else(|| address.strip_prefix("http://")).unwrap_or(address);
    rest.split('/').next().unwrap_or(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(json: &str) -> Credentials {
        Credentials { keys: serde_json::from_str(json).unwrap(), ..Credentials::default() }
    }

    // user:pa:ss
    const AUTH: &str = r#"{"auth":"dXNlcjpwYTpzcw=="}"#;

    #[test]
    fn credentials_belong_to_one_registry() {
        let known = with(&format!(
            r#"{{"auths":{{"https://index.docker.io/v1/":{AUTH},"https://reg.test/v2/":{AUTH},"reg.test:5000":{AUTH},
            "bad.test":{{"auth":"!"}},"empty.test":{{}},"null.test":null}}}}"#
        ));
        for (registry, user) in [
            ("docker.io", "user"),
            ("index.docker.io", "user"),
            ("reg.test", "user"),
            ("reg.test:5000", "user"),
            ("reg.test:443", ""),
            ("sub.reg.test", ""),
            ("reg.tes", ""),
            ("bad.test", ""),
            ("empty.test", ""),
            ("null.test", ""),
            ("registry-1.docker.io", ""),
        ] {
            let auth = known.of(key_of(registry));
            assert_eq!(auth.username, user, "{registry}");
            assert_eq!(auth.header() == "e30=", user.is_empty(), "{registry}");
        }
        assert_eq!(known.of(HUB_KEY).password, "pa:ss");
    }

    #[test]
    fn tokens_are_passed_on() {
        let known = with(r#"{"auths":{"a":{"auth":"PHRva2VuPjo=","identitytoken":"id"},"b":{"registrytoken":"reg"}}}"#);
        assert_eq!((known.of("a").identity_token.as_str(), known.of("b").registry_token.as_str()), ("id", "reg"));
        let json = serde_json::to_string(&known.of("b")).unwrap();
        assert_eq!(json, r#"{"serveraddress":"b","registrytoken":"reg"}"#);
    }

    #[test]
    fn a_helper_that_fails_is_no_credentials() {
        // The credentials of the file are not for a registry whose helper is broken.
        let known =
            with(&format!(r#"{{"auths":{{"a":{AUTH},"b":{AUTH}}},"credHelpers":{{"a":"berth-no-such-helper"}}}}"#));
        assert_eq!(known.of("a"), AuthConfig::default());
        assert_eq!(known.of("b").username, "user");
        assert!(known.keep(&AuthConfig { server: "a".into(), ..AuthConfig::default() }).is_err());
    }
}
