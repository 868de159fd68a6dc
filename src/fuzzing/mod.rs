//! What every reader of outside bytes promises, checked for any bytes: the bodies of the fuzz targets in `fuzz/`.
//!
//! One function for each target. It takes bytes, hands them to the readers, and panics where a promise is
//! broken: that nothing panics, that what was read is within its bounds, that it is written back as it was
//! read, that a simple model agrees. Checks of what a stage keeps to itself stand in that stage's own
//! `fuzzing` module; here they are put together.
//!
//! Built for tests and with the feature `fuzzing` alone, never into a relay. The tests here replay the
//! corpora of `fuzz/corpus`, so that what was found once stays found by `cargo test`.

mod cursors;
mod source;
mod topics;

pub(crate) use source::Source;

/// One message of the output plugin, in any bytes; or a whole stream of them, through the router.
pub fn pgoutput(data: &[u8]) {
    match data.split_first() {
        Some((0, messages)) => crate::route::fuzzing::stream(messages),
        Some((1, body)) => crate::route::fuzzing::logical_message(body),
        Some((_, body)) => crate::wal::fuzzing::message(body),
        None => {}
    }
}

/// What a server sends on the replication connection, from its first byte on.
pub fn frames(data: &[u8]) {
    crate::wal::fuzzing::server(data);
}

/// A value's text as JSON, records of such values, and rows of COPY.
pub fn values(data: &[u8]) {
    match data.split_first() {
        Some((0, rest)) => crate::sync::full::fuzzing::copy(rest),
        Some((1, rest)) => crate::json::fuzzing::objects(rest),
        Some((2, rest)) => crate::json::fuzzing::printed(rest),
        Some((_, rest)) => crate::json::fuzzing::text(rest),
        None => {}
    }
}

/// Topics, patterns, topic templates, and grants from claims.
pub fn topics(data: &[u8]) {
    match data.split_first() {
        Some((0, rest)) => crate::auth::fuzzing::grants(rest),
        Some((1, rest)) => topics::values(rest),
        Some((2, rest)) => topics::patterns(rest),
        Some((_, rest)) => topics::template(rest),
        None => {}
    }
}

/// Cursors of all kinds, and the other positions that come as text.
pub fn cursors(data: &[u8]) {
    match data.split_first() {
        Some((0, rest)) => cursors::ordered(rest),
        Some((1, rest)) => cursors::coverage(rest),
        Some((_, rest)) => cursors::text(rest),
        None => {}
    }
}

/// What devices send: frames and messages on a socket, bodies and query strings.
pub fn messages(data: &[u8]) {
    match data.split_first() {
        Some((0, rest)) => crate::transport::fuzzing::query(rest),
        Some((1, rest)) => crate::transport::fuzzing::events(rest),
        Some((5, rest)) => crate::transport::fuzzing::socket(rest),
        Some((_, rest)) => crate::transport::fuzzing::message(rest),
        None => {}
    }
}

/// Keys and values of the log, and the state that stands beside its changes.
pub fn records(data: &[u8]) {
    match data.split_first() {
        Some((0, rest)) => crate::log::fuzzing::written(rest),
        Some((1, rest)) => crate::log::fuzzing::keys(rest),
        Some((2, rest)) => crate::route::fuzzing::state(rest),
        Some((4, rest)) => crate::route::fuzzing::rights(rest),
        Some((_, rest)) => crate::log::fuzzing::stored(rest),
        None => {}
    }
}

/// What else is read at the edges: tokens and key sets, headers, connection strings, the configuration.
pub fn edges(data: &[u8]) {
    match data.split_first() {
        Some((0, rest)) => crate::auth::fuzzing::token(rest),
        Some((1, rest)) => crate::auth::fuzzing::keys(rest),
        Some((2, rest)) => crate::transport::fuzzing::headers(rest),
        Some((3, rest)) => crate::postgres::fuzzing::connection_string(rest),
        Some((_, rest)) => crate::config::fuzzing::file(rest),
        None => {}
    }
}

#[cfg(test)]
mod tests {
    use std::panic::catch_unwind;

    /// Every input of a corpus: one a line, as `fuzz/run.sh` writes it.
    fn replay(target: fn(&[u8]), corpus: &str) {
        assert!(!corpus.is_empty());
        for (number, line) in corpus.lines().enumerate() {
            let input = input(line);
            if catch_unwind(|| target(&input)).is_err() {
                panic!("the input on line {} breaks a promise: {line}", number + 1);
            }
        }
    }

    /// `\\` is a backslash, `\0` with three octal digits any byte.
    fn input(line: &str) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut rest = line.as_bytes();
        loop {
            rest = match rest {
                [] => return bytes,
                [b'\\', b'0', high, middle, low, rest @ ..] => {
                    let digit = |byte: u8| (byte - b'0') & 7;
                    bytes.push(digit(*high) << 6 | digit(*middle) << 3 | digit(*low));
                    rest
                }
                [b'\\', b'\\', rest @ ..] => {
                    bytes.push(b'\\');
                    rest
                }
                [byte, rest @ ..] => {
                    bytes.push(*byte);
                    rest
                }
            };
        }
    }

    macro_rules! replays {
        ($($target:ident)+) => {
            $(#[test]
            fn $target() {
                replay(super::$target, include_str!(concat!("../../fuzz/corpus/", stringify!($target), ".txt")));
            })+
        };
    }

    replays!(pgoutput frames values topics cursors messages records edges);

    #[test]
    fn lines_are_read_as_they_were_written() {
        assert_eq!(input(r"a\\\0000\0377\0101 "), b"a\\\0\xffA ");
    }
}
