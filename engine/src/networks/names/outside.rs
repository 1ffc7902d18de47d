//! What is known of a set of name servers elsewhere: answers that are kept, questions that are under way, who is silent. The
//! host's servers have one for all containers; a container with servers of its own has its own, which shares nothing.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Instant;

use tokio::sync::watch;

use super::cache::{Cache, Limits};
use super::message;
use super::upstream::{self, Asked, Experience, Means, Servers};

/// For the host's servers: some thousand names.
pub(super) const OF_HOST: Limits = Limits { entries: 4096, bytes: 2 << 20 };
/// For those of one container, of which there may be a thousand.
pub(super) const OF_CONTAINER: Limits = Limits { entries: 256, bytes: 64 << 10 };

/// What was answered to a question under way; none within when nobody has answered.
type Result = Option<Rc<[u8]>>;
/// A question under way: by UDP or not, and what it asks.
type Key = (bool, Rc<[u8]>);

/// A set of name servers.
#[derive(Debug)]
pub(super) struct Outside {
    /// Who they are. With others, nothing holds that was known.
    servers: RefCell<Option<Rc<Servers>>>,
    cache: RefCell<Cache>,
    under_way: RefCell<HashMap<Key, watch::Receiver<Option<Result>>>>,
    experience: Experience,
}

/// Where an answer is from.
#[derive(Debug)]
pub(super) enum Found {
    /// From a server that was asked for it.
    Asked(Vec<u8>),
    /// From a server that was asked by another one at the same time.
    Shared(Vec<u8>),
    /// Nobody has answered.
    Nothing,
}

impl Outside {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            servers: RefCell::default(),
            cache: RefCell::new(Cache::new(limits)),
            under_way: RefCell::default(),
            experience: Experience::default(),
        }
    }

    /// The answer that is kept for a question, with its id.
    pub(super) fn kept(&self, servers: &Rc<Servers>, asked: Asked<'_>) -> Option<Vec<u8>> {
        self.use_servers(servers);
        let essence = message::essence(asked.message, asked.question);
        let mut reply = self.cache.borrow_mut().get(&essence, Instant::now())?;
        // One that came by TCP may be too long.
        if asked.by_udp && reply.len() > asked.question.room {
            return None;
        }
        message::readdress(&mut reply, asked.message, asked.question);
        Some(reply)
    }

    /// Asks the servers, or waits with another one who has asked them the same.
    pub(super) async fn ask(&self, servers: &Rc<Servers>, means: &Means, asked: Asked<'_>) -> Found {
        self.use_servers(servers);
        let key = (asked.by_udp, message::essence(asked.message, asked.question).into());
        loop {
            let another = self.under_way.borrow().get(&key).cloned();
            let Some(mut another) = another else { break };
            let done = another.wait_for(Option::is_some).await.map(|result| result.clone().flatten());
            match done {
                Ok(Some(reply)) => {
                    let mut reply = reply.to_vec();
                    message::readdress(&mut reply, asked.message, asked.question);
                    return Found::Shared(reply);
                }
                Ok(None) => return Found::Nothing,
                // It has left without having heard anything.
                Err(_) => self.forget_one(&key, &another),
            }
        }
        let (tell, told) = watch::channel(None);
        self.under_way.borrow_mut().insert(key.clone(), told.clone());
        // Also when this one is not carried on.
        let _leaving = Leaving { outside: self, key: &key, told };
        let reply = upstream::ask(servers, &self.experience, means, asked).await;
        let _ = tell.send(Some(reply.as_deref().map(Rc::from)));
        let Some(reply) = reply else { return Found::Nothing };
        // Not what former servers have said.
        if self.servers.borrow().as_ref() == Some(servers) {
            self.cache.borrow_mut().put(&key.1, &reply, asked.question, Instant::now());
        }
        Found::Asked(reply)
    }

    fn use_servers(&self, servers: &Rc<Servers>) {
        let mut known = self.servers.borrow_mut();
        if !known.as_ref().is_some_and(|known| Rc::ptr_eq(known, servers) || known == servers) {
            *known = Some(servers.clone());
            self.cache.borrow_mut().clear();
            self.under_way.borrow_mut().clear();
            self.experience.forget();
        }
    }

    /// Takes a question off the list, unless another one has taken its place.
    fn forget_one(&self, key: &Key, told: &watch::Receiver<Option<Result>>) {
        let mut under_way = self.under_way.borrow_mut();
        if under_way.get(key).is_some_and(|listed| listed.same_channel(told)) {
            under_way.remove(key);
        }
    }
}

struct Leaving<'a> {
    outside: &'a Outside,
    key: &'a Key,
    told: watch::Receiver<Option<Result>>,
}

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.outside.forget_one(self.key, &self.told);
    }
}
