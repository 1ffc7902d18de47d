//! Answers of other name servers that are kept for as long as their owners allow. Bounded; what was asked for longest ago goes
//! first.

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::time::Instant;

use super::lifetime::{self, Lifetime};
use super::message::Question;

/// How much is kept.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Answers.
    pub(super) entries: usize,
    /// Bytes of answers and questions.
    pub(super) bytes: usize,
}

/// Answers by what was asked: all of the question but its id (`message::essence`), so that nobody is told what was answered to
/// one who asked in another way.
#[derive(Debug)]
pub(super) struct Cache {
    limits: Limits,
    entries: HashMap<Rc<[u8]>, Entry>,
    /// Questions by when they were asked last.
    order: BTreeMap<u64, Rc<[u8]>>,
    bytes: usize,
    turn: u64,
}

#[derive(Debug)]
struct Entry {
    reply: Box<[u8]>,
    lifetime: Lifetime,
    since: Instant,
    turn: u64,
}

impl Cache {
    pub(super) fn new(limits: Limits) -> Self {
        Self { limits, entries: HashMap::new(), order: BTreeMap::new(), bytes: 0, turn: 0 }
    }

    /// The answer to a question as it may be told now. The id is another's.
    pub(super) fn get(&mut self, asked: &[u8], now: Instant) -> Option<Vec<u8>> {
        let entry = self.entries.get_mut(asked)?;
        let age = now.saturating_duration_since(entry.since);
        if age >= entry.lifetime.lasts {
            self.remove(asked);
            return None;
        }
        if let Some(asked) = self.order.remove(&entry.turn) {
            self.turn += 1;
            entry.turn = self.turn;
            self.order.insert(self.turn, asked);
        }
        let mut reply = entry.reply.to_vec();
        lifetime::shorten(&mut reply, &entry.lifetime.at, age);
        Some(reply)
    }

    /// Keeps an answer, if it may be.
    pub(super) fn put(&mut self, asked: &[u8], reply: &[u8], question: &Question, now: Instant) {
        let Some(lifetime) = lifetime::of(reply, question) else { return };
        let size = size(asked, reply);
        if size > self.limits.bytes || self.limits.entries == 0 {
            return;
        }
        self.remove(asked);
        while self.entries.len() >= self.limits.entries || self.bytes + size > self.limits.bytes {
            let Some((_, oldest)) = self.order.pop_first() else { return };
            self.remove(&oldest);
        }
        self.turn += 1;
        let asked: Rc<[u8]> = asked.into();
        self.order.insert(self.turn, asked.clone());
        self.entries.insert(asked, Entry { reply: reply.into(), lifetime, since: now, turn: self.turn });
        self.bytes += size;
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        *self = Self::new(self.limits);
    }

    fn remove(&mut self, asked: &[u8]) {
        if let Some(entry) = self.entries.remove(asked) {
            self.order.remove(&entry.turn);
            self.bytes -= size(asked, &entry.reply);
        }
    }
}

fn size(asked: &[u8], reply: &[u8]) -> usize {
    asked.len() + reply.len()
}

#[cfg(test)]
mod tests {
    use super::super::message::{Records, answer, ask, essence, kind, parse};
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    /// A question for a name, its essence, and an answer that lasts for 30 seconds.
    fn known(name: &str) -> (Question, Vec<u8>, Vec<u8>) {
        let message = ask(name, kind::A, None);
        let question = parse(&message).expect("question");
        let reply = answer(&message, &question, &Records::Addresses(vec![[10, 0, 0, 1].into()]), true);
        let essence = essence(&message, &question);
        (question, essence, reply)
    }

    fn sizes(cache: &Cache) -> usize {
        assert_eq!(cache.entries.len(), cache.order.len());
        cache.entries.iter().map(|(asked, entry)| size(asked, &entry.reply)).sum()
    }

    #[test]
    fn what_is_kept_ages_and_goes() {
        let mut cache = Cache::new(Limits { entries: 10, bytes: 10_000 });
        let (question, asked, reply) = known("web");
        let start = Instant::now();
        assert_eq!(cache.get(&asked, start), None);
        cache.put(&asked, &reply, &question, start);
        assert_eq!(cache.get(&asked, start), Some(reply.clone()));
        let later = cache.get(&asked, start + Duration::from_millis(29_999)).expect("kept");
        let ttl = reply.len() - 10..reply.len() - 6;
        assert_eq!((&reply[ttl.clone()], &later[ttl]), (&[0, 0, 0, 30][..], &[0, 0, 0, 1][..]));
        assert_eq!(cache.get(&asked, start + Duration::from_secs(30)), None);
        assert_eq!((cache.bytes, sizes(&cache)), (0, 0));
        cache.put(&asked, &reply, &question, start);
        cache.clear();
        assert_eq!(cache.get(&asked, start), None);
    }

    #[test]
    fn what_was_asked_for_longest_ago_makes_room() {
        let now = Instant::now();
        let mut cache = Cache::new(Limits { entries: 3, bytes: 10_000 });
        let put = |cache: &mut Cache, name: &str| {
            let (question, asked, reply) = known(name);
            cache.put(&asked, &reply, &question, now);
        };
        let has = |cache: &mut Cache, name: &str| cache.get(&known(name).1, now).is_some();
        ["a", "b", "c"].iter().for_each(|name| put(&mut cache, name));
        assert!(has(&mut cache, "a"));
        put(&mut cache, "d");
        assert_eq!(["a", "b", "c", "d"].map(|name| has(&mut cache, name)), [true, false, true, true]);
    }

    proptest! {
        #[test]
        fn it_never_grows_beyond_its_limits(
            names in proptest::collection::vec("[a-z]{1,20}", 1..60), entries in 0..6usize, bytes in 0..400usize, ages in 0..40u64
        ) {
            let mut cache = Cache::new(Limits { entries, bytes });
            let mut now = Instant::now();
            for name in names {
                let (question, asked, reply) = known(&name);
                if cache.get(&asked, now).is_none() {
                    cache.put(&asked, &reply, &question, now);
                }
                prop_assert!(cache.entries.len() <= entries && cache.bytes <= bytes);
                prop_assert_eq!(sizes(&cache), cache.bytes);
                now += Duration::from_secs(ages);
            }
        }
    }
}
