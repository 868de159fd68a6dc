//! Connection strings as libpq reads them, to pairs of keyword and value.
//!
//! PostgreSQL documentation, "Connection Strings": a URI, or `keyword = value` words. As in libpq a
//! later pair wins over an earlier one and an empty value counts as not given. Pure: the environment
//! and the password file come in later. tokio-postgres reads these forms too, but splits `?host=a,b`
//! and an `@` behind the path differently from libpq.

use std::collections::BTreeMap;

use super::target::TargetError;

/// The pairs of a connection string, by keyword.
pub(super) type Pairs = BTreeMap<String, String>;

pub(super) fn parse(text: &str) -> Result<Pairs, TargetError> {
    let text = text.trim();
    let uri = ["postgres://", "postgresql://"].iter().find_map(|scheme| text.strip_prefix(scheme));
    let mut pairs = match uri {
        Some(rest) => parse_uri(rest)?,
        None => parse_words(text)?,
    };
    pairs.retain(|_, value| !value.is_empty());
    Ok(pairs)
}

const fn syntax(why: &'static str) -> TargetError {
    TargetError::Syntax { why }
}

/// `[user[:password]@][host[:port],…][/dbname][?keyword=value&…]`
fn parse_uri(rest: &str) -> Result<Pairs, TargetError> {
    let mut pairs = Pairs::new();
    let path = rest.find('/').unwrap_or(rest.len());
    let rest = match rest.get(..path).and_then(|authority| authority.find('@')) {
        Some(at) => {
            let (credentials, hosts) = rest.split_at(at);
            let (user, password) = credentials.split_once(':').unwrap_or((credentials, ""));
            pairs.insert("user".into(), decode(user)?);
            pairs.insert("password".into(), decode(password)?);
            hosts.get(1..).unwrap_or_default()
        }
        None => rest,
    };
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (hosts, dbname) = rest.split_once('/').unwrap_or((rest, ""));
    parse_hosts(hosts, &mut pairs)?;
    pairs.insert("dbname".into(), decode(dbname)?);
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').ok_or(syntax("a parameter after `?` has no `=`"))?;
        match (decode(key)?.as_str(), decode(value)?) {
            // JDBC's spelling, which libpq understands as well.
            ("ssl", value) if value == "true" => pairs.insert("sslmode".into(), "require".into()),
            (key, value) => pairs.insert(key.to_owned(), value),
        };
    }
    Ok(pairs)
}

fn parse_hosts(text: &str, pairs: &mut Pairs) -> Result<(), TargetError> {
    let (mut hosts, mut ports) = (Vec::new(), Vec::new());
    for part in text.split(',') {
        let (host, port) = match part.strip_prefix('[') {
            Some(bracketed) => {
                let (host, rest) = bracketed.split_once(']').ok_or(syntax("`[` without `]`"))?;
                let port = rest.strip_prefix(':').unwrap_or(rest);
                if !rest.is_empty() && port.len() == rest.len() {
                    return Err(syntax("only `:port` may follow `]`"));
                }
                (host, port)
            }
            None => part.split_once(':').unwrap_or((part, "")),
        };
        hosts.push(decode(host)?);
        ports.push(decode(port)?);
    }
    // With no host named, the list is a single empty word, which counts as not given.
    let list =
        |words: Vec<String>| if words.iter().all(String::is_empty) { String::new() } else { words.join(",") };
    pairs.insert("host".into(), list(hosts));
    pairs.insert("port".into(), list(ports));
    Ok(())
}

fn decode(text: &str) -> Result<String, TargetError> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digit = |at: usize| tail.get(at).and_then(|byte| char::from(*byte).to_digit(16));
        let (Some(high), Some(low)) = (digit(0), digit(1)) else {
            return Err(syntax("`%` must be followed by two hexadecimal digits (write `%25` for `%`)"));
        };
        bytes.extend(u8::try_from(high << 4 | low));
        rest = tail.get(2..).unwrap_or_default();
    }
    let decoded = String::from_utf8(bytes).map_err(|_| syntax("percent-encoding that is not UTF-8"))?;
    if decoded.contains('\0') { Err(syntax("a zero byte")) } else { Ok(decoded) }
}

/// `keyword = value` words; a value is quoted by `'`, and `\` escapes inside and outside of quotes.
fn parse_words(text: &str) -> Result<Pairs, TargetError> {
    let mut pairs = Pairs::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let (key, tail) = rest.split_once('=').ok_or(syntax("expected `keyword = value`"))?;
        let key = key.trim_end();
        if key.is_empty() || key.contains(char::is_whitespace) {
            return Err(syntax("expected `keyword = value`"));
        }
        let (value, tail) = word(tail.trim_start())?;
        pairs.insert(key.to_owned(), value);
        rest = tail.trim_start();
    }
    Ok(pairs)
}

/// One value, and what follows it.
fn word(text: &str) -> Result<(String, &str), TargetError> {
    let (quoted, text) = text.strip_prefix('\'').map_or((false, text), |text| (true, text));
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => value.extend(chars.next().map(|(_, escaped)| escaped)),
            '\'' if quoted => return Ok((value, text.get(at + 1..).unwrap_or_default())),
            c if !quoted && c.is_whitespace() => return Ok((value, text.get(at..).unwrap_or_default())),
            '\0' => return Err(syntax("a zero byte")),
            c => value.push(c),
        }
    }
    if quoted { Err(syntax("a quoted value does not end")) } else { Ok((value, "")) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pairs(text: &str) -> String {
        let pairs = parse(text).unwrap();
        pairs.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn uris_as_libpq_reads_them() {
        for (uri, expected) in [
            ("postgresql://", ""),
            ("postgres:///shop", "dbname=shop"),
            ("postgres://h", "host=h"),
            ("postgres://u:p%40%2Fw@h:5433/db", "dbname=db host=h password=p@/w port=5433 user=u"),
            ("postgres://u:a:b?c@h/db", "dbname=db host=h password=a:b?c user=u"),
            ("postgres://h1:1,h2,[::1]:3/db", "dbname=db host=h1,h2,::1 port=1,,3"),
            ("postgres://%2Frun%2Fpg:5433/db", "dbname=db host=/run/pg port=5433"),
            ("postgres:///db?host=/run/pg&port=5433", "dbname=db host=/run/pg port=5433"),
            ("postgres://h:1/db?port=2", "dbname=db host=h port=2"),
            ("postgres:///db?application_name=a@b", "application_name=a@b dbname=db"),
            ("postgres://h?user=u&options=-c%20a%3Db", "host=h options=-c a=b user=u"),
            ("postgres://h/db?ssl=true", "dbname=db host=h sslmode=require"),
        ] {
            assert_eq!(pairs(uri), expected, "{uri}");
        }
    }

    #[test]
    fn words_as_libpq_reads_them() {
        for (text, expected) in [
            ("", ""),
            ("host=h port = 5 user= u", "host=h port=5 user=u"),
            (r"password='a b\'c\\' user=x\ y", r"password=a b'c\ user=x y"),
            ("user='' host=a host=b", "host=b"),
        ] {
            assert_eq!(pairs(text), expected, "{text}");
        }
    }

    #[test]
    fn what_is_malformed_is_refused() {
        for bad in [
            "host",
            "=h",
            "a b=c",
            "user='x",
            "postgres://h?x",
            "postgres://%zz",
            "postgres://[::1",
            "postgres://[::1]5",
            "postgres://%00",
            "postgres://%ff",
        ] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_parses_or_is_refused(text in ".*", uri in any::<bool>()) {
            let _ = parse(&if uri { format!("postgres://{text}") } else { text });
        }
    }
}
