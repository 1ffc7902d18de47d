//! Operations that take their time: the runtime works on the container, and nobody else may meanwhile.
//!
//! The container's writer doesn't wait for the runtime: it starts the operation, goes on answering what only looks, or what
//! must get through (a kill), and holds back the rest until the operation is done. So a runtime that hangs hides no state and
//! stops no kill, and when its time is over ([`OciError::Hung`](crate::oci::OciError)) the held requests go on.

use super::{Call, Message, Task};
use crate::{
    bundle::Key,
    rules::{Op, State},
};

/// What an operation does to the task once the runtime is done.
pub(crate) type Finish = Box<dyn FnOnce(&mut Task)>;

impl Task {
    /// Runs `work` beside the inbox; `then` has the result and the task to itself again.
    pub(super) fn exclusive<T: 'static>(
        &mut self,
        op: Op,
        work: impl Future<Output = T> + 'static,
        then: impl FnOnce(&mut Self, T) + 'static,
    ) {
        self.busy = Some(op);
        let inbox = self.inbox.clone();
        tokio::task::spawn_local(async move {
            let result = work.await;
            let _ = inbox.send(Message::Done(Box::new(move |task| then(task, result))));
        });
    }

    /// Takes what comes in, or puts it behind the operation under way.
    pub(super) fn take(&mut self, message: Message) {
        match message {
            Message::Done(finish) => {
                self.busy = None;
                finish(self);
                while self.busy.is_none()
                    && !self.gone
                    && let Some(held) = self.held.pop_front()
                {
                    self.handle(held);
                }
            }
            message if self.busy.is_some_and(|op| self.must_wait(op, &message)) => self.held.push_back(message),
            message => self.handle(message),
        }
    }

    fn must_wait(&self, busy: Op, message: &Message) -> bool {
        match message {
            Message::Call(call) => match call {
                Call::Start(..)
                | Call::Delete(Key::Init, _)
                | Call::Pause(_)
                | Call::Resume(_)
                | Call::Update(..)
                | Call::Checkpoint(..) => true,
                // While it freezes or thaws it is neither frozen nor not.
                Call::Kill(key, signal, all, _) => {
                    matches!(busy, Op::Pause | Op::Resume | Op::Checkpoint)
                        || self.kills_by_runtime(key, *signal, *all)
                        // There will be a process to kill as soon as it is restored.
                        || (self.init.state == State::Unrestored && *key == Key::Init)
                }
                _ => false,
            },
            // So TaskStart always stands before TaskExit.
            Message::Exited(Key::Init, _) => true,
            _ => false,
        }
    }

    /// Whether a signal takes the runtime to send. We can send one ourselves to one process; and with the init of a pid
    /// namespace dies everything in it (pid_namespaces(7)).
    pub(super) fn kills_by_runtime(&self, key: &Key, signal: u32, all: bool) -> bool {
        let reaches_all = self.own_pids && signal == nix::libc::SIGKILL.unsigned_abs();
        *key == Key::Init && ((all && !reaches_all) || self.init.state == State::Paused)
    }
}
