#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use proptest::prelude::*;

use super::*;

fn builtin(oid: u32) -> Arc<Type> {
    Type::builtin(oid).unwrap()
}

fn named(kind: Kind) -> Arc<Type> {
    Arc::new(Type { oid: 99_999, name: "public.made".to_owned(), kind })
}

fn composite(fields: &[(&str, &Arc<Type>)]) -> Arc<Type> {
    let fields = fields.iter().map(|(name, ty)| ((*name).to_owned(), Arc::clone(ty))).collect();
    named(Kind::Composite { fields })
}

fn array(element: &Arc<Type>) -> Arc<Type> {
    named(Kind::Array { element: Arc::clone(element), delimiter: b',' })
}

fn json(ty: &Type, text: &str) -> Result<String, ValueError> {
    let mut out = b"before".to_vec();
    let written = write_value(ty, text.as_bytes(), &mut out);
    let out = String::from_utf8(out).unwrap();
    let json = out.strip_prefix("before").unwrap();
    written.map(|()| json.to_owned()).inspect_err(|_| assert_eq!(json, ""))
}

const BOOL: u32 = 16;
const INT8: u32 = 20;
const INT2VECTOR: u32 = 22;
const TEXT: u32 = 25;
const JSON: u32 = 114;
const INT4_ARRAY: u32 = 1007;
const TEXT_ARRAY: u32 = 1009;
const DATE: u32 = 1082;
const TIMESTAMP: u32 = 1114;
const TIMESTAMPTZ: u32 = 1184;
const NUMERIC: u32 = 1700;
const REGCLASS: u32 = 2205;

#[test]
fn scalars() {
    for (oid, text, wanted) in [
        (BOOL, "t", "true"),
        (INT8, "-9223372036854775808", "-9223372036854775808"),
        (NUMERIC, "NaN", "\"NaN\""),
        (NUMERIC, "-0.10", "-0.10"),
        (DATE, "0044-03-15 BC", "\"0044-03-15 BC\""),
        (TIMESTAMP, "10000-01-01 00:00:00", "\"10000-01-01T00:00:00\""),
        (TIMESTAMPTZ, "0044-03-15 00:00:00+00 BC", "\"0044-03-15T00:00:00+00:00 BC\""),
        (TIMESTAMPTZ, "2024-01-01 00:00:00.5+05:30", "\"2024-01-01T00:00:00.5+05:30\""),
        (TIMESTAMPTZ, "-infinity", "\"-infinity\""),
        (JSON, " {\n\"a\":\r\n1}", " { \"a\":  1}"),
        (TEXT, "", "\"\""),
    ] {
        assert_eq!(json(&builtin(oid), text).as_deref(), Ok(wanted));
    }
}

#[test]
fn what_a_type_does_not_print_is_refused() {
    for (oid, texts) in [
        (BOOL, &["", "true", "T", "tt"][..]),
        (NUMERIC, &["", "-", "01", "1.", ".5", "1e", "1e+", "nan", "+1", "1,2", "1 ", "0x1", "--1"]),
        (DATE, &["", "24-01-01", "2024-1-01", "2024-01-01 AD", "2024-01-01\"", "01/02/2024", "Infinity"]),
        (TIMESTAMP, &["2024-01-01", "2024-01-01 1:00:00", "2024-01-01 01:00", "2024-01-01 01:00:00+00"]),
        (TIMESTAMPTZ, &["2024-01-01 01:00:00", "2024-01-01 01:00:00Z", "2024-01-01 01:00:00+0"]),
        (
            INT4_ARRAY,
            &[
                "",
                "{",
                "}",
                "{1",
                "{1,}",
                "{,1}",
                "{1}}",
                "{1}x",
                "{{1}",
                "{1 {2}}",
                "[0:1]{1}",
                "[0:1",
                "1",
                "{\"1",
                "{\"1\\",
                "{x}",
                "{{{{{{{1}}}}}}}",
                "{\"1\"2}",
                "{{1}2}",
            ],
        ),
        (TEXT_ARRAY, &["{\"a\"\"b\"}", "{a\"}x"]),
        (INT2VECTOR, &[" ", "1 ", "1  2", "x"]),
    ] {
        for text in texts {
            assert!(matches!(json(&builtin(oid), text), Err(ValueError::Expected { .. })), "{oid} {text}");
        }
    }
    assert!(matches!(json(&builtin(REGCLASS), "x"), Err(ValueError::Unsupported { .. })));
}

#[test]
fn errors_name_the_place_and_never_the_value() {
    let ty = array(&composite(&[("a", &builtin(INT8)), ("b", &builtin(TEXT))]));
    let error = json(&ty, "{\"(1,x)\",\"(secret,x)\"}").unwrap_err();
    assert_eq!(error, ValueError::expected("a number", 11));
    assert!(!format!("{error} {error:?}").contains("secret"));

    let mut out = Vec::new();
    let error = write_value(&builtin(TEXT), b"ab\xff", &mut out).unwrap_err();
    assert_eq!((error, out), (ValueError::Encoding { offset: 2 }, Vec::new()));
}

#[test]
fn composites_must_have_all_their_fields() {
    let two = composite(&[("a", &builtin(INT8)), ("b", &builtin(TEXT))]);
    assert_eq!(json(&two, "(,)").as_deref(), Ok(r#"{"a":null,"b":null}"#));
    assert_eq!(json(&two, r#"(1,"")"#).as_deref(), Ok(r#"{"a":1,"b":""}"#));
    assert_eq!(json(&two, r#"(1," ""\\,)")"#).as_deref(), Ok(r#"{"a":1,"b":" \"\\,)"}"#));
    for text in ["", "(", "()", "(1)", "(1,a", "(1,a,b)", "(1,a)b", "(1,\"a)", "1,a", "(1,\"a\"\"\"b)"] {
        assert!(json(&two, text).is_err(), "{text}");
    }
    assert_eq!(json(&composite(&[]), "()").as_deref(), Ok("{}"));
    assert!(json(&composite(&[]), "(1)").is_err());
}

#[test]
fn hstore_keeps_the_separators_of_its_cast() {
    let hstore = named(Kind::Hstore);
    assert_eq!(json(&hstore, r#""a"=>"1", "b"=>NULL"#).as_deref(), Ok(r#"{"a": "1", "b": null}"#));
    assert_eq!(json(&hstore, "").as_deref(), Ok("{}"));
    for text in
        ["a", "\"a\"", "\"a\"=>", "\"a\"=>1", "\"a\"=>\"1\",", "\"a\"=>NULLx", "\"a\"=>\"1\"\"b\"=>\"2\""]
    {
        assert!(json(&hstore, text).is_err(), "{text}");
    }
}

#[test]
fn nesting_is_bounded() {
    let mut ty = builtin(TEXT);
    for _ in 0..MAX_DEPTH + 1 {
        ty = composite(&[("a", &ty)]);
    }
    let mut text = "x".to_owned();
    for _ in 0..MAX_DEPTH + 1 {
        text = format!("(\"{}\")", text.replace('\\', "\\\\").replace('"', "\"\""));
        assert!(text.len() < 10_000_000);
    }
    assert_eq!(json(&ty, &text), Err(ValueError::TooDeep));
}

/// Types of all kinds, nested.
fn any_type() -> impl Strategy<Value = Arc<Type>> {
    let leaf = prop_oneof![
        prop::sample::select(vec![BOOL, INT8, INT2VECTOR, TEXT, JSON, DATE, TIMESTAMPTZ, INT4_ARRAY])
            .prop_map(builtin),
        Just(named(Kind::Hstore)),
    ];
    leaf.prop_recursive(4, 12, 3, |inner| {
        prop_oneof![
            inner.clone().prop_map(|element| array(&element)),
            prop::collection::vec(inner, 0..3).prop_map(|fields| {
                let fields: Vec<_> = fields.iter().map(|ty| ("f", ty)).collect();
                composite(&fields)
            }),
        ]
    })
}

/// Whether a part of the text is JSON already, which PostgreSQL has checked and we do not.
fn holds_json(ty: &Type) -> bool {
    match &ty.kind {
        Kind::Json => true,
        Kind::Array { element, .. } => holds_json(element),
        Kind::Composite { fields } => fields.iter().any(|(_, field)| holds_json(field)),
        _ => false,
    }
}

/// What array_out prints for texts.
fn array_text(elements: &[Option<String>]) -> String {
    let element = |element: &Option<String>| match element {
        None => "NULL".to_owned(),
        Some(text) => format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")),
    };
    format!("{{{}}}", elements.iter().map(element).collect::<Vec<_>>().join(","))
}

proptest! {
    #[test]
    fn any_text_is_refused_or_becomes_json(
        ty in any_type(),
        text in "[\\PC\\n]{0,40}|[tf0-9NULinfty:={}()\\[\\]\"\\\\, >BC.+e-]{0,40}",
    ) {
        if let Ok(json) = json(&ty, &text) {
            prop_assert!(holds_json(&ty) || serde_json::from_str::<serde::de::IgnoredAny>(&json).is_ok());
        }
    }

    #[test]
    fn no_bytes_panic(ty in any_type(), bytes in prop::collection::vec(any::<u8>(), 0..60)) {
        let _ = write_value(&ty, &bytes, &mut Vec::new());
    }

    #[test]
    fn texts_come_back_from_arrays_of_composites(
        values in prop::collection::vec(prop::option::of("(\\PC|[\\x01-\\x7f]){0,20}"), 0..6)
    ) {
        let texts = array(&composite(&[("v", &builtin(TEXT_ARRAY))]));
        let row = format!("(\"{}\")", array_text(&values).replace('\\', "\\\\").replace('"', "\"\""));
        let json = json(&texts, &array_text(&[Some(row), None])).unwrap();
        let read: Vec<Option<std::collections::HashMap<String, Vec<Option<String>>>>> =
            serde_json::from_str(&json).unwrap();
        prop_assert_eq!(&read[0].as_ref().unwrap()["v"], &values);
        prop_assert!(read[1].is_none());
    }

    #[test]
    fn types_survive_the_log(ty in any_type()) {
        let kept = serde_json::to_string(&ty).unwrap();
        prop_assert_eq!(serde_json::from_str::<Arc<Type>>(&kept).unwrap(), ty);
    }
}
