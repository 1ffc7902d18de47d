//! Calls as a kubelet makes them: with a deadline, by many at once, and the supervisor may be killed under any of them.

use std::{
    collections::BTreeMap,
    fs::File,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use proto::runtime::v1::{image_service_client::ImageServiceClient, runtime_service_client::RuntimeServiceClient};
use tonic::{Code, Response, Status, transport::Channel};

use super::{
    pod::Pod,
    watch::{Seen, SeenPod},
};

/// What plugins say that fail on purpose.
pub const ON_PURPOSE: &str = "made to fail";
/// The patience of kubelets (`runtimeRequestTimeout`).
const PATIENCE: Duration = Duration::from_secs(120);

/// Why there is no answer.
#[derive(Debug)]
pub enum Failure {
    /// The supervisor was killed under the call, or isn't there.
    Lost,
    /// It said no.
    Refused(Status),
}

impl Failure {
    /// Whether it was refused with this code.
    pub fn is(&self, code: Code) -> bool {
        matches!(self, Self::Refused(status) if status.code() == code)
    }

    /// Whether a plugin failed on purpose.
    pub fn is_on_purpose(&self) -> bool {
        matches!(self, Self::Refused(status) if status.message().contains(ON_PURPOSE))
    }
}

/// What all parts of the kubelet know.
pub struct Day {
    /// Connects again by itself.
    pub channel: Channel,
    /// The node's network namespace.
    pub network: File,
    /// The node's folder.
    pub folder: PathBuf,
    /// Changes with every kill of the supervisor, and when it is back: odd while it is away.
    pub generation: AtomicUsize,
    /// One fetches or removes images at a time: ctr's imports don't hold on to layers that they find.
    pub images_turn: tokio::sync::Mutex<()>,
    /// An import that is cut off leaves what ctr is to go on with: there are no kills meanwhile.
    pub import: tokio::sync::Mutex<()>,
    /// All pods were there.
    pub over: AtomicBool,
    pub pods: Mutex<BTreeMap<String, Arc<Pod>>>,
    /// Containers as they were seen last.
    pub seen: Mutex<BTreeMap<String, Seen>>,
    /// Sandboxes, too.
    pub seen_pods: Mutex<BTreeMap<String, SeenPod>>,
    /// What must not be.
    pub wrong: Mutex<Vec<String>>,
    took: Mutex<BTreeMap<&'static str, Vec<Duration>>>,
    counts: Mutex<BTreeMap<&'static str, usize>>,
    began: Instant,
}

impl Day {
    pub fn new(channel: Channel, network: File, folder: PathBuf) -> Self {
        Self {
            channel,
            network,
            folder,
            generation: AtomicUsize::new(0),
            images_turn: tokio::sync::Mutex::default(),
            import: tokio::sync::Mutex::default(),
            over: AtomicBool::new(false),
            pods: Mutex::default(),
            seen: Mutex::default(),
            seen_pods: Mutex::default(),
            wrong: Mutex::default(),
            took: Mutex::default(),
            counts: Mutex::default(),
            began: Instant::now(),
        }
    }

    pub fn runtime(&self) -> RuntimeServiceClient<Channel> {
        RuntimeServiceClient::new(self.channel.clone()).max_decoding_message_size(16 << 20)
    }

    pub fn images(&self) -> ImageServiceClient<Channel> {
        ImageServiceClient::new(self.channel.clone()).max_decoding_message_size(16 << 20)
    }

    /// Notes what must not be.
    pub fn complain(&self, what: String) {
        let at = self.began.elapsed();
        let line = format!("{:.3} {what}", at.as_secs_f64());
        eprintln!("{} {line}", clock());
        self.wrong.lock().unwrap().push(line);
    }

    /// Counts something that happened.
    pub fn count(&self, what: &'static str) {
        *self.counts.lock().unwrap().entry(what).or_default() += 1;
    }

    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }

    /// Asks once. What breaks off without a kill is wrong.
    pub async fn call<T>(
        &self,
        what: &'static str,
        answer: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Failure> {
        let generation = self.generation.load(Ordering::SeqCst);
        let began = Instant::now();
        let Ok(answer) = tokio::time::timeout(PATIENCE, answer).await else {
            self.complain(format!("{what} hangs for {} s", PATIENCE.as_secs()));
            return Err(Failure::Lost);
        };
        self.took.lock().unwrap().entry(what).or_default().push(began.elapsed());
        let error = match answer {
            Ok(answer) => return Ok(answer.into_inner()),
            Err(error) => error,
        };
        let broke = matches!(error.code(), Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Internal);
        if !broke {
            return Err(Failure::Refused(error));
        }
        // Who is killed is so a moment before we hear of it.
        if generation % 2 == 1 || self.generation.load(Ordering::SeqCst) != generation {
            self.count("calls cut off");
            return Err(Failure::Lost);
        }
        Err(Failure::Refused(error))
    }

    /// A table of what was done, and how long it took.
    pub fn report(&self) -> String {
        let mut lines = Vec::new();
        for (what, all) in self.took.lock().unwrap().iter_mut() {
            all.sort();
            let ms = |at: usize| all[at].as_secs_f64() * 1000.0;
            lines.push(format!(
                "{what:<28} {:>6} times, median {:>7.1} ms, 99 of 100 {:>7.1} ms, longest {:>7.1} ms",
                all.len(),
                ms(all.len() / 2),
                ms((all.len() * 99 / 100).min(all.len() - 1)),
                ms(all.len() - 1)
            ));
        }
        for (what, count) in self.counts.lock().unwrap().iter() {
            lines.push(format!("{what}: {count}"));
        }
        lines.join("\n")
    }
}

fn clock() -> String {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let seconds = since.as_secs() % 86_400;
    format!("{:02}:{:02}:{:02}.{:03}", seconds / 3600, seconds / 60 % 60, seconds % 60, since.subsec_millis())
}
