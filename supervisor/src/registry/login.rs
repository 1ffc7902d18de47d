//! Tries credentials, as `docker login` wants it: they are good if the registry's front door opens.

use std::sync::Arc;

use hyper::{Method, StatusCode};

use super::{
    Access, Credentials, Registries, RegistryError,
    auth::Ask,
    http,
    retry::{self, Retry},
};

/// How often an answer is tried for.
const ATTEMPTS: u32 = 3;

/// Logs in to the registry `domain`; what it gives to be kept in place of the password, if it does.
pub(crate) async fn log_in(
    registries: &Registries,
    domain: &str,
    host_dir: &str,
    credentials: Arc<dyn Credentials>,
) -> Result<Option<String>, RegistryError> {
    let access =
        Access { host_dir: host_dir.to_owned(), scheme: String::new(), headers: Default::default(), credentials };
    let upstreams = registries.upstreams(domain, &access, true)?;
    let Some(upstream) = upstreams.last() else {
        return Err(RegistryError::Incapable { domain: domain.to_owned(), action: "resolve" });
    };
    let session = &upstream.session;
    let mut retry = Retry::new(ATTEMPTS);
    loop {
        let door = || format!("{}/", session.base());
        let error = match session.request("", &Ask::new(Method::GET, "")).await {
            Ok(answer) if answer.status().is_success() => return Ok(session.identity().await),
            Ok(answer) => {
                let (status, headers) = (answer.status(), answer.headers().clone());
                let detail = http::detail(answer.into_body()).await;
                match status {
                    StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                        return Err(RegistryError::Login(format!(
                            "login attempt to {} failed with status: {status}",
                            door()
                        )));
                    }
                    _ => retry::refusal(session.host(), status, &headers, "a login".into(), detail),
                }
            }
            // The token service has looked at them.
            Err(RegistryError::Unauthorized { detail, .. }) => {
                let said = detail.trim_start_matches(": ");
                let said = said.strip_prefix("unauthorized").map_or(said, |rest| rest.trim_start_matches(": "));
                let said = if said.is_empty() { "incorrect username or password" } else { said };
                return Err(RegistryError::Login(format!("Get \"{}\": unauthorized: {said}", door())));
            }
            Err(error) => error,
        };
        retry.after(error).await?;
    }
}
