//! The format of the corpus: `=== name: rule`, options as `word: value`, then files.

use integration_tests::{images, programs::workspace};
use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
    process::Command,
};

/// The time of files in contexts, seconds since 1970, and what a case's own may add to it: BuildKit 0.8 takes a Dockerfile of
/// another folder for unchanged if size and time are the same.
pub const CONTEXT_TIME: i64 = 981_173_106;
pub const TIMES: i64 = 1_000_000;

/// A Dockerfile, its context, and what is to come out.
#[derive(Debug, Clone, Default)]
pub struct Case {
    pub name: String,
    /// Words for the client.
    pub args: Vec<String>,
    /// The build has to fail, with these words.
    pub fails: Option<String>,
    /// Why BuildKit isn't asked.
    pub only: Option<String>,
    /// The file that goes to standard input, in place of a context.
    pub stdin: Option<String>,
    /// Whether what is below `served/` is to be had over HTTP.
    pub server: bool,
    pub files: Vec<File>,
    /// Lines that have to be in what came out; `no path` for what must not be.
    pub expect: Vec<String>,
}

#[derive(Debug, Clone)]
pub struct File {
    pub path: String,
    pub kind: FileKind,
    pub text: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileKind {
    Plain(u32),
    Link(String),
    Tar(String),
    Many(usize),
}

/// All cases, in their order.
pub fn all() -> Vec<Case> {
    let folder = workspace().join("integration-tests/tests/build/corpus");
    let mut files: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let cases: Vec<Case> = files.iter().flat_map(|file| parse(&fs::read_to_string(file).unwrap())).collect();
    let mut names: Vec<_> = cases.iter().map(|case| &case.name).collect();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), cases.len(), "two cases have one name");
    cases
}

fn parse(text: &str) -> Vec<Case> {
    let mut cases: Vec<Case> = Vec::new();
    let (mut crlf, mut bom, mut chop) = (false, false, false);
    let mut in_file = false;
    for line in text.lines() {
        if let Some(head) = line.strip_prefix("=== ") {
            let (name, _rule) = head.split_once(": ").unwrap_or_else(|| panic!("{head}: no rule"));
            cases.push(Case { name: name.to_owned(), ..Case::default() });
            (crlf, bom, chop, in_file) = (false, false, false, false);
            continue;
        }
        let case = cases.last_mut().expect("a file begins with a case");
        if let Some(head) = line.strip_prefix("--- ") {
            in_file = true;
            case.files.push(file(head));
            if bom && case.files.len() == 1 {
                case.files[0].text.push('\u{feff}');
            }
        } else if in_file {
            let file = case.files.last_mut().unwrap();
            if file.path == "expect" && !line.is_empty() {
                case.expect.push(line.to_owned());
            }
            file.text += line;
            file.text += if crlf && file.path == "Dockerfile" { "\r\n" } else { "\n" };
        } else if !line.is_empty() {
            let (word, value) = line.split_once(": ").unwrap_or_else(|| panic!("{}: {line}", case.name));
            match word {
                "args" => case.args = value.split_whitespace().map(str::to_owned).collect(),
                "fails" => case.fails = Some(value.to_owned()),
                "only" => case.only = Some(value.strip_prefix("berth ").expect("only: berth REASON").to_owned()),
                "stdin" => case.stdin = Some(value.to_owned()),
                "server" => case.server = true,
                "crlf" => crlf = true,
                "bom" => bom = true,
                "chop" => chop = true,
                other => panic!("{}: {other}", case.name),
            }
        }
        if chop && let Some(first) = case.files.first_mut() {
            first.text = first.text.trim_end().to_owned() + "\n";
        }
    }
    for case in &mut cases {
        case.files.retain(|file| file.path != "expect");
        for file in &mut case.files {
            // The empty line before the next case.
            if file.text.ends_with("\n\n") {
                file.text.pop();
            } else if file.text.ends_with("\r\n\r\n") {
                file.text.truncate(file.text.len() - 2);
            }
        }
    }
    cases
}

fn file(head: &str) -> File {
    let of = |path: &str, kind| File { path: path.to_owned(), kind, text: String::new() };
    if let Some((path, target)) = head.split_once(" -> ") {
        return of(path, FileKind::Link(target.to_owned()));
    }
    if let Some((path, last)) = head.rsplit_once(' ') {
        if last.len() == 4 && last.starts_with('0') {
            return of(path, FileKind::Plain(u32::from_str_radix(last, 8).unwrap()));
        }
        if last.starts_with("tar") {
            return of(path, FileKind::Tar(last.to_owned()));
        }
        if path == "many" {
            return of(path, FileKind::Many(last.parse().unwrap()));
        }
    }
    of(head, FileKind::Plain(0o644))
}

impl Case {
    /// Writes its files into `folder`.
    pub fn write(&self, folder: &Path) {
        for file in &self.files {
            let path = folder.join(&file.path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            match &file.kind {
                FileKind::Plain(mode) => {
                    fs::write(&path, &file.text).unwrap();
                    fs::set_permissions(&path, fs::Permissions::from_mode(*mode)).unwrap();
                }
                FileKind::Link(target) => symlink(target, &path).unwrap(),
                FileKind::Tar(how) => fs::write(&path, archive(&file.text, how, folder)).unwrap(),
                FileKind::Many(count) => {
                    for number in 0..*count {
                        let path = folder.join(format!("many/{}/{number}", number % 17));
                        fs::create_dir_all(path.parent().unwrap()).unwrap();
                        fs::write(path, format!("file {number}\n")).unwrap();
                    }
                }
            }
        }
        let own = self.name.bytes().fold(7, |sum: i64, byte| (sum * 131 + i64::from(byte)) % TIMES);
        let time = format!("@{}", CONTEXT_TIME + own);
        let script = r#"find "$1" -depth -exec touch -h -d "$2" {} + && find "$1" -type d -exec chmod 755 {} +"#;
        let set = Command::new("sh").args(["-c", script, "sh"]).arg(folder).arg(time).status().unwrap();
        assert!(set.success());
    }
}

/// Lines as `f 0644[:uid:gid] path text`, `d 0755[:uid:gid] path`, `l path target`.
fn archive(lines: &str, how: &str, folder: &Path) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for line in lines.lines().filter(|line| !line.is_empty()) {
        let words: Vec<&str> = line.split(' ').collect();
        let mut header = tar::Header::new_ustar();
        header.set_mtime(CONTEXT_TIME.cast_unsigned());
        let numbers: Vec<&str> = words[1].split(':').collect();
        header.set_uid(numbers.get(1).map_or(0, |id| id.parse().unwrap()));
        header.set_gid(numbers.get(2).map_or(0, |id| id.parse().unwrap()));
        header.set_mode(u32::from_str_radix(numbers[0], 8).unwrap_or(0o777));
        header.set_size(0);
        match words[0] {
            "f" => {
                header.set_size(words[3].len() as u64);
                builder.append_data(&mut header, words[2], words[3].as_bytes()).unwrap();
            }
            "d" => {
                header.set_entry_type(tar::EntryType::Directory);
                builder.append_data(&mut header, words[2], &b""[..]).unwrap();
            }
            "l" => {
                header.set_entry_type(tar::EntryType::Symlink);
                builder.append_link(&mut header, words[1], words[2]).unwrap();
            }
            other => panic!("{other}"),
        }
    }
    let plain = builder.into_inner().unwrap();
    let program = match how {
        "tar" => return plain,
        "tar.gz" => "gzip",
        "tar.bz2" => "bzip2",
        "tar.xz" => "xz",
        other => panic!("{other}"),
    };
    let path = folder.join(format!(".{}", images::sha256(&plain)));
    fs::write(&path, plain).unwrap();
    let packed = Command::new(program).args(["-c"]).arg(&path).output().unwrap();
    assert!(packed.status.success(), "{program}: {}", String::from_utf8_lossy(&packed.stderr));
    fs::remove_file(path).unwrap();
    packed.stdout
}
