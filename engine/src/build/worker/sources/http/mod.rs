//! The source `http://` and `https://`: one file of a web server.
//!
//! It is fetched when it is pinned, for its content is its key. What is remembered of a URL is what the server said of it (`ETag`,
//! `Last-Modified`) and the digest: if nothing has changed there, nothing is fetched. The file itself goes as soon as it has
//! become a filesystem.

mod connect;
mod date;

use crate::{
    app::App,
    build::{
        tree::{Tree, Trees},
        worker::run::Outside,
    },
};
use base64::Engine as _;
use connect::Network;
use http_body_util::{BodyExt as _, Empty};
use hyper::{
    HeaderMap, Request, Response, StatusCode, Uri,
    body::{Bytes, Incoming},
    client::conn::http1,
    header::{self, HeaderName, HeaderValue},
};
use hyper_util::rt::TokioIo;
use nix::{
    fcntl::{AtFlags, OFlag, openat},
    sys::{
        stat::{Mode, UtimensatFlags, fchmod, utimensat},
        time::TimeSpec,
    },
    unistd::{Gid, Uid, fchownat},
};
use proto::{digest::Digest, pb, proxy::Proxies};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use solver::{Pin, Step, StepError};
use std::{
    collections::HashMap,
    fs::{self, DirBuilder, File},
    io,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::DirBuilderExt as _,
    },
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, Weak},
    time::{Duration, SystemTime},
};
use tokio::io::AsyncWriteExt as _;

/// Names of attributes; BuildKit's.
const CHECKSUM: &str = "http.checksum";
const FILENAME: &str = "http.filename";
const PERM: &str = "http.perm";
const UID: &str = "http.uid";
const GID: &str = "http.gid";
const AUTH_SECRET: &str = "http.authheadersecret";
const HEADERS: &str = "http.header.";
/// The secret that is asked for if none is named, by host.
const AUTH_OF_HOST: &str = "HTTP_AUTH_HEADER_";
/// Headers that a build may choose.
const CHOSEN: [&str; 2] = ["accept", "user-agent"];

/// What one file may have.
const MOST: u64 = 64 << 30;
/// How long a server may say nothing.
const SILENCE: Duration = Duration::from_secs(60);
const REDIRECTS: usize = 10;
/// A file that was fetched and not wanted for so long goes.
const UNWANTED: Duration = Duration::from_secs(3600);
/// What a name without a better one is called.
const NAMELESS: &str = "download";

/// Fetches files.
#[derive(Clone)]
pub struct Http(Arc<Inner>);

struct Inner {
    folder: PathBuf,
    network: Network,
    /// One at a time for the same URL.
    turns: Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>,
}

/// What is remembered of a URL.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
struct Memory {
    etag: String,
    last_modified: String,
    /// Of its content; empty if nothing is known.
    digest: String,
    /// What the server calls it.
    disposition: String,
}

/// What is asked for.
struct Wish {
    url: Uri,
    /// For errors and names: without what is nobody's business.
    shown: String,
    checksum: Option<Digest>,
    filename: Option<String>,
    mode: u32,
    uid: u32,
    gid: u32,
    headers: HeaderMap,
    secret: Option<String>,
}

fn failed<E>(what: impl Into<String>) -> impl FnOnce(E) -> StepError
where
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let what = what.into();
    move |cause| StepError::Failed { what, cause: cause.into() }
}

fn invalid(text: impl Into<String>) -> StepError {
    StepError::Invalid(text.into())
}

impl Wish {
    fn read(source: &pb::SourceOp) -> Result<Self, StepError> {
        let url = source.identifier.split('#').next().unwrap_or_default();
        let parsed: Uri = url.parse().map_err(|error| invalid(format!("invalid URL: {error}")))?;
        if !matches!(parsed.scheme_str(), Some("http" | "https")) || parsed.host().is_none_or(str::is_empty) {
            return Err(invalid("invalid URL: http://HOST/ or https://HOST/ is needed"));
        }
        let shown = shown(&parsed);
        let attr = |key: &str| source.attrs.get(key).filter(|value| !value.is_empty());
        let number = |key: &str| match attr(key) {
            None => Ok(0),
            Some(text) => text.parse::<u32>().map_err(|_| invalid(format!("{shown}: invalid {key} {text:?}"))),
        };
        let mode = match attr(PERM) {
            None => 0o600,
            Some(text) => {
                let digits = text.strip_prefix("0o").unwrap_or(text);
                let mode = u32::from_str_radix(digits, 8).ok().filter(|mode| *mode <= 0o7777);
                mode.ok_or_else(|| invalid(format!("{shown}: invalid {PERM} {text:?}")))?
            }
        };
        let checksum = match attr(CHECKSUM) {
            None => None,
            Some(text) => {
                Some(text.parse::<Digest>().map_err(|_| invalid(format!("{shown}: invalid checksum {text:?}")))?)
            }
        };
        let mut headers = HeaderMap::new();
        for (key, value) in source.attrs.iter().filter_map(|(key, value)| Some((key.strip_prefix(HEADERS)?, value))) {
            let bad = || invalid(format!("{shown}: header {key:?} can't be chosen"));
            if !CHOSEN.contains(&key.to_ascii_lowercase().as_str()) {
                return Err(bad());
            }
            let name = HeaderName::from_bytes(key.as_bytes()).map_err(|_| bad())?;
            headers.insert(name, HeaderValue::from_str(value).map_err(|_| bad())?);
        }
        let filename = attr(FILENAME)
            .map(|name| plain_name(name).ok_or_else(|| invalid(format!("{shown}: invalid name {name:?}"))));
        Ok(Self {
            filename: filename.transpose()?,
            uid: number(UID)?,
            gid: number(GID)?,
            secret: attr(AUTH_SECRET).cloned(),
            url: parsed,
            shown,
            checksum,
            mode,
            headers,
        })
    }

    /// What the file is called in the end.
    fn name(&self, memory: &Memory) -> String {
        let of_url = || plain_name(&decoded(self.url.path().rsplit('/').next().unwrap_or_default()));
        let chosen = self.filename.clone().or_else(|| disposition_name(&memory.disposition)).or_else(of_url);
        chosen.unwrap_or_else(|| NAMELESS.to_owned())
    }

    fn pin(&self, source: &pb::SourceOp, memory: &Memory, digest: &Digest) -> Pin {
        let name = self.name(memory);
        let facts = serde_json::json!({
            "checksum": digest.to_string(), "name": name, "mode": self.mode, "uid": self.uid, "gid": self.gid,
            "modified": memory.last_modified,
        });
        let mut source = source.clone();
        source.attrs.insert(CHECKSUM.into(), digest.to_string());
        source.attrs.insert(FILENAME.into(), name);
        Pin { key: Digest::of(facts.to_string().as_bytes()), source }
    }
}

/// A URL for people: without passwords and queries, in which there may be tokens.
fn shown(url: &Uri) -> String {
    let host = url.authority().map(|authority| authority.as_str().rsplit('@').next().unwrap_or_default().to_owned());
    format!("{}://{}{}", url.scheme_str().unwrap_or_default(), host.unwrap_or_default(), url.path())
}

/// A name of one file, and nothing that leads elsewhere.
fn plain_name(name: &str) -> Option<String> {
    let name = name.rsplit('/').next().unwrap_or_default();
    let fine = !matches!(name, "" | "." | "..") && name.len() <= 255 && !name.chars().any(char::is_control);
    fine.then(|| name.to_owned())
}

/// `filename` of `Content-Disposition`.
fn disposition_name(value: &str) -> Option<String> {
    value.split(';').skip(1).find_map(|part| {
        let (key, name) = part.trim().split_once('=')?;
        let name = name.trim().trim_matches('"');
        match key.trim().to_ascii_lowercase().as_str() {
            "filename" => plain_name(name),
            "filename*" => plain_name(&decoded(name.splitn(3, '\'').nth(2)?)),
            _ => None,
        }
    })
}

fn decoded(text: &str) -> String {
    String::from_utf8_lossy(&proto::proxy::decode(text)).into_owned()
}

impl Http {
    /// Remembers in the data root of builds. Blocks.
    pub fn open(app: &App) -> io::Result<Self> {
        let set = &app.config.proxies;
        let configured = |name: &str| match name {
            "HTTP_PROXY" => Some(set.http_proxy.clone()),
            "HTTPS_PROXY" => Some(set.https_proxy.clone()),
            "NO_PROXY" => Some(set.no_proxy.clone()),
            _ => None,
        };
        // The configuration first, as for the supervisor.
        let proxies = Proxies::read(|name| {
            configured(name).filter(|value| !value.is_empty()).or_else(|| std::env::var(name).ok())
        });
        Self::at(app.config.engine_data().join("builds").join("http"), proxies)
    }

    fn at(folder: PathBuf, proxies: Proxies) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        for entry in fs::read_dir(&folder)?.flatten() {
            if entry.file_name().to_string_lossy().starts_with("part-") {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(Self(Arc::new(Inner { folder, network: Network::new(proxies), turns: Mutex::default() })))
    }

    /// What a URL has now.
    pub async fn pin<O: Outside>(&self, source: &pb::SourceOp, outside: &O, step: &Step) -> Result<Pin, StepError> {
        let wish = Wish::read(source)?;
        let _turn = self.turn(&wish).await;
        let memory = self.memory(&wish);
        if let Some(checksum) = &wish.checksum {
            // The same whatever is there now; when it is needed it is fetched and compared.
            let memory = if memory.digest == checksum.to_string() { memory } else { Memory::default() };
            return Ok(wish.pin(source, &memory, checksum));
        }
        self.remove_unwanted();
        let (memory, _) = self.download(&wish, Some(memory), outside, step).await?;
        let digest = memory.digest.parse().map_err(|_| invalid("a digest was not kept"))?;
        Ok(wish.pin(source, &memory, &digest))
    }

    /// The file, in a filesystem of its own.
    pub async fn fetch<O: Outside>(
        &self,
        pinned: &pb::SourceOp,
        trees: &Trees,
        outside: &O,
        step: &Step,
    ) -> Result<Tree, StepError> {
        let wish = Wish::read(pinned)?;
        let Some(digest) = wish.checksum else { return Err(invalid(format!("{}: not pinned", wish.shown))) };
        let what = format!("fetch {}", wish.shown);
        let _turn = self.turn(&wish).await;
        let kept = (self.memory(&wish), self.body(&wish));
        let (memory, body) = if kept.0.digest == digest.to_string() && kept.1.exists() {
            kept
        } else {
            self.download(&wish, None, outside, step).await?
        };
        if memory.digest != digest.to_string() {
            return Err(invalid(format!("digest mismatch {}: {digest}", memory.digest)));
        }
        let draft = trees.draft(&trees.scratch()).await.map_err(failed(what.clone()))?;
        let root = draft.open().await.map_err(failed(what.clone()))?;
        let placed = tokio::task::spawn_blocking(move || {
            place(&root, &wish, &memory, &body)?;
            fs::remove_file(&body)
        });
        placed.await.map_err(failed(what.clone()))?.map_err(failed(what.clone()))?;
        draft.commit().await.map_err(failed(what))
    }

    async fn turn(&self, wish: &Wish) -> tokio::sync::OwnedMutexGuard<()> {
        let turn = {
            let mut turns = self.0.turns.lock().unwrap_or_else(PoisonError::into_inner);
            turns.retain(|_, turn| turn.strong_count() > 0);
            let found = turns.get(&key(wish)).and_then(Weak::upgrade);
            found.unwrap_or_else(|| {
                let turn = Arc::default();
                turns.insert(key(wish), Arc::downgrade(&turn));
                turn
            })
        };
        turn.lock_owned().await
    }

    fn memory(&self, wish: &Wish) -> Memory {
        let text = fs::read(self.0.folder.join(format!("{}.json", key(wish))));
        text.ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
    }

    fn body(&self, wish: &Wish) -> PathBuf {
        self.0.folder.join(format!("{}.body", key(wish)))
    }

    fn remove_unwanted(&self) {
        for entry in fs::read_dir(&self.0.folder).into_iter().flatten().flatten() {
            let modified = entry.metadata().and_then(|meta| meta.modified());
            let old = modified.is_ok_and(|at| SystemTime::now().duration_since(at).is_ok_and(|age| age > UNWANTED));
            if old && entry.path().extension().is_some_and(|kind| kind == "body") {
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    /// Fetches it, unless it is what is remembered.
    async fn download<O: Outside>(
        &self,
        wish: &Wish,
        known: Option<Memory>,
        outside: &O,
        step: &Step,
    ) -> Result<(Memory, PathBuf), StepError> {
        let what = || format!("fetch {}", wish.shown);
        let known = known.filter(|known| !known.digest.is_empty());
        let mut headers = wish.headers.clone();
        let host = wish.url.host().unwrap_or_default();
        let named = wish.secret.clone();
        let secret = match &named {
            Some(id) => {
                outside.secret(id, step).await?.ok_or_else(|| StepError::NotFound(format!("secret {id}: not found")))?
            }
            None => outside.secret(&format!("{AUTH_OF_HOST}{host}"), step).await.ok().flatten().unwrap_or_default(),
        };
        let mut authorization = None;
        if !secret.is_empty() {
            let value = HeaderValue::from_bytes(secret.trim_ascii_end());
            authorization = Some(value.map_err(|_| invalid("the secret with the authorization is no header"))?);
        }
        if let Some(known) = &known {
            for (name, value) in
                [(header::IF_NONE_MATCH, &known.etag), (header::IF_MODIFIED_SINCE, &known.last_modified)]
            {
                if let Ok(value) = HeaderValue::from_str(value).map(Some).map(|v| v.filter(|v| !v.is_empty())) {
                    value.map(|value| headers.insert(name, value));
                }
            }
        }
        let answer = self.get(&wish.url, &headers, authorization).await.map_err(failed(what()))?;
        let status = answer.status();
        if let (StatusCode::NOT_MODIFIED, Some(known)) = (status, known) {
            return Ok((known, self.body(wish)));
        }
        if status == StatusCode::NOT_FOUND {
            return Err(StepError::NotFound(format!("{}: invalid response status 404", wish.shown)));
        }
        if !status.is_success() {
            return Err(failed(what())(format!("invalid response status {}", status.as_u16())));
        }
        let said = |name| {
            let value = answer.headers().get(name).and_then(|value: &HeaderValue| value.to_str().ok());
            value.filter(|value| value.len() <= 1024).unwrap_or_default().to_owned()
        };
        let mut memory = Memory {
            etag: said(header::ETAG),
            last_modified: said(header::LAST_MODIFIED),
            disposition: said(header::CONTENT_DISPOSITION),
            digest: String::new(),
        };
        let part = Part(self.0.folder.join(format!("part-{}", key(wish))));
        memory.digest = save(answer, &part.0, wish.checksum.as_ref()).await.map_err(failed(what()))?;
        let body = self.body(wish);
        let text = serde_json::to_vec(&memory).map_err(failed(what()))?;
        fs::rename(&part.0, &body).map_err(failed(what()))?;
        let notes = self.0.folder.join(format!("{}.json", key(wish)));
        // Written anew as a whole: what is torn reads as nothing known.
        fs::write(&part.0, text).and_then(|()| fs::rename(&part.0, notes)).map_err(failed(what()))?;
        Ok((memory, body))
    }

    /// The answer at the end of redirections. Who we are is told the first server only, and those of the same name.
    async fn get(
        &self,
        url: &Uri,
        headers: &HeaderMap,
        authorization: Option<HeaderValue>,
    ) -> io::Result<Response<Incoming>> {
        let mut url = url.clone();
        let first = url.host().unwrap_or_default().to_owned();
        for _ in 0..=REDIRECTS {
            let trusted = url.host() == Some(&first);
            let answer = self.ask(&url, headers, authorization.clone().filter(|_| trusted)).await?;
            let moved = matches!(answer.status().as_u16(), 301 | 302 | 303 | 307 | 308);
            let Some(to) = answer.headers().get(header::LOCATION).filter(|_| moved) else { return Ok(answer) };
            let to = to.to_str().map_err(|_| io::Error::other("redirected to what is no URL"))?;
            let next = joined(&url, to).ok_or_else(|| io::Error::other("redirected to what is no URL"))?;
            if url.scheme_str() == Some("https") && next.scheme_str() != Some("https") {
                return Err(io::Error::other(format!("redirected from https to {}", shown(&next))));
            }
            url = next;
        }
        Err(io::Error::other(format!("stopped after {REDIRECTS} redirects")))
    }

    async fn ask(
        &self,
        url: &Uri,
        headers: &HeaderMap,
        authorization: Option<HeaderValue>,
    ) -> io::Result<Response<Incoming>> {
        let connection = self.0.network.open(url).await?;
        let (mut sender, connected) = http1::handshake(TokioIo::new(connection.io)).await.map_err(io::Error::other)?;
        // Ends with the answer.
        tokio::spawn(connected);
        let authority = url.authority().map(|authority| authority.as_str()).unwrap_or_default();
        let (user, host) = match authority.rsplit_once('@') {
            Some((user, host)) => (Some(user), host),
            None => (None, authority),
        };
        let path = url.path_and_query().map_or("/", |path| path.as_str());
        let target = match &connection.proxy {
            Some(_) => format!("http://{host}{path}"),
            None => path.to_owned(),
        };
        let mut request = Request::get(target).body(Empty::<Bytes>::new()).map_err(io::Error::other)?;
        let set = request.headers_mut();
        set.insert(header::USER_AGENT, HeaderValue::from_static(concat!("berth/", env!("CARGO_PKG_VERSION"))));
        // The file as it is, and not in a form for the way.
        set.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        set.extend(headers.clone());
        set.insert(header::HOST, HeaderValue::from_str(host).map_err(io::Error::other)?);
        let basic = user.map(|user| {
            let (name, password) = user.split_once(':').unwrap_or((user, ""));
            let text = [&proto::proxy::decode(name)[..], b":", &proto::proxy::decode(password)].concat();
            format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(text))
        });
        let basic = basic.map(|text| HeaderValue::from_str(&text).map_err(io::Error::other)).transpose()?;
        if let Some(value) = authorization.or(basic) {
            set.insert(header::AUTHORIZATION, value);
        }
        let of_proxy = connection.proxy.and_then(|proxy| proxy.authorization);
        if let Some(text) = of_proxy {
            set.insert(header::PROXY_AUTHORIZATION, HeaderValue::from_str(&text).map_err(io::Error::other)?);
        }
        let answer = tokio::time::timeout(SILENCE, sender.send_request(request)).await;
        answer.map_err(|_| silent())?.map_err(io::Error::other)
    }
}

fn silent() -> io::Error {
    io::Error::other(format!("the server says nothing for {} s", SILENCE.as_secs()))
}

/// URLs are no names of files.
fn key(wish: &Wish) -> String {
    let text = Digest::of(wish.url.to_string().as_bytes()).to_string();
    text.split_once(':').map_or(text.clone(), |(_, hex)| hex.to_owned())
}

/// A file that goes unless it was finished.
struct Part(PathBuf);

impl Drop for Part {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Writes an answer to a file; its digest, of the kind that is expected.
async fn save(answer: Response<Incoming>, to: &Path, expected: Option<&Digest>) -> io::Result<String> {
    if expected.is_some_and(|digest| !digest.to_string().starts_with("sha256:")) {
        return Err(io::Error::other("only checksums of sha256 are known"));
    }
    let mut file = tokio::fs::File::create(to).await?;
    let mut hash = Sha256::new();
    let mut body = answer.into_body();
    let mut size = 0_u64;
    loop {
        let frame = tokio::time::timeout(SILENCE, body.frame()).await.map_err(|_| silent())?;
        let Some(frame) = frame else { break };
        let Ok(data) = frame.map_err(io::Error::other)?.into_data() else { continue };
        size += data.len() as u64;
        if size > MOST {
            return Err(io::Error::other(format!("the file has more than {MOST} bytes")));
        }
        hash.update(&data);
        file.write_all(&data).await?;
    }
    file.flush().await?;
    let bytes: [u8; 32] = hash.finalize().into();
    Ok(format!("sha256:{}", proto::digest::hex(&bytes)))
}

/// Puts the file into a filesystem.
fn place(root: &OwnedFd, wish: &Wish, memory: &Memory, body: &Path) -> io::Result<()> {
    let name = wish.name(memory);
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let mut to = File::from(openat(root, name.as_str(), flags, Mode::from_bits_truncate(0o600))?);
    let mut from = File::open(body)?;
    if sys::reflink::clone(from.as_fd(), to.as_fd()).is_err() {
        io::copy(&mut from, &mut to)?;
    }
    let (uid, gid) = (Uid::from_raw(wish.uid), Gid::from_raw(wish.gid));
    fchownat(root, name.as_str(), Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)?;
    fchmod(to.as_fd(), Mode::from_bits_truncate(wish.mode))?;
    let at = TimeSpec::new(date::parse(&memory.last_modified).unwrap_or(0), 0);
    utimensat(root, name.as_str(), &at, &at, UtimensatFlags::NoFollowSymlink)?;
    // The folder tells nothing of when it was fetched.
    let root_at = TimeSpec::new(0, 0);
    utimensat(root, ".", &root_at, &root_at, UtimensatFlags::NoFollowSymlink)?;
    Ok(())
}

/// Where a redirection leads.
fn joined(base: &Uri, to: &str) -> Option<Uri> {
    let to = to.split('#').next().unwrap_or_default();
    let (scheme, authority) = (base.scheme_str()?, base.authority()?.as_str());
    // Passwords are for the first server.
    let authority = authority.rsplit('@').next().unwrap_or_default();
    let whole = if to.contains("://") {
        to.to_owned()
    } else if let Some(rest) = to.strip_prefix("//") {
        format!("{scheme}://{rest}")
    } else if to.starts_with('/') {
        format!("{scheme}://{authority}{to}")
    } else {
        let folder = base.path().rsplit_once('/').map_or("", |(folder, _)| folder);
        format!("{scheme}://{authority}{folder}/{to}")
    };
    let uri: Uri = whole.parse().ok()?;
    matches!(uri.scheme_str(), Some("http" | "https")).then_some(uri)
}

#[cfg(test)]
mod tests;
