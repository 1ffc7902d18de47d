//! When to try again: longer and longer pauses, as long as the registry asks for, and not for ever.

use std::{
    hash::{BuildHasher, Hasher, RandomState},
    time::Duration,
};

use hyper::{HeaderMap, StatusCode, header};

use super::RegistryError;

/// The first pause.
const FIRST: Duration = Duration::from_millis(100);
/// The longest pause of our own choice.
const LONGEST: Duration = Duration::from_secs(6);
/// The longest that a registry may make us wait.
const PATIENCE: Duration = Duration::from_secs(60);
/// Tries against a rate limit that says nothing about when it ends.
const LIMITED: u32 = 2;

/// The tries of one request.
pub(super) struct Retry {
    attempt: u32,
    most: u32,
}

impl Retry {
    /// At most so many tries without getting further.
    pub(super) fn new(most: u32) -> Self {
        Self { attempt: 0, most }
    }

    /// It got further.
    pub(super) fn reset(&mut self) {
        self.attempt = 0;
    }

    /// Tries so far that brought nothing.
    pub(super) fn attempt(&self) -> u32 {
        self.attempt
    }

    /// Waits before the next try, or gives the error back if there is to be none.
    pub(super) async fn after(&mut self, error: RegistryError) -> Result<(), RegistryError> {
        match self.pause(&error, random()) {
            Some(pause) => tokio::time::sleep(pause).await,
            None => return Err(error),
        }
        Ok(())
    }

    // How long to wait after a failure; `None`: it is the last one.
    fn pause(&mut self, error: &RegistryError, random: u64) -> Option<Duration> {
        self.attempt += 1;
        let limited = matches!(error, RegistryError::RateLimit { wait: None, .. });
        if !error.is_passing() || self.attempt >= if limited { LIMITED.min(self.most) } else { self.most } {
            return None;
        }
        let own = spread(FIRST.saturating_mul(1 << self.attempt.min(8)).min(LONGEST), random);
        match error.wait() {
            Some(wait) if wait > PATIENCE => None,
            // Not all at the same moment, and never sooner.
            Some(wait) => Some(wait + own / 8),
            None => Some(own),
        }
    }
}

// Half of it to one and a half: who was turned away together must not come back together.
fn spread(pause: Duration, random: u64) -> Duration {
    pause.mul_f64(0.5 + (random % 1024) as f64 / 1024.0)
}

// The standard library's only source of chance, good enough to be spread by.
fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// What a status that isn't success means, where the request has no meaning of its own for it.
pub(super) fn refusal(
    host: String,
    status: StatusCode,
    headers: &HeaderMap,
    what: String,
    detail: String,
) -> RegistryError {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let wait = text(header::RETRY_AFTER.as_str()).and_then(|text| text.trim().parse().ok()).map(Duration::from_secs);
    if status != StatusCode::TOO_MANY_REQUESTS {
        return RegistryError::Answer { host, status, what, detail, wait };
    }
    let mut notes = Vec::new();
    if let Some(limit) = text("ratelimit-limit").or_else(|| text("x-ratelimit-limit")) {
        notes.push(allowance(limit));
    }
    if let Some(left) = text("ratelimit-remaining").or_else(|| text("x-ratelimit-remaining")) {
        notes.push(format!("{} left", left.split(';').next().unwrap_or_default().trim()));
    }
    if let Some(wait) = wait {
        notes.push(format!("again in {} s", wait.as_secs()));
    }
    let limit: String = notes.join(", ").chars().filter(|c| !c.is_control()).take(200).collect();
    let limit = if limit.is_empty() { limit } else { format!(" ({limit})") };
    RegistryError::RateLimit { host, limit, detail, wait }
}

// `100;w=21600`: so many in so many seconds.
fn allowance(text: &str) -> String {
    let (number, rest) = text.split_once(';').unwrap_or((text, ""));
    let window = rest.split(';').find_map(|part| part.trim().strip_prefix("w=")?.parse::<u64>().ok());
    match window {
        Some(seconds) if seconds >= 3600 && seconds.is_multiple_of(3600) => {
            format!("{} requests in {} h", number.trim(), seconds / 3600)
        }
        Some(seconds) => format!("{} requests in {seconds} s", number.trim()),
        None => format!("{} requests", number.trim()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(all: &[(&'static str, &str)]) -> HeaderMap {
        all.iter().map(|(name, value)| (name.parse::<header::HeaderName>().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn a_rate_limit_is_explained() {
        let table: [(&[(&str, &str)], &str); 3] = [
            (&[], "rate limit of reg.example reached: go away: wait, log in"),
            (
                &[("ratelimit-limit", "100;w=21600"), ("ratelimit-remaining", "0;w=21600"), ("retry-after", "35")],
                "reached (100 requests in 6 h, 0 left, again in 35 s): go away",
            ),
            (&[("x-ratelimit-limit", "5;w=90")], "reached (5 requests in 90 s): go away"),
        ];
        for (given, wanted) in table {
            let status = StatusCode::TOO_MANY_REQUESTS;
            let error = refusal("reg.example".into(), status, &headers(given), "x".into(), ": go away".into());
            assert!(error.to_string().contains(wanted), "{error}");
        }
        let status = StatusCode::SERVICE_UNAVAILABLE;
        let error = refusal("h".into(), status, &headers(&[("retry-after", "7")]), "x".into(), String::new());
        assert_eq!((error.wait(), error.is_passing()), (Some(Duration::from_secs(7)), true));
    }

    #[test]
    fn pauses_grow_and_end() {
        let answer = |status: u16, wait| RegistryError::Answer {
            host: "h".into(),
            status: StatusCode::from_u16(status).unwrap(),
            what: "x".into(),
            detail: String::new(),
            wait,
        };
        let failed = answer(500, None);
        for random in [0, 1023] {
            let mut retry = Retry::new(10);
            let pauses: Vec<Duration> = std::iter::from_fn(|| retry.pause(&failed, random)).collect();
            assert_eq!(pauses.len(), 9);
            assert!(pauses.is_sorted() && pauses[0] >= FIRST && pauses[8] <= LONGEST * 3 / 2, "{pauses:?}");
            assert!(pauses[3] > pauses[0] * 7);
        }
        let wait = |seconds| Some(Duration::from_secs(seconds));
        assert!(Retry::new(4).pause(&answer(503, wait(30)), 9) >= wait(30));
        assert_eq!(Retry::new(4).pause(&answer(503, wait(3600)), 9), None);
        assert_eq!(Retry::new(4).pause(&answer(404, None), 9), None);
        let unsaid =
            RegistryError::RateLimit { host: "h".into(), limit: String::new(), detail: String::new(), wait: None };
        let mut retry = Retry::new(9);
        assert!(retry.pause(&unsaid, 9).is_some() && retry.pause(&unsaid, 9).is_none());
    }
}
