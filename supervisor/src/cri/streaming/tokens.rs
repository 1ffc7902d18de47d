//! What stands between a call that hands out an address and the request that comes there: a token that is good for one request,
//! for a minute. Who has it needs no other proof, so it can't be guessed.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::StreamingError;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

/// How long a token is good.
const LIFETIME: Duration = Duration::from_secs(60);
/// How many may be waiting for their request.
const IN_FLIGHT: usize = 1000;
/// Random bytes in one.
const BYTES: usize = 16;

/// Requests that are waited for.
#[derive(Debug)]
pub(super) struct Tokens<T> {
    waiting: Mutex<HashMap<String, (Instant, T)>>,
    lifetime: Duration,
}

impl<T> Default for Tokens<T> {
    fn default() -> Self {
        Self { waiting: Mutex::default(), lifetime: LIFETIME }
    }
}

impl<T> Tokens<T> {
    /// Keeps what is to be done, and answers the token for it.
    pub(super) fn insert(&self, value: T) -> Result<String, StreamingError> {
        let token = URL_SAFE_NO_PAD.encode(random::<BYTES>().map_err(StreamingError::Random)?);
        let mut tokens = self.fresh();
        if tokens.len() >= IN_FLIGHT {
            return Err(StreamingError::TooMany(IN_FLIGHT));
        }
        tokens.insert(token.clone(), (Instant::now(), value));
        Ok(token)
    }

    /// What a token stands for, once.
    pub(super) fn take(&self, token: &str) -> Option<T> {
        self.fresh().remove(token).map(|(_, value)| value)
    }

    // Those that are still good. Whole insertions and removals only: a panic leaves nothing half done.
    fn fresh(&self) -> MutexGuard<'_, HashMap<String, (Instant, T)>> {
        let mut tokens = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        tokens.retain(|_, (since, _)| since.elapsed() < self.lifetime);
        tokens
    }
}

/// Bytes from the kernel's generator.
pub(super) fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_good_once() {
        let tokens = Tokens::default();
        let (first, second) = (tokens.insert(1).unwrap(), tokens.insert(2).unwrap());
        assert!(first != second && first.len() == 22, "{first} {second}");
        assert_eq!((tokens.take(&first), tokens.take(&first), tokens.take("nonsense")), (Some(1), None, None));
        assert_eq!(tokens.take(&second), Some(2));
    }

    #[test]
    fn a_token_grows_old() {
        assert_eq!(LIFETIME, Duration::from_secs(60));
        let tokens = Tokens { waiting: Mutex::default(), lifetime: Duration::from_millis(10) };
        let token = tokens.insert(1).unwrap();
        let since = Instant::now();
        while !tokens.fresh().is_empty() {
            assert!(since.elapsed() < Duration::from_secs(10), "it never does");
            std::thread::yield_now();
        }
        assert!(since.elapsed() >= Duration::from_millis(9));
        assert_eq!(tokens.take(&token), None);
    }

    #[test]
    fn so_many_are_in_flight_and_no_more() {
        let tokens = Tokens::default();
        let last = (0..IN_FLIGHT).map(|number| tokens.insert(number).unwrap()).last().unwrap();
        assert!(matches!(tokens.insert(0), Err(StreamingError::TooMany(IN_FLIGHT))));
        tokens.take(&last).unwrap();
        tokens.insert(0).unwrap();
    }
}
