//! What shims tell: their events pass here on the way to the bus, so that our facts are never behind what we announced.

use prost::Message;
use proto::{
    containerd::{events::TaskExit, services::events::v1::Envelope},
    id::{ContainerId, ExecId, NamespaceName},
};

use super::{Tasks, bundle::Exit};

impl Tasks {
    /// Takes note of an event. `false` if it was announced before: a shim repeats what it doesn't know to have arrived, and
    /// one that died may have been spoken for.
    pub(crate) fn observe(&self, envelope: &Envelope) -> bool {
        if envelope.topic != "/tasks/exit" {
            return true;
        }
        let exit = envelope.event.as_ref().and_then(|any| TaskExit::decode(&*any.value).ok());
        let Some(exit) = exit else { return true };
        let names = (NamespaceName::new(envelope.namespace.as_str()), ContainerId::new(exit.container_id.as_str()));
        let (Ok(namespace), Ok(id)) = names else { return true };
        let Some(task) = self.known(&namespace, &id) else { return true };
        let is_init = exit.id.is_empty() || exit.id == exit.container_id;
        let how = Exit { pid: exit.pid, status: exit.exit_status, at: exit.exited_at.unwrap_or_default() };
        let mut news = true;
        task.facts.send_modify(|facts| {
            if is_init {
                // Another pid would be another life of the same name, which a repeated event must not silence.
                news = !(facts.told && facts.exit.as_ref().is_some_and(|known| known.pid == how.pid));
                facts.told = true;
                facts.set_exit(how);
            } else if let Ok(exec) = ExecId::new(exit.id.as_str())
                && let Some(facts) = facts.execs.get_mut(&exec)
            {
                news = !(facts.told && facts.exit.as_ref().is_some_and(|known| known.pid == how.pid));
                facts.told = true;
                facts.exit = Some(how);
            }
        });
        if is_init && news {
            tracing::info!(%namespace, %id, pid = exit.pid, exit_status = exit.exit_status, "task exited");
        }
        news
    }
}
