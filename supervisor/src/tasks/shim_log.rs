//! What shims of others have to say: they open a FIFO `log` in their bundle at their start, and end if it isn't there.
//!
//! The FIFO is held open for reading and writing, so that neither side waits for the other; Berth's shim has none, since a
//! descriptor for each of a thousand containers is a price for nothing.

use std::path::Path;

use nix::{errno::Errno, sys::stat::Mode, unistd::mkfifo};
use proto::id::{ContainerId, NamespaceName};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader},
    net::unix::pipe::OpenOptions,
    task::AbortHandle,
};
use tracing::{debug, warn};

/// Longest line that is passed on.
const LINE_LIMIT: u64 = 16 << 10;

/// Reads a shim's log until it is dropped.
#[derive(Debug)]
pub(crate) struct ShimLog(AbortHandle);

impl Drop for ShimLog {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Whether a shim's program is Berth's own, by its name.
pub(crate) fn is_ours(shim: &Path) -> bool {
    shim.file_name().is_some_and(|name| name == "berth-shim" || name == "containerd-shim-berth-v1")
}

impl ShimLog {
    /// Makes the FIFO if it isn't there, and passes on to our log what comes out of it. A shim without one is worse off than a
    /// log that is lost, so failures are told and nothing more.
    pub(crate) fn open(bundle: &Path, namespace: &NamespaceName, id: &ContainerId) -> Option<Self> {
        let path = bundle.join("log");
        let opened = match mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR) {
            Ok(()) | Err(Errno::EEXIST) => OpenOptions::new().read_write(true).open_receiver(&path),
            Err(errno) => Err(errno.into()),
        };
        let receiver = match opened {
            Ok(receiver) => receiver,
            Err(error) => {
                warn!(%namespace, %id, %error, "no log of the shim");
                return None;
            }
        };
        let (namespace, id) = (namespace.clone(), id.clone());
        let reading = tokio::spawn(async move {
            let mut reader = BufReader::with_capacity(1024, receiver);
            let mut line = Vec::new();
            loop {
                line.clear();
                match (&mut reader).take(LINE_LIMIT).read_until(b'\n', &mut line).await {
                    Ok(1..) => {
                        let text = String::from_utf8_lossy(&line);
                        let text = text.trim_end();
                        // logrus' levels; what is not worth more is for those who look closely.
                        if text.contains("level=warning") || text.contains("level=error") {
                            warn!(%namespace, %id, text, "said by the shim");
                        } else {
                            debug!(%namespace, %id, text, "said by the shim");
                        }
                    }
                    // We hold a writing end, so there is no end to come.
                    Ok(0) | Err(_) => return,
                }
            }
        });
        Some(Self(reading.abort_handle()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_shims_are_known_by_name() {
        for (path, ours) in [
            ("/x/berth-shim", true),
            ("/x/containerd-shim-berth-v1", true),
            ("/x/containerd-shim-runc-v2", false),
            ("/", false),
        ] {
            assert_eq!(is_ours(Path::new(path)), ours, "{path}");
        }
    }
}
