//! One definition of one build, driven to its end. Everything that takes time is a future here; each one that ends makes the
//! vertices that waited for it be looked at again. No vertex waits in another's call, so that depth costs no stack.
//!
//! A vertex is first *identified*: its canonical key is found, and perhaps a record. That goes from the sources upwards, and needs
//! results only where a key is made of content. Then results are *fetched*, from what is asked for downwards: from the record, or
//! by doing the work, for which the inputs are fetched. What nobody asks for isn't.

use super::{Build, SolveError, Solved, failed};
use crate::{
    counts::Counts,
    flight::{Job, Orders, Outcome},
    graph::{Edge, Graph, Vertex},
    index::{IndexError, Record, View, millis},
    keys::{self, Input, Own},
    progress::StepBoard,
    remote::Layer,
    worker::{Pin, Step, StepError, Work, Worker},
};
use futures_util::{
    future::{BoxFuture, FutureExt as _},
    stream::{FuturesUnordered, StreamExt as _},
};
use proto::{
    digest::Digest,
    pb::{self, op::Op},
};
use std::{
    collections::VecDeque,
    sync::{Arc, PoisonError, atomic::AtomicU64},
};

pub(super) async fn drive<W: Worker>(build: &Build<W>, graph: Arc<Graph>) -> Result<Solved<W::Ref>, SolveError> {
    let _ending = Ending { build, graph: &graph };
    let mut drive = Drive::new(build.clone(), graph.clone());
    let outcome = drive.run().await;
    let hits = drive.nodes.iter().filter(|node| node.hit).filter_map(|node| node.key).collect();
    build.0.solver.crew.index.touch(hits);
    let result = outcome?;
    let keys = drive.nodes.iter().filter_map(|node| node.key).collect();
    let aliases = drive.nodes.iter().map(|node| node.definition.filter(|definition| node.key != Some(*definition)));
    let aliases = aliases.collect();
    Ok(Solved { result, graph: drive.graph, keys, aliases })
}

/// Whichever way it ends: steps that are still shown as running aren't, as far as this build goes.
struct Ending<'a, W: Worker> {
    build: &'a Build<W>,
    graph: &'a Graph,
}

impl<W: Worker> Drop for Ending<'_, W> {
    fn drop(&mut self) {
        self.build.0.board.abandon(self.graph);
    }
}

struct Drive<W: Worker> {
    build: Build<W>,
    graph: Arc<Graph>,
    nodes: Vec<Node<W::Ref>>,
    todo: VecDeque<usize>,
    /// What is known, as long as nothing is waited for.
    view: Option<Arc<View>>,
    running: FuturesUnordered<BoxFuture<'static, (usize, Event<W::Ref>)>>,
}

/// How far a vertex is.
struct Node<R> {
    own: Own,
    users: Vec<usize>,
    pin: Option<Pin>,
    definition: Option<Digest>,
    /// Per input, where the key is made of content.
    contents: Vec<Content>,
    /// The canonical key; then it is identified.
    key: Option<Digest>,
    record: Option<Record>,
    hit: bool,
    /// Per output its layers in another cache.
    remote: Option<Vec<Vec<Layer>>>,
    wanted: Vec<bool>,
    have: Vec<Option<Option<R>>>,
    finding: bool,
    /// Being pinned, or done.
    busy: bool,
    /// Its record was stale: what comes now needn't be what the index knew the content of.
    renewed: bool,
    /// Made of something else than its key says; not for the record.
    tainted: bool,
}

#[derive(Clone, Copy, PartialEq)]
enum Content {
    Unknown,
    Asked,
    /// By the index.
    Told(Digest),
    /// By the worker, of the very result.
    Seen(Digest),
}

enum Event<R> {
    Pinned(Result<Pin, StepError>),
    Content(usize, Result<Digest, StepError>),
    Found(usize, Result<Option<R>, Gone>),
    Landed(Outcome<R>, bool),
}

enum Gone {
    Step(StepError),
    Index(IndexError),
}

impl<W: Worker> Drive<W> {
    fn new(build: Build<W>, graph: Arc<Graph>) -> Self {
        let mut nodes: Vec<Node<W::Ref>> = graph.vertices.iter().map(Node::new).collect();
        for (at, vertex) in graph.vertices.iter().enumerate() {
            for input in &vertex.inputs {
                if nodes[input.vertex].users.last() != Some(&at) {
                    nodes[input.vertex].users.push(at);
                }
            }
        }
        let todo = (0..nodes.len()).collect();
        Self { build, graph, nodes, todo, view: None, running: FuturesUnordered::new() }
    }

    async fn run(&mut self) -> Result<Option<W::Ref>, SolveError> {
        let Some(root) = self.graph.wanted else { return Ok(None) };
        self.want(root);
        loop {
            while let Some(at) = self.todo.pop_front() {
                self.look(at)?;
            }
            if let Some(result) = &self.nodes[root.vertex].have[root.output] {
                return Ok(result.clone());
            }
            self.look_ahead();
            if !self.todo.is_empty() {
                continue;
            }
            self.view = None;
            match self.running.next().await {
                Some((at, event)) => self.heard(at, event)?,
                None => return Err(SolveError::Stuck { name: self.graph.vertices[root.vertex].name.clone() }),
            }
        }
    }

    /// Has work begun that will be needed. A vertex that waits for one of its inputs to be identified, which waits for work, would
    /// ask for the others only after that: `COPY --from` of one stage after the other. An input whose content it reads, and of which
    /// nothing is known, has to be made in any case.
    fn look_ahead(&mut self) {
        let graph = self.graph.clone();
        let is_source = |at: usize| matches!(graph.vertices[at].op.op, Some(Op::Source(_)));
        if (0..self.nodes.len()).any(|at| self.nodes[at].key.is_none() && is_source(at)) {
            return; // nobody works yet, and all may be known
        }
        for (at, vertex) in graph.vertices.iter().enumerate().filter(|(_, vertex)| !vertex.ignore_cache) {
            if self.nodes[at].key.is_some() || self.nodes[at].definition.is_some() {
                continue;
            }
            for (place, edge) in vertex.inputs.iter().enumerate() {
                let input = &self.nodes[edge.vertex];
                let is_unknown = input.key.is_some() && !input.hit && input.remote.is_none();
                if is_unknown && self.nodes[at].own.inputs[place].content.is_some() {
                    self.want(*edge);
                }
            }
        }
    }

    fn look(&mut self, at: usize) -> Result<(), SolveError> {
        if self.nodes[at].key.is_none() {
            let identified = self.identify(at);
            let named =
                |cause| SolveError::Index { name: self.graph.vertices[at].name.clone(), cause: Arc::new(cause) };
            let Some((key, record)) = identified.map_err(named)? else { return Ok(()) };
            self.settle(at, key, record);
        }
        self.fetch(at)
    }

    /// The canonical key and what is known by it, as soon as it can be said.
    fn identify(&mut self, at: usize) -> Result<Option<(Digest, Option<Record>)>, IndexError> {
        let graph = self.graph.clone();
        let vertex = &graph.vertices[at];
        if let Some(Op::Source(source)) = &vertex.op.op {
            let Some(pin) = &self.nodes[at].pin else {
                self.pin(at, vertex, source);
                return Ok(None);
            };
            let key = keys::of_source(source, &pin.key);
            let found = if vertex.ignore_cache { None } else { self.lookup(at, &key)? };
            return Ok(Some((key, found.and_then(|(_, record)| record))));
        }
        let Some(inputs) = self.input_keys(vertex) else { return Ok(None) };
        let definition = match self.nodes[at].definition {
            Some(definition) => definition,
            None => {
                let definition = keys::by_definition(&self.nodes[at].own, &inputs);
                self.nodes[at].definition = Some(definition);
                if vertex.ignore_cache {
                    return Ok(Some((keys::again(&definition), None)));
                }
                if let Some(found) = self.lookup(at, &definition)? {
                    return Ok(Some(found));
                }
                definition
            }
        };
        if self.nodes[at].own.inputs.iter().all(|look| look.content.is_none()) {
            return Ok(Some((definition, None)));
        }
        let Some(inputs) = self.input_contents(at, vertex, &inputs)? else { return Ok(None) };
        let key = keys::by_content(&self.nodes[at].own, &inputs);
        let Some((canonical, record)) = self.lookup(at, &key)? else { return Ok(Some((key, None))) };
        self.build.0.solver.crew.index.alias(canonical, definition);
        Ok(Some((canonical, record)))
    }

    fn view(&mut self) -> Result<Arc<View>, IndexError> {
        if let Some(view) = &self.view {
            return Ok(view.clone());
        }
        let view = Arc::new(self.build.0.solver.crew.index.view()?);
        Ok(self.view.insert(view).clone())
    }

    /// What is known by a key: here, or elsewhere.
    fn lookup(&mut self, at: usize, key: &Digest) -> Result<Option<(Digest, Option<Record>)>, IndexError> {
        let view = self.view()?;
        if let Some((canonical, record)) = self.build.lookup(&view, key)? {
            return Ok(Some((canonical, Some(record))));
        }
        let build = self.build.clone();
        let imports = build.0.imports.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let outputs = self.graph.vertices[at].outputs;
        if let Some((canonical, layers)) = imports.iter().find_map(|import| import.lookup(key, outputs)) {
            // By its other name it may be here.
            let record = self.build.lookup(&view, &canonical)?.map(|(_, record)| record);
            self.nodes[at].remote = record.is_none().then_some(layers);
            return Ok(Some((canonical, record)));
        }
        Ok(imports.iter().find_map(|import| import.canonical(key)).map(|canonical| (canonical, None)))
    }

    fn input_keys(&self, vertex: &Vertex) -> Option<Vec<(Digest, usize)>> {
        vertex.inputs.iter().map(|input| self.nodes[input.vertex].key.map(|key| (key, input.output))).collect()
    }

    /// Inputs for a key by content; where only the input itself can tell, it is fetched, and then digested.
    fn input_contents(
        &mut self,
        at: usize,
        vertex: &Vertex,
        known: &[(Digest, usize)],
    ) -> Result<Option<Vec<Input>>, IndexError> {
        let mut inputs = Vec::with_capacity(known.len());
        let mut missing = false;
        for (place, (key, output)) in known.iter().enumerate() {
            let look = &self.nodes[at].own.inputs[place];
            let Some(selections) = look.content.clone() else {
                inputs.push(Input::Record(*key, *output));
                continue;
            };
            if self.nodes[at].contents[place] == Content::Unknown && self.nodes[vertex.inputs[place].vertex].hit {
                let selection = keys::selection(&selections);
                if let Some(told) = self.view()?.content(key, *output, &selection)? {
                    self.nodes[at].contents[place] = Content::Told(told);
                }
            }
            match self.nodes[at].contents[place] {
                Content::Told(digest) | Content::Seen(digest) => inputs.push(Input::Content(digest)),
                Content::Asked => missing = true,
                Content::Unknown => {
                    missing = true;
                    let edge = vertex.inputs[place];
                    match &self.nodes[edge.vertex].have[edge.output] {
                        None => self.want(edge),
                        Some(result) => {
                            let result = result.clone();
                            self.nodes[at].contents[place] = Content::Asked;
                            self.digest(at, place, result, selections, (*key, *output));
                        }
                    }
                }
            }
        }
        Ok((!missing).then_some(inputs))
    }

    fn settle(&mut self, at: usize, key: Digest, record: Option<Record>) {
        let board = self.board(at);
        let is_source = self.nodes[at].pin.is_some();
        let node = &mut self.nodes[at];
        node.key = Some(key);
        node.hit = record.is_some();
        node.record = record;
        self.todo.extend(&node.users);
        if node.hit || node.remote.is_some() {
            self.build.0.count(|counts| &counts.hits, 1);
            board.cached();
        } else if is_source {
            board.completed(None); // it is known now, and may never be fetched
        }
    }

    /// Gets what is wanted of an identified vertex.
    fn fetch(&mut self, at: usize) -> Result<(), SolveError> {
        let node = &self.nodes[at];
        let open = |output: &usize| node.wanted[*output] && node.have[*output].is_none();
        let Some(output) = (0..node.wanted.len()).find(open) else { return Ok(()) };
        if node.busy || node.finding {
            return Ok(());
        }
        let Some(record) = &node.record else { return self.work(at) };
        match record.outputs.get(output) {
            Some(None) => {
                self.got(at, output, None);
                self.todo.push_back(at);
            }
            found => {
                // Fewer results than the operation has: not made by it.
                let name = found.into_iter().flatten().next().map(|kept| kept.name.clone());
                self.find(at, output, name, record.clone());
            }
        }
        Ok(())
    }

    fn got(&mut self, at: usize, output: usize, result: Option<W::Ref>) {
        let node = &mut self.nodes[at];
        if let Some(have) = node.have.get_mut(output) {
            *have = Some(result);
        }
        self.todo.extend(&node.users);
    }

    /// Does it, as soon as all it works on is there.
    fn work(&mut self, at: usize) -> Result<(), SolveError> {
        let graph = self.graph.clone();
        let vertex = &graph.vertices[at];
        let fetch = self.nodes[at].remote.take();
        let is_fetch = fetch.is_some();
        let mut inputs = Vec::with_capacity(vertex.inputs.len());
        for edge in vertex.inputs.iter().filter(|_| !is_fetch) {
            match &self.nodes[edge.vertex].have[edge.output] {
                Some(result) => inputs.push(result.clone()),
                None => self.want(*edge),
            }
        }
        let Some(mut key) = self.nodes[at].key.filter(|_| is_fetch || inputs.len() == vertex.inputs.len()) else {
            return Ok(());
        };
        let is_tainted = vertex.inputs.iter().zip(&self.nodes[at].contents).any(|(input, content)| {
            let input = &self.nodes[input.vertex];
            input.tainted || (input.renewed && matches!(content, Content::Told(_)))
        });
        let is_tainted = is_tainted && !is_fetch;
        if is_tainted {
            self.nodes[at].tainted = true;
            key = keys::again(&key);
        }
        let node = &self.nodes[at];
        let record = (!is_tainted).then(|| {
            let parents = vertex.inputs.iter().zip(&node.own.inputs).filter(|(_, look)| look.base);
            let parents = parents.filter_map(|(input, _)| self.nodes[input.vertex].key).collect();
            let now = millis();
            Record {
                outputs: Vec::new(),
                created: now,
                last_used: now,
                uses: 1,
                description: vertex.name.clone(),
                kind: kind(&vertex.op).to_owned(),
                parents,
                aliases: node.definition.into_iter().collect(),
            }
        });
        self.build.claim(key, false);
        let job = match fetch {
            Some(chains) => Job::Fetch(chains),
            None => Job::Perform(Work { op: vertex.op.clone(), pin: node.pin.clone(), inputs }),
        };
        let (step, outputs) = (self.build.step(&vertex.digest, &vertex.name), vertex.outputs);
        let solver = self.build.0.solver.clone();
        // With an error to tell, the one who does the work finds it too.
        let known = || {
            let found = if vertex.ignore_cache { None } else { solver.crew.index.lookup(&key).ok().flatten() };
            found.map(|(_, record)| record)
        };
        let board = self.board(at);
        let seat = solver.flights.board((key, self.build.0.id), board, &solver.crew, known, |fan, cancelled| Orders {
            job,
            step: Step { progress: fan, cancelled, ..step },
            outputs,
            record,
        });
        match seat {
            Err(record) => {
                self.nodes[at].record = Some(record);
                self.todo.push_back(at);
            }
            Ok((mut seat, new)) => {
                let which: fn(&Counts) -> &AtomicU64 = match (new, is_fetch) {
                    (true, true) => |counts| &counts.fetched,
                    (true, false) => |counts| &counts.performed,
                    (false, _) => |counts| &counts.joined,
                };
                self.build.0.count(which, 1);
                self.nodes[at].busy = true;
                self.run_future(at, async move {
                    let (outcome, again) = seat.landed().await;
                    Event::Landed(outcome, again && (is_fetch || !new))
                });
            }
        }
        Ok(())
    }

    fn want(&mut self, edge: Edge) {
        let wanted = &mut self.nodes[edge.vertex].wanted[edge.output];
        if !*wanted {
            *wanted = true;
            self.todo.push_back(edge.vertex);
        }
    }

    fn heard(&mut self, at: usize, event: Event<W::Ref>) -> Result<(), SolveError> {
        self.todo.push_back(at);
        match event {
            Event::Pinned(pin) => {
                self.nodes[at].busy = false;
                self.nodes[at].pin = Some(pin.map_err(|error| self.failed(at, error))?);
            }
            Event::Content(place, digest) => {
                let digest = digest.map_err(|error| self.failed(at, error))?;
                self.nodes[at].contents[place] = Content::Seen(digest);
            }
            Event::Found(output, found) => {
                self.nodes[at].finding = false;
                match found {
                    Ok(Some(result)) => self.got(at, output, Some(result)),
                    Ok(None) => {
                        self.build.0.count(|counts| &counts.stale, 1);
                        let node = &mut self.nodes[at];
                        node.record = None;
                        node.hit = false;
                        node.renewed = true;
                    }
                    Err(Gone::Step(error)) => return Err(self.failed(at, error)),
                    Err(Gone::Index(cause)) => {
                        let name = self.graph.vertices[at].name.clone();
                        return Err(SolveError::Index { name, cause: Arc::new(cause) });
                    }
                }
            }
            Event::Landed(outcome, again) => {
                self.nodes[at].busy = false;
                match outcome {
                    Ok(results) => {
                        for (output, result) in results.iter().enumerate() {
                            if self.nodes[at].have.get(output).is_some_and(Option::is_none) {
                                self.got(at, output, result.clone());
                            }
                        }
                        // Another build may have come another way.
                        let node = &self.nodes[at];
                        if let (Some(key), Some(definition), false) = (node.key, node.definition, node.tainted) {
                            self.build.0.solver.crew.index.alias(key, definition);
                        }
                    }
                    Err(_) if again => {} // looked at again, it is done anew
                    Err(cause) => {
                        self.build.0.count(|counts| &counts.failed, 1);
                        let vertex = &self.graph.vertices[at];
                        return Err(SolveError::Step { digest: vertex.digest, name: vertex.name.clone(), cause });
                    }
                }
            }
        }
        Ok(())
    }

    fn failed(&self, at: usize, error: StepError) -> SolveError {
        self.build.0.count(|counts| &counts.failed, 1);
        failed(&self.board(at), &error);
        let vertex = &self.graph.vertices[at];
        SolveError::Step { digest: vertex.digest, name: vertex.name.clone(), cause: Arc::new(error) }
    }

    fn board(&self, at: usize) -> StepBoard {
        StepBoard::new(self.build.0.board.clone(), &self.graph.vertices[at].digest)
    }

    fn pin(&mut self, at: usize, vertex: &Vertex, source: &pb::SourceOp) {
        if self.nodes[at].busy {
            return;
        }
        self.nodes[at].busy = true;
        self.board(at).started();
        let (build, step) = (self.build.clone(), self.build.step(&vertex.digest, &vertex.name));
        let (op, source, digest) = (vertex.op.clone(), source.clone(), vertex.digest);
        self.run_future(at, async move { Event::Pinned(build.pin(&op, &source, step, digest).await) });
    }

    fn digest(
        &mut self,
        at: usize,
        place: usize,
        result: Option<W::Ref>,
        selections: Vec<crate::Selection>,
        (key, output): (Digest, usize),
    ) {
        let input = self.graph.vertices[at].inputs[place].vertex;
        let is_known = !self.nodes[input].tainted;
        let vertex = &self.graph.vertices[at];
        let (build, step) = (self.build.clone(), self.build.step(&vertex.digest, &vertex.name));
        self.run_future(at, async move {
            let solver = &build.0.solver;
            let mut digests = Vec::with_capacity(selections.len());
            if let Some(result) = &result {
                for selection in &selections {
                    build.0.count(|counts| &counts.contents, 1);
                    match solver.crew.worker.content(result, selection, &step).await {
                        Ok(digest) => digests.push(digest),
                        Err(error) => return Event::Content(place, Err(error)),
                    }
                }
            }
            let digest = keys::contents(&digests);
            if is_known {
                solver.crew.index.note_content(&key, output, &keys::selection(&selections), digest);
            }
            Event::Content(place, Ok(digest))
        });
    }

    fn find(&mut self, at: usize, output: usize, name: Option<String>, record: Record) {
        let Some(key) = self.nodes[at].key else { return };
        self.nodes[at].finding = true;
        let build = self.build.clone();
        self.run_future(at, async move {
            let crew = &build.0.solver.crew;
            let found = match &name {
                Some(name) => {
                    build.0.count(|counts| &counts.found, 1);
                    crew.worker.find(name).await
                }
                None => Ok(None),
            };
            Event::Found(
                output,
                match found {
                    Ok(Some(result)) => Ok(Some(result)),
                    Ok(None) => match crew.index.remove(key, Some(record.names())).await {
                        Ok(removed) => {
                            crew.remove(removed.into_iter().flat_map(|record| record.outputs).flatten()).await;
                            Ok(None)
                        }
                        Err(error) => Err(Gone::Index(error)),
                    },
                    Err(error) => Err(Gone::Step(error)),
                },
            )
        });
    }

    fn run_future(&self, at: usize, future: impl Future<Output = Event<W::Ref>> + Send + 'static) {
        self.running.push(future.map(move |event| (at, event)).boxed());
    }
}

impl<R> Node<R> {
    fn new(vertex: &Vertex) -> Self {
        Self {
            own: keys::own(&vertex.op),
            users: Vec::new(),
            pin: None,
            definition: None,
            contents: vec![Content::Unknown; vertex.inputs.len()],
            key: None,
            record: None,
            hit: false,
            remote: None,
            wanted: vec![false; vertex.outputs],
            have: std::iter::repeat_with(|| None).take(vertex.outputs).collect(),
            finding: false,
            busy: false,
            renewed: false,
            tainted: false,
        }
    }
}

/// As BuildKit calls what comes out.
fn kind(op: &pb::Op) -> &str {
    let Some(Op::Source(source)) = &op.op else { return "regular" };
    match source.identifier.split_once("://") {
        Some(("local", _)) => "source.local",
        Some(("git", _)) => "source.git.checkout",
        _ => match source.attrs.get("image.recordtype").map(String::as_str) {
            Some("frontend") => "frontend",
            Some("internal") => "internal",
            _ => "regular",
        },
    }
}
