//! `linux.intelRdt`: which class of service, and which lines go into its `schemata`.

use super::PlanError;
use crate::spec::IntelRdt;

/// What is asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct RdtPlan {
    /// `None` for a class of the container's own.
    pub(crate) clos_id: Option<String>,
    pub(crate) lines: Vec<String>,
    /// A monitoring group of the container's own.
    pub(crate) monitoring: bool,
    /// `enableCMT` or `enableMBM`, the older words: numbers of the class.
    pub(crate) statistics: bool,
}

impl RdtPlan {
    pub(crate) fn new(rdt: &IntelRdt) -> Result<Self, PlanError> {
        let field = "linux.intelRdt.closID";
        let name = rdt.clos_id.as_str();
        let reserved = [".", "..", "info", "mon_data", "mon_groups"].contains(&name);
        if name != "/" && (reserved || name.contains(['/', '\0', '\n']) || name.len() > 255) {
            return Err(PlanError::invalid(field, name, "is not the name of a class"));
        }
        let lines = if rdt.schemata.is_empty() {
            joined(&rdt.l3_cache_schema, &rdt.mem_bw_schema)
        } else {
            // The newer field says everything.
            rdt.schemata.iter().flat_map(|text| text.lines()).map(str::to_owned).collect()
        };
        if let Some(line) = lines.iter().find(|line| line.contains('\0') || !line.contains(':')) {
            return Err(PlanError::invalid(
                "linux.intelRdt",
                line.as_str(),
                "is not a line of schemata such as L3:0=f",
            ));
        }
        Ok(Self {
            clos_id: (!name.is_empty()).then(|| name.to_owned()),
            lines,
            monitoring: rdt.enable_monitoring,
            statistics: rdt.enable_cmt || rdt.enable_mbm,
        })
    }
}

/// Lines of both fields. Bandwidth in the field of caches gives way to the field of bandwidth (runtime-spec).
pub(crate) fn joined(l3_cache: &str, mem_bw: &str) -> Vec<String> {
    let is_bandwidth = |line: &&str| line.trim_start().starts_with("MB:");
    let caches = l3_cache.lines().filter(|line| mem_bw.is_empty() || !is_bandwidth(line));
    caches.chain(mem_bw.lines()).filter(|line| !line.trim().is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(value: serde_json::Value) -> Result<RdtPlan, PlanError> {
        RdtPlan::new(&serde_json::from_value(value).expect("intelRdt"))
    }

    #[test]
    fn bandwidth_has_a_field_of_its_own() {
        assert_eq!(joined("L3:0=f\nMB:0=10", "MB:0=20"), ["L3:0=f", "MB:0=20"]);
        assert_eq!(joined("L3:0=f\nMB:0=10", ""), ["L3:0=f", "MB:0=10"]);
        assert!(joined("", "").is_empty());
        let both =
            plan(serde_json::json!({"schemata": ["L2:0=1", "MB:0=5"], "l3CacheSchema": "L3:0=f"})).expect("plan");
        assert_eq!(both.lines, ["L2:0=1", "MB:0=5"]);
    }

    #[test]
    fn classes_are_names() {
        for bad in ["..", ".", "a/b", "/x", "info", "a\nb"] {
            let error = plan(serde_json::json!({"closID": bad})).expect_err(bad).to_string();
            assert!(error.contains("linux.intelRdt.closID"), "{error}");
        }
        assert_eq!(plan(serde_json::json!({"closID": "/"})).expect("root").clos_id.as_deref(), Some("/"));
        assert_eq!(plan(serde_json::json!({})).expect("own").clos_id, None);
        let error = plan(serde_json::json!({"l3CacheSchema": "nonsense"})).expect_err("no line").to_string();
        assert!(error.contains("linux.intelRdt: \"nonsense\""), "{error}");
    }
}
