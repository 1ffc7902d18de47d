//! The first program of a command with variables that are in no specification, since supervisors keep those on disk: this very
//! program under the name `berth-env`, mounted into the container. It reads the variables from a pipe and becomes the command: the
//! process stays the same, and so do its user, its rights and its folder.

use std::{
    ffi::{CString, OsString},
    fs::File,
    io::{self, Read as _, Write as _},
    os::unix::ffi::OsStringExt as _,
    process::ExitCode,
};

use sys::{executable, process};

/// What it is called by.
pub(crate) const NAME: &str = "berth-env";

/// More than the kernel lets any program have.
const MOST: u32 = 16 << 20;

/// `berth-env PIPE COMMAND [ARG...]`
///
/// In the pipe: the length of what follows, four bytes, the highest first; then `NAME=value`, each with a zero byte at its end.
pub(crate) fn main(words: Vec<OsString>) -> ExitCode {
    let mut words = words.into_iter();
    let pipe = words.next().unwrap_or_default();
    let args: Result<Vec<CString>, _> = words.map(|word| CString::new(word.into_vec())).collect();
    let Some(args) = args.ok().filter(|args| !args.is_empty()) else {
        return failed(2, format_args!("{NAME}: no command"));
    };
    let given = match File::open(&pipe).and_then(read) {
        Ok(given) => given,
        Err(error) => return failed(125, format_args!("{NAME}: read the variables of secrets: {error}")),
    };
    let env = merge(std::env::vars_os().map(variable), given);
    let path = match executable::find(&args[0], &env) {
        Ok(path) => path,
        Err(error) => return failed(error.exit_code(), format_args!("{error}")),
    };
    // What Rust ignores from its start on, the command would ignore, too.
    let _ = process::reset_signals();
    let error = process::execve(&path, &args, &env);
    failed(126, format_args!("exec {}: {}", path.display(), error.desc().to_lowercase()))
}

fn failed(code: u8, text: std::fmt::Arguments<'_>) -> ExitCode {
    let _ = io::stderr().write_all(format!("{text}\n").as_bytes());
    ExitCode::from(code)
}

/// As many bytes as there are to be: the other side keeps the pipe open.
fn read(mut pipe: impl io::Read) -> io::Result<Vec<CString>> {
    let mut length = [0; 4];
    pipe.read_exact(&mut length)?;
    let length = u32::from_be_bytes(length);
    if length > MOST {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "too long"));
    }
    let mut text = Vec::with_capacity(length as usize);
    pipe.take(length.into()).read_to_end(&mut text)?;
    if text.len() < length as usize || text.last().is_some_and(|last| *last != 0) {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let variables = text.split_inclusive(|byte| *byte == 0).map(|text| CString::from_vec_with_nul(text.to_vec()));
    variables.collect::<Result<_, _>>().map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

fn variable((name, value): (OsString, OsString)) -> CString {
    let text = [name.into_vec(), value.into_vec()].join(&b'=');
    // What came from the kernel has no zero byte.
    CString::new(text).unwrap_or_default()
}

/// Those that are given replace those of the same name.
fn merge(inherited: impl Iterator<Item = CString>, given: Vec<CString>) -> Vec<CString> {
    let name = |variable: &CString| variable.to_bytes().split(|byte| *byte == b'=').next().map(<[u8]>::to_vec);
    let mut env: Vec<CString> = inherited.collect();
    for variable in given {
        env.retain(|known| name(known) != name(&variable));
        env.push(variable);
    }
    env
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packed(text: &[u8]) -> Vec<u8> {
        let length = u32::try_from(text.len()).unwrap().to_be_bytes();
        [&length, text].concat()
    }

    fn texts(list: &[&str]) -> Vec<CString> {
        list.iter().map(|text| CString::new(*text).unwrap()).collect()
    }

    #[test]
    fn variables_come_whole_or_not_at_all() {
        let all = [packed(b"A=1\0B=\n2\0"), b"more".to_vec()].concat();
        assert_eq!(read(&all[..]).unwrap(), texts(&["A=1", "B=\n2"]));
        assert_eq!(read(&packed(b"")[..]).unwrap(), texts(&[]));
        for end in 0..all.len() - 4 {
            assert!(read(&all[..end]).is_err(), "{end}");
        }
        assert!(read(&packed(b"A=1")[..]).is_err());
        assert!(read(&u32::MAX.to_be_bytes()[..]).is_err());
    }

    #[test]
    fn what_is_given_replaces() {
        let env = merge(texts(&["A=1", "AB=2", "C=3"]).into_iter(), texts(&["A=x=y", "C=", "D=4", "D=5"]));
        assert_eq!(env, texts(&["AB=2", "A=x=y", "C=", "D=5"]));
    }
}
