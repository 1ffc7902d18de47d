//! The tags of a repository, over all pages.

use std::collections::HashSet;

use hyper::{HeaderMap, Method, StatusCode, header};

use super::{
    Registry, RegistryError, Upstream,
    auth::Ask,
    http::{self, Target},
    retry::Retry,
    text,
};

/// Tags that are asked for at once.
const PAGE: u32 = 1000;
/// Largest page that is read.
const PAGE_LIMIT: u64 = 4 << 20;
/// Bytes of names that are gathered: an answer of ours must hold them.
const LIMIT: usize = 12 << 20;
/// How often a page is tried for.
const ATTEMPTS: u32 = 4;

impl Registry {
    /// All tags, in the registry's order.
    pub(crate) async fn tags(&self) -> Result<Vec<String>, RegistryError> {
        let (upstreams, mut trials) = self.capable("resolve", |can| can.resolve)?;
        for (index, upstream) in upstreams.iter().enumerate() {
            match self.tags_of(upstream).await {
                Ok(tags) => return Ok(tags),
                Err(error) => trials.failed(upstream, index + 1 == upstreams.len(), error)?,
            }
        }
        Err(RegistryError::Incapable { domain: self.image.domain().to_owned(), action: "resolve" })
    }

    async fn tags_of(&self, upstream: &Upstream) -> Result<Vec<String>, RegistryError> {
        let (mut tags, mut seen, mut bytes) = (Vec::new(), HashSet::new(), 0);
        let mut next: Option<Target> = None;
        loop {
            let mut retry = Retry::new(ATTEMPTS);
            let (page, link) = loop {
                match self.page(upstream, next.as_ref()).await {
                    Ok(page) => break page,
                    Err(error) => retry.after(error).await?,
                }
            };
            let before = tags.len();
            for tag in page {
                bytes += tag.len() + 8;
                if bytes > LIMIT {
                    let what = format!("list of tags of {}", self.image.familiar_repository());
                    return Err(RegistryError::TooBig { what, host: upstream.session.host(), limit: LIMIT as u64 });
                }
                if seen.insert(tag.clone()) {
                    tags.push(tag);
                }
            }
            match link {
                // A page that brings nothing new would be followed by itself for ever.
                Some(link) if tags.len() > before => next = Some(link),
                _ => return Ok(tags),
            }
        }
    }

    async fn page(
        &self,
        upstream: &Upstream,
        next: Option<&Target>,
    ) -> Result<(Vec<String>, Option<Target>), RegistryError> {
        #[derive(serde::Deserialize)]
        struct Page {
            tags: Option<Vec<String>>,
        }
        let (session, scope) = (&upstream.session, self.pull_scope());
        let host = session.host();
        let ask = Ask::new(Method::GET, &scope);
        let first = format!("{}/tags/list?n={PAGE}", self.path());
        let here = next.cloned().unwrap_or_else(|| upstream.target(session.base(), &first));
        let answer = match next {
            Some(target) => session.request_to(target, &ask).await,
            None => session.switching(|base| upstream.target(base, &first), &ask).await,
        };
        let answer = answer.map_err(|error| self.name("pull", error))?;
        let (status, headers) = (answer.status(), answer.headers().clone());
        if !status.is_success() {
            let detail = http::detail(answer.into_body()).await;
            let image = self.image.familiar_repository();
            return Err(match status {
                StatusCode::NOT_FOUND => RegistryError::NoRepository { image, detail },
                _ => self.refusal("pull", host, status, &headers, "its tags".into(), detail),
            });
        }
        let link = following(&headers).map(|link| here.resolve(link)).transpose();
        let wrong = |why: String| RegistryError::Protocol { host: session.host(), why };
        let link = link.map_err(|why| wrong(format!("next page of tags: {why}")))?;
        // The next page of another host is none of ours.
        let link = link.filter(|link| link.authority() == here.authority());
        let bytes = http::read(answer.into_body(), PAGE_LIMIT, session.silence(), &host, "page of tags").await?;
        let page: Page = serde_json::from_slice(&bytes).map_err(|error| wrong(format!("page of tags: {error}")))?;
        Ok((page.tags.unwrap_or_default(), link))
    }
}

// `</v2/a/tags/list?last=x&n=1000>; rel="next"` (RFC 8288).
fn following(headers: &HeaderMap) -> Option<&str> {
    let link = text(headers, &header::LINK)?;
    let (url, parameters) = link.trim().strip_prefix('<')?.split_once('>')?;
    parameters.split(';').any(|p| matches!(p.trim(), "rel=\"next\"" | "rel=next")).then_some(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links() {
        for (value, wanted) in [
            (r#"</v2/a/tags/list?last=x&n=2>; rel="next""#, Some("/v2/a/tags/list?last=x&n=2")),
            ("<https://h/p>;rel=next", Some("https://h/p")),
            (r#"</p>; rel="prev""#, None),
            ("nonsense", None),
        ] {
            let headers = [(header::LINK, value.parse().unwrap())].into_iter().collect();
            assert_eq!(following(&headers), wanted, "{value}");
        }
    }
}
