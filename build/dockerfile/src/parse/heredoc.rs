//! Here-documents: what announces one.

use super::words;
use crate::{
    expand::{ExpandError, Lexer},
    instruction::Heredoc,
};

impl Heredoc {
    /// What is in it, without the tabs that `<<-` takes away.
    pub fn text(&self) -> String {
        if !self.chomp {
            return self.content.clone();
        }
        self.content.split_inclusive('\n').map(|line| line.trim_start_matches('\t')).collect()
    }
}

/// What `word` announces, if it does: `<<EOF`, `3<<-"EOF"`. A command that is such a word and nothing else is run by its content.
pub fn heredoc(word: &str) -> Result<Option<Heredoc>, ExpandError> {
    let Some((descriptor, name)) = word.split_once("<<") else { return Ok(None) };
    if !descriptor.bytes().all(|byte| byte.is_ascii_digit()) || name.contains('<') {
        return Ok(None);
    }
    let (chomp, name) = match name.strip_prefix('-') {
        Some(name) => (true, name),
        None => (false, name),
    };
    let lexer = Lexer { keep_unset: true, ..Lexer::new('\\') };
    let words = lexer.words(name, &())?;
    let [plain] = words.as_slice() else { return Ok(None) };
    let raw = Lexer { raw_quotes: true, ..lexer }.words(name, &())?.concat();
    // A quote that is gone was one that means something: nothing is filled in then.
    let quotes = |text: &str| text.matches(['\'', '"']).count();
    Ok(Some(Heredoc {
        name: plain.clone(),
        descriptor: descriptor.parse().unwrap_or(0),
        expand: quotes(plain) == quotes(&raw),
        chomp,
        content: String::new(),
    }))
}

/// The ones that the text of an instruction announces, in their order, yet empty.
pub fn announced(text: &str) -> Result<Vec<Heredoc>, ExpandError> {
    if !may_have(text) {
        return Ok(Vec::new());
    }
    // What the words mean is not asked yet; a text that has no words has no here-documents.
    let words = Lexer::display('\\').words(text, &()).unwrap_or_default();
    words.iter().filter_map(|word| heredoc(word).transpose()).collect()
}

/// Only these take any, and not with their arguments in JSON.
fn may_have(text: &str) -> bool {
    if !text.contains("<<") {
        return false;
    }
    let (keyword, rest) = words::keyword(text);
    let (_, rest) = words::flags(rest);
    match keyword.to_ascii_lowercase().as_str() {
        "onbuild" => {
            let (keyword, after) = words::keyword(rest);
            !keyword.eq_ignore_ascii_case("onbuild") && !after.is_empty() && may_have(rest)
        }
        "add" | "copy" | "run" => matches!(words::json(rest), Ok(None)),
        _ => false,
    }
}
