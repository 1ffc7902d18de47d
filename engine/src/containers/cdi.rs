//! `DeviceRequests`: those of driver `cdi` name devices by the Container Device Interface; `--gpus` means those of kind
//! `nvidia.com/gpu`.

use crate::{
    api::host_config::DeviceRequest,
    http::{ApiError, ApiResult},
};
use ::spec::cdi::{Edits, Registry, is_device_name};
use axum::http::StatusCode;
use std::path::PathBuf;

const GPU_KIND: &str = "nvidia.com/gpu";
/// What nvidia's driver calls its capabilities.
const GPU_CAPABILITIES: [&str; 8] = ["gpu", "nvidia", "compute", "compat32", "graphics", "utility", "video", "display"];

fn failed(message: String) -> ApiError {
    ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, message)
}

/// Checks the forms of requests.
pub fn check(requests: &[DeviceRequest]) -> ApiResult<()> {
    for request in requests {
        if request.count != 0 && !request.device_ids.is_empty() {
            return Err(ApiError::invalid("cannot set both Count and DeviceIDs on device request"));
        }
        if request.driver == "cdi" {
            if let Some(bad) = request.device_ids.iter().find(|name| !is_device_name(name)) {
                return Err(ApiError::invalid(format!("invalid CDI device name {bad:?}: VENDOR/CLASS=NAME is needed")));
            }
            if request.count != 0 {
                return Err(ApiError::invalid("CDI devices are asked for by name, not by number"));
            }
        }
    }
    Ok(())
}

/// What the requested devices make of a container.
pub fn edits(folders: &[PathBuf], requests: &[DeviceRequest]) -> ApiResult<Edits> {
    if requests.is_empty() {
        return Ok(Edits::default());
    }
    let registry = Registry::read(folders);
    let mut names: Vec<String> = Vec::new();
    for request in requests {
        let found = match request.driver.as_str() {
            "cdi" => request.device_ids.to_vec(),
            "" | "nvidia" => gpus(&registry, request)?,
            _ => return Err(no_driver(request)),
        };
        names.extend(found.into_iter().filter(|name| !names.contains(name)).collect::<Vec<_>>());
    }
    Ok(registry.edits(&names)?)
}

fn gpus(registry: &Registry, request: &DeviceRequest) -> ApiResult<Vec<String>> {
    let prefix = format!("{GPU_KIND}=");
    let described = registry.has_kind(GPU_KIND);
    let fits = |set: &Vec<String>| {
        set.iter().any(|c| c == "gpu" || c == "nvidia") && set.iter().all(|c| GPU_CAPABILITIES.contains(&c.as_str()))
    };
    let wanted =
        request.capabilities.iter().any(fits) || (request.driver == "nvidia" && request.capabilities.is_empty());
    if !described || !wanted {
        return Err(no_driver(request));
    }
    if !request.device_ids.is_empty() {
        return Ok(request.device_ids.iter().map(|id| format!("{prefix}{id}")).collect());
    }
    Ok(match request.count {
        count @ 1.. => (0..count).map(|n| format!("{prefix}{n}")).collect(),
        _ => vec![format!("{prefix}all")],
    })
}

fn no_driver(request: &DeviceRequest) -> ApiError {
    let sets: Vec<String> = request.capabilities.iter().map(|set| format!("[{}]", set.join(" "))).collect();
    failed(format!("could not select device driver \"{}\" with capabilities: [{}]", request.driver, sets.join(" ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn request(json: Value) -> DeviceRequest {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn gpus_by_their_description_else_the_driver_is_missed() {
        let folder = tempfile::tempdir().unwrap();
        let folders = [folder.path().to_owned()];
        let all = request(json!({"Count": -1, "Capabilities": [["gpu"]]}));
        let error = edits(&folders, std::slice::from_ref(&all)).unwrap_err();
        assert_eq!(error.message, "could not select device driver \"\" with capabilities: [[gpu]]");
        assert_eq!(error.status.as_u16(), 500);
        let text = "cdiVersion: 0.5.0\nkind: nvidia.com/gpu\ndevices:\n- name: all\n  containerEdits: {env: [N=all]}\n\
                    - name: '0'\n  containerEdits: {env: [N=0]}\n";
        std::fs::write(folder.path().join("nvidia.yaml"), text).unwrap();
        assert_eq!(edits(&folders, &[all]).unwrap().env(), ["N=all"]);
        let one = request(json!({"Driver": "nvidia", "Count": 1, "Capabilities": [["gpu", "utility"]]}));
        assert_eq!(edits(&folders, &[one]).unwrap().env(), ["N=0"]);
        let ids = request(json!({"DeviceIDs": ["0"], "Capabilities": [["gpu"]]}));
        assert_eq!(edits(&folders, &[ids]).unwrap().env(), ["N=0"]);
        for other in [
            json!({"Driver": "foo", "Count": 1}),
            json!({"Count": 1, "Capabilities": [["tpu"]]}),
            json!({"Count": 1, "Capabilities": [["gpu", "tpu"]]}),
        ] {
            let error = edits(&folders, &[request(other)]).unwrap_err();
            assert!(error.message.starts_with("could not select device driver"), "{error}");
        }
    }

    #[test]
    fn names() {
        assert!(check(&[request(json!({"Driver": "cdi", "DeviceIDs": ["/dev/x"]}))]).is_err());
        assert!(check(&[request(json!({"Count": 1, "DeviceIDs": ["x"]}))]).is_err());
        let missing = request(json!({"Driver": "cdi", "DeviceIDs": ["vendor.com/thing=three"]}));
        let error = edits(&[], &[missing]).unwrap_err();
        assert_eq!(error.message, "CDI device injection failed: unresolvable CDI devices vendor.com/thing=three");
        assert_eq!(error.status.as_u16(), 500);
    }
}
