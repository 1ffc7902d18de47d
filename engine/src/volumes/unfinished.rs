//! Volumes that are made or filled for a container which is being made. A file beside the data says so until the container is on
//! record: an engine that dies meanwhile is followed by one that finds it, and takes no half copy of an image for a volume's content.

use super::{DATA, Volumes, is_empty};
use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};
use tracing::warn;

const MARK: &str = "unfinished";

/// Marks a volume's folder.
pub fn write(folder: &Path, maker: &str) -> io::Result<()> {
    std::fs::write(folder.join(MARK), maker)
}

/// The container that a marked folder is made for.
pub fn read(folder: &Path) -> Option<String> {
    std::fs::read_to_string(folder.join(MARK)).ok()
}

impl Volumes {
    /// Begins to fill a volume; tells whether there is anything to do: it is empty, or somebody has begun and not come to an end.
    pub fn begin_filling(&self, name: &str, data: &Path, maker: &str) -> io::Result<bool> {
        let mut state = self.lock();
        if !state.unfinished.contains_key(name) && !is_empty(data) {
            return Ok(false);
        }
        write(&self.root.join(name), maker)?;
        state.unfinished.insert(name.to_owned(), maker.to_owned());
        Ok(true)
    }

    /// The lock of those who fill a volume.
    pub fn filling(&self, name: &str) -> Arc<Mutex<()>> {
        let mut state = self.lock();
        state.filling.retain(|_, turn| Arc::strong_count(turn) > 1);
        state.filling.entry(name.to_owned()).or_default().clone()
    }

    /// Whether a copy into it was begun and not finished.
    pub fn is_unfinished(&self, name: &str) -> bool {
        self.lock().unfinished.contains_key(name)
    }

    /// The container is on record: its volumes are what they should be.
    pub fn finished(&self, maker: &str) {
        for folder in self.unmark(maker) {
            if let Err(error) = std::fs::remove_file(folder.join(MARK))
                && error.kind() != io::ErrorKind::NotFound
            {
                warn!(folder = %folder.display(), %error, "volume stays marked as unfinished");
            }
        }
    }

    fn unmark(&self, maker: &str) -> Vec<PathBuf> {
        let mut state = self.lock();
        let names: Vec<_> =
            state.unfinished.iter().filter(|(_, by)| *by == maker).map(|(name, _)| name.clone()).collect();
        names.iter().for_each(|name| _ = state.unfinished.remove(name));
        names.iter().map(|name| self.root.join(name)).collect()
    }

    /// The container is not made after all: takes back what was done for it, as far as nobody else has the volume.
    pub fn abandon(&self, maker: &str) {
        let of_maker = |by: &str| by == maker;
        self.take_back(of_maker);
    }

    /// What engines before this one have left. `known` tells which containers are on record: with those they had finished.
    pub fn resume(&self, known: impl Fn(&str) -> bool) {
        let makers: Vec<String> = self.lock().unfinished.values().cloned().collect();
        makers.iter().filter(|maker| known(maker)).for_each(|maker| self.finished(maker));
        self.take_back(|_| true);
    }

    fn take_back(&self, of: impl Fn(&str) -> bool) {
        let names: Vec<String> = {
            let state = self.lock();
            let of_maker = state.unfinished.iter().filter(|(_, by)| of(by)).map(|(name, _)| name);
            of_maker.filter(|name| !state.users.contains_key(*name)).cloned().collect()
        };
        for name in names {
            let Ok(volume) = self.get(&name) else { continue };
            if !volume.is_local() {
                // What a plugin keeps is removed by nobody but the user; a copy that was begun is finished by the next container.
                continue;
            }
            if volume.anonymous {
                if let Err(error) = self.remove(&name) {
                    warn!(volume = name, error = %proto::kind::chain(&error), "anonymous volume left behind");
                }
                continue;
            }
            // What is mounted there may have come from elsewhere meanwhile.
            if volume.needs_mount() {
                continue;
            }
            if let Err(error) = self.empty(&name) {
                warn!(volume = name, %error, "half-filled volume: the next container with it goes on");
            }
        }
    }

    /// Gives a volume an empty folder in place of the one with half a copy.
    fn empty(&self, name: &str) -> io::Result<()> {
        let mut state = self.lock();
        // Somebody may want it by now, and what that one wrote there is no copy.
        if state.users.contains_key(name) || !state.unfinished.contains_key(name) {
            return Ok(());
        }
        let folder = self.root.join(name);
        let data = folder.join(DATA);
        for entry in std::fs::read_dir(&data)? {
            let path = entry?.path();
            match std::fs::symlink_metadata(&path)?.is_dir() {
                true => std::fs::remove_dir_all(&path)?,
                false => std::fs::remove_file(&path)?,
            }
        }
        std::fs::remove_file(folder.join(MARK))?;
        state.unfinished.remove(name);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volumes::NewVolume;

    fn open(folder: &Path) -> Volumes {
        Volumes::open(folder.join("v"), folder.join("run"), Vec::new()).unwrap()
    }

    #[test]
    fn what_was_begun_is_taken_back_unless_it_is_somebodys() {
        let folder = tempfile::tempdir().unwrap();
        let volumes = open(folder.path());
        let new = |maker: &str, anonymous| NewVolume { maker: Some(maker.into()), anonymous, ..NewVolume::default() };
        for (name, maker, anonymous) in
            [("named", "dead", false), ("nameless", "dead", true), ("shared", "dead", false), ("done", "alive", false)]
        {
            volumes.ensure(name, new(maker, anonymous)).unwrap();
            assert!(volumes.begin_filling(name, &volumes.path(name), maker).unwrap());
            std::fs::write(volumes.path(name).join("file"), "x").unwrap();
        }
        // The next engine.
        let volumes = open(folder.path());
        assert!(volumes.is_unfinished("done") && volumes.is_unfinished("named"));
        volumes.hold("shared", "other");
        volumes.hold("done", "alive");
        volumes.resume(|maker| maker == "alive");
        let has_file = |name: &str| volumes.path(name).join("file").exists();
        assert!(volumes.get("nameless").is_err());
        assert!(volumes.get("named").is_ok() && !has_file("named") && !volumes.is_unfinished("named"));
        assert!(has_file("done") && !volumes.is_unfinished("done"));
        // Half a copy, that another container may have written to: it is gone on with.
        assert!(has_file("shared") && volumes.is_unfinished("shared"));
        assert!(volumes.begin_filling("shared", &volumes.path("shared"), "next").unwrap());
        volumes.finished("next");
        assert!(!volumes.begin_filling("shared", &volumes.path("shared"), "later").unwrap());
        assert!(!folder.path().join("v/shared").join(MARK).exists());
    }

    #[test]
    fn folders_of_volumes_that_were_being_made_or_removed_go() {
        let folder = tempfile::tempdir().unwrap();
        let half = folder.path().join("v/.half-0123");
        std::fs::create_dir_all(half.join("_data/x")).unwrap();
        assert!(open(folder.path()).list().is_empty());
        assert!(!half.exists());
    }
}
