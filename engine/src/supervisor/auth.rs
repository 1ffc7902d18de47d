//! Credentials for a registry, and the rule for which host may see them.

use proto::{
    containerd::types::transfer::{AuthRequest, AuthResponse, AuthType},
    image_ref::ImageRef,
};
use std::fmt;

/// What the user gave for one registry.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The user; empty with a token.
    pub username: String,
    /// Password, identity token or complete Authorization header.
    pub secret: String,
    /// What `secret` is.
    pub form: Form,
}

/// The forms of a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// User name and password.
    Password,
    /// To be traded for an access token (OAuth 2).
    IdentityToken,
    /// Sent as `Authorization: Bearer`.
    RegistryToken,
}

// A secret must never get into a log by way of `{:?}`.
impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("username", &self.username)
            .field("form", &self.form)
            .finish_non_exhaustive()
    }
}

/// Answers the supervisor's question for credentials: only for the registry that the reference names, nothing for others.
pub fn answer(request: &AuthRequest, reference: &ImageRef, credentials: Option<&Credentials>) -> AuthResponse {
    let Some(credentials) = credentials.filter(|_| is_registry_host(&request.host, reference.domain())) else {
        return AuthResponse { auth_type: AuthType::None.into(), ..AuthResponse::default() };
    };
    let (auth_type, secret) = match credentials.form {
        Form::Password => (AuthType::Credentials, credentials.secret.clone()),
        Form::IdentityToken => (AuthType::Refresh, credentials.secret.clone()),
        Form::RegistryToken => (AuthType::Header, format!("Bearer {}", credentials.secret)),
    };
    AuthResponse { auth_type: auth_type.into(), secret, username: credentials.username.clone(), expire_at: None }
}

// Port included: another port is another service. The hub's registry answers under names of its own.
fn is_registry_host(host: &str, domain: &str) -> bool {
    host == domain || (domain == "docker.io" && matches!(host, "index.docker.io" | "registry-1.docker.io"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_named_registry_gets_the_secret() {
        let credentials = Credentials { username: "u".into(), secret: "p".into(), form: Form::Password };
        let cases = [
            ("127.0.0.1:5000/a", "127.0.0.1:5000", true),
            ("127.0.0.1:5000/a", "127.0.0.1:5001", false),
            ("127.0.0.1:5000/a", "evil.example", false),
            ("a", "registry-1.docker.io", true),
            ("a", "docker.io.evil.example", false),
            ("reg.example/a", "registry-1.docker.io", false),
        ];
        for (reference, host, given) in cases {
            let request = AuthRequest { host: host.into(), ..AuthRequest::default() };
            let answer = answer(&request, &reference.parse().unwrap(), Some(&credentials));
            assert_eq!(answer.auth_type() == AuthType::Credentials, given, "{reference} at {host}");
            assert_eq!(answer.secret.is_empty(), !given);
        }
    }

    #[test]
    fn debug_hides_the_secret() {
        let credentials = Credentials { username: "u".into(), secret: "hunter2".into(), form: Form::Password };
        assert!(!format!("{credentials:?}").contains("hunter2"));
    }
}
