//! Requests to one host: logs in where it wants that (basic, or bearer tokens by distribution's `spec/auth/token.md`), and
//! follows redirects without taking credentials along.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use base64::Engine;
use bytes::Bytes;
use hyper::{
    HeaderMap, Method, Response, StatusCode,
    header::{self, HeaderValue},
};
use tokio::sync::Mutex;

use super::{
    Credential, Credentials, Network, RegistryError,
    challenge::{Challenge, merge},
    connect::{ConnectError, Security},
    hosts::Host,
    http::{self, Body, Payload, Sender, Target},
    retry,
};

/// Redirects that are followed for one request.
const REDIRECTS: u32 = 10;
/// How long a token is good for if its service doesn't say (distribution, `spec/auth/token.md`).
const TOKEN_LIFE: u64 = 60;

/// Requests to one host, with what is needed to be let in.
pub(super) struct Session {
    base: Target,
    // The same host in the other scheme, until it is known which one it speaks.
    other: Option<Target>,
    switched: AtomicBool,
    settled: AtomicBool,
    headers: HeaderMap,
    credentials: Arc<dyn Credentials>,
    sender: Sender,
    // Logins that are to outlast the transfer ask for a refresh token.
    offline: bool,
    // One login at a time: parallel downloads wait for it and share it.
    login: Mutex<Login>,
}

#[derive(Default)]
struct Login {
    // Basic, or whatever the client gave: for every scope.
    header: Option<HeaderValue>,
    // By scopes.
    tokens: HashMap<String, Token>,
    // What the token service wants to hear; known after the first refusal.
    challenge: Option<Challenge>,
    // Asked for once; `Some(None)`: nobody has any.
    credential: Option<Option<Credential>>,
    identity: Option<String>,
}

struct Token {
    header: HeaderValue,
    until: Instant,
}

impl Login {
    fn header(&self, scope: &str) -> Option<HeaderValue> {
        let token = self.tokens.get(scope).filter(|token| token.until > Instant::now());
        token.map(|token| token.header.clone()).or_else(|| self.header.clone())
    }
}

/// One request: method, headers and body, and the scopes that it needs (`repository:a/b:pull`, several with spaces).
pub(super) struct Ask<'a> {
    /// The method.
    pub(super) method: Method,
    /// Headers of its own.
    pub(super) headers: HeaderMap,
    /// The body.
    pub(super) payload: &'a dyn Payload,
    /// What it wants to be allowed.
    pub(super) scope: &'a str,
}

static EMPTY: Bytes = Bytes::new();

impl<'a> Ask<'a> {
    /// A request without body.
    pub(super) fn new(method: Method, scope: &'a str) -> Self {
        Self { method, headers: HeaderMap::new(), payload: &EMPTY, scope }
    }

    /// The same with a header more.
    pub(super) fn with(mut self, name: header::HeaderName, value: &str) -> Self {
        if let Ok(value) = value.parse() {
            self.headers.append(name, value);
        }
        self
    }
}

impl Session {
    /// No connection yet.
    pub(super) fn new(
        host: &Host,
        headers: HeaderMap,
        credentials: Arc<dyn Credentials>,
        network: Arc<Network>,
        offline: bool,
    ) -> Self {
        let security = Arc::new(Security::new(host.trust.clone(), host.dial_timeout));
        Self {
            base: host.base.clone(),
            other: host.other.clone(),
            switched: AtomicBool::new(false),
            settled: AtomicBool::new(false),
            headers,
            credentials,
            sender: Sender::new(network, security),
            offline,
            login: Mutex::default(),
        }
    }

    /// The root of the host's API.
    pub(super) fn base(&self) -> &Target {
        match &self.other {
            Some(other) if self.switched.load(Ordering::Acquire) => other,
            _ => &self.base,
        }
    }

    /// Host and port.
    pub(super) fn host(&self) -> String {
        self.base.authority()
    }

    /// How long a connection may be silent.
    pub(super) fn silence(&self) -> Duration {
        self.sender.silence()
    }

    /// How the network is reached.
    pub(super) fn network(&self) -> Arc<Network> {
        self.sender.network()
    }

    /// The refresh token that the last login gave.
    pub(super) async fn identity(&self) -> Option<String> {
        self.login.lock().await.identity.clone()
    }

    /// Sends a request to a path of the API.
    pub(super) async fn request(&self, path: &str, ask: &Ask<'_>) -> Result<Response<Body>, RegistryError> {
        self.switching(
            |base| if path.is_empty() { base.at(&format!("{}/", base.path())) } else { base.join(path) },
            ask,
        )
        .await
    }

    /// Sends a request to a URL of the host that is made from its API's root.
    pub(super) async fn switching(
        &self,
        target: impl Fn(&Target) -> Target + Send,
        ask: &Ask<'_>,
    ) -> Result<Response<Body>, RegistryError> {
        self.settle().await;
        self.request_to(&target(self.base()), ask).await
    }

    // Finds out which of two schemes the host speaks, by knocking at its front door; if neither, the next request tells why.
    async fn settle(&self) {
        let Some(other) = self.other.as_ref().filter(|_| !self.settled.load(Ordering::Acquire)) else { return };
        let door = |base: &Target| base.at(&format!("{}/", base.path()));
        let knock = Ask::new(Method::GET, "");
        let is_other = match self.follow(&door(&self.base), &knock, None).await {
            Ok(answer) if !self.base.is_https() && answer.status() == StatusCode::BAD_REQUEST => {
                let detail = http::detail(answer.into_body()).await;
                // What servers with TLS say to those who come without (Go's, nginx).
                detail.contains("HTTPS server") || detail.contains("HTTPS port")
            }
            Ok(_) => false,
            Err(RegistryError::NotHttp { .. }) => !self.base.is_https(),
            Err(RegistryError::Unreachable { cause, .. }) if self.base.is_https() => {
                let is_plain = matches!(*cause, ConnectError::Plain(_));
                // Nobody at the port of one may be somebody at that of the other.
                is_plain || self.follow(&door(other), &knock, None).await.is_ok()
            }
            Err(_) => return,
        };
        self.switched.store(is_other, Ordering::Release);
        self.settled.store(true, Ordering::Release);
    }

    /// Sends a request, logs in if the registry wants it, and follows redirects.
    pub(super) async fn request_to(&self, target: &Target, ask: &Ask<'_>) -> Result<Response<Body>, RegistryError> {
        let mut used = self.current(ask.scope).await?;
        // Twice: the login of somebody else may have been used up meanwhile, our own new one can't.
        for _ in 0..2 {
            let answer = self.follow(target, ask, used.as_ref()).await?;
            if answer.status() != StatusCode::UNAUTHORIZED {
                return Ok(answer);
            }
            let challenges: Vec<String> = answer
                .headers()
                .get_all(header::WWW_AUTHENTICATE)
                .iter()
                .filter_map(|value| value.to_str().ok().map(str::to_owned))
                .collect();
            let mut login = self.login.lock().await;
            let known = login.header(ask.scope);
            if known.is_some() && known != used {
                used = known;
                continue;
            }
            // A token may have run out, or been revoked.
            let Some(header) = self.log_in(&challenges, &mut login, ask.scope).await? else { return Ok(answer) };
            drop(login);
            return self.follow(target, ask, Some(&header)).await;
        }
        self.follow(target, ask, used.as_ref()).await
    }

    // What is known to be wanted, with a token that is still good.
    async fn current(&self, scope: &str) -> Result<Option<HeaderValue>, RegistryError> {
        let mut login = self.login.lock().await;
        match (login.header(scope), login.challenge.clone()) {
            (None, Some(challenge)) => {
                let credential = login.credential.clone().flatten();
                self.token(&challenge, credential.as_ref(), &mut login, scope).await.map(Some)
            }
            (header, _) => Ok(header),
        }
    }

    async fn follow(
        &self,
        target: &Target,
        ask: &Ask<'_>,
        authorization: Option<&HeaderValue>,
    ) -> Result<Response<Body>, RegistryError> {
        let mut target = target.clone();
        for _ in 0..=REDIRECTS {
            let own = target.origin() == self.base().origin();
            // The client's own headers may hold secrets as well, so they stay with the registry.
            let mut all = if own { self.headers.clone() } else { HeaderMap::new() };
            for name in ask.headers.keys() {
                all.remove(name);
                for value in ask.headers.get_all(name) {
                    all.append(name.clone(), value.clone());
                }
            }
            if !all.contains_key(header::USER_AGENT) {
                all.insert(header::USER_AGENT, HeaderValue::from_static("berth"));
            }
            if own && let Some(value) = authorization {
                all.insert(header::AUTHORIZATION, value.clone());
            }
            let answer = self.sender.send(&ask.method, &target, all, ask.payload, own).await?;
            let status = answer.status().as_u16();
            let reads = matches!(ask.method, Method::GET | Method::HEAD);
            if !(matches!(status, 307 | 308) || (reads && matches!(status, 301..=303))) {
                return Ok(answer);
            }
            let wrong = |why: String| RegistryError::Protocol { host: target.authority(), why };
            let location = answer.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
            let location = location.ok_or_else(|| wrong("redirect without location".into()))?;
            target = target.resolve(location).map_err(|why| wrong(format!("redirect: {why}")))?;
        }
        Err(RegistryError::Protocol { host: self.host(), why: "too many redirects".into() })
    }

    // The value of the Authorization header; `None` if there is no way in.
    async fn log_in(
        &self,
        headers: &[String],
        login: &mut Login,
        scope: &str,
    ) -> Result<Option<HeaderValue>, RegistryError> {
        if login.credential.is_none() {
            login.credential = Some(self.credentials.credential(&self.host(), headers).await);
        }
        let credential = login.credential.clone().flatten();
        if let Some(Credential::Header(value)) = &credential {
            // The second time, it has been refused.
            return Ok(if login.header.is_some() { None } else { remembered(login, value) });
        }
        let challenges: Vec<Challenge> = headers.iter().flat_map(|header| Challenge::parse(header)).collect();
        if let Some(bearer) = challenges.iter().find(|c| c.scheme == "bearer") {
            login.challenge = Some(bearer.clone());
            return self.token(bearer, credential.as_ref(), login, scope).await.map(Some);
        }
        if challenges.iter().any(|c| c.scheme == "basic")
            && let Some(Credential::Password { user, secret: password }) = &credential
            && login.header.is_none()
        {
            return Ok(remembered(login, &basic(user, password)));
        }
        Ok(None)
    }

    async fn token(
        &self,
        challenge: &Challenge,
        credential: Option<&Credential>,
        login: &mut Login,
        scope: &str,
    ) -> Result<HeaderValue, RegistryError> {
        #[derive(serde::Deserialize)]
        struct Answer {
            token: Option<String>,
            access_token: Option<String>,
            refresh_token: Option<String>,
            // Some services write it as a text.
            expires_in: Option<serde_json::Value>,
        }
        let wrong = |why: String| RegistryError::Protocol { host: self.host(), why };
        let realm = challenge.get("realm").ok_or_else(|| wrong("bearer challenge without realm".into()))?;
        let realm = Target::parse(realm).map_err(|why| wrong(format!("realm: {why}")))?;
        if self.base().is_https() && !realm.is_https() {
            return Err(wrong(format!("its token service {realm} is not encrypted")));
        }
        let scopes = merge(&[challenge.get("scope").unwrap_or_default(), scope]);
        let service = challenge.get("service").unwrap_or_default();
        let mut headers = HeaderMap::new();
        headers.insert(header::USER_AGENT, HeaderValue::from_static("berth"));
        // Where the registry's own host gives the tokens, it may want the client certificate for them, too.
        let own = realm.origin() == self.base().origin();
        let answer = if let Some(Credential::Refresh(token)) = credential {
            let form = format!(
                "grant_type=refresh_token&client_id=berth&service={}&scope={}&refresh_token={}",
                http::encode(service),
                http::encode(&scopes.join(" ")),
                http::encode(token)
            );
            let kind = HeaderValue::from_static("application/x-www-form-urlencoded");
            headers.insert(header::CONTENT_TYPE, kind);
            self.sender.send(&Method::POST, &realm, headers, &Bytes::from(form), own).await?
        } else {
            let mut parameters = Vec::new();
            if !service.is_empty() {
                parameters.push(("service", service));
            }
            parameters.extend(scopes.iter().map(|scope| ("scope", scope.as_str())));
            parameters.push(("client_id", "berth"));
            if let Some(Credential::Password { user, secret: password }) = credential {
                parameters.push(("account", user));
                if self.offline {
                    parameters.push(("offline_token", "true"));
                }
                headers.extend(secret(&basic(user, password)).map(|value| (header::AUTHORIZATION, value)));
            }
            let target = realm.with_query(&parameters).map_err(wrong)?;
            self.sender.send(&Method::GET, &target, headers, &EMPTY, own).await?
        };
        let status = answer.status();
        if !status.is_success() {
            let (host, what, parts) = (realm.authority(), "a token".to_owned(), answer.headers().clone());
            let detail = http::detail(answer.into_body()).await;
            return Err(match status {
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::BAD_REQUEST => {
                    RegistryError::Unauthorized { action: "pull", image: self.host(), detail }
                }
                _ => retry::refusal(host, status, &parts, what, detail),
            });
        }
        let bytes = http::read(answer.into_body(), 1 << 20, self.silence(), &realm.authority(), "token").await?;
        let answer: Answer =
            serde_json::from_slice(&bytes).map_err(|error| wrong(format!("answer of its token service: {error}")))?;
        let token = answer.token.filter(|t| !t.is_empty()).or(answer.access_token).unwrap_or_default();
        let header = secret(&format!("Bearer {token}")).filter(|_| !token.is_empty());
        let header = header.ok_or_else(|| wrong("its token service gave no token".into()))?;
        if let Some(identity) = answer.refresh_token.filter(|token| !token.is_empty()) {
            login.identity = Some(identity);
        }
        // A little less than promised: a request that has begun must end in time.
        let life = Duration::from_secs(lifetime(answer.expires_in.as_ref())).mul_f32(0.9);
        login.tokens.insert(scope.to_owned(), Token { header: header.clone(), until: Instant::now() + life });
        Ok(header)
    }
}

fn lifetime(said: Option<&serde_json::Value>) -> u64 {
    let seconds = said.and_then(|said| said.as_u64().or_else(|| said.as_str()?.trim().parse().ok()));
    seconds.filter(|life| *life > 0).unwrap_or(TOKEN_LIFE)
}

fn remembered(login: &mut Login, text: &str) -> Option<HeaderValue> {
    login.header = secret(text);
    login.header.clone()
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
