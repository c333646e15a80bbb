//! Manifests: every field is one that the API knows, and every flag, path and right one that the
//! agent has a use for.

use std::{collections::BTreeSet, fs, path::Path, process::Command};

use k8s_openapi::api::{
    admissionregistration::v1::{ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding},
    apps::v1::DaemonSet,
    core::v1::{ConfigMap, Namespace, Service, ServiceAccount},
    rbac::v1::{ClusterRole, ClusterRoleBinding},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};

use crate::files::{agent, documents, object, rendered, run, skip, text, tool};

/// PodMonitor of monitoring.coreos.com/v1, as far as it is used here. k8s-openapi has no custom
/// resources (prometheus-operator.dev/docs/api-reference/api).
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct PodMonitorSpec {
    job_label: String,
    selector: Value,
    pod_metrics_endpoints: Vec<Endpoint>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Endpoint {
    port_number: u16,
    path: String,
    interval: String,
    relabelings: Vec<Relabeling>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Relabeling {
    source_labels: Vec<String>,
    target_label: String,
}

/// PrometheusRule, likewise.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PrometheusRuleSpec {
    groups: Vec<Group>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Group {
    name: String,
    rules: Vec<Rule>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    alert: String,
    expr: String,
    #[serde(rename = "for", skip_serializing_if = "Option::is_none")]
    time: Option<String>,
    annotations: Map<String, Value>,
}

/// What of `sent` is not in `kept`, by its path.
fn lost(sent: &Value, kept: &Value, path: &str, found: &mut Vec<String>) {
    match (sent, kept) {
        (Value::Object(sent), Value::Object(kept)) => {
            for (key, value) in sent {
                let path = format!("{path}.{key}");
                lost(value, kept.get(key).unwrap_or(&Value::Null), &path, found);
            }
        }
        (Value::Array(sent), Value::Array(kept)) if sent.len() == kept.len() => {
            for (index, (sent, kept)) in sent.iter().zip(kept).enumerate() {
                lost(sent, kept, &format!("{path}[{index}]"), found);
            }
        }
        _ if sent == kept => {}
        _ => found.push(format!("{path}: {sent} became {kept}")),
    }
}

/// Reads a value as a type and writes it again: what the type does not know is lost.
fn fields_lost<T: Serialize + DeserializeOwned>(value: &Value) -> Vec<String> {
    let read: T = match serde_json::from_value(value.clone()) {
        Ok(read) => read,
        Err(error) => return vec![error.to_string()],
    };
    let mut found = Vec::new();
    lost(value, &serde_json::to_value(read).unwrap(), "", &mut found);
    found
}

fn fields_unknown(document: &Value) -> Vec<String> {
    let text = |key: &str| document[key].as_str().unwrap_or_default().to_owned();
    match (text("apiVersion").as_str(), text("kind").as_str()) {
        ("v1", "Namespace") => fields_lost::<Namespace>(document),
        ("v1", "ServiceAccount") => fields_lost::<ServiceAccount>(document),
        ("v1", "ConfigMap") => fields_lost::<ConfigMap>(document),
        ("v1", "Service") => fields_lost::<Service>(document),
        ("apps/v1", "DaemonSet") => fields_lost::<DaemonSet>(document),
        ("rbac.authorization.k8s.io/v1", "ClusterRole") => fields_lost::<ClusterRole>(document),
        ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding") => {
            fields_lost::<ClusterRoleBinding>(document)
        }
        ("admissionregistration.k8s.io/v1", "ValidatingAdmissionPolicy") => {
            fields_lost::<ValidatingAdmissionPolicy>(document)
        }
        ("admissionregistration.k8s.io/v1", "ValidatingAdmissionPolicyBinding") => {
            fields_lost::<ValidatingAdmissionPolicyBinding>(document)
        }
        ("monitoring.coreos.com/v1", "PodMonitor") => {
            fields_lost::<PodMonitorSpec>(&document["spec"])
        }
        ("monitoring.coreos.com/v1", "PrometheusRule") => {
            fields_lost::<PrometheusRuleSpec>(&document["spec"])
        }
        other => vec![format!("no type for {other:?}")],
    }
}

#[test]
fn every_field_is_one_that_the_api_knows() {
    let mut seen = 0;
    let mut kinds = BTreeSet::new();
    let mut files: Vec<String> =
        rendered().iter().map(|path| fs::read_to_string(path).unwrap()).collect();
    files.push(text("deploy/kustomize/base/namespace.yaml"));
    files.push(text("deploy/helm/weir/files/admission.yaml"));
    // And all that the chart can make.
    let on = "rls.enabled=true,admissionPolicy.enabled=true,podMonitor.enabled=true,prometheusRule.enabled=true";
    let chart = "deploy/helm/weir";
    match tool("WEIR_HELM") {
        Ok(helm) => {
            let (good, text, error) = run(&helm, &["template", "weir", chart, "--set", on]);
            assert!(good, "{error}");
            files.push(text);
        }
        Err(reason) => skip("every_field_of_the_whole_chart", &reason),
    }
    for document in files.iter().flat_map(|file| documents(file)) {
        kinds.insert(document["kind"].as_str().unwrap().to_owned());
        assert_eq!(fields_unknown(&document), Vec::<String>::new(), "{}", document["kind"]);
        seen += 1;
    }
    assert!(seen >= 10 && kinds.len() >= 8, "{seen} of {kinds:?}");
    // The comparison sees what it should see.
    let mut wrong = object("base", "DaemonSet");
    wrong["spec"]["template"]["spec"]["hostPid"] = json!(true);
    assert_eq!(fields_unknown(&wrong).len(), 1);
}

fn pod(kustomization: &str) -> Value {
    object(kustomization, "DaemonSet")["spec"]["template"]["spec"].clone()
}

fn strings(value: &Value) -> Vec<String> {
    let words = value.as_array().into_iter().flatten();
    words.map(|word| word.as_str().unwrap().to_owned()).collect()
}

/// Every command line of the DaemonSets, without the program.
fn command_lines() -> Vec<Vec<String>> {
    let mut lines = Vec::new();
    for kustomization in ["base", "uninstall"] {
        let pod = pod(kustomization);
        for list in ["initContainers", "containers"] {
            for container in pod[list].as_array().into_iter().flatten() {
                lines.push(strings(&container["args"]));
                for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
                    let command = strings(&container[probe]["exec"]["command"]);
                    if let Some((program, args)) = command.split_first() {
                        assert_eq!(program, "weir");
                        lines.push(args.to_vec());
                    }
                }
            }
        }
    }
    assert!(lines.len() >= 6, "{lines:?}");
    lines
}

#[test]
fn every_flag_is_one_that_the_program_has() {
    let agent = needs!(agent());
    for line in command_lines() {
        let (command, flags) = line.split_first().unwrap();
        let help = Command::new(&agent).args([command, "--help"]).output().unwrap();
        let help = String::from_utf8(help.stdout).unwrap();
        for flag in flags.iter().filter(|flag| flag.starts_with("--")) {
            let name = flag.split('=').next().unwrap();
            let known = help.lines().any(|line| line.split([' ', ',']).any(|word| word == name));
            assert!(known, "`weir {command}` has no {name}");
        }
        // The values too: what comes before `--help` is read.
        let line = line.iter().map(|word| word.replace("$(HOST_IP)", "192.0.2.1"));
        let asked = Command::new(&agent).args(line.clone()).arg("--help").output().unwrap();
        assert!(asked.status.success(), "{line:?}");
    }
}

#[test]
fn every_path_lies_in_a_volume_that_is_mounted() {
    let pod = pod("base");
    let container = &pod["containers"][0];
    let mounts: Vec<(String, bool)> = container["volumeMounts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|mount| {
            let name = &mount["name"];
            let volumes = pod["volumes"].as_array().unwrap();
            assert!(volumes.iter().any(|volume| volume["name"] == *name), "{name}");
            (mount["mountPath"].as_str().unwrap().to_owned(), mount["readOnly"] == true)
        })
        .collect();
    assert_eq!(pod["volumes"].as_array().unwrap().len(), mounts.len());
    for line in command_lines() {
        for (flag, path) in line.iter().filter_map(|word| word.split_once("=/")) {
            let path = format!("/{path}");
            let mount = mounts.iter().find(|(at, _)| Path::new(&path).starts_with(at));
            let (at, read_only) = mount.unwrap_or_else(|| panic!("{flag}={path} is not mounted"));
            // Everything that is not only read is written there.
            assert_eq!(*read_only, flag == "--node-file", "{flag}={path} in {at}");
        }
    }
    assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true);
}

/// Two agents fit on one node, or the update could not start the successor first.
#[test]
fn nothing_keeps_a_successor_from_starting_beside_its_predecessor() {
    let daemon_set = object("base", "DaemonSet");
    let update = &daemon_set["spec"]["updateStrategy"]["rollingUpdate"];
    assert_eq!(*update, json!({ "maxSurge": 1, "maxUnavailable": 0 }));
    let pod = pod("base");
    let container = &pod["containers"][0];
    // With hostNetwork every declared port is the node's, and free for one pod only.
    assert!(pod["hostNetwork"] == true && container["ports"].is_null());
    assert!(strings(&container["args"]).iter().any(|arg| arg.starts_with("--standby=")));
    for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
        assert!(
            container[probe]["httpGet"].is_null(),
            "{probe} could be answered by another agent"
        );
        assert!(!container[probe]["exec"].is_null(), "{probe}");
    }
}

fn check(node_file: &str, name: &str, agent: &Path) {
    let path = std::env::temp_dir().join(format!("weir-{name}-{}.yaml", std::process::id()));
    fs::write(&path, node_file).unwrap();
    let checked = Command::new(agent).arg("check").arg(&path).output().unwrap();
    fs::remove_file(&path).unwrap();
    let said = [checked.stdout, checked.stderr].map(|said| String::from_utf8(said).unwrap());
    assert!(checked.status.success(), "{said:?}");
}

fn node_file(documents: &[Value]) -> String {
    let mut files = documents.iter().filter_map(|document| document["data"]["node.yaml"].as_str());
    files.next().expect("a node file").to_owned()
}

#[test]
fn the_node_file_is_one_that_the_agent_reads() {
    let agent = needs!(agent());
    let file = node_file(&[object("base", "ConfigMap")]);
    assert!(file.starts_with("mode: shadow\n"), "{file}");
    check(&file, "shipped", &agent);
    let helm = needs!(tool("WEIR_HELM"));
    let (good, text, error) = run(
        &helm,
        &[
            "template",
            "weir",
            "deploy/helm/weir",
            "--set=rls.enabled=true,mode=enforce,rls.store.redis=redis://redis:6379/0",
            "--set=rls.xds.server=eg:18001,rls.xds.scope=fleet,rls.xds.tls.ca=/etc/weir-xds/ca.crt",
            "--set=rls.xdsSecret=weir-xds",
        ],
    );
    assert!(good, "{error}");
    assert!(text.contains("mountPath: /etc/weir-xds") && text.contains("secretName: weir-xds"));
    let file = node_file(&documents(&text));
    for key in ["\nrls:\n", "\n  store:\n", "\n  xds:\n"] {
        assert!(file.contains(key), "{key}: {file}");
    }
    let rolled = |more: &str| {
        let set = format!("--set=rls.enabled=true,{more}");
        let (good, text, error) = run(&helm, &["template", "weir", "deploy/helm/weir", &set]);
        assert!(good, "{more}: {error}");
        let documents = documents(&text);
        let is_it = |document: &&Value| document["kind"] == "DaemonSet";
        let pod = &documents.iter().find(is_it).expect("a DaemonSet")["spec"]["template"];
        pod["metadata"]["annotations"]["weir.dev/rls-settings"].clone()
    };
    // What is read at the start alone rolls the agents; what is read again does not.
    let before = rolled("mode=shadow");
    assert!(before.is_string());
    assert_ne!(rolled("mode=enforce"), before);
    assert_ne!(rolled("rls.store.redis=redis://redis:6379/0"), before);
    assert_ne!(rolled("rls.xds.server=eg:18001"), before);
    assert_eq!(rolled("rls.quotaFiles.shop\\.yaml=domain: shop"), before);
    // The folder of quota files is a mount of the pod's.
    check(&file.replace("/etc/weir-quotas", "/var/empty"), "with-rls", &agent);
}
