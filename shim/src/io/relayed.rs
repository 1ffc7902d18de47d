//! Stdio of a process whose shim is somebody else's: FIFOs, which every shim knows, take the place of the process's own pipes.
//!
//! The other shim holds both ends of the FIFOs for output open (containerd's way), so that what is written while nobody reads
//! waits in them.

use std::{path::Path, rc::Rc};

use proto::stdio::StdioUri;

use super::{
    IoError, ProcessIo, StdioConfig,
    fd::{Pipe, open_both, open_reader},
    output::Source,
    parse,
    sink::Opener,
    stdin::Stdin,
    system,
};
use crate::reaper::Reaper;

impl ProcessIo {
    /// Copies between the FIFOs `stdin`, `stdout` and `stderr` of a folder and what `config` says of them; one that isn't
    /// there is a stream that the process hasn't.
    pub(crate) async fn of_fifos(folder: &Path, config: &StdioConfig, reaper: &Rc<Reaper>) -> Result<Self, IoError> {
        let uris = [parse("stdout", &config.stdout)?, parse("stderr", &config.stderr)?];
        let opener = Opener { container: &config.container, namespace: &config.namespace, reaper };
        let (sinks, keepers) = opener.open([&uris[0], &uris[1]]).await?;
        let watching = system("watch stdio");
        let mut io = Self { stdin: None, outputs: [None, None], master: None, keepers, tasks: Vec::new() };
        for (place, (stream, sink)) in ["stdout", "stderr"].into_iter().zip(sinks).enumerate() {
            let path = folder.join(stream);
            if (place == 1 && config.terminal) || !path.exists() {
                continue;
            }
            let fifo = open_reader(&path).map_err(|cause| IoError::Open { stream, path, cause })?;
            let source = Source::Pipe(Pipe::reader(fifo).map_err(&watching)?);
            io.outputs[place] = Some(io.spawn_pump(source, sink));
        }
        let path = folder.join("stdin");
        if parse("stdin", &config.stdin)? == StdioUri::Attach {
            // Both ways, since the shim that is to read it may yet have to open it.
            let fifo = open_both(&path).map_err(|cause| IoError::Open { stream: "stdin", path, cause })?;
            let fifo = Pipe::writer(fifo).map_err(&watching)?;
            io.stdin = Some(if config.terminal { Stdin::terminal(Rc::new(fifo)) } else { Stdin::pipe(fifo) });
        }
        Ok(io)
    }

    /// Done when nobody writes output any more.
    pub(crate) fn ended(&self) -> impl Future<Output = ()> + 'static {
        let outputs: Vec<_> = self.outputs.iter().flatten().cloned().collect();
        async move {
            for output in outputs {
                output.settled().await;
            }
        }
    }
}
