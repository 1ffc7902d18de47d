//! Work that waits for a client: copies into containers and out of them, exports. It runs on threads of its own. The runtime has
//! so many that may wait and no more, and starts, logs and networks need them: clients that stall must not have them all.

use std::io;
use tokio::sync::{Semaphore, SemaphorePermit, oneshot};

/// How many such threads there are at once; whoever comes then waits for one of them, and holds up nobody else.
const TURNS: usize = 256;

static FREE: Semaphore = Semaphore::const_new(TURNS);

/// The right to one thread.
#[derive(Debug)]
pub struct Turn {
    _permit: SemaphorePermit<'static>,
}

impl Turn {
    /// Waits for it. To be had before anything else is held that others need.
    pub async fn take() -> io::Result<Self> {
        FREE.acquire().await.map(|permit| Self { _permit: permit }).map_err(io::Error::other)
    }

    /// Does the work; what it gives is received, unless it panics.
    pub fn run<T: Send + 'static>(
        self,
        name: &str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<oneshot::Receiver<T>> {
        let (sender, receiver) = oneshot::channel();
        std::thread::Builder::new().name(name.into()).spawn(move || {
            // Dropped in this order, after a panic too: first the turn.
            let sender = sender;
            let turn = self;
            let done = work();
            drop(turn);
            // Nobody listens if the request was given up.
            let _ = sender.send(done);
        })?;
        Ok(receiver)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_turn_comes_back_from_work_that_panics_too() {
        let turn = Turn::take().await.unwrap();
        assert_eq!(turn.run("test", || 7).unwrap().await.unwrap(), 7);
        let turn = Turn::take().await.unwrap();
        let _ = turn.run("test", || panic!("on purpose")).unwrap().await.unwrap_err();
        assert_eq!(FREE.available_permits(), TURNS);
    }
}
