//! A plugin of NRI, as a test plays it: what it is told, and what it answers.

use std::{
    fmt::Write as _,
    path::Path,
    sync::{Arc, Mutex},
};

use prost::Message;
use proto::{
    nri::pkg::api::v1alpha1 as nri,
    ttrpc::{Call, Client, mux, serve},
};
use tokio::{io::AsyncRead, io::AsyncWrite, net::UnixStream, task::AbortHandle};
use tonic::Status;

/// The service of runtimes.
pub const RUNTIME: &str = "nri.pkg.api.v1alpha1.Runtime";

/// What a plugin was told.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Told {
    /// The event, or the call where it is none.
    pub what: String,
    /// The pod it is about.
    pub pod: nri::PodSandbox,
    /// The container it is about.
    pub container: nri::Container,
    /// All there are, when the plugin is synchronized.
    pub all: nri::SynchronizeRequest,
}

/// What a plugin answers.
#[derive(Debug)]
pub enum Answer {
    /// What means nothing.
    Nothing,
    /// This message.
    This(Vec<u8>),
    /// An error.
    Error(Status),
    /// It never answers.
    Never,
    /// Its connection ends.
    Die,
}

impl Answer {
    /// A message.
    pub fn of(message: &impl Message) -> Self {
        Self::This(message.encode_to_vec())
    }
}

/// A plugin that is connected.
#[derive(Debug)]
pub struct Plugin {
    /// Calls of the runtime.
    pub runtime: Client,
    told: Arc<Mutex<Vec<Told>>>,
    moving: AbortHandle,
}

impl Plugin {
    /// Connects and registers; `answer` says what is answered to what it is told.
    pub async fn connect(
        socket: &Path,
        (index, name): (&str, &str),
        answer: impl Fn(&Told) -> Answer + Send + Sync + 'static,
    ) -> Result<Self, Status> {
        let stream = UnixStream::connect(socket).await.map_err(|error| Status::unavailable(error.to_string()))?;
        Self::over(stream, (index, name), answer).await
    }

    /// The same on a stream that is there already.
    pub async fn over(
        stream: impl AsyncRead + AsyncWrite + Send + 'static,
        (index, name): (&str, &str),
        answer: impl Fn(&Told) -> Answer + Send + Sync + 'static,
    ) -> Result<Self, Status> {
        let mux::Shared { plugin, runtime, moving } = mux::share(stream);
        let (told, moving) = (Arc::new(Mutex::new(Vec::new())), moving.abort_handle());
        let (noted, ending, answer) = (told.clone(), moving.clone(), Arc::new(answer));
        tokio::spawn(serve(plugin, std::future::pending(), move |call| {
            let (noted, ending, answer) = (noted.clone(), ending.clone(), answer.clone());
            async move {
                let one = told_by(&call)?;
                noted.lock().unwrap().push(one.clone());
                match answer(&one) {
                    Answer::Nothing => Ok(Vec::new()),
                    Answer::This(bytes) => Ok(bytes),
                    Answer::Error(status) => Err(status),
                    Answer::Never => std::future::pending().await,
                    Answer::Die => {
                        ending.abort();
                        std::future::pending().await
                    }
                }
            }
        }));
        let this = Self { runtime: Client::over(runtime), told, moving };
        let request = nri::RegisterPluginRequest { plugin_name: name.into(), plugin_idx: index.into() };
        let _: nri::Empty = this.runtime.call(RUNTIME, "RegisterPlugin", "", &request, None).await?;
        Ok(this)
    }

    /// All that it was told.
    pub fn told(&self) -> Vec<Told> {
        self.told.lock().unwrap().clone()
    }

    /// The last that it was told of this.
    pub fn last(&self, what: &str) -> Option<Told> {
        self.told().into_iter().rfind(|told| told.what == what)
    }

    /// What it was told after it had been synchronized, in one line.
    pub fn events(&self) -> String {
        let mut line = String::new();
        for told in self.told().iter().skip_while(|told| told.what != "Synchronize").skip(1) {
            write!(line, "{}{}", if line.is_empty() { "" } else { " " }, told.what).unwrap();
        }
        line
    }

    /// Waits until it knows the state of the node.
    pub async fn synchronized(self) -> Self {
        crate::kubelet::eventually("the plugin is synchronized", async || {
            // Only who is synchronized may ask for changes.
            let request = nri::UpdateContainersRequest::default();
            let answer =
                self.runtime.call::<_, nri::UpdateContainersResponse>(RUNTIME, "UpdateContainers", "", &request, None);
            answer.await.ok()
        })
        .await;
        self
    }

    /// Asks for changes; gives those that couldn't be made.
    pub async fn update(&self, request: &nri::UpdateContainersRequest) -> Result<Vec<nri::ContainerUpdate>, Status> {
        let answer = self.runtime.call(RUNTIME, "UpdateContainers", "", request, None);
        answer.await.map(|answer: nri::UpdateContainersResponse| answer.failed)
    }
}

impl Drop for Plugin {
    fn drop(&mut self) {
        self.moving.abort();
    }
}

fn told_by(call: &Call) -> Result<Told, Status> {
    let mut told = Told { what: call.method().to_owned(), ..Default::default() };
    let (pod, container) = match call.method() {
        "StateChange" => {
            let event: nri::StateChangeEvent = call.message()?;
            told.what = event.event().as_str_name().to_owned();
            (event.pod, event.container)
        }
        "CreateContainer" => {
            let request: nri::CreateContainerRequest = call.message()?;
            (request.pod, request.container)
        }
        "UpdateContainer" => {
            let request: nri::UpdateContainerRequest = call.message()?;
            let mut container = request.container.unwrap_or_default();
            // What is asked for is more to the point than what was.
            container.linux.get_or_insert_default().resources = request.linux_resources;
            (request.pod, Some(container))
        }
        "StopContainer" => {
            let request: nri::StopContainerRequest = call.message()?;
            (request.pod, request.container)
        }
        "UpdatePodSandbox" => {
            let request: nri::UpdatePodSandboxRequest = call.message()?;
            let mut pod = request.pod.unwrap_or_default();
            pod.linux.get_or_insert_default().resources = request.linux_resources;
            (Some(pod), None)
        }
        "ValidateContainerAdjustment" => {
            let request: nri::ValidateContainerAdjustmentRequest = call.message()?;
            (request.pod, request.container)
        }
        "Synchronize" => {
            told.all = call.message()?;
            (None, None)
        }
        "Configure" => {
            let request: nri::ConfigureRequest = call.message()?;
            // The one place that a configuration has here.
            (Some(nri::PodSandbox { name: request.config, ..Default::default() }), None)
        }
        "Shutdown" => (None, None),
        _ => return Err(call.unimplemented()),
    };
    told.pod = pod.unwrap_or_default();
    told.container = container.unwrap_or_default();
    Ok(told)
}
