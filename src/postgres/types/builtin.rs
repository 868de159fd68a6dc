//! The types of `pg_catalog` whose oids are fixed in PostgreSQL's own sources (`pg_type.dat`).
//!
//! A type that is missing here is not wrong, only asked for: the catalog knows the rest.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use super::{Kind, Type, Unsupported};

pub(super) fn get(oid: u32) -> Option<Arc<Type>> {
    BUILTIN.get(&oid).cloned()
}

static BUILTIN: LazyLock<HashMap<u32, Arc<Type>>> = LazyLock::new(|| {
    let mut types = HashMap::new();
    for &(oid, array, name, ref kind) in SCALARS {
        add(&mut types, oid, array, name, kind.clone());
    }
    for &(oid, array, name) in STRINGS {
        add(&mut types, oid, array, name, Kind::Text);
    }
    for &(oid, array, name) in SEARCH_PATH {
        add(&mut types, oid, array, name, Kind::Unsupported { why: Unsupported::SearchPath });
    }
    for (oid, array, name, element) in [(22, 1006, "int2vector", 21), (30, 1013, "oidvector", 26)] {
        let element = Arc::clone(&types[&element]);
        add(&mut types, oid, array, name, Kind::Vector { element });
    }
    types
});

fn add(types: &mut HashMap<u32, Arc<Type>>, oid: u32, array: u32, name: &str, kind: Kind) {
    let name = format!("pg_catalog.{name}");
    let array_name = format!("{name}[]");
    let element = Arc::new(Type { oid, name, kind });
    let delimiter = if oid == BOX_OID { b';' } else { b',' };
    types.insert(oid, Arc::clone(&element));
    let kind = Kind::Array { element, delimiter };
    types.insert(array, Arc::new(Type { oid: array, name: array_name, kind }));
}

/// The only built-in type whose arrays are not separated by commas.
const BOX_OID: u32 = 603;

/// Oid, oid of the array type, name, kind.
const SCALARS: &[(u32, u32, &str, Kind)] = &[
    (16, 1000, "bool", Kind::Bool),
    (20, 1016, "int8", Kind::WideNumber),
    (21, 1005, "int2", Kind::Number),
    (23, 1007, "int4", Kind::Number),
    (114, 199, "json", Kind::Json),
    (700, 1021, "float4", Kind::Number),
    (701, 1022, "float8", Kind::Number),
    (1082, 1182, "date", Kind::Date),
    (1114, 1115, "timestamp", Kind::Timestamp),
    (1184, 1185, "timestamptz", Kind::TimestampTz),
    (1700, 1231, "numeric", Kind::WideNumber),
    (3802, 3807, "jsonb", Kind::Jsonb),
];

/// Oid, oid of the array type, name.
const STRINGS: &[(u32, u32, &str)] = &[
    (17, 1001, "bytea"),
    (18, 1002, "\"char\""),
    (19, 1003, "name"),
    (25, 1009, "text"),
    (26, 1028, "oid"),
    (27, 1010, "tid"),
    (28, 1011, "xid"),
    (29, 1012, "cid"),
    (142, 143, "xml"),
    (600, 1017, "point"),
    (601, 1018, "lseg"),
    (602, 1019, "path"),
    (BOX_OID, 1020, "box"),
    (604, 1027, "polygon"),
    (628, 629, "line"),
    (650, 651, "cidr"),
    (718, 719, "circle"),
    (774, 775, "macaddr8"),
    (790, 791, "money"),
    (829, 1040, "macaddr"),
    (869, 1041, "inet"),
    (1033, 1034, "aclitem"),
    (1042, 1014, "bpchar"),
    (1043, 1015, "varchar"),
    (1083, 1183, "time"),
    (1186, 1187, "interval"),
    (1266, 1270, "timetz"),
    (1560, 1561, "bit"),
    (1562, 1563, "varbit"),
    (1790, 2201, "refcursor"),
    (2950, 2951, "uuid"),
    (2970, 2949, "txid_snapshot"),
    (3220, 3221, "pg_lsn"),
    (3614, 3643, "tsvector"),
    (3615, 3645, "tsquery"),
    (3642, 3644, "gtsvector"),
    (3904, 3905, "int4range"),
    (3906, 3907, "numrange"),
    (3908, 3909, "tsrange"),
    (3910, 3911, "tstzrange"),
    (3912, 3913, "daterange"),
    (3926, 3927, "int8range"),
    (4072, 4073, "jsonpath"),
    (4451, 6150, "int4multirange"),
    (4532, 6151, "nummultirange"),
    (4533, 6152, "tsmultirange"),
    (4534, 6153, "tstzmultirange"),
    (4535, 6155, "datemultirange"),
    (4536, 6157, "int8multirange"),
    (5038, 5039, "pg_snapshot"),
    (5069, 271, "xid8"),
];

/// Oid, oid of the array type, name.
const SEARCH_PATH: &[(u32, u32, &str)] = &[
    (24, 1008, "regproc"),
    (2202, 2207, "regprocedure"),
    (2203, 2208, "regoper"),
    (2204, 2209, "regoperator"),
    (2205, 2210, "regclass"),
    (2206, 2211, "regtype"),
    (3734, 3735, "regconfig"),
    (3769, 3770, "regdictionary"),
    (4089, 4090, "regnamespace"),
    (4096, 4097, "regrole"),
    (4191, 4192, "regcollation"),
];
