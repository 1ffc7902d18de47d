//! Calls for one sandbox take turns.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use tokio::sync::{Mutex as Turn, OwnedMutexGuard};

/// Whose turn it is, by the sandbox's id.
#[derive(Default)]
pub(super) struct Turns(Mutex<HashMap<String, Weak<Turn<()>>>>);

impl Turns {
    /// Waits for a turn, and keeps it as long as the guard lives.
    pub(super) async fn of(&self, id: &str) -> OwnedMutexGuard<()> {
        let turn = {
            // Only whole entries come and go under the lock.
            let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            match turns.get(id).and_then(Weak::upgrade) {
                Some(turn) => turn,
                None => {
                    turns.retain(|_, turn| turn.strong_count() > 0);
                    let turn = Arc::new(Turn::new(()));
                    turns.insert(id.to_owned(), Arc::downgrade(&turn));
                    turn
                }
            }
        };
        turn.lock_owned().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_at_a_time_for_each_and_nothing_is_kept() {
        let turns = Turns::default();
        let first = turns.of("a").await;
        let _other = turns.of("b").await;
        let soon = std::time::Duration::from_millis(20);
        assert!(tokio::time::timeout(soon, turns.of("a")).await.is_err());
        drop(first);
        drop(turns.of("a").await);
        let _third = turns.of("c").await;
        assert_eq!(turns.0.lock().unwrap().len(), 2);
    }
}
