//! Stand-in.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Quoting {
    None,
}
pub fn object_fields(_json: &str) -> Result<Vec<(String, &str)>, ()> {
    Ok(vec![])
}
