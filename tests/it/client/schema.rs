//! As much of JSON Schema (draft 2020-12) as our schemas use; a keyword that is not known here fails.

use serde_json::Value;

/// What is wrong with a value, each with its place.
pub fn complaints(schema: &Value, value: &Value) -> Vec<String> {
    let mut found = Vec::new();
    check(schema, schema, value, "", &mut found);
    found
}

fn check(root: &Value, schema: &Value, value: &Value, at: &str, found: &mut Vec<String>) {
    let schema = schema
        .as_object()
        .unwrap_or_else(|| panic!("no schema at {at}: {schema}"));
    for (keyword, wanted) in schema {
        let complaint = match keyword.as_str() {
            "$schema" | "$defs" | "title" | "description" => None,
            "$ref" => {
                let path = wanted.as_str().unwrap().strip_prefix('#').unwrap();
                check(root, root.pointer(path).unwrap(), value, at, found);
                None
            }
            "type" => (!is_a(value, wanted.as_str().unwrap())).then(|| format!("is no {wanted}")),
            "enum" => (!wanted.as_array().unwrap().contains(value))
                .then(|| format!("is none of {wanted}")),
            "const" => (wanted != value).then(|| format!("is not {wanted}")),
            "minimum" => value
                .as_f64()
                .is_some_and(|number| number < wanted.as_f64().unwrap())
                .then(|| format!("is below {wanted}")),
            "minItems" => value
                .as_array()
                .is_some_and(|items| (items.len() as u64) < wanted.as_u64().unwrap())
                .then(|| format!("has fewer than {wanted} items")),
            "items" => {
                for (number, item) in value.as_array().into_iter().flatten().enumerate() {
                    check(root, wanted, item, &format!("{at}/{number}"), found);
                }
                None
            }
            "required" => {
                let names = wanted
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|name| name.as_str().unwrap());
                let missing: Vec<_> = names
                    .filter(|name| value.is_object() && value.get(name).is_none())
                    .collect();
                (!missing.is_empty()).then(|| format!("lacks {missing:?}"))
            }
            "properties" => {
                for (name, schema) in wanted.as_object().unwrap() {
                    if let Some(value) = value.get(name) {
                        check(root, schema, value, &format!("{at}/{name}"), found);
                    }
                }
                None
            }
            "additionalProperties" => {
                assert_eq!(wanted, false, "not known here");
                let known = schema.get("properties").and_then(Value::as_object);
                let odd: Vec<_> = value
                    .as_object()
                    .into_iter()
                    .flat_map(|object| object.keys())
                    .filter(|name| known.is_none_or(|known| !known.contains_key(*name)))
                    .collect();
                (!odd.is_empty()).then(|| format!("has {odd:?}, which are not described"))
            }
            "oneOf" => {
                let fits = |schema: &&Value| {
                    let mut inner = Vec::new();
                    check(root, schema, value, at, &mut inner);
                    inner.is_empty()
                };
                let count = wanted.as_array().unwrap().iter().filter(fits).count();
                (count != 1).then(|| format!("fits {count} of oneOf"))
            }
            _ => panic!("the keyword {keyword} is not known here"),
        };
        found.extend(complaint.map(|text| format!("{at}: {value} {text}")));
    }
}

fn is_a(value: &Value, name: &str) -> bool {
    match name {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "number" => value.is_number(),
        "integer" => value.is_u64() || value.is_i64(),
        _ => panic!("the type {name} is not known here"),
    }
}

#[test]
fn a_schema_is_held() {
    let schema = serde_json::json!({
        "type": "object", "required": ["a"], "additionalProperties": false,
        "properties": { "a": { "$ref": "#/$defs/count" }, "b": { "enum": ["x"] } },
        "$defs": { "count": { "type": "integer", "minimum": 0 } }
    });
    for (value, fits) in [
        (serde_json::json!({ "a": 1 }), true),
        (serde_json::json!({ "a": 1, "b": "x" }), true),
        (serde_json::json!({ "a": -1 }), false),
        (serde_json::json!({ "a": 1.5 }), false),
        (serde_json::json!({ "a": 1, "b": "y" }), false),
        (serde_json::json!({ "a": 1, "c": 1 }), false),
        (serde_json::json!({}), false),
        (serde_json::json!([]), false),
    ] {
        let complaints = complaints(&schema, &value);
        assert_eq!(complaints.is_empty(), fits, "{value}: {complaints:?}");
    }
}
