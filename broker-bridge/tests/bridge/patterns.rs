//! Patterns of topics that would cost memory, time or the process: refused at every entrance, and cheap where they are not.

use futures::StreamExt as _;
use proto::data::v1::{ConsumeRequest, Subscribe, consume_request::Request};
use serde_json::json;
use tonic::Code;

use crate::{
    Client, V2,
    honest::resident,
    process::{Bridge, servers, unique},
};

const GROWTH_MAX: u64 = 64 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pattern_costs_neither_the_process_nor_its_memory() {
    let bridge = Bridge::start(&servers()).await;
    let client = Client::of(&bridge).await;
    let topic = client.create_topic(1).await;
    client.produce(&topic, 0..3).await;
    let base = client.consumer(&unique("group"), &topic, false).await;
    assert_eq!(client.fetch_values(&base, 3).await, [0, 1, 2]);
    let before = resident(bridge.pid());

    for pattern in [
        "(".repeat(5_000) + "t" + &")".repeat(5_000),
        "(((a{1,100}){1,100}){1,100})".to_owned(),
        "[\\](((a{1,100}){1,100}){1,100})]".to_owned(),
        "a".to_owned() + &"+".repeat(40),
    ] {
        // A subscription is known by its pattern, and by a topic that is one.
        for body in [json!({"topic_pattern": pattern}), json!({"topics": [format!("^{pattern}")]})] {
            let (status, answer) = client.post(&format!("{base}/subscription"), V2, &body).await;
            assert!(status == 422 && answer["message"].as_str().unwrap().contains("topic_pattern"), "{status} {answer}");
        }
        let url = format!("{}/consumers/{}/stream", client.base, unique("group"));
        let url = reqwest::Url::parse_with_params(&url, [("topic_pattern", &pattern)]).unwrap();
        let stream = client.http.get(url.clone()).header("accept", "text/event-stream").send().await.unwrap();
        assert_eq!(stream.status(), 422);
        let socket = tokio_tungstenite::connect_async(url.as_str().replacen("http", "ws", 1)).await.unwrap_err();
        assert!(matches!(&socket, tokio_tungstenite::tungstenite::Error::Http(answer) if answer.status() == 422), "{socket}");
        let subscribe = Subscribe { group: unique("group"), topic_pattern: pattern, credit: 1, ..Default::default() };
        let requests = tokio_stream::once(ConsumeRequest { request: Some(Request::Subscribe(subscribe)) });
        let refused = client.data().consume(requests).await.unwrap().into_inner().next().await.unwrap().unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    }

    // As much as is taken; no topic has such a name.
    let all = format!("{topic}|");
    for pattern in ["(a?){0,600}!", "(a{30}){50}!", "((a|b)*!){1,200}", "(((a+)+)+)+!", "(.{0,9}){0,90}!"] {
        let (status, answer) = client.post(&format!("{base}/subscription"), V2, &json!({"topic_pattern": format!("{all}{pattern}")})).await;
        assert_eq!(status, 204, "{pattern}: {answer}");
        let records = client.http.get(format!("{base}/records?timeout=1000")).header("accept", crate::JSON).send().await.unwrap();
        assert_eq!(records.status(), 200);
    }
    assert_eq!(client.post(&format!("{base}/subscription"), V2, &json!({"topic_pattern": format!("{topic}$")})).await.0, 204);
    assert_eq!(client.fetch_values(&base, 3).await, [0, 1, 2], "and it is obeyed");
    let grown = resident(bridge.pid()).saturating_sub(before);
    assert!(grown < GROWTH_MAX, "{} MiB more than before", grown >> 20);
    client.delete(&base).await;
    client.delete_topic(&topic).await;
    bridge.stop().await;
}
