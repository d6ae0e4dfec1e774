//! Who is told of what a program does.

use std::sync::Arc;

use super::StreamingContext;
use crate::job::StreamingListener;

impl StreamingContext {
    /// The listener hears what happens from now on, before the start and after it; see [`crate::job::listener`].
    pub fn add_streaming_listener(&self, listener: Arc<dyn StreamingListener>) {
        self.graph.lock().listeners.add(listener);
    }
}
