//! Images by a word, where a registry still has docker's first API (the hub does).

use std::sync::Arc;

use hyper::Method;

use super::{
    Access, Credentials, Registries, RegistryError,
    auth::Ask,
    http::{self, Target},
    retry::{self, Retry},
};

/// The registry that is searched if no other is named.
const HUB: &str = "docker.io";
/// Largest answer that is read.
const LIMIT: u64 = 4 << 20;
/// How often an answer is tried for.
const ATTEMPTS: u32 = 3;

/// What is wanted.
#[derive(Debug, Clone, Default)]
pub(crate) struct Wish {
    /// The word.
    pub(crate) term: String,
    /// Host and port; empty for the hub.
    pub(crate) host: String,
    /// How many at most.
    pub(crate) limit: u32,
    /// Only official ones, or only others.
    pub(crate) is_official: Option<bool>,
    /// Only automated ones, or only others.
    pub(crate) is_automated: Option<bool>,
    /// Stars at least.
    pub(crate) stars: i64,
}

/// One image.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(default)]
pub(crate) struct Found {
    /// Its repository.
    pub(crate) name: String,
    /// What its makers say; the hub has `null` for those who say nothing.
    #[serde(deserialize_with = "or_nothing")]
    pub(crate) description: String,
    /// How many like it.
    pub(crate) star_count: i64,
    /// Whether it is among the hub's own.
    pub(crate) is_official: bool,
    /// Whether the hub builds it.
    pub(crate) is_automated: bool,
}

fn or_nothing<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    use serde::Deserialize;
    Option::<String>::deserialize(deserializer).map(Option::unwrap_or_default)
}

impl Wish {
    fn suits(&self, found: &Found) -> bool {
        self.is_official.is_none_or(|wanted| wanted == found.is_official)
            && self.is_automated.is_none_or(|wanted| wanted == found.is_automated)
            && found.star_count >= self.stars
    }
}

/// Searches one registry.
pub(crate) async fn search(
    registries: &Registries,
    wish: &Wish,
    host_dir: &str,
    credentials: Arc<dyn Credentials>,
) -> Result<Vec<Found>, RegistryError> {
    #[derive(serde::Deserialize)]
    struct Answer {
        #[serde(default)]
        results: Vec<Found>,
    }
    let is_hub = wish.host.is_empty() || wish.host == HUB || wish.host == format!("index.{HUB}");
    // The hub's search has a host of its own.
    let domain = if is_hub { format!("index.{HUB}") } else { wish.host.clone() };
    let access =
        Access { host_dir: host_dir.to_owned(), scheme: String::new(), headers: Default::default(), credentials };
    let upstreams = registries.upstreams(&domain, &access, false)?;
    let Some(upstream) = upstreams.last() else {
        return Err(RegistryError::Incapable { domain, action: "resolve" });
    };
    let session = &upstream.session;
    let term = if is_hub { wish.term.strip_prefix("library/").unwrap_or(&wish.term) } else { &wish.term };
    let count = wish.limit.to_string();
    let target = |base: &Target| {
        let search = base.at("/v1/search");
        search.with_query(&[("q", term), ("n", &count)]).unwrap_or(search)
    };
    let mut retry = Retry::new(ATTEMPTS);
    let bytes = loop {
        let error = match session.switching(target, &Ask::new(Method::GET, "")).await {
            Ok(answer) if answer.status().is_success() => {
                let host = session.host();
                match http::read(answer.into_body(), LIMIT, session.silence(), &host, "search results").await {
                    Ok(bytes) => break bytes,
                    Err(error) => error,
                }
            }
            Ok(answer) => {
                let (status, headers) = (answer.status(), answer.headers().clone());
                let detail = http::detail(answer.into_body()).await;
                retry::refusal(session.host(), status, &headers, format!("a search for {:?}", wish.term), detail)
            }
            Err(error) => error,
        };
        retry.after(error).await?;
    };
    let answer: Answer = serde_json::from_slice(&bytes)
        .map_err(|error| RegistryError::Protocol { host: session.host(), why: format!("search results: {error}") })?;
    Ok(answer.results.into_iter().filter(|found| wish.suits(found)).take(wish.limit as usize).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_suits() {
        let text = r#"[{"name":"a","description":null,"star_count":5,"is_official":true,"more":1},{"name":"b","star_count":9}]"#;
        let all: Vec<Found> = serde_json::from_str(text).unwrap();
        let names =
            |wish: Wish| all.iter().filter(|found| wish.suits(found)).map(|f| f.name.as_str()).collect::<String>();
        assert_eq!(names(Wish::default()), "ab");
        assert_eq!(names(Wish { is_official: Some(true), ..Wish::default() }), "a");
        assert_eq!(names(Wish { is_official: Some(false), is_automated: Some(false), ..Wish::default() }), "b");
        assert_eq!(names(Wish { stars: 6, ..Wish::default() }), "b");
        assert_eq!(all[0].description, "");
    }
}
