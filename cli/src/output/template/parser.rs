//! Tokens to a tree.

use super::TemplateError;
use super::lexer::{Kind, Piece, Token, cut};
use crate::output::value::Value;

/// A piece of the tree.
#[derive(Debug)]
pub(super) enum Node {
    Text(String),
    Print(Pipeline),
    /// `if` and every `else if`, then `else`.
    If(Vec<(Pipeline, Vec<Node>)>, Vec<Node>),
    With(Pipeline, Vec<Node>, Vec<Node>),
    Range(Box<Range>),
    Break,
    Continue,
}

/// `range`
#[derive(Debug)]
pub(super) struct Range {
    /// Variables for element, or for index and element.
    pub(super) variables: Vec<String>,
    pub(super) pipeline: Pipeline,
    pub(super) body: Vec<Node>,
    pub(super) otherwise: Vec<Node>,
}

/// Commands, each given the result of the one before as its last argument.
#[derive(Debug)]
pub(super) struct Pipeline {
    /// A variable that takes the result, and whether it is a new one.
    pub(super) assign: Option<(String, bool)>,
    pub(super) commands: Vec<Command>,
}

/// A function or method with its arguments, or a value.
#[derive(Debug)]
pub(super) struct Command {
    pub(super) operands: Vec<Operand>,
}

/// A value and fields below it.
#[derive(Debug)]
pub(super) struct Operand {
    pub(super) base: Base,
    pub(super) fields: Vec<String>,
    pub(super) at: usize,
}

/// Where a value comes from.
#[derive(Debug)]
pub(super) enum Base {
    Dot,
    Variable(String),
    Literal(Value),
    Nil,
    Function(String),
    Paren(Pipeline),
}

/// How deep parentheses and blocks may be nested: a template from a command line must not exhaust the stack.
const DEEPEST: usize = 100;

fn bad(text: impl Into<String>) -> TemplateError {
    TemplateError::Parse(text.into())
}

pub(super) fn parse(template: &str) -> Result<Vec<Node>, TemplateError> {
    let mut parser =
        Parser { pieces: cut(template)?.into_iter(), ranges: 0, depth: 0, variables: vec!["$".to_owned()] };
    match parser.block()? {
        (nodes, End::Input) => Ok(nodes),
        (_, End::Closed) => Err(bad("unexpected {{end}}")),
        (_, End::Else(_)) => Err(bad("unexpected {{else}}")),
    }
}

/// What ended a block.
enum End {
    Input,
    /// `end`
    Closed,
    /// `else`, with the words after it.
    Else(Vec<Token>),
}

struct Parser {
    pieces: std::vec::IntoIter<Piece>,
    /// How many `range` are open.
    ranges: usize,
    depth: usize,
    /// Variables in sight.
    variables: Vec<String>,
}

impl Parser {
    fn block(&mut self) -> Result<(Vec<Node>, End), TemplateError> {
        self.depth += 1;
        if self.depth > DEEPEST {
            return Err(bad("nested too deeply"));
        }
        let visible = self.variables.len();
        let mut nodes = Vec::new();
        let end = loop {
            let tokens = match self.pieces.next() {
                None => break End::Input,
                Some(Piece::Text(text)) => {
                    nodes.push(Node::Text(text));
                    continue;
                }
                Some(Piece::Action(tokens)) => tokens,
            };
            let word = match tokens.first().map(|t| &t.kind) {
                Some(Kind::Word(word)) => word.as_str(),
                _ => "",
            };
            match word {
                "end" => break End::Closed,
                "else" => break End::Else(tokens[1..].to_vec()),
                "if" => nodes.push(self.branches(&tokens[1..])?),
                "with" => {
                    let outside = self.variables.len();
                    let pipeline = self.whole(&tokens[1..])?;
                    let (body, otherwise) = self.body_and_else()?;
                    self.variables.truncate(outside);
                    nodes.push(Node::With(pipeline, body, otherwise));
                }
                "range" => nodes.push(self.range(&tokens[1..])?),
                "break" | "continue" if self.ranges == 0 => {
                    return Err(bad(format!("{{{{{word}}}}} outside {{{{range}}}}")));
                }
                "break" => nodes.push(Node::Break),
                "continue" => nodes.push(Node::Continue),
                "define" | "template" | "block" => return Err(bad(format!("{{{{{word}}}}} is not supported"))),
                _ => nodes.push(Node::Print(self.whole(&tokens)?)),
            }
        };
        self.variables.truncate(visible);
        self.depth -= 1;
        Ok((nodes, end))
    }

    fn branches(&mut self, condition: &[Token]) -> Result<Node, TemplateError> {
        let outside = self.variables.len();
        let mut arms = Vec::new();
        let mut condition = condition.to_vec();
        let otherwise = loop {
            let pipeline = self.whole(&condition)?;
            let (body, end) = self.block()?;
            arms.push((pipeline, body));
            match end {
                End::Input => return Err(bad("unexpected EOF")),
                End::Closed => break Vec::new(),
                End::Else(words) if words.is_empty() => break self.last_block()?,
                End::Else(words) if words[0].kind == Kind::Word("if".to_owned()) => condition = words[1..].to_vec(),
                End::Else(_) => return Err(bad("unexpected words in {{else}}")),
            }
        };
        self.variables.truncate(outside);
        Ok(Node::If(arms, otherwise))
    }

    fn range(&mut self, tokens: &[Token]) -> Result<Node, TemplateError> {
        let outside = self.variables.len();
        let kinds: Vec<&Kind> = tokens.iter().map(|t| &t.kind).collect();
        let (variables, rest) = match kinds[..] {
            [Kind::Variable(a), Kind::Comma, Kind::Variable(b), Kind::Declare, ..] => {
                (vec![a.clone(), b.clone()], &tokens[4..])
            }
            [Kind::Variable(a), Kind::Declare, ..] => (vec![a.clone()], &tokens[2..]),
            _ => (Vec::new(), tokens),
        };
        let pipeline = self.whole(rest)?;
        self.variables.extend(variables.iter().cloned());
        self.ranges += 1;
        let (body, otherwise) = self.body_and_else()?;
        self.ranges -= 1;
        self.variables.truncate(outside);
        Ok(Node::Range(Box::new(Range { variables, pipeline, body, otherwise })))
    }

    fn body_and_else(&mut self) -> Result<(Vec<Node>, Vec<Node>), TemplateError> {
        let (body, end) = self.block()?;
        match end {
            End::Input => Err(bad("unexpected EOF")),
            End::Closed => Ok((body, Vec::new())),
            End::Else(words) if words.is_empty() => Ok((body, self.last_block()?)),
            End::Else(_) => Err(bad("unexpected words in {{else}}")),
        }
    }

    fn last_block(&mut self) -> Result<Vec<Node>, TemplateError> {
        match self.block()? {
            (nodes, End::Closed) => Ok(nodes),
            (_, End::Input) => Err(bad("unexpected EOF")),
            (_, End::Else(_)) => Err(bad("unexpected {{else}}")),
        }
    }

    /// A pipeline that takes up all the tokens.
    fn whole(&mut self, tokens: &[Token]) -> Result<Pipeline, TemplateError> {
        let mut rest = tokens;
        let pipeline = self.pipeline(&mut rest)?;
        match rest.first() {
            None => Ok(pipeline),
            Some(_) => Err(bad("unexpected \")\" in command")),
        }
    }

    fn pipeline(&mut self, rest: &mut &[Token]) -> Result<Pipeline, TemplateError> {
        self.depth += 1;
        if self.depth > DEEPEST {
            return Err(bad("nested too deeply"));
        }
        let mut assign = None;
        if let [Token { kind: Kind::Variable(name), .. }, Token { kind, .. }, ..] = rest {
            let declare = *kind == Kind::Declare;
            if declare || *kind == Kind::Assign {
                assign = Some((name.clone(), declare));
                *rest = &rest[2..];
            }
        }
        let mut commands = vec![self.command(rest)?];
        while matches!(rest.first(), Some(Token { kind: Kind::Pipe, .. })) {
            *rest = &rest[1..];
            commands.push(self.command(rest)?);
        }
        match &assign {
            Some((name, true)) => self.variables.push(name.clone()),
            Some((name, false)) => self.known(name)?,
            None => {}
        }
        self.depth -= 1;
        Ok(Pipeline { assign, commands })
    }

    fn command(&mut self, rest: &mut &[Token]) -> Result<Command, TemplateError> {
        let mut operands: Vec<Operand> = Vec::new();
        while let Some((token, after)) = rest.split_first() {
            if matches!(token.kind, Kind::Pipe | Kind::Close) {
                break;
            }
            *rest = after;
            if let (Kind::Field(name), true, Some(operand)) = (&token.kind, token.glued, operands.last_mut()) {
                operand.fields.push(name.clone());
                continue;
            }
            let mut fields = Vec::new();
            let base = match &token.kind {
                Kind::Dot => Base::Dot,
                Kind::Field(name) => {
                    fields.push(name.clone());
                    Base::Dot
                }
                Kind::Variable(name) => {
                    self.known(name)?;
                    Base::Variable(name.clone())
                }
                Kind::Literal(value) => Base::Literal(value.clone()),
                Kind::Word(word) => match word.as_str() {
                    "true" => Base::Literal(true.into()),
                    "false" => Base::Literal(false.into()),
                    "nil" => Base::Nil,
                    _ if super::funcs::known(word) => Base::Function(word.clone()),
                    _ => return Err(bad(format!("function {word:?} not defined"))),
                },
                Kind::Open => {
                    let inner = self.pipeline(rest)?;
                    match rest.split_first() {
                        Some((Token { kind: Kind::Close, .. }, after)) => *rest = after,
                        _ => return Err(bad("unclosed left paren")),
                    }
                    Base::Paren(inner)
                }
                Kind::Comma => return Err(bad("unexpected \",\" in command")),
                Kind::Declare | Kind::Assign => return Err(bad("unexpected assignment in command")),
                Kind::Pipe | Kind::Close => break,
            };
            operands.push(Operand { base, fields, at: token.at });
        }
        if operands.is_empty() {
            return Err(bad("missing value for command"));
        }
        Ok(Command { operands })
    }

    fn known(&self, name: &str) -> Result<(), TemplateError> {
        if self.variables.iter().any(|v| v == name) {
            return Ok(());
        }
        Err(bad(format!("undefined variable {name:?}")))
    }
}
