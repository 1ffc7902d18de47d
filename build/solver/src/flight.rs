//! Work under way. Who wants what another build is just doing takes a seat; the work is cancelled when the last one gets up.
//!
//! ```text
//! waiting -> performing -> keeping -> recorded -> landed
//!     \__________/ cancelled: dropped, nothing stays
//! ```
//! From keeping on it goes to its end: a result is whole on disk, and in the index, or gone.

use crate::{
    index::{Index, Record},
    progress::{Fan, StepBoard},
    remote::Layer,
    worker::{Kept, Step, StepError, Work, Worker},
};
use proto::digest::Digest;
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};
use tokio::sync::{Semaphore, watch};
use tracing::warn;

/// What came of it: one result per output.
pub(crate) type Outcome<R> = Result<Arc<Vec<Option<R>>>, Arc<StepError>>;

/// All work under way, by canonical key.
pub(crate) struct Flights<R>(Mutex<Table<R>>);

struct Table<R> {
    next: u64,
    flights: HashMap<Digest, Flight<R>>,
}

struct Flight<R> {
    id: u64,
    seats: usize,
    /// Whose sessions are asked.
    owner: u64,
    owner_left: Arc<AtomicBool>,
    /// Done, and being kept: that goes to its end, and who comes may wait for it.
    keeping: Arc<AtomicBool>,
    cancel: watch::Sender<bool>,
    outcome: watch::Receiver<Option<Outcome<R>>>,
    fan: Arc<Fan>,
}

/// A place in a flight.
pub(crate) struct Seat<R> {
    flights: Arc<Flights<R>>,
    key: Digest,
    id: u64,
    build: u64,
    board: StepBoard,
    fan: Arc<Fan>,
    owner_left: Arc<AtomicBool>,
    outcome: watch::Receiver<Option<Outcome<R>>>,
}

/// What has to be told to the one who does it.
pub(crate) struct Orders<R> {
    pub job: Job<R>,
    pub step: Step,
    pub outputs: usize,
    /// Nothing: the result is for this build alone.
    pub record: Option<Record>,
}

/// What is to be done.
pub(crate) enum Job<R> {
    Perform(Work<R>),
    /// From another cache; per output, its layers.
    Fetch(Vec<Vec<Layer>>),
}

/// Who does it.
pub(crate) struct Crew<W: Worker> {
    pub worker: Arc<W>,
    pub index: Index,
    pub permits: Option<Arc<Semaphore>>,
}

impl<W: Worker> Clone for Crew<W> {
    fn clone(&self) -> Self {
        Self { worker: self.worker.clone(), index: self.index.clone(), permits: self.permits.clone() }
    }
}

impl<R: Clone + Send + Sync + 'static> Flights<R> {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(Table { next: 0, flights: HashMap::new() })))
    }

    /// A seat in the flight for `key`, which is started if there is none, and whether it was. `known` is asked last: somebody
    /// may have just landed.
    pub(crate) fn board<W: Worker<Ref = R>, K>(
        self: &Arc<Self>,
        (key, build): (Digest, u64),
        board: StepBoard,
        crew: &Crew<W>,
        known: impl FnOnce() -> Option<K>,
        orders: impl FnOnce(Arc<Fan>, watch::Receiver<bool>) -> Orders<R>,
    ) -> Result<(Seat<R>, bool), K> {
        let mut table = self.lock();
        let seat = |id, fan: &Arc<Fan>, owner_left: &Arc<AtomicBool>, outcome: &watch::Receiver<_>| Seat {
            flights: self.clone(),
            key,
            id,
            build,
            board: board.clone(),
            fan: fan.clone(),
            owner_left: owner_left.clone(),
            outcome: outcome.clone(),
        };
        if let Some(flight) = table.flights.get_mut(&key) {
            flight.seats += 1;
            flight.fan.join(board.clone());
            return Ok((seat(flight.id, &flight.fan, &flight.owner_left, &flight.outcome), false));
        }
        if let Some(known) = known() {
            return Err(known);
        }
        table.next += 1;
        let id = table.next;
        let fan = Arc::new(Fan::default());
        fan.join(board.clone());
        let (cancel, cancelled) = watch::channel(false);
        let (landed, outcome) = watch::channel(None);
        let owner_left = Arc::new(AtomicBool::new(false));
        let taken = seat(id, &fan, &owner_left, &outcome);
        let keeping = Arc::new(AtomicBool::new(false));
        let flight = Flight {
            id,
            seats: 1,
            owner: build,
            owner_left,
            keeping: keeping.clone(),
            cancel,
            outcome,
            fan: fan.clone(),
        };
        table.flights.insert(key, flight);
        drop(table);
        let (crew, flights, orders): (_, _, Orders<R>) =
            (crew.clone(), self.clone(), orders(fan.clone(), cancelled.clone()));
        let is_fetch = matches!(orders.job, Job::Fetch(_));
        tokio::spawn(async move {
            // Gone from the table also if the worker panics: the next one starts anew.
            let _gone = OnDrop(|| drop(flights.remove(&key, id)));
            let outcome = crew.fly(key, orders, &fan, (&keeping, cancelled)).await.map(Arc::new).map_err(Arc::new);
            drop(crew); // whoever waits for this may want to close the index next
            drop(flights.remove(&key, id));
            match &outcome {
                Err(error) if matches!(**error, StepError::Cancelled) && is_fetch => {}
                outcome => fan.completed(outcome.as_ref().err().map(AsRef::as_ref)),
            }
            landed.send_replace(Some(outcome));
        });
        Ok((taken, true))
    }

    fn remove(&self, key: &Digest, id: u64) -> Option<Flight<R>> {
        let mut table = self.lock();
        let ours = table.flights.get(key).is_some_and(|flight| flight.id == id);
        if ours { table.flights.remove(key) } else { None }
    }

    fn lock(&self) -> MutexGuard<'_, Table<R>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct OnDrop<F: FnMut()>(F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        self.0();
    }
}

impl<R: Clone + Send + Sync + 'static> Seat<R> {
    /// What comes of it; and whether it failed for somebody who isn't there any more, so that it is worth another try.
    pub(crate) async fn landed(&mut self) -> (Outcome<R>, bool) {
        let outcome = match self.outcome.wait_for(Option::is_some).await {
            Ok(outcome) => outcome.clone(),
            Err(_) => None,
        };
        match outcome {
            Some(Err(error)) => {
                let again = matches!(*error, StepError::Cancelled) || self.owner_left.load(Relaxed);
                (Err(error), again)
            }
            Some(outcome) => (outcome, false),
            None => {
                let cause = std::io::Error::other("the worker panicked").into();
                (Err(Arc::new(StepError::Failed { what: "step ended without a result".into(), cause })), false)
            }
        }
    }
}

impl<R> Drop for Seat<R> {
    fn drop(&mut self) {
        self.fan.leave(&self.board);
        let mut table = self.flights.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(flight) = table.flights.get_mut(&self.key).filter(|flight| flight.id == self.id) else { return };
        flight.seats -= 1;
        if flight.owner == self.build {
            flight.owner_left.store(true, Relaxed);
        }
        if flight.seats == 0 && !flight.keeping.load(Relaxed) {
            flight.cancel.send_replace(true);
            // Nobody takes a seat in what is being given up.
            table.flights.remove(&self.key);
        }
    }
}

impl<W: Worker> Crew<W> {
    async fn fly(
        &self,
        key: Digest,
        orders: Orders<W::Ref>,
        fan: &Fan,
        (keeping, mut cancelled): (&AtomicBool, watch::Receiver<bool>),
    ) -> Result<Vec<Option<W::Ref>>, StepError> {
        let Orders { job, step, outputs, record } = orders;
        let perform = async {
            let _permit = match &self.permits {
                Some(permits) => permits.acquire().await.ok(),
                None => None,
            };
            match job {
                Job::Perform(work) => {
                    fan.begin();
                    self.worker.perform(work, &step).await
                }
                Job::Fetch(chains) => self.fetch(&chains, &step).await,
            }
        };
        let results = tokio::select! {
            biased;
            _ = cancelled.wait_for(|cancelled| *cancelled) => return Err(StepError::Cancelled),
            done = perform => done?,
        };
        if results.len() != outputs {
            let cause = format!("{} instead of {outputs}", results.len()).into();
            return Err(StepError::Failed { what: "wrong count of results".into(), cause });
        }
        if let Some(record) = record {
            keeping.store(true, Relaxed);
            self.keep(key, &results, record).await?;
        }
        Ok(results)
    }

    /// All of it or nothing: without, the work is done, and that isn't known to fail.
    async fn fetch(&self, chains: &[Vec<Layer>], step: &Step) -> Result<Vec<Option<W::Ref>>, StepError> {
        let mut results = Vec::with_capacity(chains.len());
        for layers in chains {
            match self.worker.fetch(layers, step).await {
                Ok(Some(result)) => results.push(Some(result)),
                Ok(None) => return Err(StepError::Cancelled),
                Err(error) => {
                    warn!(step = step.name, error = crate::progress::words(&error), "imported cache can't be used");
                    return Err(StepError::Cancelled);
                }
            }
        }
        Ok(results)
    }

    async fn keep(&self, key: Digest, results: &[Option<W::Ref>], mut record: Record) -> Result<(), StepError> {
        for result in results {
            let kept = match result {
                None => None,
                Some(result) => match self.worker.keep(result, &record.description).await {
                    Ok(kept) => Some(kept),
                    Err(error) => {
                        self.remove(record.outputs.into_iter().flatten()).await;
                        return Err(error);
                    }
                },
            };
            record.outputs.push(kept);
        }
        match self.index.put(key, record.clone()).await {
            Ok(before) => {
                let names = record.names();
                let before = before.into_iter().flat_map(|record| record.outputs).flatten();
                self.remove(before.filter(|kept| !names.contains(&kept.name))).await;
                Ok(())
            }
            Err(cause) => {
                self.remove(record.outputs.into_iter().flatten()).await;
                Err(StepError::Failed { what: "record the result".into(), cause: Box::new(cause) })
            }
        }
    }

    /// Lets go of results that no record names.
    pub(crate) async fn remove(&self, kept: impl IntoIterator<Item = Kept>) {
        for kept in kept {
            if let Err(error) = self.worker.remove(&kept.name).await {
                warn!(name = kept.name, error = crate::progress::words(&error), "result of a build stays behind");
            }
        }
    }
}
