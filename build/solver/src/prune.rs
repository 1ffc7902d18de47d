//! Making room: which records go, and in which order.
//!
//! Never one that a running build has used, nor one that something is built on which stays: its files are needed. Among the
//! others those go first that were used longest ago.

use crate::{
    index::{IndexError, Record, millis},
    progress::words,
    solve::Solver,
    worker::{CacheMount, StepError, Worker},
};
use proto::{
    digest::Digest,
    moby::buildkit::v1::{PruneRequest, UsageRecord},
};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};
use tracing::warn;

mod filter;
#[cfg(test)]
mod tests;

pub use filter::{Filter, FilterError};

/// What goes. With a limit: only until the limit holds; without: all that matches.
#[derive(Debug, Clone, Default)]
pub struct PruneOptions {
    /// Any of these; none: everything.
    pub filters: Vec<Filter>,
    /// Internal ones, of frontends, and what images share too.
    pub all: bool,
    /// Used since then: stays.
    pub keep_for: Duration,
    /// The cache may always have this much. Bytes, as all below; 0: not set.
    pub reserved_space: u64,
    /// The cache may have this much at most.
    pub max_used_space: u64,
    /// This much of the disk is to be free.
    pub min_free_space: u64,
    /// What of the disk is free.
    pub free: u64,
}

/// Why nothing more goes.
#[derive(Debug, thiserror::Error)]
pub enum PruneError {
    /// A filter that isn't one.
    #[error("invalid filter")]
    Filter(#[from] FilterError),
    /// The index can't be read or written.
    #[error("prune build cache")]
    Index(#[from] IndexError),
    /// The worker doesn't tell.
    #[error("list what the build cache holds")]
    Worker(#[source] StepError),
}

impl PruneOptions {
    /// As a client asks for it. `until` and `unused-for` may be among the filters too.
    pub fn of_request(request: &PruneRequest, free: u64) -> Result<Self, FilterError> {
        let size = |bytes: i64| u64::try_from(bytes).unwrap_or(0);
        let (filters, until) = filter::parse_all(&request.filter)?;
        let keep_for = Duration::from_nanos(size(request.keep_duration));
        Ok(Self {
            filters,
            all: request.all,
            keep_for: until.unwrap_or(keep_for),
            reserved_space: size(request.reserved_space),
            max_used_space: size(request.max_used_space),
            min_free_space: size(request.min_free_space),
            free,
        })
    }

    /// What is done without being asked, one after the other: files of contexts and caches of commands that lay idle for two
    /// days go first, then all that lay idle for sixty, then the oldest until the budget holds.
    pub fn policy(budget: u64, free: u64) -> Result<Vec<Self>, FilterError> {
        const DAY: Duration = Duration::from_secs(24 * 60 * 60);
        let idle = ["type==source.local", "type==exec.cachemount", "type==source.git.checkout"];
        let (filters, _) = filter::parse_all(&idle.map(str::to_owned))?;
        let limit = Self { max_used_space: budget, free, all: true, ..Self::default() };
        Ok(vec![
            Self { filters, keep_for: 2 * DAY, max_used_space: budget.min(512 << 20), free, ..Self::default() },
            Self { keep_for: 60 * DAY, ..limit.clone() },
            limit,
        ])
    }

    /// Bytes that may stay; nothing: no limit is set, all that matches goes.
    fn may_stay(&self, total: u64) -> Option<u64> {
        if self.max_used_space == 0 && self.reserved_space == 0 && self.min_free_space == 0 {
            return None;
        }
        let most = if self.max_used_space > 0 {
            self.max_used_space
        } else if self.min_free_space > 0 {
            total
        } else {
            0
        };
        let excess = self.min_free_space.saturating_sub(self.free);
        Some(most.min(total.saturating_sub(excess)).max(self.reserved_space))
    }
}

/// Something that takes space.
#[derive(Debug, Clone)]
pub(crate) struct Item {
    pub(crate) id: String,
    pub(crate) key: Option<Digest>,
    pub(crate) record: Record,
    pub(crate) in_use: bool,
    pub(crate) shared: bool,
}

impl Item {
    fn mutable(&self) -> bool {
        self.key.is_none()
    }

    #[allow(deprecated)] // clients of old read the one parent
    fn usage(&self) -> UsageRecord {
        let time = |millis: u64| std::time::UNIX_EPOCH + Duration::from_millis(millis);
        let parents: Vec<_> = self.record.parents.iter().map(Digest::hex).collect();
        UsageRecord {
            id: self.id.clone(),
            mutable: self.mutable(),
            in_use: self.in_use,
            size: i64::try_from(self.record.size()).unwrap_or(i64::MAX),
            parent: parents.first().cloned().unwrap_or_default(),
            created_at: Some(time(self.record.created).into()),
            last_used_at: (self.record.uses > 0).then(|| time(self.record.last_used).into()),
            usage_count: i64::try_from(self.record.uses).unwrap_or(i64::MAX),
            description: self.record.description.clone(),
            record_type: self.record.kind.clone(),
            shared: self.shared,
            parents,
        }
    }
}

impl<W: Worker> Solver<W> {
    /// What the cache holds, of it what any of the filters takes; none takes all.
    pub async fn usage(&self, filters: &[String]) -> Result<Vec<UsageRecord>, PruneError> {
        let (filters, _) = filter::parse_all(filters)?;
        let usage = self.items().await?.into_iter().map(|item| item.usage());
        Ok(usage.filter(|usage| filter::matches(&filters, usage)).collect())
    }

    /// Makes room; gives what went.
    pub async fn prune(&self, options: &PruneOptions) -> Result<Vec<UsageRecord>, PruneError> {
        let items = self.items().await?;
        let mut gone = Vec::new();
        let mut blocked: BTreeSet<Digest> = BTreeSet::new();
        for at in choose(&items, options, millis()) {
            let item = &items[at];
            // What stays against the plan keeps what it is built on.
            let is_needed = item.key.is_some_and(|key| blocked.contains(&key));
            if !is_needed && self.drop_item(item).await? {
                gone.push(item.usage());
            } else {
                blocked.extend(&item.record.parents);
            }
        }
        Ok(gone)
    }

    /// Keeps the cache within a budget of bytes; gives what went. `free` is what of the disk is.
    pub async fn collect(&self, budget: u64, free: u64) -> Result<Vec<UsageRecord>, PruneError> {
        let mut gone = Vec::new();
        for options in PruneOptions::policy(budget, free)? {
            gone.extend(self.prune(&options).await?);
        }
        Ok(gone)
    }

    async fn items(&self) -> Result<Vec<Item>, PruneError> {
        let inner = &self.0;
        let records = inner.crew.index.records()?;
        let names: Vec<_> = records.iter().flat_map(|(_, record)| record.names()).collect();
        let shared = inner.crew.worker.shared(&names).await.map_err(PruneError::Worker)?;
        let mounts = inner.crew.worker.mounts().await.map_err(PruneError::Worker)?;
        let used = inner.claims.used();
        let mut items: Vec<_> = mounts.into_iter().map(mount).collect();
        items.extend(records.into_iter().map(|(key, record)| Item {
            id: key.hex(),
            in_use: used.contains(&key),
            shared: record.outputs.iter().flatten().any(|kept| shared.contains(&kept.name)),
            key: Some(key),
            record,
        }));
        Ok(items)
    }

    /// Whether it is gone.
    async fn drop_item(&self, item: &Item) -> Result<bool, PruneError> {
        let inner = &self.0;
        let Some(key) = item.key else {
            return Ok(match inner.crew.worker.remove(&item.id).await {
                Ok(()) => true,
                Err(error) => {
                    warn!(name = item.id, error = words(&error), "cache of a command stays");
                    false
                }
            });
        };
        if !inner.claims.doom(key) {
            return Ok(false);
        }
        // First the record: what is announced is there.
        let removed = inner.crew.index.remove(key, Some(item.record.names())).await;
        inner.claims.spare(&key);
        let Some(record) = removed? else { return Ok(false) };
        inner.crew.remove(record.outputs.into_iter().flatten()).await;
        Ok(true)
    }
}

fn mount(mount: CacheMount) -> Item {
    let kept = crate::Kept { name: mount.name.clone(), size: mount.size };
    let record = Record {
        outputs: vec![Some(kept)],
        created: mount.created,
        last_used: mount.last_used,
        uses: mount.uses,
        description: mount.description,
        kind: "exec.cachemount".into(),
        parents: Vec::new(),
        aliases: Vec::new(),
    };
    Item { id: mount.name, key: None, record, in_use: mount.in_use, shared: false }
}

/// Which go, children before what they are built on, else in the order of their last use.
fn choose(items: &[Item], options: &PruneOptions, now: u64) -> Vec<usize> {
    let keep_since = now.saturating_sub(u64::try_from(options.keep_for.as_millis()).unwrap_or(u64::MAX));
    let may_go = |item: &Item| {
        let is_hidden = !options.all && (item.shared || matches!(item.record.kind.as_str(), "internal" | "frontend"));
        let is_fresh = !options.keep_for.is_zero() && item.record.last_used > keep_since;
        !item.in_use && !is_hidden && !is_fresh && filter::matches(&options.filters, &item.usage())
    };
    let mut total: u64 = items.iter().filter(|item| options.all || !item.shared).map(|item| item.record.size()).sum();
    let limit = options.may_stay(total);
    let places: HashMap<Digest, usize> =
        items.iter().enumerate().filter_map(|(at, item)| item.key.map(|key| (key, at))).collect();
    let mut children: BTreeMap<usize, usize> = BTreeMap::new();
    let parents = |item: &Item| {
        let mut places: Vec<_> = item.record.parents.iter().filter_map(|key| places.get(key).copied()).collect();
        places.sort_unstable();
        places.dedup();
        places
    };
    for parent in items.iter().flat_map(parents) {
        *children.entry(parent).or_default() += 1;
    }
    let age = |at: usize| (items[at].record.last_used, items[at].record.uses, at);
    let mut ready: BTreeSet<_> =
        (0..items.len()).filter(|at| !children.contains_key(at) && may_go(&items[*at])).map(age).collect();
    let mut chosen = Vec::new();
    while limit.is_none_or(|limit| total > limit) {
        let Some((_, _, at)) = ready.pop_first() else { break };
        total = total.saturating_sub(items[at].record.size());
        chosen.push(at);
        for parent in parents(&items[at]) {
            let Some(count) = children.get_mut(&parent) else { continue };
            *count -= 1;
            if *count == 0 && may_go(&items[parent]) {
                ready.insert(age(parent));
            }
        }
    }
    chosen
}
