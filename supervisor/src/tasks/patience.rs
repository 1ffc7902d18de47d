//! How long shims may take to answer, and which of them is taking long. A shim that hangs (stopped, swapped out, on a dead
//! disk) must not hold anybody but those who ask for its own container, and these not for ever.

use std::{
    sync::{MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::{Tasks, error::TaskError, task::Task};

/// After how long a call is noteworthy.
const SLOW: Duration = Duration::from_secs(5);

/// The longest a shim may take for a call; `None` for those that wait for the container itself.
fn limit(call: &str) -> Option<Duration> {
    let seconds = match call {
        "Wait" => return None,
        // Hooks, file systems that are slow to mount.
        "Create" => 120,
        "Start" | "Delete" => 60,
        // The memory of all processes is written or read.
        "Checkpoint" | "Start from a checkpoint" => 600,
        _ => 15,
    };
    Some(Duration::from_secs(seconds))
}

/// A call that is under way.
#[derive(Debug, Clone, Copy)]
struct Call {
    number: u64,
    name: &'static str,
    since: Instant,
}

/// The calls to one shim that are under way.
#[derive(Debug, Default)]
pub(super) struct Calls(std::sync::Mutex<(u64, Vec<Call>)>);

impl Calls {
    // A list that is only pushed to and removed from: whole whatever panics.
    fn lock(&self) -> MutexGuard<'_, (u64, Vec<Call>)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self, name: &'static str) -> UnderWay<'_> {
        let (last, calls) = &mut *self.lock();
        *last += 1;
        calls.push(Call { number: *last, name, since: Instant::now() });
        UnderWay { calls: self, number: *last }
    }

    /// The one that has been under way for longest.
    fn oldest(&self) -> Option<Call> {
        self.lock().1.first().copied()
    }
}

/// Ends the entry of a call, however the call ends.
struct UnderWay<'a> {
    calls: &'a Calls,
    number: u64,
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.calls.lock().1.retain(|call| call.number != self.number);
    }
}

/// A shim that has not answered for some time.
#[derive(Debug)]
pub(crate) struct Stuck {
    /// The namespace of its container.
    pub(crate) namespace: String,
    /// Its container.
    pub(crate) id: String,
    /// What was asked.
    pub(crate) call: &'static str,
    /// For how long it has not answered.
    pub(crate) since: Duration,
}

impl Task {
    /// Waits for a shim's answer, as long as is fitting for the call.
    pub(super) async fn patiently<T>(
        &self,
        call: &'static str,
        answer: impl Future<Output = T>,
    ) -> Result<T, TaskError> {
        let Some(limit) = limit(call) else { return Ok(answer.await) };
        let _under_way = self.calls.begin(call);
        tokio::pin!(answer);
        if let Ok(answer) = tokio::time::timeout(SLOW, &mut answer).await {
            return Ok(answer);
        }
        tracing::warn!(namespace = %self.namespace, id = %self.id, call, "shim takes long to answer");
        let rest = limit.saturating_sub(SLOW);
        let answered = tokio::time::timeout(rest, answer).await;
        answered.map_err(|_| TaskError::ShimSilent { id: self.id.clone(), call, limit })
    }
}

impl Tasks {
    /// The shims that are taking long, the longest first.
    pub(crate) fn stuck(&self) -> Vec<Stuck> {
        let tasks: Vec<_> = self.lock().values().cloned().collect();
        let mut stuck: Vec<_> = tasks
            .into_iter()
            .filter_map(|task| {
                let call = task.calls.oldest()?;
                let (namespace, id) = (task.namespace.to_string(), task.id.to_string());
                Some(Stuck { namespace, id, call: call.name, since: call.since.elapsed() })
            })
            .filter(|stuck| stuck.since >= SLOW)
            .collect();
        stuck.sort_by_key(|stuck| std::cmp::Reverse(stuck.since));
        stuck
    }
}
