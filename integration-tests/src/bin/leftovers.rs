//! `leftovers record FILE` before a test run, `leftovers compare FILE` after it: exit code 1 and a line for each thing
//! that the run left on the machine.

use integration_tests::leftovers::Machine;
use std::{env, fs, process::ExitCode};

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let now = Machine::look();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["record", file] => {
            let text = serde_json::to_string_pretty(&now).expect("plain data");
            if let Err(error) = fs::write(file, text) {
                eprintln!("leftovers: write {file}: {error}");
                return ExitCode::FAILURE;
            }
            ExitCode::SUCCESS
        }
        ["compare", file] => {
            let before = fs::read_to_string(file)
                .map_err(|e| e.to_string())
                .and_then(|text| serde_json::from_str(&text).map_err(|e| e.to_string()));
            let before: Machine = match before {
                Ok(before) => before,
                Err(error) => {
                    eprintln!("leftovers: read {file}: {error}");
                    return ExitCode::FAILURE;
                }
            };
            let added = now.added_since(&before);
            for line in &added {
                eprintln!("left behind: {line}");
            }
            if added.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        _ => {
            eprintln!("usage: leftovers record|compare FILE");
            ExitCode::from(2)
        }
    }
}
