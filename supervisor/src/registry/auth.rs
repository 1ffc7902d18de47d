//! Authentication: challenges (RFC 9110, 11.6.1), bearer tokens (distribution, `spec/auth/token.md`), redirects.

use std::sync::Arc;

use base64::Engine;
use bytes::Bytes;
use hyper::{
    HeaderMap, Method, Response, StatusCode,
    header::{self, HeaderValue},
};
use tokio::sync::Mutex;

use super::{
    Credential, Credentials, RegistryError,
    http::{self, Body, Sender, Target},
};

/// Redirects that are followed for one request.
const REDIRECTS: u32 = 10;

/// A challenge: scheme in lower case, and its parameters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Challenge {
    scheme: String,
    parameters: Vec<(String, String)>,
}

impl Challenge {
    fn get(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// Reads one header, which may hold several challenges: `Bearer realm="…",scope="a,b", Basic realm="x"`.
    pub(super) fn parse(text: &str) -> Vec<Self> {
        let mut found: Vec<Self> = Vec::new();
        let mut rest = text.trim_start_matches([' ', '\t', ',']);
        while !rest.is_empty() {
            let (word, after) = token(rest);
            if word.is_empty() {
                return found; // not in the grammar: what came before counts
            }
            let after = after.trim_start();
            // `name=value` belongs to the challenge before; a word alone begins a new one.
            if let Some(value) = after.strip_prefix('=')
                && let Some(last) = found.last_mut()
                && !value.starts_with('=')
            {
                let (value, tail) = value_of(value.trim_start());
                last.parameters.push((word.to_ascii_lowercase(), value));
                rest = tail;
            } else {
                found.push(Self { scheme: word.to_ascii_lowercase(), parameters: Vec::new() });
                rest = after;
            }
            rest = rest.trim_start_matches([' ', '\t', ',']);
        }
        found
    }
}

fn token(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !(c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c))).unwrap_or(text.len());
    text.split_at(end)
}

fn value_of(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        // Unquoted values with characters beyond tokens are seen in the wild; they end at a comma or space.
        let end = text.find([',', ' ', '\t']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(chars.next().map(|(_, c)| c)),
            c => value.push(c),
        }
    }
    (value, "")
}

/// Requests to one repository, with what is needed to be let in.
pub(super) struct Session {
    base: Target,
    scope: String,
    headers: HeaderMap,
    credentials: Arc<dyn Credentials>,
    sender: Sender,
    // One login at a time: parallel downloads wait for it and share it.
    authorization: Mutex<Login>,
}

#[derive(Default)]
struct Login {
    header: Option<HeaderValue>,
    // Asked for once; `Some(None)`: nobody has any.
    credential: Option<Option<Credential>>,
}

impl Session {
    pub(super) fn new(base: Target, scope: String, headers: HeaderMap, credentials: Arc<dyn Credentials>) -> Self {
        Self { base, scope, headers, credentials, sender: Sender::new(), authorization: Mutex::default() }
    }

    /// Sends a request, logs in if the registry wants it, and follows redirects.
    pub(super) async fn request(
        &self,
        method: &Method,
        target: &Target,
        headers: &HeaderMap,
    ) -> Result<Response<Body>, RegistryError> {
        let used = self.authorization.lock().await.header.clone();
        let answer = self.follow(method, target, headers, used.as_ref()).await?;
        if answer.status() != StatusCode::UNAUTHORIZED {
            return Ok(answer);
        }
        let challenges: Vec<String> = answer
            .headers()
            .get_all(header::WWW_AUTHENTICATE)
            .iter()
            .filter_map(|value| value.to_str().ok().map(str::to_owned))
            .collect();
        let mut login = self.authorization.lock().await;
        // Somebody else may have logged in since, or a token may have run out.
        if login.header == used {
            match self.log_in(&challenges, &mut login).await? {
                Some(header) => login.header = Some(header),
                None => return Ok(answer),
            }
        }
        let header = login.header.clone();
        drop(login);
        self.follow(method, target, headers, header.as_ref()).await
    }

    async fn follow(
        &self,
        method: &Method,
        target: &Target,
        headers: &HeaderMap,
        authorization: Option<&HeaderValue>,
    ) -> Result<Response<Body>, RegistryError> {
        let mut target = target.clone();
        for _ in 0..=REDIRECTS {
            let own = target.origin() == self.base.origin();
            // The client's own headers may hold secrets as well, so they stay with the registry.
            let mut all = if own { self.headers.clone() } else { HeaderMap::new() };
            all.extend(headers.iter().map(|(name, value)| (name.clone(), value.clone())).filter(|(name, _)| {
                // `extend` replaces repeated names one by one; ACCEPT is put together below.
                name != header::ACCEPT
            }));
            for value in headers.get_all(header::ACCEPT) {
                all.append(header::ACCEPT, value.clone());
            }
            if own && let Some(value) = authorization {
                all.insert(header::AUTHORIZATION, value.clone());
            }
            let answer = self.sender.send(method, &target, all, Bytes::new()).await?;
            if !matches!(answer.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok(answer);
            }
            let wrong = |why: String| RegistryError::Protocol { host: target.authority(), why };
            let location = answer.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
            let location = location.ok_or_else(|| wrong("redirect without location".into()))?;
            target = target.resolve(location).map_err(|why| wrong(format!("redirect: {why}")))?;
        }
        Err(RegistryError::Protocol { host: self.base.authority(), why: "too many redirects".into() })
    }

    // The value of the Authorization header; `None` if there is no way in.
    async fn log_in(&self, headers: &[String], login: &mut Login) -> Result<Option<HeaderValue>, RegistryError> {
        let host = self.base.authority();
        if login.credential.is_none() {
            login.credential = Some(self.credentials.credential(&host, headers).await);
        }
        let credential = login.credential.clone().flatten();
        if let Some(Credential::Header(value)) = &credential {
            // The second time, it has been refused.
            return Ok(if login.header.is_some() { None } else { secret(value) });
        }
        let challenges: Vec<Challenge> = headers.iter().flat_map(|header| Challenge::parse(header)).collect();
        if let Some(bearer) = challenges.iter().find(|c| c.scheme == "bearer") {
            let token = self.token(bearer, credential.as_ref()).await?;
            return Ok(secret(&format!("Bearer {token}")));
        }
        if challenges.iter().any(|c| c.scheme == "basic")
            && let Some(Credential::Password { user, secret: password }) = &credential
            && login.header.is_none()
        {
            return Ok(secret(&basic(user, password)));
        }
        Ok(None)
    }

    async fn token(&self, challenge: &Challenge, credential: Option<&Credential>) -> Result<String, RegistryError> {
        #[derive(serde::Deserialize)]
        struct Answer {
            token: Option<String>,
            access_token: Option<String>,
        }
        let wrong = |why: String| RegistryError::Protocol { host: self.base.authority(), why };
        let realm = challenge.get("realm").ok_or_else(|| wrong("bearer challenge without realm".into()))?;
        let realm = Target::parse(realm).map_err(|why| wrong(format!("realm: {why}")))?;
        if self.base.is_https() && !realm.is_https() {
            return Err(wrong(format!("its token service {realm} is not encrypted")));
        }
        let scope = challenge.get("scope").unwrap_or(&self.scope);
        let service = challenge.get("service").unwrap_or_default();
        let mut headers = HeaderMap::new();
        headers.insert(header::USER_AGENT, HeaderValue::from_static("berth"));
        let answer = if let Some(Credential::Refresh(token)) = credential {
            let form = format!(
                "grant_type=refresh_token&client_id=berth&service={}&scope={}&refresh_token={}",
                http::encode(service),
                http::encode(scope),
                http::encode(token)
            );
            let kind = HeaderValue::from_static("application/x-www-form-urlencoded");
            headers.insert(header::CONTENT_TYPE, kind);
            self.sender.send(&Method::POST, &realm, headers, Bytes::from(form)).await?
        } else {
            if let Some(Credential::Password { user, secret: password }) = credential
                && let Some(value) = secret(&basic(user, password))
            {
                headers.insert(header::AUTHORIZATION, value);
            }
            let mut parameters = vec![("scope", scope)];
            if !service.is_empty() {
                parameters.insert(0, ("service", service));
            }
            let target = realm.with_query(&parameters).map_err(|why| wrong(format!("realm: {why}")))?;
            self.sender.send(&Method::GET, &target, headers, Bytes::new()).await?
        };
        let status = answer.status();
        if !status.is_success() {
            let detail = http::detail(answer.into_body()).await;
            if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
                return Err(RegistryError::Unauthorized { image: String::new(), detail });
            }
            let (host, what) = (realm.authority(), "an access token".to_owned());
            return Err(RegistryError::Answer { host, status, what, detail });
        }
        let bytes = http::read(answer.into_body(), 1 << 20, &realm.authority(), "access token").await?;
        let answer: Answer =
            serde_json::from_slice(&bytes).map_err(|error| wrong(format!("answer of its token service: {error}")))?;
        let token = answer.token.filter(|t| !t.is_empty()).or(answer.access_token).unwrap_or_default();
        if token.is_empty() {
            return Err(wrong("its token service gave no token".into()));
        }
        Ok(token)
    }
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}")))
}

// Marked, so that it is not shown where headers are logged.
fn secret(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::try_from(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shown(text: &str) -> String {
        let all = Challenge::parse(text);
        let one = |c: &Challenge| {
            let parameters: Vec<_> = c.parameters.iter().map(|(n, v)| format!("{n}={v}")).collect();
            format!("{}[{}]", c.scheme, parameters.join("|"))
        };
        all.iter().map(one).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn challenges() {
        for (text, wanted) in [
            (
                r#"Bearer realm="https://auth.example/token",service="reg.example",scope="repository:a/b:pull,push""#,
                "bearer[realm=https://auth.example/token|service=reg.example|scope=repository:a/b:pull,push]",
            ),
            (r#"Basic realm="a \"b\"", Bearer realm=x"#, r#"basic[realm=a "b"] bearer[realm=x]"#),
            ("Negotiate, Basic realm = \"x\"", "negotiate[] basic[realm=x]"),
            ("BASIC Realm=x", "basic[realm=x]"),
            (r#"Bearer realm="unclosed"#, "bearer[realm=unclosed]"),
            ("", ""),
            ("realm=x", "realm[]"),
            ("\"", ""),
        ] {
            assert_eq!(shown(text), wanted, "{text}");
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics_and_ends(text in "[ -~é]{0,80}") {
            let _ = Challenge::parse(&text);
        }
    }
}
