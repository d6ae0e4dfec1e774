//! Who sent it: headers with the sender's address and host name.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use crate::flume_conf::Component;

/// How long a name is waited for.
const LOOK_UP_WAIT: Duration = Duration::from_secs(2);
/// How long a name is remembered.
const NAME_AGE_MAX: Duration = Duration::from_secs(600);
/// Names that are remembered.
const NAMES_MAX: usize = 4096;

/// What `clientIPHeader` and `clientHostnameHeader` say.
#[derive(Default)]
pub struct Peers {
    address_header: Option<String>,
    name_header: Option<String>,
    names: Mutex<HashMap<IpAddr, (Arc<str>, Instant)>>,
}

impl Peers {
    pub fn of(component: &Component) -> Self {
        let header = |key| component.set(key).map(|name: &str| name.trim().to_owned());
        Self { address_header: header("clientIPHeader"), name_header: header("clientHostnameHeader"), names: Mutex::default() }
    }

    pub async fn headers(&self, sender: SocketAddr) -> Vec<(String, String)> {
        let mut headers = Vec::new();
        // An IPv4 sender on a socket for both is still an IPv4 sender.
        let address = sender.ip().to_canonical();
        if let Some(name) = &self.address_header {
            headers.push((name.clone(), address.to_string()));
        }
        if let Some(name) = &self.name_header {
            headers.push((name.clone(), self.name(address).await.to_string()));
        }
        headers
    }

    async fn name(&self, address: IpAddr) -> Arc<str> {
        if let Some((name, at)) = self.names.lock().get(&address)
            && at.elapsed() < NAME_AGE_MAX
        {
            return name.clone();
        }
        let looked_up = tokio::task::spawn_blocking(move || dns_lookup::lookup_addr(&address));
        let name: Arc<str> = match tokio::time::timeout(LOOK_UP_WAIT, looked_up).await {
            Ok(Ok(Ok(name))) => name.into(),
            failed => {
                tracing::debug!(%address, ?failed, "no name found");
                address.to_string().into()
            }
        };
        let mut names = self.names.lock();
        if names.len() >= NAMES_MAX {
            names.clear();
        }
        names.insert(address, (name.clone(), Instant::now()));
        name
    }
}
