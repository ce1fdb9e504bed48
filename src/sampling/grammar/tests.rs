use std::time::{Duration, Instant};

use super::*;
use crate::tokenizer::Spec;

/// Every byte, and an end.
fn tokenizer() -> Tokenizer {
    let bytes = (0..=u8::MAX).map(|byte| format!("<0x{byte:02X}>"));
    let vocab = bytes.chain(["</s>".to_owned(), "▁".to_owned()]).zip(0..).collect();
    Tokenizer::new(Spec { vocab, eos_token_ids: vec![256], ..Spec::default() }).unwrap()
}

fn constraint(grammar: &Grammar) -> Result<Constraint, Error> {
    Constraint::new(grammar, &tokenizer(), 258, &[256], &mut || ControlFlow::Continue(()))
}

fn error(grammar: Grammar) -> String {
    let Err(error) = constraint(&grammar) else { panic!("{grammar:?} is taken") };
    let text = error.to_string();
    assert!(!text.contains('\n') && text.len() < 600, "{text}");
    assert!(matches!(error, Error::Grammar(_)), "{text}");
    text
}

/// What must be refused, or else give a first mask; either soon.
fn bounded(grammar: Grammar) {
    let start = Instant::now();
    match constraint(&grammar) {
        Ok(mut constraint) => drop(constraint.mask(&[0.0; 258]).unwrap()),
        Err(error) => assert!(matches!(error, Error::Grammar(_)), "{error}"),
    }
    assert!(start.elapsed() < Duration::from_secs(25), "{:?}", start.elapsed());
}

#[test]
fn long_chains_do_not_overflow_the_stack() {
    let mut definitions = serde_json::Map::new();
    for i in 0..3000 {
        definitions.insert(format!("d{i}"), json!({"$ref": format!("#/$defs/d{}", i + 1)}));
    }
    definitions.insert("d3000".to_owned(), json!({"type": "integer"}));
    bounded(Grammar::JsonSchema(json!({"$ref": "#/$defs/d0", "$defs": definitions})));
    let names: Vec<_> = (0..10_000).map(|i| format!("k{i}")).collect();
    bounded(Grammar::JsonSchema(json!({"type": "object", "required": names})));
    let rules: String = (0..10_000).map(|i| format!("r{i}: r{}\n", i + 1)).collect();
    bounded(Grammar::Lark(format!("start: r0\n{rules}r10000: \"x\"\n")));
    let terminals: String = (0..3000).map(|i| format!("R{i}: \"a\" R{}\n", i + 1)).collect();
    bounded(Grammar::Lark(format!("start: R0\n{terminals}R3000: \"x\"\n")));
}

#[test]
fn what_has_no_end_is_given_up() {
    let endless = error(Grammar::Lark("start: a::0\na::_: a::incr(_) \"x\" | \"y\"\n".to_owned()));
    assert!(endless.contains("not worked out after 10 s"), "{endless}");
    let patterns: Vec<_> =
        (0..20).map(|i| json!({"type": "string", "pattern": format!(".*{i}.*")})).collect();
    let start = Instant::now();
    bounded(Grammar::JsonSchema(json!({"allOf": patterns})));
    let interrupted = Constraint::new(
        &Grammar::JsonSchema(json!({"allOf": patterns})),
        &tokenizer(),
        258,
        &[256],
        &mut || {
            if start.elapsed() > Duration::from_secs(1) {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        },
    );
    assert!(matches!(interrupted, Err(Error::Interrupted)));
    let long = error(Grammar::Lark(format!("start: \"{}\"", "x".repeat(worker::MOST_BYTES))));
    assert!(long.contains("up to 1048576 are supported"), "{long}");
}

#[test]
fn errors_say_where_and_what_is_expected() {
    let gbnf = error(Grammar::Lark("root ::= \"a\" | \"b\"\n".to_owned()));
    assert!(gbnf.starts_with("the grammar: line 1, column 7: "), "{gbnf}");
    assert!(gbnf.contains("GBNF") && gbnf.contains("Lark is expected"), "{gbnf}");
    let unknown = error(Grammar::Lark("start: a b\na: \"x\"\n".to_owned()));
    assert_eq!(unknown, "the grammar: line 1, column 8: unknown name: \"b\"");
    let second = error(Grammar::Lark("start: a\na: \"x\" ) \"y\"\n".to_owned()));
    assert!(second.starts_with("the grammar: line 2, column 8: ") && !second.contains('^'), "{second}");
    let schema = error(Grammar::JsonSchema(json!({"type": "strin"})));
    assert!(schema.starts_with("the JSON schema: "), "{schema}");
    error(Grammar::JsonSchema(json!(false)));
    error(Grammar::JsonSchema(json!(7)));
    assert!(constraint(&Grammar::JsonSchema(json!(true))).is_ok());
    error(Grammar::Regex("(".to_owned()));
    error(Grammar::Lark(String::new()));
}

#[test]
fn a_text_is_complete_where_it_may_end() {
    let mut constraint = constraint(&Grammar::Regex("ab?".to_owned())).unwrap();
    assert!(!constraint.is_complete());
    assert!(!constraint.accept(u32::from(b'a')).unwrap());
    assert!(constraint.is_complete());
    constraint.accept(u32::from(b'b')).unwrap();
    assert!(constraint.is_complete());
}
