//! Logs: renamed now and then, and read in the end. Every line must be there once, in its order.

use std::{fs, path::Path};

use proto::runtime::v1 as cri;
use tonic::Code;

use super::{
    calls::{Day, Failure},
    pod::{Log, Pod, Role},
};

/// Whole lines of some files of a log, and whether the last of them was cut off.
fn lines(files: &[impl AsRef<Path>]) -> Result<(Vec<String>, bool), String> {
    let (mut whole, mut part) = (Vec::new(), String::new());
    for file in files {
        let file = file.as_ref();
        let text = match fs::read(file) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(format!("{}: {error}", file.display())),
        };
        for line in String::from_utf8_lossy(&text).split_inclusive('\n') {
            let Some(line) = line.strip_suffix('\n') else {
                // The writer was killed in the middle of a write.
                return Ok((whole, true));
            };
            let mut words = line.splitn(4, ' ');
            let (Some(_time), Some("stdout" | "stderr"), Some(tag), Some(rest)) =
                (words.next(), words.next(), words.next(), words.next())
            else {
                return Err(format!("{}: not a line of CRI: {line:?}", file.display()));
            };
            part.push_str(rest);
            match tag {
                "F" => whole.push(std::mem::take(&mut part)),
                "P" => {}
                _ => return Err(format!("{}: tag {tag:?}", file.display())),
            }
        }
    }
    Ok((whole, !part.is_empty()))
}

/// Looks whether a log has each line once. `complete`: its writer has said so before it ended.
fn judge(log: &Log, complete: bool) -> Result<usize, String> {
    let files: Vec<_> = log.old.iter().chain([&log.path]).collect();
    let (lines, _) = lines(&files)?;
    let (mut number, mut bye) = (0, None);
    for line in &lines {
        let mut words = line.split(' ');
        match (words.next(), words.next().and_then(|word| word.parse::<usize>().ok()), words.next()) {
            (Some("line"), Some(next), long) if bye.is_none() && next == number + 1 => {
                if long.is_some_and(|long| long.len() != 16_384) {
                    return Err(format!("line {next} is not whole"));
                }
                number = next;
            }
            (Some("bye"), Some(count), None) if bye.is_none() => bye = Some(count),
            _ => {
                let shown: String = line.chars().take(60).collect();
                return Err(format!("after line {number} (bye {bye:?}) comes {shown:?}"));
            }
        }
    }
    match bye {
        Some(count) if count != number => Err(format!("{count} lines were written, {number} are there")),
        None if complete => Err(format!("the last line isn't there, {number} are")),
        _ => Ok(number),
    }
}

impl Day {
    /// Renames a container's log, and has it begun anew.
    pub async fn rotate(&self, pod: &Pod, id: &str) {
        let Some(log) = pod.logs.lock().unwrap().get(id).cloned() else { return };
        let old = log.path.with_extension(format!("log.{}", log.old.len() + 1));
        if fs::rename(&log.path, &old).is_err() {
            // It hasn't begun to write.
            return;
        }
        if let Some(log) = pod.logs.lock().unwrap().get_mut(id) {
            log.old.push(old);
        }
        self.count("logs rotated");
        loop {
            let request = cri::ReopenContainerLogRequest { container_id: id.to_owned() };
            match self.call("ReopenContainerLog", self.runtime().reopen_container_log(request)).await {
                Ok(_) => return,
                Err(Failure::Lost) => tokio::time::sleep(std::time::Duration::from_millis(50)).await,
                Err(error) if error.is(Code::FailedPrecondition) || error.is(Code::NotFound) => return,
                // Its shim was just killed.
                Err(_) if self.was_shot(pod) => return,
                Err(error) => return self.complain(format!("log of {id} not reopened: {error:?}")),
            }
        }
    }

    /// Reads all logs of a pod that is gone.
    pub fn judge_logs(&self, pod: &Pod) {
        for (id, log) in pod.logs.lock().unwrap().iter() {
            let Some(seen) = self.seen.lock().unwrap().get(id).cloned() else { continue };
            let complete = match log.role {
                Role::Web | Role::Deaf => continue,
                Role::Crasher => seen.exit_code == 3,
                Role::Init | Role::Writer | Role::Job => seen.reason == "Completed",
            };
            match judge(log, complete) {
                Ok(lines) => {
                    self.count("logs read");
                    if lines > 0 {
                        self.count("logs with lines");
                    }
                }
                Err(wrong) => self.complain(format!(
                    "log of {}/{} ({id}, exit {} {}, pod shot {} times, {} rotations): {wrong}",
                    pod.name,
                    log.container,
                    seen.exit_code,
                    seen.reason,
                    pod.shots.load(std::sync::atomic::Ordering::SeqCst),
                    log.old.len()
                )),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_or_there_twice_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        let log = Log {
            container: "c".into(),
            role: Role::Writer,
            path: folder.path().join("0.log"),
            old: vec![folder.path().join("0.log.1")],
        };
        let write = |old: &str, new: &str| {
            let text = |lines: &str| {
                lines
                    .split(';')
                    .filter(|line| !line.is_empty())
                    .map(|line| format!("t stdout {line}\n"))
                    .collect::<String>()
            };
            fs::write(&log.old[0], text(old)).unwrap();
            fs::write(&log.path, text(new)).unwrap();
        };
        write("F line 1;F line 2", "F line 3;F bye 3");
        assert_eq!(judge(&log, true), Ok(3));
        write("F line 1;P li", "F ne 2;F bye 2");
        assert_eq!(judge(&log, true), Ok(2));
        for (old, new, complete) in [
            ("F line 1", "F line 3", false),
            ("F line 1;F line 2", "F line 2", false),
            ("F line 2", "F line 1", false),
            ("F line 1", "", true),
            ("F line 1;F bye 2", "", true),
            ("F line 1;F bye 1", "F line 2", true),
        ] {
            write(old, new);
            assert!(judge(&log, complete).is_err(), "{old} | {new}");
        }
    }
}
