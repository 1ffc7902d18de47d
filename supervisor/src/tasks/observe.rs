//! What shims tell: their events pass here on the way to the bus, so that our facts are never behind what we announced.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use prost::Message;
use proto::{
    containerd::{
        events::{TaskCreate, TaskDelete, TaskExit, TaskOom},
        services::events::v1::Envelope,
    },
    id::{ContainerId, ExecId, NamespaceName},
    kind::chain,
    typeurl,
};

use super::{
    Tasks,
    bundle::Exit,
    task::{Facts, Task},
};

/// Of whom an event tells. Field 1 of every event about a task is its container.
#[derive(Clone, PartialEq, Message)]
struct Subject {
    #[prost(string, tag = "1")]
    container_id: String,
}

impl Tasks {
    /// Takes note of an event. `false` if it was announced before: a shim repeats what it doesn't know to have arrived, and
    /// one that died may have been spoken for.
    ///
    /// A shim repeats the last one at most, since the next goes out when the last was taken; and no two events of a shim are
    /// the same in every byte, since each has its time.
    pub(crate) fn observe(&self, envelope: &Envelope) -> bool {
        if !envelope.topic.starts_with("/tasks/") {
            return true;
        }
        let subject = envelope.event.as_ref().and_then(|any| Subject::decode(&*any.value).ok());
        let Some(Subject { container_id }) = subject else { return true };
        let names = (NamespaceName::new(envelope.namespace.as_str()), ContainerId::new(container_id));
        let (Ok(namespace), Ok(id)) = names else { return true };
        let Some(task) = self.known(&namespace, &id) else { return true };
        let mut hasher = DefaultHasher::new();
        envelope.encode_to_vec().hash(&mut hasher);
        let hash = hasher.finish();
        let mut news = true;
        task.facts.send_modify(|facts| {
            news = facts.last_event != hash && note(facts, &id, envelope);
            facts.last_event = hash;
        });
        if !news {
            tracing::debug!(%namespace, %id, topic = envelope.topic, "event repeated, dropped");
        }
        news
    }

    /// Tells what a shim noted and didn't live to tell. The caller knows that it is gone.
    pub(super) fn tell_undelivered(&self, task: &Task) {
        for envelope in task.bundle.undelivered() {
            if self.observe(&envelope)
                && let Err(error) = self.events.forward(envelope)
            {
                tracing::warn!(id = %task.id, error = %chain(&error), "event in the journal of a dead shim refused");
            }
        }
        if let Err(error) = task.bundle.clear_journal() {
            tracing::warn!(id = %task.id, error = %chain(&error), "event journal stays");
        }
    }
}

/// `false` if it is no news.
fn note(facts: &mut Facts, id: &ContainerId, envelope: &Envelope) -> bool {
    let Some(any) = &envelope.event else { return true };
    if let Some(Ok(exit)) = typeurl::unpack::<TaskExit>(any) {
        return note_exit(facts, id, &exit);
    }
    if typeurl::unpack::<TaskCreate>(any).is_some() {
        facts.told_life.0 = true;
    } else if typeurl::unpack::<TaskOom>(any).is_some() {
        facts.oom = true;
    } else if let Some(Ok(delete)) = typeurl::unpack::<TaskDelete>(any)
        && (delete.id.is_empty() || delete.id == id.as_str())
    {
        return !std::mem::replace(&mut facts.told_life.1, true);
    }
    true
}

fn note_exit(facts: &mut Facts, id: &ContainerId, exit: &TaskExit) -> bool {
    let how = Exit { pid: exit.pid, status: exit.exit_status, at: exit.exited_at.unwrap_or_default() };
    // Another pid would be another life of the same name, which a repeated event must not silence.
    let same = |known: &Option<Exit>| known.as_ref().is_some_and(|known| known.pid == how.pid);
    if exit.id.is_empty() || exit.id == id.as_str() {
        let news = !(facts.told && same(&facts.exit));
        facts.told = true;
        facts.set_exit(how);
        if news {
            tracing::info!(%id, pid = exit.pid, exit_status = exit.exit_status, "task exited");
        }
        return news;
    }
    let Ok(exec) = ExecId::new(exit.id.as_str()) else { return true };
    // Also one that an earlier supervisor saw begin.
    let facts = facts.execs.entry(exec).or_default();
    let news = !(facts.told && same(&facts.exit));
    facts.pid = how.pid;
    facts.told = true;
    facts.exit = Some(how);
    news
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exits_and_deletions_are_news_once() {
        let folder = tempfile::tempdir().unwrap();
        let (namespace, id) = (NamespaceName::new("n").unwrap(), ContainerId::new("web").unwrap());
        let task = Task::new(folder.path(), namespace, id.clone(), super::super::task::Phase::Live);
        let envelope = |topic: &str, event| Envelope { topic: topic.into(), event: Some(event), ..Default::default() };
        let exit = |id: &str, pid| {
            let event = TaskExit { container_id: "web".into(), id: id.into(), pid, ..Default::default() };
            envelope("/tasks/exit", typeurl::pack(&event))
        };
        let delete =
            envelope("/tasks/delete", typeurl::pack(&TaskDelete { container_id: "web".into(), ..Default::default() }));
        let oom = envelope("/tasks/oom", typeurl::pack(&TaskOom { container_id: "web".into() }));
        let wanted = [
            (exit("e", 5), true),
            (exit("e", 5), false),
            (exit("e", 6), true),
            (oom.clone(), true),
            (oom, true),
            (exit("web", 7), true),
            (exit("web", 7), false),
            (delete.clone(), true),
            (delete, false),
        ];
        task.facts.send_modify(|facts| {
            for (number, (envelope, news)) in wanted.iter().enumerate() {
                assert_eq!(note(facts, &id, envelope), *news, "{number}");
            }
            assert!(facts.oom && facts.told && facts.told_life == (false, true));
            assert_eq!(facts.exit.as_ref().map(|exit| exit.pid), Some(7));
        });
    }
}
