//! What is asked of registries beside pull and push: descriptors, tags, search, login. The supervisor asks, by Berth's own
//! service; a containerd hasn't got it.

use super::{ImageError, Images};
use crate::supervisor::{Credentials, SupervisorError, auth::Form};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use proto::{
    berth::registry::v1::{
        Auth, LoginRequest, ResolveRequest, ResolveResponse, SearchFilters, SearchRequest, SearchResult, TagsRequest,
    },
    image_ref::ImageRef,
    kind::ErrorKind,
};
use serde_json::{Value, json};

/// What to search.
#[derive(Debug, Clone, Default)]
pub struct Search {
    /// `HOST/TERM`, or a term for Docker Hub.
    pub term: String,
    /// Results at most.
    pub limit: i32,
    /// Only official ones, or only others.
    pub official: Option<bool>,
    /// Only automated builds, or only others.
    pub automated: Option<bool>,
    /// The least number of stars.
    pub stars: i64,
}

/// What Berth's own arguments of `GET /distribution/{name}/json` ask for.
#[derive(Debug, Clone, Copy, Default)]
pub struct Lookup {
    /// The manifest's bytes, too: what `manifest inspect` shows.
    pub manifest: bool,
    /// The registry's certificate isn't checked, and it may speak plain HTTP.
    pub insecure: bool,
}

/// Credentials in the form that the service takes.
pub(super) fn auth(credentials: Option<Credentials>) -> Option<Auth> {
    let Credentials { username, secret, form } = credentials?;
    Some(match form {
        Form::Password => Auth { username, password: secret, ..Auth::default() },
        Form::IdentityToken => Auth { username, identity_token: secret, ..Auth::default() },
        Form::RegistryToken => Auth { registry_token: secret, ..Auth::default() },
    })
}

fn failed(operation: &'static str, object: &str) -> impl Fn(SupervisorError) -> ImageError {
    move |error| match error.kind() {
        // Said by a containerd, and by supervisors of before.
        ErrorKind::Unimplemented => ImageError::Unimplemented(format!(
            "{operation} {object}: the supervisor cannot ask registries: it lacks berth.registry.v1, use berth-supervisor"
        )),
        _ => ImageError::supervisor(operation, object.to_owned(), error),
    }
}

impl Images {
    /// All tags of a repository.
    pub async fn tags_of(
        &self,
        repository: &ImageRef,
        credentials: Option<Credentials>,
    ) -> Result<Vec<String>, ImageError> {
        let name = repository.familiar_repository();
        let host_dir = self.host_dir(repository.domain()).await?;
        let request = TagsRequest { reference: repository.repository(), host_dir, auth: auth(credentials) };
        let tags = self.client.registry().tags(request).await.map_err(SupervisorError::from);
        match tags {
            Ok(answer) => Ok(answer.into_inner().tags),
            Err(error) if error.is_not_found() => {
                // The supervisor's words, or what another one says.
                let text = error.to_string();
                let said = text.starts_with("repository ");
                Err(ImageError::Registry(if said { text } else { format!("repository {name} not found: {text}") }))
            }
            Err(error) if matches!(error.kind(), ErrorKind::Unauthenticated | ErrorKind::PermissionDenied) => {
                Err(super::pull::registry_error(repository, error))
            }
            Err(error) => Err(failed("list tags of", &name)(error)),
        }
    }

    /// `GET /distribution/{name}/json`
    pub async fn distribution(
        &self,
        name: &str,
        lookup: Lookup,
        credentials: Option<Credentials>,
    ) -> Result<Value, ImageError> {
        let reference = name.parse::<ImageRef>()?.with_default_tag();
        let host_dir = match lookup.insecure {
            true => self.insecure_host_dir(reference.domain()).await?,
            false => self.host_dir(reference.domain()).await?,
        };
        let request = ResolveRequest {
            reference: reference.to_string(),
            host_dir,
            auth: auth(credentials),
            ..Default::default()
        };
        let ask = async |request: ResolveRequest| {
            let call =
                |client: crate::supervisor::Client, request| async move { client.registry().resolve(request).await };
            self.client.retry(request, call).await.map_err(|error| match error.kind() {
                ErrorKind::NotFound => ImageError::Registry(error.to_string()),
                ErrorKind::Unauthenticated | ErrorKind::PermissionDenied => {
                    super::pull::registry_error(&reference, error)
                }
                _ => failed("look up", &reference.familiar())(error),
            })
        };
        let found = ask(request.clone()).await?;
        let mut platforms = platforms_of_index(&found);
        if platforms.is_none() {
            let whole = ask(ResolveRequest { with_config: true, ..request }).await?;
            platforms = Some(platform_of_config(&whole.config).into_iter().collect());
        }
        let mut answer = json!({
            "Descriptor": {"mediaType": found.media_type, "digest": found.digest, "size": found.size},
            "Platforms": platforms.unwrap_or_default(),
        });
        if lookup.manifest {
            answer["Manifest"] = STANDARD.encode(&found.manifest).into();
        }
        Ok(answer)
    }

    /// `GET /images/search`
    pub async fn search(
        &self,
        search: Search,
        credentials: Option<Credentials>,
    ) -> Result<Vec<SearchResult>, ImageError> {
        let (host, term) = split_term(&search.term)?;
        let host_dir = if host.is_empty() { String::new() } else { self.host_dir(host).await? };
        let filters =
            SearchFilters { is_official: search.official, is_automated: search.automated, stars: search.stars };
        let request = SearchRequest {
            term: term.to_owned(),
            host: host.to_owned(),
            limit: search.limit,
            filters: Some(filters),
            host_dir,
            auth: auth(credentials),
        };
        let call = |client: crate::supervisor::Client, request| async move { client.registry().search(request).await };
        let found = self.client.retry(request, call).await.map_err(failed("search", &search.term))?;
        Ok(found.results)
    }

    /// `POST /auth`: gives the status and a token to be kept in place of the password.
    pub async fn login(&self, server: &str, auth: Auth) -> Result<(String, String), ImageError> {
        let bare = server.trim_start_matches("https://").trim_start_matches("http://");
        let domain = bare.split('/').next().unwrap_or_default();
        let hub = matches!(domain, "" | "docker.io" | "index.docker.io" | "registry-1.docker.io");
        let host_dir = if hub { String::new() } else { self.host_dir(domain).await? };
        let request = LoginRequest { host: server.to_owned(), host_dir, auth: Some(auth) };
        let answer = self.client.registry().login(request).await.map_err(SupervisorError::from);
        match answer {
            Ok(answer) => {
                let answer = answer.into_inner();
                Ok((answer.status, answer.identity_token))
            }
            Err(error) => Err(failed("log in to", if hub { "docker.io" } else { domain })(error)),
        }
    }
}

// The platforms of an index; `None` if it is no index.
fn platforms_of_index(found: &ResolveResponse) -> Option<Vec<Value>> {
    let document: Value = serde_json::from_slice(&found.manifest).ok()?;
    let entries = document.get("manifests")?.as_array()?;
    Some(entries.iter().filter_map(|entry| entry.get("platform").cloned()).collect())
}

fn platform_of_config(config: &[u8]) -> Option<Value> {
    let config: Value = serde_json::from_slice(config).ok()?;
    let mut platform = serde_json::Map::new();
    for key in ["architecture", "os", "os.version", "os.features", "variant"] {
        if let Some(value) = config.get(key).filter(|value| !crate::api::serial::is_zero(value)) {
            platform.insert(key.into(), value.clone());
        }
    }
    (!platform.is_empty()).then_some(Value::Object(platform))
}

/// The registry's host (none: Docker Hub) and the word to search there, by docker's rule: what has a dot, a colon or is
/// `localhost` before the first slash is a host.
fn split_term(text: &str) -> Result<(&str, &str), ImageError> {
    if text.contains("://") {
        let text = format!("invalid repository name: repository name ({text}) should not have a scheme");
        return Err(ImageError::Invalid(text));
    }
    Ok(match text.split_once('/') {
        Some((host, rest)) if host.contains(['.', ':']) || host == "localhost" => match host {
            "docker.io" | "index.docker.io" => ("", rest.strip_prefix("library/").unwrap_or(rest)),
            host => (host, rest),
        },
        _ => ("", text.strip_prefix("library/").unwrap_or(text)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terms() {
        for (text, host, term) in [
            ("nginx", "", "nginx"),
            ("library/nginx", "", "nginx"),
            ("team/app", "", "team/app"),
            ("docker.io/library/x", "", "x"),
            ("127.0.0.1:5000/x/y", "127.0.0.1:5000", "x/y"),
            ("localhost/x", "localhost", "x"),
        ] {
            assert_eq!(split_term(text).unwrap(), (host, term), "{text}");
        }
        assert!(split_term("https://x/y").is_err());
    }

    #[test]
    fn platforms() {
        let of =
            |manifest: &str| platforms_of_index(&ResolveResponse { manifest: manifest.into(), ..Default::default() });
        assert_eq!(of(r#"{"layers":[]}"#), None);
        let two = r#"{"manifests":[{"platform":{"os":"linux","architecture":"arm64","variant":"v8"}},{"digest":"x"}]}"#;
        assert_eq!(of(two), Some(vec![json!({"os": "linux", "architecture": "arm64", "variant": "v8"})]));
        let config = br#"{"os":"linux","architecture":"amd64","variant":"","rootfs":{}}"#;
        assert_eq!(platform_of_config(config), Some(json!({"os": "linux", "architecture": "amd64"})));
        assert_eq!(platform_of_config(b""), None);
    }
}
