//! What prost can't generate for CRI.

use std::fmt::{Debug, Formatter, Result};

use crate::runtime::v1::AuthConfig;

/// Tells which fields are set: requests are printed in logs and by failing tests, credentials never.
impl Debug for AuthConfig {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let set = |secret: &String| if secret.is_empty() { "" } else { "…" };
        f.debug_struct("AuthConfig")
            .field("username", &self.username)
            .field("password", &set(&self.password))
            .field("auth", &set(&self.auth))
            .field("server_address", &self.server_address)
            .field("identity_token", &set(&self.identity_token))
            .field("registry_token", &set(&self.registry_token))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::v1::PullImageRequest;

    #[test]
    fn a_printed_pull_has_no_secrets() {
        let auth = AuthConfig {
            username: "me".into(),
            password: "hush1".into(),
            auth: "hush2".into(),
            server_address: "registry.example".into(),
            identity_token: "hush3".into(),
            registry_token: "hush4".into(),
        };
        let printed = format!("{:?}", PullImageRequest { auth: Some(auth), ..Default::default() });
        assert!(printed.contains("me") && printed.contains("registry.example"), "{printed}");
        assert!(!printed.contains("hush"), "{printed}");
    }
}
