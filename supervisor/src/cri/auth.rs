//! What a pull logs in with: it comes with the request, goes to one registry, and ends with the pull.

use std::sync::Arc;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use proto::{image_ref::ImageRef, kind::ErrorKind, runtime::v1::AuthConfig};

use crate::{
    api::registry::domain_of,
    failure::Failure,
    registry::{Anonymous, Credential, Credentials, Known, own_authority},
};

/// Why nobody can log in with it. None of these say what it is.
#[derive(Debug, thiserror::Error)]
pub(super) enum AuthError {
    /// `auth` isn't what it has to be.
    #[error("auth of the request is not the base64 of NAME:PASSWORD")]
    Malformed,
}

impl Failure for AuthError {
    fn kind(&self) -> ErrorKind {
        ErrorKind::InvalidArgument
    }
}

/// Credentials for the registry of `image`; nobody's, if they are meant for another one.
pub(super) fn credentials(auth: Option<AuthConfig>, image: &ImageRef) -> Result<Arc<dyn Credentials>, AuthError> {
    let auth = auth.unwrap_or_default();
    if !auth.server_address.is_empty() && domain_of(&auth.server_address) != image.domain() {
        return Ok(Arc::new(Anonymous));
    }
    Ok(match credential(auth)? {
        None => Arc::new(Anonymous),
        credential => Arc::new(Known { host: own_authority(image.domain()), credential }),
    })
}

fn credential(auth: AuthConfig) -> Result<Option<Credential>, AuthError> {
    let AuthConfig { username, password, auth, server_address: _, identity_token, registry_token } = auth;
    if !registry_token.is_empty() {
        return Ok(Some(Credential::Header(format!("Bearer {registry_token}"))));
    }
    if !identity_token.is_empty() {
        return Ok(Some(Credential::Refresh(identity_token)));
    }
    if !username.is_empty() {
        return Ok(Some(Credential::Password { user: username, secret: password }));
    }
    if auth.is_empty() {
        return Ok(None);
    }
    let decoded = BASE64_STANDARD.decode(auth.trim()).map_err(|_| AuthError::Malformed)?;
    let text = String::from_utf8(decoded).map_err(|_| AuthError::Malformed)?;
    let (user, secret) = text.split_once(':').ok_or(AuthError::Malformed)?;
    // Some tools fill up with NULs (as containerd knows, too).
    Ok(Some(Credential::Password { user: user.to_owned(), secret: secret.trim_end_matches('\0').to_owned() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(auth: AuthConfig) -> String {
        match credential(auth) {
            Ok(None) => "nothing".into(),
            Ok(Some(Credential::Password { user, secret })) => format!("{user}/{secret}"),
            Ok(Some(Credential::Refresh(token))) => format!("refresh {token}"),
            Ok(Some(Credential::Header(header))) => header,
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn the_forms_that_credentials_have() {
        let named = AuthConfig { username: "me".into(), password: "p:w".into(), ..Default::default() };
        let encoded = |text: &str| AuthConfig { auth: BASE64_STANDARD.encode(text), ..Default::default() };
        assert_eq!(said(AuthConfig::default()), "nothing");
        assert_eq!(said(named.clone()), "me/p:w");
        assert_eq!(said(AuthConfig { identity_token: "t".into(), ..named.clone() }), "refresh t");
        assert_eq!(said(AuthConfig { registry_token: "r".into(), identity_token: "t".into(), ..named }), "Bearer r");
        assert_eq!(said(encoded("me:p:w\0\0")), "me/p:w");
        for wrong in [encoded("me"), AuthConfig { auth: "hush!".into(), ..Default::default() }] {
            assert_eq!(said(wrong), "auth of the request is not the base64 of NAME:PASSWORD");
        }
    }

    #[tokio::test]
    async fn they_go_to_the_registry_that_they_are_for() {
        let asked = async |image: &str, server_address: &str, host: &str| {
            let auth =
                AuthConfig { username: "me".into(), server_address: server_address.into(), ..Default::default() };
            let credentials = credentials(Some(auth), &image.parse().unwrap()).unwrap();
            credentials.credential(host, &[]).await.is_some()
        };
        assert!(asked("reg.example:5000/app", "", "reg.example:5000").await);
        assert!(asked("reg.example:5000/app", "https://reg.example:5000/v2/", "reg.example:5000").await);
        assert!(asked("app", "https://index.docker.io/v1/", "registry-1.docker.io").await);
        assert!(!asked("reg.example:5000/app", "", "mirror.example").await, "a mirror");
        assert!(!asked("reg.example/app", "https://other.example", "reg.example").await, "another registry's");
    }
}
