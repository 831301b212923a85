//! The stream's law: pieces joined are the text of all tokens, whatever the tokens.

use std::time::Instant;

use proptest::prelude::*;
use serde_json::Value;

use crate::{Tokenizer, tiny};

/// Pieces, the last of them from `finish`.
fn pieces(tokenizer: &Tokenizer, ids: &[u32], skip_special: bool) -> Vec<String> {
    let mut stream = tokenizer.stream(skip_special);
    let mut pieces: Vec<String> = ids.iter().filter_map(|&id| stream.push(id).unwrap()).collect();
    pieces.extend(stream.finish().unwrap());
    pieces
}

fn ids_of(tokenizer: &Tokenizer, tokens: &[&str]) -> Vec<u32> {
    tokens.iter().map(|token| tokenizer.token_to_id(token).unwrap()).collect()
}

/// Streams `tokens` and compares each step's piece, and what `finish` gives at the end.
fn check(json: &Value, steps: &[(&str, Option<&str>)], end: Option<&str>) {
    let tokenizer = tiny::tokenizer(json);
    let mut stream = tokenizer.stream(true);
    for (token, piece) in steps {
        let id = tokenizer.token_to_id(token).unwrap();
        assert_eq!(stream.push(id).unwrap().as_deref(), *piece, "after {token}");
    }
    assert_eq!(stream.finish().unwrap().as_deref(), end);
}

#[test]
fn a_character_comes_when_its_last_byte_does() {
    let steps = [
        ("<s>", None),
        ("hell", Some("hell")),
        ("ðŁĺ", None),
        ("Ģ", Some("😀")),
        ("Ġw", Some(" w")),
    ];
    check(&tiny::byte_level(), &steps, None);
    check(&tiny::replaced_bytes(), &steps, None);
    check(&tiny::byte_level(), &[("Ã", None)], Some("\u{fffd}"));
}

#[test]
fn added_tokens_are_plain_text() {
    check(&tiny::byte_level(), &[("Ã", None), ("née ", Some("\u{fffd}née "))], None);
}

#[test]
fn a_run_of_byte_tokens_comes_when_it_is_over() {
    let valid = [("▁a", Some("a")), ("<0xC3>", None), ("<0xA9>", None), ("▁a", Some("é a"))];
    check(&tiny::byte_fallback(), &valid, None);
    // The whole run is given up for one bad byte.
    let invalid =
        [("a", Some("a")), ("<0x41>", None), ("<0xFF>", None), ("b", Some("\u{fffd}\u{fffd}b"))];
    check(&tiny::byte_fallback(), &invalid, None);
    check(&tiny::byte_fallback(), &[("<0x41>", None)], Some("A"));
}

#[test]
fn a_space_is_dropped_at_the_start_alone() {
    let steps = [("▁a", Some("a")), ("▁a", Some(" a")), ("▁", Some(" ")), ("▁", Some(" "))];
    check(&tiny::byte_fallback(), &steps, None);
    check(&tiny::metaspace(), &steps, None);
}

#[test]
fn words_are_joined_as_the_decoder_joins_them() {
    let steps =
        [("un", Some("un")), ("##aff", Some("aff")), ("##able", Some("able")), ("a", Some(" a"))];
    check(&tiny::word_piece(), &steps, None);
    check(&tiny::words(), &[("a", Some("a")), ("é", Some(" é"))], None);
    check(&tiny::word_end(), &[("a", Some("a")), ("b</w>", Some("b")), ("a", Some(" a"))], None);
}

#[test]
fn after_a_prompt_the_first_space_stays() {
    let tokenizer = tiny::tokenizer(&tiny::byte_fallback());
    let [prompt, next] = ids_of(&tokenizer, &["a", "▁a"])[..] else { unreachable!() };
    let mut stream = tokenizer.stream(true).after(&[prompt]).unwrap();
    assert_eq!(stream.push(next).unwrap().as_deref(), Some(" a"));

    let bytes = tiny::tokenizer(&tiny::byte_level());
    let mut stream = bytes.stream(true).after(&ids_of(&bytes, &["h", "ðŁĺ"])).unwrap();
    assert_eq!(stream.push(ids_of(&bytes, &["Ģ"])[0]).unwrap().as_deref(), Some("😀"));
}

#[test]
fn unknown_ids_are_left_out() {
    for json in tiny::all() {
        assert_eq!(pieces(&tiny::tokenizer(&json), &[u32::MAX, 999_999], false), [""; 0]);
    }
}

/// Spaces that decode to nothing on their own, bytes that never become a character, an endless run:
/// the worst there is for a window. Quadratic time would take minutes here.
#[test]
fn time_is_linear_in_the_number_of_tokens() {
    let start = Instant::now();
    let worst = [
        (tiny::byte_fallback(), "▁"),
        (tiny::byte_fallback(), "<0xFF>"),
        (tiny::metaspace(), "▁"),
        (tiny::byte_level(), "ÿ"),
        (tiny::replaced_bytes(), "ÿ"),
        (tiny::word_piece(), "##aff"),
        (tiny::word_end(), "</w>"),
    ];
    for (json, token) in worst {
        let tokenizer = tiny::tokenizer(&json);
        let ids = vec![tokenizer.token_to_id(token).unwrap(); 20_000];
        assert!(pieces(&tokenizer, &ids, true).concat() == tokenizer.decode(&ids, true).unwrap());
    }
    assert!(start.elapsed().as_secs() < 30, "{:?}", start.elapsed());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn pieces_joined_are_the_decoded_text(
        seeds in prop::collection::vec(any::<u32>(), 0..40),
        skip_special in any::<bool>(),
    ) {
        for json in tiny::all() {
            let tokenizer = tiny::tokenizer(&json);
            let size = u32::try_from(tokenizer.vocab_size()).unwrap();
            // Half of the tokens among the last ones, which are more than single bytes.
            let ids: Vec<u32> = seeds
                .iter()
                .map(|seed| match seed % 2 {
                    0 => seed / 2 % size,
                    _ => size - 1 - seed / 2 % size.min(10),
                })
                .collect();
            let pieces = pieces(&tokenizer, &ids, skip_special);
            prop_assert_eq!(pieces.concat(), tokenizer.decode(&ids, skip_special).unwrap());
            prop_assert!(pieces.iter().all(|piece| !piece.is_empty()));
        }
    }

    #[test]
    fn text_that_was_encoded_streams_back(text in "[a-z éß漢😀👩‍👧\n]{0,30}") {
        let tokenizer = tiny::tokenizer(&tiny::byte_level());
        let ids = tokenizer.encode(&text, true).unwrap();
        let pieces = pieces(&tokenizer, &ids, true);
        prop_assert_eq!(pieces.concat(), text);
        let broken = pieces.iter().any(|piece| piece.contains(char::REPLACEMENT_CHARACTER));
        prop_assert!(!broken);
    }
}
