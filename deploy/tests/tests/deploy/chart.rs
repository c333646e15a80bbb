//! The chart is the truth: what was rendered of it is current, and its schema tells good values from
//! bad ones.

use std::{collections::BTreeSet, fs, path::Path};

use serde_json::Value;

use crate::files::{documents, rendered, run, tool};

#[test]
fn the_kustomizations_say_what_the_chart_says() {
    let helm = needs!(tool("WEIR_HELM"));
    for path in rendered() {
        let text = fs::read_to_string(&path).unwrap();
        let (first, rest) = text.split_once('\n').unwrap();
        let words = first.strip_prefix("# helm ").expect("a command in the first line");
        let (good, fresh, error) = run(&helm, &words.split(' ').collect::<Vec<_>>());
        assert!(good, "{}: {error}", path.display());
        assert!(rest == fresh, "{} is stale: run `cargo xtask manifests`", path.display());
    }
}

#[test]
fn kustomize_builds_every_kustomization_and_one_on_top() {
    let kubectl = needs!(tool("WEIR_KUBECTL"));
    for folder in ["base", "uninstall"] {
        let (good, built, error) =
            run(&kubectl, &["kustomize", &format!("deploy/kustomize/{folder}")]);
        assert!(good, "{folder}: {error}");
        assert!(built.contains("kind: DaemonSet"), "{folder}");
    }
    // As the comment in the base tells users to do.
    let overlay =
        crate::files::root().join(format!("deploy/kustomize/test-{}", std::process::id()));
    fs::create_dir(&overlay).unwrap();
    fs::write(
        overlay.join("kustomization.yaml"),
        "resources: [../base]\ncomponents: [../monitoring]\n\
         images: [{ name: weir, newName: registry.example/weir, newTag: 1.2.3 }]\n\
         patches: [{ path: node-file.yaml }]\n",
    )
    .unwrap();
    fs::write(
        overlay.join("node-file.yaml"),
        "apiVersion: v1\nkind: ConfigMap\n\
         metadata: { name: weir-node-file, namespace: weir-system }\n\
         data: { node.yaml: \"mode: enforce\" }\n",
    )
    .unwrap();
    let (good, built, error) = run(&kubectl, &["kustomize", &overlay.display().to_string()]);
    fs::remove_dir_all(&overlay).unwrap();
    assert!(good, "{error}");
    let documents = documents(&built);
    let find = |kind: &str| documents.iter().find(|document| document["kind"] == kind).unwrap();
    assert_eq!(find("ConfigMap")["data"]["node.yaml"], "mode: enforce");
    let pod = &find("DaemonSet")["spec"]["template"]["spec"];
    assert_eq!(pod["containers"][0]["image"], "registry.example/weir:1.2.3");
    assert!(documents.iter().any(|document| document["kind"] == "PodMonitor"));
}

/// Values, and what helm says of them: nothing, or these words.
const VALUES: &[(&str, Option<&str>)] = &[
    ("mode=shadow", None),
    ("mode=enforce", None),
    ("mode=off", Some("/mode")),
    ("mod=enforce", Some("mod")),
    ("nodeFile=exempt: [10.0.0.0/8]", None),
    ("nodeFile=mode: enforce", Some("/nodeFile")),
    ("rls.enabled=true", None),
    ("rls.port=0", Some("/rls/port")),
    ("rls.store.redis=redis://redis:6379/0", None),
    ("rls.store.redis=redis:6379", Some("/rls/store/redis")),
    ("rls.store.reddis=redis://redis:6379/0", Some("reddis")),
    ("rls.storeSecret=Weir", Some("/rls/storeSecret")),
    ("rls.xds.server=eg:18001", None),
    ("rls.xds.server=http://eg:18001", Some("/rls/xds/server")),
    ("rls.xds.node=envoy-ratelimit", Some("server")),
    ("rls.xds.server=eg:1,rls.xds.tls.ca=/c,rls.xds.tls.key=/k", Some("cert")),
    ("rls.xdsSecret=Weir", Some("/rls/xdsSecret")),
    ("image.architecture=arm64", None),
    ("image.architecture=riscv", Some("/image/architecture")),
    ("rls.quotaFiles.shop\\.yaml=domain: shop", None),
    ("rls.quotaFiles.shop=domain: shop", Some("propertyName 'shop'")),
    ("image.repository=registry.example/weir", None),
    ("image.repository=", Some("/image/repository")),
    ("image.tag=a b", Some("/image/tag")),
    ("image.digest=sha256:12", Some("/image/digest")),
    ("image.pullPolicy=Sometimes", Some("/image/pullPolicy")),
    ("log.level=info\\,weir::datapath=debug", None),
    ("log.level=loud", Some("/log/level")),
    ("log.format=xml", Some("/log/format")),
    ("metrics.listen=0.0.0.0:9000", None),
    ("metrics.listen=9000", Some("/metrics/listen")),
    ("explain.enabled=true", None),
    ("explain.enabled=yes", Some("/explain/enabled")),
    ("podMonitor.enabled=maybe", Some("/podMonitor/enabled")),
    ("podMonitor.interval=30", Some("/podMonitor/interval")),
    ("resources.limits.memory=1Gi", None),
    ("resources.limits.memory=much", Some("/resources/limits/memory")),
    ("admissionPolicy.enabled=true", None),
    ("admissionPolicy.enabled=yes", Some("/admissionPolicy/enabled")),
    ("startupTaint=weir.dev/agent-not-ready", None),
    ("startupTaint=Weir.dev/ready", Some("/startupTaint")),
    ("startupTaint=a b", Some("/startupTaint")),
    ("readinessGate.enabled=true", None),
    ("readinessGate.enabled=maybe", Some("/readinessGate/enabled")),
    ("uninstall=true", None),
    ("uninstall=yes", Some("/uninstall")),
];

#[test]
fn the_schema_takes_good_values_and_refuses_bad_ones_by_name() {
    let helm = needs!(tool("WEIR_HELM"));
    for (value, refusal) in VALUES {
        let (good, rendered, error) =
            run(&helm, &["template", "weir", "deploy/helm/weir", "--set", value]);
        match refusal {
            None => {
                assert!(good, "{value}: {error}");
                documents(&rendered);
            }
            Some(word) => {
                assert!(!good, "{value} is accepted");
                assert!(error.contains(word), "{value}: expected {word} in: {error}");
            }
        }
    }
}

/// What the ClusterRole grants with these values (group, resource and verb), and the agent's words.
fn rights_and_words(helm: &Path, values: &str) -> (BTreeSet<String>, BTreeSet<String>) {
    let (good, rendered, error) =
        run(helm, &["template", "weir", "deploy/helm/weir", "--set", values]);
    assert!(good, "{values}: {error}");
    let documents = documents(&rendered);
    let find = |kind: &str| documents.iter().find(|document| document["kind"] == kind).unwrap();
    let words = |list: &Value| -> Vec<String> {
        let words = list.as_array().unwrap().iter();
        words.map(|word| word.as_str().unwrap().to_owned()).collect()
    };
    let mut rights = BTreeSet::new();
    for rule in find("ClusterRole")["rules"].as_array().unwrap() {
        for group in words(&rule["apiGroups"]) {
            for resource in words(&rule["resources"]) {
                let verbs = words(&rule["verbs"]).into_iter();
                rights.extend(verbs.map(|verb| format!("{group}/{resource} {verb}")));
            }
        }
    }
    let container = &find("DaemonSet")["spec"]["template"]["spec"]["containers"][0];
    (rights, words(&container["args"]).into_iter().collect())
}

/// That the agent asks for no more is held by its own tests, against the same words.
#[test]
fn what_is_turned_on_brings_its_right_and_its_word_and_nothing_else() {
    let helm = needs!(tool("WEIR_HELM"));
    let (rights, words) = rights_and_words(&helm, "mode=shadow");
    for (values, right, word) in [
        (
            "startupTaint=weir.dev/agent-not-ready",
            "/nodes patch",
            "--startup-taint=weir.dev/agent-not-ready",
        ),
        ("readinessGate.enabled=true", "/pods/status patch", "--readiness-gate"),
    ] {
        let (more_rights, more_words) = rights_and_words(&helm, values);
        assert!(more_rights.is_superset(&rights) && more_words.is_superset(&words), "{values}");
        let new: Vec<_> = more_rights.difference(&rights).collect();
        assert_eq!(new, [right], "{values}");
        let new: Vec<_> = more_words.difference(&words).collect();
        assert_eq!(new, [word], "{values}");
    }
}

#[test]
fn lint_finds_nothing() {
    let helm = needs!(tool("WEIR_HELM"));
    for more in ["podMonitor.enabled=true,prometheusRule.enabled=true", "uninstall=true"] {
        let (good, said, error) =
            run(&helm, &["lint", "deploy/helm/weir", "--strict", "--set", more]);
        assert!(good, "{more}: {said}{error}");
    }
}
