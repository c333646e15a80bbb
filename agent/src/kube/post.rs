//! Says notices as events of `events.k8s.io`. They are created and never changed: what happens again
//! is rare by then ([`super::notices`]).

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use k8s_openapi::{
    api::{core::v1::ObjectReference, events::v1::Event},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    jiff::Timestamp,
};
use kube::{Api, Client, Error, api::PostParams};
use tokio::{sync::mpsc, time::sleep};
use tracing::warn;

use super::notices::{Notice, Object};

/// Notices that wait for the API server.
const WAITING: usize = 64;
/// The longest note that an event may have, in bytes (`noteLengthLimit` of the API's validation).
const LONGEST: usize = 1024;
/// How long until an API server that is away is tried again.
const AGAIN: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(30)];

/// What became of notices.
#[derive(Debug, Default)]
pub struct Posted {
    /// Events that were created.
    pub sent: AtomicU64,
    /// Notices that were given up: refused, or too many while the API server was away.
    pub lost: AtomicU64,
}

/// Where notices go.
#[derive(Clone, Debug)]
pub struct Poster {
    queue: mpsc::Sender<Notice>,
    posted: Arc<Posted>,
}

impl Poster {
    /// Posts in the name of a node's agent, for as long as somebody may say something.
    pub fn start(client: Client, node: String, posted: Arc<Posted>) -> Self {
        let (queue, waiting) = mpsc::channel(WAITING);
        tokio::spawn(run(client, node, waiting, Arc::clone(&posted)));
        Self { queue, posted }
    }

    /// Says something, soon; or never, if too much is waiting.
    pub fn post(&self, notice: Notice) {
        if self.queue.try_send(notice).is_err() {
            self.posted.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

async fn run(
    client: Client,
    node: String,
    mut waiting: mpsc::Receiver<Notice>,
    posted: Arc<Posted>,
) {
    let mut number = 0_u64;
    while let Some(notice) = waiting.recv().await {
        number += 1;
        let event = event(&notice, &node, number);
        let namespace = event.metadata.namespace.clone().unwrap_or_default();
        let events: Api<Event> = Api::namespaced(client.clone(), &namespace);
        let mut wait = AGAIN[0];
        loop {
            match events.create(&PostParams::default(), &event).await {
                Ok(_) => {
                    posted.sent.fetch_add(1, Ordering::Relaxed);
                    break;
                }
                // The pod's namespace is gone, or nobody granted it: asking again does not help.
                Err(Error::Api(status))
                    if (400..500).contains(&status.code) && status.code != 429 =>
                {
                    warn!(note = event.note, error = %status, "an event was refused");
                    posted.lost.fetch_add(1, Ordering::Relaxed);
                    break;
                }
                Err(_) => {
                    sleep(wait).await;
                    wait = (wait * 2).min(AGAIN[1]);
                }
            }
        }
    }
}

fn event(notice: &Notice, node: &str, number: u64) -> Event {
    let now = Timestamp::now();
    let reference = |kind: &str, namespace: Option<&String>, name: &str| ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some(kind.to_owned()),
        namespace: namespace.cloned(),
        name: Some(name.to_owned()),
        ..ObjectReference::default()
    };
    // Events about what is in no namespace are in this one, by the API's rule.
    let nowhere = "default".to_owned();
    let (namespace, regarding) = match &notice.object {
        Object::Pod { namespace, name, uid } => {
            let regarding = reference("Pod", Some(namespace), name);
            (namespace, ObjectReference { uid: Some(uid.clone()), ..regarding })
        }
        Object::Namespace { name } => (&nowhere, reference("Namespace", None, name)),
    };
    let note = notice.note.get(..notice.note.floor_char_boundary(LONGEST)).unwrap_or_default();
    let name = regarding.name.clone().unwrap_or_default();
    Event {
        metadata: ObjectMeta {
            namespace: Some(namespace.clone()),
            // As kube-runtime and client-go name theirs; the number keeps two of one instant apart.
            name: Some(format!("{name}.{:x}{number:x}", now.as_nanosecond())),
            ..ObjectMeta::default()
        },
        action: Some("Limit".to_owned()),
        reason: Some(notice.cause.name().to_owned()),
        note: Some(note.to_owned()),
        type_: Some(if notice.cause.is_warning() { "Warning" } else { "Normal" }.to_owned()),
        event_time: Some(MicroTime(now)),
        regarding: Some(regarding),
        reporting_controller: Some("weir.dev/agent".to_owned()),
        reporting_instance: Some(node.to_owned()),
        ..Event::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kube::Cause;

    #[test]
    fn a_note_is_as_long_as_it_may_be_and_ends_with_a_whole_character() {
        let object = Object::Namespace { name: "shop".to_owned() };
        let mut notice = Notice { object, cause: Cause::BadValue, note: "\u{fc}".repeat(600) };
        let length = |notice: &Notice| event(notice, "node-1", 1).note.unwrap_or_default().len();
        assert_eq!(length(&notice), 1024);
        notice.note.insert(0, 'x');
        assert_eq!(length(&notice), 1023);
        notice.note = "short".to_owned();
        assert_eq!(length(&notice), 5);
    }
}
