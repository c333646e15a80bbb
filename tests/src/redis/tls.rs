//! Certificates for servers that speak TLS alone, and for who asks them.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering::SeqCst},
};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use weir::fleet::store::redis::RedisSettings;

/// An authority, a server's certificate for this machine, and a client's. Removed on drop.
#[derive(Debug)]
pub struct Tls {
    folder: PathBuf,
}

impl Tls {
    /// Makes them.
    pub fn new() -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let name = format!("weir-redis-tls-{}-{}", std::process::id(), COUNT.fetch_add(1, SeqCst));
        let folder = std::env::temp_dir().join(name);
        fs::create_dir_all(&folder).expect("make a folder for certificates");
        let tls = Self { folder };
        let ca_key = KeyPair::generate().expect("make a key");
        let mut ca = CertificateParams::new(Vec::new()).expect("describe the authority");
        // Of its own: OpenSSL takes a certificate for self-signed whose issuer has its name.
        ca.distinguished_name.push(DnType::CommonName, "weir tests");
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        tls.write("ca.pem", &ca.self_signed(&ca_key).expect("sign the authority").pem());
        let issuer = Issuer::new(ca, ca_key);
        for (who, names) in [("server", &["localhost", "127.0.0.1"][..]), ("client", &["weir"])] {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            let key = KeyPair::generate().expect("make a key");
            let params = CertificateParams::new(names).expect("describe who it is");
            let cert = params.signed_by(&key, &issuer).expect("sign a certificate");
            tls.write(&format!("{who}.pem"), &cert.pem());
            tls.write(&format!("{who}.key"), &key.serialize_pem());
        }
        tls
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).expect("write a certificate");
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// What a server's configuration says, so that it listens for TLS on this port and for nothing else,
    /// and speaks it to others, too.
    pub fn server(&self, port: u16) -> Vec<(&'static str, String)> {
        let text = |path: &Path| path.display().to_string();
        vec![
            ("port", "0".to_owned()),
            ("tls-port", port.to_string()),
            ("tls-cert-file", text(&self.path("server.pem"))),
            ("tls-key-file", text(&self.path("server.key"))),
            ("tls-ca-cert-file", text(&self.path("ca.pem"))),
            ("tls-replication", "yes".to_owned()),
            ("tls-cluster", "yes".to_owned()),
        ]
    }

    /// Settings for such a server.
    pub fn settings(&self, settings: RedisSettings) -> RedisSettings {
        RedisSettings {
            ca_file: Some(self.path("ca.pem")),
            client_cert: Some((self.path("client.pem"), self.path("client.key"))),
            ..settings
        }
    }
}

impl Default for Tls {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Tls {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}
