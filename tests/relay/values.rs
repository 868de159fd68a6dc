//! Values of every type that can be a column, as SQL. `records.rs` compares each with `row_to_json`: alone,
//! in arrays, in composites and in arrays of composites.

/// Run once, by a superuser, before the values; needs the extensions hstore and citext.
pub(crate) const SETUP: &str = r#"
CREATE EXTENSION IF NOT EXISTS hstore;
CREATE EXTENSION IF NOT EXISTS citext;
CREATE SCHEMA "odd schema";
CREATE TYPE public.mood AS ENUM ('sad', '', 'a "quoted" \ label', 'NULL', 'with, comma', 'ünïcode 😀', '{brace}', '(paren)', ' space ');
CREATE DOMAIN public.positive AS int8 CHECK (VALUE > 0);
CREATE DOMAIN public.more_positive AS public.positive CHECK (VALUE > 1);
CREATE DOMAIN public.numbers AS int8[];
CREATE DOMAIN public.day AS date;
CREATE DOMAIN public.document AS json;
CREATE DOMAIN public.mood_domain AS public.mood;
CREATE TYPE public.empty AS ();
CREATE TYPE public.single AS (lonely text);
CREATE TYPE public.money_amount AS (amount numeric, currency text);
CREATE TYPE "odd schema"."Odd ""Type""" AS ("a b" int, "q""uote" text, "back\slash" text, "ünï" timestamptz, gone int, "j" json, last float8);
ALTER TYPE "odd schema"."Odd ""Type""" DROP ATTRIBUTE gone;
CREATE DOMAIN public.price AS public.money_amount;
CREATE TYPE public.line_item AS (sku text, price public.price, moods public.mood[], seen timestamp[]);
CREATE TYPE public.cart AS (id public.positive, items public.line_item[], tags hstore, doc public.document, matrix public.numbers[], odd "odd schema"."Odd ""Type""");
CREATE TYPE public.float_range AS RANGE (subtype = float8, subtype_diff = float8mi);
CREATE TYPE public.text_range AS RANGE (subtype = text, collation = "C");
CREATE TABLE public.as_type (a int, b bool, c date);
CREATE DOMAIN public.hstore_domain AS hstore;
CREATE TYPE "odd schema".hstore AS ENUM ('not the extension''s');
CREATE TYPE public.castable AS ENUM ('x');
CREATE FUNCTION public.castable_to_json(public.castable) RETURNS json LANGUAGE sql AS $$ SELECT '1'::json $$;
CREATE CAST (public.castable AS json) WITH FUNCTION public.castable_to_json(public.castable);
CREATE DOMAIN public.castable_domain AS public.castable;
CREATE TYPE public.castable_holder AS (a int, b public.castable[]);
CREATE TYPE public.castable_composite AS (a int);
CREATE FUNCTION public.composite_to_json(public.castable_composite) RETURNS json LANGUAGE sql AS $$ SELECT '1'::json $$;
CREATE CAST (public.castable_composite AS json) WITH FUNCTION public.composite_to_json(public.castable_composite);
CREATE TYPE public.regclass_range AS RANGE (subtype = regclass, subtype_opclass = oid_ops);
CREATE TYPE public.reg_holder AS (a text, b regclass);
"#;

/// Types that must be refused, although Postgres allows them as columns.
pub(crate) const REFUSED: &[&str] = &[
    "regproc",
    "regprocedure",
    "regoper",
    "regoperator",
    "regclass",
    "regtype",
    "regconfig",
    "regdictionary",
    "regnamespace",
    "regrole",
    "regcollation",
    "regclass[]",
    "public.regclass_range",
    "public.regclass_multirange",
    "public.castable",
    "public.castable[]",
    "public.castable_domain",
    "public.castable_holder",
    "public.reg_holder",
    "public.reg_holder[]",
];

/// Texts that hit every rule of quoting somewhere.
const TEXTS: &[&str] = &[
    "''",
    "' '",
    "'plain'",
    "'NULL'",
    "'null'",
    "'\"'",
    "'\\'",
    "'\\\\\"\"'",
    "'a,b'",
    "'{a}'",
    "'(a)'",
    "'[0:1]={1,2}'",
    "''''",
    "'ünïcødé 日本語 😀'",
    "E'\\x7f'",
    "E'\\u0080'",
    "E'\\u2028\\u2029'",
    "E'tab\\tnewline\\nreturn\\r'",
    "E'\\x01\\x02\\x03\\x04\\x05\\x06\\x07\\x08\\x09\\x0a\\x0b\\x0c\\x0d\\x0e\\x0f'",
    "E'\\x10\\x11\\x12\\x13\\x14\\x15\\x16\\x17\\x18\\x19\\x1a\\x1b\\x1c\\x1d\\x1e\\x1f'",
    "' leading and trailing '",
    "'</script>'",
    "'\\u0000'",
    "repeat('x\"', 3000)",
    "repeat('long plain text ', 10000)",
    "'a=>b'",
    "';'",
    "'a;b'",
];

const JSONS: &[&str] = &[
    "'null'",
    "'true'",
    "'1'",
    "'-0'",
    "'1E20'",
    "'1.50'",
    "'\"text\"'",
    "'[]'",
    "'{}'",
    "'  {\"a\" :  1 }  '",
    "'{\"b\":1,\"a\":2,\"a\":3}'",
    "E'{\\n  \"a\": [1,\\r\\n\\t2]\\n}\\n'",
    "'{\"a\":\"\\u00e9\\n\\\"\\\\\"}'",
    "'[[[[[[[[[[1]]]]]]]]]]'",
    "'\"ünï 😀\"'",
    "'[1, {\"x\": null}, \"a,b}\"]'",
    "'{\"\":\"\"}'",
    "'12345678901234567890123'",
];

const BITS: &[&str] = &["B'101'", "B'000'"];

/// Type, expressions. Each expression is cast to its type.
pub(crate) const VALUES: &[(&str, &[&str])] = &[
    ("bool", &["true", "false"]),
    ("int2", &["0", "-32768", "32767"]),
    ("int4", &["0", "-2147483648", "2147483647", "7"]),
    ("int8", &["0", "-9223372036854775808", "9223372036854775807", "9007199254740993"]),
    (
        "float4",
        &[
            "0",
            "'-0'",
            "1.5",
            "'NaN'",
            "'Infinity'",
            "'-Infinity'",
            "3.4028235e38",
            "1.17549435e-38",
            "1e-45",
            "1e20",
            "0.1",
            "16777216",
            "1e6",
            "123456.7",
        ],
    ),
    (
        "float8",
        &[
            "0",
            "'-0'",
            "0.1",
            "0.3::float8 - 0.1",
            "'NaN'",
            "'Infinity'",
            "'-Infinity'",
            "1.7976931348623157e308",
            "2.2250738585072014e-308",
            "5e-324",
            "1e20",
            "1e15",
            "1e16",
            "123456789012345678",
            "1e-5",
            "1e-4",
            "-1e100",
            "9007199254740993",
        ],
    ),
    (
        "numeric",
        &[
            "0",
            "0.00",
            "-0.10",
            "'NaN'",
            "'Infinity'",
            "'-Infinity'",
            "1e20",
            "1e-20",
            "10::numeric ^ 200",
            "repeat('9', 1000)::numeric",
            "('0.' || repeat('1', 1000))::numeric",
            "('-' || repeat('12345', 200) || '.' || repeat('6789', 100))::numeric",
            "123456789012345678901234567890.123456789",
        ],
    ),
    ("numeric(10,2)", &["1", "-99999999.99", "0"]),
    ("money", &["0", "1234.5", "-92233720368547758.08", "1000000"]),
    ("text", TEXTS),
    ("varchar", TEXTS),
    ("varchar(5)", &["'abc'", "''"]),
    ("char(5)", &["'ab'", "''", "'\"'"]),
    ("name", &["'plain'", "''", "'a \"b\"'", "repeat('x', 100)"]),
    ("\"char\"", &["'a'", "''", "'\"'", "'\\'", "' '", "','"]),
    ("citext", &["'MiXed'", "''", "'NULL'"]),
    ("bytea", &["''", "'\\x00ff'", "'\\x5c22'", "'abc'", "decode(repeat('00', 5000), 'hex')"]),
    (
        "date",
        &[
            "'2024-02-29'",
            "'infinity'",
            "'-infinity'",
            "'0044-03-15 BC'",
            "'4713-01-01 BC'",
            "'5874897-12-31'",
            "'0001-01-01'",
            "'9999-12-31'",
            "'10000-01-01'",
        ],
    ),
    (
        "timestamp",
        &[
            "'2024-02-29 12:34:56'",
            "'2024-02-29 12:34:56.5'",
            "'2024-02-29 12:34:56.000001'",
            "'infinity'",
            "'-infinity'",
            "'0044-03-15 00:00:00 BC'",
            "'0044-03-15 23:59:59.999999 BC'",
            "'294276-12-31 23:59:59.999999'",
            "'4713-01-01 00:00:00 BC'",
            "'1969-12-31 23:59:59.999999'",
            "'10000-01-01'",
        ],
    ),
    (
        "timestamptz",
        &[
            "'2024-02-29 12:34:56+05:30'",
            "'2024-02-29 12:34:56.000001+00'",
            "'infinity'",
            "'-infinity'",
            "'0044-03-15 00:00:00+00 BC'",
            "'294276-12-31 23:59:59.999999+00'",
            "'1800-01-01 00:00:00 Europe/Amsterdam'",
            "'10000-01-01 00:00:00+00'",
        ],
    ),
    ("timestamp(0)", &["'2024-02-29 12:34:56.7'"]),
    ("time", &["'00:00'", "'24:00'", "'12:34:56.789'"]),
    ("timetz", &["'00:00+00'", "'12:34:56.789-03:30'", "'24:00:00-15:59:59'"]),
    (
        "interval",
        &[
            "'0'",
            "'1 year 2 months 3 days 04:05:06.789'",
            "'-1 year +2 days -03:00'",
            "'178000000 years'",
            "'1 mon'",
            "'-00:00:00.000001'",
        ],
    ),
    ("uuid", &["'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'", "'00000000-0000-0000-0000-000000000000'"]),
    ("json", JSONS),
    ("jsonb", JSONS),
    ("jsonpath", &["'$'", "'$.\"a b\"[*] ? (@ > 1 && @.x == \"q\")'"]),
    ("xml", &["'<a b=\"c\">text</a>'", "''", "E'<a>\\n</a>'"]),
    ("bit(3)", BITS),
    ("varbit", &["B''", "B'1010101'"]),
    ("oid", &["0", "4294967295"]),
    ("xid", &["'3'"]),
    ("xid8", &["'18446744073709551615'"]),
    ("cid", &["'3'"]),
    ("tid", &["'(0,1)'"]),
    ("inet", &["'192.168.0.1'", "'192.168.0.1/24'", "'::1'", "'2001:db8::/32'"]),
    ("cidr", &["'10.0.0.0/8'", "'2001:db8::/32'"]),
    ("macaddr", &["'08:00:2b:01:02:03'"]),
    ("macaddr8", &["'08:00:2b:01:02:03:04:05'"]),
    ("pg_lsn", &["'16/B374D848'", "'0/0'"]),
    ("point", &["'(1,-2.5)'", "'(NaN,Infinity)'"]),
    ("line", &["'{1,2,3}'"]),
    ("lseg", &["'[(0,0),(1,1)]'"]),
    ("box", &["'(1,1),(0,0)'", "'(1e20,1),(0,-5)'"]),
    ("path", &["'((0,0),(1,1))'", "'[(0,0),(1,1)]'"]),
    ("polygon", &["'((0,0),(1,1),(1,0))'"]),
    ("circle", &["'<(0,0),1>'"]),
    ("tsvector", &["''", "'''a b'':1A \"q\":2 c\\\\d:3'", "to_tsvector('simple', 'The \"quick\" it''s')"]),
    ("tsquery", &["''", "'a & !b | ''c d'':*A'", "'a <-> b'"]),
    ("int4range", &["'empty'", "'[1,5)'", "'(,)'", "'[1,)'"]),
    ("int8range", &["'[1,9223372036854775807)'"]),
    ("numrange", &["'[1.0,2.50]'", "'(,1)'"]),
    ("daterange", &["'[2024-01-01,2024-02-01)'", "'[-infinity,infinity]'"]),
    ("tsrange", &["'[2024-01-01 00:00,2024-02-01 12:30:00.5)'"]),
    ("tstzrange", &["'[2024-01-01 00:00+02,)'"]),
    ("int4multirange", &["'{}'", "'{[1,2),[5,9)}'"]),
    ("int8multirange", &["'{(,)}'"]),
    ("nummultirange", &["'{[1.0,2.5]}'"]),
    ("datemultirange", &["'{[2024-01-01,2024-02-01)}'"]),
    ("tsmultirange", &["'{[2024-01-01 00:00,2024-02-01 12:30:00.5)}'"]),
    ("tstzmultirange", &["'{[2024-01-01 00:00+02,)}'"]),
    ("pg_snapshot", &["'10:20:10,14,15'"]),
    ("txid_snapshot", &["'10:20:10,14,15'"]),
    ("refcursor", &["'a \"cursor\"'", "''"]),
    ("aclitem", &["makeaclitem(10, 10, 'SELECT', true)"]),
    ("int2vector", &["'1 2 3'", "''", "'-7'"]),
    ("oidvector", &["'1 2 4294967295'", "''"]),
    (
        "hstore",
        &[
            "''",
            "'a=>1'",
            "'\"b c\"=>NULL, a=>\"NULL\"'",
            "hstore('q\"k\\', E'v\"\\\\ \\n')",
            "'\"\"=>\"\"'",
            "hstore('k', 't')",
            "hstore(ARRAY['a=>b', ', ', 'ünï 😀'], ARRAY['=>', ', ', 'ü'])",
        ],
    ),
    ("\"odd schema\".hstore", &["'not the extension''s'"]),
    ("public.hstore_domain", &["'a=>1, b=>NULL'"]),
    (
        "public.mood",
        &[
            "'sad'",
            "''",
            "'a \"quoted\" \\ label'",
            "'NULL'",
            "'with, comma'",
            "'ünïcode 😀'",
            "'{brace}'",
            "'(paren)'",
            "' space '",
        ],
    ),
    ("public.mood_domain", &["'NULL'", "'with, comma'"]),
    ("public.positive", &["9007199254740993"]),
    ("public.more_positive", &["2"]),
    ("public.numbers", &["'{1,2,NULL}'", "'{}'", "'{{1,2},{3,4}}'"]),
    ("public.day", &["'2024-02-29'", "'0044-03-15 BC'"]),
    ("public.document", JSONS),
    ("public.float_range", &["'[1e20,1e300)'", "'empty'", "'[-0,NaN]'"]),
    ("public.text_range", &["'[\"a \\\"b\\\"\",\"c,d\")'", "'[\"\",)'"]),
    ("public.float_multirange", &["'{[1,2],[4,5]}'"]),
    ("public.empty", &["ROW()"]),
    (
        "public.single",
        &["ROW(NULL)", "ROW('')", "ROW('a')", "ROW('()')", "ROW(',')", "ROW('\"')", "ROW(E'\\n')"],
    ),
    (
        "public.money_amount",
        &["ROW(1.50, 'EUR')", "ROW(NULL, NULL)", "ROW('NaN', '')", "ROW(-0.0, 'a \"b\" \\ (c), d')"],
    ),
    ("public.price", &["ROW(1.50, 'EUR')", "ROW(NULL, NULL)"]),
    ("public.castable_composite", &["ROW(1)", "ROW(NULL)"]),
    ("public.as_type", &["ROW(1, true, '2024-02-29')", "ROW(NULL, NULL, NULL)"]),
    (
        "\"odd schema\".\"Odd \"\"Type\"\"\"",
        &[
            "ROW(1, 'x\"y', 'a\\b', '2024-02-29 12:00+00', E'{\\n\"a\": \"(,)\\\\\\\\\"}', 1e20)",
            "ROW(NULL, '', NULL, 'infinity', 'null', '-0')",
        ],
    ),
    (
        "public.line_item",
        &[
            "ROW('s\"ku', ROW(9007199254740993, 'EUR')::public.price, ARRAY['NULL', NULL, '', 'a \"quoted\" \\ label']::public.mood[], ARRAY['2024-01-01 00:00', NULL, 'infinity']::timestamp[])",
            "ROW(NULL, NULL, '{}', NULL)",
        ],
    ),
    (
        "public.cart",
        &[
            "ROW(7, ARRAY[ROW('\\\"', ROW(1.5, '\"\\')::public.price, ARRAY['', 'NULL']::public.mood[], '{}')::public.line_item, NULL, ROW(NULL,NULL,NULL,NULL)::public.line_item], 'a=>\"\\\"1\", b=>NULL', '{\"x\": [1, \"a,b\"]}', ARRAY['{1,2}', '{{3},{4}}']::public.numbers[], ROW(1, '\"', '\\', NULL, '[\"\\\\\"]', 5e-324))",
            "ROW(NULL, NULL, NULL, NULL, NULL, NULL)",
        ],
    ),
    (
        "int4[]",
        &[
            "'{}'",
            "'{1,NULL,3}'",
            "'{{1,2},{3,NULL}}'",
            "'[0:1]={5,6}'",
            "'[-2:-1][3:4]={{1,2},{3,4}}'",
            "'{{{{{{1}}}}}}'",
        ],
    ),
    ("int8[]", &["'{9007199254740993,-1,NULL}'", "'[5:5]={1}'"]),
    ("numeric[]", &["'{NaN,1.50,-Infinity,NULL}'"]),
    ("float8[]", &["'{NaN,-0,1e20,Infinity}'"]),
    ("bool[]", &["'{t,f,NULL}'"]),
    (
        "text[]",
        &[
            "'{\"\",NULL,\"NULL\",null,\"null\",\"a\\\\b\",\"\\\"\",\" x \",\"{\",\"a,b\",ünï}'",
            "'[2:3]={a,\"=\"}'",
            "'{{a,\"b \"},{NULL,\"\"}}'",
            "ARRAY[E'\\n', E'\\t', E'\\x01']",
        ],
    ),
    (
        "timestamptz[]",
        &["ARRAY['2024-01-01 00:00+00', 'infinity', NULL, '0044-03-15 00:00:00+00 BC']::timestamptz[]"],
    ),
    ("json[]", &["ARRAY['{\"a\": \"x\\\\\"}', 'null', NULL, E'[1,\\n2]', '\"q\"']::json[]"]),
    ("box[]", &["'{(1,1),(0,0);(2,2),(1,1)}'", "'{NULL;(2,2),(1,1)}'", "'{{(1,1),(0,0)};{(2,2),(1,1)}}'"]),
    ("bytea[]", &["ARRAY['\\x00', '', '\\x5c22']::bytea[]"]),
    ("int2vector[]", &["ARRAY['1 2', '', '3']::int2vector[]"]),
    ("hstore[]", &["ARRAY['a=>\"x y\", b=>NULL', '', NULL]::hstore[]"]),
];
