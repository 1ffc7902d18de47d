//! What users log in with, and who is asked for it.

use tonic::async_trait;

/// What a user gave to log in with.
#[derive(Clone)]
pub(crate) enum Credential {
    /// User name and password.
    Password {
        /// The user.
        user: String,
        /// The password.
        secret: String,
    },
    /// An identity token (OAuth 2).
    Refresh(String),
    /// A complete `Authorization` header.
    Header(String),
}

/// Who is asked for credentials when a registry wants them.
#[async_trait]
pub(crate) trait Credentials: Send + Sync {
    /// The credential for `host`; `challenges` are the values of its `WWW-Authenticate` header.
    async fn credential(&self, host: &str, challenges: &[String]) -> Option<Credential>;
}

/// Nobody: anonymous access.
pub(crate) struct Anonymous;

#[async_trait]
impl Credentials for Anonymous {
    async fn credential(&self, _: &str, _: &[String]) -> Option<Credential> {
        None
    }
}

/// What came with a request: for one host, whatever other hosts a configuration puts before it.
pub(crate) struct Known {
    /// Host and port that it is for.
    pub(crate) host: String,
    /// The credential.
    pub(crate) credential: Option<Credential>,
}

#[async_trait]
impl Credentials for Known {
    async fn credential(&self, host: &str, _: &[String]) -> Option<Credential> {
        self.credential.clone().filter(|_| host == self.host)
    }
}
